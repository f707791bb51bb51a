"""One line of what `make doctor` says."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a deployment takes of its host: `found` is what is there, `fix` what to do (empty when ok)."""

    name: str
    state: State
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name=name, state="ok", found=found)


def warn(name: str, found: str, fix: str) -> Check:
    """It will work, less well or untested."""
    return Check(name=name, state="warn", found=found, fix=fix)


def fail(name: str, found: str, fix: str) -> Check:
    """It cannot work."""
    return Check(name=name, state="fail", found=found, fix=fix)
