"""Fixtures that every tier with Docker shares. A test that needs Docker fails without it; nothing here skips."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.models import first
from support.project import Project

# What a shell runs in the background ignores SIGINT, and so would every script that a test starts and interrupts as an operator does.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
