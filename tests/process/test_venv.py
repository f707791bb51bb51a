"""`import bundle.venv` puts a script into the bundle's own .venv, makes it where it is missing, and leaves everything else alone."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import ROOT, venv
from bundle.base import files

SCRIPT = "import sys\nimport bundle.venv\nprint(sys.prefix, *sys.argv[1:])\n"
# Not the .venv that the tests themselves run in.
PYTHON = str(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))


def make_repo(folder: Path) -> Path:
    """A copy of what venv.py needs, one script, and two locks without packages: a .venv without the index."""
    (folder / "scripts/bundle").mkdir(parents=True)
    for name in ("__init__", "venv", "base/__init__", "base/errors", "base/files", "machine/__init__", "machine/apt"):
        (folder / f"scripts/bundle/{name}").parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / f"scripts/bundle/{name}.py", folder / f"scripts/bundle/{name}.py")
    (folder / "scripts/hello.py").write_text(SCRIPT)
    (folder / "requirements.lock").write_text("# nothing\n")
    (folder / "requirements-dev.lock").write_text("# nothing either\n")
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "repo")


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A repo whose .venv is made by two scripts that start at the same moment; what they said lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repo(Path(folder).resolve() / "repo")
        both = [subprocess.Popen([PYTHON, "scripts/hello.py", str(number)], cwd=repo, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                for number in (1, 2)]
        said = [process.communicate(timeout=300) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        (repo.parent / "said").write_text("".join(error for _, error in said))
        assert sorted(out for out, _ in said) == [f"{repo}/.venv 1\n", f"{repo}/.venv 2\n"]
        yield repo


def fake_venv(repo: Path, *, pip: str = "exit 0") -> Path:
    """A .venv whose interpreter only notes what it is asked; it looks whole."""
    folder = repo / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"version = 3.11.2\ncommand = /usr/bin/python3 -m venv --clear {folder}\n")
    (folder / "bin/python").write_text(f"#!/bin/sh\necho \"$*\" >>{repo}/calls\n{pip}\n")
    (folder / "bin/python").chmod(0o755)
    (folder / "bin/pip").write_text("")
    return folder


def calls(repo: Path) -> list[str]:
    path = repo / "calls"
    return path.read_text().splitlines() if path.exists() else []


def run(repo: Path, *argv: str, python: str = PYTHON, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([python, *argv], cwd=repo, text=True, capture_output=True, check=False, timeout=300, env={**os.environ, **environ})


def sound(repo: Path) -> bool:
    done = run(repo, "-c", "import sys; sys.path.insert(0, 'scripts'); from bundle import venv; print(venv._sound())")
    assert done.returncode == 0, done.stderr
    return done.stdout == "True\n"


def test_two_scripts_that_start_at_once_make_it_once(made: Path) -> None:
    said = (made.parent / "said").read_text()
    assert said.count("Python packages from requirements.lock into .venv") == 1
    assert said.count("waiting for another script that fills .venv") <= 1


def test_once_made_a_script_starts_inside_without_a_word(made: Path) -> None:
    done = run(made, "scripts/hello.py", "--flag", "two words")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{made}/.venv --flag two words\n", "")


def test_a_script_works_through_a_link_to_the_bundle(made: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(made)
    assert run(tmp_path, "link/scripts/hello.py").stdout == f"{made}/.venv\n"
    inside = run(tmp_path, "link/scripts/hello.py", python=str(link / ".venv/bin/python"))
    assert inside.stdout == f"{link}/.venv\n", "inside by another name is inside: it must not start itself again"


def test_importing_it_from_anything_but_a_script_changes_nothing(repo: Path) -> None:
    done = run(repo, "-c", "import sys; sys.path.insert(0, 'scripts'); import bundle.venv; print(sys.prefix)")
    assert done.stdout == f"{sys.base_prefix}\n"
    in_scripts = run(repo / "scripts", "-c", "import sys; import bundle.venv; print(sys.prefix)")
    assert in_scripts.stdout == f"{sys.base_prefix}\n"
    assert not (repo / ".venv").exists()


def test_an_interpreter_that_does_not_end_up_inside_is_not_started_for_ever(repo: Path) -> None:
    folder = fake_venv(repo)
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    (folder / ".requirements.lock.sha256").write_text(files.digest(repo / "requirements.lock"))
    done = run(repo, "scripts/hello.py")
    assert done.returncode == 3
    assert "does not run inside .venv" in done.stderr


def test_the_development_packages_hold_the_runtimes(repo: Path) -> None:
    (repo / "requirements.lock").write_text("rich==1.0 \\\n    --hash=sha256:00\n")
    (repo / "requirements-dev.lock").write_text("rich==1.0 \\\n    --hash=sha256:00\nruff==2.0 \\\n    --hash=sha256:00\n")
    fake_venv(repo)
    for _ in range(2):
        for lock in ("requirements-dev.lock", "requirements.lock"):
            assert run(repo, "scripts/bundle/venv.py", lock).returncode == 0
    assert len(calls(repo)) == 1, "pip ran once, for the first of the four"
    assert calls(repo)[0].endswith("--require-hashes -r " + str(repo / "requirements-dev.lock"))


def test_the_runtime_packages_do_not_hold_the_development_packages(repo: Path) -> None:
    (repo / "requirements-dev.lock").write_text("ruff==2.0 \\\n    --hash=sha256:00\n")
    fake_venv(repo)
    run(repo, "scripts/bundle/venv.py", "requirements.lock")
    run(repo, "scripts/bundle/venv.py", "requirements-dev.lock")
    assert [call.rpartition("/")[2] for call in calls(repo)] == ["requirements.lock", "requirements-dev.lock"]


def test_the_repositorys_own_locks_agree() -> None:
    runtime, development = venv._pins(ROOT / "requirements.lock"), venv._pins(ROOT / "requirements-dev.lock")
    assert len(runtime) > 5
    assert runtime <= development


def test_a_changed_lock_is_installed_again(repo: Path) -> None:
    fake_venv(repo)
    run(repo, "scripts/bundle/venv.py", "requirements.lock")
    (repo / "requirements.lock").write_text("# changed\n")
    run(repo, "scripts/bundle/venv.py", "requirements.lock")
    assert len(calls(repo)) == 2


def test_a_failed_installation_is_told_and_tried_again(repo: Path) -> None:
    folder = fake_venv(repo, pip="echo 'ERROR: no route to the index' >&2; exit 1")
    (folder / ".requirements-dev.lock.sha256").write_text(files.digest(repo / "requirements-dev.lock"))
    done = run(repo, "scripts/bundle/venv.py", "requirements.lock")
    assert done.returncode == 3
    assert "ERROR: no route to the index" in done.stderr
    assert "is the package index reachable?" in done.stderr
    run(repo, "scripts/bundle/venv.py", "requirements-dev.lock")
    assert len(calls(repo)) == 2, "what the failed one left is not trusted for any lock"


def test_a_whole_one_is_sound(repo: Path) -> None:
    fake_venv(repo)
    assert sound(repo)


@pytest.mark.parametrize("part", ["pyvenv.cfg", "bin/python", "bin/pip"])
def test_a_half_made_one_is_not_sound(repo: Path, part: str) -> None:
    (fake_venv(repo) / part).unlink()
    assert not sound(repo)


def test_a_copied_one_is_not_sound(repo: Path, tmp_path: Path) -> None:
    fake_venv(repo)
    shutil.copytree(repo, tmp_path / "copy")
    assert not sound(tmp_path / "copy")


def test_one_whose_interpreter_was_replaced_is_not_sound(repo: Path) -> None:
    folder = fake_venv(repo)
    (folder / "lib/python3.11").mkdir(parents=True)
    (folder / "bin/python").rename(folder / "bin/python3.11")
    (folder / "bin/python").symlink_to("python3.11")
    assert sound(repo)
    (folder / "bin/python3.11").rename(folder / "bin/python3.13")
    (folder / "bin/python").unlink()
    (folder / "bin/python").symlink_to("python3.13")
    assert not sound(repo)


def test_a_python_that_is_too_old_is_named(repo: Path) -> None:
    script = "import sys; sys.path.insert(0, 'scripts'); sys.argv = ['scripts/hello.py']; sys.version_info = (3, 9, 2); import bundle.venv"
    done = run(repo, "-c", script)
    assert done.returncode == 3
    assert "is Python 3.9.2; the scripts need 3.11 or newer" in done.stderr


def test_a_folder_that_cannot_be_written_is_named(repo: Path) -> None:
    (repo / ".state").write_text("in the way")
    done = run(repo, "scripts/hello.py")
    assert done.returncode == 3
    assert f"error: the Python packages cannot be put into {repo}/.venv" in done.stderr


def test_without_a_lock_it_shows_how_it_is_called(repo: Path) -> None:
    done = run(repo, "scripts/bundle/venv.py")
    assert done.returncode == 2
    assert "requirements-dev.lock" in done.stderr
