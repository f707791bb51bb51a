"""A real deployment on the CPU that faults are done to: its processes, what its watch says, and clients that keep asking it."""

import json
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError

from bundle import ROOT
from support.clients import Tally, ask, keep_asking
from support.gateway import docker
from support.project import ON_CPU, Project, wait_until

START_S = 300
STALL_S = 20
SIGN_S = STALL_S / 4
"""After which docker/engine/watch.py takes an engine that stands still out of service."""
CONTEXT = 96 * 1024
CACHE_BYTES = 8 * 2**20
KEY = "sk-canary-" + secrets.token_hex(24)
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """One deployment. Where there are replicas, `engine` and what is asked of it is the first."""

    project: Project
    url: str
    lines: Sequence[str]
    """What it was brought up with over the CPU profile, as KEY=VALUE."""

    def change(self, verb: str, *lines: str) -> subprocess.CompletedProcess[str]:
        """`make up` or `make roll` with `lines` over its own."""
        return self.project.script(verb, *ON_CPU, *(word for line in (*self.lines, *lines) for word in ("--set", line)))

    @property
    def engine(self) -> str:
        return self.project.containers()["engine"].id

    @property
    def state(self) -> dict[str, Any]:
        """The engine container's."""
        return dict(json.loads(docker("inspect", "--format", "{{json .State}}", self.engine)))

    @property
    def address(self) -> str:
        """The engine's own address; the gateway stands in front of it for everyone else."""
        return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", self.engine).strip()

    def log(self, since: str) -> str:
        return docker("logs", "--since", since, self.engine)

    def process(self, title: str, container: str = "") -> int:
        """The process of that title, by its number on the host."""
        lines = docker("top", container or self.engine, "-eo", "pid,args").splitlines()[1:]
        (found,) = [int(line.split()[0]) for line in lines if title in line]
        return found

    def verdict(self) -> tuple[int, str]:
        """What the engine's watch says: 200 or 503, and why; 0 when nobody answers."""
        try:
            with DIRECT.open(f"http://{self.address}:8001/ready", timeout=10) as answer:
                return answer.status, answer.read().decode().strip()
        except HTTPError as error:
            return error.code, error.read().decode().strip()
        except (OSError, ValueError):  # ValueError: it has no address while it starts
            return 0, ""

    def metric(self, name: str) -> float:
        """The engine's metric `name`."""
        with DIRECT.open(f"http://{self.address}:8000/metrics", timeout=60) as answer:
            (line,) = (line for line in answer.read().decode().splitlines() if line.startswith(f"vllm:{name}{{"))
        return float(line.split()[-1])

    def right(self) -> bool:
        """Whether a request now gets its whole answer."""
        return ask(self.url, Tally(), key=KEY) == "right"

    @contextmanager
    def asked_by(self, clients: int, *, tokens: int = 16, rest_s: float = 0) -> Iterator[Tally]:
        """While the block runs, so many clients ask, again `rest_s` after an answer; it begins once some have been answered."""
        with keep_asking(self.url, clients, key=KEY, tokens=tokens, rest_s=rest_s) as tally:
            wait_until(lambda: tally.outcomes["right"] >= clients, deadline_s=120, what="the clients are answered")
            yield tally

    def recovered(self, tally: Tally, since: float) -> float:
        """Seconds from `since`, the fault, to the first answer of the engine that came after it."""
        wait_until(lambda: self.verdict()[0] == 200, deadline_s=START_S, what="the engine is ready again")
        ready = time.monotonic()
        wait_until(lambda: any(at > ready for at in tally.right_at), deadline_s=60, what="a client is answered again")
        return min(at for at in tally.right_at if at > ready) - since

    def started_after(self, before: str) -> bool:
        """Whether the engine's container has been started since `before` (its StartedAt)."""
        return bool(self.state["Running"]) and str(self.state["StartedAt"]) != before


@contextmanager
def held(process: int) -> Iterator[None]:
    """Hold that process still, in a way that does not show as stopped."""
    holder = subprocess.Popen([sys.executable, str(ROOT / "tests" / "support" / "freeze.py"), str(process)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate()
