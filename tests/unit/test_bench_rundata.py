"""What a run keeps is held against its types where a file is read: what was published must load, and damage is named by its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.bench import rundata, runner
from bundle.bench.rundata import LegData, Recommended, Run

PUBLISHED = ROOT / "reports" / "published" / "2026-11-24-h200"


def test_what_was_published_loads() -> None:
    run, result = runner.read(Run, PUBLISHED / "run.json"), runner.read(Recommended, PUBLISHED / "result.json")
    assert set(result["cells"]) == set(run["cells"]) >= {leg["cell"] for leg in runner.read_legs(PUBLISHED)}


@pytest.mark.parametrize(("change", "said"), [
    ({"samples": {}}, "samples is no list: {}"),
    ({"start": None}, "start is no dict: None"),
    ({"visits": "1"}, "visits is no int: 1"),
    ({"visits": True}, "visits is no int: True"),
    ({"outputs": ["a", 1]}, r"outputs\[1\] is no str: 1"),
    ({"memory": {"t_s": []}}, "memory has no gib"),
    ({"memory": {"t_s": ["x"], "gib": []}}, r"memory.t_s\[0\] is no float: x"),
    ({"settings": {"argv": [], "environment": {"A": 1}, "sha256": ""}}, "settings.environment.A is no str: 1"),
])
def test_a_damaged_file_is_refused_with_the_place_of_the_damage(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    whole = json.loads((PUBLISHED / "legs" / "001-stock.json").read_text())
    path = tmp_path / "leg.json"
    path.write_text(json.dumps(whole | change))
    with pytest.raises(ConfigurationError, match=rf"leg\.json: cannot be read \({said}\)"):
        runner.read(LegData, path)


def test_more_than_the_types_know_is_no_error_and_whole_numbers_are_numbers() -> None:
    assert rundata.parsed(rundata.Memory, '{"t_s": [1, 2.5], "gib": [], "new": 1}')["t_s"] == [1, 2.5]
