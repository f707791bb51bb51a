"""The Docker daemon: docker-py for what is read, the `docker` command line for what Compose changes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import docker
from docker.context import ContextAPI
from docker.errors import DockerException

from bundle.base.errors import PrerequisiteError

# Compose lets shell variables override --env-file values, so its client gets only what it itself needs.
_PASSED_ON = ("PATH", "HOME", "USER", "TERM", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "HTTP_PROXY", "HTTPS_PROXY",
              "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def client_environment() -> dict[str, str]:
    """The environment for calls of the `docker` command: the caller's, less everything that Compose would interpolate."""
    return {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(("DOCKER_", "BUILDKIT_", "BUILDX_"))}


@contextmanager
def reachable() -> Iterator[None]:
    """Turn any failure to talk to the daemon inside the block into a PrerequisiteError that says what to do."""
    try:
        yield
    except DockerException as error:
        raise PrerequisiteError(f"the Docker daemon at {address()} does not answer: {error}",
                                fix="start it (systemctl start docker), or let `make up` do it; `make doctor` tells more") from error


def address() -> str:
    """Where the daemon listens: DOCKER_HOST, else the current `docker context`."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    context = ContextAPI.get_current_context()
    return str(context.Host if context else "unix:///var/run/docker.sock")


@lru_cache(maxsize=1)
def client() -> docker.DockerClient:
    """A client of that daemon. Raises PrerequisiteError when it does not answer."""
    with reachable():
        if os.environ.get("DOCKER_HOST"):
            return docker.from_env()
        return docker.DockerClient(base_url=address())
