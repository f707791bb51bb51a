"""The watch over an engine: can it serve now, and does it move? One verdict, for the gateway, for Docker's health check and for the entrypoint.

GET /ready on HEALTH_PORT (8001 in the images; not served where that is not set) answers from memory, in no time: 200 when the engine can
serve now, 503 with the reason in one line when it cannot. HAProxy takes an engine out by it, healthchecks/ready.py is Docker's.
GET /live is 200 as long as the watch itself looks, whatever it thinks of the engine, which it ends by itself: for who would end both (Kubernetes).
POST /drain, from the container itself, makes /ready 503 from then on: healthchecks/drain.py.

/health alone would not do: vLLM answers it with 200 while its core hangs. So the watch looks at the engine's processes every second, asks for
its health and counters every few seconds, and, while nobody else's request shows that it works, for one token (or what its model gives).
However slow and full an engine is, it is well while it moves; loading is never a fault. What is seen, and what comes of it:

  a process of it is stopped                                    not ready at once           ended after HEALTH_STALL_S (60)
  requests run, or a probe waits, and no counter changes        after a quarter of that     ended after HEALTH_STALL_S
  its API answers nothing                                       after a quarter; at once    ended after HEALTH_STALL_S
                                                                if it refuses connections
  /health says that the core is dead, or the probe fails        at once                     vLLM ends by itself with a dead core

Computing counts: processes that use the processor are given ten times as long. On a CPU one step over a long prompt takes a minute, and
no counter moves meanwhile. On a GPU a core spins while it waits for the card, so there only its children count: compilers.

What the probe leaves in vLLM's numbers: it is a request in the vllm: counters (about three tokens, when nothing else has moved for PROBE_S
seconds), and in http_requests_total under the handler /invocations, which the gateway lets nobody use.
"""

import ipaddress
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import exporter
from vitals import Engine, Metrics, NoAnswer, Process, Reply, TooLate

LOOK_S = 1.0
ASK_S = 5.0
"""Between two looks at /health and /metrics, once the engine is ready (a tenth of HEALTH_STALL_S if that is less); every look asks until then."""
ANSWER_S = 10.0
"""How long /health and /metrics are waited for: an engine that is full answers late."""
PROBE_S = 30.0
"""An engine that nothing has shown to work for so long is asked for one token."""
PROBE_LIMIT_S = 20.0
AGAIN_S = 5.0
"""Between two probes of an engine that failed one."""
GAP_S = 2 * ANSWER_S
"""What lies between two looks counts as no more than this: the container was paused, or the machine asleep."""
BUSY = 0.05
"""Of one processor: what computes uses far more, even on a crowded machine; what waits for a process that has stopped uses 0.01."""
PATIENCE = 10
"""As many times HEALTH_STALL_S for an engine that computes."""
STALE_S = 60.0
ASKED_S = 3.0
"""Who has asked GET /ready within so long will ask again: a gateway does every second while it sends requests here."""

