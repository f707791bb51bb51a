"""What a run adds to itself at its end: the settings that were faster each for itself, at once. Results are synthetic; nothing is started."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import ConfigurationError
from bundle.bench import campaign, runner
from bundle.bench.matrix import Cell, Suite, Workload
from bundle.bench.runner import Job
from bundle.config import settings
from support import benchruns
from support.benchruns import CONTROL, FASTER, NEUTRAL, SLOWER, SyntheticCell

SEQUENCES = SyntheticCell(name="seqs-128", axis="sequences", sets=("ENGINE_MAX_NUM_SEQS=128",), speed=1.15)
OPTIONS = campaign.Order(sets=["ENGINE_SEED=7"])


def job(folder: Path, *cells: SyntheticCell, sets: tuple[str, ...] = ()) -> Job:
    """A job whose run has been measured already, synthetically."""
    benchruns.write(folder, cells=(replace(CONTROL, sets=sets), *cells))
    control = Cell(name=CONTROL.name, axis=CONTROL.axis, about="", profile="throughput", sets=sets, outputs="same")
    suite = Suite(name="synthetic", about="", control=control, cells=(), workloads=(), rounds=2, repeats=3)
    return Job(run=folder.name, folder=folder, suite=suite, settings={CONTROL.name: settings.load("throughput", environ={})}, matrix_sha256="",
               side_by_side=1, card_gib=None)


def added(found: Job | None) -> Cell:
    assert found is not None
    (cell,) = found.suite.cells
    return cell


def test_what_was_faster_each_for_itself_becomes_one_more_cell(tmp_path: Path) -> None:
    found = campaign._together(job(tmp_path / "run", FASTER, SEQUENCES, SLOWER, NEUTRAL), OPTIONS, 0.0)
    cell = added(found)
    assert (cell.name, cell.profile, cell.outputs) == ("together", "throughput", "may differ")
    assert cell.sets == ("ENGINE_KV_CACHE_DTYPE=fp8", "ENGINE_MAX_NUM_SEQS=128")
    assert "kv-fp8, seqs-128" in cell.about
    assert found is not None
    assert found.part == 1
    values = {key: found.settings["together"].value(key) for key in ("ENGINE_KV_CACHE_DTYPE", "ENGINE_MAX_NUM_SEQS", "ENGINE_SEED")}
    assert values == {"ENGINE_KV_CACHE_DTYPE": "fp8", "ENGINE_MAX_NUM_SEQS": "128", "ENGINE_SEED": "7"}


def test_what_the_control_has_of_its_own_it_keeps(tmp_path: Path) -> None:
    own = ("ENGINE_MAX_MODEL_LEN=8K", "ENGINE_MAX_NUM_SEQS=64")
    cells = (replace(FASTER, sets=(*own, *FASTER.sets)), replace(SEQUENCES, sets=(own[0], *SEQUENCES.sets)))
    cell = added(campaign._together(job(tmp_path / "run", *cells, sets=own), OPTIONS, 0.0))
    assert cell.sets == ("ENGINE_MAX_MODEL_LEN=8K", "ENGINE_MAX_NUM_SEQS=128", "ENGINE_KV_CACHE_DTYPE=fp8")


def test_requests_that_no_cell_could_take_are_refused_before_anything_starts() -> None:
    load = Workload(name="books", about="", slo=None, load={"random-input-len": "15000", "random-output-len": "1500"})
    cells = {name: settings.load(name, environ={}) for name in ("throughput", "seed", "long-context")}
    assert campaign._too_long(load, cells) == (
        "  books: up to 16,500 tokens of prompt and answer, too many for throughput (ENGINE_MAX_MODEL_LEN=16K)")
    assert campaign._too_long(replace(load, load={"random-input-len": "15000", "random-output-len": "1000"}), cells) == ""


def test_a_run_of_requests_that_are_too_long_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(campaign, "REPORTS", tmp_path)
    monkeypatch.setattr(campaign, "_runtime", lambda *_: object())
    monkeypatch.setattr(campaign, "_too_long", lambda workload, _: f"  {workload.name}: too long")
    given = campaign.Order(suite="cpu", workloads=["cpu-rate"], run="r")
    with pytest.raises(ConfigurationError, match="cpu-rate: too long"):
        campaign.measure(given, analysed=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cells", [(FASTER, NEUTRAL), (SLOWER, NEUTRAL)], ids=["one", "none"])
def test_with_one_or_none_that_was_faster_nothing_is_added(cells: tuple[SyntheticCell, ...], tmp_path: Path) -> None:
    assert campaign._together(job(tmp_path / "run", *cells), OPTIONS, 0.0) is None


def test_a_run_that_goes_on_keeps_the_cell_that_it_had_added(tmp_path: Path) -> None:
    measured = job(tmp_path / "run", FASTER, SEQUENCES)
    path = measured.folder / "run.json"
    noted: dict[str, Any] = json.loads(path.read_text())
    before = noted["cells"]["seqs-128"] | {"axis": "together", "about": "as it was", "sets": ["ENGINE_MAX_NUM_SEQS=96"]}
    path.write_text(json.dumps(noted | {"cells": noted["cells"] | {"together": before}}))
    cell = added(campaign._together(measured, OPTIONS, 0.0))
    assert (cell.sets, cell.about) == (("ENGINE_MAX_NUM_SEQS=96",), "as it was")


def test_settings_that_exclude_each_other_are_not_measured_at_once_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = SyntheticCell(name="wrong", axis="other", sets=("ENGINE_MAX_NUM_SEQS=many",), speed=1.2)
    assert campaign._together(job(tmp_path / "run", FASTER, wrong), OPTIONS, 0.0) is None
    said = capsys.readouterr().err
    assert "not measured: kv-fp8, wrong at once" in said
    assert "'many' is not a whole number" in said


def test_the_run_asks_for_it_once_all_else_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(campaign, "REPORTS", tmp_path)
    monkeypatch.setattr(campaign, "_runtime", lambda *_: object())
    monkeypatch.setattr(campaign, "_together", lambda *_: asked.append(True))
    monkeypatch.setattr(runner, "run", lambda _job, _runtime, follow_up: follow_up())
    given = campaign.Order(suite="cpu", run="r")
    for analysed in (False, True):
        campaign.measure(given, analysed=analysed)
    assert asked == [True]
