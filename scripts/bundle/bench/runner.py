"""Measure a suite: every cell against the control in one run, forwards and backwards through the cells, one leg file for every engine start.

Nothing is measured on a cell's first start where that had to compile (startphases.cold says why): it is noted, and the engine started again.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.base import console, files
from bundle.base.errors import ConfigurationError
from bundle.bench import answers, gpusampler, rundata, slo, startphases
from bundle.bench.agent import Agent, AgentError
from bundle.bench.matrix import TOGETHER, Cell, Suite, Workload
from bundle.bench.rundata import (
    RUN,
    Answer,
    AnswersData,
    CellData,
    Data,
    Held,
    LegData,
    Memory,
    Run,
    Sample,
    Series,
    Start,
    WorkloadData,
)
from bundle.bench.runtimes import Engine, Runtime, StartFailed
from bundle.config.settings import Settings
from bundle.service import enginelog

PROMPTS = tuple(f"{count}. {text}" for count, text in enumerate((
    "The capital of France is", "def fibonacci(n):", "Water boils at", "import os\nimport sys\n", "Once upon a time there was",
    "SELECT name FROM"), start=1))
OUTPUT_TOKENS = 32
_PLANNED = ("suite", "control", "rounds", "repeats", "side_by_side", "cells", "workloads")
"""What of a run must stay as it was begun."""
AGENT_START_S = 300.0
LOAD_LIMIT_S = 3600.0
LOG_TAIL = 40
WARM_UP_SHARE = 8
"""A warm-up sends one in so many of the requests that a measured load sends."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be measured, all of it known and checked before anything starts."""

    run: str
    folder: Path
    suite: Suite
    settings: Mapping[str, Settings]
    """Of every cell, by its name."""
    matrix_sha256: str
    side_by_side: int
    """Engines that are up at once; 1: one after the other, with a start for every visit."""
    card_gib: float | None
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What else the call was given, to repeat it: "env_files" and "sets", which lie under every cell."""
    part: int = 0
    """0: the suite; 1: what was found faster in it, at once. Each part has rounds and a control of its own."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return (self.suite.control, *self.suite.cells)

    def visits(self) -> list[tuple[int, Cell]]:
        """Every visit as (round, cell): A B C, C B A, A B C, …, so that a drift of the machine falls on all cells alike."""
        return [(self.part * self.suite.rounds + number, cell) for number in range(self.suite.rounds)
                for cell in (self.cells if number % 2 == 0 else self.cells[::-1])]


@dataclass(kw_only=True)
class Leg:
    """One start of an engine and everything that was measured on it; `write` puts it on disk whole or not at all."""

    folder: Path
    data: LegData

    @property
    def name(self) -> str:
        return f"{self.data['order']:03d}-{self.data['cell']}"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"

    def write(self) -> None:
        write_json(self.path, self.data)


@dataclass(kw_only=True)
class Progress:
    """What is done and how long the rest will take, judged by what was done in this call."""

    todo: int
    started: float = field(default_factory=time.monotonic)
    done: int = 0

    def next(self, what: str) -> None:
        left = ""
        if self.done:
            left = f", about {_duration((time.monotonic() - self.started) / self.done * (self.todo - self.done))} left"
        console.note(f"[{self.done + 1}/{self.todo}] {what}{left}")

    def count(self) -> None:
        self.done += 1


@dataclass(kw_only=True)
class Limit:
    """When a suite with `minutes` must have ended, by this call's own clock."""

    until: float
    longest: float = 0.0
    """Seconds that a visit has taken at most: with less left none is begun."""

    @classmethod
    def of(cls, suite: Suite) -> "Limit":
        return cls(until=time.monotonic() + 60 * suite.minutes if suite.minutes else math.inf)

    @property
    def left_s(self) -> float:
        return max(1.0, self.until - time.monotonic())

    def has_room(self) -> bool:
        return time.monotonic() + self.longest < self.until

    def held(self, settings: Settings) -> Settings:
        """`settings` whose start waits no longer than there is time."""
        if settings.ready_timeout_s <= self.left_s:
            return settings
        return settings.overridden({"HOST_READY_TIMEOUT_S": f"{math.ceil(self.left_s)}"}, "what is left of the suite's minutes")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """`value` as JSON at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(value, indent=1, default=str) + "\n")


def read(kind: type[Data], path: Path) -> Data:
    """The run's file at `path`. Raises ConfigurationError where there is none, or a damaged one."""
    try:
        return rundata.parsed(kind, path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path.parent}: no {path.name} in it", fix="give the folder of a run: make bench made it below reports/") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error})", fix="delete it and run make bench with the same RUN again: it is measured anew"
                                 if path.name != RUN else "delete the folder and begin a new run") from error


