"""Run the calling script inside the bundle's own `.venv`, made and filled on first use. Standard library only.

`import bundle.venv` is the first import of every script: operators call `python scripts/smoke.py` with the system's
Python, which has none of the packages. The import returns at once inside `.venv`, and else replaces the process. Where no package
can be fetched but this Python has them (a rented GPU pod without a network), the script goes on in this Python.

    python3 scripts/bundle/venv.py requirements-dev.lock      what tests and linters need, into the same .venv
"""

from __future__ import annotations  # a Python that is too old has to get as far as the message about it

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bundle import ROOT, STATE
from bundle.base import files
from bundle.base.errors import INTERRUPTED, PrerequisiteError
from bundle.machine import apt

VENV = ROOT / ".venv"
RUNTIME_LOCK = ROOT / "requirements.lock"
BENCH_LOCK = ROOT / "requirements-bench.lock"
COMPOSE_ONLY = {"docker"}
"""Requirements that a host without Docker can do without."""
MINIMUM = (3, 11)

_ENTERED = "VLLM_BUNDLE_VENV_ENTERED"


def python() -> Path:
    """The interpreter inside `.venv`."""
    return VENV / "bin" / "python"


def ensure(lock: Path) -> Path:
    """Make `.venv` hold what `lock` names; return its interpreter. Two scripts that start at once do it one after the other.

    Raises PrerequisiteError when Python is too old, lacks venv, or a package cannot be fetched.
    """
    if _holds(lock):
        return python()
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        raise PrerequisiteError(f"{sys.executable} is Python {found}; the scripts need {MINIMUM[0]}.{MINIMUM[1]} or newer",
                                fix="install a newer python3, or run: make PYTHON=/path/to/python3.12 ...")
    import fcntl  # here, so that Windows gets as far as the import of `bundle`

    try:
        STATE.mkdir(exist_ok=True)
        with (STATE / "venv.lock").open("w") as alone:
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("· waiting for another script that fills .venv", file=sys.stderr, flush=True)
                fcntl.flock(alone, fcntl.LOCK_EX)
            if not _holds(lock):
                _fill(lock)
    except OSError as error:
        raise PrerequisiteError(f"the Python packages cannot be put into {VENV}: {error}",
                                fix=f"run it as the owner of {ROOT}, on a disk with free space") from error
    return python()


def _fill(lock: Path) -> None:
    started = time.monotonic()
    print(f"· Python packages from {lock.name} into .venv", file=sys.stderr, flush=True)
    if not _sound():
        _make()
    for stamp in VENV.glob(".*.lock.sha256"):
        stamp.unlink()  # from here on .venv holds neither what it held nor what it will
    # -I: a PYTHONPATH or a file `pip.py` in the current folder is not for this interpreter.
    _run([str(python()), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(lock)],
         fix="is the package index reachable? behind a proxy set PIP_INDEX_URL, PIP_CERT and HTTPS_PROXY as for any pip")
    for held in {lock, *ROOT.glob("requirements*.lock")}:
        if _pins(held) <= _pins(lock):
            _stamp(held).write_text(files.digest(held))
    print(f"✓ Python packages {time.monotonic() - started:.1f}s", file=sys.stderr, flush=True)


def _stamp(lock: Path) -> Path:
    return VENV / f".{lock.name}.sha256"


def _holds(lock: Path) -> bool:
    stamp = _stamp(lock)
    return stamp.is_file() and stamp.read_text() == files.digest(lock) and _sound()


def _pins(lock: Path) -> set[str]:
    return set(re.findall(r"^[\w.-]+==[^\s;\\]+", lock.read_text(), re.MULTILINE))


def _sound() -> bool:
    """Whether `.venv` is whole, stands where it was made, and its interpreter is still the one that it was made with."""
    try:
        made = (VENV / "pyvenv.cfg").read_text()
    except OSError:
        return False
    # Programs in bin/ start with the path that .venv was made at: in a copied folder they would run the original's.
    in_place = re.search(rf"^command = .* {re.escape(str(VENV))}$", made, re.MULTILINE)
    # A system update replaces /usr/bin/python3 under the .venv; its packages lie in lib/python3.11, unseen by Python 3.13.
    interpreter = python().resolve().name
    packages = (VENV / "lib" / interpreter).is_dir() or not re.fullmatch(r"python3\.\d+", interpreter)
    return bool(in_place) and packages and python().exists() and (VENV / "bin" / "pip").exists()


