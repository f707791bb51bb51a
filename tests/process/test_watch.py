"""The watch over an engine: what it makes of a fake engine whose faults a real one cannot be made to show. Its clock is the test's; HTTP is real."""

import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError

import pytest

import vitals
import watch
from bundle import ROOT
from fake_engine import FakeEngine
from support.project import wait_until
from vitals import Process

PROBE = "POST /invocations"
LEADER, CORE, WORKER, COMPILER = 10, 11, 12, 13
LOADING = "the engine is loading"


@dataclass(kw_only=True)
class Host:
    """A fake engine with processes as on a real one, and a watch over it. `on_cpu`: what computes counts."""

    engine: FakeEngine
    on_cpu: bool = True
    now: float = 1000.0
    names: dict[int, str] = field(default_factory=lambda: {LEADER: "python", CORE: "VLLM::EngineCor", WORKER: "VLLM::Worker"})
    states: dict[int, str] = field(default_factory=dict)
    cpu_s: dict[int, float] = field(default_factory=dict)
    computing: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        host, port = self.engine.url.removeprefix("http://").split(":")
        self.watch = watch.Watch(vitals.Engine(host=host, port=int(port)), self.processes, leader=LEADER, cpu_counts=self.on_cpu, stall_s=60,
                                 clock=lambda: self.now)

    def processes(self) -> list[Process]:
        return [Process(pid=pid, name=name, state=self.states.get(pid, "S"), cpu_s=self.cpu_s.get(pid, 0.0)) for pid, name in self.names.items()]

    def look(self, after_s: float = 1) -> watch.Verdict:
        """One look, and another at once if the first has sent a probe: its answer is waited for."""
        self.now += after_s
        for pid in self.computing:
            self.cpu_s[pid] = self.cpu_s.get(pid, 0.0) + after_s
        verdict = self.watch.look()
        probe = self.watch._probe
        if probe and probe.result is None:
            probe.thread.join(10)
            assert probe.result, "the probe has no end"
            self.watch._ask_at = 0
            verdict = self.watch.look()
        return verdict

    def seen(self, seconds: float) -> list[watch.Verdict]:
        """What the watch says, second by second."""
        return [self.look() for _ in range(round(seconds))]

    def ready(self) -> str:
        """Its text; it has to be ready."""
        verdict = self.look()
        assert verdict.ready, verdict
        return verdict.text

    def until(self, wanted: Callable[[watch.Verdict], bool], limit_s: int = 2000) -> tuple[int, str]:
        """After how many seconds the verdict is `wanted`, and its text."""
        for second in range(limit_s):
            verdict = self.look()
            if wanted(verdict):
                return second, verdict.text
        raise AssertionError(f"not within {limit_s} s: {verdict}")


def unready(verdict: watch.Verdict) -> bool:
    return not verdict.ready