def read_legs(folder: Path) -> list[LegData]:
    """The legs of a run in the order of their starts."""
    return [read(LegData, path) for path in sorted((folder / "legs").glob("*.json"))]


def run(job: Job, runtime: Runtime, follow_up: Callable[[], Job | None] = lambda: None) -> None:
    """Measure all of `job` that its folder does not hold yet, and then what `follow_up` makes of that, if anything: its cells are added to the run.

    Raises PrerequisiteError before anything is started, ConfigurationError when the folder holds another run. A cell that does not start is a
    result, not an error.
    """
    runtime.prepare(list(job.settings.values()))
    try:
        limit = Limit.of(job.suite)
        _open(job, runtime)
        measuring = _Measuring(job.folder, runtime, limit)
        try:
            measuring.measure(job)
            if more := follow_up():
                _add(more)
                measuring.measure(more)
        finally:
            measuring.agents.close()
    finally:
        runtime.close()


def _open(job: Job, runtime: Runtime) -> None:
    """Write run.json, or hold it against the one that is there."""
    path = job.folder / RUN
    plan: Run = {
        "schema": 1, "run": job.run, "started": time.time(), "provenance": {}, "ceilings": {}, "model": {},
        "options": {"env_files": list(job.options.get("env_files", ())), "sets": list(job.options.get("sets", ()))},
        "suite": job.suite.name, "control": job.suite.control.name, "rounds": job.suite.rounds, "repeats": job.suite.repeats,
        "side_by_side": job.side_by_side, "cells": {cell.name: _cell(cell, job.settings[cell.name]) for cell in job.cells},
        "workloads": {load.name: _workload(load) for load in job.suite.workloads}}
    if path.exists():
        before = read(Run, path)
        before["cells"].pop(TOGETHER, None)
        if changed := sorted(key for key in _PLANNED if before.get(key) != plan.get(key)):
            raise ConfigurationError(f"{path}: this run was begun with other {', '.join(changed)}; its halves could not be compared",
                                     fix="give the options that it was begun with, or begin a new run (another RUN=)")
        console.note(f"going on with {job.run}: {len(read_legs(job.folder))} starts are done")
        return
    with console.step("what this hardware can do: copy bandwidth and matrix product"):
        ceilings = runtime.probe()
    plan["provenance"] = runtime.provenance() | {"card_gib": job.card_gib, "matrix_sha256": job.matrix_sha256}
    plan["ceilings"] = ceilings
    write_json(path, plan)


def _add(job: Job) -> None:
    """Put the cells of a further part into run.json."""
    path = job.folder / RUN
    data = read(Run, path)
    data["cells"] |= {cell.name: _cell(cell, job.settings[cell.name]) for cell in job.suite.cells}
    write_json(path, data)


def _cell(cell: Cell, settings: Settings) -> CellData:
    own = {key: settings.value(key) for key in settings.entries if key.startswith("ENGINE_") and settings.value(key)} | dict(settings.environment)
    return {"axis": cell.axis, "about": cell.about, "profile": cell.profile, "sets": list(cell.sets), "outputs": cell.outputs, "settings": own}


def _workload(workload: Workload) -> WorkloadData:
    limits = workload.slo
    return {"about": workload.about, "load": dict(workload.load), "slo": None if limits is None else {
        "ttft_ms_p99": limits.ttft_ms_p99, "itl_ms_p99": limits.itl_ms_p99, "success": limits.success, "start": limits.start, "most": limits.most}}


