"""What starts engines to be measured: Docker Compose, or a process where vLLM is installed and Docker is not. The same from above."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from typing import Protocol

from bundle import ROOT
from bundle.base import console, shell
from bundle.base.errors import BundleError
from bundle.bench import rundata
from bundle.bench.rundata import Ceilings, Provenance
from bundle.config.settings import Settings
from bundle.machine import gpu
from bundle.machine.facts import Host
from bundle.machine.gpu import Gpu

PACKAGES = ("vllm", "torch")
BUSY_MIB = 3072
"""More GPU memory than this in use before a run is said: a desktop stays below, an engine or a training does not."""


class StartFailed(Exception):  # noqa: N818  (a result of the benchmark, not an error of it)
    """An engine did not come up. Nothing of it runs any more."""

    def __init__(self, *, reason: str, remedy: str, log: Sequence[tuple[float, str]] = ()) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.log = reason, remedy, list(log)


class Engine(Protocol):
    """An engine that answers."""

    @property
    def base_url(self) -> str:
        """Where the agent reaches it, without a path."""

    @property
    def model(self) -> str:
        """The model's folder, as the agent sees it."""

    @property
    def served_model_name(self) -> str:
        """The name to ask for."""

    @property
    def agent_argv(self) -> Sequence[str]:
        """The command that runs docker/engine/benchagent.py beside the engine."""

    @property
    def agent_environment(self) -> Mapping[str, str]:
        """The whole environment for that command."""

    @property
    def started(self) -> float:
        """Epoch seconds at which the start was asked for."""

    @property
    def ready(self) -> float:
        """Epoch seconds at which it had answered its first completion."""

    @property
    def held_s(self) -> float:
        """Seconds in between in which it was held for the sake of another engine."""

    def log(self) -> list[tuple[float, str]]:
        """Every line so far with the epoch seconds of its arrival."""

    def alive(self) -> bool:
        """Whether it has run without a break since it was ready."""

    def stop(self) -> None:
        """End it and keep its log in the run's folder. Its caches stay warm."""


class Runtime(Protocol):
    """What starts engines."""

    name: str
    cards: tuple[Gpu, ...]
    """The GPUs that the engines take, known once `prepare` has returned."""

    def prepare(self, settings: Sequence[Settings]) -> None:
        """Check all that can be checked before anything is started; the first of `settings` is the control's.

        Raises ConfigurationError or PrerequisiteError.
        """

    def start(self, settings: Settings, label: str) -> Engine:
        """A running engine; `label` names its log. Raises StartFailed, with nothing left running."""

    def start_together(self, wanted: Sequence[tuple[Settings, str]]) -> Sequence[Engine | StartFailed]:
        """Several engines that stay up side by side, in the order asked for; one that fails does not keep the others from starting."""

    def probe(self) -> Ceilings:
        """What this hardware can do, by docker/engine/benchprobe.py. To be asked while no engine runs."""

    def provenance(self) -> Provenance:
        """What the figures come from: runtime, gpu, driver, gpu_memory_gib, engine, image, git_commit, git_dirty, host, python."""

    def close(self) -> None:
        """Leave nothing: no container, no volume, no process, no cache."""


def cards(settings: Sequence[Settings], visible: str = "") -> tuple[Gpu, ...]:
    """The GPUs of this host that engines with these `settings` take, each once; `visible` is a CUDA_VISIBLE_DEVICES that they are given."""
    found = gpu.read(Host()).gpus
    own = [(tuple(filter(None, visible.split(",")))[:each.gpu_count] or each.gpus, each.gpu_count) for each in settings if each.image_target != "cpu"]
    return tuple(dict.fromkeys(card for named, count in own for card in gpu.taken(found, named, count)))


def provenance(runtime: "Runtime", engine: Mapping[str, str], images: Mapping[str, str]) -> Provenance:
    """What both runtimes say of this host; `engine` are its packages' versions, `images` the ids by name."""
    return {
        "runtime": runtime.name,
        "gpu": ", ".join(card.name for card in runtime.cards),
        "driver": gpu.read(Host()).driver,
        "gpu_memory_gib": sum(card.total_mib for card in runtime.cards) / 1024,
        "engine": dict(engine),
        "image": dict(images),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "host": {"cpus": len(os.sched_getaffinity(0)), "memory_gib": Host().memory("MemTotal") / 2**30},
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the engine's packages, in this Python."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def warn_of_company(cards: Sequence[Gpu]) -> None:
    """Say which of the GPUs is in use already: what else computes there disturbs every figure."""
    for card in cards:
        used = card.total_mib - card.free_mib
        if used > BUSY_MIB:
            console.warn(f"GPU {card.index}: {used / 1024:.1f} GiB are in use before anything is measured; what computes there disturbs the figures")


def probed(printed: str) -> Ceilings:
    """What docker/engine/benchprobe.py found: the last line that it printed. Raises BundleError when that is no such answer."""
    line = next((line for line in reversed(printed.splitlines()) if line.strip()), "")
    try:
        return rundata.parsed(Ceilings, line)
    except ValueError as error:
        raise BundleError(f"benchprobe.py did not end with its line of JSON ({error}): {line[:200]!r}") from error


def _git(*arguments: str) -> str:
    if not shutil.which("git"):
        return ""
    done = shell.run(["git", "-C", str(ROOT), *arguments], timeout_s=60, failure=None)
    return done.stdout.strip() if done.returncode == 0 else ""
