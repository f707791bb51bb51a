"""One deployment on this host: the env files that `make up` derived for it, the Compose project, and its containers.

Its first model is what compose.yaml describes. Of each further one Compose itself says what its engines are, by the same compose.yaml with that
model's env file, and they are laid beside the first one's under names of their own: engine-b, engine-b-2, engine-c …
"""

import fcntl
import getpass
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

from bundle import ROOT, STATE
from bundle.base import files, shell
from bundle.base.clock import Clock
from bundle.base.errors import BundleError, PrerequisiteError
from bundle.config import envfile
from bundle.config.keys import MODELS, engines
from bundle.config.settings import Settings
from bundle.machine import daemon

DEFAULT_PROJECT = "vllm"
GATEWAY, ENGINE = "gateway", "engine"
WORK_S = 120
"""What Docker and Compose may take for their own part of a change, beside what they wait for."""
ATTEMPTS, PAUSE_S = 5, 1.0
_CONFLICT = "is already in use by container"
_SERVICE = re.compile(rf"(?P<model>{'|'.join(MODELS)})(-\d+)?")
_PLANNED = re.compile(r"Container (?P<name>\S+)\s+(?P<action>Recreate|Creat|Start|Running)(?:e|ing|ed)?\s*$", re.MULTILINE)


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
    stop_grace_s: float = 0
    """Seconds that Docker lets it take to stop."""

    @property
    def healthy(self) -> bool:
        return self.state == "running" and self.health == "healthy"

    @property
    def is_engine(self) -> bool:
        return is_engine(self.service)

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
            stop_grace_s=float(inspected["Config"].get("StopTimeout") or 0),
        )


def is_engine(service: str) -> bool:
    """Whether a service is one of the engines: engine, engine-2, of a second model engine-b, engine-b-2 …"""
    return _SERVICE.fullmatch(service) is not None


def model_of(service: str) -> str:
    """The service of the first engine of the model that an engine serves: engine-b for engine-b-2."""
    found = _SERVICE.fullmatch(service)
    return found["model"] if found else ""


