"""The deployment that the fault tier shares. Every test leaves it to recover by itself."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.deployed import CACHE_BYTES, CONTEXT, KEY, STALL_S, START_S, Deployed
from support.gateway import docker
from support.project import Project, free_port, wait_until


@contextmanager
def small_cache(project: str, folder: Path) -> Iterator[None]:
    """The project's cache volume, made before it, of a few MiB: a test can fill it up, and nothing else."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={CACHE_BYTES},uid=2000,gid=2000,mode=0755", "tmpfs", str(folder)], check=True, timeout=60)
    try:
        docker("volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", f"device={folder}", "--label", "com.docker.compose.volume=cache",
               "--label", f"com.docker.compose.project={project}", f"{project}_cache")
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=60)


@pytest.fixture(scope="session")
def deployed(no_leftovers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The CPU profile with a key, a short limit for standing still, a small cache, and prompts that are read in one step however long."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY + "\n")
    keys.chmod(0o644)
    port = free_port()
    own = Project(name=f"test-{os.getpid()}-{secrets.token_hex(3)}")
    lines = (f"GATEWAY_PORT={port}", f"GATEWAY_API_KEYS_FILE={keys}", f"HEALTH_STALL_S={STALL_S}", f"ENGINE_MAX_MODEL_LEN={CONTEXT}",
             f"ENGINE_MAX_NUM_BATCHED_TOKENS={CONTEXT}", "HOST_ENGINE_MEMORY=5g")
    mine = Deployed(project=own, url=f"http://127.0.0.1:{port}", lines=lines)
    with small_cache(own.name, tmp_path_factory.mktemp("cache")):
        try:
            up = mine.change("up")
            assert up.returncode == 0, up.stderr
            yield mine
        finally:
            own.remove()


@pytest.fixture
def served(deployed: Deployed) -> Deployed:
    """`deployed`, well: the engine's watch says so, and a request is answered."""
    wait_until(lambda: deployed.verdict()[0] == 200, deadline_s=START_S, what="the engine is ready")
    wait_until(deployed.right, deadline_s=60, what="a request is answered")
    return deployed
