"""Run other programs: a list of arguments, a time limit, and a failure that shows the command and the end of its output."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.base.errors import BundleError, PrerequisiteError

TAIL_LINES = 50


def run(argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None, cwd: Path | None = None,
        stdin: str | None = None, failure: type[BundleError] | None = BundleError, fix: str = "") -> subprocess.CompletedProcess[str]:
    """Run `argv` and return what it printed; `failure=None` returns a non-zero exit instead of raising.

    Raises PrerequisiteError when the program is not there, `failure` when it exits non-zero or outlasts `timeout_s` seconds.
    """
    try:
        done = subprocess.run(list(argv), capture_output=True, text=True, check=False, timeout=timeout_s, env=env, cwd=cwd, input=stdin)
    except FileNotFoundError as error:
        raise PrerequisiteError(f"{argv[0]}: no such program", fix=fix or f"install {argv[0]}; `make doctor` says how") from error
    except subprocess.TimeoutExpired as error:
        raise (failure or BundleError)(f"{shlex.join(argv)}: no end after {timeout_s:g} s", fix=fix) from error
    if done.returncode != 0 and failure is not None:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-TAIL_LINES:])
        raise failure(f"{shlex.join(argv)} exited {done.returncode}:\n{tail}", fix=fix)
    return done