Texts = Mapping[str, str]
"""What the files of a deployment hold, by what stands behind the project in their names."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A Compose project and the env files that it runs from. What talks to Docker are the methods that a test replaces."""

    project: str = DEFAULT_PROJECT
    home: Path = ROOT
    """The folder of its compose.yaml: the bundle's own, or a handoff's."""
    state: Path = STATE
    clock: Clock = field(default_factory=Clock)
    oneoff: bool = False
    """Its containers are those that `docker compose run` makes, beside those of the services."""

    # --- its files

    @property
    def env_file(self) -> Path:
        """Everything that compose.yaml interpolates, for the first model, and the origin of each value as comments."""
        return self._file(_env(ENGINE))

    @property
    def engine_env_file(self) -> Path:
        """The engine's own settings alone: a change elsewhere must not recreate the engine."""
        return self._file(_engine_env(ENGINE))

    @property
    def is_written(self) -> bool:
        return self.env_file.is_file()

    @classmethod
    def from_settings(cls, settings: Settings) -> "Deployment":
        return cls(project=settings.project)

    def texts(self, models: Sequence[Settings]) -> Texts:
        """What the files hold for `models`: two env files for each, and the list by which the gateway routes."""
        first, *further = models
        written = {"GATEWAY_BACKENDS": " ".join(MODELS[:len(models)]), "GATEWAY_MODELS_FILE": str(self._file(_ROUTES))}
        found = {_ROUTES: "".join(f"{name} {service}{_PRIORITY if each.value('ENGINE_SCHEDULING_POLICY') == 'priority' else ''}\n"
                                  for service, each in zip(MODELS, models, strict=False) for name in each.model_names)}
        if first.value("MONITORING_ENGINES"):
            there = (name for service, each in zip(MODELS, models, strict=False) for name in engines(service, each.replicas))
            written["MONITORING_ENGINES"] = " ".join(there)
        for service, each in zip(MODELS, (first.overridden(written, "the models that are served"), *further), strict=False):
            own = self._file(_engine_env(service))
            name = own.relative_to(ROOT) if self.home == ROOT and self.state == STATE else own
            found |= {_env(service): each.flatten(str(name)), _engine_env(service): each.flatten_engine()}
        return found

    def write(self, texts: Texts) -> None:
        """Put the derived files in place, each in one step, and take away those of models that are not among them."""
        self.state.mkdir(exist_ok=True)
        for part in _PARTS:
            if part in texts:
                _replace(self._file(part), texts[part])
            else:
                self._file(part).unlink(missing_ok=True)
        further = {name: each for service in MODELS[1:] if _env(service) in texts for name, each in self.rendered(service).items()}
        if further:
            _replace(self._further, json.dumps({"services": further}, indent=1))
        else:
            self._further.unlink(missing_ok=True)

    def written(self) -> Texts:
        """What the derived files hold now."""
        return {part: self._file(part).read_text() for part in _PARTS if self._file(part).is_file()}

    def unwrite(self) -> None:
        """Take all of them away."""
        for file in (*map(self._file, _PARTS), self._further):
            file.unlink(missing_ok=True)

    def values(self, service: str = ENGINE) -> dict[str, str]:
        """What the env file of a model says, the first's or that of `service`; empty where there is none."""
        file = self._file(_env(service))
        return {entry.key: entry.value for entry in envfile.parse(file)[0]} if file.is_file() else {}

    def engine_text(self, service: str) -> str:
        """The settings that a model's engines read; "" where there are none."""
        return self.written().get(_engine_env(service), "")

    def number(self, key: str) -> float:
        """A value of the env files that is a number, the largest of the models'; 0 where it is not set."""
        return max(float(self.values(service).get(key) or 0) for service in MODELS)

    def routes(self) -> Mapping[str, str]:
        """Which backend of the gateway each model's name leads to, as its map has it."""
        file = self._file(_ROUTES)
        return {name: to for name, _, to in (line.partition(" ") for line in file.read_text().splitlines())} if file.is_file() else {}

    @property
    def models(self) -> tuple[str, ...]:
        """One name of each model that is served, the first model's first."""
        names = {to.partition(" ")[0]: name for name, to in reversed([*self.routes().items()])}
        return tuple(names[service] for service in MODELS if service in names)

    def rendered(self, service: str) -> Mapping[str, Any]:
        """The engines of a further model, by their services' names, as Compose reads compose.yaml with its env file."""
        done = self._compose([*self._base(self._file(_env(service))), "config", "--format", "json"], failure=PrerequisiteError)
        return {service + name.removeprefix(ENGINE): {key: value for key, value in each.items() if key not in ("build", "profiles")}
                for name, each in json.loads(done.stdout)["services"].items() if is_engine(name)}

    def _file(self, part: str) -> Path:
        return self.state / f"{self.project}.{part}"

    @property
    def _further(self) -> Path:
        return self.state / f"{self.project}.engines.json"

    # --- Compose

    def compose(self, *arguments: str, timeout_s: float = WORK_S, failure: type[BundleError] | None = BundleError) -> CompletedProcess[str]:
        """Run `docker compose` on the project; the failure shows the command and the end of what it printed."""
        return self._compose([*self.command(), *arguments], timeout_s=timeout_s, failure=failure)

    def _compose(self, argv: Sequence[str], *, timeout_s: float = WORK_S, failure: type[BundleError] | None) -> CompletedProcess[str]:
        return shell.run(argv, timeout_s=timeout_s, env=daemon.client_environment(), cwd=self.folder, failure=failure)

    def command(self) -> list[str]:
        """`docker compose` for this project, to be run in `folder`; without an env file Compose goes by the labels of what runs."""
        if self.is_written:
            return self._base(self.env_file, *([self._further] if self._further.is_file() else []))
        return ["docker", "compose", "--project-name", self.project]

    def _base(self, env_file: Path, *further: Path) -> list[str]:
        named = [word for file in (self.home / "compose.yaml", *further) for word in ("--file", str(file))]
        return ["docker", "compose", *named, "--env-file", str(env_file), "--project-name", self.project]

    @property
    def folder(self) -> Path:
        """Where to run `command`: without an env file, out of Compose's sight of compose.yaml, which needs one."""
        return self.home if self.is_written else Path("/")

    @property
    def stop_limit_s(self) -> float:
        """How long a Compose command that stops containers may take: what they are given to stop, and Docker's own work."""
        graces = [container.stop_grace_s for container in self.containers().values()]
        return max([self.number("HOST_STOP_GRACE_S"), *graces]) + WORK_S

    def start(self, *arguments: str) -> None:
        """`docker compose up`, without building. Raises PrerequisiteError with what Docker said.

        After an interruption the daemon may still be making containers for a client that has gone, and Compose stumbles over their names.
        """
        limit_s = self.stop_limit_s
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.compose("up", "--detach", "--no-build", *arguments, timeout_s=limit_s, failure=PrerequisiteError)
            except PrerequisiteError as error:
                if _CONFLICT not in error.message or attempt == ATTEMPTS:
                    raise
                self.clock.sleep(PAUSE_S)
                self.remove_unstarted()
            else:
                return

    def plan(self) -> dict[str, str]:
        """What `start` would do to each service that the env file asks for: Running (nothing), Start, Recreate, or Creat (make it).

        What Compose does not tell counts as a change, for which a service is drained in vain at most.
        """
        wanted = self.compose("config", "--services", failure=PrerequisiteError).stdout.split()
        said = self.compose("--dry-run", "up", "--detach", "--no-build", failure=PrerequisiteError)
        prefix = f"{self.project}-"
        found: dict[str, str] = {}
        for match in _PLANNED.finditer(said.stdout + said.stderr):
            if match["name"].startswith(prefix):  # the first line of a container says what comes; those after it, how far it is
                found.setdefault(match["name"].removeprefix(prefix).rpartition("-")[0], match["action"])
        return {service: found.get(service, "Recreate") for service in wanted}

    # --- the daemon

    def containers(self) -> dict[str, Container]:
        """The project's containers by service, in no order; empty when nothing of it exists."""
        found = sorted((Container.read(each.attrs) for each in self._own()), key=lambda container: container.state == "running")
        return {container.service: container for container in found}

    def remove_unstarted(self) -> None:
        """Remove the project's containers that were made and never started, as an interrupted run leaves them; they hold nothing."""
        with daemon.reachable():
            for each in self._own():
                if each.status == "created":
                    each.remove(force=True)

    def remove(self, container: Container) -> None:
        """Stop a container in its own time, and remove it."""
        with daemon.reachable():
            for each in self._own():
                if each.id == container.id:
                    each.stop(timeout=int(container.stop_grace_s or self.number("HOST_STOP_GRACE_S")))
                    each.remove(force=True)

    def _own(self) -> Sequence[Any]:
        # The project's label alone is not enough: Compose puts it on the images that it builds too, and so on whatever runs from them.
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.oneoff={self.oneoff}"]
        with daemon.reachable():
            found: Sequence[Any] = daemon.client().containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        return found

    def log(self, container: Container, *, lines: int | None = None, since_start: bool = False) -> str:
        """What the container printed, on either stream: the last `lines`, or all since it last started. Empty where it is gone."""
        options: dict[str, Any] = {"tail": lines} if lines else {}
        if since_start:
            options["since"] = datetime.fromisoformat(container.started[:19] + "+00:00")
        return daemon.log(container.id, **options)

    def lines(self, container: Container) -> Iterator[str]:
        """Every line that the container printed and Docker still keeps, each behind the moment (UTC) at which Docker got it."""
        return daemon.lines(container.id)

    def execute(self, container: Container, *argv: str) -> tuple[int, str] | None:
        """Run a program in the container: exit code and stdout; None where it is gone or does not run."""
        return daemon.execute(container.id, argv)

    def feed(self, container: Container, text: str, *argv: str) -> str | None:
        """Run a program in the container with `text` as its stdin: its stdout; None where it fails. For what must not stand in arguments."""
        done = shell.run(["docker", "exec", "--interactive", container.id, *argv], timeout_s=60, env=daemon.client_environment(), stdin=text,
                         failure=None)
        return done.stdout if done.returncode == 0 else None

    def image_id(self, name: str) -> str:
        """The id of an image on this host, "" where it is not there."""
        return daemon.image_id(name)

    def tag(self, image: str, name: str) -> None:
        """Give an image (a name or an id) another name."""
        daemon.tag(image, name)

    def untag(self, name: str) -> None:
        """Take a name away; nothing happens where there is none."""
        daemon.untag(name)

    # --- one at a time

    @contextmanager
    def locked(self, verb: str) -> Iterator[None]:
        """Hold the project alone. Raises PrerequisiteError, saying who holds it, when another verb is changing it now."""
        self.state.mkdir(exist_ok=True)
        with (self.state / f"{self.project}.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise PrerequisiteError(f"project {self.project} is being changed by {lock.read().strip() or 'another process'}",
                                        fix="wait for it to end; `make status` shows how far it is") from error
            lock.truncate(0)
            lock.write(f"`make {verb}` of {_user()} since {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z} (process {os.getpid()})")
            lock.flush()
            yield


