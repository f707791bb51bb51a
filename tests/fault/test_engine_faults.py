"""One real deployment on the CPU, and what becomes of its requests when a part of it hangs or dies.

What was found stands in reports/faults.json (support/faultlog.py).
"""

import json
import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.clients import Tally, ask
from support.deployed import CACHE_BYTES, CONTEXT, DIRECT, KEY, SIGN_S, STALL_S, Deployed, held
from support.faultlog import record
from support.gateway import docker
from support.project import wait_until

# --- what looks like a hang and is none

def test_a_saturated_engine_is_in_service_all_the_time(served: Deployed) -> None:
    verdicts: list[tuple[int, str]] = []
    began = served.state["StartedAt"]

    def look() -> bool:
        verdicts.append(served.verdict())
        return sum(bool(re.search("^16 running, [1-9]", text)) for _, text in verdicts) >= 20

    with served.asked_by(32, tokens=200) as tally:
        wait_until(look, deadline_s=300, what="it computes all 16 requests that it takes at once while others wait, time and again")
    assert [verdict for verdict in verdicts if verdict[0] != 200] == []
    assert served.state["StartedAt"] == began
    assert tally.outcomes.keys() == {"right"}, tally.notes


def read(served: Deployed, tokens: int) -> None:
    """Have a prompt of so many tokens read, in one step."""
    body = {"model": "selftest", "prompt": [5 + (n * n + tokens) % 200 for n in range(tokens)], "max_tokens": 1}
    asking = urllib.request.Request(f"{served.url}/v1/completions", json.dumps(body).encode(),
                                    {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
    with DIRECT.open(asking, timeout=300) as answer:
        assert json.load(answer)["usage"]["prompt_tokens"] == tokens


def test_reading_one_long_prompt_in_one_step_is_no_hang_though_no_counter_moves_for_seconds(served: Deployed) -> None:
    began, verdicts, longest = served.state["StartedAt"], [], 0.0
    with ThreadPoolExecutor() as pool:
        for tokens in (CONTEXT // 4, CONTEXT // 2, CONTEXT - 8):  # until this machine is still for longer than the watch takes for a first sign
            still: list[tuple[float, float]] = []
            answer = pool.submit(read, served, tokens)
            while not answer.done():
                verdicts.append(served.verdict())
                still.append((served.metric("kv_cache_usage_perc") + served.metric("prompt_tokens_total"), time.monotonic()))
                time.sleep(0.2)
            answer.result()
            longest = max(max(at for value, at in still if value == one) - min(at for value, at in still if value == one) for one, _ in still)
            if longest > SIGN_S:
                break
    assert longest > SIGN_S, f"the case is a step in which nothing moves for long, and the longest prompt has {longest:.1f} s"
    assert [verdict for verdict in verdicts if verdict[0] != 200] == []
    assert served.state["StartedAt"] == began


def test_a_core_that_stands_still_is_out_of_service_within_seconds_though_health_is_green_and_back_once_it_goes_on(served: Deployed) -> None:
    began = served.state["StartedAt"]
    with served.asked_by(4, tokens=400) as tally, held(served.process("VLLM::EngineCore")):
        since = time.monotonic()
        wait_until(lambda: served.verdict()[0] == 503, deadline_s=STALL_S, what="it is out of service")
        took, (_, text) = time.monotonic() - since, served.verdict()
        assert re.fullmatch(r"no token for \d+ s with [34] running, 0 waiting", text), text
        with DIRECT.open(f"http://{served.address}:8000/health", timeout=60) as answer:
            assert answer.status == 200, "the case is that /health notices nothing"
    wait_until(lambda: served.verdict()[0] == 200, deadline_s=60, what="it is in service again")
    assert served.state["StartedAt"] == began, "it was not given its time"
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    record("core stands still for a moment, /health green", "out of service within seconds, not ended, back when it moves", tally, took)


# --- what ends an engine

def test_a_stopped_core_is_out_of_service_at_once_and_ended_and_the_engine_comes_back_by_itself(served: Deployed) -> None:
    before = served.state["StartedAt"]
    with served.asked_by(8) as tally:
        core, since = served.process("VLLM::EngineCore"), time.monotonic()
        os.kill(core, signal.SIGSTOP)
        wait_until(lambda: served.verdict()[0] == 503, deadline_s=STALL_S, what="it is out of service")
        assert re.fullmatch(r"VLLM::EngineCor \(process \d+\) is stopped \(SIGSTOP\)", served.verdict()[1])
        wait_until(lambda: served.started_after(before), deadline_s=STALL_S + 60, what="its container is started anew")
        recovery_s = served.recovered(tally, since)
    assert re.search(r"^entrypoint: the engine hung and was ended after \d+ s: VLLM::EngineCor \(process \d+\) is stopped", served.log(before), re.M)
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    record("core stopped (SIGSTOP)", "out of service at once, ended, back by itself", tally, recovery_s)


def test_with_a_full_cache_it_serves_on_and_a_killed_core_ends_the_engine_with_its_reason_and_it_comes_back_by_itself(served: Deployed) -> None:
    before = served.state["StartedAt"]
    cache = docker("volume", "inspect", "--format", '{{.Options.device}}', f"{served.project.name}_cache").strip()
    filler = Path(cache, "filler")
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2 * CACHE_BYTES))
    try:
        with served.asked_by(4) as full:
            wait_until(lambda: full.outcomes["right"] >= 40, deadline_s=120, what="ten answers for each")
        with served.asked_by(8) as tally:
            since = time.monotonic()
            os.kill(served.process("VLLM::EngineCore"), signal.SIGKILL)
            wait_until(lambda: served.started_after(before), deadline_s=60, what="its container is started anew")
            recovery_s = served.recovered(tally, since)
    finally:
        filler.unlink()
    line = r"^entrypoint: the engine ended unasked with code 0 after \d+ s; its last error: .*engine core exited unexpectedly"
    assert re.search(line, served.log(before), re.MULTILINE), served.log(before)[-2000:]
    assert full.outcomes.keys() == {"right"}, full.notes
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    record("cache volume full", "serves on", full)
    record("core killed, cache volume full", "every request ends with an answer or an error, the engine comes back by itself", tally, recovery_s)


def test_a_gateway_that_is_killed_is_back_at_once(served: Deployed) -> None:
    gateway = served.project.containers()["gateway"].id
    with served.asked_by(8) as tally:
        since = time.monotonic()
        os.kill(served.process("haproxy", gateway), signal.SIGKILL)
        wait_until(lambda: any(at > since + 1 for at in tally.right_at), deadline_s=60, what="a client is answered again")
        recovery_s = min(at for at in tally.right_at if at > since + 1) - since
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    assert json.loads(docker("inspect", "--format", "{{.RestartCount}}", gateway)) >= 1
    record("gateway killed", "connections break visibly, back by itself", tally, recovery_s)


def test_a_running_stream_is_finished_after_sigterm_and_the_end_is_clean_and_meanwhile_it_is_out_of_service(served: Deployed) -> None:
    before = served.state["StartedAt"]
    tally = Tally()
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(ask, served.url, tally, key=KEY, stream=True, tokens=800)
        wait_until(lambda: served.metric("num_requests_running") == 1, deadline_s=60, what="the stream runs")
        os.kill(served.state["Pid"], signal.SIGTERM)
        wait_until(lambda: served.verdict() == (503, "the engine is stopping"), deadline_s=10, what="it is out of service")
        assert stream.result() == "right", tally.notes
    wait_until(lambda: served.started_after(before), deadline_s=60, what="it has ended")
    assert "entrypoint: the engine was asked to stop (SIGTERM) and ended with code 0 after " in served.log(before)
    record("engine told to stop (SIGTERM) under a stream", "the stream ends whole", tally)
