"""The Docker daemon: docker-py for what is read, the `docker` command line for what Compose changes. Both talk to the same one."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, cast

import docker
from docker.context import ContextAPI
from docker.errors import APIError, DockerException, ImageNotFound

from bundle.base.errors import PrerequisiteError
from bundle.machine.facts import Host

# Compose lets shell variables override --env-file values, so its client gets only what it itself needs. BUILDX_BUILDER is not among
# it: another builder than the daemon's own does not see the images that are on this host.
_PASSED_ON = ("PATH", "HOME", "USER", "TERM", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "HTTP_PROXY", "HTTPS_PROXY",
              "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "BUILDX_CONFIG")
_GONE = (404, 409)
"""What the daemon answers about a container that is no longer there, or no longer runs: they come and go while one looks."""


def client_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for calls of the `docker` command: the caller's, less everything that Compose would interpolate.

    It says which daemon in one way only: DOCKER_HOST where that is set, as `docker` itself decides, else DOCKER_CONTEXT.
    """
    environ = os.environ if environ is None else environ
    passed = {k: v for k, v in environ.items() if v and (k in _PASSED_ON or k.startswith(("DOCKER_", "BUILDKIT_")))}
    if "DOCKER_HOST" in passed:
        passed.pop("DOCKER_CONTEXT", None)
    return passed


@contextmanager
def reachable() -> Iterator[None]:
    """Turn any failure to talk to the daemon inside the block into a PrerequisiteError that says what to do."""
    try:
        yield
    except APIError as error:  # an answer, if not the one that was asked for
        raise PrerequisiteError(f"the Docker daemon at {address()} refuses: {error.explanation or error}",
                                fix="something else changes these containers or images now; run it again") from error
    except DockerException as error:
        raise PrerequisiteError(f"the Docker daemon at {address()} does not answer: {error}",
                                fix="start it (systemctl start docker), or let `make up` do it; `make doctor` tells more") from error


def address() -> str:
    """Where the daemon listens: DOCKER_HOST, else the `docker context` in use (DOCKER_CONTEXT, or the chosen one)."""
    return Host().docker_address


@lru_cache(maxsize=1)
def client() -> docker.DockerClient:
    """A client of that daemon. Raises PrerequisiteError when it does not answer."""
    environ = client_environment()
    if "DOCKER_HOST" not in environ and ContextAPI.get_context(environ.get("DOCKER_CONTEXT")) is None:
        # docker-py would take the default one then, and `docker` refuses.
        raise PrerequisiteError(f"there is no such docker {address()}", fix="`docker context ls` shows them; DOCKER_CONTEXT names one")
    with reachable():
        return docker.from_env(environment=environ, use_ssh_client=True)


def execute(container_id: str, argv: Sequence[str]) -> tuple[int, str] | None:
    """Run a program in a container: its exit code and what it printed on stdout. None where the container is gone or does not run."""
    with reachable():
        try:
            done = client().containers.get(container_id).exec_run(list(argv), stderr=False)
        except APIError as error:
            if error.status_code in _GONE:
                return None
            raise
    return cast(int, done.exit_code), cast(bytes, done.output or b"").decode(errors="replace")


def log(container_id: str, **options: Any) -> str:
    """What a container printed on either stream, by docker-py's options (`tail`, `since`); empty where it is gone."""
    with reachable():
        try:
            return bytes(client().containers.get(container_id).logs(**options)).decode(errors="replace")
        except APIError as error:
            if error.status_code in _GONE:
                return ""
            raise


def lines(container_id: str) -> Iterator[str]:
    """Every line of a container's log behind its timestamp, one after another: rotated logs may be 150 MB. None where it is gone."""
    command = ["docker", "logs", "--timestamps", container_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=client_environment()) as logs:
        for line in logs.stdout or ():
            yield line.rstrip("\n")


def image_id(name: str) -> str:
    """The id of an image on this host, "" where it is not there."""
    with reachable():
        try:
            return str(client().images.get(name).id)
        except ImageNotFound:
            return ""


def tag(image: str, name: str) -> None:
    """Give an image another name. Raises PrerequisiteError where it is not there."""
    with reachable():
        client().images.get(image).tag(name)


def untag(name: str) -> None:
    """Take a name from its image; nothing happens where there is none."""
    with reachable(), suppress(ImageNotFound):
        client().images.remove(name, noprune=True)
