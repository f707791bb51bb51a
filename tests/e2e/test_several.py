"""Two models on two real engines behind one gateway: `make up PROFILE=cpu,cpu-embed`, with a LoRA adapter and priorities."""

import json
import math
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from bundle.config.settings import SELFTEST_MODEL
from support import adapter
from support.project import Project, wait_until

INTERACTIVE, BATCH = "sk-interactive-4f1d0c", "sk-batch-4f1d0c-4f1d0c"
AT_ONCE, QUEUED = 2, 8


@pytest.fixture(scope="module")
def both(no_leftovers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("several")
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)
    adapter.write(folder / "adapters" / "tiny")
    keys = folder / "keys"
    keys.write_text(f"{INTERACTIVE} alice interactive\n{BATCH} nightly batch\n")
    keys.chmod(0o444)
    own = Project(name="test-several")
    sets = (f"ENGINE_MODEL={SELFTEST_MODEL}", "GATEWAY_PORT=0", "ENGINE_ENABLE_LORA=true", "ENGINE_LORA_MODULES=tiny=/adapters/tiny",
            f"MODEL_ADAPTERS_DIR={folder / 'adapters'}", "ENGINE_SCHEDULING_POLICY=priority", f"ENGINE_MAX_NUM_SEQS={AT_ONCE}",
            f"GATEWAY_API_KEYS_FILE={keys}", "HOST_READY_TIMEOUT_S=900")
    up = own.script("up", "--profile", "cpu,cpu-embed", *(word for each in sets for word in ("--set", each)), "--json", timeout_s=2000)
    try:
        assert up.returncode == 0, up.stderr
        assert json.loads(up.stdout)["models"] == ["selftest", "tiny", "selftest-embed"]
        yield own
        down = own.script("down", "--volumes")
        assert down.returncode == 0, down.stderr
        assert own.containers() == {}
        assert not list(own.deployment.state.glob("test-several.*env"))
    finally:
        own.remove()


def post(project: Project, path: str, key: str = INTERACTIVE, **body: Any) -> requests.Response:
    return requests.post(f"{project.url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=300)


def said(project: Project, model: str) -> str:
    reply = post(project, "/v1/completions", model=model, prompt="The capital of France is", max_tokens=16, temperature=0)
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == model
    return str(reply.json()["choices"][0]["text"])


def test_every_model_and_adapter_is_listed(both: Project) -> None:
    reply = requests.get(f"{both.url}/v1/models", headers={"Authorization": f"Bearer {INTERACTIVE}"}, timeout=60)
    listed = {model["id"]: model for model in reply.json()["data"]}
    assert list(listed) == ["selftest", "tiny", "selftest-embed"]
    assert listed["tiny"]["parent"] == "selftest"


def test_each_name_is_answered_by_its_own_model(both: Project) -> None:
    assert said(both, "selftest") != said(both, "tiny"), "the adapter changes the answer"
    vectors = [post(both, "/v1/embeddings", model="selftest-embed", input=text).json()["data"][0]["embedding"] for text in ("one", "two")]
    assert all(len(vector) == 256 and all(map(math.isfinite, vector)) for vector in vectors)
    assert vectors[0] != vectors[1]
    wrong = post(both, "/v1/embeddings", model="selftest", input="x")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "not_of_this_model")


def test_an_unknown_model_does_not_exist(both: Project) -> None:
    reply = post(both, "/v1/completions", model="nosuch", prompt="x", max_tokens=1)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def order(project: Project, late: str) -> list[str]:
    """Who ends in which order, where the queue is full of long requests with the key of class batch, and then one with the key `late` comes."""
    ended: list[str] = []
    lock = threading.Lock()

    def ask(who: str, key: str, tokens: int) -> None:
        reply = post(project, "/v1/completions", key, model="selftest", prompt=f"{who} says", max_tokens=tokens, ignore_eos=True, priority=-1000)
        assert reply.status_code == 200, reply.text
        with lock:
            ended.append(who)

    def waiting() -> float:
        text = requests.get(f"{project.url}/metrics", headers={"Authorization": f"Bearer {INTERACTIVE}"}, timeout=60).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_waiting{"))

    with ThreadPoolExecutor(max_workers=QUEUED + 1) as pool:
        asked = [pool.submit(ask, f"batch-{number}", BATCH, 256) for number in range(QUEUED)]
        wait_until(lambda: waiting() >= QUEUED - AT_ONCE - 1, deadline_s=120, what="the queue is full")
        asked.append(pool.submit(ask, "late", late, 8))
        for each in asked:
            each.result()
    return ended


def test_a_request_of_higher_priority_overtakes_a_full_queue(both: Project) -> None:
    """And what a client says of its own priority changes nothing: all of them ask for the first place."""
    first = order(both, INTERACTIVE)
    assert first.index("late") <= AT_ONCE + 1, first
    last = order(both, BATCH)
    assert last.index("late") >= QUEUED - AT_ONCE, last


def test_status_smoke_and_logs_know_both(both: Project) -> None:
    rows = {row["service"]: row for row in json.loads(both.script("status", "--json").stdout)["services"]}
    assert {name: row["health"] for name, row in rows.items()} == dict.fromkeys(("gateway", "engine", "engine-b"), "healthy")
    assert rows["engine-b"]["model"] == "selftest-embed"
    smoke = both.script("smoke", "--json")
    assert smoke.returncode == 0, smoke.stdout + smoke.stderr
    assert [each["model"] for each in json.loads(smoke.stdout)] == ["selftest", "selftest-embed"]
    assert "embedding" in {check["name"] for check in json.loads(smoke.stdout)[1]["checks"]}
    assert "selftest-embed" in both.script("logs", "--no-follow", "--lines", "500", "engine-b").stdout


def answered(project: Project, model: str) -> int:
    """The status that an embedding gets within seconds; 0 where none comes, as from an engine that hangs and is not yet known to."""
    try:
        return requests.post(f"{project.url}/v1/embeddings", json={"model": model, "input": "x"}, timeout=3,
                             headers={"Authorization": f"Bearer {INTERACTIVE}"}).status_code
    except requests.Timeout:
        return 0


def test_one_model_dies_and_the_other_serves_on(both: Project) -> None:
    container = both.containers()["engine-b"].id
    subprocess.run(["docker", "pause", container], check=True, capture_output=True)
    try:
        wait_until(lambda: answered(both, "selftest-embed") == 503, deadline_s=60, what="the gateway knows that it is gone")
        assert said(both, "selftest")
    finally:
        subprocess.run(["docker", "unpause", container], check=True, capture_output=True)
    wait_until(lambda: post(both, "/v1/embeddings", model="selftest-embed", input="x").status_code == 200, deadline_s=120, what="it serves again")
