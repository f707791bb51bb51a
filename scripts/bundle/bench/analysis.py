"""What a run has found: its legs → result.json, with medians, verdicts against the control, the check of outputs and the distance from the limit."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bundle.base import files
from bundle.base.errors import BundleError
from bundle.bench import answers, recommend, roofline, runner, startphases, statistics
from bundle.bench.matrix import TOGETHER
from bundle.bench.rundata import (
    NOT_MEASURED,
    RESULT,
    RUN,
    AnswersData,
    AnswersFound,
    CellResult,
    ColdAndWarm,
    Distance,
    Found,
    LegData,
    Memory,
    Recommended,
    Result,
    Row,
    Run,
    SameAnswers,
    Sample,
    Searches,
    Series,
    Start,
    TypicalStart,
)

INTERRUPTED = "interrupted"
"""The error of a leg that nobody let finish: no fault of its cell."""

HIGHER_IS_BETTER = {"output_tokens_per_s": True, "total_tokens_per_s": True, "ttft_ms_p50": False, "ttft_ms_p99": False, "itl_ms_p50": False,
                    "itl_ms_p99": False, "e2e_ms_p99": False, "tokens_per_joule": True}
"""The metrics that are compared."""
WRONG = "wrong output"

Load = tuple[int, Sample]


def analyse(run_dir: Path) -> Recommended:
    """The result of the run in `run_dir`, which is written there as result.json too. A run that is not complete gives what there is.

    Raises ConfigurationError when there is no run, or one of its files is damaged.
    """
    run, legs = runner.read(Run, run_dir / RUN), runner.read_legs(run_dir)
    cells = {name: _Cell(run=run, name=name, legs=_legs_of(legs, name)) for name in run["cells"]}
    control = cells[run["control"]]
    found: dict[str, CellResult] = {
        name: {**run["cells"][name], **cell.found(), "output_check": _same_answers(cell, control), "answers": _answers(cell, control)}
        for name, cell in cells.items()}
    wrong = [name for name, cell in found.items() if cell["output_check"]["verdict"] == "different"]
    found_all: Result = {
        **run, "finished": max((sample["at"] + sample["seconds"] for leg in legs for sample in leg["samples"]), default=run["started"]),
        "complete": all(cell.complete for cell in cells.values()), "cells": found, "starts": _cold_and_warm(control),
        "comparisons": list(_compared(cells, control, wrong))}
    result: Recommended = {**found_all, "recommendation": recommend.recommend(found_all)}
    files.write_whole(run_dir / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _legs_of(legs: Sequence[LegData], name: str) -> list[LegData]:
    """The legs of the cell `name`, without those that broke off and were measured again."""
    own = [leg for leg in legs if leg["cell"] == name]
    whole = {leg["round"] for leg in own if leg["visits"] and not leg["error"]}
    return [leg for leg in own if not (leg["error"] and leg["round"] in whole)]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One cell of a run and what was measured of it."""

    run: Run
    name: str
    legs: Sequence[LegData]

    @property
    def answers(self) -> AnswersData | None:
        """Of its first start that was asked for them."""
        return next((leg["answers"] for leg in self.legs if "answers" in leg), None)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to measure: every visit was made, or there is a reason why there are none."""
        visits = sum(leg["visits"] for leg in self.legs if leg["start"]["ok"] and not leg["error"])
        # The control is visited again beside the cell that a run adds.
        parts = 2 if self.name == self.run["control"] and TOGETHER in self.run["cells"] else 1
        return visits >= self.run["rounds"] * parts or any(not leg["start"]["ok"] for leg in self.legs) or self.state == "failed"

    @property
    def state(self) -> str:
        if any(leg["samples"] for leg in self.legs):
            return "measured"
        return "failed" if self.trouble else "not measured"

    @property
    def trouble(self) -> LegData | None:
        """The first leg that did not start, or that ended by an error."""
        return next((leg for leg in self.legs if not leg["start"]["ok"] or leg["error"] not in ("", INTERRUPTED)), None)

    def loads(self, workload: str) -> list[Load]:
        """Every measured load of `workload`, with the place of the engine start that it was made on."""
        return [(leg["order"], sample) for leg in self.legs for sample in leg["samples"] if sample["workload"] == workload]

    def found(self) -> Found:
        """This cell's part of result.json, but for what takes the control to tell."""
        trouble = self.trouble
        loads = {workload: some for workload in self.run["workloads"] if (some := self.loads(workload))}
        measured = {workload: [sample for _, sample in some] for workload, some in loads.items()}
        distances, unknown = self._distances(measured)
        return {
            "state": self.state, "reason": (trouble["start"]["reason"] or trouble["error"]) if trouble else "",
            "remedy": trouble["start"]["remedy"] if trouble else "",
            "starts": [{"ok": leg["start"]["ok"], "seconds": leg["start"]["seconds"], "phases": leg["start"]["phases"],
                        "facts": leg["start"]["facts"], "cold": startphases.cold(leg["start"])} for leg in self.legs],
            "metrics": {workload: {metric: statistics.summary(values, starts) for metric, (starts, values) in _metrics(some).items()}
                        for workload, some in loads.items()},
            "quantiles": {workload: _quantiles(some) for workload, some in measured.items()},
            "slo": self._slo(), "memory": next((leg["memory"] for leg in self.legs if leg["memory"]["t_s"]), Memory(t_s=[], gib=[])),
            "roofline": distances, "roofline_unknown": unknown}

    def _slo(self) -> dict[str, Searches]:
        """Each workload's searches, one place in each list for every search."""
        searches = [one for leg in self.legs for one in leg["slo"]]
        own = {workload: [one for one in searches if one["workload"] == workload] for workload in dict.fromkeys(one["workload"] for one in searches)}
        return {workload: {"most": [one["most"] for one in some], "ended_by": [one["ended_by"] for one in some],
                           "steps": [one["steps"] for one in some]} for workload, some in own.items()}

    def _distances(self, measured: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, Distance], str]:
        """How far each workload was from the limit, and why that is not known where it is not."""
        if not measured:
            return {}, ""
        try:
            cost = roofline.work(self.run["model"].get("config") or {}, self.run["cells"][self.name]["settings"], self.run["ceilings"])
        except BundleError as error:
            return {}, error.message
        found = {workload: roofline.distance(cost, some) for workload, some in measured.items()}
        return {workload: one for workload, one in found.items() if one}, ""


