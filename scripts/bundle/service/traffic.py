"""Which engines the gateway sends requests to. Asked and told over HAProxy's admin socket, inside the gateway's container.

HAProxy's management guide: https://docs.haproxy.org/3.0/management.html#9.3 (`show stat`, `set server`). A server has its service's name, in
whatever backends there are.
"""

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bundle.base import console
from bundle.service.deployment import GATEWAY, Deployment, is_engine

POLL_S = 0.5
_SOCKET = "/run/haproxy/admin.sock"
_SERVERS = "show stat -1 4 -1"
# "maint" and not "drain": a server that drains still gets the requests of a conversation that it has served before.
_OUT, _IN = "maint", "ready"
_SAY = f"""
import socket, sys
for line in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(5)
        admin.connect("{_SOCKET}")
        admin.sendall(line.encode() + b"\\n")
        print(admin.makefile().read())
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One engine as the gateway sees it, over all backends that it is in."""

    backends: tuple[str, ...]
    status: str
    """HAProxy's word, the worst of them: UP, DOWN, MAINT, …"""
    running: int
    """Requests that it is answering or that wait for it."""

    @property
    def is_up(self) -> bool:
        return self.status.startswith("UP")

    @property
    def is_out(self) -> bool:
        """Whether somebody has taken it out, as `drain` does; not: whether it fails its checks, or has no address yet."""
        return self.status in ("MAINT", "DRAIN")


def servers(deployment: Deployment) -> Mapping[str, Server]:
    """The engines by service; empty where no gateway answers."""
    found: dict[str, Server] = {}
    for row in csv.DictReader((_say(deployment, _SERVERS) or "").lstrip("# ").splitlines()):
        if not is_engine(row["svname"]):
            continue
        seen = found.get(row["svname"], Server(backends=(), status=row["status"], running=0))
        status = row["status"] if seen.is_up else seen.status
        found[row["svname"]] = Server(backends=(*seen.backends, row["pxname"]), status=status,
                                      running=seen.running + int(row["qcur"] or 0) + int(row["scur"] or 0))
    return found


def drain(deployment: Deployment, services: Collection[str]) -> None:
    """Send these engines no new requests, and return when they have answered those that they have, or have had ENGINE_SHUTDOWN_TIMEOUT seconds.

    Clients whose request finds no other engine get a 503 with Retry-After. Nothing happens where the gateway does not answer.
    """
    _set(deployment, services, _OUT)
    limit_s, started, said = deployment.number("ENGINE_SHUTDOWN_TIMEOUT"), deployment.clock.now(), False
    while running := sum(server.running for name, server in servers(deployment).items() if name in services):
        waited = deployment.clock.now() - started
        if waited >= limit_s:
            console.warn(f"{running} requests are unfinished after {limit_s:.0f} s (ENGINE_SHUTDOWN_TIMEOUT); the engine gets as long again, then "
                         "they break off")
            return
        if not said:
            console.note(f"· {', '.join(sorted(services))}: no new requests, {running} running get up to {limit_s:.0f} s to end")
            said = True
        deployment.clock.sleep(POLL_S)


def resume(deployment: Deployment, services: Collection[str]) -> None:
    """Send these engines requests again, as soon as the gateway finds them in health."""
    _set(deployment, services, _IN)


def _set(deployment: Deployment, services: Collection[str], state: str) -> None:
    there = servers(deployment)
    if lines := [f"set server {backend}/{name} state {state}" for name in services if name in there for backend in there[name].backends]:
        _say(deployment, *lines)


def _say(deployment: Deployment, *lines: str) -> str | None:
    gateway = deployment.containers().get(GATEWAY)
    done = deployment.execute(gateway, "python3", "-c", _SAY, *lines) if gateway else None
    return done[1] if done and done[0] == 0 else None
