"""The order of the rooms is held by the linter: what goes upwards, round, or into a room that nobody declared, fails `make lint`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundle import ROOT

LINTER = Path(sys.executable).parent / "lint-imports"


def lint(scripts: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([LINTER, "--no-cache", "--config", str(ROOT / ".importlinter")], capture_output=True, text=True, check=False, timeout=120,
                          cwd=scripts, env={"PYTHONPATH": str(scripts), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"})


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "scripts"


@pytest.mark.parametrize(("module", "line", "said"), [
    ("config/settings.py", "from bundle.fit import assessment", "bundle.config is not allowed to import bundle.fit"),
    ("service/address_planted.py", "from bundle.service import lifecycle", ""),
    ("machine/apt.py", "import docker", "bundle.machine.apt -> docker"),
    ("fit/kvcache.py", "import torch", "bundle.fit.kvcache -> torch"),
    ("attic/__init__.py", "", "attic"),
])
def test_the_linter_names_what_stands_in_the_wrong_place(module: str, line: str, said: str, scripts: Path) -> None:
    path = scripts / "bundle" / module
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    done = lint(scripts)
    assert (done.returncode != 0) == bool(said), done.stdout + done.stderr
    assert said in " ".join(done.stdout.split())


def test_the_linter_names_a_circle_inside_a_room(scripts: Path) -> None:
    for module, other in (("text", "files"), ("files", "text")):
        with (scripts / "bundle" / "base" / f"{module}.py").open("a") as file:
            file.write(f"\nfrom bundle.base import {other}\n")
    done = lint(scripts)
    assert done.returncode != 0
    assert "cycles" in done.stdout


@pytest.mark.parametrize("verb", ["check --profile cpu", "fit --profile cpu", "profiles", "doctor --profile cpu --json", "bench --list",
                                  "optimizations list"])
def test_what_needs_no_docker_needs_no_library_of_it_either(verb: str) -> None:
    """A rented GPU pod has vLLM and no Docker, and no package index from which docker-py could come."""
    name, *arguments = verb.split()
    script = str(ROOT / "scripts" / f"{name}.py")
    code = (f"import runpy, sys; sys.modules['docker'] = None; sys.path.insert(0, {str(ROOT / 'scripts')!r}); sys.argv = {[script, *arguments]!r}; "
            f"runpy.run_path({script!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.stdout or "no model to look at" in done.stderr, done.stderr  # where none was fetched yet
    assert "Traceback" not in done.stderr, done.stderr