def _metrics(loads: Sequence[Load]) -> dict[str, tuple[list[int], list[float]]]:
    """Each metric's values, beside them the engine starts that they are from; and the share of requests that came through."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for start, sample in loads:
        requests = sample["requests"]
        served = {"success": requests["completed"] / requests["asked"]} if requests["asked"] else {}
        for metric, value in {**sample["metrics"], **served}.items():
            starts, values = found.setdefault(metric, ([], []))
            starts.append(start)
            values.append(value)
    return found


def _quantiles(samples: Sequence[Sample]) -> Series:
    """Each hundredth of each distribution: its median over the loads."""
    return {what: [median(column) for column in zip(*some, strict=True)] for what in ("ttft_ms", "itl_ms", "e2e_ms")
            if (some := [sample["quantiles"][what] for sample in samples if sample["quantiles"].get(what)])}


def dummy_weights(run: Run | Result) -> bool:
    """Whether the control's weights are vLLM's random ones, of at most 0.001: layer norms of that size let nothing through but the last token, so
    that whatever is wrong in attention, equal answers come of it."""
    return bool(run["cells"][run["control"]]["settings"].get("ENGINE_LOAD_FORMAT") == "dummy")


def _same_answers(cell: _Cell, control: _Cell) -> SameAnswers:
    """Whether `cell` answers as the control does at temperature 0, over all starts of both."""
    expected, *others = [leg["outputs"] for leg in control.legs if leg["outputs"]] or [[]]
    answers = [leg["outputs"] for leg in cell.legs if leg["outputs"]]
    pairs = [(text, wanted) for texts in answers for text, wanted in zip(texts, expected, strict=False)]
    equal = sum(text == wanted for text, wanted in pairs)
    if not pairs or any(texts != expected for texts in others):
        verdict = "not comparable"  # a control that does not agree with itself says nothing about others
    elif equal == len(pairs) and all(len(texts) == len(expected) for texts in answers):
        verdict = "not comparable" if dummy_weights(control.run) else "same"
    else:
        verdict = "may differ" if cell.run["cells"][cell.name]["outputs"] == "may differ" else "different"
    return {"verdict": verdict, "equal": equal, "of": len(pairs)}


def _answers(cell: _Cell, control: _Cell) -> AnswersFound | None:
    return answers.compared(own, theirs) if (own := cell.answers) and (theirs := control.answers) else None


def _compared(cells: Mapping[str, _Cell], control: _Cell, wrong: Collection[str]) -> Iterator[Row]:
    """The rows of every cell but the control in every workload and every metric that it or the control has. The answers of those in `wrong` are
    wrong. What stands in one table, of a workload and a metric, shares its noise and its chance of being wrong: who reads it picks the best."""
    others = [cell for cell in cells.values() if cell is not control]
    for workload in control.run["workloads"]:
        measured = {name: _metrics(cell.loads(workload)) for name, cell in cells.items()}
        among = max(1, sum(bool(measured[cell.name]) for cell in others))
        for metric, higher in HIGHER_IS_BETTER.items():
            pooled = statistics.pooled([(values, starts) for found in measured.values() for starts, values in [found.get(metric, ([], []))]])
            for cell in others:
                starts, values = measured[cell.name].get(metric, ([], []))
                control_starts, control_values = _metrics(_beside(cell, control, workload)).get(metric, ([], []))
                if values or control_values:
                    seen = statistics.compare(values, control_values, higher_is_better=higher, cell_starts=starts, control_starts=control_starts,
                                              otherwise=_otherwise(cell, control), among=among, pooled=pooled)
                    verdict = WRONG if cell.name in wrong and seen.verdict != NOT_MEASURED else ""
                    yield seen.row(cell.name, workload, metric, verdict=verdict)


def _beside(cell: _Cell, control: _Cell, workload: str) -> list[Load]:
    """The control's loads that ran in turns with the cell's: others ran beside other cells, or at another time."""
    groups = {sample.get("group") for _, sample in cell.loads(workload)}
    return [(start, sample) for start, sample in control.loads(workload) if not groups or sample.get("group") in groups]


def _otherwise(cell: _Cell, control: _Cell) -> float:
    """What of a difference may come from the starts (startphases.cold): the KV cache that they may have had otherwise. 0 where all that were
    measured of both were of one kind, as the runner sees to wherever the engine can keep what it compiled."""
    facts = [[leg["start"]["facts"] for leg in one.legs if leg["samples"]] for one in (cell, control)]
    kinds = [{bool(fact.get("compiled_from_cache")) for fact in some} for some in facts]
    known = [fact for some in facts for fact in some if fact.get("activation_gib") and fact.get("kv_cache_gib")]
    if (kinds[0] == kinds[1] and len(kinds[0]) == 1) or not known:
        return 0.0
    activations, caches = ([float(fact[key]) for fact in known] for key in ("activation_gib", "kv_cache_gib"))
    return (max(activations) - min(activations)) / min(caches)


def _cold_and_warm(control: _Cell) -> ColdAndWarm:
    """The control's starts that compiled and those that did not have to: medians, in seconds; None where there was none of a kind."""
    starts = [leg["start"] for leg in control.legs if leg["start"]["ok"]]
    cold, warm = (_start([start for start in starts if startphases.cold(start) is wanted]) for wanted in (True, False))
    return {"cold": cold, "warm": warm, "warm_to_cold": warm["seconds"] / cold["seconds"] if cold and warm and cold["seconds"] else None}


def _start(starts: Sequence[Start]) -> TypicalStart | None:
    if not starts:
        return None
    sums: list[defaultdict[str, float]] = [defaultdict(float) for _ in starts]
    for phases, start in zip(sums, starts, strict=True):
        for name, seconds in start["phases"]:
            phases[name] += seconds
    names = dict.fromkeys(name for start in starts for name, _ in start["phases"])
    return {"seconds": median(start["seconds"] for start in starts), "of": len(starts),
            "phases": [(name, median(phases[name] for phases in sums)) for name in names]}
