"""A deployment whose Docker is a simulation and whose clock only moves when somebody waits: a start of minutes takes milliseconds.

    world = World(tmp_path)
    lifecycle.apply(world.deployment(), world.env())

It has a gateway that routes, engines that load for a while or end, and clients that ask all the time. What it does not have is any judgement
of its own: a container that is stopped while it answers loses those requests, as the real one did before there was draining.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from bundle.base.clock import Clock
from bundle.base.errors import BundleError
from bundle.service.deployment import GATEWAY, Container, Deployment, Texts, is_engine, model_of

PORT = 8005
PATIENCE_S = 100_000
STEP_S = 0.5
IMAGES = {"engine:1": "sha256:e1", "gateway:1": "sha256:g1"}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How an engine starts: healthy after `ready_s`, or never; or its process ends after `ends_s`."""

    ready_s: float | None = 30
    ends_s: float | None = None
    out_of_memory: bool = False


@dataclass(kw_only=True)
class FakeContainer:
    """One container."""

    id: str
    service: str
    config: str
    image: str
    started: float
    behaviour: Behaviour
    state: str = "running"
    requests: list[float] = field(default_factory=list)
    """When each request that it answers now will have ended."""


class FakeClock(Clock):
    def __init__(self, world: "World") -> None:
        self.world = world

    def now(self) -> float:
        return self.world.time

    def sleep(self, seconds: float) -> None:
        self.world.passes(seconds)


@dataclass(kw_only=True)
class Clients:
    """One new request every second, each `seconds` long, while `seconds` is not 0."""

    seconds: float = 0
    sent: int = 0
    answered: int = 0
    refused: int = 0
    """503 with Retry-After: the gateway has no engine to send it to."""
    lost: int = 0


