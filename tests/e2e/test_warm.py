"""`make warm` on the real CPU engine with its compiler on: what it leaves, the next start finds."""

import subprocess
from collections.abc import Iterator

import pytest

from bundle.config import settings
from support.project import Project

pytestmark = pytest.mark.long
COMPILED = [word for text in ("ENGINE_ENFORCE_EAGER=false", "TORCHDYNAMO_DISABLE=", "ENGINE_MAX_NUM_SEQS=4", "ENGINE_MAX_MODEL_LEN=512",
                              "ENGINE_MAX_NUM_BATCHED_TOKENS=512") for word in ("--set", text)]
SELFTEST = ("--profile", "cpu", "--set", "ENGINE_MODEL=/opt/bundle/selftest-model", "--set", "GATEWAY_PORT=0")


@pytest.fixture
def mine(project: Project) -> Iterator[Project]:
    yield project
    left = subprocess.run(["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={project.name}"], capture_output=True,
                          text=True, check=True).stdout.split()
    if left:  # a run of warm that was cut off
        subprocess.run(["docker", "rm", "--force", *left], capture_output=True, check=True)


def compiled(project: Project) -> dict[str, str]:
    """The compiled models in the project's cache, with when they were written."""
    image = settings.load("cpu", [], []).image_engine
    done = subprocess.run(["docker", "run", "--rm", "--volume", f"{project.name}_cache:/cache:ro", "--entrypoint", "find", image,
                           "/cache/vllm/torch_compile_cache", "-type", "f", "-name", "*.py", "-printf", "%P %T@\n"],
                          capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def test_a_start_after_warm_finds_what_it_compiled(mine: Project) -> None:
    warmed = mine.script("warm", *SELFTEST, *COMPILED, timeout_s=1800)
    assert warmed.returncode == 0, warmed.stderr
    assert "the next start finds what it compiled" in warmed.stdout
    assert "loading weights" in warmed.stderr, "its phases are shown"
    assert mine.containers() == {}, "nothing of it runs, and no gateway was there"
    before = compiled(mine)
    assert before
    up = mine.script("up", *SELFTEST, *COMPILED, timeout_s=1800)
    assert up.returncode == 0, up.stderr
    assert compiled(mine) == before, "nothing was compiled anew"
