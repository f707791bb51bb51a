"""From an order to a measured run: the suite, every cell's settings, the runtime, the folder; checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle import ROOT
from bundle.base import console, shell
from bundle.base.errors import BundleError, CheckFailedError, ConfigurationError, NotReadyError, PrerequisiteError
from bundle.bench import matrix, recommend, runner
from bundle.bench.matrix import TOGETHER, Cell, Suite, Workload
from bundle.bench.rundata import RESULT, RUN, Result
from bundle.bench.runtimes import Runtime
from bundle.config import catalogue, settings
from bundle.config.settings import MODEL_IN_CONTAINER, Settings
from bundle.fit import assessment
from bundle.fit.assessment import SHARE_KEY
from bundle.fit.request import DEFAULT_UTILIZATION
from bundle.machine import gpu
from bundle.machine.facts import Host

REPORTS = ROOT / "reports"
EMPTY_CARD_TAKES_GIB = 1.0
"""Of an empty card's memory: 0.5 GiB for the engine's context, 0.5 that `auto` leaves free (docker/engine/entrypoint.py)."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What `make bench` was asked to measure; "" and None mean: as the suite or this host decides."""

    suite: str = ""
    cells: Sequence[str] = ()
    workloads: Sequence[str] = ()
    rounds: int | None = None
    repeats: int | None = None
    run: str = ""
    env_files: Sequence[Path] = ()
    sets: Sequence[str] = ()
    runtime: str = "compose"
    side_by_side: int = 1
    card_gib: float | None = None


def measure(order: Order, *, analysed: bool) -> Path:
    """Measure what `order` asks for; returns the run's folder. `analysed`: whether this Python can analyse what was measured, and so measure at
    once what was found faster each for itself.

    Raises ConfigurationError or PrerequisiteError before anything was started. After an interruption the same run goes on.
    """
    known_matrix = matrix.load()
    suite = known_matrix.suite(order.suite or ("default" if gpu.read(Host()).gpus else "cpu"), cells=order.cells, workloads=order.workloads)
    suite = replace(suite, rounds=order.rounds or suite.rounds, repeats=order.repeats or suite.repeats)
    name = order.run or runner.new_name(suite.name, REPORTS)
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith(("-", ".")) or name == "published":
        raise ConfigurationError(f"--run {name}: not a name for a run", fix="letters, digits, '-', '_' and '.'")
    folder = REPORTS / name
    runtime = _runtime(order.runtime, name, folder)
    total_gib = _gpu_gib() if order.card_gib else 0.0
    if order.card_gib and order.card_gib * order.side_by_side > total_gib:
        raise ConfigurationError(f"{order.side_by_side} x {order.card_gib:g} GiB are more than this GPU's {total_gib:.1f} GiB",
                                 fix="lower --side-by-side or --card-gib")
    cells = {cell.name: _settings(cell, order, total_gib) for cell in (suite.control, *suite.cells)}
    wrong = [f"cell {cell}: {problem}" for cell, one in cells.items() for problem in one.errors]
    if wrong:
        raise ConfigurationError("\n".join(["the cells cannot be started as they are", *(f"  {line}" for line in wrong)]))
    if long := [line for workload in suite.workloads if (line := _too_long(workload, cells))]:
        raise ConfigurationError("\n".join(["requests of these workloads are longer than a cell takes, and would fail:", *long]),
                                 fix="shorten the workload in env/matrix.yaml, raise ENGINE_MAX_MODEL_LEN, or leave one out (WORKLOAD=, CELL=)")
    job = runner.Job(run=name, folder=folder, suite=suite, settings=cells, matrix_sha256=known_matrix.text_sha256,
                     side_by_side=order.side_by_side, card_gib=order.card_gib,
                     options={"env_files": [str(path) for path in order.env_files], "sets": list(order.sets)})
    _announce(job)
    try:
        runner.run(job, runtime, (lambda: _together(job, order, total_gib)) if analysed else (lambda: None))
    except (KeyboardInterrupt, BundleError):
        if (folder / RUN).exists():
            console.note(f"what was measured is kept in {folder.relative_to(ROOT)}: the same call with --run {name} (RUN={name}) goes on from there")
        raise
    return folder


def existing_run(run: str) -> Path:
    """The folder of a run that was measured. Raises ConfigurationError where there is none."""
    folder = REPORTS / run
    if not (folder / RUN).is_file():
        runs = sorted(path.parent.name for path in REPORTS.glob("*/run.json"))
        raise ConfigurationError(f"{folder}: no run of the benchmark is there", fix=f"runs: {', '.join(runs)}" if runs else "make bench")
    return folder


def exit_code(result: Result) -> int:
    """4 when the control itself never started (then nothing can be compared), 5 when a setting that must not change answers changed them."""
    if result["cells"][result["control"]]["state"] != "measured":
        return NotReadyError.exit_code
    wrong = [cell for cell in result["cells"].values() if cell["outputs"] == "same" and cell["output_check"]["verdict"] == "different"]
    return CheckFailedError.exit_code if wrong else 0


