"""The schedule of a run: who is started when, what is kept, what goes on after an interruption. Engines and agents here are fakes."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest

from bundle.base.errors import ConfigurationError
from bundle.bench import gpusampler, runner
from bundle.bench.agent import AgentError
from bundle.bench.matrix import Cell, Slo, Suite, Workload
from bundle.bench.rundata import Ceilings, LegData, Provenance, Run
from bundle.bench.runner import Job
from bundle.bench.runtimes import StartFailed
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.machine.gpu import Gpu


@dataclass(kw_only=True)
class FakeEngine:
    label: str
    happened: list[str]
    compiles: str = ""
    base_url: str = "http://127.0.0.1:1"
    model: str = "/model"
    served_model_name: str = "fake"
    agent_argv: Sequence[str] = ("fake-agent",)
    agent_environment: Mapping[str, str] = field(default_factory=dict)
    started: float = 100.0
    ready: float = 130.0
    held_s: float = 5.0

    def log(self) -> list[tuple[float, str]]:
        said = ("first line", "INFO 11-23 14:49:03 [core.py:77] Initializing a V1 LLM engine (v0.33.0)", self.compiles)
        return [(100.0 + 10 * at, line) for at, line in enumerate(said)]

    def alive(self) -> bool:
        return f"{self.label[4:]} dies" not in self.happened

    def stop(self) -> None:
        self.happened.append(f"stop {self.label[4:]}")


@dataclass(kw_only=True)
class FakeRuntime:
    """Starts nothing; `broken` are the cells that do not come up, `compiled` those whose model was compiled."""

    name: str = "fake"
    cards: tuple[Gpu, ...] = (Gpu(index=3, name="fake", compute_capability=(12, 0), total_mib=1, free_mib=1),)
    broken: tuple[str, ...] = ()
    compiled: set[str] = field(default_factory=lambda: set("abcd"))
    happened: list[str] = field(default_factory=list)

    def prepare(self, settings: Sequence[Settings]) -> None:
        self.happened.append("prepare")

    def start(self, settings: Settings, label: str) -> FakeEngine:
        self.happened.append(f"start {label[4:]}")
        if label[4:] in self.broken:
            raise StartFailed(reason="no memory for it", remedy="lower it", log=[(1.0, "the last words")])
        found = label[4:] in self.compiled
        self.compiled.add(label[4:])
        said = f"{'Directly load the compiled graph(s). ' if found else ''}torch.compile took {1.5 if found else 40.5} s in total"
        return FakeEngine(label=label, happened=self.happened, compiles=said)

    def start_together(self, wanted: Sequence[tuple[Settings, str]]) -> list[FakeEngine | StartFailed]:
        outcomes: list[FakeEngine | StartFailed] = []
        for one, label in wanted:
            try:
                outcomes.append(self.start(one, label))
            except StartFailed as failed:
                outcomes.append(failed)
        return outcomes

    def probe(self) -> Ceilings:
        return {"device": "fake", "copy_gb_s": 1.0, "matmul_tflops": {"bf16": 1.0}}

    def provenance(self) -> Provenance:
        return {"runtime": "fake"}

    def close(self) -> None:
        self.happened.append("close")


class FakeAgent:
    """Answers loads at once; `dies_at` is the number of the load at which the engine dies, `holds` the most concurrent requests in time."""

    loads: list[dict[str, Any]]
    dies_at = 0
    interrupted_at = 0
    unanswered_at = 0
    holds = 1000
    refuses = False

    def __init__(self, argv: Sequence[str], **_: Any) -> None:
        pass

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def outputs(self, prompts: Sequence[str], **_: Any) -> list[str]:
        return ["a", "b"]

    def post(self, path: str, bodies: Sequence[Mapping[str, object]], **_: Any) -> list[dict[str, Any]]:
        if FakeAgent.refuses:
            raise AgentError("prompt 1: HTTP 400: prompt_logprobs is not supported")
        said = {"message": {"content": '{"city": "Rome", "people": 3}'},
                "prompt_logprobs": [None, {"7": {"logprob": -1.0}}, {"8": {"logprob": -3.0}}]}
        return [{"choices": [said]} for _ in bodies]

    def model(self, path: str, **_: Any) -> dict[str, Any]:
        return {"config": {"hidden_size": 8}, "weights_bytes": 64}

    def load(self, options: Mapping[str, str], **_: Any) -> dict[str, Any]:
        FakeAgent.loads.append(dict(options))
        if len(FakeAgent.loads) == FakeAgent.dies_at:
            raise AgentError("the engine is gone")
        if len(FakeAgent.loads) == FakeAgent.interrupted_at:
            raise KeyboardInterrupt
        done = 0 if len(FakeAgent.loads) == FakeAgent.unanswered_at else 8
        slow = int(options.get("max-concurrency", "1")) > FakeAgent.holds
        requests = {"asked": 8, "completed": done, "failed": 8 - done, "errors": [] if done else ["8 × Bad Request"]}
        return {"seconds": 1.0, "at": 1.0, "requests": requests, "tokens": {"input": 8, "output": 8},
                "metrics": {"output_tokens_per_s": 8.0, "ttft_ms_p99": 900.0 if slow else 9.0, "itl_ms_p99": 1.0}, "quantiles": {}, "series": {}}


class FakeSampler:
    """A GPU that draws 100 watts."""

    def __init__(self, indices: Sequence[int]) -> None:
        assert indices == [3]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def window(self, since: float, until: float) -> dict[str, list[float]]:
        return {"t_s": [0.0, 1.0], "memory_gib": [3.0, 4.0], "watts": [100.0, 100.0], "utilization": [1.0, 1.0]}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Agent", FakeAgent)
    monkeypatch.setattr(gpusampler, "Sampler", FakeSampler)
    FakeAgent.loads, FakeAgent.dies_at, FakeAgent.interrupted_at, FakeAgent.unanswered_at, FakeAgent.holds = [], 0, 0, 0, 1000
    FakeAgent.refuses = False


def cell(name: str) -> Cell:
    return Cell(name=name, axis="batching", about="", profile="cpu", sets=(), outputs="same")


def job(folder: Path, *, cells: Sequence[str] = ("b", "c"), rounds: int = 2, repeats: int = 1, side_by_side: int = 1, slo: Slo | None = None) -> Job:
    load = Workload(name="chat", about="", load={"dataset-name": "random", "num-prompts": "80", "max-concurrency": "4"}, slo=slo)
    suite = Suite(name="some", about="", control=cell("a"), cells=tuple(map(cell, cells)), workloads=(load,), rounds=rounds, repeats=repeats)
    own = settings.load("cpu")
    return Job(run="test", folder=folder, suite=suite, settings=dict.fromkeys(("a", *cells), own), matrix_sha256="0" * 64,
               side_by_side=side_by_side, card_gib=None)


def together(suite_job: Job) -> Job:
    """What a run may add at its end: one more cell against the control."""
    found = Cell(name="together", axis="together", about="", profile="cpu", sets=(), outputs="same")
    return replace(suite_job, suite=replace(suite_job.suite, cells=(found,)), settings={**suite_job.settings, "together": suite_job.settings["a"]},
                   part=1)


def legs(folder: Path) -> list[LegData]:
    return runner.read_legs(folder)


def test_visits_go_forwards_and_backwards_through_the_cells(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    runner.run(job(tmp_path, rounds=3), runtime)
    assert [line for line in runtime.happened if line.startswith("start")] == [f"start {name}" for name in "aabccbaabc"]
    assert [leg["cell"] for leg in legs(tmp_path)] == list("aabccbaabc")


def test_each_engine_is_stopped_before_the_next_is_started(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    runner.run(job(tmp_path, rounds=1), runtime)
    assert runtime.happened == ["prepare", *2 * ["start a", "stop a"], "start b", "stop b", "start c", "stop c", "close"]


def test_a_cell_that_does_not_start_is_a_result_and_is_not_tried_again(tmp_path: Path) -> None:
    runtime = FakeRuntime(broken=("b",))
    runner.run(job(tmp_path), runtime)
    assert runtime.happened.count("start b") == 1
    failed = next(leg for leg in legs(tmp_path) if leg["cell"] == "b")
    assert (failed["start"]["ok"], failed["start"]["reason"], failed["start"]["remedy"]) == (False, "no memory for it", "lower it")
    assert failed["start"]["log_tail"] == ["the last words"]
    assert [leg["cell"] for leg in legs(tmp_path)] == list("aabcca")


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    FakeAgent.interrupted_at = 4  # the measured load of the second cell
    first = FakeRuntime()
    with pytest.raises(KeyboardInterrupt):
        runner.run(job(tmp_path), first)
    assert first.happened[-2:] == ["stop b", "close"]
    assert [(leg["cell"], leg["visits"], leg["error"]) for leg in legs(tmp_path)] == [("a", 0, ""), ("a", 1, ""), ("b", 0, "interrupted")]
    again = FakeRuntime()
    runner.run(job(tmp_path), again)
    assert [line for line in again.happened if line.startswith("start")] == [f"start {name}" for name in "bbccba"]


def test_a_run_is_not_continued_with_other_options(tmp_path: Path) -> None:
    runner.run(job(tmp_path), FakeRuntime())
    with pytest.raises(ConfigurationError, match="begun with other rounds") as refused:
        runner.run(job(tmp_path, rounds=4), FakeRuntime())
    assert "new run" in refused.value.fix


def test_all_cells_see_the_same_prompts_and_no_engine_sees_one_twice(tmp_path: Path) -> None:
    runner.run(job(tmp_path, repeats=2), FakeRuntime())
    seeds: dict[str, list[int]] = {}
    for leg in legs(tmp_path):
        seeds.setdefault(f"{leg['cell']} {leg['round']}", []).extend(sample["seed"] for sample in leg["samples"])
    assert seeds["a 0"] == seeds["b 0"] == seeds["c 0"]
    every = seeds["a 0"] + seeds["a 1"]
    assert len(every) == 4 == len(set(every))
    warm_ups = {load["seed"] for load in FakeAgent.loads if load["num-prompts"] == "10"}
    assert warm_ups
    assert not warm_ups & set(map(str, every))


def test_an_engine_that_dies_under_load_is_a_result_and_the_run_goes_on(tmp_path: Path) -> None:
    FakeAgent.dies_at = 2
    runner.run(job(tmp_path, rounds=1), FakeRuntime())
    assert [(leg["cell"], leg["error"]) for leg in legs(tmp_path)] == [("a", ""), ("a", "the engine is gone"), ("b", ""), ("c", "")]


def test_a_load_of_which_nothing_was_answered_is_no_measurement(tmp_path: Path) -> None:
    FakeAgent.unanswered_at = 2
    runner.run(job(tmp_path, cells=("b",), rounds=1), FakeRuntime())
    _, first, second = legs(tmp_path)
    assert (first["samples"], first["error"]) == ([], "chat: none of 8 requests was answered: 8 × Bad Request")
    assert len(second["samples"]) == 1


def test_requests_that_fail_because_the_engine_died_are_not_measured(tmp_path: Path) -> None:
    runtime = FakeRuntime(happened=["b dies"])
    runner.run(job(tmp_path, rounds=1), runtime)
    ended = next(leg for leg in legs(tmp_path) if leg["cell"] == "b")
    assert ended["error"].startswith("the engine ended under load")
    assert not ended["samples"]


def test_what_the_driver_tells_stands_beside_the_load(tmp_path: Path) -> None:
    runner.run(job(tmp_path, cells=(), rounds=1), FakeRuntime())
    leg = legs(tmp_path)[-1]
    metrics = leg["samples"][0]["metrics"]
    assert (metrics["gpu_memory_gib_peak"], metrics["watts_mean"], metrics["joules"], metrics["tokens_per_joule"]) == (4.0, 100.0, 100.0, 0.08)
    assert leg["memory"] == {"t_s": [0.0, 1.0], "gib": [3.0, 4.0]}


def test_a_start_excludes_the_time_that_it_was_held_back(tmp_path: Path) -> None:
    runner.run(job(tmp_path, cells=(), rounds=1), FakeRuntime())
    assert legs(tmp_path)[0]["start"]["seconds"] == 25.0


def test_only_the_first_start_of_a_run_is_cold_and_nothing_is_measured_on_it(tmp_path: Path) -> None:
    runner.run(job(tmp_path, rounds=1), FakeRuntime())
    assert [(leg["cell"], leg["start"]["cold"], len(leg["samples"])) for leg in legs(tmp_path)] == [
        ("a", True, 0), ("a", False, 1), ("b", False, 1), ("c", False, 1)]


def test_nothing_is_measured_on_a_start_that_compiled_its_model(tmp_path: Path) -> None:
    runtime = FakeRuntime(compiled={"a", "c"})
    runner.run(job(tmp_path), runtime)
    assert [leg["cell"] for leg in legs(tmp_path)] == list("aabbccba")
    assert [len(leg["samples"]) for leg in legs(tmp_path)] == [0, 1, 0, *[1] * 5]


def test_an_engine_that_compiles_at_every_start_is_measured_all_the_same(tmp_path: Path) -> None:
    class Forgetful(FakeRuntime):
        def start(self, settings: Settings, label: str) -> FakeEngine:
            self.compiled.clear()
            return super().start(settings, label)

    runner.run(job(tmp_path, cells=("b",)), Forgetful())
    assert [(leg["cell"], len(leg["samples"])) for leg in legs(tmp_path)] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 1), ("a", 1)]


def test_the_model_is_noted_once_beside_the_plan(tmp_path: Path) -> None:
    runner.run(job(tmp_path), FakeRuntime())
    noted = json.loads((tmp_path / "run.json").read_text())
    assert noted["model"]["config"] == {"hidden_size": 8}
    assert noted["cells"]["b"]["settings"]["ENGINE_MAX_NUM_SEQS"] == "16"
    assert noted["ceilings"]["device"] == "fake"


def test_the_most_requests_within_the_limits_are_searched_once_per_cell(tmp_path: Path) -> None:
    FakeAgent.holds = 24
    limits = Slo(ttft_ms_p99=100.0, itl_ms_p99=100.0, success=1.0, start=8, most=256)
    runner.run(job(tmp_path, cells=("b",), slo=limits), FakeRuntime())
    found = {(leg["cell"], leg["round"]): leg["slo"] for leg in legs(tmp_path) if leg["visits"]}
    assert found[("a", 1)] == found[("b", 1)] == []
    for name in "ab":
        (searched,) = found[(name, 0)]
        assert 20 <= searched["most"] <= 24
        assert searched["ended_by"] == "slo"


def test_what_was_found_faster_is_measured_last_in_turns_with_the_control_again(tmp_path: Path) -> None:
    suite_job, runtime = job(tmp_path, cells=("b",)), FakeRuntime(compiled={"a", "b"})
    runner.run(suite_job, runtime, lambda: together(suite_job))
    measured = [(leg["cell"], leg["round"]) for leg in legs(tmp_path) if leg["samples"]]
    assert measured == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("together", 2), ("together", 3), ("a", 3)]
    groups = {(leg["round"], sample["group"]) for leg in legs(tmp_path) for sample in leg["samples"]}
    assert groups == {(0, 0), (1, 0), (2, 1), (3, 1)}
    assert runtime.happened.count("close") == 1, "the caches last for both parts"
    assert [(leg["cell"], len(leg["samples"])) for leg in legs(tmp_path) if leg["start"]["cold"]] == [("a", 0)]
    assert runtime.happened.count("start together") == 3, "it compiled at its first start"
    seeds = [sample["seed"] for leg in legs(tmp_path) if leg["cell"] == "a" for sample in leg["samples"]]
    assert len(seeds) == len(set(seeds)) == 4
    assert "together" in json.loads((tmp_path / "run.json").read_text())["cells"]


def test_an_interruption_of_the_last_part_goes_on_there(tmp_path: Path) -> None:
    suite_job = job(tmp_path, cells=("b",))
    FakeAgent.interrupted_at = 2 * 4 + 4  # the first measured load of the added cell, with the warm-ups of six engines
    with pytest.raises(KeyboardInterrupt):
        runner.run(suite_job, FakeRuntime(), lambda: together(suite_job))
    assert [(leg["cell"], leg["round"], leg["error"]) for leg in legs(tmp_path)][-1] == ("together", 2, "interrupted")
    FakeAgent.interrupted_at = 0
    again = FakeRuntime(compiled=set("ab") | {"together"})
    runner.run(suite_job, again, lambda: together(suite_job))
    assert [line for line in again.happened if line.startswith("start")] == [*["start together"] * 3, "start a"]


def test_side_by_side_no_group_has_the_number_of_an_earlier_one(tmp_path: Path) -> None:
    suite_job = job(tmp_path, cells=("b", "c"), side_by_side=2)
    runner.run(suite_job, FakeRuntime(), lambda: together(suite_job))
    groups = {leg["cell"]: sorted({sample["group"] for sample in leg["samples"]}) for leg in legs(tmp_path) if leg["samples"] and leg["cell"] != "a"}
    assert groups == {"b": [0], "c": [1], "together": [2]}


def test_what_lies_under_every_cell_is_noted(tmp_path: Path) -> None:
    options = {"env_files": ["mine.env"], "sets": ["MODEL_DIR=/srv/m"]}
    runner.run(replace(job(tmp_path, cells=(), rounds=1), options=options), FakeRuntime())
    assert json.loads((tmp_path / "run.json").read_text())["options"] == options


def test_what_is_measured_last_is_searched_for_its_limits_too(tmp_path: Path) -> None:
    suite_job = job(tmp_path, cells=("b",), slo=Slo(ttft_ms_p99=100.0, itl_ms_p99=100.0, success=1.0, start=8, most=16))
    runner.run(suite_job, FakeRuntime(), lambda: together(suite_job))
    assert [(leg["cell"], leg["round"]) for leg in legs(tmp_path) if leg["slo"]] == [("a", 0), ("b", 0), ("a", 2), ("together", 2)]


def test_side_by_side_the_control_stays_up_and_each_group_is_visited_in_turn(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    runner.run(job(tmp_path, cells=("b", "c", "d"), rounds=2, side_by_side=3), runtime)
    assert runtime.happened == ["prepare", "start a", "start b", "start c", "stop a", "start a", "stop b", "stop c", "start d", "stop d", "stop a",
                                "close"]
    visits = {leg["cell"]: (leg["visits"], len(leg["samples"])) for leg in legs(tmp_path)}
    assert visits == {"a": (4, 4), "b": (2, 2), "c": (2, 2), "d": (2, 2)}
    cold, control = (leg for leg in legs(tmp_path) if leg["cell"] == "a")
    assert (cold["visits"], cold["samples"]) == (0, [])
    assert len({sample["seed"] for sample in control["samples"]}) == 4


def test_side_by_side_those_that_compiled_are_started_again_beside_the_others(tmp_path: Path) -> None:
    runtime = FakeRuntime(compiled={"a", "c"})
    runner.run(job(tmp_path, cells=("b", "c"), rounds=1, side_by_side=3), runtime)
    assert runtime.happened == ["prepare", "start a", "start b", "start c", "stop a", "stop b", "start a", "start b", "stop b", "stop c", "stop a",
                                "close"]
    measured = [leg for leg in legs(tmp_path) if leg["samples"]]
    assert [(leg["order"], leg["cell"]) for leg in measured] == [(2, "c"), (3, "a"), (4, "b")]


def test_side_by_side_memory_belongs_to_no_single_engine(tmp_path: Path) -> None:
    runner.run(job(tmp_path, cells=("b",), rounds=1, side_by_side=2), FakeRuntime())
    assert all("gpu_memory_gib_peak" not in sample["metrics"] for leg in legs(tmp_path) for sample in leg["samples"])


def test_side_by_side_goes_on_with_the_cells_that_are_missing(tmp_path: Path) -> None:
    FakeAgent.interrupted_at = 9  # in the second group
    with pytest.raises(KeyboardInterrupt):
        runner.run(job(tmp_path, cells=("b", "c"), rounds=2, side_by_side=2), FakeRuntime())
    again = FakeRuntime()
    FakeAgent.interrupted_at = 0
    runner.run(job(tmp_path, cells=("b", "c"), rounds=2, side_by_side=2), again)
    assert again.happened == ["prepare", "start a", "start c", "stop a", "start a", "stop c", "stop a", "close"]


def test_half_a_file_is_never_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "legs" / "000-a.json"
    runner.write_json(path, {"whole": True})
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    with pytest.raises(ValueError, match="Circular"):
        runner.write_json(path, circle)
    assert json.loads(path.read_text()) == {"whole": True}


def test_a_new_run_takes_a_name_that_is_free(tmp_path: Path) -> None:
    assert runner.new_name("cpu", tmp_path, now=lambda: 0.0) == "1970-01-01-cpu"
    (tmp_path / "1970-01-01-cpu").mkdir()
    assert runner.new_name("cpu", tmp_path, now=lambda: 0.0) == "1970-01-01-cpu-2"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of a run: an engine start takes 100 s, nothing else takes any."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    started = FakeRuntime.start

    def start(self: FakeRuntime, settings: Settings, label: str) -> FakeEngine:
        now[0] += min(100.0, settings.ready_timeout_s)
        return started(self, settings, label)

    monkeypatch.setattr(FakeRuntime, "start", start)
    return now


def timed(folder: Path, minutes: float) -> Job:
    one = job(folder, cells=("b",), rounds=3)
    return replace(one, suite=replace(one.suite, minutes=minutes))


def test_a_suite_with_minutes_ends_in_time_with_what_there_is(clock: list[float], tmp_path: Path) -> None:
    runner.run(timed(tmp_path, 10), FakeRuntime())
    # Cold and warm 200 s for the first cell, then 100 s a visit: at 400 s none is begun that could last 200.
    assert [leg["cell"] for leg in legs(tmp_path)] == list("aabb")
    assert clock == [400.0]
    assert runner.read(Run, tmp_path / "run.json")["rounds"] == 3


def test_a_start_waits_no_longer_than_there_is_time_and_none_is_begun_that_does_not_fit(clock: list[float], tmp_path: Path) -> None:
    runner.run(timed(tmp_path, 5), FakeRuntime())
    assert [leg["cell"] for leg in legs(tmp_path)] == list("aa")
    assert clock == [200.0]
    waits: list[float] = []
    kept = FakeRuntime.start

    def start(self: FakeRuntime, own: Settings, label: str) -> FakeEngine:
        waits.append(own.ready_timeout_s)
        return kept(self, own, label)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeRuntime, "start", start)
        runner.run(timed(tmp_path / "short", 1), FakeRuntime())
    assert waits[0] == 60


def test_a_suite_without_minutes_goes_through_whatever_it_takes(clock: list[float], tmp_path: Path) -> None:
    runner.run(timed(tmp_path, 0), FakeRuntime())
    assert [leg["cell"] for leg in legs(tmp_path)] == list("aabbaab")


def test_each_cell_is_asked_for_its_answers_once(tmp_path: Path) -> None:
    runner.run(job(tmp_path), FakeRuntime())
    asked = [leg for leg in legs(tmp_path) if "answers" in leg]
    assert [(leg["cell"], leg["round"]) for leg in asked] == [("a", 0), ("b", 0), ("c", 0)]
    assert asked[0]["answers"]["logprobs"][:2] == [-1.0, -3.0]
    assert (len(asked[0]["answers"]["greedy"]), asked[0]["answers"]["structured"]) == (20, 3)


def test_an_engine_that_does_not_tell_logprobs_is_measured_all_the_same(tmp_path: Path) -> None:
    FakeAgent.refuses = True
    runner.run(job(tmp_path), FakeRuntime())
    first = next(leg for leg in legs(tmp_path) if "answers" in leg)
    assert first["answers"]["error"] == "prompt 1: HTTP 400: prompt_logprobs is not supported"
    assert (first["error"], len(first["samples"])) == ("", 1)
