"""The instrument for answers on the real CPU engine with the real small model: the same model agrees with itself, a worse one is seen."""

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bundle.bench import answers
from bundle.bench.agent import Agent
from bundle.bench.rundata import AnswersData
from bundle.config import settings
from bundle.images import build
from bundle.models import first
from support import worse
from support.project import wait_until

pytestmark = pytest.mark.long
LIMIT_S = 900
AGENT = ("/opt/venv/bin/python", "/opt/bundle/benchagent.py")


@pytest.fixture(scope="module")
def model() -> Path:
    first.provided(settings.load("cpu"))
    assert first.place().is_dir(), "the first model cannot be had here: the package index has it"
    return first.place()


@contextmanager
def engine(model: Path, *flags: str) -> Iterator[tuple[str, list[str]]]:
    """A started container with the engine, and its log's lines when it has ended or answers."""
    chosen = settings.load("cpu")
    build.ensure(chosen)
    name = f"test-{os.getpid()}-answers"
    subprocess.run(["docker", "run", "--detach", "--name", name, "--network=none", "--memory=6g", "--shm-size=1g", "--env=VLLM_CPU_KVCACHE_SPACE=1",
                    "--env=VLLM_CPU_OMP_THREADS_BIND=nobind",
                    f"--volume={model}:/model:ro", "--entrypoint=/opt/venv/bin/python", chosen.image_engine, "-m", "vllm.entrypoints.cli.main",
                    "serve", "/model", "--served-model-name=m", "--max-model-len=2048", "--max-num-seqs=8", "--enforce-eager", *flags],
                   check=True, capture_output=True, timeout=120)
    log: list[str] = []

    def settled() -> bool:
        done = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True, timeout=60)
        log[:] = (done.stdout + done.stderr).splitlines()
        state = subprocess.run(["docker", "inspect", "--format", "{{.State.Running}}", name], capture_output=True, text=True, check=True, timeout=60)
        return state.stdout.strip() != "true" or any("Application startup complete" in line for line in log)

    try:
        wait_until(settled, deadline_s=LIMIT_S, what="the engine answers or has ended")
        yield name, log
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False, timeout=120)


def asked(name: str, log: Path) -> AnswersData:
    with Agent(["docker", "exec", "--interactive", name, *AGENT], log=log, ready_limit_s=LIMIT_S) as agent:
        return answers.ask(lambda path, bodies: agent.post(path, bodies, base_url="http://127.0.0.1:8000", limit_s=LIMIT_S), "m")


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AnswersData]:
    """The model, asked twice."""
    log = tmp_path_factory.mktemp("agent") / "log"
    with engine(model) as (name, _):
        return [asked(name, log) for _ in range(2)]


def test_the_same_model_agrees_wholly_with_itself(plain: list[AnswersData]) -> None:
    found = answers.compared(plain[1], plain[0])
    assert (found["equal"], found["of"]) == (20, 20)
    assert found["verdict"] == answers.SAME
    assert found["ratio"] == pytest.approx(1, abs=1e-3)
    assert (found["structured"], found["structured_of"]) == (3, 3)
    assert 1500 < len(plain[0]["logprobs"]) < 2000
    # Text that everyone has read: a model of words is far from the vocabulary's 49,152, and from certain.
    assert found["perplexity"] is not None
    assert 2 < found["perplexity"] < 40
    assert "Paris" in plain[0]["greedy"][0]


def test_a_planted_worse_model_is_seen(plain: list[AnswersData], model: Path, tmp_path: Path) -> None:
    spoilt = worse.copy(model, tmp_path / "spoilt", noise=0.05)
    for path in (tmp_path, spoilt):
        path.chmod(0o755)
    with engine(spoilt) as (name, _):
        found = answers.compared(asked(name, tmp_path / "log"), plain[0])
    shutil.rmtree(spoilt)
    assert found["verdict"] == answers.WORSE
    assert found["low"] is not None
    assert found["low"] > 1
    assert found["equal"] < found["of"] == 20
    assert math.isfinite(found["perplexity"] or math.nan)
