"""Fit for a whole deployment: what `make check`, `make doctor` and `make up` say of its model and its GPU."""

from dataclasses import dataclass, replace
from pathlib import Path

from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config.envfile import Problem
from bundle.config.settings import MODEL_IN_CONTAINER, Settings
from bundle.fit import estimation, quantization, remedies, report
from bundle.fit.estimation import Difference, Estimate
from bundle.fit.modelshape import read, read_quantization
from bundle.fit.remedies import Change
from bundle.fit.request import requested
from bundle.machine import devices
from bundle.machine.devices import Device
from bundle.machine.facts import Host

SHARE_KEY = "ENGINE_GPU_MEMORY_UTILIZATION"
QUANTIZATION_KEY = "ENGINE_QUANTIZATION"
NO_MODEL = "no model is known"
HOPELESS = "Take a smaller model, or a larger GPU"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What is known of a deployment's fit: the device that it was looked at for, and an estimate, or why there is none."""

    device: Device | None = None
    estimate: Estimate | None = None
    unknown: str = ""
    fix: str = ""

    @property
    def changes(self) -> list[Change]:
        return remedies.nearest(self.estimate) if self.estimate and not self.estimate.starts else []

    @property
    def summary(self) -> str:
        """In one line: what the KV cache holds, why it does not start, or why that is not known."""
        if not self.estimate:
            return self.unknown if self.unknown == NO_MODEL else f"not computed: {self.unknown}"
        one = self.estimate
        if not one.starts:
            return f"estimate: {'; '.join(one.problems)}"
        if not one.sequence_bytes:
            return f"no KV cache, which an encoder does not keep; {one.max_model_len:,} tokens at most (estimate)"
        return f"{one.kv_tokens:,} tokens of KV cache, {one.sequences_at_full_length:.2f} sequences of {one.max_model_len:,} (estimate)"

    @property
    def remedy(self) -> str:
        """The lines that would make it start, or what would make it known; "" where nothing is needed."""
        if not self.estimate:
            return self.fix
        return ", or ".join(" ".join(change.lines) for change in self.changes)

    def as_json(self) -> dict[str, object] | None:
        return report.as_json(self.estimate, self.changes) if self.estimate else None

    def show(self) -> None:
        """The table and the arithmetic on stdout, if there is an estimate."""
        if self.estimate:
            report.show(self.estimate, self.changes)


def model_folder(settings: Settings) -> Path | None:
    """The folder that the engine reads: MODEL_DIR, or one in it where a folder of models is mounted and ENGINE_MODEL names one."""
    mounted, model = settings.model_dir, settings.value("ENGINE_MODEL")
    if mounted and model.startswith(MODEL_IN_CONTAINER + "/"):
        return mounted / model.removeprefix(MODEL_IN_CONTAINER + "/")
    return mounted


def held_to_model(settings: Settings) -> Settings:
    """`settings` with what the engine would refuse for their model among their errors, as far as its config.json can be read."""
    folder, entry = model_folder(settings), settings.entries.get(QUANTIZATION_KEY)
    if not folder or not entry:
        return settings
    try:
        method = quantization.refused(read_quantization(folder), entry.value)
    except PrerequisiteError:
        return settings  # `make doctor` and the start say what is wrong with the folder
    if not method:
        return settings
    message = (f"the checkpoint in {folder} is quantized already ({method}), and the engine refuses to make {entry.value} of it. "
               f"Set {QUANTIZATION_KEY}= (empty) in env/site.env, or take the checkpoint with 16-bit weights.")
    return replace(settings, problems=(*settings.problems, Problem(file=entry.file, line=entry.line, key=entry.key, message=message)))


def assess(settings: Settings, gpu: str = "", *, host: Host | None = None, idle: bool = True) -> Fit:
    """The fit of `settings` on the GPU called `gpu`, or on this host's: as it is now, or `idle`, as if nothing ran there.

    Raises ConfigurationError only for a wrong `gpu`; whatever else is missing is said in the answer.
    """
    folder = model_folder(settings)
    if not (gpu or folder):
        return Fit(unknown=NO_MODEL, fix="set MODEL_DIR in env/site.env")
    try:
        device = estimation.device_of(settings, gpu, host)
    except PrerequisiteError as error:
        return Fit(unknown=error.message, fix=error.fix)
    return assess_on(settings, devices.idle(device) if device and idle else device)


def assess_on(settings: Settings, device: Device | None) -> Fit:
    """The fit of `settings` on `device` (None: the CPU engine)."""
    folder = model_folder(settings)
    if not folder:
        return Fit(device=device, unknown=NO_MODEL, fix="set MODEL_DIR in env/site.env")
    try:
        request = requested(settings)
        return Fit(device=device, estimate=estimation.estimate(read(folder, request.hf_overrides), request, device))
    except (ConfigurationError, PrerequisiteError) as error:
        return Fit(device=device, unknown=error.message, fix=error.fix)


def starts(settings: Settings, device: Device) -> bool | None:
    """Whether the model starts on `device`; None where that cannot be computed."""
    found = assess_on(settings, device)
    return found.estimate.starts if found.estimate else None


def held_to(settings: Settings, found: Fit) -> Settings:
    """`settings` with everything that keeps them from starting on the device of `found` among their errors."""
    if found.estimate:
        wrong, fix = found.estimate.problems, found.remedy
    else:
        wrong, fix = tuple(filter(None, [share_refusal(settings, found.device)])), f"{SHARE_KEY}=auto"
    entry = settings.entries.get(SHARE_KEY) or settings.entries["MODEL_DIR" if found.estimate else "IMAGE_TARGET"]
    name = found.device.name if found.device else "the CPU engine"
    advice = f"Use {fix}." if fix else f"{HOPELESS}."
    errors = [Problem(file=entry.file, line=entry.line, key=entry.key, message=f"on {name}: {problem}. {advice}") for problem in wrong]
    # A warning about the same value says less.
    kept = [problem for problem in settings.problems if not (errors and problem.key == entry.key and problem.severity == "warning")]
    return replace(settings, problems=(*kept, *errors))


def share_refusal(settings: Settings, device: Device | None) -> str:
    """Why the share of memory that `settings` ask for does not start on `device`; "" when it does, or none is asked for."""
    try:
        request = requested(settings)
    except ConfigurationError:
        return ""
    if device is None or request.utilization is None or request.kv_memory is not None:
        return ""
    return devices.refusal(device, request.utilization)


def compared(expected: Estimate, engine_log: str) -> str:
    """How far off the estimate was from what the log of a start says, in one line; "" when it says nothing."""
    return "; ".join(f"{one.what} {_number(one, one.estimated)} {one.unit} estimated, {_number(one, one.measured)} found ({one.error_percent:+.1f} %)"
                     for one in estimation.compare(expected, engine_log))


def _number(one: Difference, value: float) -> str:
    return f"{value:,.0f}" if one.unit == "tokens" else f"{value:.2f}"