PROBES: Sequence[tuple[str, dict[str, Any]]] = (
    ("one token", {"prompt": "ready?", "max_tokens": 1, "temperature": 0, "seed": 0}),
    ("one embedding or class", {"input": "ready?"}),
    ("one score", {"text_1": "ready?", "text_2": "ready"}),
    ("one rank", {"query": "ready?", "documents": ["ready"]}),
    ("one chat token", {"messages": [{"role": "user", "content": "ready?"}], "max_tokens": 1, "temperature": 0, "seed": 0}),
)
"""What each kind of model can be asked for at least. /invocations takes any of them, and refuses, at no cost, what its model cannot do."""
NOT_OF_THIS_MODEL = "Cannot find suitable handler"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    ready: bool
    text: str
    """Why, in one line."""
    hung: bool = False
    """It does not move, and would not by itself: to be ended."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """How a probe ended. Neither `ok` nor `failed`: it was not answered, or the queue was full."""

    text: str
    ok: bool = False
    failed: bool = False


class Probe:
    """One small request, waited for beside the watch."""

    def __init__(self, engine: Engine, kinds: Sequence[tuple[str, dict[str, Any]]], asked_at: float) -> None:
        self.asked_at = asked_at
        self.kind: tuple[str, dict[str, Any]] | None = None
        """The one that the model takes, once that is known."""
        self.result: Probed | None = None
        self._engine, self._kinds = engine, kinds
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.result = self._ask()

    def _ask(self) -> Probed:
        for kind in self._kinds:
            started = time.monotonic()
            try:
                reply = self._engine.ask("/invocations", PROBE_LIMIT_S, kind[1])
            except TooLate as late:
                return Probed(text=str(late))
            except NoAnswer as error:
                return Probed(text=str(error), failed=True)
            if NOT_OF_THIS_MODEL in str(reply):
                continue
            if reply.status in (429, 503):  # a full queue is no fault
                return Probed(text=f"POST /invocations: {reply}")
            self.kind = kind
            if reply.status == 200 and _answers(reply):
                return Probed(text=f"{kind[0]} in {time.monotonic() - started:.2f} s", ok=True)
            return Probed(text=f"POST /invocations: {reply}", failed=True)
        # A model that takes sound or pictures only: nothing small can be asked of it.
        return Probed(text="alive; no probe fits this kind of model", ok=True)


def _answers(reply: Reply) -> bool:
    answer = reply.json()
    return isinstance(answer, dict) and any(answer.get(name) for name in ("choices", "data", "results"))


class Watch:
    """Look again and again; `look` says what is to be thought of the engine now.

    Its time is the sum of what lies between the looks, with gaps cut short: a container that was paused has not hung.
    """

    def __init__(self, engine: Engine, processes: Callable[[], Sequence[Process]], *, leader: int, cpu_counts: bool, stall_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._processes, self._leader, self._cpu_counts, self._clock = engine, processes, leader, cpu_counts, clock
        self._stall_s, self._sign_s, self._ask_s = stall_s, stall_s / 4, min(ASK_S, stall_s / 10)
        self._looked_at, self._now = clock(), 0.0
        self._ask_at, self._probe_at = 0.0, 0.0
        self._cpu: dict[bool, float] = {}
        self._computed_at: dict[bool, float] = {True: 0.0, False: 0.0}
        self._stopped_since: float | None = None
        self._silent_since: float | None = None
        self._owed_since: float | None = None
        self._unanswered_since: float | None = None
        self._moved_at = 0.0
        self._seen: Metrics | None = None
        self._proven, self._failure = False, ""
        self._probe: Probe | None = None
        self._kinds = PROBES
        self._answered = False
        self._said = Verdict(ready=False, text="the engine is loading")

    def look(self) -> Verdict:
        """One look, which takes at most two times ANSWER_S seconds."""
        clock = self._clock()
        passed, self._looked_at = min(clock - self._looked_at, GAP_S), clock
        self._now += passed
        processes = self._processes()
        self._note_cpu(processes, passed)
        stopped = next((p for p in processes if p.state == "T"), None)
        if stopped is None:
            self._stopped_since = None
        else:
            self._stopped_since = self._now if self._stopped_since is None else self._stopped_since
            self._moved_at = self._now  # once it goes on, it is given its time anew
            return self._still(self._now - self._stopped_since, f"{stopped.name} (process {stopped.pid}) is stopped (SIGSTOP)")
        if self._now >= self._ask_at or not self._said.ready:
            self._ask_at = self._now + self._ask_s
            self._said = self._asked()
        return self._said

    def _note_cpu(self, processes: Sequence[Process], passed: float) -> None:
        """When the API server, and when the rest, was last seen to compute."""
        everyone = self._cpu_counts or not self._proven  # a first answer may compile kernels inside the core
        for api in (True, False):
            counted = [p.cpu_s for p in processes if (p.pid == self._leader) == api and (api or everyone or "VLLM::" not in p.name)]
            used = sum(counted) - self._cpu.get(api, 0.0)
            self._cpu[api] = sum(counted)
            if used > BUSY * passed > 0:
                self._computed_at[api] = self._now

    def _still(self, still_s: float, text: str, computed_at: float = 0.0) -> Verdict:
        """The verdict over an engine of which nothing has come for `still_s` seconds, the last time that it computed taken in."""
        idle_s = min(still_s, self._now - computed_at)
        return Verdict(ready=False, text=text, hung=idle_s >= self._stall_s or still_s >= PATIENCE * self._stall_s)

    def _asked(self) -> Verdict:
        try:
            health = self._engine.ask("/health", ANSWER_S)
        except NoAnswer as error:
            return self._silent(str(error), at_once=not isinstance(error, TooLate))
        self._answered = True
        if health.status == 503:
            return self._silent("GET /health: HTTP 503: the engine's core is dead", at_once=True)
        if health.status != 200:
            return self._silent(f"GET /health: {health}", at_once=True)
        self._silent_since = None
        return self._core(self._engine.metrics(ANSWER_S))

    def _silent(self, reason: str, *, at_once: bool) -> Verdict:
        """The API gives no good answer."""
        if not self._answered:
            return Verdict(ready=False, text="the engine is loading")
        self._silent_since = self._now if self._silent_since is None else self._silent_since
        silent_s = self._now - self._silent_since
        if self._said.ready and not at_once and silent_s < self._sign_s:
            return self._said
        return self._still(silent_s, f"{reason}, for {silent_s:.0f} s", self._computed_at[True])

    def _core(self, seen: Metrics | None) -> Verdict:
        """The API is well: does the core move?"""
        moved = seen is None or self._seen is None or seen.progress != self._seen.progress
        if moved:  # without counters nobody can say that it does not
            self._moved_at = self._now
        if moved and seen and self._seen:
            self._unanswered_since = None
            if seen.running > 0 or seen.succeeded > self._seen.succeeded:
                self._proven, self._failure = True, ""
        self._seen = seen or self._seen
        self._take_probe()
        running = seen.running if seen else 0
        if running == 0 and self._probe is None and self._now >= self._next_probe():
            self._probe = Probe(self._engine, self._kinds, self._now)
        owed = running > 0 or self._probe is not None or self._unanswered_since is not None
        if not owed:
            self._owed_since = None
        elif self._owed_since is None:
            self._owed_since = self._now
        still_s = 0.0 if self._owed_since is None else self._now - max(self._owed_since, self._moved_at)
        if min(still_s, self._now - self._computed_at[False]) >= self._sign_s or still_s >= PATIENCE * self._stall_s:
            return self._still(still_s, f"no token for {still_s:.0f} s with {seen}" + (", and a probe is unanswered" if running == 0 else ""),
                               self._computed_at[False])
        if self._failure:
            return Verdict(ready=False, text=self._failure)
        if not self._proven:
            return Verdict(ready=False, text="the engine is up, its first answer is waited for")
        return Verdict(ready=True, text=f"{seen}" if seen else "answers probes; /metrics shows no vllm: counters (ENGINE_DISABLE_LOG_STATS?)")

    def _next_probe(self) -> float:
        if not self._proven or self._failure:
            return self._probe_at
        return max(self._probe_at, (self._moved_at if self._seen else 0.0) + PROBE_S)

    def _take_probe(self) -> None:
        """Take note of a probe that has ended."""
        probe = self._probe
        if probe is None or probe.result is None:
            return
        self._probe = None
        self._kinds = (probe.kind,) if probe.kind else self._kinds
        self._probe_at = self._now + (PROBE_S if probe.result.ok else AGAIN_S)
        if probe.result.ok:
            self._proven, self._failure, self._unanswered_since = True, "", None
            self._moved_at = self._now
        elif probe.result.failed:
            self._failure = probe.result.text
        elif self._seen is None:
            self._failure = f"{probe.result.text}; no metrics to see whether it is only busy"
        elif self._moved_at <= probe.asked_at:
            self._unanswered_since = probe.asked_at


class Budget:
    """How often this engine has been ended, kept where a restarted container finds it: one that is broken must not load for ever.

    FREE ends within an hour are had at once, then each waits twice as long as the one before; meanwhile the engine is out of service anyhow.
    Who cannot remember (a full or read-only cache) waits every time.
    """

    FREE, HOUR_S, FIRST_WAIT_S = 3, 3600.0, 300.0

    def __init__(self, file: Path, who: str, clock: Callable[[], float] = time.time) -> None:
        self._file, self._who, self._clock = file, who, clock

    def next_end(self) -> tuple[float, str]:
        """How long to wait before the next end, in seconds, and why."""
        kept = self._kept()
        if not self._keep(kept):
            return self.FIRST_WAIT_S, f"how often it was ended cannot be kept in {self._file}"
        ends = sum(who == self._who for who, _ in kept)
        return (0.0, "") if ends < self.FREE else (self.FIRST_WAIT_S * 2.0 ** (ends - self.FREE), f"it was ended {ends} times within the last hour")

    def note(self) -> None:
        """Keep one more end."""
        self._keep([*self._kept(), (self._who, self._clock())])

    def _kept(self) -> list[tuple[str, float]]:
        now = self._clock()
        try:
            kept = [(str(who), float(at)) for who, at in json.loads(self._file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []
        return [(who, at) for who, at in kept if now - self.HOUR_S < at <= now]  # a clock that was set back counts for nothing

    def _keep(self, kept: list[tuple[str, float]]) -> bool:
        draft = self._file.with_name(f"{self._file.name}.{self._who}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(kept), encoding="utf-8")
            draft.replace(self._file)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            return False
        return True


class Watchdog:
    """Keeps the watch in a thread, answers /ready by it, and calls `end` once with the reason when the engine is to be ended."""

    def __init__(self, watch: Watch, budget: Budget, *, end: Callable[[str], None], say: Callable[[str], None], port: int | None) -> None:
        self._watch, self._budget, self._end, self._say = watch, budget, end, say
        self._verdict, self._looked_at = Verdict(ready=False, text="the engine is loading"), time.monotonic()
        self._over, self._leaving = threading.Event(), threading.Event()
        self._asked_at = -ASKED_S
        threading.Thread(target=self._keep_looking, daemon=True, name="watch").start()
        if port is not None:
            self._serve(port)

    def stop(self) -> None:
        """The engine is stopping, because someone asked it to: not ready, and nothing to end any more."""
        self._over.set()

    def drain(self) -> None:
        """The engine is to get no new requests any more; what it has, it goes on with, and is watched as before."""
        self._leaving.set()

    def is_asked(self) -> bool:
        """Whether somebody outside of the container goes by GET /ready now."""
        return time.monotonic() - self._asked_at < ASKED_S

    def verdict(self) -> Verdict:
        """What is to be thought of the engine now."""
        if self._over.is_set():
            return Verdict(ready=False, text="the engine is stopping")
        if blind := self.blind():
            return Verdict(ready=False, text=blind)
        return Verdict(ready=False, text=f"the engine drains: {self._verdict.text}") if self._leaving.is_set() else self._verdict

    def blind(self) -> str:
        """That the watch itself no longer looks, so that nobody would end an engine that hangs; "" while it does."""
        since_s = time.monotonic() - self._looked_at
        return f"the watch has not looked for {since_s:.0f} s" if since_s > STALE_S and not self._over.is_set() else ""

    def _keep_looking(self) -> None:
        hung_at: float | None = None
        wait_s = 0.0
        while not self._over.wait(LOOK_S):
            verdict = self._watch.look()
            now = time.monotonic()
            if verdict.ready != self._verdict.ready:
                self._say(f"the engine is ready: {verdict.text}" if verdict.ready else f"the engine is out of service: {verdict.text}")
            self._verdict, self._looked_at = verdict, now
            if not verdict.hung:
                hung_at = None
                continue
            if hung_at is None:
                hung_at, (wait_s, why) = now, self._budget.next_end()
                if wait_s:
                    self._say(f"the engine hangs: {verdict.text}; {why}: it is left alone for {wait_s:.0f} s more. `make restart` does not wait")
            if now - hung_at >= wait_s:
                self._budget.note()
                self._over.set()
                self._end(verdict.text)

    def _serve(self, port: int) -> None:
        watchdog = self

        exported = exporter.Exporter()

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # who sends nothing does not hold a thread
            wbufsize = -1  # the whole answer at once: HAProxy hangs up when it has read the status

            def do_GET(self) -> None:
                verdict, blind = watchdog.verdict(), watchdog.blind()
                if self.path == "/ready" and not ipaddress.ip_address(self.client_address[0]).is_loopback:
                    watchdog._asked_at = time.monotonic()
                status, text = {"/ready": (200 if verdict.ready else 503, verdict.text), "/live": (503 if blind else 200, blind or "the watch looks"),
                                "/metrics": (200, "")}.get(self.path, (404, "GET /ready"))
                self._answer(status, exported.text(ready=verdict.ready) if self.path == "/metrics" else f"{text}\n")

            def do_POST(self) -> None:
                if self.path != "/drain" or not ipaddress.ip_address(self.client_address[0]).is_loopback:
                    self._answer(404, "GET /ready\n")
                    return
                watchdog.drain()
                self._answer(200, "no new requests\n")

            def _answer(self, status: int, text: str) -> None:
                body = text.encode(errors="replace")
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Who asked has hung up, as a load balancer's check does: no news, and twice a second."""

        try:
            server = Server(("", port), Handler)
        except OSError as error:
            self._say(f"HEALTH_PORT={port}: {error.strerror}; nobody can ask whether the engine is ready, it is watched all the same")
            return
        threading.Thread(target=server.serve_forever, daemon=True, name="ready").start()


def state_file() -> Path:
    """Where the ends are kept: in the cache, which outlives a restart of the container."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-bundle" / "ends.json"
