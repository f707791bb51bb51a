"""What a soak makes of what it saw, and of wrong answers."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread

import pytest

from bundle.smoke.client import Server
from bundle.soak import findings
from bundle.soak.load import Clients, Request
from bundle.soak.samples import Sample, idle
from fake_openai import FakeOpenAI

WHOLE_S = 600.0
STEADY = [Request(at=at, kind="stream", outcome="right", first_s=0.1, token_s=0.01) for at in range(600)]


def seen(mib: Sequence[float] = (900, 900), descriptors: Sequence[int] = (50, 50)) -> list[Sample]:
    """Samples of one engine that goes from the first to the second value over the run."""
    def between(ends: Sequence[float], share: float) -> float:
        return ends[0] + (ends[1] - ends[0]) * share
    return [Sample(at=at, service="engine", anonymous_mib=between(mib, at / WHOLE_S), gauges={"num_requests_running": 0.0},
                   processes={"core 7": [between(mib, at / WHOLE_S), between(descriptors, at / WHOLE_S)]}) for at in range(0, 600, 5)]


def broken(requests: Sequence[Request] = STEADY, samples: Sequence[Sample] = (), restarted: Sequence[str] = (), whole_s: float = WHOLE_S) -> set[str]:
    samples = samples or seen()
    return {one.name for one in findings.checks(requests, samples, samples[-1:], restarted, whole_s) if one.ok is False}


def test_what_stays_as_it_was_is_well() -> None:
    assert broken() == set()


@pytest.mark.parametrize(("samples", "names"), [
    (seen(mib=(900, 1100)), {"memory"}),
    (seen(mib=(900, 940)), set()),
    (seen(descriptors=(50, 150)), {"descriptors"}),
])
def test_what_grows_is_found(samples: list[Sample], names: set[str]) -> None:
    assert broken(samples=samples) == names


def test_a_process_that_comes_and_goes_is_no_line_of_its_own() -> None:
    check = Sample(at=5, service="engine", anonymous_mib=900, gauges={}, processes={"python 99": [10.0, 4.0]})
    assert set(findings.memory([*seen(), check])) == {"engine, all", "engine: core 7"}
    assert set(findings.descriptors([*seen(), check])) == {"engine: core 7"}


def test_latency_that_drifts_is_found_and_in_a_short_run_not_judged() -> None:
    drifting = [Request(at=at, kind="stream", outcome="right", first_s=0.1 + at / 600, token_s=0.01) for at in range(600)]
    assert broken(drifting) == {"time to first token"}
    assert broken(drifting, whole_s=60) == set()


def test_a_restart_a_wrong_answer_and_work_left_over_are_found() -> None:
    assert broken(restarted=["engine"]) == {"restarts"}
    assert broken([*STEADY, Request(at=9, kind="whole", outcome="wrong", note="16 times token 0")]) == {"requests"}
    left = [Sample(at=0, service="engine", anonymous_mib=1, processes={}, gauges={"kv_cache_usage_perc": 0.1})]
    assert not idle(left)
    assert "KV cache and queue" in {one.name for one in findings.checks(STEADY, seen(), left, [], WHOLE_S) if one.ok is False}
    assert not idle([]), "nobody who answers is no sign of rest"


@contextmanager
def clients(*faults: str) -> Iterator[Clients]:
    fake = FakeOpenAI(("127.0.0.1", 0), set(faults))
    Thread(target=fake.serve_forever, daemon=True).start()
    try:
        server = Server(url=fake.url, ours=True)
        server.connect()
        yield Clients(server)
    finally:
        fake.shutdown()
        fake.server_close()


def outcomes(*faults: str) -> dict[str, set[str]]:
    """How each kind of request ended with a server that has these faults."""
    with clients(*faults) as load:
        for kind, ask in load.kinds.items():
            for number in range(6):
                load.one(kind, ask, random.Random(number))
        return {kind: {one.outcome for one in load.requests if one.kind == kind} for kind in load.kinds}


@pytest.mark.parametrize(("fault", "kinds"), [("", set()), ("no-done", {"stream"}), ("wrong-usage", {"whole", "stream", "same"})])
def test_a_server_that_answers_wrongly_is_found_out(fault: str, kinds: set[str]) -> None:
    found = outcomes(*([fault] if fault else []))
    assert "wrong" in found.pop("bad"), "the fake takes values that have to be refused"
    assert {kind for kind, each in found.items() if each != {"right"}} == kinds
