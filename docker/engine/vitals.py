"""What can be seen of an engine from beside it: its API's answers, its core's counters, and its processes. Standard library only.

Nothing here obeys a proxy: what is asked is always this machine's own engine, and a proxy that Docker's client hands to every container
would answer in its place.
"""

import http.client
import json
import math
import os
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BODY_LIMIT = 8 * 2**20


class NoAnswer(Exception):  # noqa: N818  (its text is the reason for the operator)
    """No HTTP to be had. The text says of what, and why."""


class TooLate(NoAnswer):
    """The request was taken and not answered in time."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON, or None when it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __str__(self) -> str:
        """`HTTP 500: what the engine said`, in one line."""
        answer = self.json()
        error = answer.get("error") if isinstance(answer, dict) else None
        text = error.get("message") if isinstance(error, dict) else self.body[:200].decode("utf-8", "replace")
        said = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
        return f"HTTP {self.status}: {said[:160]}" if said else f"HTTP {self.status}"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What the engine's core reports of itself. A core that hangs changes none of it."""

    running: int
    waiting: int
    succeeded: int
    """Requests answered to their end since the start; what clients broke off is not in it."""
    progress: tuple[float, ...]
    """Changes with every step that the core takes on a request. During the prefill of one long prompt no token counter moves, but cache use does."""

    def __str__(self) -> str:
        return f"{self.running} running, {self.waiting} waiting"


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of the engine: `cpu_s` is the processor time that it and the children it has collected have used."""

    pid: int
    name: str
    state: str
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine's API on this machine."""

    host: str
    port: int

    def ask(self, path: str, limit_s: float, payload: Mapping[str, Any] | None = None) -> Reply:
        """GET `path`, or POST `payload` to it. Raises TooLate after `limit_s` seconds over all, NoAnswer when there is no HTTP to be had."""
        what = f"{'POST' if payload else 'GET'} {path}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=limit_s)
        over = threading.Event()
        timer = threading.Timer(limit_s, lambda: None)
        try:
            connection.connect()
            taken = connection.sock

            def cut() -> None:
                over.set()
                with suppress(OSError):
                    taken.shutdown(socket.SHUT_RDWR)

            # The socket's own timeout starts anew with every byte, and a server that drips would never be late.
            timer = threading.Timer(limit_s, cut)
            timer.daemon = True
            timer.start()
            if payload:
                connection.request("POST", path, json.dumps(payload), {"Content-Type": "application/json"})
            else:
                connection.request("GET", path)
            response = connection.getresponse()
            reply = Reply(status=response.status, body=response.read(BODY_LIMIT))
        except (OSError, http.client.HTTPException) as error:
            if over.is_set() or isinstance(error, TimeoutError):
                raise TooLate(f"{what}: no answer in {limit_s:.0f} s") from error
            reason = (error.strerror if isinstance(error, OSError) else "") or f"not HTTP ({type(error).__name__})"
            raise NoAnswer(f"{what}: {reason}") from error
        finally:
            timer.cancel()
            connection.close()
        if over.is_set():
            raise TooLate(f"{what}: no answer in {limit_s:.0f} s")
        return reply

    def metrics(self, limit_s: float) -> Metrics | None:
        """The engine's own metrics, or None where it shows none (--disable-log-stats) or what comes is no metrics page."""
        try:
            reply = self.ask("/metrics", limit_s)
        except NoAnswer:
            return None
        total: dict[str, float] = {}
        succeeded = 0.0
        for name, labels, value in re.findall(r"(?m)^(vllm:\w+)(?:\{(.*)\})? (\S+)$", reply.body.decode("utf-8", "replace")):
            try:
                number = float(value)
            except ValueError:
                continue
            if not math.isfinite(number):
                continue
            total[name] = total.get(name, 0) + number
            if name == "vllm:request_success_total" and not re.search(r'finished_reason="(abort|error)"', labels):
                succeeded += number
        if reply.status != 200 or "vllm:num_requests_running" not in total:
            return None
        return Metrics(
            running=int(total["vllm:num_requests_running"]),
            waiting=int(total.get("vllm:num_requests_waiting", 0)),
            succeeded=int(succeeded),
            progress=tuple(total.get(f"vllm:{name}", 0) for name in (
                "iteration_tokens_total_count", "prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total",
                "num_preemptions_total", "kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")),
        )


def processes(session: int) -> list[Process]:
    """The processes of that session: an engine's API server leads one of its own, and all that it starts is in it."""
    found = []
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text(errors="replace")
        except OSError:  # it has just ended
            continue
        # "28 (VLLM::EngineCor) S ppid pgrp session …": the name may hold spaces and brackets of its own.
        name, _, rest = text.partition("(")[2].rpartition(") ")
        fields = rest.split()
        if int(fields[3]) == session:
            found.append(Process(pid=int(folder.name), name=name, state=fields[0], cpu_s=sum(map(int, fields[11:15])) / ticks))
    return found
