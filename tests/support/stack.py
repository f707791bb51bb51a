"""The bundle's stack on the nodes of support/cluster.py, and who asks it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bundle import ROOT
from support import standin
from support.clients import Tally, keep_asking
from support.cluster import Cluster, Node, wait_for

KEY = "sk-swarm-0123456789abcdef"
PORT, NAME = 8005, "vllm"
START_S = 600
"""An engine's start, two of them at once on two crowded cores, which clients use too."""
STAND_IN = bool(os.environ.get("SWARM_STAND_IN"))
"""Set by who works on these tests: engines that start in seconds (support/standin.py)."""
FILE = ROOT / "reports" / f"swarm{'-stand-in' * STAND_IN}.json"
SETTINGS = ("GATEWAY_BIND=0.0.0.0", "ENGINE_MODEL=/opt/bundle/selftest-model", "HOST_ENGINE_MEMORY=4g", "HOST_STOP_GRACE_S=60",
            "ENGINE_SHUTDOWN_TIMEOUT=40")


@dataclass(kw_only=True)
class Stack:
    """The stack as it runs, seen from its first node, which is the manager."""

    cluster: Cluster
    folder: Path
    keys: Path

    @property
    def manager(self) -> Node:
        return self.cluster.nodes[0]

    @property
    def url(self) -> str:
        return self.url_of(self.manager)

    def url_of(self, node: Node) -> str:
        return f"http://{node.address}:{PORT}"

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of the bundle's verbs, as on the manager."""
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.manager.folder}/sock"}
        return subprocess.run([sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments], capture_output=True, text=True, check=False,
                              env=environment, timeout=600)

    def write(self, *settings: str, profile: str = "") -> None:
        """`make swarm` into the stack's folder; without a profile, of the stack that the tests run."""
        own = () if profile else (*SETTINGS, f"IMAGE_ENGINE={images()[1]}")
        sets = [word for setting in (*own, f"GATEWAY_API_KEYS_FILE={self.keys}", *settings) for word in ("--set", setting)]
        done = self.script("swarm", "--profile", profile or "cpu", "--out", str(self.folder), *sets)
        assert done.returncode == 0, done.stderr

    def deploy(self, file: str = "stack.yaml", name: str = NAME) -> None:
        self.manager.docker("stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", str(self.folder / file), name)

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """What `make status` says of the tasks of a service."""
        return [row for row in json.loads(self.script("status", "--stack", NAME, "--json").stdout)["tasks"] if row["service"] == service]

    def wait_for_engines(self, count: int) -> float:
        """Seconds until so many run, and no other is wanted."""
        return wait_for(f"{count} engines run", lambda: [row["state"] for row in self.tasks("engine")] == ["running"] * count, START_S, 1)

    def two_apart(self) -> None:
        """One engine on each node, whatever was before: Swarm moves no task back by itself."""
        if len({row["node"] for row in self.tasks("engine") if row["state"] == "running"}) < 2:
            for count in (1, 2):
                self.manager.docker("service", "scale", "--detach", f"{NAME}_engine={count}")
                self.wait_for_engines(count)
        assert {row["node"] for row in self.tasks("engine")} == {node.name for node in self.cluster.nodes}

    def update_state(self) -> str:
        """How the engines' last update goes, as Swarm says it."""
        spec = self.manager.docker("service", "inspect", f"{NAME}_engine", "--format", "{{json .UpdateStatus}}").stdout
        return str((json.loads(spec) or {}).get("State", ""))

    def wait_for_update(self, state: str) -> float:
        return wait_for(f"the update is {state}", lambda: self.update_state() == state, 2 * START_S, 1)

    def container(self, node: Node, service: str) -> str:
        """The one container of a service on a node."""
        (found,) = node.docker("ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={NAME}_{service}").stdout.split()
        return found

    @contextmanager
    def asked(self, *, clients: int = 8, rest_s: float = 0.1 if STAND_IN else 2.0, node: Node | None = None) -> Iterator[Tally]:
        """Clients on the wire that ask the gateway of a node while the block runs; they rest, for a start needs the processors that answers need."""
        with self.cluster.on_wire(), keep_asking(self.url_of(node or self.manager), clients, key=KEY, rest_s=rest_s, tokens=24,
                                                          spread=True) as tally:
            yield tally

    def answers(self, node: Node | None = None) -> bool:
        """Whether a request to the gateway of a node gets an answer that is right."""
        with self.cluster.on_wire(), keep_asking(self.url_of(node or self.manager), 1, key=KEY, rest_s=60) as tally:
            pass
        return tally.outcomes["right"] == tally.sent > 0

    def reached(self, since: str = "") -> set[str]:
        """The engines that the manager's gateway has sent requests to, since a time of Docker's."""
        said = self.manager.docker("logs", *(["--since", since] if since else []), self.container(self.manager, "gateway"), timeout=60).stdout
        return set(re.findall(r'"status":200,"server":"(engine-\d+)"', said))

    def logs(self, service: str) -> str:
        done = self.manager.docker("service", "logs", "--raw", f"{NAME}_{service}", check=False, timeout=60)
        return done.stdout + done.stderr


@cache
def images() -> Sequence[str]:
    """The names of the images that the stack takes: the CPU profile's."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "check.py"), "--profile", "cpu", "--flatten", "-"], capture_output=True,
                          text=True, check=True, timeout=120)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("IMAGE_"))
    return found["IMAGE_GATEWAY"], standin.build(found["IMAGE_ENGINE"]) if STAND_IN else found["IMAGE_ENGINE"]