class _Measuring:
    """One call's work on a run."""

    def __init__(self, folder: Path, runtime: Runtime, limit: Limit) -> None:
        self.folder, self.runtime, self.agents, self.limit = folder, runtime, _Agents(folder), limit
        self.first = self.order = 1 + max((leg["order"] for leg in read_legs(folder)), default=-1)
        self.warm: set[str] = set()
        """The cells whose compiled code lies in this call's caches, which go with its end."""

    def measure(self, job: Job) -> None:
        """All of `job` that is not on disk yet."""
        self.job, self.legs = job, read_legs(self.folder)
        if job.side_by_side > 1:
            self.side_by_side()
        else:
            self.one_by_one()

    def one_by_one(self) -> None:
        """An engine start for every visit."""
        done = {(leg["round"], leg["cell"]) for leg in self.legs if leg["visits"] and not leg["error"]}
        dead = {leg["cell"] for leg in self.legs if not leg["start"]["ok"]}
        todo = [(number, cell) for number, cell in self.job.visits() if (number, cell.name) not in done]
        progress = Progress(todo=len(todo))
        with gpusampler.Sampler([card.index for card in self.runtime.cards]) as gpu:
            for number, cell in todo:
                if cell.name in dead:  # it failed for a reason of its own, and would again
                    progress.count()
                    continue
                if not self.limit.has_room():
                    console.note(f"the suite's {self.job.suite.minutes:g} minutes leave no time for {progress.todo - progress.done} more visits")
                    break
                begun = time.monotonic()
                progress.next(f"{cell.name}, round {number % self.job.suite.rounds + 1} of {self.job.suite.rounds}")
                visit = self._start(cell, number, gpu)
                if visit is not None and self._was_cold(visit):
                    visit = self._start(cell, number, gpu)
                if visit is None:
                    dead.add(cell.name)
                else:
                    try:
                        visit.measure(gpu, alone=True, group=self.job.part)
                        visit.search()
                    finally:
                        visit.stop()
                self.limit.longest = max(self.limit.longest, time.monotonic() - begun)
                progress.count()

    def side_by_side(self) -> None:
        """Several engines up at once, the control in every group; visits go forwards and backwards through the group without a restart."""
        complete = {leg["cell"] for leg in self.legs if not leg["start"]["ok"] or leg["visits"] >= self.job.suite.rounds}
        todo = [cell for cell in self.job.suite.cells if cell.name not in complete]
        width = self.job.side_by_side - 1
        groups = [todo[at:at + width] for at in range(0, len(todo), width)] or [[]] * (self.job.suite.control.name not in complete)
        progress = Progress(todo=len(groups))
        # Never one of an earlier call or part: its control was another engine, at another time.
        first_group = 1 + max((sample.get("group", 0) for leg in self.legs for sample in leg["samples"]), default=-1)
        control: _Visit | None = None
        with gpusampler.Sampler([card.index for card in self.runtime.cards]) as gpu:
            try:
                for number, group in enumerate(groups, start=first_group):
                    if not self.limit.has_room():
                        console.note(f"the suite's {self.job.suite.minutes:g} minutes are over")
                        break
                    begun = time.monotonic()
                    progress.next("side by side: " + ", ".join(cell.name for cell in (self.job.suite.control, *group)))
                    new = group if control else [self.job.suite.control, *group]
                    visits = self._start_together(new, gpu)
                    if control is None:
                        if not visits or visits[0].cell is not self.job.suite.control:
                            _stop_all(visits)
                            return
                        control = visits.pop(0)
                    try:
                        for turn in range(self.job.suite.rounds):
                            together = [control, *visits]
                            for visit in together if turn % 2 == 0 else together[::-1]:
                                visit.measure(gpu, alone=False, group=number)
                    finally:
                        _stop_all(visits)
                    self.limit.longest = max(self.limit.longest, time.monotonic() - begun)
                    progress.count()
            finally:
                _stop_all([control] if control else [])

    def _start(self, cell: Cell, number: int, gpu: gpusampler.Sampler) -> "_Visit | None":
        asked = time.time()
        try:
            return self._visit(self.runtime.start(self.limit.held(self.job.settings[cell.name]), f"{self.order:03d}-{cell.name}"), cell, number)
        except StartFailed as failed:
            self._failed(cell, number, failed, asked, gpu)
            return None

    def _was_cold(self, visit: "_Visit") -> bool:
        """Whether the cell's first start in this call had to compile; then it is kept for its times alone, and the engine has ended."""
        cold = startphases.cold(visit.leg.data["start"]) and visit.cell.name not in self.warm
        self.warm.add(visit.cell.name)
        if cold:
            console.note("  that start filled the caches; what is measured is the next one")
            visit.leg.write()
            visit.stop()
        return cold

    def _failed(self, cell: Cell, number: int, failed: StartFailed, asked: float, gpu: gpusampler.Sampler) -> None:
        console.note(f"  {cell.name} did not start: {failed.reason}")
        leg = self._leg(cell, number, {"ok": False, "cold": self._cold(), "seconds": time.time() - asked, "phases": [],
                                       "facts": startphases.facts(failed.log), "reason": failed.reason, "remedy": failed.remedy,
                                       "log_tail": [text for _, text in failed.log[-LOG_TAIL:]]})
        leg.data["memory"] = _memory(gpu, asked)
        leg.write()

    def _leg(self, cell: Cell, number: int, start: Start) -> Leg:
        settings = self.job.settings[cell.name]
        argv, environment = list(settings.argv), dict(settings.environment)
        digest = hashlib.sha256(json.dumps({"argv": argv, "environment": environment}, sort_keys=True).encode()).hexdigest()
        leg = Leg(folder=self.job.folder / "legs", data={
            "cell": cell.name, "order": self.order, "round": number, "settings": {"argv": argv, "environment": environment, "sha256": digest},
            "start": start, "outputs": [], "samples": [], "slo": [], "memory": {"t_s": [], "gib": []}, "visits": 0, "error": ""})
        self.order += 1
        return leg

    def _cold(self) -> bool:
        """Whether nothing has filled the caches yet: only a call's first start is certain to compile everything."""
        return self.order == self.first

    def _visit(self, engine: Engine, cell: Cell, number: int) -> "_Visit":
        seconds = engine.ready - engine.started - engine.held_s
        log = engine.log()
        leg = self._leg(cell, number, {
            "ok": True, "cold": self._cold(), "seconds": seconds, "phases": startphases.phases(log, engine.started, engine.ready, engine.held_s),
            "facts": startphases.facts(log), "reason": "", "remedy": "", "log_tail": []})
        console.note(f"  {cell.name} ready after {seconds:.0f} s")
        return _Visit(job=self.job, cell=cell, engine=engine, leg=leg, agents=self.agents, limit=self.limit)

    def _start_together(self, cells: Sequence[Cell], gpu: gpusampler.Sampler) -> list["_Visit"]:
        visits = self._all_started(cells, gpu)
        again = [visit.cell for visit in visits if self._was_cold(visit)]
        warm = [visit for visit in visits if visit.cell not in again] + self._all_started(again, gpu)
        return sorted(warm, key=lambda visit: cells.index(visit.cell))

    def _all_started(self, cells: Sequence[Cell], gpu: gpusampler.Sampler) -> list["_Visit"]:
        first, asked = self.order, time.time()
        pairs = [(self.limit.held(self.job.settings[cell.name]), f"{first + at:03d}-{cell.name}") for at, cell in enumerate(cells)]
        visits = []
        for cell, outcome in zip(cells, self.runtime.start_together(pairs), strict=True):
            if isinstance(outcome, StartFailed):
                self._failed(cell, 0, outcome, asked, gpu)
            else:
                visits.append(self._visit(outcome, cell, 0))
        return visits


