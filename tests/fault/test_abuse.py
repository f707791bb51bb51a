"""What a client, an operator's mistake or a neighbour does to a running deployment, and that it serves on.

What was found stands in reports/faults.json (support/faultlog.py).
"""

import http.client
import json
import random
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from bundle import ROOT
from support.clients import Tally, in_form
from support.deployed import KEY, Deployed
from support.faultlog import record
from support.gateway import docker
from support.project import ON_CPU, wait_until

MALFORMED = 10_000
HALF_OPEN = 1_000
GOOD: Mapping[str, Any] = {"model": "selftest", "prompt": "1", "max_tokens": 1}
CHAT: Mapping[str, Any] = {"model": "selftest", "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}


# --- ten thousand requests that are none

def malformed(number: int) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers of the `number`-th request that has to be refused; the same one in every run."""
    dice = random.Random(number)
    keyed = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    path, good = dice.choice([("/v1/completions", GOOD), ("/v1/chat/completions", CHAT)])
    whole = json.dumps(good).encode()
    field, value = dice.choice([("max_tokens", -1), ("max_tokens", "many"), ("max_tokens", 10**30), ("temperature", -1), ("temperature", "hot"),
                                ("n", 0), ("n", "all"), ("top_p", 7), ("model", "no-such-model"), ("stop", {"a": 1}), ("logit_bias", 3),
                                ("stream", "maybe"), ("presence_penalty", 99)])
    required = "prompt" if "prompt" in good else "messages"
    return dice.choice([
        ("POST", path, dice.randbytes(dice.randrange(1, 200)) + b"\xff", keyed),
        ("POST", path, whole[:dice.randrange(1, len(whole))], keyed),
        ("POST", path, dice.choice([b"[]", b"1", b'"x"', b"null", b"{}", b"\xef\xbb\xbf{", b"{'a':1}"]), keyed),
        ("POST", path, json.dumps({**good, field: value}).encode(), keyed),
        ("POST", path, json.dumps({**good, field: value}).encode(), keyed),
        ("POST", path, json.dumps({name: kept for name, kept in good.items() if name != required}).encode(), keyed),
        ("POST", path, json.dumps({**good, required: dice.choice([7.5, {"a": 1}, [[]], [{"role": 3}], [-1]])}).encode(), keyed),
        ("POST", path, b'{"a":' * 5000 + b"1" + b"}" * 5000, keyed),
        ("POST", path, whole, dice.choice([{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}])),
        (dice.choice(["POST", "PUT", "DELETE", "PATCH"]), f"/{dice.randbytes(8).hex()}", whole, keyed),
        ("DELETE", path, whole, keyed),
    ])


def test_ten_thousand_malformed_requests_are_refused_and_the_next_good_one_is_answered(served: Deployed) -> None:
    began, target = served.state["StartedAt"], urlsplit(served.url)
    tally = Tally()
    examples: dict[str, str] = {}

    def client(numbers: range) -> None:
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=120)
        for number in numbers:
            method, path, body, headers = malformed(number)
            try:
                connection.request(method, path, body, headers)
                reply = connection.getresponse()
                data = reply.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                outcome, note = ("lost" if isinstance(error, TimeoutError) else "wrong"), type(error).__name__
            else:
                refused = 400 <= reply.status < 500
                outcome = "failed in form" if refused and in_form(data) else "wrong"
                note = f"HTTP {reply.status}"
            if outcome != "failed in form":
                examples.setdefault(note, f"{method} {path} {body[:200]!r} {data[:200]!r}")
            tally.outcomes[outcome] += 1
            tally.notes[note] += 1
        connection.close()

    with ThreadPoolExecutor(max_workers=8) as pool:
        for one in [pool.submit(client, range(number, MALFORMED, 8)) for number in range(8)]:
            one.result()
    assert tally.outcomes == {"failed in form": MALFORMED}, (tally.notes, examples)
    assert served.right()
    assert served.state["StartedAt"] == began
    record("10,000 malformed requests", "each is refused in form, the service does not notice", tally)


# --- connections that never say what they want

ELSEWHERE = """
import http.client, sys, time
began = time.monotonic()
connection = http.client.HTTPConnection("gateway", 8005, timeout=60)
connection.request("GET", "/health")
print(connection.getresponse().status, time.monotonic() - began)
"""


def elsewhere(served: Deployed) -> tuple[int, float]:
    """Status and seconds of /health at the gateway, asked from another address than ours."""
    status, took = docker("exec", served.engine, "/opt/venv/bin/python", "-S", "-c", ELSEWHERE).split()
    return int(status), float(took)


def test_a_thousand_half_open_connections_are_ended_and_others_are_served_meanwhile(served: Deployed) -> None:
    target = urlsplit(served.url)
    before = elsewhere(served)
    tally = Tally()
    with ThreadPoolExecutor(max_workers=32) as pool:
        def half(_number: int) -> socket.socket | None:
            try:
                connection = socket.create_connection((target.hostname or "", target.port or 0), timeout=60)
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\n")
            except OSError:  # more than one source may have
                return None
            return connection
        opened = list(pool.map(half, range(HALF_OPEN)))
    during = [elsewhere(served) for _ in range(3)]
    began = time.monotonic()

    def ended(connection: socket.socket | None) -> bool:
        try:
            while connection and connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    with ThreadPoolExecutor(max_workers=64) as pool:
        for over in pool.map(ended, opened):
            tally.outcomes["failed in form" if over else "lost"] += 1
    took = time.monotonic() - began
    for connection in opened:
        if connection:
            connection.close()
    assert {status for status, _ in [before, *during]} == {200}
    assert max(seconds for _, seconds in during) < before[1] + 4, (before, during)
    assert tally.outcomes == {"failed in form": HALF_OPEN}
    wait_until(served.right, deadline_s=60, what="a request is answered")
    record("1,000 half-open connections", "ended by the gateway, others are served meanwhile", tally, took)


# --- secrets

def places(served: Deployed, folder: Path) -> Iterator[tuple[str, str]]:
    """Where a secret must not stand: a name and the text of each."""
    for service, container in served.project.containers().items():
        yield f"inspect {service}", docker("inspect", container.id)
        yield f"log of {service}", docker("logs", container.id)
        yield f"processes of {service}", docker("top", container.id, "-eo", "pid,args")
        yield f"history of {container.image}", docker("history", "--no-trunc", container.image)
        yield f"image {container.image}", docker("image", "inspect", container.image)
    for verb, *arguments in (("status",), ("status", "--json")):
        done = served.project.script(verb, *arguments)
        yield f"{verb} {' '.join(arguments)}", done.stdout + done.stderr
    own = [served.project.deployment.env_file, served.project.deployment.engine_env_file]
    for path in [*own, *(path for path in (ROOT / "reports").rglob("*") if path.is_file()), *(path for path in folder.rglob("*") if path.is_file())]:
        yield str(path), path.read_bytes().decode("utf-8", "replace")


def test_neither_a_key_nor_a_prompt_stands_anywhere(served: Deployed, tmp_path: Path) -> None:
    prompt = f"prompt-canary-{secrets.token_hex(8)}"
    target = urlsplit(served.url)
    for key, status in ((KEY, 200), (f"{KEY}-wrong", 401)):
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps({**GOOD, "prompt": prompt}),
                           {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
        assert connection.getresponse().status == status
        connection.close()
    handed = served.project.deployment.env_file.read_text()
    keys = re.search(r"^GATEWAY_API_KEYS_FILE=(.+)$", handed, re.MULTILINE)
    assert keys
    pack = subprocess.run(["python3", str(ROOT / "scripts" / "handoff.py"), *ON_CPU, "--set", f"GATEWAY_API_KEYS_FILE={keys[1]}",
                           "--out", str(tmp_path / "pack")], capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert pack.returncode == 0, pack.stderr
    assert KEY in Path(keys[1]).read_text(), "what is looked for is what is used"
    seen = dict(places(served, tmp_path))
    assert len(seen) > 12
    assert [(place, secret) for place, text in seen.items() for secret in (KEY, prompt) if secret in text] == []
    record("secrets planted: a key, a prompt", "in no inspect, log, argv, image history, report or handoff")


# --- a model file that is not whole

def test_a_truncated_model_file_is_told_before_anything_is_touched(served: Deployed, tmp_path: Path) -> None:
    model, began = tmp_path / "model", served.state["StartedAt"]
    docker("cp", f"{served.engine}:/opt/bundle/selftest-model", str(model))
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with served.asked_by(2) as tally:
        up = served.change("up", f"MODEL_DIR={model}", "ENGINE_MODEL=/model")
        assert up.returncode in (2, 3), up.stderr
        assert "model.safetensors" in up.stderr
    assert tally.outcomes.keys() == {"right"}, tally.notes
    assert served.state["StartedAt"] == began
    record("model file truncated", "told before anything is touched, the running deployment serves on", tally)


# --- no memory left

HOG = """
import sys
print("up", flush=True)
held = []
while held or sys.stdin.readline():
    held.append(bytearray(32 * 2**20))
"""


@contextmanager
def hog(container: str) -> Iterator[IO[str]]:
    """A process in that container which takes all memory that there is, once a line is written to it."""
    with subprocess.Popen(["docker", "exec", "--interactive", container, "/opt/venv/bin/python", "-S", "-u", "-c", HOG],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdin
        assert running.stdout
        try:
            assert running.stdout.readline() == "up\n"
            yield running.stdin
        finally:
            running.kill()  # ends the client if it still waits; the process itself ends with its container


def test_an_engine_whose_worker_is_killed_for_memory_ends_with_its_reason_and_comes_back_by_itself(served: Deployed) -> None:
    before = served.state["StartedAt"]
    with served.asked_by(8) as tally, hog(served.engine) as line:
        # Or the kernel would take the hog, which is the larger one by then. To volunteer needs no capability, to be spared would.
        Path(f"/proc/{served.process('VLLM::EngineCore')}/oom_score_adj").write_text("1000")
        since = time.monotonic()
        line.write("\n")
        line.flush()
        wait_until(lambda: served.started_after(before), deadline_s=120, what="its container is started anew")
        recovery_s = served.recovered(tally, since)
    assert re.search(r"^entrypoint: the engine (ended unasked|died of SIGKILL)", served.log(before), re.MULTILINE)
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes

    record("out of memory while it serves", "the engine ends with its reason and comes back by itself", tally, recovery_s)
