"""The verbs, called in this process as the shell calls them."""

import contextlib
import importlib
import io
import os
from collections.abc import Mapping
from subprocess import CompletedProcess
from types import ModuleType
from unittest import mock

from bundle import cli


def script(name: str) -> ModuleType:
    """scripts/`name`.py as a module."""
    return importlib.import_module(name)


def call(name: str, *argv: str, env: Mapping[str, str] | None = None) -> "CompletedProcess[str]":
    """What `python scripts/name.py argv` prints and exits with, in the environment `env` (default: this process's)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ, env or {}, clear=env is not None):
        try:
            code = cli.run(script(name).main, argv)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return CompletedProcess(args=[name, *argv], returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
