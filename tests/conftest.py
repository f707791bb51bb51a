"""Fixtures that every tier with Docker shares. A test that needs Docker fails without it; nothing here skips."""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.models import first
from support import leftovers
from support.project import Project

LEFTOVERS_S = 20.0
"""So long may a process that was told to end take over it."""

# What a shell runs in the background ignores SIGINT, and so would every script that a test starts and interrupts as an operator does.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the run when a test has left a process running: a stand-in engine would hold its port and disturb what comes after."""
    before = leftovers.running()  # what a worker of pytest itself has started
    leftovers.adopt_orphans()
    yield
    end = time.monotonic() + LEFTOVERS_S
    while (left := [one for one in leftovers.running() if one not in before]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left, "processes left behind:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def no_first_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this process asks of the bundle does not depend on whether the first model lies in the store; the scripts that it starts see the store."""
    monkeypatch.setattr(first, "STORE", tmp_path / "no-store")


@pytest.fixture
def project(no_leftovers: None) -> Iterator[Project]:
    """A Compose project of the test's own, gone with everything in it when the test ends."""
    own = Project(name=f"test-{os.getpid()}-{secrets.token_hex(3)}")
    yield own
    own.remove()


@pytest.fixture(scope="session")
def served(no_leftovers: None) -> Iterator[Project]:
    """The bundle as `make up PROFILE=cpu` brings it up, shared by all tests that only ask it things."""
    own = Project(name=f"test-{os.getpid()}-served")
    up = own.up("--json")
    assert up.returncode == 0, up.stderr
    yield own
    own.remove()


@pytest.fixture(scope="session")
def no_leftovers() -> Iterator[None]:
    """Fail the run when a test has left a container of its own behind."""
    yield
    left = subprocess.run(["docker", "ps", "--all", "--format", "{{.Names}}", "--filter", f"name=test-{os.getpid()}-"],
                          capture_output=True, text=True, check=False)
    assert not left.stdout.split(), f"containers left behind: {left.stdout}"
