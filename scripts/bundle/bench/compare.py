"""Two runs beside each other: is the second slower than the first, its reference, beyond noise?

Unlike the cells of one run the two were not measured in turns: what changed on the host between them counts as a difference of the runs. The noise
is that within each of them, so a day that is slower than the last one shows too; where much depends on it, measure both as cells of one run.
One row decides the answer as well as another, so they share the chance of being wrong, and the noise of all cells under one load.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bundle.base.errors import ConfigurationError, SlowerError
from bundle.bench import analysis, rundata, statistics
from bundle.bench.rundata import MAIN_METRIC, Comparison, Metric, Result, Row

DECIDING = ("output_tokens_per_s", "ttft_ms_p99", "itl_ms_p99")
"""A run that is slower in one of these is slower."""
FAILED, NOT_COMPARABLE = "failed", "not comparable"


def load(path: Path) -> Result:
    """The result of the run that `path` is the folder of, or the result.json of. One that was not analysed yet is analysed.

    Raises ConfigurationError where there is neither, or where it is damaged.
    """
    if path.is_dir() and not (path / rundata.RESULT).is_file():
        return analysis.analyse(path)
    file = path / rundata.RESULT if path.is_dir() else path
    try:
        return rundata.parsed(Result, file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such run", fix="give the folder of a run, or a result.json: ls reports reports/published") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: not the result of a run ({error})",
                                 fix="give the folder of a run; where it has legs, delete its result.json: it is made again from them") from error


def compare_results(a: Result, b: Result) -> list[Row]:
    """Every metric of each cell and workload that both runs have, as b / a.

    Verdicts are those of statistics.compare, and "not comparable" where the load differs (`why` says in what), "failed" and "wrong output" where
    b has no right answers and a had. Raises ConfigurationError when the runs have no cell and workload in common.
    """
    places = [(cell, workload) for cell in a["cells"] if cell in b["cells"] for workload in a["workloads"] if workload in b["workloads"]]
    noise = {workload: {metric: _noise((a, b), workload, metric) for metric in analysis.HIGHER_IS_BETTER} for workload in {one for _, one in places}}
    rows = [row for cell, workload in places for row in _rows(a, b, cell, workload, among=len(places) * len(DECIDING), noise=noise[workload])]
    if not rows:
        raise ConfigurationError(f"runs {a['run']} and {b['run']} have no cell with a workload in common", fix="compare runs of the same suite")
    return rows


def warnings(a: Result, b: Result) -> Iterator[str]:
    """What else differs between the runs, one sentence each: then a ratio says nothing of the settings alone."""
    differing: Sequence[tuple[str, Callable[[Result], object]]] = (
        ("GPU", lambda run: run["provenance"].get("gpu")), ("engine", lambda run: run["provenance"].get("engine")),
        ("card", lambda run: run["provenance"].get("card_gib")), ("model", lambda run: run["model"].get("name")))
    for what, value in differing:
        if value(a) != value(b):
            yield f"the {what} differs: {_in_words(value(a))} in {a['run']}, {_in_words(value(b))} in {b['run']}"
    if a["model"].get("config") != b["model"].get("config"):
        yield "the model's config.json differs"
    for cell in a["cells"]:
        if cell in b["cells"] and (changed := _changed(a["cells"][cell]["settings"], b["cells"][cell]["settings"])):
            yield f"cell {cell} has other settings: {changed}"
    for run, other in ((a, b), (b, a)):
        for kind, ours, theirs in (("cells", run["cells"].keys(), other["cells"].keys()),
                                   ("workloads", run["workloads"].keys(), other["workloads"].keys())):
            if only := [name for name in ours if name not in theirs]:
                yield f"{kind} only in {run['run']}: {', '.join(only)}"
        if not run["complete"]:
            yield f"run {run['run']} is not complete"


def slower(rows: Sequence[Row]) -> list[Row]:
    """The rows by which the second run is worse than the first."""
    return [row for row in rows if row["metric"] in DECIDING and row["verdict"] in (statistics.SLOWER, FAILED, analysis.WRONG)]


def require_not_slower(rows: Sequence[Row]) -> None:
    """Raise SlowerError, with the rows that say so, when the second run is slower than the first in a metric that decides."""
    if worse := slower(rows):
        raise SlowerError("\n".join(["slower than the reference, beyond noise:", *(f"  {_line(row)}" for row in worse)]),
                          fix="look at what differs between the runs; measure both as cells of one run where the host may have changed")


def _rows(a: Result, b: Result, cell: str, workload: str, *, among: int, noise: Mapping[str, statistics.Noise | None]) -> Iterator[Row]:
    if changed := _changed(a["workloads"][workload]["load"], b["workloads"][workload]["load"]):
        yield Comparison().row(cell, workload, MAIN_METRIC, verdict=NOT_COMPARABLE, why=f"the load differs: {changed}")
        return
    reference, ours = (run["cells"][cell]["metrics"].get(workload, {}) for run in (a, b))
    if reference and not ours and b["cells"][cell]["state"] == "failed":
        yield Comparison().row(cell, workload, MAIN_METRIC, verdict=FAILED, why=b["cells"][cell]["reason"])
        return
    wrong, before = (run["cells"][cell]["output_check"]["verdict"] == "different" for run in (b, a))
    for metric, higher in analysis.HIGHER_IS_BETTER.items():
        if metric in reference or metric in ours:
            (found, starts), (known, known_starts) = (_values(side.get(metric)) for side in (ours, reference))
            seen = statistics.compare(found, known, higher_is_better=higher, cell_starts=starts, control_starts=known_starts, among=among,
                                      pooled=noise[metric])
            yield seen.row(cell, workload, metric) if before or not wrong else seen.row(
                cell, workload, metric, verdict=analysis.WRONG, why="its answers at temperature 0 are not its control's")


def _noise(runs: Sequence[Result], workload: str, metric: str) -> statistics.Noise | None:
    """The noise of all cells of both runs under one load."""
    found = [one for run in runs for cell in run["cells"].values() if (one := cell["metrics"].get(workload, {}).get(metric))]
    return statistics.pooled([_values(one) for one in found])


def _values(metric: Metric | None) -> tuple[list[float], list[int]]:
    return (metric["values"], metric.get("starts", [])) if metric else ([], [])


def _changed(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {_in_words(a.get(key))} and {_in_words(b.get(key))}" for key in sorted({*a, *b}) if a.get(key) != b.get(key))


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {one}" for key, one in value.items())
    return "not set" if value is None or value == "" else str(value)


def _line(row: Row) -> str:
    place = f"{row['cell']}, {row['workload']}: "
    if row["ratio"] is None:
        return f"{place}{row['verdict']}: {row['why']}"
    said = f"{row['metric']} {row['ratio']:.3f} times the reference's (95 % interval {row['low']:.3f} to {row['high']:.3f})"
    return place + said + (f", {row['why']}" if row["why"] else "")
