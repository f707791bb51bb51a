"""The Compose runtime: engines as `make up` starts them, in a project of the run's own whose cache volume lasts as long as the run."""

import contextlib
import hashlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bundle import ROOT, STATE
from bundle.base import console, shell
from bundle.base.errors import NotReadyError, PrerequisiteError
from bundle.bench import runtimes
from bundle.bench.rundata import Ceilings, Provenance
from bundle.bench.runtimes import StartFailed
from bundle.config.settings import Settings
from bundle.doctor import host
from bundle.images import build
from bundle.machine import daemon, setup
from bundle.machine.gpu import Gpu
from bundle.service import enginelog, lifecycle
from bundle.service.deployment import Container, Deployment

PYTHON = "/opt/venv/bin/python"
FOLDER = "/opt/bundle"
"""Where the image has what docker/engine/Dockerfile copies beside the entrypoint."""
LONGEST_PROJECT = 40
PROBE_LIMIT_S = 300

_ENGINES = ("com.docker.compose.service=engine", "com.docker.compose.oneoff=False")
_PROJECT = "com.docker.compose.project"
_FOLDER = "com.docker.compose.project.working_dir"
_TITLE = "org.opencontainers.image.title"
_ENDED = re.compile(r"entrypoint: the engine (?:ended unasked|died)")
_VERSIONS = f"""
import importlib.metadata, json
print(json.dumps({{name: importlib.metadata.version(name) for name in {runtimes.PACKAGES!r}}}))
"""
# Runs beside the engine. The health check looks every 5 s only, which is too coarse for the time that a start takes.
_FIRST_ANSWER = """
import json, sys, time, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not the proxy that Docker's client hands to every container
ask = urllib.request.Request("http://127.0.0.1:" + sys.argv[1] + "/v1/completions", headers={"Content-Type": "application/json"},
                             data=json.dumps({"model": sys.argv[2], "prompt": "ready?", "max_tokens": 1, "temperature": 0}).encode())
while True:
    try:
        direct.open(ask, timeout=600).read()
        print(time.time())
        break
    except OSError:
        time.sleep(0.1)
"""


