"""The search for the most concurrent requests that an engine holds."""

from collections.abc import Callable

import pytest

from bundle.bench import slo
from bundle.bench.rundata import Held


def load(*, held: bool, ttft_ms: float = 0.0) -> Held:
    return {"held": held, "ttft_ms_p99": ttft_ms, "itl_ms_p99": 1.0, "success": 1.0}


def engine(most: int) -> Callable[[int], Held]:
    return lambda concurrency: load(held=concurrency <= most, ttft_ms=10.0 * concurrency)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 31, 32, 33, 64, 100, 127, 300, 511])
@pytest.mark.parametrize("start", [1, 32, 512])
def test_what_is_found_held_and_a_tenth_more_did_not(limit: int, start: int) -> None:
    found, steps = slo.search(engine(limit), start=start, most=512)
    tried = {step["concurrency"]: step["held"] for step in steps}
    assert tried[found]
    assert found <= limit
    failed = min(concurrency for concurrency, held in tried.items() if not held)
    assert failed - found <= max(1, found / 10)
    assert len(steps) == len(tried) <= 16


def test_every_step_is_kept_in_order_with_its_answer() -> None:
    found, steps = slo.search(engine(100), start=32, most=512)
    assert [(step["concurrency"], step["held"]) for step in steps] == [(32, True), (64, True), (128, False), (96, True), (112, False), (104, False)]
    assert steps[0] == {"concurrency": 32, **load(held=True, ttft_ms=320.0)}
    assert found == 96


def test_a_first_step_that_fails_goes_down_by_halves_to_one() -> None:
    found, steps = slo.search(engine(0), start=20, most=512)
    assert (found, [step["concurrency"] for step in steps]) == (0, [20, 10, 5, 2, 1])


def test_on_the_way_down_the_first_that_holds_is_where_bisecting_begins() -> None:
    found, steps = slo.search(engine(12), start=40, most=512)
    assert (found, [step["concurrency"] for step in steps]) == (12, [40, 20, 10, 15, 12, 13])


@pytest.mark.parametrize(("start", "tried"), [(32, [32, 64, 100]), (100, [100]), (1000, [100])])
def test_nothing_above_the_most_is_tried_and_it_can_be_the_answer(start: int, tried: list[int]) -> None:
    found, steps = slo.search(engine(10_000), start=start, most=100)
    assert (found, [step["concurrency"] for step in steps]) == (100, tried)


def test_an_engine_that_fails_below_what_it_would_hold_gets_the_careful_answer() -> None:
    found, steps = slo.search(lambda concurrency: load(held=concurrency != 64), start=32, most=512)
    assert found < 64
    assert max(step["concurrency"] for step in steps) == 64
    assert found == max(step["concurrency"] for step in steps if step["held"])