class _Agents:
    """The agent beside the engines: one process for all engines that it can reach, because its imports take ten seconds and more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agent: Agent | None = None
        self.argv: tuple[str, ...] = ()

    def beside(self, engine: Engine, leg: Leg) -> Agent:
        """The agent for `engine`, started where there is none. Raises AgentError when it does not start."""
        argv = tuple(engine.agent_argv)
        if self.agent is None or self.argv != argv or not self.agent.alive():
            self.close()
            log = self.folder / "logs" / f"{leg.name}.agent.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            self.agent, self.argv = Agent(argv, env=engine.agent_environment, log=log, ready_limit_s=AGENT_START_S), argv
        return self.agent

    def close(self) -> None:
        if self.agent is not None:
            self.agent.close()
        self.agent = None


@dataclass(kw_only=True)
class _Visit:
    """A running engine with its agent, being measured; the leg is on disk after each load."""

    job: Job
    cell: Cell
    engine: Engine
    leg: Leg
    agents: "_Agents"
    limit: Limit

    def measure(self, gpu: gpusampler.Sampler, *, alone: bool, group: int) -> None:
        """Every workload `repeats` times, after a warm-up of each; at the first visit the outputs at temperature 0 too.

        What goes wrong ends in the leg's `error`: an engine that dies under load is a result. `group` says which cells were visited in turns with
        this one: those are compared.
        """
        turn = self.leg.data["visits"]
        try:
            agent = self.agents.beside(self.engine, self.leg)
            if turn == 0:
                self.leg.data["outputs"] = agent.outputs(PROMPTS, base_url=self.engine.base_url, served_model_name=self.engine.served_model_name,
                                                         max_tokens=OUTPUT_TOKENS, limit_s=LOAD_LIMIT_S)
                self._note_model(agent)
                if self.leg.data["round"] == self.job.part * self.job.suite.rounds:
                    self.leg.data["answers"] = self._answers(agent)
                for workload in self.job.suite.workloads:
                    self._load(agent, workload, seed=self._seed(workload, "warm-up", group, turn), requests=_warm_up(workload))
            for repeat in range(self.job.suite.repeats):
                for workload in self.job.suite.workloads:
                    seed = self._seed(workload, str(repeat), group, turn)
                    answer = self._load(agent, workload, seed=seed)
                    requests = answer["requests"]
                    if not requests["completed"]:
                        raise AgentError(f"{workload.name}: none of {requests['asked']} requests was answered: {', '.join(requests['errors'])}")
                    series = gpu.window(answer["at"], answer["at"] + answer["seconds"])
                    _add_gpu(answer, series, alone=alone)
                    sample: Sample = {"workload": workload.name, "repeat": repeat, "turn": turn, "group": group, "seed": seed, "gpu": series,
                                      **answer}
                    self.leg.data["samples"].append(sample)
                    console.note(f"  {self.cell.name} · {workload.name}: {_line(answer)}")
        except AgentError as error:
            self.leg.data["error"] = str(error)
            console.warn(f"{self.cell.name}: {error}")
        self.leg.data["visits"] += 1
        if alone:
            self.leg.data["memory"] = _memory(gpu, self.engine.started)
        self.leg.write()

    def search(self) -> None:
        """In a part's first round: the most concurrent requests that each workload's limits hold, searched with short loads."""
        for workload in self.job.suite.workloads:
            if workload.slo is None or self.leg.data["round"] != self.job.part * self.job.suite.rounds or self.leg.data["error"]:
                continue
            limits = workload.slo

            def holds(concurrency: int, workload: Workload = workload) -> Held:
                options = {"max-concurrency": str(concurrency), "request-rate": "inf", "num-prompts": str(max(3 * concurrency, 16))}
                seed = self._seed(workload, f"slo {concurrency}", self.job.part, 0)
                answer = self._load(self.agents.beside(self.engine, self.leg), workload, seed=seed, options=options)
                step = _judged(answer, workload)
                console.note(f"  {self.cell.name} · {workload.name}: {concurrency} concurrent requests {'held' if step['held'] else 'not held'}")
                return step

            try:
                most, steps = slo.search(holds, start=limits.start, most=limits.most)
                ended = "limit" if most >= limits.most else "slo"
                self.leg.data["slo"].append({"workload": workload.name, "most": most, "ended_by": ended, "steps": steps})
            except AgentError as error:
                self.leg.data["error"] = str(error)
                console.warn(f"{self.cell.name}: {error}")
            self.leg.write()

    def stop(self) -> None:
        """End the engine; what was measured on it stays."""
        self.engine.stop()
        if not self.leg.path.exists():  # interrupted before the first load was through: the start itself is worth keeping
            self.leg.data["error"] = "interrupted"
            self.leg.write()

    def _load(self, agent: Agent, workload: Workload, *, seed: int, requests: int | None = None,
              options: Mapping[str, str] | None = None) -> Answer:
        given = dict(workload.load) | dict(options or {}) | {"seed": str(seed)}
        if requests is not None:
            given["num-prompts"] = str(requests)
        answer = agent.load(given, base_url=self.engine.base_url, model=self.engine.model, served_model_name=self.engine.served_model_name,
                            limit_s=min(LOAD_LIMIT_S, self.limit.left_s))
        if not self.engine.alive():
            raise AgentError(f"the engine ended under load: {enginelog.last_error(chr(10).join(text for _, text in self.engine.log()))}")
        return answer

    def _seed(self, workload: Workload, what: str, group: int, turn: int) -> int:
        """The same for every cell at the same place of the schedule, so that all see the same prompts; never the same twice for one engine,
        so that its prefix cache holds none of them."""
        place = f"{self.job.run} {workload.name} {what} {group} {self.leg.data['round']} {turn}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:4])

    def _answers(self, agent: Agent) -> AnswersData:
        """How good its answers are; an engine that refuses one of the requests (a pooling model, an API that it lacks) is measured all the same."""
        def post(path: str, bodies: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
            return agent.post(path, bodies, base_url=self.engine.base_url, limit_s=min(LOAD_LIMIT_S, self.limit.left_s))

        try:
            return answers.ask(post, self.engine.served_model_name)
        except (AgentError, ValueError) as error:
            if not (self.engine.alive() and agent.alive()):
                raise AgentError(str(error)) from error
            console.note(f"  {self.cell.name}: its answers are not judged: {str(error)[:300]}")
            return answers.unknown(str(error)[:300])

    def _note_model(self, agent: Agent) -> None:
        """Put the model's shape into run.json, once: only beside the engine can it be read for sure."""
        path = self.job.folder / "run.json"
        data = read(Run, path)
        if not data["model"]:
            found = agent.model(self.engine.model, limit_s=60)
            data["model"] = {"name": self.engine.served_model_name, "path": Path(self.engine.model).name, **found}
            write_json(path, data)


