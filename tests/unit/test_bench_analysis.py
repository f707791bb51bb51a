"""From the legs of a run to its result: what is pooled, what counts as failed, and what a wrong answer does to a verdict."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import ConfigurationError
from bundle.bench import analysis, statistics
from bundle.bench.rundata import Recommended
from support import benchruns
from support.benchruns import CONTROL, FAILED, FASTER, NEUTRAL, SLOWER, WRONG, SyntheticCell


def run(tmp_path: Path, *cells: SyntheticCell, **options: Any) -> Recommended:
    return analysis.analyse(benchruns.write(tmp_path / "run", cells=cells, **options))


def change(tmp_path: Path, order: int, edit: Callable[[dict[str, Any]], None]) -> Recommended:
    """The result after `edit` was applied to one leg of the run."""
    path = next((tmp_path / "run" / "legs").glob(f"{order:03}-*.json"))
    leg = json.loads(path.read_text())
    edit(leg)
    path.write_text(json.dumps(leg))
    return analysis.analyse(tmp_path / "run")


def verdict(result: Recommended, cell: str, metric: str = "output_tokens_per_s", workload: str = "chat") -> str:
    found = [row["verdict"] for row in result["comparisons"] if (row["cell"], row["workload"], row["metric"]) == (cell, workload, metric)]
    assert len(found) == 1
    return str(found[0])


def test_the_result_is_written_beside_the_legs_and_holds_the_run(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FASTER)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(json.dumps(result))
    for key, value in json.loads((tmp_path / "run" / "run.json").read_text()).items():
        assert key == "cells" or dict(result)[key] == value
    assert result["complete"]
    assert result["recommendation"]["base_profile"] == "throughput"
    assert not list((tmp_path / "run").glob("*.new"))


def test_a_faster_a_slower_and_an_equal_cell_get_their_verdicts_in_every_metric(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FASTER, SLOWER, NEUTRAL)
    for metric in analysis.HIGHER_IS_BETTER:
        assert [verdict(result, cell.name, metric) for cell in (FASTER, SLOWER, NEUTRAL)] == ["faster", "slower", "no difference seen"], metric
    assert {row["cell"] for row in result["comparisons"]} == {FASTER.name, SLOWER.name, NEUTRAL.name}


def test_the_cells_of_a_table_are_judged_together(tmp_path: Path) -> None:
    cells = (CONTROL, FASTER, *(replace(NEUTRAL, name=f"equal-{number}") for number in range(10)))
    result = run(tmp_path, *cells)
    found = [cell["metrics"]["chat"]["output_tokens_per_s"] for cell in result["cells"].values()]
    control, cell = found[:2]
    expected = statistics.compare(cell["values"], control["values"], higher_is_better=True, cell_starts=cell["starts"],
                                  control_starts=control["starts"], among=11,
                                  pooled=statistics.noise([(one["values"], one["starts"]) for one in found]))
    row = next(row for row in result["comparisons"] if (row["cell"], row["metric"]) == (FASTER.name, "output_tokens_per_s"))
    assert row["smallest"] == expected.smallest
    assert row["smallest"] != statistics.compare(cell["values"], control["values"], higher_is_better=True, cell_starts=cell["starts"],
                                                 control_starts=control["starts"]).smallest


def test_repeats_of_all_starts_are_pooled_and_each_knows_its_start(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FASTER, rounds=2, repeats=3)
    found = result["cells"]["control"]["metrics"]["chat"]["output_tokens_per_s"]
    legs = [json.loads((tmp_path / "run" / "legs" / name).read_text()) for name in ("000-control.json", "003-control.json")]
    assert found["values"] == [one["metrics"]["output_tokens_per_s"] for leg in legs for one in leg["samples"] if one["workload"] == "chat"]
    assert found["starts"] == [0, 0, 0, 3, 3, 3]
    assert found["low"] <= found["median"] <= found["high"]


def test_starts_that_differ_more_than_their_repeats_take_part_in_the_verdict(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, NEUTRAL, noise=0.001)

    def paced(pace: float) -> Callable[[dict[str, Any]], None]:
        def edit(leg: dict[str, Any]) -> None:
            for at, sample in enumerate(leg["samples"]):
                sample["metrics"]["output_tokens_per_s"] = 1000 * pace + at / 100
        return edit

    for order, pace in enumerate((1.0, 1.09, 1.11, 1.04)):  # control, cell, cell, control
        result = change(tmp_path, order, paced(pace))
    row = next(row for row in result["comparisons"] if row["metric"] == "output_tokens_per_s")
    assert (row["low"] or 0) > 1
    assert row["ratio"] == pytest.approx(1.078, abs=0.002)
    assert row["verdict"] == "no difference seen", "six values a side, but two starts"


def test_a_cell_that_did_not_start_is_failed_with_its_reason_and_nothing_else_is_left_to_do(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FAILED, rounds=1)
    cell = result["cells"][FAILED.name]
    assert (cell["state"], cell["reason"], cell["remedy"]) == ("failed", FAILED.reason, FAILED.remedy)
    assert [start["ok"] for start in cell["starts"]] == [False]
    assert verdict(result, FAILED.name) == "not measured"
    assert result["complete"]


def test_a_failed_cell_needs_no_more_visits_to_be_complete(tmp_path: Path) -> None:
    result = run(tmp_path, FAILED, CONTROL, rounds=2, legs=3)  # the runner leaves out the second start of a cell that does not start
    assert result["complete"]


def test_a_cell_that_fails_at_a_later_start_keeps_what_was_measured_with_the_reason_and_needs_no_more_visits(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, NEUTRAL, rounds=2)
    result = change(tmp_path, 2, lambda leg: leg.update(samples=[], start={**leg["start"], "ok": False, "reason": "synthetic: out of memory"}))
    cell = result["cells"][NEUTRAL.name]
    assert (cell["state"], cell["reason"], result["complete"]) == ("measured", "synthetic: out of memory", True)
    assert [start["ok"] for start in cell["starts"]] == [True, False]


def test_a_run_that_added_a_cell_is_complete_once_the_control_was_visited_beside_it(tmp_path: Path) -> None:
    added = replace(FASTER, name="together", axis="together")
    assert not run(tmp_path, CONTROL, added, rounds=2)["complete"]
    for order in (0, 3):
        result = change(tmp_path, order, lambda leg: leg.update(visits=2))
    assert result["complete"]


def test_an_interrupted_run_is_analysed_as_far_as_it_went(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FASTER, SLOWER, rounds=2, legs=2)
    assert not result["complete"]
    assert [cell["state"] for cell in result["cells"].values()] == ["measured", "measured", "not measured"]
    assert (verdict(result, FASTER.name), verdict(result, SLOWER.name)) == ("faster", "not measured")
    assert result["finished"] > result["started"]


def test_a_run_that_has_not_begun_is_analysed_too(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FASTER, legs=0)
    assert result["finished"] == result["started"]
    assert result["starts"] == {"cold": None, "warm": None, "warm_to_cold": None}
    assert not result["complete"]


def test_an_engine_that_dies_under_load_is_a_result_and_one_that_was_interrupted_is_not(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, FASTER, rounds=1)
    died = change(tmp_path, 1, lambda leg: leg.update(samples=[], error="synthetic: the engine ended"))
    cell = died["cells"][FASTER.name]
    assert (cell["state"], cell["reason"], died["complete"]) == ("failed", "synthetic: the engine ended", True)
    broken = change(tmp_path, 1, lambda leg: leg.update(error="interrupted"))
    assert (broken["cells"][FASTER.name]["state"], broken["complete"]) == ("not measured", False)


def test_a_leg_that_broke_off_and_was_measured_again_does_not_count(tmp_path: Path) -> None:
    before = run(tmp_path, CONTROL, FASTER, rounds=1)
    legs = tmp_path / "run" / "legs"
    again = json.loads((legs / "001-kv-fp8.json").read_text())
    broken = {**again, "error": "synthetic: the engine ended", "order": 1, "samples": again["samples"][:1]}
    (legs / "001-kv-fp8.json").write_text(json.dumps(broken))
    (legs / "002-kv-fp8.json").write_text(json.dumps({**again, "order": 2}))
    cell = analysis.analyse(tmp_path / "run")["cells"][FASTER.name]
    assert (cell["state"], cell["reason"]) == ("measured", "")
    assert cell["metrics"]["chat"]["itl_ms_p50"]["values"] == before["cells"][FASTER.name]["metrics"]["chat"]["itl_ms_p50"]["values"]


def test_a_start_on_which_nothing_is_measured_shows_its_times_and_completes_nothing(tmp_path: Path) -> None:
    def started_only(leg: dict[str, Any]) -> None:
        leg.update(visits=0, samples=[], outputs=[], slo=[])

    run(tmp_path, CONTROL, NEUTRAL, rounds=2)
    result = change(tmp_path, 1, started_only)
    assert not result["complete"]
    assert len(result["cells"][NEUTRAL.name]["starts"]) == 2
    assert len(result["cells"][NEUTRAL.name]["metrics"]["chat"]["output_tokens_per_s"]["values"]) == 3


def test_an_engine_that_dies_at_its_first_load_has_failed_although_it_had_started_before(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, FASTER, rounds=1)
    legs = tmp_path / "run" / "legs"
    leg = json.loads((legs / "001-kv-fp8.json").read_text()) | {"samples": [], "outputs": []}
    (legs / "001-kv-fp8.json").write_text(json.dumps(leg | {"visits": 0}))
    (legs / "002-kv-fp8.json").write_text(json.dumps(leg | {"order": 2, "error": "synthetic: the engine ended"}))
    cell = analysis.analyse(tmp_path / "run")["cells"][FASTER.name]
    assert (cell["state"], cell["reason"]) == ("failed", "synthetic: the engine ended")


def test_a_start_that_compiled_is_a_cold_one_whichever_it_was(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, rounds=3)
    for order, facts in enumerate(({"compile_s": 40.0}, {"compile_s": 40.0}, {"compile_s": 4.0, "compiled_from_cache": 1.0})):
        def start(leg: dict[str, Any], new: dict[str, Any] = {"cold": order == 0, "seconds": 60.0 - order, "facts": facts}) -> None:  # noqa: B006
            leg["start"].update(new)

        result = change(tmp_path, order, start)
    assert [start["cold"] for start in result["cells"]["control"]["starts"]] == [True, True, False]
    assert [start and (start["of"], start["seconds"]) for start in (result["starts"]["cold"], result["starts"]["warm"])] == [(2, 59.5), (1, 58.0)]


def test_a_fast_wrong_answer_is_no_gain(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, WRONG, FASTER, NEUTRAL)
    checks = {name: cell["output_check"] for name, cell in result["cells"].items()}
    assert checks == {"control": {"verdict": "same", "equal": 6, "of": 6}, WRONG.name: {"verdict": "different", "equal": 2, "of": 6},
                      FASTER.name: {"verdict": "may differ", "equal": 4, "of": 6}, NEUTRAL.name: {"verdict": "same", "equal": 6, "of": 6}}
    assert {row["verdict"] for row in result["comparisons"] if row["cell"] == WRONG.name} == {"wrong output"}
    assert verdict(result, FASTER.name) == "faster"
    assert [one["cell"] for one in result["recommendation"]["set"]] == [FASTER.name]


def test_one_wrong_answer_in_one_start_is_enough(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, NEUTRAL)
    result = change(tmp_path, 2, lambda leg: leg["outputs"].__setitem__(2, "!"))
    assert result["cells"][NEUTRAL.name]["output_check"] == {"verdict": "different", "equal": 5, "of": 6}


def test_equal_answers_of_random_weights_are_no_proof_and_other_ones_are(tmp_path: Path) -> None:
    random = {**benchruns.PROFILE, "ENGINE_LOAD_FORMAT": "dummy"}
    cells = [replace(cell, settings=random) for cell in (CONTROL, NEUTRAL, WRONG, FASTER)]
    checks = {name: cell["output_check"]["verdict"] for name, cell in run(tmp_path, *cells)["cells"].items()}
    assert checks == {"control": "not comparable", NEUTRAL.name: "not comparable", WRONG.name: "different", FASTER.name: "may differ"}


def test_answers_that_are_missing_are_not_the_same(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, NEUTRAL)
    result = change(tmp_path, 2, lambda leg: leg["outputs"].pop())
    assert result["cells"][NEUTRAL.name]["output_check"] == {"verdict": "different", "equal": 5, "of": 5}


def test_a_control_that_does_not_agree_with_itself_says_nothing_about_others(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, WRONG)
    result = change(tmp_path, 3, lambda leg: leg["outputs"].__setitem__(0, "!"))
    assert {cell["output_check"]["verdict"] for cell in result["cells"].values()} == {"not comparable"}
    assert verdict(result, WRONG.name) == "faster"


def test_the_controls_cold_start_stands_beside_its_warm_ones_by_phase(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, FASTER, rounds=3)
    for order, (cold, seconds) in {0: (True, 60.0), 3: (False, 20.0), 4: (False, 24.0)}.items():
        phases = [["load weights", 10.0], *([["compile", seconds - 10]] if order != 4 else [["ready", seconds - 10]])]
        def start(leg: dict[str, Any], new: dict[str, Any] = {"cold": cold, "seconds": seconds, "phases": phases}) -> None:  # noqa: B006
            leg["start"].update(new)

        result = change(tmp_path, order, start)
    assert result["starts"] == {
        "cold": {"seconds": 60.0, "of": 1, "phases": [("load weights", 10.0), ("compile", 50.0)]},
        "warm": {"seconds": 22.0, "of": 2, "phases": [("load weights", 10.0), ("compile", 5.0), ("ready", 7.0)]}, "warm_to_cold": 22 / 60}


def test_searches_quantiles_memory_and_distance_come_per_workload(tmp_path: Path) -> None:
    cell = run(tmp_path, CONTROL, rounds=2)["cells"]["control"]
    assert cell["slo"].keys() == {"chat"}
    assert len(cell["slo"]["chat"]["most"]) == len(cell["slo"]["chat"]["steps"]) == 2
    assert cell["slo"]["chat"]["ended_by"] == ["slo", "slo"]
    assert {workload: {what: len(values) for what, values in some.items()} for workload, some in cell["quantiles"].items()} == {
        name: {"ttft_ms": 101, "itl_ms": 101, "e2e_ms": 101} for name in ("chat", "open-loop")}
    assert max(cell["memory"]["gib"]) == 28.9
    assert cell["roofline"].keys() == {"chat", "open-loop"}
    assert 0.5 < cell["roofline"]["chat"]["share_of_limit"] < 0.9
    assert cell["roofline_unknown"] == ""


def test_quantiles_are_the_median_of_the_loads(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, rounds=1, repeats=3)

    def edit(leg: dict[str, Any]) -> None:
        for sample, value in zip(leg["samples"], (1.0, 0.0, 2.0, 0.0, 90.0, 0.0), strict=True):
            sample["quantiles"]["ttft_ms"] = [value] * 101

    assert change(tmp_path, 0, edit)["cells"]["control"]["quantiles"]["chat"]["ttft_ms"] == [2.0] * 101


def test_requests_that_failed_show_as_success_below_one(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, rounds=1, repeats=1)
    result = change(tmp_path, 0, lambda leg: leg["samples"][0]["requests"].update(completed=192, failed=64))
    assert result["cells"]["control"]["metrics"]["chat"]["success"]["values"] == [0.75]


def test_a_run_without_a_gpu_or_a_known_model_has_less_to_say_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, CONTROL, FASTER, gpu=False)
    assert "tokens_per_joule" not in {row["metric"] for row in result["comparisons"]}
    assert result["cells"]["control"]["memory"] == {"t_s": [], "gib": []}
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {}}))
    cell = analysis.analyse(tmp_path / "run")["cells"]["control"]
    assert (cell["roofline"], cell["roofline_unknown"]) == ({}, "the run does not hold the model's config.json")


def test_beside_other_engines_a_cell_is_held_against_the_control_of_its_own_group(tmp_path: Path) -> None:
    run(tmp_path, CONTROL, NEUTRAL, rounds=1, repeats=6)

    def grouped(leg: dict[str, Any]) -> None:
        for at, sample in enumerate(leg["samples"]):  # two workloads in turns
            sample["group"] = 0 if leg["cell"] != "control" else (at // 2) % 2
            sample["metrics"]["output_tokens_per_s"] = [1000, 2000][sample["group"]] + at % 3

    change(tmp_path, 0, grouped)
    result = change(tmp_path, 1, grouped)
    assert verdict(result, NEUTRAL.name) == "no difference seen"
    assert next(row["ratio"] for row in result["comparisons"] if row["metric"] == "output_tokens_per_s") == pytest.approx(1, abs=0.01)


def test_what_is_no_run_or_damaged_is_refused_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no run\.json in it"):
        analysis.analyse(tmp_path)
    benchruns.write(tmp_path / "run", cells=(CONTROL,), rounds=1)
    (tmp_path / "run" / "legs" / "000-control.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"000-control\.json: cannot be read") as refused:
        analysis.analyse(tmp_path / "run")
    assert "run make bench with the same RUN again" in refused.value.fix


def test_a_difference_that_two_kinds_of_start_explain_is_not_believed(tmp_path: Path) -> None:
    a_little = SyntheticCell(name="a-little", axis="synthetic", speed=1.25)
    assert verdict(run(tmp_path, CONTROL, a_little, rounds=2), "a-little") == "faster"

    def started(cached: bool) -> Callable[[dict[str, Any]], None]:
        facts = {"activation_gib": 1.0 if cached else 3.0, "kv_cache_gib": 5.0} | ({"compiled_from_cache": 1.0} if cached else {})
        return lambda leg: leg["start"].update(facts=facts)

    for order, cell in enumerate(("control", "a-little", "a-little", "control")):
        result = change(tmp_path, order, started(cached=cell == "a-little"))
    assert verdict(result, "a-little") == "no difference seen"
    for order in range(4):
        result = change(tmp_path, order, started(cached=True))
    assert verdict(result, "a-little") == "faster"
    legs = tmp_path / "run" / "legs"
    first = json.loads((legs / "001-a-little.json").read_text()) | {"order": 4, "visits": 0, "samples": [], "outputs": [], "slo": []}
    (legs / "004-a-little.json").write_text(json.dumps(first))
    assert verdict(change(tmp_path, 4, started(cached=False)), "a-little") == "faster", "nothing was measured on that start"
