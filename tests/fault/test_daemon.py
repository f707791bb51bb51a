"""Docker's daemon ends and comes back: a disposable one, with a data root of its own beside the one that runs.

The real gateway and compose.yaml; the engine is the tests' fake, as the daemon knows no difference.
"""

import ctypes
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle import ROOT
from bundle.machine.daemon import client_environment
from support.clients import keep_asking
from support.faultlog import record
from support.gateway import IMAGE
from support.project import ON_CPU, free_port, wait_until

CLONE_NEWNET = 0x40000000
FAKE_ENGINE = f"""
FROM {IMAGE}
COPY fake_openai.py /
COPY ready.py /opt/bundle/healthchecks/
COPY python /opt/venv/bin/
HEALTHCHECK NONE
ENTRYPOINT ["python3", "/fake_openai.py", "8000"]
"""


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A daemon in `folder`, reached by a socket there."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**client_environment(), "DOCKER_HOST": f"unix://{self.folder}/socket"}

    def docker(self, *arguments: str) -> str:
        return subprocess.run(["docker", *arguments], env=self.environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300,
                              cwd=ROOT).stdout

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the block runs; then it is told to end, as by a host's shutdown."""
        (self.folder / "daemon.json").write_text("{}")
        options = {"data-root": "data", "exec-root": "exec", "pidfile": "pid", "config-file": "daemon.json"}
        with (self.folder / "log").open("a") as log, subprocess.Popen(
                ["dockerd", *(f"--{name}={self.folder / file}" for name, file in options.items()), f"--host=unix://{self.folder}/socket"],
                stdout=log, stderr=log) as daemon:
            try:
                wait_until(self.answers, deadline_s=60, what=f"the daemon answers ({log.name})")
                yield
            finally:
                daemon.terminate()
                daemon.wait(120)

    def answers(self) -> bool:
        return subprocess.run(["docker", "version"], env=self.environment, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.fixture
def own_network() -> Iterator[None]:
    """A network namespace for this thread, and the threads and processes that it starts: bridges, ports and rules of a second daemon would
    meet those of the first."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=60)
            yield
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def daemon(own_network: None, tmp_path: Path) -> Iterator[Daemon]:
    """One that has the two images; nothing of it is left."""
    mine = Daemon(folder=tmp_path)
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}-engine"
    recipe = tmp_path / "image"
    recipe.mkdir()
    (recipe / "Dockerfile").write_text(FAKE_ENGINE)
    fake = (ROOT / "tests" / "fake_openai.py").read_text()
    (recipe / "fake_openai.py").write_text(fake.replace('"FAKE_MODEL", "fake"', '"FAKE_MODEL", "selftest"'))
    (recipe / "ready.py").write_bytes((ROOT / "healthchecks" / "ready.py").read_bytes())
    (recipe / "python").write_text('#!/bin/sh\nexec python3 "$@"\n')
    (recipe / "python").chmod(0o755)
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(recipe)], check=True, timeout=300)
    try:
        with mine.running():
            images = subprocess.Popen(["docker", "save", IMAGE, name], stdout=subprocess.PIPE)
            with images:
                subprocess.run(["docker", "load", "--quiet"], stdin=images.stdout, env=mine.environment, check=True, timeout=300)
            mine.docker("tag", name, "fake-engine")
    finally:
        subprocess.run(["docker", "image", "rm", "--force", name], check=True, timeout=60)
    yield mine
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if line.split()[1].startswith(str(tmp_path)):
            subprocess.run(["umount", "--lazy", line.split()[1]], check=False, timeout=60)


def test_a_daemon_that_is_restarted_brings_everything_back_by_itself(daemon: Daemon, tmp_path: Path) -> None:
    env, port = tmp_path / "deployment.env", free_port()
    sets = [f"GATEWAY_PORT={port}", "IMAGE_ENGINE=fake-engine", f"IMAGE_GATEWAY={IMAGE}"]
    check = subprocess.run([sys.executable, str(ROOT / "scripts" / "check.py"), *ON_CPU, "--project", f"test-{secrets.token_hex(3)}",
                            *(word for line in sets for word in ("--set", line)), "--flatten", str(env)],
                           capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert check.returncode == 0, check.stderr
    compose = ("compose", "--env-file", str(env))
    with ExitStack() as clients:
        with daemon.running():
            daemon.docker(*compose, "up", "--detach", "--no-build", "--wait")
            before = daemon.docker(*compose, "ps", "--quiet")
            tally = clients.enter_context(keep_asking(f"http://127.0.0.1:{port}", 4, tokens=2))
            wait_until(lambda: tally.outcomes["right"] >= 8, deadline_s=60, what="the clients are answered")
        began = time.monotonic()
        with daemon.running():
            wait_until(lambda: any(at > began for at in tally.right_at), deadline_s=60, what="a client is answered again")
            assert daemon.docker(*compose, "ps", "--quiet") == before
            clients.close()
            daemon.docker(*compose, "down", "--volumes", "--timeout", "5")
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    record("daemon restarted", "everything comes back by itself", tally, min(at for at in tally.right_at if at > began) - began)
