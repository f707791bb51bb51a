"""What a run keeps on disk, as types: run.json, a file of legs/ for every engine start, result.json. `parsed` holds a file against them.

What an older run may lack, or only some hosts tell, is NotRequired. `at`, `started` and `finished` are epoch seconds, other times seconds;
metrics have their unit in their name.
"""

import functools
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, TypeVar

RUN, RESULT = "run.json", "result.json"
NOT_MEASURED = "not measured"
MAIN_METRIC = "output_tokens_per_s"
GUARD_METRIC = "itl_ms_p99"
"""What a faster cell must not worsen: the pause between two tokens that one request in a hundred sees."""

Series = dict[str, list[float]]
Facts = dict[str, float | str]
Phases = list[tuple[str, float]]
Metrics = dict[str, float]


class Limits(TypedDict):
    """A workload's SLO (matrix.Slo)."""

    ttft_ms_p99: float
    itl_ms_p99: float
    success: float
    start: int
    most: int


class WorkloadData(TypedDict):
    """A workload as it was measured."""

    about: str
    load: dict[str, str]
    slo: Limits | None


class CellData(TypedDict):
    """A cell as it was deployed."""

    axis: str
    about: str
    profile: str
    sets: list[str]
    outputs: str
    settings: dict[str, str]


class HostData(TypedDict):
    """The machine that it was measured on."""

    cpus: int
    memory_gib: float


class Provenance(TypedDict, total=False):
    """What the figures come from; "" and None: the host does not tell."""

    runtime: str
    gpu: str | None
    driver: str | None
    gpu_memory_gib: float | None
    card_gib: float | None
    engine: dict[str, str]
    image: dict[str, str]
    git_commit: str
    git_dirty: bool
    matrix_sha256: str
    host: HostData
    python: str


class Ceilings(TypedDict, total=False):
    """What docker/engine/benchprobe.py measured."""

    device: str
    copy_gb_s: float
    matmul_tflops: dict[str, float]
    seconds: float


class ModelData(TypedDict, total=False):
    """The model, as the agent saw it beside the engine; {} until then. `config` is its config.json."""

    name: str
    path: str
    config: dict[str, Any]
    weights_bytes: int


class Options(TypedDict, total=False):
    """What lay under every cell."""

    env_files: list[str]
    sets: list[str]


class About(TypedDict):
    """What run.json and result.json both begin with."""

    schema: int
    run: str
    started: float
    provenance: Provenance
    ceilings: Ceilings
    model: ModelData
    options: NotRequired[Options]
    suite: str
    control: str
    rounds: int
    repeats: int
    side_by_side: NotRequired[int]
    workloads: dict[str, WorkloadData]


class Run(About):
    """run.json."""

    cells: dict[str, CellData]


class StartTimes(TypedDict):
    """A start of an engine, as result.json tells of it too."""

    ok: bool
    cold: bool
    seconds: float
    phases: Phases
    facts: Facts


class Start(StartTimes):
    """A start, and why it failed."""

    reason: str
    remedy: str
    log_tail: list[str]


class Requests(TypedDict):
    """Of one load; `errors` are the first reasons."""

    asked: int
    completed: int
    failed: int
    errors: list[str]


class Tokens(TypedDict):
    """Of all requests of a load that were answered."""

    input: int
    output: int


class Answer(TypedDict):
    """What docker/engine/benchagent.py says of one load. `quantiles` are the hundredths of a distribution, 101 values."""

    seconds: float
    at: float
    requests: Requests
    tokens: Tokens
    metrics: Metrics
    quantiles: Series
    series: Series


class Sample(Answer):
    """A measured load: the agent's answer, and its place in the schedule. Loads of one `group` ran in turns."""

    workload: str
    repeat: int
    turn: NotRequired[int]
    group: NotRequired[int]
    seed: int
    gpu: Series


class Held(TypedDict):
    """Whether a load kept its workload's limits, and how near it came."""

    held: bool
    ttft_ms_p99: float | None
    itl_ms_p99: float | None
    success: float
    output_tokens_per_s: NotRequired[float | None]


class Step(Held):
    """One load of a search."""

    concurrency: int


class Search(TypedDict):
    """A search for the most concurrent requests."""

    workload: str
    most: int
    ended_by: str
    steps: list[Step]


class Memory(TypedDict):
    """GPU memory, sample by sample; `t_s` since the start was asked for."""

    t_s: list[float]
    gib: list[float]


class Deployed(TypedDict):
    """The command line and environment of a start."""

    argv: list[str]
    environment: dict[str, str]
    sha256: str


class AnswersData(TypedDict):
    """What an engine answered (answers.py): the logarithm of each token's probability in the fixed text, the answers at temperature 0, and how many
    of the structured ones were valid. `error` says why there are none."""

    logprobs: list[float]
    greedy: list[str]
    structured: int
    structured_of: int
    error: str


class LegData(TypedDict):
    """A file of legs/: one engine start and what was measured on it. `visits` is how often all workloads were gone through."""

    cell: str
    order: int
    round: int
    settings: Deployed
    start: Start
    outputs: list[str]
    samples: list[Sample]
    slo: list[Search]
    memory: Memory
    visits: int
    error: str
    answers: NotRequired[AnswersData]


