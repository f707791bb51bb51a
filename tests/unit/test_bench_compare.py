"""Two runs beside each other, and when the second counts as slower."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import ConfigurationError, SlowerError
from bundle.bench import analysis, campaign, compare
from bundle.bench.rundata import Comparison, Result, Row
from support import benchruns


def run(tmp_path: Path, name: str, **options: Any) -> Result:
    chosen: dict[str, Any] = {"cells": (benchruns.CONTROL, benchruns.FASTER), "seed": len(name)} | options
    return analysis.analyse(benchruns.write(tmp_path / name, **chosen))


def row(rows: list[Row], metric: str = "output_tokens_per_s", cell: str = "control", workload: str = "chat") -> Row:
    return next(one for one in rows if (one["cell"], one["workload"], one["metric"]) == (cell, workload, metric))


def test_a_run_that_is_slower_beyond_noise_ends_with_exit_code_6_and_says_where(tmp_path: Path) -> None:
    rows = compare.compare_results(run(tmp_path, "a"), run(tmp_path, "bb", speed=0.8))
    assert row(rows)["verdict"] == "slower"
    assert row(rows)["ratio"] == pytest.approx(0.8, abs=0.04)
    assert row(rows, "itl_ms_p99")["ratio"] == pytest.approx(1.25, abs=0.06)
    with pytest.raises(SlowerError, match=r"control, chat: output_tokens_per_s 0\.\d+ times the reference's") as refused:
        compare.require_not_slower(rows)
    assert refused.value.exit_code == 6


@pytest.mark.parametrize("speed", [1.0, 1.3])
def test_a_run_that_is_as_fast_or_faster_passes(speed: float, tmp_path: Path) -> None:
    rows = compare.compare_results(run(tmp_path, "a"), run(tmp_path, "bb", speed=speed))
    assert row(rows)["verdict"] == ("faster" if speed > 1 else "no difference seen")
    compare.require_not_slower(rows)


@pytest.mark.parametrize(("metric", "decides"), [("output_tokens_per_s", True), ("itl_ms_p99", True), ("ttft_ms_p99", True), ("e2e_ms_p99", False),
                                                 ("tokens_per_joule", False)])
def test_only_the_main_metrics_decide(metric: str, decides: bool) -> None:
    assert bool(compare.slower([Comparison(ratio=1.0, low=1.0, high=1.0, smallest=0.1, verdict="slower").row("c", "w", metric)])) is decides


def test_starts_that_differ_more_than_their_repeats_count_as_the_noise(tmp_path: Path) -> None:
    a, b = run(tmp_path, "a"), run(tmp_path, "bb")
    stored = [side["cells"]["control"]["metrics"]["chat"]["output_tokens_per_s"] for side in (a, b)]
    for one in stored:
        one |= {"values": [99.0, 99.01, 98.99, 101.0, 101.01, 100.99], "starts": [0, 0, 0, 3, 3, 3]}
    known = row(compare.compare_results(a, b))["smallest"]
    for one in stored:
        del one["starts"]
    assert (known or 0) > 2 * (row(compare.compare_results(a, b))["smallest"] or 0) > 0


def test_many_cells_that_are_as_fast_as_before_are_seldom_a_false_alarm() -> None:
    noise, alarms, runs = random.Random(4), 0, 40

    def cell() -> dict[str, Any]:
        metrics = {metric: [noise.gauss(100, 2) for _ in range(4)] for metric in compare.DECIDING}
        return {"metrics": {"chat": {metric: {"values": values, "starts": [0, 0, 1, 1]} for metric, values in metrics.items()}},
                "state": "measured", "output_check": {"verdict": "same"}}

    def result(name: str) -> Any:
        return {"run": name, "workloads": {"chat": {"load": {}}}, "cells": {f"cell-{number}": cell() for number in range(20)}}

    for _ in range(runs):
        alarms += bool(compare.slower(compare.compare_results(result("a"), result("b"))))
    assert alarms <= runs / 20


def test_loads_that_differ_are_not_compared_and_it_is_said_in_what(tmp_path: Path) -> None:
    chat, other = benchruns.WORKLOADS["chat"], benchruns.WORKLOADS["open-loop"]
    changed = {"chat": {**chat, "load": {**chat["load"], "max-concurrency": "32"}}, "open-loop": other}
    rows = compare.compare_results(run(tmp_path, "a"), run(tmp_path, "bb", workloads=changed, speed=0.5))
    assert (row(rows)["verdict"], row(rows)["why"]) == ("not comparable", "the load differs: max-concurrency 64 and 32")
    assert row(rows)["ratio"] is None
    assert {one["workload"] for one in compare.slower(rows)} == {"open-loop"}


def test_only_what_both_runs_have_is_compared_and_the_rest_is_named(tmp_path: Path) -> None:
    a, b = run(tmp_path, "a"), run(tmp_path, "bb", cells=(benchruns.CONTROL, benchruns.SLOWER))
    assert {one["cell"] for one in compare.compare_results(a, b)} == {"control"}
    assert {"cells only in a: kv-fp8", "cells only in bb: batched-2k"} <= set(compare.warnings(a, b))


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path, "a", cells=(benchruns.CONTROL,)), run(tmp_path, "bb", cells=(benchruns.SLOWER,))
    with pytest.raises(ConfigurationError, match="no cell with a workload in common"):
        compare.compare_results(a, b)


def test_a_cell_that_no_longer_starts_or_answers_wrongly_is_worse_than_its_reference(tmp_path: Path) -> None:
    good = benchruns.SyntheticCell(name="x", axis="toggles")
    broken = benchruns.SyntheticCell(name="x", axis="toggles", reason="synthetic: out of memory")
    wrong = benchruns.SyntheticCell(name="x", axis="toggles", texts=("!", "!", "!"))
    a, b, c = (run(tmp_path, name, cells=(benchruns.CONTROL, cell)) for name, cell in (("a", good), ("bb", broken), ("ccc", wrong)))
    with pytest.raises(SlowerError, match="x, chat: failed: synthetic: out of memory"):
        compare.require_not_slower(compare.compare_results(a, b))
    with pytest.raises(SlowerError, match=r"x, chat: output_tokens_per_s .* temperature 0"):
        compare.require_not_slower(compare.compare_results(a, c))
    compare.require_not_slower(compare.compare_results(b, b))


def test_another_gpu_engine_card_model_or_setting_is_warned_of(tmp_path: Path) -> None:
    a = run(tmp_path, "a")
    other = {"gpu": "another synthetic GPU", "engine": {"vllm": "9.9"}, "card_gib": 31.36}
    b = run(tmp_path, "bb", provenance=other, cells=(benchruns.SyntheticCell(name="control", axis="control", sets=("ENGINE_MAX_NUM_SEQS=128",)),))
    b["model"]["name"], b["complete"] = "another", False
    found = list(compare.warnings(a, b))
    assert found[0] == "the GPU differs: synthetic GPU in a, another synthetic GPU in bb"
    assert found[1] == "the engine differs: vllm 0.0.0+synthetic torch 0.0.0+synthetic in a, vllm 9.9 in bb"
    assert found[2] == "the card differs: not set in a, 31.36 in bb"
    assert found[3] == "the model differs: synthetic/Qwen3-8B in a, another in bb"
    assert found[4] == "cell control has other settings: ENGINE_MAX_NUM_SEQS 256 and 128"
    assert found[-1] == "run bb is not complete"
    assert list(compare.warnings(a, a)) == []
    b["model"] = {**a["model"], "config": {}}
    assert "the model's config.json differs" in list(compare.warnings(a, b))


def test_a_run_is_given_as_its_folder_or_its_result_and_analysed_if_it_was_not(tmp_path: Path) -> None:
    folder = benchruns.write(tmp_path / "a", cells=(benchruns.CONTROL,))
    first = compare.load(folder)
    assert (folder / "result.json").is_file()
    assert compare.load(folder) == compare.load(folder / "result.json") == json.loads(json.dumps(first))


def test_a_run_that_has_not_ended_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    folder = benchruns.write(tmp_path / "a", cells=(benchruns.CONTROL,))
    with pytest.raises(ConfigurationError, match="unfinished") as refused:
        campaign.find(str(folder))
    assert "make bench RUN=a" in refused.value.fix
    with pytest.raises(ConfigurationError, match="no such run"):
        campaign.find(str(tmp_path / "b"))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such run"):
        compare.load(tmp_path / "missing")
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="not the result of a run"):
        compare.load(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not the result of a run"):
        compare.load(tmp_path / "result.json")
