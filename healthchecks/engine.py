"""What the health scripts share: one bounded request, the engine's metrics, a memory between runs, and one line as the answer.

Standard library only, and little of it: a check runs every few seconds beside the engine, on the same cores.

HEALTH_URL (http://127.0.0.1:8000) is the engine. HEALTH_TIMEOUT_S (20) bounds a check; it is generous because a saturated engine
answers slowly, and calling that unhealthy would take healthy engines out of service just when they are needed.
"""

import http.client
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

URL = os.environ.get("HEALTH_URL") or "http://127.0.0.1:8000"
BODY_LIMIT = 8 * 2**20


class Unhealthy(Exception):  # noqa: N818  (its text is the reason that the check prints)
    """The check fails; the text is the one line that says why."""


class NoAnswer(Unhealthy):
    """The engine took the request and did not answer it in time."""


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

    @property
    def busy(self) -> bool:
        return self.running + self.waiting > 0

    def __str__(self) -> str:
        return f"{self.running} running, {self.waiting} waiting"


class Deadline:
    """The time that is left of `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.05, self._end - time.monotonic())


def timeout_s() -> float:
    """How long a check may take. Raises Unhealthy when HEALTH_TIMEOUT_S is not a positive number."""
    return seconds("HEALTH_TIMEOUT_S", 20)


def seconds(name: str, default: float) -> float:
    """The environment variable `name` as seconds. Raises Unhealthy when it is not a positive number."""
    value = os.environ.get(name) or str(default)
    if not re.fullmatch(r"\d+(\.\d+)?", value) or float(value) == 0:
        raise Unhealthy(f"{name}={value!r} is not a positive number of seconds")
    return float(value)


def ask(path: str, limit_s: float, payload: Mapping[str, Any] | None = None) -> Reply:
    """GET `path`, or POST `payload` to it. Raises NoAnswer after `limit_s` seconds over all, Unhealthy when there is no HTTP to be had."""
    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    what = f"{'POST' if payload else 'GET'} {path}"
    connection = http.client.HTTPConnection(*address())
    # An alarm, not a socket timeout: that one starts anew with every byte, and a server that drips would never be late.
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        if payload:
            connection.request("POST", path, json.dumps(payload), {"Content-Type": "application/json"})
        else:
            connection.request("GET", path)
        response = connection.getresponse()
        return Reply(status=response.status, body=response.read(BODY_LIMIT))
    except TimeoutError as error:
        raise NoAnswer(f"{what}: no answer in {limit_s:.0f} s") from error
    except (OSError, http.client.HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or f"not HTTP ({type(error).__name__})"
        raise Unhealthy(f"{what}: {reason}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.close()


def address() -> tuple[str, int]:
    """Host and port of the engine. Raises Unhealthy when HEALTH_URL names none."""
    try:
        target = urlsplit(URL)
        if target.scheme == "http" and target.hostname:
            return target.hostname, target.port or 80
    except ValueError:  # the port is no number
        pass
    raise Unhealthy(f"HEALTH_URL={URL!r} is not http://host:port")


def alive(limit_s: float) -> None:
    """Raise Unhealthy unless /health answers 200: the API process answers, and its core has not died."""
    reply = ask("/health", limit_s)
    if reply.status == 503:
        raise Unhealthy("GET /health: HTTP 503: the engine's core is dead")
    if reply.status != 200:
        raise Unhealthy(f"GET /health: {reply}")


def metrics(limit_s: float) -> Metrics | None:
    """The engine's own metrics, or None where it shows none (--disable-log-stats) or what comes is no metrics page."""
    try:
        reply = ask("/metrics", limit_s)
    except Unhealthy:
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


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a check found last time, and when (on this machine's monotonic clock)."""

    at: float
    succeeded: int = 0
    progress: tuple[float, ...] = ()
    since: float = 0
    """progress.py: when `progress` was last seen to change. ready.py: when the unanswered completion was asked for, 0 when there is none."""


def recall(check: str) -> Memory | None:
    """What `check` kept last time; None when there is nothing usable."""
    try:
        with open(_memory_path(check), encoding="utf-8") as file:  # noqa: PTH123  (pathlib costs a tenth of a check's time)
            kept = Memory(**json.load(file))
        kept = Memory(at=float(kept.at), succeeded=int(kept.succeeded), progress=tuple(kept.progress), since=float(kept.since))
        return kept if kept.at <= time.monotonic() else None
    except (OSError, ValueError, TypeError):
        return None


def keep(check: str, memory: Memory) -> bool:
    """Keep `memory` for the next run, in one step: checks may run side by side. False when there is nowhere to keep it."""
    path = _memory_path(check)
    fresh = f"{path}.{os.getpid()}"
    try:
        # Never through a link that someone else laid in a shared /tmp.
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(memory), file)
        os.replace(fresh, path)  # noqa: PTH105
    except OSError:
        return False
    return True


def _memory_path(check: str) -> str:
    return f"{os.environ.get('TMPDIR') or '/tmp'}/vllm-health-{check}-{os.getuid()}-{re.sub(r'[^0-9A-Za-z]+', '-', URL)}.json"  # noqa: S108


def main(check: Callable[[], str]) -> None:
    """Run `check`, print its one line, and exit 0 or 1."""
    try:
        print(f"ok: {check()}")
    except Unhealthy as reason:
        print(reason)
        sys.exit(1)
