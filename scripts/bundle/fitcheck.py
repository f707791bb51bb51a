"""Fit for a whole deployment: what `make check`, `make doctor` and `make up` say of its model and its GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle import devices, fit, fitchanges, fitreport
from bundle.checklist import Check, fail, ok, warn
from bundle.devices import GIB, Device
from bundle.envfile import Problem
from bundle.errors import ConfigurationError, PrerequisiteError
from bundle.fit import Difference, Estimate
from bundle.fitchanges import Change
from bundle.fitrequest import requested
from bundle.gpu import Gpu
from bundle.hostfacts import Host
from bundle.modelshape import read
from bundle.settings import MODEL_IN_CONTAINER, Settings

SHARE_KEY = "ENGINE_GPU_MEMORY_UTILIZATION"
_HOPELESS = "Take a smaller model, or a larger GPU"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What is known of a deployment's fit: the device that it was looked at for, and an estimate, or why there is none."""

    device: Device | None = None
    estimate: Estimate | None = None
    unknown: str = ""
    fix: str = ""

    @property
    def changes(self) -> list[Change]:
        return fitchanges.nearest(self.estimate) if self.estimate and not self.estimate.starts else []

    def as_json(self) -> dict[str, object] | None:
        return fitreport.as_json(self.estimate, self.changes) if self.estimate else None

    def show(self) -> None:
        """The table and the arithmetic on stdout, if there is an estimate."""
        if self.estimate:
            fitreport.show(self.estimate, self.changes)


def model_folder(settings: Settings) -> Path | None:
    """The folder that the engine reads: MODEL_DIR, or one in it where a folder of models is mounted and ENGINE_MODEL names one."""
    mounted, model = settings.model_dir, settings.value("ENGINE_MODEL")
    if mounted and model.startswith(MODEL_IN_CONTAINER + "/"):
        return mounted / model.removeprefix(MODEL_IN_CONTAINER + "/")
    return mounted


def look(settings: Settings, gpu: str = "", *, host: Host | None = None, idle: bool = True) -> Fit:
    """The fit of `settings` on the GPU called `gpu`, or on this host's: as it is now, or `idle`, as if nothing ran there.

    Raises ConfigurationError only for a wrong `gpu`; whatever else is missing is said in the answer.
    """
    folder = model_folder(settings)
    if not (gpu or folder):
        return Fit(unknown="no model is known", fix="set MODEL_DIR in env/site.env")
    try:
        device = fit.device_of(settings, gpu, host)
    except PrerequisiteError as error:
        return Fit(unknown=error.message, fix=error.fix)
    return on(settings, devices.idle(device) if device and idle else device)


def on(settings: Settings, device: Device | None) -> Fit:
    """The fit of `settings` on `device` (None: the CPU engine)."""
    folder = model_folder(settings)
    if not folder:
        return Fit(device=device, unknown="no model is known", fix="set MODEL_DIR in env/site.env")
    try:
        return Fit(device=device, estimate=fit.estimate(read(folder), requested(settings), device))
    except (ConfigurationError, PrerequisiteError) as error:
        return Fit(device=device, unknown=error.message, fix=error.fix)


def starts(settings: Settings, device: Device) -> bool | None:
    """Whether the model starts on `device`; None where that cannot be computed."""
    found = on(settings, device)
    return found.estimate.starts if found.estimate else None


def held_to(settings: Settings, found: Fit) -> Settings:
    """`settings` with everything that keeps them from starting on the device of `found` among their errors."""
    if found.estimate:
        wrong, fix = found.estimate.problems, _lines(found)
    else:
        wrong, fix = tuple(filter(None, [share_refusal(settings, found.device)])), f"{SHARE_KEY}=auto"
    entry = settings.entries.get(SHARE_KEY) or settings.entries["MODEL_DIR" if found.estimate else "IMAGE_TARGET"]
    name = found.device.name if found.device else "the CPU engine"
    advice = f"Use {fix}." if fix else f"{_HOPELESS}."
    errors = [Problem(file=entry.file, line=entry.line, key=entry.key, message=f"on {name}: {problem}. {advice}") for problem in wrong]
    # A warning about the same value says less.
    kept = [problem for problem in settings.problems if not (errors and problem.key == entry.key and problem.severity == "warning")]
    return replace(settings, problems=(*kept, *errors))


def _lines(found: Fit) -> str:
    return ", or ".join(" ".join(change.lines) for change in found.changes)


def share_refusal(settings: Settings, device: Device | None) -> str:
    """Why the share of memory that `settings` ask for does not start on `device`; "" when it does, or none is asked for."""
    try:
        request = requested(settings)
    except ConfigurationError:
        return ""
    if device is None or request.utilization is None or request.kv_memory is not None:
        return ""
    return devices.refusal(device, request.utilization)


def check(found: Fit) -> Check:
    """The line of `make doctor`. An estimate warns and never stops a start: its overhead is not exact."""
    if not found.estimate:
        return warn("fit", f"not computed: {found.unknown}", found.fix) if found.unknown != "no model is known" else ok("fit", found.unknown)
    one = found.estimate
    if one.starts:
        return ok("fit", f"{one.kv_tokens:,} tokens of KV cache, {one.sequences_at_full_length:.2f} sequences of {one.max_model_len:,} (estimate)")
    return warn("fit", f"estimate: {'; '.join(one.problems)}", _lines(found) or _HOPELESS)


def compared(expected: Estimate, engine_log: str) -> str:
    """How far off the estimate was from what the log of a start says, in one line; "" when it says nothing."""
    return "; ".join(f"{one.what} {_number(one, one.estimated)} {one.unit} estimated, {_number(one, one.measured)} found ({one.error_percent:+.1f} %)"
                     for one in fit.compare(expected, engine_log))


def _number(one: Difference, value: float) -> str:
    return f"{value:,.0f}" if one.unit == "tokens" else f"{value:.2f}"


def memory(cards: Sequence[Gpu], share: float | None, *, running: bool) -> Check:
    """Is `share` (0: a number of bytes is asked for, None: auto) of every card's memory free? `running`: this project holds it already."""
    name = "gpu memory"
    card, device = min(((card, devices.seen(card)) for card in cards), key=lambda pair: pair[1].free - (share or 0) * pair[1].total)
    found = f"{device.free / GIB:.2f} GiB of {device.total / GIB:.2f} for an engine on GPU {card.index}"
    if not card.total_mib:
        return warn(name, f"the driver does not say how much GPU {card.index} has", "a GPU in MIG mode or a vGPU was not tried")
    if running:
        return ok(name, f"{found}; this project is running")
    most = fit.most_that_starts(device)
    if share is None:
        return ok(name, f"{found}; auto takes {most:g}") if most else fail(name, f"{found}; auto finds nothing left", "end what uses it (nvidia-smi)")
    if refusal := devices.refusal(device, share):
        return fail(name, f"GPU {card.index}: {SHARE_KEY}={share:g}: {refusal}",
                    f"end what uses it (nvidia-smi lists it), or set {SHARE_KEY}=auto (now {most:g})")
    return ok(name, found)
