"""What an operator sees of a running deployment with the real engine."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bundle import ROOT
from support.clients import keep_asking
from support.project import Project, wait_until


@contextmanager
def on_a_terminal(columns: int, *command: str) -> Iterator["Terminal"]:
    """A program on a terminal of its own, so wide."""
    leader, follower = pty.openpty()
    terminal = Terminal(leader)
    terminal.resize(columns)
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, start_new_session=True, cwd=ROOT,
                             env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "TERM": "xterm-256color"})
    os.close(follower)
    terminal.child = child
    try:
        yield terminal
    finally:
        child.kill()
        child.wait()
        os.close(leader)


class Terminal:
    """The other side of it."""

    child: "subprocess.Popen[bytes]"

    def __init__(self, leader: int) -> None:
        self.leader, self.seen = leader, b""
        os.set_blocking(leader, False)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def shows(self, text: str) -> bool:
        """Whether `text` has come since the last call that was answered yes."""
        with suppress(OSError):  # nothing new, or its last process has ended
            self.seen += os.read(self.leader, 65536)
        found = text.encode() in self.seen
        if found:
            self.seen = b""
        return found


def test_top_shows_the_load_that_runs(served: Project) -> None:
    with keep_asking(served.url, 3, tokens=24) as tally:
        wait_until(lambda: tally.outcomes["right"] >= 3, deadline_s=120, what="the clients are answered")
        done = served.script("top", "--json")
        picture = served.script("top", "--once", env={**os.environ, "COLUMNS": "80"})
    told = json.loads(done.stdout)
    (engine,) = (row for row in told["services"] if row["service"] == "engine")
    assert engine["tokens_out_per_s"] > 0
    assert engine["at_gateway"] == "UP"
    (model,) = told["models"]
    assert 0 < model["itl"]["p50"] <= model["itl"]["p99"]
    assert picture.returncode == 0
    assert "TTFT" in picture.stdout
    assert max(map(len, picture.stdout.splitlines())) <= 80


def test_the_live_view_follows_its_terminal_and_ends_with_ctrl_c(served: Project) -> None:
    with on_a_terminal(80, sys.executable, str(ROOT / "scripts" / "top.py"), "--project", served.name) as terminal:
        wait_until(lambda: terminal.shows("KV cache"), deadline_s=60, what="the first picture")
        terminal.resize(200)
        wait_until(lambda: terminal.shows("restarts"), deadline_s=60, what="the columns that only a wide one has")
        terminal.child.send_signal(signal.SIGINT)
        wait_until(lambda: terminal.shows("\x1b[?25h") or terminal.child.poll() is not None, deadline_s=20, what="the cursor is back")
        assert terminal.child.wait(timeout=20) == 0


def test_top_of_nothing_says_so(project: Project) -> None:
    done = project.script("top")
    assert done.returncode == 3
    assert "nothing is up" in done.stderr