class Metric(TypedDict):
    """A metric of a cell over all its loads; `starts` says which engine start each value is from."""

    median: float
    low: float
    high: float
    values: list[float]
    starts: NotRequired[list[int]]


class Searches(TypedDict):
    """The searches of a cell under one workload, a place in each list for each."""

    most: list[int]
    ended_by: NotRequired[list[str]]
    steps: NotRequired[list[list[Step]]]


class Distance(TypedDict):
    """How far a load was from the limit: the least time / the measured one; `bound` is "prefill" or "decode", `limited_by` what limits a step."""

    share_of_limit: float
    bound: str
    prefill_s: float
    decode_s: float
    measured_s: float
    limited_by: str


class SameAnswers(TypedDict):
    """Whether a cell answers as the control does."""

    verdict: str
    equal: int
    of: int


class AnswersFound(TypedDict):
    """A cell's answers against the control's: the ratio of perplexities (cell / control, above 1: worse) with its 95 % interval; equal answers."""

    perplexity: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    equal: int
    of: int
    structured: int
    structured_of: int
    error: str


class Found(TypedDict):
    """What was found of a cell, by itself."""

    state: str
    reason: str
    remedy: str
    starts: list[StartTimes]
    metrics: dict[str, dict[str, Metric]]
    quantiles: dict[str, Series]
    slo: dict[str, Searches]
    memory: Memory
    roofline: dict[str, Distance]
    roofline_unknown: str


class CellResult(CellData, Found):
    """A cell in result.json."""

    output_check: SameAnswers
    answers: NotRequired[AnswersFound | None]


class Row(TypedDict):
    """A cell against the control, or against itself in another run, in one metric: Comparison says what the numbers are."""

    cell: str
    workload: str
    metric: str
    ratio: float | None
    low: float | None
    high: float | None
    smallest: float | None
    verdict: str
    why: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell against its control. Ratios are medians, cell / control, with a 95 % bootstrap interval; all None where nothing can be compared."""

    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    smallest: float | None = None
    """The smallest relative change that the noise on both sides would have let this run see."""
    verdict: str = NOT_MEASURED

    def row(self, cell: str, workload: str, metric: str, *, verdict: str = "", why: str = "") -> Row:
        """As a row of a file; another `verdict` where the numbers alone do not decide."""
        return {"cell": cell, "workload": workload, "metric": metric, "ratio": self.ratio, "low": self.low, "high": self.high,
                "smallest": self.smallest, "verdict": verdict or self.verdict, "why": why}


class TypicalStart(TypedDict):
    """The median of several starts."""

    seconds: float
    of: int
    phases: Phases


class ColdAndWarm(TypedDict, total=False):
    """The control's starts."""

    cold: TypicalStart | None
    warm: TypicalStart | None
    warm_to_cold: float | None


class Kept(TypedDict):
    """A setting that stays although another value was tried."""

    key: str
    value: str
    why: str


class Changed(Kept):
    """A setting to change; `cell` measured it."""

    cell: str


class Recommendation(TypedDict):
    """What a run recommends on top of the control's profile; a value of "" means: not set."""

    base_profile: str
    set: list[Changed]
    kept: list[Kept]
    note: str


class Result(About):
    """What was found in a run."""

    cells: dict[str, CellResult]
    finished: float
    complete: bool
    starts: ColdAndWarm
    comparisons: list[Row]


class Recommended(Result):
    """result.json."""

    recommendation: Recommendation


Data = TypeVar("Data")


def parsed(kind: type[Data], text: str) -> Data:
    """The JSON in `text` as `kind`, one of the types above. Raises ValueError with the place of what is something else; more fields are no error."""
    return held_to(kind, json.loads(text))


def held_to(kind: type[Data], value: Any) -> Data:
    """As `parsed`, of what JSON was read already."""
    _hold(kind, value, "")
    found: Data = value
    return found


def _hold(kind: Any, value: Any, where: str) -> None:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind):
        _hold(dict, value, where)
        if missing := sorted(kind.__required_keys__ - value.keys()):
            raise ValueError(f"{where or 'it'} has no {missing[0]}")
        for name, one in _fields(kind).items():
            if name in value:
                _hold(one, value[name], f"{where}.{name}".lstrip("."))
    elif origin is types.UnionType:
        if value is not None or type(None) not in inner:
            _hold(next(one for one in inner if isinstance(value, (int, float)) == (one is float)), value, where)
    elif origin is dict:
        _hold(dict, value, where)
        for key, one in value.items():
            _hold(inner[1], one, f"{where}.{key}")
    elif origin in (list, tuple):
        _hold(list, value, where)
        for at, one in enumerate(value):
            _hold(inner[at % len(inner)], one, f"{where}[{at}]")
    elif kind is not Any and (not isinstance(value, (int, float) if kind is float else kind) or (kind is not bool and isinstance(value, bool))):
        raise ValueError(f"{where or 'it'} is no {kind.__name__}: {str(value)[:60]}")


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
