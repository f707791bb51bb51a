"""A process and all that it started, as /proc shows them: to stop, continue or end them together, whatever group or session they chose."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
SETTLED = 2
"""So many looks in a row that find nothing new say that nobody who is still running was missed."""


@dataclass(frozen=True)
class _Process:
    """One that runs; a zombie does not. `born` tells it from a later one with the same number."""

    pid: int
    born: str
    parent: int
    session: int


class Tree:
    """`root`, its descendants, and what belongs to their sessions; once seen, a process stays in it when its parent has gone."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._sessions: set[int] = set()
        self._seen = {(one.pid, one.born) for one in _running() if one.pid == root}

    def running(self) -> list[int]:
        """The numbers of those that run now, `root` among them."""
        running = list(_running())
        found = {one.pid for one in running if one.session in self._sessions or (one.pid, one.born) in self._seen}
        while more := {one.pid for one in running if one.parent in found} - found:
            found |= more
        self._sessions |= {one.session for one in running if one.pid in found and one.session in found}
        self._seen |= {(one.pid, one.born) for one in running if one.pid in found}
        return sorted(found)

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to all below `root`, those too that one of them starts meanwhile."""
        sent: set[int] = set()
        settled = 0
        while settled < SETTLED:
            new = set(self.running()) - sent - {self.root}
            for pid in new:
                _send(pid, number)
            sent |= new
            settled = 0 if new else settled + 1

    def kill(self, limit_s: float) -> list[int]:
        """Kill all of it, `root` too; the numbers of those that still run after `limit_s` seconds."""
        end = time.monotonic() + limit_s
        while (left := self.running()) and time.monotonic() < end:
            for pid in left:
                _send(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        return left


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _running() -> Iterator[_Process]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # After the name, which may hold anything: state parent group session … (man 5 proc)
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if fields[0] not in "ZX":
            yield _Process(pid=int(folder.name), born=fields[19], parent=int(fields[1]), session=int(fields[3]))
