"""Does the model fit, and is the memory that it asks for free?"""

from collections.abc import Sequence

from bundle.doctor.check import Check, fail, ok, warn
from bundle.fit.assessment import HOPELESS, NO_MODEL, SHARE_KEY, Fit
from bundle.fit.estimation import most_that_starts
from bundle.machine import devices
from bundle.machine.devices import GIB
from bundle.machine.gpu import Gpu


def fit_check(found: Fit) -> Check:
    """The line of `make doctor`. An estimate warns and never stops a start: its overhead is not exact."""
    if found.unknown == NO_MODEL or (found.estimate and found.estimate.starts):
        return ok("fit", found.summary)
    return warn("fit", found.summary, found.remedy or (HOPELESS if found.estimate else ""))


def memory_check(cards: Sequence[Gpu], share: float | None, *, running: bool) -> Check:
    """Is `share` (0: a number of bytes is asked for, None: auto) of every card's memory free? `running`: this project holds it already."""
    name = "gpu memory"
    card, device = min(((card, devices.device_of_card(card)) for card in cards), key=lambda pair: pair[1].free - (share or 0) * pair[1].total)
    found = f"{device.free / GIB:.2f} GiB of {device.total / GIB:.2f} for an engine on GPU {card.index}"
    if not card.total_mib:
        return warn(name, f"the driver does not say how much GPU {card.index} has", "a GPU in MIG mode or a vGPU was not tried")
    if running:
        return ok(name, f"{found}; this project is running")
    most = most_that_starts(device)
    if share is None:
        return ok(name, f"{found}; auto takes {most:g}") if most else fail(name, f"{found}; auto finds nothing left", "end what uses it (nvidia-smi)")
    if refusal := devices.refusal(device, share):
        return fail(name, f"GPU {card.index}: {SHARE_KEY}={share:g}: {refusal}",
                    f"end what uses it (nvidia-smi lists it), or set {SHARE_KEY}=auto (now {most:g})")
    return ok(name, found)