def hung(verdict: watch.Verdict) -> bool:
    return verdict.hung


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in real time waits shortly."""
    monkeypatch.setattr(watch, "PROBE_LIMIT_S", 0.05)
    monkeypatch.setattr(watch, "ANSWER_S", 3)


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as fake:
        yield fake


@pytest.fixture
def host(engine: FakeEngine) -> Host:
    return Host(engine=engine)


# --- a start

def test_an_engine_is_ready_once_it_has_given_a_token(host: Host, engine: FakeEngine) -> None:
    assert host.ready() == "0 running, 0 waiting"
    assert engine.count(PROBE) == 1


def test_an_engine_that_does_not_answer_yet_loads_and_is_never_ended_however_long_it_takes() -> None:
    with FakeEngine() as gone:
        pass
    verdicts = Host(engine=gone).seen(3600)
    assert {(v.ready, v.text, v.hung) for v in verdicts} == {(False, LOADING, False)}


def test_a_first_answer_that_compiles_kernels_is_waited_for_ten_times_as_long(engine: FakeEngine) -> None:
    host = Host(engine=engine, on_cpu=False, computing=(CORE,))
    engine.completions = "hang"
    after, _ = host.until(hung)
    assert 600 <= after < 620


@pytest.mark.parametrize(("kind", "asked"), [("prompt", 1), ("input", 2), ("text_1", 3), ("documents", 4), ("messages", 5)])
def test_every_kind_of_model_is_probed_with_what_it_takes_and_then_with_that_alone(host: Host, engine: FakeEngine, kind: str, asked: int) -> None:
    engine.kind = kind
    host.ready()
    assert engine.count(PROBE) == asked
    host.seen(40)
    assert engine.count(PROBE) == asked + 1


def test_a_model_that_no_probe_fits_is_ready_when_it_is_up(host: Host, engine: FakeEngine) -> None:
    engine.kind = "sound"
    host.ready()


# --- the probe

def test_an_idle_engine_is_asked_now_and_then_and_not_more_often(host: Host, engine: FakeEngine) -> None:
    host.seen(300)
    assert 8 <= engine.count(PROBE) <= 10


def test_an_engine_at_work_is_not_asked_for_more(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.completions, engine.running, engine.waiting, engine.moving = "hang", 32, 100, True
    assert {v.ready for v in host.seen(300)} == {True}
    assert engine.count(PROBE) == 1


def test_work_that_came_before_the_first_probe_proves_the_engine_too(host: Host, engine: FakeEngine) -> None:
    engine.running, engine.moving = 3, True
    host.look()
    assert host.ready() == "3 running, 0 waiting"
    assert engine.count(PROBE) == 0


@pytest.mark.parametrize(("completions", "line"), [
    ("error", "POST /invocations: HTTP 500: EngineCore encountered an issue."),
    ("garbage", "POST /invocations: HTTP 200: <html>not the engine</html>"),
    ("empty", 'POST /invocations: HTTP 200: {"choices":[]}'),
])
def test_a_failed_probe_takes_the_engine_out_with_what_came_until_one_succeeds(host: Host, engine: FakeEngine, completions: str, line: str) -> None:
    host.ready()
    engine.completions = completions
    after, text = host.until(unready)
    assert (after <= 35, text) == (True, line)
    assert not any(v.hung for v in host.seen(200)), "an answer, however wrong, is no hang"
    engine.completions = "answer"
    assert host.until(lambda v: v.ready)[0] <= 6


def test_a_full_queue_is_no_fault(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.completions, engine.waiting, engine.moving = "full", 5, True
    assert {v.ready for v in host.seen(100)} == {True}


def test_requests_that_clients_broke_off_are_no_proof(host: Host, engine: FakeEngine) -> None:
    engine.completions = "error"
    host.look()
    engine.aborted, engine.tokens = 3, 5
    assert not host.look().ready


# --- an engine that stands still

def test_an_idle_engine_whose_probe_gets_no_answer_is_taken_out_and_then_ended(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.completions = "hang"
    after, text = host.until(unready)
    assert 30 + 14 <= after <= 30 + 14 + 10, "a probe every half minute, and a quarter of the limit from then on"
    assert re.fullmatch(r"no token for 1\d s with 0 running, 0 waiting, and a probe is unanswered", text)
    more, _ = host.until(hung)
    assert 40 <= more <= 50


def test_a_server_that_drips_is_not_an_answer(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.completions = "drip"
    host.until(unready, 60)


def test_requests_without_a_token_take_the_engine_out_after_a_quarter_of_the_limit_and_end_it_at_the_limit(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running, engine.waiting = 3, 2
    after, text = host.until(unready)
    assert 14 <= after <= 15 + watch.ASK_S
    assert re.fullmatch(r"no token for 1\d s with 3 running, 2 waiting", text)
    more, text = host.until(hung)
    assert 43 <= more <= 46
    assert re.fullmatch(r"no token for 6\d s with 3 running, 2 waiting", text)


def test_a_token_brings_it_back(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running = 3
    host.until(unready)
    engine.tokens += 1
    assert host.ready() == "3 running, 0 waiting"
    assert not any(v.hung for v in host.seen(50)), "its time begins anew"


def test_a_saturated_engine_that_moves_is_well_however_long(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running, engine.waiting, engine.moving, engine.completions = 32, 500, True, "hang"
    assert {(v.ready, v.hung) for v in host.seen(1000)} == {(True, False)}


def test_cache_use_is_movement_while_one_long_prompt_is_read(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running = 1
    for _ in range(20):
        engine.cache_use += 0.01
        assert {v.ready for v in host.seen(10)} == {True}


def test_an_engine_that_computes_on_the_processor_is_well_without_a_token_and_ended_after_ten_times_the_limit(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running, host.computing = 1, (WORKER,)
    verdicts = host.seen(590)
    assert {(v.ready, v.hung) for v in verdicts} == {(True, False)}
    assert host.until(hung)[0] <= 30


def test_a_core_that_spins_over_a_gpu_does_not_count_as_computing_but_a_compiler_does(engine: FakeEngine) -> None:
    host = Host(engine=engine, on_cpu=False)
    host.ready()
    engine.running, host.computing = 1, (CORE,)
    assert 14 <= host.until(unready)[0] <= 20
    engine.tokens += 1
    host.ready()
    host.names[COMPILER], host.computing = "cicc", (CORE, COMPILER)
    assert {v.ready for v in host.seen(300)} == {True}


def test_an_api_server_that_computes_says_nothing_about_its_core(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running, host.computing = 1, (LEADER,)
    assert host.until(hung)[0] <= 66


@pytest.mark.parametrize("process", [LEADER, CORE, WORKER])
def test_a_stopped_process_is_seen_at_once_and_ended_at_the_limit(host: Host, engine: FakeEngine, process: int) -> None:
    host.ready()
    host.states[process] = "T"
    verdict = host.look()
    assert (verdict.ready, verdict.text) == (False, f"{host.names[process]} (process {process}) is stopped (SIGSTOP)")
    assert 58 <= host.until(hung)[0] <= 60


def test_a_process_that_goes_on_is_well_at_once_and_has_its_time_anew(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running = 1
    host.states[CORE] = "T"
    assert not any(v.hung for v in host.seen(59))
    host.states[CORE] = "S"
    assert host.ready()
    assert not any(v.hung for v in host.seen(50))


def test_a_container_that_was_paused_or_a_machine_that_slept_has_not_hung(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.running = 1
    host.seen(10)
    assert not host.look(after_s=3600).hung
    engine.tokens += 1
    assert host.ready()


def test_a_dead_core_is_told_at_once(host: Host, engine: FakeEngine) -> None:
    host.ready()
    engine.health = 503
    after, text = host.until(unready)
    assert (after <= 5, text) == (True, "GET /health: HTTP 503: the engine's core is dead, for 0 s")


def test_an_api_that_is_gone_is_told_at_once_and_ended_at_the_limit(host: Host) -> None:
    host.ready()
    host.engine.__exit__(None, None, None)
    after, text = host.until(unready)
    assert (after <= 5, text) == (True, "GET /health: Connection refused, for 0 s")
    assert 58 <= host.until(hung)[0] <= 62
    host.engine.__enter__()


def test_an_api_that_answers_late_is_left_in_for_a_while_and_longer_while_it_computes(
        host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ANSWER_S", 0.03)
    host.ready()
    engine.health = 0  # it takes the request and does not answer
    host.computing = (LEADER,)
    after, text = host.until(unready)
    assert 15 <= after <= 25
    assert text.startswith("GET /health: no answer in 0 s, for 1")
    assert not any(v.hung for v in host.seen(70))
    host.computing = ()
    assert host.until(hung)[0] <= 62


# --- metrics

@pytest.mark.parametrize("metrics", ["off", "garbage", "error"])
def test_without_metrics_the_probe_alone_decides_and_nothing_is_ended(host: Host, engine: FakeEngine, metrics: str) -> None:
    engine.metrics = metrics
    assert host.ready() == "answers probes; /metrics shows no vllm: counters (ENGINE_DISABLE_LOG_STATS?)"
    engine.completions = "hang"
    after, text = host.until(unready)
    assert after <= 40
    assert text.endswith("; no metrics to see whether it is only busy")
    assert not any(v.hung for v in host.seen(200))


def test_metrics_that_come_too_late_once_prove_nothing(host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ANSWER_S", 0.05)
    host.ready()
    engine.running, engine.metrics = 3, "hang"
    assert {(v.ready, v.hung) for v in host.seen(100)} == {(True, False)}


# --- the processes of a real session

def test_the_processes_of_a_session_are_found_with_name_state_and_processor_time() -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(flush=True)\nwhile True: pass"
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert leader.stdout
        leader.stdout.readline()
        wait_until(lambda: sum(p.cpu_s for p in vitals.processes(leader.pid)) > 0.2, deadline_s=30, what="it has used processor time")
        found = {p.name: p for p in vitals.processes(leader.pid)}
        assert {p.pid == leader.pid for name, p in found.items() if name != "sleep"} == {True}
        assert found["sleep"].state == "S"
        assert found["sleep"].cpu_s < 0.1
        os.kill(found["sleep"].pid, 19)
        wait_until(lambda: {p.name: p for p in vitals.processes(leader.pid)}["sleep"].state == "T", deadline_s=10, what="it is seen stopped")
    finally:
        os.killpg(leader.pid, 9)
        leader.communicate()


def test_something_that_speaks_no_http_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x00\x01SSH-2.0-none\r\n")
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(vitals.NoAnswer, match=r"^GET /health: not HTTP \(BadStatusLine\)$"):
            vitals.Engine(host="127.0.0.1", port=listener.getsockname()[1]).ask("/health", 5)
        thread.join()


# --- ends, and what they may cost

@dataclass
class Clock:
    now: float = 1e9

    def __call__(self) -> float:
        return self.now


def test_three_ends_within_an_hour_are_free_and_each_further_one_waits_twice_as_long(tmp_path: Path) -> None:
    clock = Clock()
    waits = []
    for _ in range(6):
        budget = watch.Budget(tmp_path / "new" / "ends.json", "a", clock)  # a restarted container knows only what is in the file
        waits.append(budget.next_end()[0])
        budget.note()
        clock.now += 60
    assert waits == [0, 0, 0, 300, 600, 1200]
    clock.now += 3600
    assert watch.Budget(tmp_path / "new" / "ends.json", "a", clock).next_end() == (0, "")


def test_replicas_that_share_a_cache_have_budgets_of_their_own(tmp_path: Path) -> None:
    one, other = (watch.Budget(tmp_path / "ends.json", who) for who in ("a", "b"))
    for _ in range(4):
        one.note()
    assert one.next_end() == (300, "it was ended 4 times within the last hour") or one.next_end()[0] == 600
    assert other.next_end() == (0, "")


@pytest.mark.parametrize("text", ["", "no json", "{}", "[[1]]", '[["a", "x"]]', "[3]", '[["a", 1e99], ["a", 1e99], ["a", 1e99]]'])
def test_a_broken_file_and_a_clock_that_was_set_back_count_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "ends.json").write_text(text)
    assert watch.Budget(tmp_path / "ends.json", "a").next_end() == (0, "")


def test_who_cannot_remember_waits_every_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wait_s, why = watch.Budget(tmp_path / "file" / "ends.json", "a").next_end()
    assert wait_s == 300
    assert why.startswith("how often it was ended cannot be kept in ")


# --- the watchdog: its port, and what Docker's health check makes of it

@dataclass(kw_only=True)
class Served:
    """A watchdog that looks every few milliseconds at a watch that says what the test wants."""

    verdict: watch.Verdict
    said: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def look(self) -> watch.Verdict:
        return self.verdict

    def start(self, budget: watch.Budget, port: int | None) -> watch.Watchdog:
        self.watchdog = watch.Watchdog(self, budget, end=self.ended.append, say=self.said.append, port=port)  # type: ignore[arg-type]
        return self.watchdog


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.005)


@pytest.fixture
def served(quick: None, tmp_path: Path) -> Iterator[Served]:
    one = Served(verdict=watch.Verdict(ready=False, text=LOADING))
    one.start(watch.Budget(tmp_path / "ends.json", "a"), None)
    yield one
    one.watchdog.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(port: int, path: str = "/ready") -> tuple[int, str]:
    # Not by a proxy: what the test's own environment says must not matter.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def check(port: int, *arguments: str, script: str = "ready.py", **extra: str) -> tuple[int, str]:
    """Docker's health check, or another script beside it, as a process of its own."""
    done = subprocess.run([sys.executable, "-S", str(ROOT / "healthchecks" / script), *arguments], env={"HEALTH_PORT": str(port), **extra},
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_port_and_dockers_check_tell_the_verdict_and_no_proxy_stands_between(quick: None, tmp_path: Path) -> None:
    port = free_port()
    one = Served(verdict=watch.Verdict(ready=True, text="3 running, 0 waiting"))
    one.start(watch.Budget(tmp_path / "ends.json", "a"), port)
    proxied = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    wait_until(lambda: get(port) == (200, "3 running, 0 waiting\n"), deadline_s=10, what="it is ready")
    assert check(port, **proxied) == (0, "ok: 3 running, 0 waiting\n")
    assert get(port, "/elsewhere")[0] == 404
    one.verdict = watch.Verdict(ready=False, text="no token for 20 s with 3 running, 0 waiting")
    wait_until(lambda: get(port)[0] == 503, deadline_s=10, what="it is not ready")
    assert check(port, **proxied) == (1, "no token for 20 s with 3 running, 0 waiting\n")
    one.verdict = watch.Verdict(ready=True, text="again")
    wait_until(lambda: get(port)[0] == 200, deadline_s=10, what="it is ready again")
    one.watchdog.stop()
    assert get(port) == (503, "the engine is stopping\n")


def test_who_asks_and_hangs_up_leaves_nothing_in_the_log(quick: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As HAProxy does, twice a second: it has its answer with the first bytes, and resets the connection."""
    port = free_port()
    one = Served(verdict=watch.Verdict(ready=True, text="well"))
    one.start(watch.Budget(tmp_path / "ends.json", "a"), port)
    wait_until(lambda: get(port)[0] == 200, deadline_s=10, what="it is ready")
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert get(port)[0] == 200
    one.watchdog.stop()
    assert capfd.readouterr().err == ""


def test_dockers_check_says_when_nobody_watches() -> None:
    code, line = check(free_port())
    assert (code, line.startswith("the watch does not answer: ")) == (1, True)


def test_a_port_that_is_taken_is_told_and_the_engine_watched_all_the_same(quick: None, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        one = Served(verdict=watch.Verdict(ready=False, text="no token", hung=True))
        one.start(watch.Budget(tmp_path / "ends.json", "a"), taken.getsockname()[1])
        wait_until(lambda: one.ended == ["no token"], deadline_s=10, what="it is ended")
        assert any("Address already in use" in line for line in one.said)


def test_a_watch_that_no_longer_looks_is_not_ready(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.verdict = watch.Verdict(ready=True, text="well")
    wait_until(lambda: served.watchdog.verdict().ready, deadline_s=10, what="it is ready")
    served.look = lambda: time.sleep(3600)  # type: ignore[method-assign,assignment,return-value]
    monkeypatch.setattr(watch, "STALE_S", 0.2)
    wait_until(lambda: not served.watchdog.verdict().ready, deadline_s=10, what="its last word is old")
    assert served.watchdog.verdict().text.startswith("the watch has not looked for ")


def test_a_check_that_would_end_the_engine_hears_of_its_own_watch_alone(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    one = Served(verdict=watch.Verdict(ready=False, text="no token for 20 s with 300 running, 900 waiting"))
    one.start(watch.Budget(tmp_path / "ends.json", "a"), port)
    wait_until(lambda: "no token" in get(port)[1], deadline_s=10, what="it is out of service")
    assert check(port, "live") == (0, "ok: the watch looks\n")
    one.look = lambda: time.sleep(3600)  # type: ignore[method-assign,assignment,return-value]
    monkeypatch.setattr(watch, "STALE_S", 0.2)
    wait_until(lambda: get(port, "/live")[0] == 503, deadline_s=10, what="nobody looks any more")
    code, line = check(port, "live")
    assert (code, line.startswith("the watch has not looked for ")) == (1, True)
    one.watchdog.stop()
    assert check(port, "live")[0] == 0, "an engine that is stopping is not killed for it"
    assert check(free_port(), "live")[0] == 1


def test_an_engine_that_drains_is_out_at_once_and_gets_time_for_what_it_has(quick: None, tmp_path: Path, engine: FakeEngine) -> None:
    port, taken = free_port(), engine.url.rpartition(":")[2]
    one = Served(verdict=watch.Verdict(ready=True, text="1 running, 0 waiting"))
    one.start(watch.Budget(tmp_path / "ends.json", "a"), port)
    wait_until(lambda: get(port)[0] == 200, deadline_s=10, what="it is ready")
    engine.running = 1
    done: list[tuple[int, str]] = []
    drain = threading.Thread(target=lambda: done.append(check(port, script="drain.py", ENGINE_PORT=taken, ENGINE_SHUTDOWN_TIMEOUT="60")))
    drain.start()
    wait_until(lambda: get(port) == (503, "the engine drains: 1 running, 0 waiting\n"), deadline_s=10, what="the gateway leaves it out")
    drain.join(7)
    assert drain.is_alive(), "a request still runs"
    assert not one.ended
    engine.running = 0
    drain.join(10)
    assert done == [(0, "no new requests\n")]
    one.watchdog.stop()


@pytest.mark.parametrize("port", ["8", "0"])
def test_a_drain_without_a_watch_and_an_engine_ends_by_itself(port: str) -> None:
    assert check(free_port(), script="drain.py", ENGINE_PORT=port, ENGINE_SHUTDOWN_TIMEOUT="1") == (0, "the watch does not answer\n")


def test_only_the_container_itself_can_drain_its_engine(quick: None, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("192.0.2.1", 9))  # which sends nothing: it picks the address that this host would send from
        address = asked.getsockname()[0]
    one = Served(verdict=watch.Verdict(ready=True, text="well"))
    one.start(watch.Budget(tmp_path / "ends.json", "a"), port)
    wait_until(lambda: get(port)[0] == 200, deadline_s=10, what="it is ready")
    connection = http.client.HTTPConnection(address, port, timeout=10)
    connection.request("POST", "/drain")
    assert connection.getresponse().status == 404
    assert get(port)[0] == 200
    one.watchdog.stop()


def test_each_change_is_told_once(served: Served) -> None:
    for number, ready in enumerate([True, False, True], start=1):
        served.verdict = watch.Verdict(ready=ready, text="why")
        wait_until(lambda: len(served.said) == number, deadline_s=10, what="it is told")  # noqa: B023  (waited for at once)
    assert served.said == ["the engine is ready: why", "the engine is out of service: why", "the engine is ready: why"]


def test_an_engine_that_was_ended_too_often_is_left_alone_for_a_while_and_that_is_said(quick: None, tmp_path: Path) -> None:
    budget = watch.Budget(tmp_path / "ends.json", "a")
    for _ in range(3):
        one = Served(verdict=watch.Verdict(ready=False, text="no token", hung=True))
        one.start(budget, None)
        wait_until(lambda: one.ended == ["no token"], deadline_s=10, what="it is ended")  # noqa: B023  (waited for at once)
    assert len(json.loads((tmp_path / "ends.json").read_text())) == 3
    last = Served(verdict=watch.Verdict(ready=False, text="no token", hung=True))
    last.start(budget, None)
    wait_until(lambda: bool(last.said), deadline_s=10, what="it says so")
    assert last.said == ["the engine hangs: no token; it was ended 3 times within the last hour: it is left alone for 300 s more. "
                         "`make restart` does not wait"]
    assert last.ended == []
    last.watchdog.stop()