class ComposeRuntime:
    """Starts one engine at a time with its gateway. `prepare` refuses beside another deployment's engine: each would disturb the other."""

    name = "compose"

    def __init__(self, run_name: str, run_dir: Path) -> None:
        self.deployment = Deployment(project=project_name(run_name))
        self.folder = run_dir
        self.cards: tuple[Gpu, ...] = ()
        self._control: Settings | None = None

    def prepare(self, settings: Sequence[Settings]) -> None:
        """As Runtime.prepare; builds images that are missing or stale, as `make up` does."""
        own = [self._own(each) for each in settings]
        for each in own:
            each.require()
        self._control = own[0]
        setup.prepare(own[0].value("HOST_SETUP"))
        _refuse_company(self.deployment.project)
        for at, each in enumerate(own):
            # What a cell asks of the GPU's memory in vain is its result; the control has to start.
            failed = [check for check in host.host_checks([each]) if check.state == "fail" and (at == 0 or check.name != "gpu memory")]
            if failed:
                raise PrerequisiteError("this host cannot run it yet:\n" + "\n".join(f"  {check.name}: {check.found}" for check in failed),
                                        fix="\n       ".join(check.fix for check in failed))
        for each in {(one.image_engine, one.image_gateway): one for one in own}.values():
            build.ensure(each)
        self.cards = runtimes.cards(own)
        runtimes.warn_of_company(self.cards)

    def start(self, settings: Settings, label: str) -> "ComposeEngine":
        """As Runtime.start. Raises PrerequisiteError too, when this host has changed since `prepare`."""
        own = self._own(settings)
        for check in host.host_checks([own]):
            if (check.state, check.name) == ("fail", "gpu memory"):
                raise StartFailed(reason=f"{check.name}: {check.found}", remedy=check.fix)
        asked: list[float] = []
        try:
            with _first_answer(self.deployment, own) as answered:
                # The images are what `prepare` found: in the middle of a run they must not change.
                lifecycle.up([own], self.deployment, ensure_images=lambda _: asked.append(time.time()))
                ready = time.time()
        except NotReadyError as error:
            failed = self._failed(error, label)
            lifecycle.down(self.deployment, volumes=False)
            raise failed from error
        except BaseException:
            lifecycle.down(self.deployment, volumes=False)
            raise
        container = self.deployment.containers()["engine"]
        return ComposeEngine(runtime=self, settings=own, label=label, container=container, started=asked[0], ready=min([ready, *answered]))

    def start_together(self, wanted: Sequence[tuple[Settings, str]]) -> Sequence["ComposeEngine | StartFailed"]:
        """Not here: compose.yaml gives each engine the whole GPU. Raises PrerequisiteError."""
        raise PrerequisiteError(f"Compose starts one engine at a time, not {len(wanted)} side by side",
                                fix="measure one after the other, or side by side in the process runtime")

    def probe(self) -> Ceilings:
        """As Runtime.probe, in a container like the engine's: its image, GPU, limits and environment."""
        self.deployment.write(self.deployment.texts([self._prepared]))
        done = self.deployment.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", PYTHON, "engine", f"{FOLDER}/benchprobe.py",
                                       timeout_s=PROBE_LIMIT_S)
        return runtimes.probed(done.stdout)

    def provenance(self) -> Provenance:
        """As Runtime.provenance, with the ids of the images."""
        engine, gateway = self._prepared.image_engine, self._prepared.image_gateway
        asked = shell.run(["docker", "run", "--rm", "--network=none", f"--entrypoint={PYTHON}", engine, "-c", _VERSIONS], timeout_s=120,
                          env=daemon.client_environment())
        with daemon.reachable():
            ids = {name: str(daemon.client().images.get(name).id) for name in (engine, gateway)}
        return runtimes.provenance(self, json.loads(asked.stdout), ids)

    def close(self) -> None:
        """As Runtime.close."""
        lifecycle.down(self.deployment, volumes=True)
        with daemon.reachable():  # where no container is left, Compose does not see the volumes
            for volume in daemon.client().volumes.list(filters={"label": f"{_PROJECT}={self.deployment.project}"}):
                volume.remove()
        (STATE / f"{self.deployment.project}.lock").unlink(missing_ok=True)

    @property
    def _prepared(self) -> Settings:
        assert self._control is not None, "prepare comes first"  # noqa: S101
        return self._control

    def _own(self, settings: Settings) -> Settings:
        """As it is started for this run. Where no model is named it stays the self-test model: not what `make up` would fetch in its place."""
        values = {"HOST_PROJECT": self.deployment.project, "GATEWAY_BIND": "127.0.0.1", "GATEWAY_PORT": "0",
                  "ENGINE_MODEL": settings.value("ENGINE_MODEL")}
        return settings.overridden(values, "set by the benchmark")

    def _failed(self, error: NotReadyError, label: str) -> StartFailed:
        """The engine's own error where it ended by itself; else what `make up` says: out of memory, or too slow."""
        container = self.deployment.containers().get("engine")
        log = _first_start(stamped(container)) if container else []
        self.keep(label, log)
        text = "\n".join(line for _, line in log)
        if container and not container.out_of_memory and _ENDED.search(text):
            return StartFailed(reason=enginelog.last_error(text), remedy=enginelog.remedy(text), log=log)
        return StartFailed(reason=error.message.splitlines()[0], remedy=error.fix, log=log)

    def keep(self, label: str, log: Sequence[tuple[float, str]]) -> None:
        """Write a log into the run's folder."""
        path = self.folder / "logs" / f"{label}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{at:.3f} {line}\n" for at, line in log), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class ComposeEngine:
    """An engine in its container; its agent runs in there too."""

    runtime: ComposeRuntime
    settings: Settings
    label: str
    container: Container
    started: float
    ready: float
    held_s: float = 0.0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.value('ENGINE_PORT')}"

    @property
    def model(self) -> str:
        return self.settings.value("ENGINE_MODEL")

    @property
    def served_model_name(self) -> str:
        return self.settings.served_model_name

    @property
    def agent_argv(self) -> Sequence[str]:
        return ("docker", "exec", "--interactive", self.container.id, PYTHON, f"{FOLDER}/benchagent.py")

    @property
    def agent_environment(self) -> dict[str, str]:
        return daemon.client_environment()

    def log(self) -> list[tuple[float, str]]:
        return stamped(self.container)

    def alive(self) -> bool:
        now = self.runtime.deployment.containers().get("engine")
        return (now is not None and (now.id, now.started) == (self.container.id, self.container.started)
                and not now.ended_since(self.container))

    def stop(self) -> None:
        self.runtime.keep(self.label, self.log())
        lifecycle.down(self.runtime.deployment, volumes=False)


