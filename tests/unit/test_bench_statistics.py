"""Verdicts: how often they are wrong where nothing differs, and whether they see what does."""

from collections.abc import Iterator

import numpy as np
import pytest

from bundle.bench import statistics
from bundle.bench.rundata import Comparison

RUNS = 250


def verdicts(effect: float, *, starts: int, repeats: int, within: float, between: float = 0.0, runs: int = RUNS) -> Iterator[str]:
    """The verdicts of simulated runs: relative noise `within` the repeats of an engine start and `between` the starts."""
    noise = np.random.default_rng(4)
    places = np.repeat(np.arange(starts), repeats).tolist()

    def side(middle: float) -> list[float]:
        shift = np.repeat(1 + between * noise.standard_normal(starts), repeats)
        return [float(value) for value in middle * shift * (1 + within * noise.standard_normal(starts * repeats))]

    for _ in range(runs):
        yield statistics.compare(side(effect), side(1.0), higher_is_better=True, cell_starts=places, control_starts=places).verdict


def share(verdict: str, found: Iterator[str]) -> float:
    some = list(found)
    return some.count(verdict) / len(some)


@pytest.mark.parametrize(("starts", "repeats", "within", "between"), [
    (4, 1, 0.03, 0.0), (1, 4, 0.03, 0.0), (2, 2, 0.03, 0.0), (1, 2, 0.03, 0.0), (2, 3, 0.01, 0.03)],
    ids=["four starts", "four repeats", "two of each", "two repeats", "starts that differ by more than their repeats"])
def test_equal_cells_get_a_false_verdict_in_at_most_one_case_of_twenty(starts: int, repeats: int, within: float, between: float) -> None:
    assert share(statistics.SAME, verdicts(1.0, starts=starts, repeats=repeats, within=within, between=between)) >= 0.95


def table(effect: float, *, judged_together: bool, cells: int = 24, tables: int = 100, shown: int = 24) -> Iterator[list[str]]:
    """The first `shown` verdicts of simulated tables of `cells` and their control, two starts of two repeats each and 2 % of noise; the first cell
    has `effect`."""
    noise, places = np.random.default_rng(4), [0, 0, 1, 1]

    def side(middle: float) -> list[float]:
        return [float(value) for value in middle * (1 + 0.02 * noise.standard_normal(4))]

    for _ in range(tables):
        control, others = side(1.0), [side(effect if number == 0 else 1.0) for number in range(cells)]
        among, pooled = (cells, statistics.noise([(one, places) for one in (control, *others)])) if judged_together else (1, None)
        yield [statistics.compare(one, control, higher_is_better=True, cell_starts=places, control_starts=places, among=among, pooled=pooled).verdict
               for one in others[:shown]]


def test_a_table_of_equal_cells_holds_a_false_verdict_in_at_most_one_case_of_twenty() -> None:
    together, alone = ([set(verdicts) != {statistics.SAME} for verdicts in table(1.0, judged_together=judged, tables=tables)]
                       for judged, tables in ((True, 100), (False, 20)))
    assert sum(together) <= len(together) / 20
    assert sum(alone) > len(alone) / 20, "then cells need not be judged together"


def test_what_is_judged_together_is_still_seen() -> None:
    found = [verdicts[0] for verdicts in table(1.12, judged_together=True, shown=1)]
    assert found.count(statistics.FASTER) >= 0.9 * len(found)


def test_a_cell_that_varies_more_than_the_others_is_judged_by_its_own_noise() -> None:
    calm, wild = [100.0, 100.1, 99.9, 100.0], [100.0, 130.0, 120.0, 98.0]
    pooled = statistics.noise([(calm, [])] * 9 + [(wild, [])])
    alone, together = (statistics.compare(wild, calm, higher_is_better=True, pooled=known) for known in (None, pooled))
    assert alone.smallest is not None
    assert together.smallest is not None
    assert together.smallest > 0.15
    assert together.smallest < alone.smallest  # the same noise, on more degrees of freedom


def test_a_tenth_is_as_far_away_as_ten_times() -> None:
    some, tenth = [100.0, 140.0], [10.0, 14.0]
    for cell, control, verdict in ((tenth, some, statistics.SLOWER), (some, tenth, statistics.FASTER)):
        found = statistics.compare(cell, control, higher_is_better=True)
        assert found.smallest is not None
        assert found.smallest > 1, "so that no share can be as much below 1"
        assert found.verdict == verdict


@pytest.mark.parametrize(("effect", "verdict"), [(1.15, statistics.FASTER), (0.85, statistics.SLOWER)])
def test_fifteen_percent_are_seen_nearly_always_in_four_repeats_with_three_percent_of_noise(effect: float, verdict: str) -> None:
    assert share(verdict, verdicts(effect, starts=1, repeats=4, within=0.03)) >= 0.97


