"""Ask an image of the bundle: what it is, what is in its layers, and what a command says inside it. Nothing of it keeps running."""

import json
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CONFINED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:exec,mode=1777",
            "--tmpfs=/cache:exec,uid=2000,gid=2000")
"""A container as compose.yaml confines the engine's."""


LAYOUT = {
    "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/cache",
    "XDG_CACHE_HOME": "/cache",
    "HF_HOME": "/cache/huggingface",
    "VLLM_CACHE_ROOT": "/cache/vllm",
    "VLLM_CONFIG_ROOT": "/cache/vllm-config",
    "TORCHINDUCTOR_CACHE_DIR": "/cache/torchinductor",
    "TRITON_CACHE_DIR": "/cache/triton",
    "CUDA_CACHE_PATH": "/cache/cuda",
    "FLASHINFER_WORKSPACE_BASE": "/cache",
    "HEALTH_PORT": "8001",
}
"""All that an engine image sets: where things lie, and where its watch tells. Whatever changes what the engine does belongs to an env file."""


def inspected(image: str) -> dict[str, Any]:
    """What Docker knows of an image. Fails, naming what builds it, when there is none of that name."""
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"there is no image {image}: make build makes it\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def run(image: str, *argv: str, mounts: Sequence[tuple[Path, str]] = (), timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command in a confined container; `mounts` are read-only: (on this host, in the container)."""
    volumes = [f"--volume={source}:{target}:ro" for source, target in mounts]
    return subprocess.run(["docker", "run", "--rm", *CONFINED, *volumes, "--entrypoint", argv[0], image, *argv[1:]],
                          capture_output=True, text=True, check=False, timeout=timeout_s)


def answer(image: str, *argv: str, mounts: Sequence[tuple[Path, str]] = (), timeout_s: float = 300) -> str:
    """What a command prints that must succeed."""
    done = run(image, *argv, mounts=mounts, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def layers_with(mark: bytes, image: str) -> Iterator[str]:
    """The layers of an image, and its configuration, that hold `mark`."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        with tarfile.open(fileobj=saved.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                before = b""
                while content and (block := content.read(1 << 22)):
                    if mark in before + block:
                        yield member.name
                        break
                    before = block[-len(mark):]
    assert saved.returncode == 0