def _stop_all(visits: Sequence[_Visit]) -> None:
    for visit in visits:
        visit.stop()


def _warm_up(workload: Workload) -> int:
    return max(8, int(workload.load.get("num-prompts", "1000")) // WARM_UP_SHARE)


def _judged(answer: Answer, workload: Workload) -> Held:
    """One step of a search: what was measured, and whether it keeps the workload's limits."""
    limits, metrics, requests = workload.slo, answer["metrics"], answer["requests"]
    assert limits is not None  # noqa: S101  (the caller searches only where there are limits)
    success = requests["completed"] / requests["asked"] if requests["asked"] else 0.0
    ttft, itl = metrics.get("ttft_ms_p99"), metrics.get("itl_ms_p99", 0.0)
    held = success >= limits.success and ttft is not None and ttft <= limits.ttft_ms_p99 and itl <= limits.itl_ms_p99
    return {"held": held, "ttft_ms_p99": ttft, "itl_ms_p99": itl, "success": success, "output_tokens_per_s": metrics.get("output_tokens_per_s")}


def _add_gpu(answer: Answer, series: Series, *, alone: bool) -> None:
    """What the driver tells, beside what the generator measured. Memory only where one engine alone had the GPU."""
    metrics = answer["metrics"]
    if alone and series["memory_gib"]:
        metrics["gpu_memory_gib_peak"] = max(series["memory_gib"])
    if series["watts"]:
        watts = statistics.fmean(series["watts"])
        joules = watts * answer["seconds"]
        metrics |= {"watts_mean": watts, "joules": joules}
        if joules:
            metrics["tokens_per_joule"] = answer["tokens"]["output"] / joules


def _memory(gpu: gpusampler.Sampler, since: float) -> Memory:
    series = gpu.window(since, time.time())
    return {"t_s": series["t_s"], "gib": series["memory_gib"]}


def _line(answer: Answer) -> str:
    metrics, requests = answer["metrics"], answer["requests"]
    said = [f"{answer['seconds']:.1f} s", f"{metrics.get('output_tokens_per_s', 0.0):,.0f} output tokens/s"]
    said += [f"{name} P99 {metrics[key]:,.0f} ms" for name, key in (("TTFT", "ttft_ms_p99"), ("ITL", "itl_ms_p99")) if key in metrics]
    return ", ".join([*said, *([f"{requests['failed']} requests failed"] if requests["failed"] else [])])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 100 else f"{minutes} min"


def new_name(suite: str, folder: Path, *, now: Callable[[], float] = time.time) -> str:
    """A name for a run that `folder` does not hold yet: date, suite, and a number where it is not the first."""
    base = f"{time.strftime('%Y-%m-%d', time.gmtime(now()))}-{suite}"
    taken = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return next(name for name in (base, *(f"{base}-{number}" for number in range(2, 1000))) if name not in taken)
