"""The KV arithmetic against the engine itself: the tokens that fit says are the tokens that the real engine says at start."""

import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bundle.config import settings
from bundle.config.settings import SELFTEST_MODEL, Settings
from bundle.fit import assessment, estimation
from bundle.images import build
from support.project import wait_until

HARDENED = ("--user", "2000:2000", "--init", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "8g",
            "--pids-limit", "1024", "--shm-size", "1g", "--tmpfs", "/tmp", "--tmpfs", "/cache:uid=2000,gid=2000", "--env", "HOME=/cache",
            "--network", "none")


@pytest.fixture
def container() -> Iterator[str]:
    """A name that is the test's own, and nothing under that name afterwards."""
    name = f"test-{os.getpid()}-fit-{secrets.token_hex(3)}"
    yield name
    subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True, check=False, timeout=120)


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def log_of_a_start(chosen: Settings, container: str) -> str:
    """What the real engine prints with these settings, up to the size of its KV cache."""
    environment = [word for key, value in chosen.environment.items() for word in ("--env", f"{key}={value}")]
    docker("create", "--name", container, *HARDENED, *environment, "--entrypoint", "/opt/venv/bin/vllm", chosen.image_engine, *chosen.argv[1:])
    docker("start", container)

    def logged() -> str:
        done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=False, timeout=60)
        return done.stdout + done.stderr

    def settled() -> bool:
        running = docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"
        assert running or "KV cache size" in logged(), f"the engine ended:\n{logged()[-4000:]}"
        return "KV cache size" in logged()

    wait_until(settled, deadline_s=600, what="the size of the KV cache in the engine's log")
    return logged()


# The second is cut at no power of two: a length that ends inside a block, and blocks of another size.
@pytest.mark.parametrize("sets", [(), ("ENGINE_MAX_MODEL_LEN=1000", "ENGINE_BLOCK_SIZE=96", "ENGINE_MAX_NUM_BATCHED_TOKENS=1000")],
                         ids=["the profile", "odd sizes"])
def test_the_real_engine_holds_exactly_the_tokens_that_fit_says(sets: Sequence[str], container: str, tmp_path: Path) -> None:
    found = settings.load("cpu", sets=["IMAGE_TARGET=cpu", "MODEL_DIR=", *sets])
    chosen = assessment.resolved(found, assessment.assess(found))
    build.ensure(chosen)
    log = log_of_a_start(chosen, container)
    docker("cp", f"{container}:{SELFTEST_MODEL}", str(tmp_path / "model"))

    estimate = assessment.estimated(chosen, tmp_path / "model", None).estimate
    assert estimate
    by_what = {f"{one.what}, {one.unit}": one for one in estimation.compare(estimate, log)}

    assert estimate.starts, estimate.problems
    assert by_what["KV cache, tokens"].estimated == by_what["KV cache, tokens"].measured, log[-4000:]
    assert by_what["at full length, sequences"].error_percent == 0
    assert by_what["KV cache, GiB"].error_percent == 0
