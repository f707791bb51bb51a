"""The health scripts, run as the container runs them, against a fake engine whose faults a real one cannot be made to show."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle import ROOT
from fake_engine import FakeEngine

COMPLETION = "POST /v1/completions"


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    line: str


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where the checks run: their memory is in `tmp`."""

    tmp: Path
    engine: FakeEngine

    def run(self, check: str, **extra: str) -> Answer:
        # Short only where the limit itself is what ends the check: a slow machine must not make a test fail.
        limit_s = 1 if self.engine.completions in ("hang", "drip") else 2 if self.engine.metrics == "hang" else 20
        environment = {"HEALTH_URL": self.engine.url, "HEALTH_TIMEOUT_S": str(limit_s), "TMPDIR": str(self.tmp), "PATH": os.environ["PATH"], **extra}
        done = subprocess.run([sys.executable, "-S", str(ROOT / "healthchecks" / f"{check}.py")], env=environment, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.stderr == "", done.stderr
        assert done.stdout.endswith("\n")
        assert done.stdout.count("\n") == 1, f"not one line: {done.stdout!r}"
        assert len(done.stdout) < 400
        return Answer(code=done.returncode, line=done.stdout.strip())

    def ok(self, check: str, **extra: str) -> str:
        answer = self.run(check, **extra)
        assert answer.code == 0, answer.line
        return answer.line

    def fails(self, check: str, **extra: str) -> str:
        answer = self.run(check, **extra)
        assert answer.code == 1, answer.line
        return answer.line

    def later(self, seconds: float) -> None:
        """Let the checks' memory be `seconds` older, instead of waiting."""
        for path in self.tmp.glob("*.json"):
            kept = json.loads(path.read_text())
            kept["at"] -= seconds
            kept["since"] -= seconds if kept["since"] else 0
            path.write_text(json.dumps(kept))


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as fake:
        yield fake


@pytest.fixture
def host(tmp_path: Path, engine: FakeEngine) -> Host:
    return Host(tmp=tmp_path, engine=engine)


# --- all of them

@pytest.mark.parametrize("check", ["live", "ready", "progress"])
def test_a_healthy_idle_engine_passes_every_check(host: Host, check: str) -> None:
    assert host.ok(check).startswith("ok: ")


@pytest.mark.parametrize("check", ["live", "ready", "progress"])
def test_nothing_listening_fails_with_the_reason(tmp_path: Path, check: str) -> None:
    with FakeEngine() as gone:
        pass
    assert Host(tmp=tmp_path, engine=gone).fails(check) == "GET /health: Connection refused"


@pytest.mark.parametrize("check", ["live", "ready"])
def test_a_dead_core_fails_with_the_reason(host: Host, engine: FakeEngine, check: str) -> None:
    engine.health = 503
    assert host.fails(check) == "GET /health: HTTP 503: the engine's core is dead"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:8000", "127.0.0.1:8000", "http://127.0.0.1:abc"])
def test_a_url_that_is_none_is_named(host: Host, url: str) -> None:
    assert host.fails("live", HEALTH_URL=url) == f"HEALTH_URL={url!r} is not http://host:port"


@pytest.mark.parametrize(("check", "name"), [("live", "HEALTH_TIMEOUT_S"), ("progress", "HEALTH_STALL_S")])
def test_a_time_that_is_no_number_is_named(host: Host, check: str, name: str) -> None:
    assert host.fails(check, **{name: "soon"}) == f"{name}='soon' is not a positive number of seconds"


def test_something_that_speaks_no_http_fails_with_the_reason(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x00\x01SSH-2.0-none\r\n")
        thread = threading.Thread(target=answer)
        thread.start()
        line = host.fails("live", HEALTH_URL=f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert line == "GET /health: not HTTP (BadStatusLine)"


# --- live

def test_live_does_not_mind_a_hung_completion(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.ok("live")
    assert engine.asked == ["GET /health"]


# --- ready

def test_ready_asks_an_idle_engine_for_one_token(host: Host, engine: FakeEngine) -> None:
    assert host.ok("ready").startswith("ok: one token in ")
    assert engine.count(COMPLETION) == 1


def test_ready_fails_when_health_is_200_and_completions_hang(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    assert host.fails("ready") == "POST /v1/completions: no answer in 1 s; no token meanwhile, 0 running, 0 waiting"


def test_ready_is_not_deceived_by_a_server_that_drips(host: Host, engine: FakeEngine) -> None:
    engine.completions = "drip"
    assert host.fails("ready").startswith("POST /v1/completions: no answer in 1 s")


def test_ready_asks_a_hung_engine_no_second_time_at_once(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.fails("ready")
    assert host.fails("ready").endswith("s ago got no answer, and nothing moved since: the engine hangs")
    assert engine.count(COMPLETION) == 1


def test_ready_asks_a_hung_engine_again_after_a_pause_and_sees_it_well(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.fails("ready")
    host.later(40)
    engine.completions = "answer"
    assert host.ok("ready").startswith("ok: one token in ")


def test_ready_asks_a_hung_engine_again_as_soon_as_it_has_moved(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.fails("ready")
    host.later(22)
    engine.completions = "answer"
    engine.tokens += 1
    assert host.ok("ready").startswith("ok: one token in ")


def test_ready_sees_a_hung_engine_well_as_soon_as_requests_of_others_succeed(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.fails("ready")
    engine.tokens += 20
    engine.succeeded += 1
    assert host.ok("ready").startswith("ok: 1 requests succeeded in ")


def test_what_ready_broke_off_itself_is_no_success(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.fails("ready")
    engine.aborted += 1
    host.fails("ready")


def test_ready_leaves_its_completion_out_while_requests_of_others_succeed(host: Host, engine: FakeEngine) -> None:
    host.ok("ready")
    engine.tokens += 100
    engine.succeeded += 5
    assert host.ok("ready").startswith("ok: 5 requests succeeded in ")
    assert engine.count(COMPLETION) == 1


def test_requests_that_clients_broke_off_are_no_proof(host: Host, engine: FakeEngine) -> None:
    host.ok("ready")
    engine.tokens += 2
    engine.aborted += 1
    host.ok("ready")
    assert engine.count(COMPLETION) == 2


def test_its_own_completion_does_not_count_as_a_request_of_others(host: Host, engine: FakeEngine) -> None:
    host.ok("ready")
    host.ok("ready")
    assert engine.count(COMPLETION) == 2


def test_a_saturated_engine_that_moves_is_ready_without_being_asked_for_more(host: Host, engine: FakeEngine) -> None:
    host.ok("ready")
    engine.completions, engine.running, engine.waiting, engine.moving = "hang", 32, 100, True
    assert host.ok("ready").endswith(", 32 running, 100 waiting")
    assert engine.count(COMPLETION) == 1


def test_a_saturated_engine_that_moves_is_ready_at_the_first_look_too(host: Host, engine: FakeEngine) -> None:
    engine.completions, engine.running, engine.waiting, engine.moving = "hang", 32, 100, True
    assert host.ok("ready") == "ok: busy and moving: 32 running, 100 waiting"


def test_a_full_queue_is_ready_while_tokens_come_and_not_when_they_stop(host: Host, engine: FakeEngine) -> None:
    engine.completions, engine.running, engine.moving = "full", 32, True
    assert host.ok("ready") == "ok: busy and moving: 32 running, 0 waiting"
    engine.moving = False
    host.later(100)
    assert host.fails("ready") == "POST /v1/completions: HTTP 503: The request queue is full.; no token meanwhile, 32 running, 0 waiting"


def test_a_saturated_engine_that_freezes_is_not_ready(host: Host, engine: FakeEngine) -> None:
    engine.running, engine.moving = 32, True
    host.ok("ready")
    engine.completions, engine.moving = "hang", False
    assert host.fails("ready") == "POST /v1/completions: no answer in 1 s; no token meanwhile, 32 running, 0 waiting"


def test_the_prefill_of_one_long_prompt_counts_as_moving(host: Host, engine: FakeEngine) -> None:
    engine.running, engine.cache_use = 1, 0.1
    host.ok("ready")
    engine.completions, engine.cache_use = "hang", 0.2
    host.ok("ready")


def test_what_was_seen_long_ago_proves_nothing(host: Host, engine: FakeEngine) -> None:
    host.ok("ready")
    engine.succeeded, engine.tokens, engine.completions = 50, 1000, "hang"
    host.later(120)
    host.fails("ready")


@pytest.mark.parametrize("metrics", ["off", "garbage", "error", "hang"])
def test_ready_without_metrics_goes_by_the_completion_alone(host: Host, engine: FakeEngine, metrics: str) -> None:
    engine.metrics, engine.delay_s = metrics, 0.2
    assert host.ok("ready").startswith("ok: one token in ")
    engine.completions = "hang"
    assert host.fails("ready").endswith("; no metrics to see whether it is only busy")


@pytest.mark.parametrize(("completions", "line"), [
    ("error", "POST /v1/completions: HTTP 500: EngineCore encountered an issue."),
    ("garbage", "POST /v1/completions: HTTP 200: <html>not the engine</html>"),
    ("empty", 'POST /v1/completions: HTTP 200: {"choices":[]}'),
])
def test_a_completion_that_is_none_fails_with_what_came(host: Host, engine: FakeEngine, completions: str, line: str) -> None:
    engine.completions = completions
    assert host.fails("ready") == line
    host.later(25)
    assert host.fails("ready") == line, "an answer, however wrong, is no hang"


def test_no_model_fails_with_the_reason(host: Host, engine: FakeEngine) -> None:
    engine.models = ()
    assert host.fails("ready") == 'GET /v1/models lists no model: HTTP 200: {"object": "list", "data": []}'


def test_ready_works_without_a_place_to_remember_in(host: Host, engine: FakeEngine) -> None:
    host.ok("ready", TMPDIR="/nonexistent")
    host.ok("ready", TMPDIR="/nonexistent")
    assert engine.count(COMPLETION) == 2


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"at": "x"}', '{"at": 1, "since": "x"}', '{"at": 1e99}', '{"at": 1, "progress": 3}'])
@pytest.mark.parametrize("check", ["ready", "progress"])
def test_a_broken_memory_is_no_memory(host: Host, check: str, text: str) -> None:
    host.ok(check)
    (kept,) = host.tmp.glob(f"*{check}*.json")
    kept.write_text(text)
    host.ok(check)


def test_two_engines_on_one_host_do_not_share_a_memory(host: Host, engine: FakeEngine) -> None:
    engine.completions = "hang"
    host.fails("ready")
    host.later(22)
    with FakeEngine() as other:
        assert Host(tmp=host.tmp, engine=other).ok("ready").startswith("ok: one token in ")


# --- progress

def test_progress_fails_when_requests_run_and_no_token_comes_for_the_limit(host: Host, engine: FakeEngine) -> None:
    engine.running, engine.waiting = 3, 2
    assert host.ok("progress") == "ok: 3 running, 2 waiting"
    host.later(30)
    assert re.fullmatch(r"ok: 3 running, 2 waiting; no token for \d+ s of 60 s", host.ok("progress"))
    host.later(31)
    assert re.fullmatch(r"no token for 6\d s with 3 running, 2 waiting: the engine hangs", host.fails("progress"))


def test_progress_passes_again_once_a_token_has_come(host: Host, engine: FakeEngine) -> None:
    engine.running = 3
    host.ok("progress")
    host.later(40)
    host.ok("progress")
    host.later(40)
    host.fails("progress")
    engine.tokens += 1
    assert host.ok("progress") == "ok: 3 running, 0 waiting"


def test_a_saturated_engine_that_moves_makes_progress_however_long(host: Host, engine: FakeEngine) -> None:
    engine.running, engine.waiting, engine.moving = 32, 500, True
    for _ in range(4):
        assert host.ok("progress") == "ok: 32 running, 500 waiting"
        host.later(50)


def test_an_idle_engine_makes_progress_enough(host: Host) -> None:
    host.ok("progress")
    host.later(50)
    host.ok("progress")
    host.later(50)
    assert host.ok("progress") == "ok: 0 running, 0 waiting"


def test_a_request_that_has_just_begun_is_not_held_to_a_look_long_ago(host: Host, engine: FakeEngine) -> None:
    engine.running = 1
    host.ok("progress")
    host.later(3600)
    assert host.ok("progress") == "ok: 1 running, 0 waiting"


def test_the_limit_of_progress_can_be_set(host: Host, engine: FakeEngine) -> None:
    engine.running = 1
    host.ok("progress", HEALTH_STALL_S="600")
    host.later(500)
    host.ok("progress", HEALTH_STALL_S="600")
    host.later(200)
    host.fails("progress", HEALTH_STALL_S="600")


@pytest.mark.parametrize("metrics", ["off", "garbage", "error", "hang"])
def test_progress_without_metrics_says_that_it_cannot_see_and_answers_as_live_does(host: Host, engine: FakeEngine, metrics: str) -> None:
    engine.metrics = metrics
    assert "cannot see whether it moves" in host.ok("progress")
    engine.health = 503
    assert host.fails("progress") == "GET /health: HTTP 503: the engine's core is dead"


def test_progress_without_a_place_to_remember_in_says_so(host: Host, engine: FakeEngine) -> None:
    engine.running = 1
    assert "cannot see whether it moves" in host.ok("progress", TMPDIR="/nonexistent")
