"""What <tab> offers behind `make` in this folder, in the shells that are here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bundle import ROOT


def offered(*words: str, folder: Path = ROOT) -> list[str]:
    """As bash calls it; it takes NAME=val apart at the =."""
    listed = " ".join(f"'{word}'" for word in ("make", *words))
    done = subprocess.run(["bash", "--norc", "-c", f". {ROOT}/scripts/completion.sh; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _vllm_bundle; "
                           "printf '%s\\n' \"${COMPREPLY[@]}\""], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("words", "expected"), [
    (("ro",), {"roll", "rollback"}), (("bench-",), {"bench-apply", "bench-compare"}), (("to",), {"top"}), (("up", "PROF"), {"PROFILE="}),
    (("up", "PROFILE", "=", "la"), {"latency"}), (("up", "MONITORING", "="), {"on", "off"}), (("top", "ONCE", "="), {"1"}),
    (("bench", "SUITE", "=", "qui"), {"quick"}), (("check", "GPU", "=", "rtx-509"), {"rtx-5090"}), (("nonsense",), set())])
def test_verbs_variables_and_values_are_offered(words: tuple[str, ...], expected: set[str]) -> None:
    assert set(offered(*words)) == expected


def test_every_profile_and_every_verb_is_offered() -> None:
    assert set(offered("up", "PROFILE", "=")) == {path.stem for path in (ROOT / "env").glob("*.env")} - {"base", "site"}
    assert {"up", "down", "logs", "report", "handoff", "lock"} <= set(offered(""))


def test_another_folders_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:  ## other\n")
    assert offered("", folder=tmp_path) == []


@pytest.mark.parametrize("shell", [each for each in ("bash", "zsh") if shutil.which(each)])
def test_the_shells_that_are_here_take_it(shell: str) -> None:
    done = subprocess.run([shell, "-f" if shell == "zsh" else "--norc", "-c", f". {ROOT}/scripts/completion.sh && echo taken"],
                          capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == "taken\n", done.stderr
