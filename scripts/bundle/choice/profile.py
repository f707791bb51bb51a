"""Which profile a deployment uses: the one that was named, or the one for this host's hardware and the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle import ROOT
from bundle.base import console
from bundle.base.errors import ConfigurationError
from bundle.config import profiles, settings, several
from bundle.config.envfile import Problem
from bundle.config.settings import ADAPTERS_IN_CONTAINER, Settings
from bundle.fit import assessment
from bundle.machine import devices, gpu
from bundle.machine.devices import GIB, Device
from bundle.machine.facts import Host
from bundle.machine.gpu import MIN_CAPABILITY
from bundle.models import first, folder

PREFERRED = ("throughput", "memory")
"""Profiles that are chosen without being asked for, where a GPU can run the engine: the first that the model fits."""
SMALL_BYTES = 20 * GIB
"""Below this a GPU gets the profile `memory` while no model is known. Judgement: `throughput` keeps 9 GiB of weights, 2 of buffers, and
on a 16 GB card only one or two requests of its full length."""

Starts = Callable[[str, Device], bool | None]
"""Whether the model starts with a profile on a GPU; None where no model is known, or nothing can be computed."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A profile and why it was chosen."""

    profile: str
    why: str


def default_profile(starts: Starts, *, device: Device | None = None, named: Sequence[str] = (), count: int = 1, root: Path = ROOT,
                    host: Host | None = None) -> Choice:
    """The profile for `device`, or for the GPUs of this host that a deployment takes (`named` and `count` as in `gpu.taken`), by compute
    capability, by whether the model starts there, and by memory.

    By all of the GPU's memory, not by what is free of it now: the choice must not change because the engine runs.
    """
    if device is None:
        host = host or Host()
        nvidia = gpu.read(host)
        if not nvidia.gpus and host.path("/dev/nvidia0").exists():
            return Choice(profile=PREFERRED[0], why=f"/dev/nvidia0 is there, and its memory is not known ({nvidia.error})")
        if not nvidia.gpus:
            return Choice(profile="cpu", why=f"no NVIDIA GPU is visible (no /dev/nvidia0, and {nvidia.error})")
        cards = gpu.taken(nvidia.gpus, named, count) or nvidia.gpus  # what HOST_GPUS names in vain is an error of its own
        device = min((devices.device_of_card(card, root=root) for card in cards), key=lambda one: one.total)
    device = devices.idle(device)
    major, minor = device.capability
    about = f"{device.name} (compute capability {major}.{minor}, {device.total / GIB:.1f} GiB)"
    if device.capability < MIN_CAPABILITY:
        return Choice(profile="cpu", why=f"{about}: the engine has no code for a compute capability under {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}")
    fits = {name: starts(name, device) for name in PREFERRED}
    if None in fits.values():
        small = device.total < SMALL_BYTES
        return Choice(profile=PREFERRED[small], why=f"{about}, no model to look at; " + ("made for small GPUs" if small else "made for 32 GB"))
    for name, fit in fits.items():
        if fit:
            return Choice(profile=name, why=f"{about}, and the model starts there" + ("" if name == PREFERRED[0] else f", not with {PREFERRED[0]}"))
    return Choice(profile=PREFERRED[0], why=f"{about}; by the estimate the model starts with none of {', '.join(PREFERRED)}: see `make profiles`")


def _held_to_folder(found: Settings) -> Settings:
    """`found`, with an error where the folder that the engine would read holds something else than one model that it can load."""
    directory = assessment.model_folder(found)
    if directory is None or found.value("ENGINE_LOAD_FORMAT") not in ("", "auto"):
        return found
    try:
        others = folder.misfits(directory)
    except OSError:  # `make doctor` and the start say why it cannot be looked into
        return found
    entry = found.entries["MODEL_DIR"]
    problems = [Problem(file=entry.file, line=entry.line, key=entry.key, message=f"{other.found}. {other.fix}.") for other in others]
    return replace(found, problems=(*found.problems, *problems))


def _held_to_adapters(found: Settings) -> Settings:
    """`found`, with an error for each LoRA adapter whose folder on this host is none."""
    folder, seen = found.path("MODEL_ADAPTERS_DIR"), found.entries.get("ENGINE_LORA_MODULES")
    if folder is None or seen is None:
        return found
    problems = []
    for name, path in found.adapters.items():
        there = folder / path.removeprefix(f"{ADAPTERS_IN_CONTAINER}/")
        if path.startswith(f"{ADAPTERS_IN_CONTAINER}/") and not (there / "adapter_config.json").is_file():
            problems.append(Problem(file=seen.file, line=seen.line, key=seen.key, message=f"{name}: {there} holds no adapter (adapter_config.json, "
                                    f"adapter_model.safetensors). MODEL_ADAPTERS_DIR={folder} is what {ADAPTERS_IN_CONTAINER} stands for."))
    return replace(found, problems=(*found.problems, *problems))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The deployment that a verb was asked for; `profile` "" means: choose one for the GPU called `gpu`, or for this host. Several profiles, with
    commas between them, are several models."""

    profile: str = ""
    env_files: tuple[str | Path, ...] = ()
    sets: tuple[str, ...] = ()
    gpu: str = ""


def load_all(wanted: Wanted, *, root: Path = ROOT, environ: Mapping[str, str] | None = None, host: Host | None = None) -> tuple[Settings, ...]:
    """The settings of each model of the deployment. Raises ConfigurationError as `settings.load`."""
    name, *others = wanted.profile.split(",")
    leading = load(replace(wanted, profile=name), root=root, environ=environ, host=host)
    further = [_held_to_files(settings.load_beside(leading, other, root=root)) for other in others]
    return several.held_together((leading, *further))


def _held_to_files(found: Settings) -> Settings:
    return assessment.held_to_model(_held_to_adapters(_held_to_folder(found)))


def load(wanted: Wanted, *, root: Path = ROOT, environ: Mapping[str, str] | None = None, host: Host | None = None) -> Settings:
    """The settings of the deployment, its profile chosen and said where none was named, for verbs that take one model.

    Raises ConfigurationError as `settings.load`, and where several profiles are named.
    """
    if "," in wanted.profile:
        raise ConfigurationError(f"{wanted.profile} are several models, and this verb takes one", fix="name one of the profiles; up, roll, check, "
                                 "build, doctor and keys take several")

    def loaded(profile: str | None, chosen_by: str = "--profile") -> Settings:
        found = settings.load(profile, wanted.env_files, wanted.sets, root=root, environ=environ, chosen_by=chosen_by)
        return _held_to_files(first.placed(found))

    if wanted.profile or settings.names_its_profile(wanted.env_files, root=root):
        return loaded(wanted.profile or None)
    device = devices.find(wanted.gpu, root=root) if wanted.gpu else None
    first_choice = loaded(PREFERRED[0])
    choice = default_profile(lambda name, on: assessment.starts(loaded(name), on), device=device, named=first_choice.gpus,
                             count=first_choice.gpu_count, root=root, host=host)
    others = ", ".join(name for name in profiles.names(root) if name != choice.profile)
    console.note(f"profile {choice.profile}: {choice.why}; choose another with PROFILE=NAME (--profile NAME): {others}")
    return loaded(choice.profile, f"chosen for {wanted.gpu or 'this host'}")