def test_a_bootstrap_of_few_repeats_alone_would_be_wrong_too_often() -> None:
    noise = np.random.default_rng(4)
    found = [statistics.compare(noise.normal(1, 0.03, 2).tolist(), noise.normal(1, 0.03, 2).tolist(), higher_is_better=True) for _ in range(RUNS)]
    outside = [one for one in found if one.low is not None and one.high is not None and not one.low <= 1 <= one.high]
    assert len(outside) > RUNS / 8, "then the smallest effect would not be needed"
    assert sum(one.verdict != statistics.SAME for one in found) <= RUNS / 20


def test_the_smallest_effect_is_that_of_a_t_test() -> None:
    # Relative spread of 0.02 on both sides, n = 4 each: 6 degrees of freedom, t 2.447 and 0.906, standard error 0.02 × √(2 / 4).
    values = [100 * (1 + 0.02 * one) for one in (-1.162, -0.387, 0.387, 1.162)]
    found = statistics.compare(values, values, higher_is_better=True)
    assert found.smallest == pytest.approx((2.447 + 0.906) * 0.02 * 0.5**0.5, rel=0.003)


def test_two_starts_that_differ_leave_two_degrees_of_freedom_however_many_repeats_there_are() -> None:
    values = [99.0, 99.01, 98.99, 101.0, 101.01, 100.99]
    flat = statistics.compare(values, values, higher_is_better=True)
    known = statistics.compare(values, values, higher_is_better=True, cell_starts=[0, 0, 0, 5, 5, 5], control_starts=[1, 1, 1, 4, 4, 4])
    assert flat.smallest is not None
    assert known.smallest is not None
    assert known.smallest == pytest.approx((4.303 + 1.061) * 0.02 / 2**0.5, rel=0.01)
    assert known.smallest > 2 * flat.smallest


def test_the_interval_and_the_smallest_effect_must_both_allow_a_verdict() -> None:
    # Two of five fell back to the control's: a median that could as well have been theirs, although a t-test would believe the 12 %.
    inside = statistics.compare([100.0, 100.0, 112.0, 112.0, 112.0], [100.0] * 5, higher_is_better=True)
    assert inside.low is not None
    assert inside.low <= 1
    assert inside.smallest is not None
    assert inside.smallest < 0.12
    assert inside.verdict == statistics.SAME
    tiny = statistics.compare([100.5, 100.51, 100.5, 100.51], [100.0, 100.01, 100.0, 100.01], higher_is_better=True)
    assert tiny.low is not None
    assert tiny.low > 1
    assert (tiny.smallest, tiny.verdict) == (statistics.SMALLEST, statistics.SAME)


def test_less_is_faster_where_less_is_better() -> None:
    low, high = [80.0, 81.0, 82.0], [100.0, 101.0, 102.0]
    assert statistics.compare(low, high, higher_is_better=False).verdict == statistics.FASTER
    assert statistics.compare(high, low, higher_is_better=False).verdict == statistics.SLOWER
    assert statistics.compare(low, high, higher_is_better=True).verdict == statistics.SLOWER


def test_the_ratio_is_that_of_medians() -> None:
    found = statistics.compare([10.0, 20.0, 900.0], [10.0, 10.0, 10.0], higher_is_better=True)
    assert (found.ratio, found.low, found.high) == (2.0, 1.0, 90.0)


@pytest.mark.parametrize(("cell", "control"), [([1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0]), ([], []), ([1.0, 2.0], [0.0, 0.0])])
def test_without_two_values_on_each_side_or_a_control_above_zero_nothing_is_said(cell: list[float], control: list[float]) -> None:
    assert statistics.compare(cell, control, higher_is_better=True) == Comparison()


def test_a_control_that_is_zero_now_and_then_gives_finite_numbers() -> None:
    found = statistics.compare([1.0, 2.0, 3.0], [0.0, 2.0, 3.0], higher_is_better=True)
    assert found.high is not None
    assert found.high <= 1.5
    assert found.verdict == statistics.SAME


def test_a_cell_that_gave_nothing_at_all_is_slower() -> None:
    assert statistics.compare([0.0, 0.0, 0.0], [100.0, 101.0, 102.0], higher_is_better=True).verdict == statistics.SLOWER


def test_a_summary_has_the_median_its_interval_and_the_values() -> None:
    found = statistics.summary([3.0, 1.0, 2.0, 10.0], [0, 0, 1, 1])
    assert found == {"median": 2.5, "low": 1.0, "high": 10.0, "values": [3.0, 1.0, 2.0, 10.0], "starts": [0, 0, 1, 1]}
    assert statistics.summary([7.0], []) == {"median": 7.0, "low": 7.0, "high": 7.0, "values": [7.0], "starts": []}


def test_the_same_values_give_the_same_numbers_every_time() -> None:
    noise = np.random.default_rng(4)
    one, other = ([float(value) for value in noise.normal(1, 0.1, 21)] for _ in range(2))
    first = statistics.compare(one, other, higher_is_better=True)
    statistics._middles.cache_clear()
    assert statistics.compare(one, other, higher_is_better=True) == first


def test_the_two_sides_are_resampled_independently() -> None:
    found = statistics.compare([100.0, 110.0, 120.0], [100.0, 110.0, 120.0], higher_is_better=True)
    assert found.low is not None
    assert found.low < 1
