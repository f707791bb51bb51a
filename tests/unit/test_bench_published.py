"""A run beside those under reports/published."""

import json
from pathlib import Path
from typing import Any

from bundle.bench import analysis, published, report
from bundle.bench.rundata import Result
from support import benchruns

LOAD = {"dataset-name": "random", "random-input-len": "512", "random-output-len": "256", "num-prompts": "384", "max-concurrency": "384"}


def run(folder: Path, *, load: dict[str, str], speed: float = 1.0) -> Result:
    workloads: dict[str, dict[str, Any]] = {"saturate": {"about": "synthetic", "load": load, "slo": None}}
    return analysis.analyse(benchruns.write(folder, cells=(benchruns.CONTROL, benchruns.SLOWER), workloads=workloads, speed=speed))


def test_a_published_run_under_the_same_load_stands_beside_this_one(tmp_path: Path) -> None:
    run(tmp_path / "published/there", load=LOAD, speed=2.0)
    mine = run(tmp_path / "mine", load=LOAD)
    (tmp_path / "published/broken").mkdir()
    (tmp_path / "published/broken/result.json").write_text("{")
    rows = published.beside(mine, tmp_path / "published")["saturate"]
    assert [(row[0], row[4]) for row in rows] == [("mine", "control"), ("mine", "batched-2k"), ("there", "control"), ("there", "batched-2k")]
    speeds = [float(row[5].replace(",", "")) for row in rows]
    assert 1.8 < speeds[2] / speeds[0] < 2.2
    assert [row[6] for row in rows][::2] == ["control", "control"]
    assert all(0.7 < float(row[6]) < 0.9 for row in rows[1::2])


def test_another_load_of_the_same_name_is_not_compared(tmp_path: Path) -> None:
    run(tmp_path / "published/there", load=LOAD | {"max-concurrency": "64"})
    assert published.beside(run(tmp_path / "mine", load=LOAD), tmp_path / "published") == {}


def test_the_quick_suites_load_is_one_that_was_published(tmp_path: Path) -> None:
    mine = run(tmp_path / "mine", load=LOAD)
    report.write(tmp_path / "mine", mine)
    text = (tmp_path / "mine/report.md").read_text()
    assert "This host beside the published runs" in text
    assert "2026-11-24-h200" not in {row[0] for row in published.beside(mine)["saturate"]}, "no cell of that name was published"
    mine["cells"]["throughput"] = mine["cells"].pop("control")
    assert {row[0] for row in published.beside(mine)["saturate"]} == {"mine", "2026-11-24-h200"}
    assert json.loads((published.PUBLISHED / "2026-11-24-h200/result.json").read_text())["workloads"]["saturate"]["load"] == LOAD
