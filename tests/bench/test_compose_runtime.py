"""The Compose runtime of the benchmark on the real CPU engine: a start that is measured, one that fails, and what is left: nothing."""

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import STATE
from bundle.base.errors import PrerequisiteError
from bundle.bench import composeruntime, startphases
from bundle.bench.agent import Agent
from bundle.bench.composeruntime import ComposeRuntime, project_name
from bundle.bench.runtimes import StartFailed
from bundle.config import settings
from bundle.config.settings import Settings
from support.project import Project


@pytest.fixture
def runtime(no_leftovers: None, tmp_path: Path) -> Iterator[ComposeRuntime]:
    own = ComposeRuntime(f"test-{os.getpid()}-{secrets.token_hex(3)}", tmp_path)
    yield own
    own.close()


def cell(*sets: str) -> Settings:
    return settings.load("cpu", sets=sets, environ={})


def left(runtime: ComposeRuntime) -> set[str]:
    """What Docker has of the runtime's project, by kind; and the files that `make up` writes for it."""
    label = f"label=com.docker.compose.project={runtime.deployment.project}"
    listed = {"container": ["ps", "--all"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
    found = {kind for kind, words in listed.items()
             if subprocess.run(["docker", *words, "--quiet", "--filter", label], capture_output=True, text=True, check=True).stdout.strip()}
    return found | {path.name for path in STATE.glob(f"{runtime.deployment.project}.*")}


def test_a_benchmark_is_refused_while_another_deployment_runs_an_engine(served: Project, runtime: ComposeRuntime) -> None:
    with pytest.raises(PrerequisiteError) as refused:
        runtime.prepare([cell()])
    assert served.name in refused.value.message
    assert f"make down PROJECT={served.name}" in refused.value.fix


def test_an_engine_is_started_measured_and_taken_away_with_everything_that_was_made_for_it(
        served: Project, runtime: ComposeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(composeruntime, "_refuse_company", lambda project: None)  # figures do not matter here
    runtime.prepare([cell("GATEWAY_PORT=1")])
    assert runtime.probe()["device"] == "cpu"
    found = runtime.provenance()
    assert found["engine"]["vllm"].startswith("0.32.0")
    assert set(found["engine"]) == {"vllm", "torch"}
    assert found["image"][cell().image_engine].startswith("sha256:")

    before = time.time()
    engine = runtime.start(cell("GATEWAY_PORT=1"), "000-control")
    after = time.time()
    assert before <= engine.started < engine.ready <= after
    assert engine.alive()
    log = engine.log()
    assert [at for at, _ in log] == sorted(at for at, _ in log)
    up = next(at for at, line in log if "Application startup complete" in line)
    assert up <= engine.ready < up + 5, "sooner than the health check's next look"
    phases = startphases.phases(log, engine.started, engine.ready)
    assert [name for name, _ in phases][0::6] == ["starting Python", "first answer"]
    assert sum(seconds for _, seconds in phases) == pytest.approx(engine.ready - engine.started)
    assert startphases.facts(log)["kv_cache_gib"] == 1.0

    with Agent(engine.agent_argv, engine.agent_environment, log=tmp_path / "agent.log") as agent:
        assert agent.model(engine.model)["weights_bytes"] > 0
        (text,) = agent.outputs(["ready?"], base_url=engine.base_url, served_model_name=engine.served_model_name, max_tokens=2, limit_s=60)
        assert text

    subprocess.run(["docker", "restart", engine.container.id], capture_output=True, check=True, timeout=120)
    assert not engine.alive(), "an engine that was started anew in between is another"

    engine.stop()
    assert left(runtime) == {"volume", f"{runtime.deployment.project}.lock"}, "the caches stay warm"
    assert "Application startup complete" in (tmp_path / "logs" / "000-control.log").read_text()
    runtime.close()
    assert left(runtime) == set()


def test_a_start_that_fails_gives_the_engines_own_error_and_leaves_nothing_running(served: Project, runtime: ComposeRuntime, tmp_path: Path) -> None:
    with pytest.raises(StartFailed) as failed:
        runtime.start(cell("ENGINE_MAX_MODEL_LEN=1048576"), "001-long")
    assert "max_model_len" in failed.value.reason
    assert "waiting longer" not in failed.value.reason
    assert "lower ENGINE_MAX_MODEL_LEN" in failed.value.remedy
    lines = [line for _, line in failed.value.log]
    assert sum(line.startswith("entrypoint: starting: ") for line in lines) == 1, "of the first start alone"
    assert lines[-1].startswith("entrypoint: the engine ended unasked")
    assert "max_model_len" in (tmp_path / "logs" / "001-long.log").read_text()
    assert "container" not in left(runtime)


def test_side_by_side_is_refused(runtime: ComposeRuntime) -> None:
    with pytest.raises(PrerequisiteError, match=r"one engine at a time, not 2 side by side"):
        runtime.start_together([(cell(), "a"), (cell(), "b")])


@pytest.mark.parametrize(("run", "project"), [
    ("2026-11-24-cpu", "bench-2026-11-24-cpu"),
    ("GPU axes, 2nd try", "bench-gpu-axes-2nd-try"),
    ("2026-11-24-a-suite-with-a-name-that-is-long", "bench-2026-11-24-a-suite-with-a-fbacec61"),
])
def test_a_run_gets_a_project_name_that_compose_takes(run: str, project: str) -> None:
    assert project_name(run) == project
    assert len(project) <= composeruntime.LONGEST_PROJECT
