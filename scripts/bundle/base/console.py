"""What people see: steps and their times on stderr, results on stdout. Plain where there is no terminal or NO_COLOR is set."""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

_COLOURS = {"ok": "green", "pass": "green", "healthy": "green", "warn": "yellow", "starting": "yellow", "fail": "red", "error": "red",
            "unhealthy": "red", "inert": "yellow", "harmful": "red", "removed": "red", "effective": "green"}


# Proxies and package indexes may have passwords in their addresses, and other programs' messages quote them. No verb passes one on.
_PASSWORD = re.compile(r"(?<=://)[^/\s\"']+(?=@)")


def redacted(text: str) -> str:
    """`text` with the user and password of every URL in it blanked."""
    return _PASSWORD.sub("[REDACTED]", text)


def _plain(text: str) -> str:
    return escape(redacted(text))


def result(text: str = "") -> None:
    """A line of the answer, on stdout."""
    _out.print(_plain(text))


def note(text: str) -> None:
    """A line of progress, on stderr."""
    _err.print(_plain(text))


def warn(text: str) -> None:
    """Something the operator should know, on stderr."""
    _err.print(f"[yellow]warning:[/] {_plain(text)}")


def error(message: str, fix: str = "") -> None:
    """A failure and what to do about it, on stderr."""
    _err.print(f"[red]error:[/] {_plain(message)}")
    if fix:
        _err.print(f"  fix: {_plain(fix)}")


@contextmanager
def step(name: str) -> Iterator[None]:
    """Name a step before it runs, and say how it ended and how long it took."""
    _err.print(f"· {_plain(name)}")
    started = time.monotonic()
    try:
        yield
    except BaseException:
        _err.print(f"[red]✗[/] {_plain(name)} {time.monotonic() - started:.1f}s")
        raise
    _err.print(f"[green]✓[/] {_plain(name)} {time.monotonic() - started:.1f}s")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; cells that are states (ok, warn, fail, healthy, …) are coloured."""
    # rich shortens cells to a guessed width where there is no terminal: a pipe gets every character.
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        cells = [str(cell) for cell in row]
        shown.add_row(*(f"[{_COLOURS[c]}]{c}[/]" if c in _COLOURS else _plain(c) for c in cells))
    if _out.is_terminal:
        _out.print(shown)
    else:
        Console(highlight=False, width=10_000).print(shown)


def emit_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """The answer for machines, on stdout."""
    sys.stdout.write(redacted(json.dumps(value, indent=2, default=str)) + "\n")
