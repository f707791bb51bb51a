"""The profiles there are, and the one for this host."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle import ROOT, devices, gpu
from bundle.devices import GIB, Device
from bundle.gpu import MIN_CAPABILITY
from bundle.hostfacts import Host

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


def default_profile(starts: Starts, *, device: Device | None = None, root: Path = ROOT, host: Host | None = None) -> Choice:
    """The profile for `device`, or for this host's GPU, by compute capability, by whether the model starts there, and by memory.

    By all of the GPU's memory, not by what is free of it now: the choice must not change because the engine runs.
    """
    if device is None:
        host = host or Host()
        nvidia = gpu.read(host)
        if not nvidia.gpus and host.path("/dev/nvidia0").exists():
            return Choice(profile=PREFERRED[0], why=f"/dev/nvidia0 is there, and its memory is not known ({nvidia.error})")
        if not nvidia.gpus:
            return Choice(profile="cpu", why=f"no NVIDIA GPU is visible (no /dev/nvidia0, and {nvidia.error})")
        device = min((devices.seen(card, root=root) for card in nvidia.gpus), key=lambda one: one.total)
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


def names(root: Path = ROOT) -> list[str]:
    """The profiles there are: every env file but base and site."""
    return sorted(path.stem for path in (root / "env").glob("*.env") if path.stem not in ("base", "site"))


def description(name: str, root: Path = ROOT) -> str:
    """What a profile is for: the comment that its file starts with."""
    first = (root / "env" / f"{name}.env").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
