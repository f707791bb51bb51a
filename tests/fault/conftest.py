"""The deployment that the fault tier shares. Every test leaves it to recover by itself."""

import os
import secrets
import socket
from collections.abc import Iterator

import pytest

from support.deployed import CONTEXT, KEY, STALL_S, START_S, Deployed
from support.project import Project, wait_until


@pytest.fixture(scope="session")
def deployed(no_leftovers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The CPU profile with a key, a short limit for standing still, and prompts that are read in one step however long."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY + "\n")
    keys.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    own = Project(name=f"test-{os.getpid()}-{secrets.token_hex(3)}")
    try:
        lines = (f"GATEWAY_PORT={port}", f"GATEWAY_API_KEYS_FILE={keys}", f"HEALTH_STALL_S={STALL_S}", f"ENGINE_MAX_MODEL_LEN={CONTEXT}",
                 f"ENGINE_MAX_NUM_BATCHED_TOKENS={CONTEXT}", "HOST_ENGINE_MEMORY=5g")
        up = own.up(*(word for line in lines for word in ("--set", line)))
        assert up.returncode == 0, up.stderr
        yield Deployed(project=own, url=own.url)
    finally:
        own.remove()


@pytest.fixture
def served(deployed: Deployed) -> Deployed:
    """`deployed`, well: the engine's watch says so, and a request is answered."""
    wait_until(lambda: deployed.verdict()[0] == 200, deadline_s=START_S, what="the engine is ready")
    wait_until(deployed.right, deadline_s=60, what="a request is answered")
    return deployed
