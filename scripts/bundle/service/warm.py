"""Fill an engine's caches before it serves: compiled models, kernels and graphs, by one start of it that no request reaches.

`roll` has no use for it: it needs the cards, which the engines that serve have, and the first engine that is replaced fills the caches for the rest.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bundle.base.errors import PrerequisiteError
from bundle.config.settings import Settings
from bundle.doctor import accelerator, host
from bundle.doctor.gpu import CDI
from bundle.doctor.host import Needs
from bundle.images import build
from bundle.machine import setup
from bundle.machine.facts import Host
from bundle.models import first
from bundle.service import numbers, readiness
from bundle.service.deployment import ENGINE, Deployment


@dataclass(frozen=True, kw_only=True)
class Warmed:
    """One start for the caches."""

    model: str
    seconds: float
    """From the start of the container until the engine was ready; 0 where nothing was started."""
    why_not: str = ""
    """Why these settings have nothing to warm; "" where they have."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def warm(settings: Settings, deployment: Deployment | None = None, *, ensure_images: Callable[[Settings], object] = build.ensure) -> Warmed:
    """Start one engine of `settings` as `up` would, with its volumes and without a route to it, and stop it when it is ready.

    Raises ConfigurationError, PrerequisiteError (the card or the memory is in use, or what `up` too would lack), NotReadyError. What serves meanwhile
    is not touched.
    """
    settings.require()
    if why_not := nothing_to_warm(settings):
        return Warmed(model=settings.served_model_name, seconds=0, why_not=why_not)
    deployment = deployment or Deployment.from_settings(settings)
    with deployment.locked("warm"), TemporaryDirectory() as state:
        setup.prepare(settings.value("HOST_SETUP"))
        settings = accelerator.settled(settings)
        _require_room(settings, deployment)
        ensure_images(settings)
        settings = numbers.settled(deployment, first.provided(settings))
        alone = replace(deployment, state=Path(state), oneoff=True)
        alone.write(alone.texts([settings]))
        _remove(alone)  # what an end without ceremony has left
        try:
            alone.compose("run", "--detach", "--no-deps", ENGINE, failure=PrerequisiteError)
            seconds = readiness.wait(alone, [ENGINE], {}, routed=False)
        finally:
            _remove(alone)
    return Warmed(model=settings.served_model_name, seconds=seconds)


def nothing_to_warm(settings: Settings) -> str:
    """Why a start of these settings leaves nothing that a later one would find; "" where it does. On a GPU there always is: kernels."""
    if settings.image_target != "cpu":
        return ""
    for key, value in (("ENGINE_ENFORCE_EAGER", "true"), ("TORCHDYNAMO_DISABLE", "1")):
        if settings.value(key) == value:
            return f"{key}={value} ({settings.origin[key]}): nothing is compiled on the CPU"
    return ""


def _require_room(settings: Settings, deployment: Deployment) -> None:
    """Raise PrerequisiteError where an engine more cannot start beside what runs."""
    each = int(settings.value("HOST_GPU_COUNT"))
    needs = Needs.from_settings(settings)
    # Nothing of the host counts as this project's own: what it holds is in the way.
    needs = replace(needs, project="", port=0, replicas=1, gpus=each, chosen=needs.chosen[:each])
    serves = [name for name, container in deployment.containers().items() if container.is_engine and container.state == "running"]
    lacks = [check for check in host.examine(needs, Host()) if check.state == "fail" or (serves and check.name == "memory" and check.state == "warn")]
    if shared := _shared_cards(settings, deployment) if serves else ():
        raise PrerequisiteError(f"{', '.join(serves)} of project {deployment.project} runs on GPU {', '.join(shared)}, where the caches would be "
                                "filled: that takes the card as the engine itself does",
                                fix='another card of the same kind: SET="HOST_GPUS=…"; or make down first. `make up` fills the same caches')
    if lacks:
        raise PrerequisiteError("no engine can start beside what runs on this host:\n" + "\n".join(f"  {c.name}: {c.found}" for c in lacks),
                                fix="\n       ".join(c.fix for c in lacks))


def _shared_cards(settings: Settings, deployment: Deployment) -> Collection[str]:
    """The GPUs that the engine to be started shares with the deployment as it is written; all of the latter's where either takes all."""
    if settings.image_target != "cuda":
        return ()
    running = deployment.values()
    theirs = [card for key, value in running.items() if key.startswith("HOST_GPUS_") and value for card in value.split(",")]
    if CDI in (settings.value(accelerator.KEY), running.get(accelerator.KEY)):
        return theirs
    return [card for card in settings.value("HOST_GPUS_1").split(",") if card in theirs]


def _remove(alone: Deployment) -> None:
    for container in alone.containers().values():
        if container.service == ENGINE:
            alone.remove(container)