def _make() -> None:
    if importlib.util.find_spec("ensurepip") is None:
        _install_venv_package()
    # --clear: what stands there is half made, or was made elsewhere.
    base = getattr(sys, "_base_executable", sys.executable)
    _run([base, "-I", "-m", "venv", "--clear", str(VENV)], fix=f"is {VENV.parent} writable, and its disk not full?")


def _install_venv_package() -> None:
    """Debian and Ubuntu split ensurepip out of python3; as root it is installed, unless HOST_SETUP=never."""
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    command = " ".join(apt.install(package))
    if not (sys.base_prefix == "/usr" and Path("/usr/bin/apt-get").exists()):
        raise PrerequisiteError(f"{sys.executable} has no ensurepip, so it cannot make a .venv", fix="install Python with its venv module")
    if os.geteuid() != 0:
        raise PrerequisiteError(f"{package} is not installed, and installing it takes root", fix=f"sudo apt-get update && sudo {command}")
    if _setup_forbidden():
        raise PrerequisiteError(f"{package} is not installed, and HOST_SETUP=never forbids to install it", fix=f"apt-get update && {command}")
    print(f"· {package} from the distribution ({command})", file=sys.stderr, flush=True)
    environ = {**os.environ, **apt.ENVIRONMENT}
    subprocess.run(apt.UPDATE, capture_output=True, check=False, env=environ)  # where it fails, the lists at hand may do
    _run(apt.install(package), fix=f"apt-get update && {command}", env=environ)


def _setup_forbidden() -> bool:
    """Whether the environment, the command line or env/site.env says never; which of them wins is for the parser, not yet there."""
    site = ROOT / "env" / "site.env"
    lines = site.read_text().splitlines() if site.is_file() else []
    return any(re.match(r"(--set=)?HOST_SETUP='?never", text) for text in (f"HOST_SETUP={os.environ.get('HOST_SETUP')}", *sys.argv, *lines))


def _run(argv: list[str], *, fix: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, env=env)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PrerequisiteError(f"{' '.join(argv[:5])} … failed ({done.returncode}):\n{tail}", fix=fix)


def also(lock: Path) -> list[str]:
    """Make the packages of `lock` importable too, for the verb that needs more than the others.

    Inside `.venv` they are installed (PrerequisiteError when that fails); in another Python the answer is what it lacks of them.
    """
    if Path(sys.prefix).resolve() == VENV.resolve():
        ensure(lock)
        return []
    return _missing(lock)


def _missing(lock: Path) -> list[str]:
    """What the requirements behind `lock` name and this Python does not have, at whatever version."""
    named = re.findall(r"^([A-Za-z][\w.-]*)", lock.with_suffix(".in").read_text(), re.MULTILINE)
    return [name for name in named if name not in COMPOSE_ONLY and not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _ensured(lock: Path) -> Path | None:
    """As `ensure`; None where `.venv` cannot be filled and this Python does as it is. Any other failure ends the process, with the
    message and exit code that `cli.run` would give it."""
    try:
        return ensure(lock)
    except PrerequisiteError as error:
        if lock == RUNTIME_LOCK and lock.with_suffix(".in").is_file() and not _missing(lock):
            why = error.message.splitlines()[-1].strip()
            print(f"· no .venv ({why}): going on with the packages of {sys.executable}", file=sys.stderr, flush=True)
            return None
        print(f"error: {error.message}\n  fix: {error.fix}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _enter() -> None:
    """Replace the process by the same script inside `.venv`, unless it is inside already or is not one of our scripts."""
    script = Path(sys.argv[0])
    if Path(sys.prefix).resolve() == VENV.resolve():
        os.environ.pop(_ENTERED, None)
        return
    if not (script.is_file() and script.resolve().parent == ROOT / "scripts"):
        return  # a test or a tool has imported a module
    inside = _ensured(RUNTIME_LOCK)
    if inside is None:
        return
    if os.environ.get(_ENTERED):
        print(f"error: {inside} does not run inside .venv: its prefix is {sys.prefix}\n  fix: unset PYTHONHOME, or delete {VENV}", file=sys.stderr)
        sys.exit(PrerequisiteError.exit_code)
    os.environ[_ENTERED] = "1"
    os.execv(inside, [str(inside), *sys.argv])  # noqa: S606  (our own interpreter, our own arguments)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    _ensured(Path(sys.argv[1]).resolve())
else:
    _enter()