class World:
    """What Docker, the gateway and the clients do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.time = folder, 0.0
        self.containers: dict[str, FakeContainer] = {}
        self.images = dict(IMAGES)
        self.taken_out: set[str] = set()
        self.backends: list[str] = []
        self.routes: dict[str, str] = {}
        """What the running gateway knows of the models."""
        self.clients = Clients()
        self.behaviour: Callable[[Mapping[str, str]], Behaviour] = lambda _: Behaviour()
        self.stop_takes_s = 1.0
        self.calls: list[tuple[str, ...]] = []
        self.interrupt_at: int | None = None
        self.conflicts = 0
        self.dry_run_says_nothing = False
        self.count = 0

    def deployment(self) -> "FakeDeployment":
        return FakeDeployment(project="fake", state=self.folder, clock=FakeClock(self), world=self)

    def env(self, *, beside: Mapping[str, str] | None = None, **values: str) -> Texts:
        """The texts of the derived files, with defaults for what is not given; `beside` are values of a second model."""
        texts = self._model("", values | ({"GATEWAY_BACKENDS": "engine engine-b"} if beside is not None else {}))
        names = {"engine": values.get("ENGINE_SERVED_MODEL_NAME", "m")}
        if beside is not None:
            texts |= self._model("b.", dict(beside))
            names["engine-b"] = beside.get("ENGINE_SERVED_MODEL_NAME", "second")
        return texts | {"models": "".join(f"{name} {service}\n" for service, name in names.items())}

    def _model(self, prefix: str, values: Mapping[str, str]) -> dict[str, str]:
        engine = {"ENGINE_SHUTDOWN_TIMEOUT": "30", "ENGINE_SERVED_MODEL_NAME": "m"} | {k: v for k, v in values.items() if k.startswith("ENGINE_")}
        rest = {"HOST_READY_TIMEOUT_S": "600", "HOST_STOP_GRACE_S": "45", "HOST_REPLICAS": "1", "IMAGE_ENGINE": "engine:1",
                "IMAGE_GATEWAY": "gateway:1"} | {k: v for k, v in values.items() if not k.startswith("ENGINE_")}
        texts = ["".join(f"{key}={value}\n" for key, value in part.items()) for part in (rest | engine, engine)]
        return {f"{prefix}env": texts[0], f"{prefix}engine.env": texts[1]}

    # --- time

    def passes(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + STEP_S)
            assert self.time < PATIENCE_S, "somebody waits for ever"
            for container in self.containers.values():
                done = [until for until in container.requests if until <= self.time]
                self.clients.answered += len(done)
                container.requests = [until for until in container.requests if until > self.time]
                ends = container.behaviour.ends_s
                if container.state == "running" and ends is not None and self.time - container.started >= ends:
                    self.ends(container)
            if self.clients.seconds and self.time % 1 == 0:
                self.ask()

    def ask(self, seconds: float = 0) -> None:
        """One request, as long as the others or `seconds` long."""
        self.clients.sent += 1
        able = [c for c in self.containers.values() if model_of(c.service) == "engine" and self.healthy(c) and c.service not in self.taken_out]
        if GATEWAY not in self.containers or not able:
            self.clients.refused += 1
        else:
            min(able, key=lambda c: len(c.requests)).requests.append(self.time + (seconds or self.clients.seconds))

    def healthy(self, container: FakeContainer) -> bool:
        ready = container.behaviour.ready_s
        return container.state == "running" and ready is not None and self.time - container.started >= ready

    # --- what Compose does

    def wanted(self, deployment: Deployment) -> dict[str, tuple[str, str]]:
        """Configuration and image id by service, from the env files."""
        values = deployment.values()
        gateway = json.dumps({key: value for key, value in values.items() if key.startswith("GATEWAY_")})
        found = {GATEWAY: (gateway, self.images[values["IMAGE_GATEWAY"]])}
        for service, prefix in (("engine", ""), ("engine-b", "b.")):
            if own := deployment.values(service):
                names = [service, *(f"{service}-{n}" for n in range(2, int(own["HOST_REPLICAS"]) + 1))]
                engine = hashlib.sha256((self.folder / f"fake.{prefix}engine.env").read_bytes()).hexdigest()
                found |= dict.fromkeys(names, (engine, self.images[own["IMAGE_ENGINE"]]))
        return found

    def differs(self, service: str, wanted: tuple[str, str]) -> bool:
        there = self.containers[service]
        return (there.config, there.image) != wanted

    def up(self, deployment: Deployment, services: list[str], *, recreate: bool | None) -> None:
        """`recreate` None: never, True: always, False: what differs."""
        wanted = self.wanted(deployment)
        for service in services or list(wanted):
            there = self.containers.get(service)
            if there and recreate is not None and (recreate or self.differs(service, wanted[service])):
                self.stop(there)
                del self.containers[service]
            if service not in self.containers:
                self.make(deployment, service, wanted[service])
            elif self.containers[service].state != "running":
                self.start(deployment, self.containers[service])

    def make(self, deployment: Deployment, service: str, wanted: tuple[str, str], *, state: str = "running") -> None:
        self.count += 1
        self.containers[service] = FakeContainer(id=f"c{self.count}", service=service, config=wanted[0], image=wanted[1], started=0, state=state,
                                                 behaviour=Behaviour(ready_s=1))
        if state == "running":
            self.start(deployment, self.containers[service])

    def start(self, deployment: Deployment, container: FakeContainer) -> None:
        container.started, container.state = self.time, "running"
        if is_engine(container.service):
            container.behaviour = self.behaviour(deployment.values(model_of(container.service)))
        else:  # it reads its configuration and its list of models when it starts, and only then
            self.backends = deployment.values().get("GATEWAY_BACKENDS", "engine").split()
            self.routes = dict(deployment.routes())

    def stop(self, container: FakeContainer) -> None:
        if container.state != "running":
            return
        if container.service == GATEWAY:
            # A soft stop: it goes on sending what runs, as long as the engines have it and its grace allows.
            end = self.time + 45
            asking, self.clients.seconds = self.clients.seconds, 0
            while self.time < end and any(c.requests for c in self.containers.values()):
                self.passes(STEP_S)
            self.clients.seconds = asking
            container.state = "exited"
        else:
            self.ends(container)
        self.passes(self.stop_takes_s)

    def ends(self, container: FakeContainer) -> None:
        self.clients.lost += len(container.requests)
        container.requests, container.state = [], "exited"


@dataclass(frozen=True, kw_only=True)
class FakeDeployment(Deployment):
    """Everything that would talk to Docker asks the World."""

    world: World

    def compose(self, *arguments: str, timeout_s: float = 120, failure: type[BundleError] | None = BundleError) -> CompletedProcess[str]:
        world, started = self.world, self.world.time
        world.calls.append(arguments)
        if world.interrupt_at == len(world.calls):
            raise KeyboardInterrupt
        said = ""
        match [argument for argument in arguments if argument not in ("--detach", "--no-build", "--remove-orphans", "--no-deps", "--profile", "*")]:
            case ["config", "--services"]:
                return CompletedProcess(arguments, 0, "".join(f"{service}\n" for service in world.wanted(self)), "")
            case ["--dry-run", "up"]:
                if world.dry_run_says_nothing:
                    return CompletedProcess(arguments, 0, "", "")
                for service, wanted in world.wanted(self).items():
                    there = world.containers.get(service)
                    if there is None:
                        steps = [f"{service}-1  Creating", f"{service}-1  Created", f"{service}-1  Starting"]
                    elif there.state == "created":  # by an interrupted change, and not renamed yet
                        said += f" DRY-RUN MODE -  Container {there.id}_fake-{service}-1  Starting\n"
                        steps = []
                    elif world.differs(service, wanted):
                        steps = [f"{service}-1  Recreate", f"{service}-1  Recreated"]
                    else:
                        steps = [f"{service}-1  {'Running' if there.state == 'running' else 'Starting'}"]
                    said += "".join(f" DRY-RUN MODE -  Container fake-{step}\n" for step in steps)
            case ["up", *rest]:
                if world.conflicts:
                    world.conflicts -= 1
                    world.make(self, "engine", world.wanted(self)["engine"], state="created")  # the daemon got so far meanwhile
                    assert failure is not None
                    raise failure('Error response from daemon: Conflict. The container name "/fake-engine-1" is already in use by container "ab".')
                assert not any(c.state == "created" for c in world.containers.values()), "Compose stumbles over what an interrupted run has left"
                if "--remove-orphans" in arguments:
                    for name in set(world.containers) - set(world.wanted(self)):
                        world.stop(world.containers.pop(name))
                names = [name for name in rest if not name.startswith("--")]
                world.up(self, names, recreate=None if "--no-recreate" in rest else "--force-recreate" in rest)
            case ["stop", *services]:
                for service in services or list(world.containers):
                    world.stop(world.containers[service])
            case ["restart", service]:
                world.stop(world.containers[service])
                world.start(self, world.containers[service])
            case ["down", *_]:
                for service in sorted(world.containers, key=lambda name: not is_engine(name)):  # all at once: the engines are not waited for
                    world.stop(world.containers[service])
                world.containers.clear()
            case other:
                raise AssertionError(f"no such Compose command: {other}")
        if world.time - started > timeout_s:
            raise (failure or BundleError)(f"docker compose {' '.join(arguments)}: no end after {timeout_s:g} s")
        return CompletedProcess(arguments, 0, "", said)

    def containers(self) -> dict[str, Container]:
        return {name: self._container(each) for name, each in self.world.containers.items()}

    def _container(self, fake: FakeContainer) -> Container:
        health = "healthy" if self.world.healthy(fake) else "starting"
        return Container(id=fake.id, service=fake.service, state=fake.state, health=health, restarts=0, exit_code=1,
                         out_of_memory=fake.behaviour.out_of_memory and fake.state == "exited", started=str(fake.started), image=fake.image,
                         memory_bytes=8 * 2**30, probe="", published=("127.0.0.1", PORT) if fake.service == GATEWAY else None)

    def remove_unstarted(self) -> None:
        self.world.containers = {name: each for name, each in self.world.containers.items() if each.state != "created"}

    def remove(self, container: Container) -> None:
        self.world.stop(self.world.containers.pop(container.service))

    def log(self, container: Container, *, lines: int | None = None, since_start: bool = False) -> str:
        return "entrypoint: the fake engine has no more to say"

    def execute(self, container: Container, *argv: str) -> tuple[int, str] | None:
        world = self.world
        if container.state != "running":
            return None
        if container.service != GATEWAY:
            return 1, ""
        said = ""
        for line in argv[3:]:
            match line.split():
                case ["show", "stat", *_]:
                    said += "# pxname,svname,qcur,scur,status,\n"
                    for backend in world.backends:
                        for name in (backend, *(f"{backend}-{number}" for number in range(2, 9))):
                            there = world.containers.get(name)
                            status = "MAINT" if name in world.taken_out else "UP" if there and world.healthy(there) else "DOWN"
                            said += f"{backend},{name},0,{len(there.requests) if there else 0},{status},\n"
                    said += "prometheus,prometheus,0,0,no check,\n"  # with monitoring: a server, and no engine
                case ["set", "server", server, "state", state]:
                    name = server.partition("/")[2]
                    (world.taken_out.discard if state == "ready" else world.taken_out.add)(name)
                case other:
                    raise AssertionError(f"no such admin command: {other}")
        return 0, said

    def feed(self, container: Container, text: str, *argv: str) -> str | None:
        said = []
        for command in json.loads(text):
            first, *lines = command.splitlines()
            match first.split():
                case ["show", "map", _]:
                    said.append("".join(f"0x1 {name} {to}\n" for name, to in self.world.routes.items()))
                case ["prepare", "map", _]:
                    said.append("New version created: 1\n")
                case ["add", "map", *_]:
                    self.world.routes = dict(line.split(" ", 1) for line in lines)
                    said.append("\n")
                case ["commit", "map", *_]:
                    said.append("\n")
                case other:
                    raise AssertionError(f"no such admin command: {other}")
        return json.dumps(said)

    def rendered(self, service: str) -> Mapping[str, Any]:
        return {service: {}}

    def image_id(self, name: str) -> str:
        return name if name in self.world.images.values() else self.world.images.get(name, "")

    def tag(self, image: str, name: str) -> None:
        self.world.images[name] = self.image_id(image)

    def untag(self, name: str) -> None:
        self.world.images.pop(name, None)