def project_name(run: str) -> str:
    """A Compose project's name for a run: the run's own where it is short and has no characters that Compose refuses."""
    name = re.sub(r"[^a-z0-9_-]+", "-", f"bench-{run.lower()}")
    return name if len(name) <= LONGEST_PROJECT else f"{name[:LONGEST_PROJECT - 9]}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def stamped(container: Container) -> list[tuple[float, str]]:
    """All that the container printed, each line with the epoch seconds at which the daemon received it."""
    with daemon.reachable():
        raw = bytes(daemon.client().containers.get(container.id).logs(timestamps=True))
    lines = (line.partition(" ") for line in raw.decode(errors="replace").split("\n") if line)
    return [(_epoch(at), part) for at, _, text in lines for part in text.split("\r") if part.strip()]  # progress bars end with \r


def _epoch(stamp: str) -> float:
    # Nanoseconds, in UTC: 2026-11-24T00:04:43.201908019Z
    return datetime.fromisoformat(stamp[:26].rstrip("Z") + "+00:00").timestamp()


def _first_start(log: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The log up to the engine's first end: Docker has started it again since."""
    ends = (at for at, (_, line) in enumerate(log, start=1) if _ENDED.match(line))
    return list(log[:next(ends, len(log))])


def _refuse_company(project: str) -> None:
    """Raise PrerequisiteError where another deployment of this folder runs an engine; one of another folder's is told of: it is not ours to end."""
    with daemon.reachable():
        found = daemon.client().containers.list(filters={"label": "com.docker.compose.oneoff=False", "status": "running"})
        running = {one.labels[_PROJECT]: one.labels.get(_FOLDER, "") for one in found if one.labels.get(_TITLE, "").startswith("vLLM engine")}
    own = sorted(name for name, folder in running.items() if folder == str(ROOT) and name != project)
    for name, folder in sorted(running.items()):
        if folder != str(ROOT):
            console.warn(f"an engine of project {name} in {folder or 'a folder unknown'} runs on this host, too: it disturbs the figures. "
                         "Whoever started it can say whether it may be stopped; Ctrl-C here leaves it alone")
    if own:
        raise PrerequisiteError(f"an engine runs on this host already (project {', '.join(own)}): the two would disturb each other",
                                fix=f"{' && '.join(f'make down PROJECT={name}' for name in own)}; `make up` again after the benchmark")


@contextlib.contextmanager
def _first_answer(deployment: Deployment, settings: Settings) -> Iterator[list[float]]:
    """Ask the engine for a completion from beside it until it answers; the list then holds the epoch seconds of that moment."""
    answered: list[float] = []
    over = threading.Event()
    child: list[subprocess.Popen[str]] = []
    labels = (f"{_PROJECT}={deployment.project}", *_ENGINES)
    find = ["docker", "ps", "--quiet", "--no-trunc", *(f"--filter=label={label}" for label in labels)]

    def watch() -> None:
        while not over.wait(0.2):
            found = shell.run(find, timeout_s=60, env=daemon.client_environment(), failure=None).stdout.split()
            if found:
                with subprocess.Popen(["docker", "exec", found[0], PYTHON, "-S", "-c", _FIRST_ANSWER, settings.value("ENGINE_PORT"),
                                       settings.served_model_name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                      env=daemon.client_environment()) as asking:
                    child.append(asking)
                    said, _ = asking.communicate()
                with contextlib.suppress(ValueError):
                    answered.append(float(said))
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield answered
    finally:
        over.set()
        for asking in child:
            asking.kill()
        watcher.join()
