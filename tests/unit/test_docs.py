"""What README and docs/ name has to be there: verbs, their options, files."""

import re
import subprocess
from pathlib import Path

import pytest

from bundle import ROOT
from support import verbs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^    .*|`[^`\n]+`", re.MULTILINE)
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))
VARIABLES = {"BASE_IMAGE", "BUILD_CA_BUNDLE", "WHEELHOUSE", "HOST_SETUP", *re.findall(r"\$\((?:if |foreach \w,)?\$?\(?([A-Z_]+)", MAKEFILE)}


def code(page: Path) -> list[str]:
    return [found.strip("` ") for found in CODE.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_call_is_a_verb_with_options_that_it_has(page: Path) -> None:
    for line in code(page):
        for target, rest in re.findall(r"\bmake ([a-z][a-z0-9-]*)((?: +[A-Z_]+=(?:\"[^\"]*\"|\S*))*)", line.partition("   #")[0]):
            assert target in TARGETS, f"{page.name}: make {target}"
            for name in re.findall(r"([A-Z_]+)=", re.sub(r'"[^"]*"', '""', rest)):
                assert name in VARIABLES, f"{page.name}: make {target} {name}="


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_is_there_and_has_the_options_that_are_named(page: Path) -> None:
    for line in code(page):
        for script, rest in re.findall(r"python3? (scripts/\w+\.py)([^#|]*)", line):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
            shown = verbs.call(Path(script).stem, "--help").stdout
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in shown, f"{page.name}: {script} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_link_is_there(page: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    for name in re.findall(r"`((?:scripts|docker|healthchecks|tests|env|docs)/[\w./-]+\.\w+)`", page.read_text()):
        assert name in tracked or name == "env/site.env", f"{page.name}: {name}"


def test_the_map_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "scripts" / "bundle").glob("*/__init__.py")}
    assert not {room for room in rooms if f"| `{room}` |" not in text}
