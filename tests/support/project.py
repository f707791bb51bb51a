"""One deployment in a test: its own project name, its own port, the real scripts as processes."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bundle import ROOT, STATE
from bundle.config.settings import SELFTEST_MODEL
from bundle.service import kept
from bundle.service.deployment import Container, Deployment

ON_CPU = ("--profile", "cpu", "--set", f"ENGINE_MODEL={SELFTEST_MODEL}", "--set", "GATEWAY_PORT=0")


@dataclass(frozen=True, kw_only=True)
class Project:
    """The handle on it; `remove` leaves nothing of it."""

    name: str

    @property
    def deployment(self) -> Deployment:
        return Deployment(project=self.name)

    def script(self, verb: str, *arguments: str, timeout_s: float = 600, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run scripts/<verb>.py on this project, as an operator would."""
        return subprocess.run([sys.executable, str(ROOT / "scripts" / f"{verb}.py"), "--project", self.name, *arguments],
                              capture_output=True, text=True, check=False, timeout=timeout_s, env=env, cwd=ROOT)

    def up(self, *arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """`make up` on the CPU profile with the self-test model and an ephemeral port, with further options."""
        return self.script("up", *ON_CPU, *arguments, timeout_s=timeout_s)

    def containers(self) -> dict[str, Container]:
        return self.deployment.containers()

    @property
    def url(self) -> str:
        """The gateway's address without a path."""
        published = self.containers()["gateway"].published
        assert published is not None
        return f"http://{published[0]}:{published[1]}"

    def answer(self) -> Any:
        """What `up --json` says of the running deployment."""
        again = self.up("--json")
        assert again.returncode == 0, again.stderr
        return json.loads(again.stdout)

    def remove(self) -> None:
        subprocess.run(["docker", "compose", "-p", self.name, "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5"],
                       capture_output=True, check=False, timeout=300, cwd="/")
        kept.forget(self.deployment)
        for file in STATE.glob(f"{self.name}.*"):
            file.unlink()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(reached: Callable[[], bool], *, deadline_s: float, what: str) -> None:
    """Poll until `reached()` is true; fail naming `what` when the deadline passes."""
    end = time.monotonic() + deadline_s
    while not reached():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.2)
