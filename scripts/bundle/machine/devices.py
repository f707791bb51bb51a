"""The memory that an engine finds on a GPU: of this host's, or of one that only its name is known of (env/gpus.yaml)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from bundle import ROOT
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.base.text import near
from bundle.machine import gpu
from bundle.machine.facts import Host

GIB = 1 << 30
CONTEXT_BYTES = GIB // 2
"""What vLLM's own CUDA context takes before it looks at what is free: 0.50 GiB on an RTX 5090, 0.41 to 0.63 elsewhere (public logs)."""
VISIBLE_SHARE = 0.985
"""Of the driver's total, what CUDA shows on a card that env/gpus.yaml does not know: the smallest share among those that it knows."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU as vLLM sees it at start; bytes."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    source: str

    @property
    def batch_defaults(self) -> tuple[int, int]:
        """vLLM's own max_num_batched_tokens and max_num_seqs for this GPU (0.33.0, EngineArgs.get_batch_defaults)."""
        if self.total >= 160 * GIB:
            return 16_384, 1024
        return (8192, 1024) if self.total >= 70 * GIB and "a100" not in self.name.lower() else (2048, 256)


def find(name: str, *, root: Path = ROOT, host: Host | None = None, named: Sequence[str] = (), count: int = 1) -> Device:
    """The GPU called `name`; for "" the tightest of those of this host that a deployment takes (`named` and `count` as in `gpu.taken`).

    Raises ConfigurationError for a name that is not known, PrerequisiteError when there is no GPU to look at.
    """
    return _named(name, root) if name else _detected(root, host or Host(), named, count)


def names(root: Path = ROOT) -> list[str]:
    """What `find` knows by name."""
    return list(_table(root))


def device_of_card(card: gpu.Gpu, *, root: Path = ROOT) -> Device:
    """A GPU of this host's as an engine that starts now would find it."""
    total, how = round(card.total_mib * VISIBLE_SHARE) << 20, f"the driver's total less {1 - VISIBLE_SHARE:.1%}, which CUDA usually does not show"
    try:
        known = _named(card.name, root)
        if not card.total_mib or 0.9 < known.total / (card.total_mib << 20) <= 1:  # there are cards of one name and two sizes
            total, how = known.total, f"{known.name} in env/gpus.yaml: {known.source}"
    except ConfigurationError:
        pass
    free = max(0, min(total, card.free_mib << 20) - CONTEXT_BYTES)
    return Device(name=card.name, total=total, free=free, capability=card.compute_capability,
                  source=f"nvidia-smi: {card.free_mib / 1024:.2f} GiB free, less {CONTEXT_BYTES / GIB:g} for vLLM's own context; total: {how}")


def idle(device: Device) -> Device:
    """`device` with nothing else running on it."""
    free = device.total - CONTEXT_BYTES
    return replace(device, free=free, source=f"{device.source}; taken as idle") if free > device.free else device


def refusal(device: Device, share: float) -> str:
    """Why vLLM would not start on `device` with `share` of its memory, with the arithmetic; "" when it would."""
    wanted = ceil(device.total * share)
    if wanted <= device.free:
        return ""
    return (f"{wanted / GIB:.2f} GiB are wanted of {device.total / GIB:.2f}, and {device.free / GIB:.2f} are free at start: "
            'vLLM raises "Free memory on device … is less than desired GPU memory utilization"')


def _named(name: str, root: Path) -> Device:
    table = _table(root)
    for key, entry in table.items():
        if _plain(name) in {_plain(known) for known in (key, *entry["names"])}:
            total = round(entry["total_gib"] * GIB)
            free, how = (round(entry["free_gib"] * GIB), "") if "free_gib" in entry else (total - CONTEXT_BYTES, "; free at start is assumed")
            return Device(name=key, total=total, free=free, capability=tuple(entry["capability"]), source=entry["source"] + how)
    known = [*table, *(other for entry in table.values() for other in entry["names"])]
    raise ConfigurationError(f"--gpu {name}: not a GPU that env/gpus.yaml knows.{near(name.lower(), known)}",
                             fix=f"one of {', '.join(table)}; or on a host with the card leave --gpu out")


def _detected(root: Path, host: Host, named: Sequence[str], count: int) -> Device:
    found = gpu.read(host)
    cards = gpu.taken(found.gpus, named, count)
    if not cards:
        why = found.error or f"HOST_GPUS={','.join(named)} names none of the {len(found.gpus)} of this host"
        raise PrerequisiteError(f"no GPU to look at: {why}", fix=f"name one: --gpu {' | '.join(_table(root))}")
    tightest = device_of_card(min(cards, key=lambda one: one.free_mib), root=root)
    return replace(tightest, capability=min(card.compute_capability for card in cards))  # what all of them can do


def _table(root: Path) -> dict[str, Any]:
    import yaml

    path = root / "env" / "gpus.yaml"
    try:
        table: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be used: {error}", fix="git checkout env/gpus.yaml") from error
    return table


def _plain(name: str) -> str:
    """rtx-5090, RTX 5090 and NVIDIA GeForce RTX 5090 are one."""
    return re.sub(r"[^a-z0-9]|nvidia|geforce", "", name.lower())
