"""Run the calling script inside the bundle's own `.venv`, made and filled on first use. Standard library only.

`import bundle.venv` is the first import of every script: operators call `python scripts/smoke.py` with the system's
Python, which has none of the packages. The import returns at once inside `.venv`, and else replaces the process.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bundle import ROOT
from bundle.errors import PrerequisiteError

VENV = ROOT / ".venv"
MINIMUM = (3, 11)


def python() -> Path:
    """The interpreter inside `.venv`."""
    return VENV / "bin" / "python"


def ensure(lock: Path) -> Path:
    """Make `.venv` hold exactly what `lock` names; return its interpreter.

    Raises PrerequisiteError when Python is too old, lacks venv, or a package cannot be fetched.
    """
    stamp = VENV / f".{lock.name}.sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest and python().exists():
        return python()
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        raise PrerequisiteError(f"{sys.executable} is Python {found}; the scripts need {MINIMUM[0]}.{MINIMUM[1]} or newer",
                                fix="install a newer python3, or run: make PYTHON=/path/to/python3.12 ...")
    started = time.monotonic()
    print(f"· Python packages from {lock.name} into .venv", file=sys.stderr, flush=True)
    if not (python().exists() and (VENV / "bin" / "pip").exists()):
        _make()
    _run([str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(lock)],
         fix="is the package index reachable? behind a proxy set PIP_INDEX_URL, PIP_CERT and HTTPS_PROXY as for any pip")
    stamp.write_text(digest)
    print(f"✓ Python packages {time.monotonic() - started:.1f}s", file=sys.stderr, flush=True)
    return python()


def _make() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    # Debian splits ensurepip out of python3; the system package is named in the fix and installed by `make up` as root.
    _run([sys.executable, "-m", "venv", str(VENV)],
         fix="on Debian or Ubuntu: apt-get install python3-venv")


def _run(argv: list[str], *, fix: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PrerequisiteError(f"{' '.join(argv[:5])} … failed ({done.returncode}):\n{tail}", fix=fix)


def _reexecute() -> None:
    script = Path(sys.argv[0])
    if Path(sys.prefix) == VENV or script.resolve().parent != ROOT / "scripts":
        return  # already inside, or imported by something that is not one of our scripts (tests, tools)
    try:
        inside = ensure(ROOT / "requirements.lock")
    except PrerequisiteError as error:
        print(f"error: {error.message}\n  fix: {error.fix}", file=sys.stderr)
        sys.exit(error.exit_code)
    os.execv(inside, [str(inside), *sys.argv])  # noqa: S606  (our own interpreter, our own arguments)


_reexecute()
