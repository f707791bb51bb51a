"""A run beside the published ones: what was measured under the same load, on which GPU, with which engine and model."""

from collections.abc import Iterator
from pathlib import Path

from bundle import ROOT
from bundle.bench import rundata
from bundle.bench.rundata import GUARD_METRIC, MAIN_METRIC, NOT_MEASURED, RESULT, Result

PUBLISHED = ROOT / "reports/published"
COLUMNS = ("run", "GPU", "engine", "model", "cell", "output tokens/s", "/ its control", "P99 ITL, ms")


def beside(result: Result, folder: Path = PUBLISHED) -> dict[str, list[list[str]]]:
    """By workload: rows under COLUMNS of `result`, then of each published run that measured a load with the very same options, its cells of the same
    name. Without the workloads that no published run has. A file that is damaged, or of another form, is passed over."""
    others = [one for path in sorted(folder.glob(f"*/{RESULT}")) if (one := _read(path)) and one["run"] != result["run"]]
    found = {}
    for name, workload in result["workloads"].items():
        same = [one for one in others if name in one["workloads"] and one["workloads"][name]["load"] == workload["load"]]
        if same:
            found[name] = [row for one in (result, *same) for row in _rows(one, name, set(result["cells"]))]
    return found


def _read(path: Path) -> Result | None:
    try:
        return rundata.parsed(Result, path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _rows(result: Result, workload: str, cells: set[str]) -> Iterator[list[str]]:
    about, config = result["provenance"], result["model"].get("config", {})
    held = about.get("card_gib")
    gpu = f"{about.get('gpu') or 'a CPU'}{f', held to {held:g} GiB' if held else ''}"
    shape = f"{config.get('num_hidden_layers', '?')} layers of {config.get('hidden_size', '?')}"
    for name, cell in result["cells"].items():
        if name not in cells:
            continue
        metrics = cell["metrics"].get(workload, {})
        speed, pause = (f"{metrics[key]['median']:,.0f}" if key in metrics else NOT_MEASURED for key in (MAIN_METRIC, GUARD_METRIC))
        ratio = next((row["ratio"] for row in result["comparisons"]
                      if (row["cell"], row["workload"], row["metric"]) == (name, workload, MAIN_METRIC)), None)
        against = "control" if name == result["control"] else f"{ratio:.2f}" if ratio else NOT_MEASURED
        yield [result["run"], gpu, f"vLLM {about.get('engine', {}).get('vllm', '?')}", shape, name, speed, against, pause]
