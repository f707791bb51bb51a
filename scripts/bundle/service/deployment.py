"""One deployment on this host: the env files that `make up` derived for it, the Compose project, and its containers."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from bundle import ROOT, STATE
from bundle.base import shell
from bundle.base.errors import BundleError, PrerequisiteError
from bundle.config.settings import Settings
from bundle.machine import daemon

DEFAULT_PROJECT = "vllm"


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the daemon says of one container of the project."""

    id: str
    service: str
    state: str
    health: str
    restarts: int
    exit_code: int
    out_of_memory: bool
    started: str
    image: str
    memory_bytes: int
    probe: str
    """What its health check last said while it failed; empty when it did not."""
    published: tuple[str, int] | None
    """Host address and port of its published port while it runs."""

    @property
    def healthy(self) -> bool:
        return self.state == "running" and self.health == "healthy"

    def ended_since(self, before: "Container | None") -> bool:
        """Whether its process has ended since `before` was read, even where Docker has restarted it by now."""
        restarts = before.restarts if before and before.id == self.id else 0
        return self.state in ("exited", "dead", "restarting") or self.restarts > restarts

    @classmethod
    def read(cls, inspected: Mapping[str, Any]) -> "Container":
        state = inspected["State"]
        failures = [probe["Output"].strip() for probe in state.get("Health", {}).get("Log") or [] if probe["ExitCode"] != 0]
        bindings = (b for b in (inspected["NetworkSettings"].get("Ports") or {}).values() if b)
        published = [(b["HostIp"], int(b["HostPort"])) for bound in bindings for b in bound]
        return cls(
            id=inspected["Id"],
            service=inspected["Config"]["Labels"]["com.docker.compose.service"],
            state=state["Status"],
            health=state.get("Health", {}).get("Status", "none"),
            restarts=inspected["RestartCount"],
            exit_code=state["ExitCode"],
            out_of_memory=state["OOMKilled"],
            started=state["StartedAt"],
            image=inspected["Config"]["Image"],
            memory_bytes=inspected["HostConfig"]["Memory"],
            probe=failures[-1] if failures else "",
            published=published[0] if published else None,
        )


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A Compose project and the env file that it runs from."""

    project: str = DEFAULT_PROJECT
    home: Path = ROOT
    """The folder of its compose.yaml: the bundle's own, or a handoff's."""

    @property
    def env_file(self) -> Path:
        """Everything that compose.yaml interpolates, and the origin of each value as comments."""
        return STATE / f"{self.project}.env"

    @property
    def engine_env_file(self) -> Path:
        """The engine's own settings alone: a change elsewhere must not recreate the engine."""
        return STATE / f"{self.project}.engine.env"

    @property
    def is_written(self) -> bool:
        return self.env_file.is_file()

    @classmethod
    def from_settings(cls, settings: Settings) -> "Deployment":
        return cls(project=settings.project)

    def write(self, settings: Settings) -> None:
        """Put the derived env files in place, each in one step."""
        STATE.mkdir(exist_ok=True)
        _replace(self.engine_env_file, settings.flatten_engine())
        _replace(self.env_file, settings.flatten(str(self.engine_env_file.relative_to(ROOT) if self.home == ROOT else self.engine_env_file)))

    def compose(self, *arguments: str, timeout_s: float = 120, failure: type[BundleError] | None = BundleError) -> CompletedProcess[str]:
        """Run `docker compose` on the project; the failure shows the command and the end of what it printed."""
        return shell.run([*self.command(), *arguments], timeout_s=timeout_s, env=daemon.client_environment(), cwd=self.folder, failure=failure)

    def command(self) -> list[str]:
        """`docker compose` for this project, to be run in `folder`; without an env file Compose goes by the labels of what runs."""
        if self.is_written:
            return ["docker", "compose", "--file", str(self.home / "compose.yaml"), "--env-file", str(self.env_file), "--project-name", self.project]
        return ["docker", "compose", "--project-name", self.project]

    @property
    def folder(self) -> Path:
        """Where to run `command`: without an env file, out of Compose's sight of compose.yaml, which needs one."""
        return self.home if self.is_written else Path("/")

    def containers(self) -> dict[str, Container]:
        """The project's containers by service, in no order; empty when nothing of it exists."""
        with daemon.reachable():
            # The project's label alone is not enough: Compose puts it on the images that it builds too, and so on whatever runs from them.
            labels = [f"com.docker.compose.project={self.project}", "com.docker.compose.oneoff=False"]
            mine = daemon.client().containers.list(all=True, filters={"label": labels})
            found = (Container.read(c.attrs) for c in mine)
            return {c.service: c for c in found}

    def log(self, container: Container, *, lines: int | None = None, since_start: bool = False) -> str:
        """What the container printed, on either stream: the last `lines`, or all since it last started."""
        with daemon.reachable():
            there = daemon.client().containers.get(container.id)
            options: dict[str, Any] = {"tail": lines} if lines else {}
            if since_start:
                options["since"] = datetime.fromisoformat(container.started[:19] + "+00:00")
            return bytes(there.logs(**options)).decode(errors="replace")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the project alone. Raises PrerequisiteError when another verb is changing it now."""
        STATE.mkdir(exist_ok=True)
        with (STATE / f"{self.project}.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise PrerequisiteError(f"project {self.project} is being changed by process {lock.read().strip() or '?'}",
                                        fix="wait for it to end; `make status` shows how far it is") from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _replace(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
