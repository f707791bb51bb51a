"""`make up` to `make down` on the real engine and gateway."""

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import requests

from bundle import ROOT, STATE
from support.faultlog import record
from support.load import streaming
from support.project import ON_CPU, Project, wait_until

SELFTEST = "selftest"


def test_up_serves_a_completion_through_the_gateway(served: Project) -> None:
    reply = requests.post(f"{served.url}/v1/completions", json={"model": SELFTEST, "prompt": "Hello", "max_tokens": 4}, timeout=60)
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 4


def test_up_prints_a_curl_line_that_works(served: Project) -> None:
    up = served.up()
    assert up.returncode == 0, up.stderr
    line = next(row for row in up.stdout.splitlines() if row.startswith("curl"))
    reply = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(reply.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_up_again_changes_nothing(served: Project) -> None:
    before = served.containers()
    assert served.answer()["changed"] is False
    assert served.containers() == before


def test_smoke_passes_on_what_up_brought_up(served: Project) -> None:
    smoke = served.script("smoke", "--json")
    assert smoke.returncode == 0, smoke.stdout + smoke.stderr


def test_status_shows_each_service_and_what_the_engine_counts(served: Project) -> None:
    status = served.script("status", "--json")
    assert status.returncode == 0, status.stdout
    rows = {row["service"]: row for row in json.loads(status.stdout)["services"]}
    assert {name: row["health"] for name, row in rows.items()} == {"gateway": "healthy", "engine": "healthy"}
    assert rows["engine"]["model"] == SELFTEST
    assert rows["engine"]["restarts"] == 0
    assert rows["engine"]["queued"] == 0
    assert 0 <= rows["engine"]["kv_cache_use"] <= 1
    assert rows["engine"]["tokens_per_s"] >= 0


def test_logs_are_those_of_the_service_asked_for(served: Project) -> None:
    logs = served.script("logs", "--no-follow", "--lines", "2000", "engine")
    assert logs.returncode == 0
    assert "Application startup complete" in logs.stdout
    assert served.script("logs", "--no-follow", "nosuch").returncode == 3


def test_status_of_nothing_exits_5_and_down_of_nothing_is_no_error(project: Project) -> None:
    assert project.script("status").returncode == 5
    assert project.script("down").returncode == 0


def test_a_restart_under_16_streams_loses_none(served: Project) -> None:
    with streaming(served.url, SELFTEST) as load:
        wait_until(lambda: load.seen["right"] >= 16, deadline_s=120, what="16 answers before the restart")
        restart = served.script("restart")
        assert restart.returncode == 0, restart.stderr
        after = load.seen["right"]
        wait_until(lambda: load.seen["right"] >= after + 16, deadline_s=120, what="16 answers after it")
    assert "nothing is answered for about" in restart.stderr
    assert set(load.seen) == {"right", "refused"}, load.seen
    record("restart under 16 streams, one engine", "no stream is lost; 503 with Retry-After meanwhile, never 500", load)


def test_changes_reach_only_what_depends_on_them_lose_no_stream_and_what_fails_goes_back(project: Project) -> None:
    assert project.up().returncode == 0
    first, port = project.containers(), project.url
    assert project.up("--set", "GATEWAY_TIMEOUT_S=1800").returncode == 0
    second = project.containers()
    assert second["engine"].id == first["engine"].id
    assert second["gateway"].id != first["gateway"].id
    assert project.url == port, "GATEWAY_PORT=0 is chosen once"

    with streaming(project.url, SELFTEST, pause_s=0.5) as load:
        wait_until(lambda: load.seen["right"] >= 16, deadline_s=120, what="16 answers before the change")
        changed = project.up("--set", "GATEWAY_TIMEOUT_S=1800", "--set", "ENGINE_MAX_NUM_SEQS=12")
        assert changed.returncode == 0, changed.stderr
        third = project.containers()
    assert set(load.seen) == {"right", "refused"}, load.seen
    record("a setting changed under 16 streams, one engine", "no stream is lost; 503 with Retry-After meanwhile, never 500", load)
    with streaming(project.url, SELFTEST, pause_s=0.5) as load:
        # More than the self-test model was made for. The version that answers is taken away for it, and comes back.
        bad = project.up("--set", "GATEWAY_TIMEOUT_S=1800", "--set", "ENGINE_MAX_MODEL_LEN=1048576")
        after = load.seen["right"]
        wait_until(lambda: load.seen["right"] >= after + 16, deadline_s=120, what="16 answers after it was taken back")
    assert set(load.seen) == {"right", "refused"}, load.seen
    record("a value that the engine refuses, under 16 streams, one engine", "the version before it serves again, exit 7; no stream is lost", load)
    assert third["engine"].id != second["engine"].id
    assert third["gateway"].id == second["gateway"].id
    assert bad.returncode == 7, bad.stderr
    assert "lower ENGINE_MAX_MODEL_LEN" in bad.stderr
    assert "serves again" in bad.stderr
    assert "ENGINE_MAX_NUM_SEQS=12" in project.deployment.env_file.read_text()

    with streaming(project.url, SELFTEST, pause_s=0.5) as load:
        wait_until(lambda: load.seen["right"] >= 16, deadline_s=120, what="16 answers before the rollback")
        back = project.script("rollback")
        assert back.returncode == 0, back.stderr
    assert set(load.seen) == {"right", "refused"}, load.seen
    record("rollback under 16 streams, one engine", "no stream is lost; 503 with Retry-After meanwhile, never 500", load)
    assert "ENGINE_MAX_NUM_SEQS=16" in project.deployment.env_file.read_text()
    assert requests.post(f"{project.url}/v1/completions", json={"model": SELFTEST, "prompt": "Hello", "max_tokens": 4}, timeout=60).status_code == 200

    stream = requests.post(f"{project.url}/v1/completions", json={"model": SELFTEST, "prompt": "Hello", "max_tokens": 800, "ignore_eos": True,
                                                                  "stream": True}, stream=True, timeout=120)
    lines = stream.iter_lines()
    assert next(lines).startswith(b"data: ")
    with ThreadPoolExecutor() as pool:
        rest = pool.submit(lambda: [line for line in lines if line])
        down = project.script("down", "--volumes")
        assert rest.result()[-1] == b"data: [DONE]", "a stream that runs when `down` is called is let to its end"
    assert down.returncode == 0, down.stderr
    for kind in ("container", "network", "volume"):
        left = subprocess.run(["docker", kind, "ls", *(["--all"] if kind == "container" else []), "--quiet", "--filter",
                               f"label=com.docker.compose.project={project.name}"], capture_output=True, text=True, check=True)
        assert left.stdout == "", kind
    assert sorted(path.name for path in STATE.glob(f"{project.name}.*")) == [f"{project.name}.lock"]


def test_after_interruptions_two_engines_come_up_and_answer(project: Project) -> None:
    for seconds in (1.5, 2, 4):  # while it makes the containers, or starts them, or waits
        with suppress(subprocess.TimeoutExpired):
            project.up("--set", f"ENGINE_MAX_NUM_SEQS={seconds * 2:g}", timeout_s=seconds)
    up = project.up("--set", "HOST_REPLICAS=2", "--set", "HOST_ENGINE_MEMORY=5g")
    assert up.returncode == 0, up.stderr
    assert set(project.containers()) == {"gateway", "engine", "engine-2"}
    with streaming(project.url, SELFTEST) as load:
        wait_until(lambda: load.seen["right"] >= 32, deadline_s=120, what="two answers for each client")
    assert set(load.seen) == {"right"}, load.seen


def test_bad_settings_exit_2_and_the_running_service_is_untouched(served: Project) -> None:
    before = served.containers()
    bad = served.up("--set", "ENGINE_MAX_NUM_SEQ=4", "--set", "ENGINE_GPU_MEMORY_UTILIZATION=1.4")
    assert bad.returncode == 2
    assert "ENGINE_MAX_NUM_SEQS" in bad.stderr
    assert "1.4" in bad.stderr
    assert served.containers() == before
    assert served.answer()["changed"] is False


def test_a_taken_port_exits_3_names_its_owner_and_leaves_nothing(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = project.up("--set", f"GATEWAY_PORT={port}")
    assert up.returncode == 3
    assert str(port) in up.stderr
    assert "python" in up.stderr
    assert project.containers() == {}


def test_a_second_up_at_the_same_time_is_refused(project: Project) -> None:
    with project.deployment.locked("restart"):
        up = project.up()
    assert up.returncode == 3
    assert "being changed by `make restart`" in up.stderr


def test_the_daemon_away_exits_3(project: Project, tmp_path: Path) -> None:
    import os
    up = project.script("up", "--profile", "cpu", env=os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert up.returncode == 3
    assert "none.sock" in up.stderr


def test_plain_compose_runs_a_handed_over_env_file(project: Project, tmp_path: Path) -> None:
    from bundle.machine.daemon import client_environment
    file = tmp_path / "handoff.env"
    check = project.script("check", *ON_CPU, "--flatten", str(file))
    assert check.returncode == 0, check.stderr
    up = subprocess.run(["docker", "compose", "--env-file", str(file), "up", "--detach", "--wait"], capture_output=True, text=True, check=False,
                        timeout=600, cwd=ROOT, env=client_environment())
    assert up.returncode == 0, up.stderr
    # Compose knows of each service's health, not of the way between them: the gateway finds the engine within a second.
    wait_until(lambda: requests.get(f"{project.url}/v1/models", timeout=30).status_code == 200, deadline_s=10, what="the way to the engine")
    assert requests.get(f"{project.url}/v1/models", timeout=30).json()["data"][0]["id"] == SELFTEST