def _too_long(workload: Workload, cells: Mapping[str, Settings]) -> str:
    """What of `workload` does not fit into which of `cells`; "" where all of it does, or where a cell's limit is not known before its start."""
    limits = {name: catalogue.parse_number(found.value("ENGINE_MAX_MODEL_LEN"), "human_int") for name, found in cells.items()}
    short = [f"{name} (ENGINE_MAX_MODEL_LEN={cells[name].value('ENGINE_MAX_MODEL_LEN')})" for name, limit in limits.items()
             if limit is not None and 0 < limit < workload.longest]
    return f"  {workload.name}: up to {workload.longest:,} tokens of prompt and answer, too many for {', '.join(short)}" if short else ""


def _together(job: runner.Job, order: Order, total_gib: float) -> runner.Job | None:
    """What was faster each for itself, as one more cell of the run with rounds of its own; None where there are not two such."""
    from bundle.bench import analysis

    result = analysis.analyse(job.folder)
    control = job.suite.control
    if before := result["cells"].get(TOGETHER):  # an interrupted run goes on with what it had begun
        cell = Cell(name=TOGETHER, axis=before["axis"], about=before["about"], profile=before["profile"], sets=tuple(before["sets"]),
                    outputs=before["outputs"])
    else:
        names, values = recommend.together(result)
        if not names:
            return None
        same = all(result["cells"][name]["outputs"] == "same" for name in names)
        sets = {key: value for key, _, value in (line.partition("=") for line in control.sets)} | values
        cell = Cell(name=TOGETHER, axis=TOGETHER, about=f"{', '.join(names)} at once: each was faster for itself",
                    profile=control.profile, sets=tuple(f"{key}={value}" for key, value in sets.items()), outputs="same" if same else "may differ")
    found = _settings(cell, order, total_gib)
    if found.errors:
        console.warn(f"not measured: {cell.about}; together they are no deployment: {found.errors[0]}")
        return None
    console.note(f"measured last, against the control: {cell.about} ({' '.join(cell.sets)})")
    return replace(job, suite=replace(job.suite, cells=(cell,)), settings={control.name: job.settings[control.name], cell.name: found}, part=1)


def _runtime(kind: str, name: str, folder: Path) -> Runtime:
    """Engines as `make up` starts them, in a Compose project of the run's own, or as processes of this host's vLLM."""
    if kind == "process":
        from bundle.bench.processruntime import ProcessRuntime

        return ProcessRuntime(folder)
    from bundle.bench.composeruntime import ComposeRuntime  # it needs docker-py, which a host without Docker may lack

    return ComposeRuntime(name, folder)


def _settings(cell: Cell, order: Order, total_gib: float) -> Settings:
    """The cell's own settings, over what holds for all cells; a share of the smaller card's memory becomes one of this GPU's."""
    def loaded(more: Sequence[str] = ()) -> Settings:
        return settings.load(cell.profile, order.env_files, [*order.sets, *cell.sets, *more])

    found = loaded()
    if not order.card_gib:
        return _decided(found, order)
    share = found.value(SHARE_KEY) or str(DEFAULT_UTILIZATION)
    of_card = (order.card_gib - EMPTY_CARD_TAKES_GIB) / order.card_gib if share == "auto" else float(share)
    return _decided(loaded([f"{SHARE_KEY}={of_card * order.card_gib / total_gib:.5f}"]), order)


def _decided(found: Settings, order: Order) -> Settings:
    """`found` with a number in place of each `auto` that the host resolves: all starts of a cell have the same."""
    model, looked_at = found.value("ENGINE_MODEL"), found
    if order.runtime == "process" and not found.model_dir and Path(model).is_dir():  # it reads the folder where it lies
        looked_at = found.overridden({"MODEL_DIR": model, "ENGINE_MODEL": MODEL_IN_CONTAINER}, "set by the benchmark")
    return assessment.decided(found, assessment.assess(looked_at))


def _gpu_gib() -> float:
    """What CUDA calls the first GPU's total memory: the driver's total less what it keeps for itself. Raises PrerequisiteError without a GPU."""
    done = shell.run(["nvidia-smi", "--query-gpu=memory.total,memory.reserved", "--format=csv,noheader,nounits"], timeout_s=60,
                     failure=PrerequisiteError, fix="--card-gib needs an NVIDIA GPU")
    total, reserved = (float(cell) for cell in done.stdout.splitlines()[0].split(","))
    return (total - reserved) / 1024


def _announce(job: runner.Job) -> None:
    suite: Suite = job.suite
    loads = len(suite.workloads) * suite.repeats
    names = ", ".join(workload.name for workload in suite.workloads)
    console.note(f"suite {suite.name}: {len(job.cells)} cells x {suite.rounds} rounds x {loads} loads of {names}; into reports/{job.run}")


def find(run: str) -> Path:
    """Where a run lies: by its name under reports/ or reports/published/, its folder, or its result.json. Raises ConfigurationError."""
    given = Path(run)
    for place in (given, REPORTS / given, REPORTS / "published" / given):
        if place.is_file() or (place / RESULT).is_file():
            return place
    if any((place / RUN).is_file() for place in (given, REPORTS / given)):
        raise ConfigurationError(f"{run}: the run is unfinished, there is no result yet", fix=f"go on with it: make bench RUN={given.name}; "
                                 f"or make a report of what there is: make bench REPORT={given.name}")
    runs = sorted(path.parent.name for folder in (REPORTS, REPORTS / "published") for path in folder.glob(f"*/{RESULT}"))
    raise ConfigurationError(f"{run}: no such run", fix=f"runs: {', '.join(runs)}" if runs else "make bench")