@contextmanager
def resolved(models: Sequence[Settings]) -> Iterator[tuple[dict[str, Any], str]]:
    """The project as `docker compose config` prints it for `models`: every variable resolved, env files and anchors put in, each `$` twice. And the
    list by which the gateway routes. No daemon is asked, and the derived files that it names are gone at the end.

    Raises PrerequisiteError without Docker Compose.
    """
    with TemporaryDirectory(prefix="vllm-resolved-") as state:
        deployment = Deployment(project=models[0].project, state=Path(state))
        texts = deployment.texts(models)
        deployment.write(texts)
        yield json.loads(deployment.compose("config", "--format", "json", failure=PrerequisiteError).stdout), texts[_ROUTES]


def _user() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return f"uid {os.getuid()}"


def _env(service: str) -> str:
    return f"{service.removeprefix(ENGINE).removeprefix('-')}.env".removeprefix(".")


def _engine_env(service: str) -> str:
    return f"{service.removeprefix(ENGINE).removeprefix('-')}.engine.env".removeprefix(".")


_ROUTES, _PRIORITY = "models", " priority"
_PARTS = (_ROUTES, *(part for service in MODELS for part in (_env(service), _engine_env(service))))


def _replace(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    files.write_whole(path, text)
    path.chmod(0o644)  # Compose mounts the list of models as it is, and the gateway is another user
