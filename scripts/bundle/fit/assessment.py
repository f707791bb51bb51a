"""Fit for a whole deployment: what `make check`, `make doctor` and `make up` say of its model and its GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config import words
from bundle.config.envfile import Problem
from bundle.config.settings import MODEL_IN_CONTAINER, SELFTEST_MODEL, Settings
from bundle.config.words import Resolved
from bundle.fit import drafts, estimation, found, quantization, remedies, report
from bundle.fit.estimation import Difference, Estimate
from bundle.fit.modelshape import read, read_config, read_quantization
from bundle.fit.remedies import Change
from bundle.fit.request import requested
from bundle.machine import devices
from bundle.machine.devices import Device
from bundle.machine.facts import Host

SHARE_KEY = "ENGINE_GPU_MEMORY_UTILIZATION"
QUANTIZATION_KEY, SEQUENCES_KEY = "ENGINE_QUANTIZATION", "ENGINE_MAX_NUM_SEQS"
DEPRECATED_KEY = "ENGINE_ALLOW_DEPRECATED_QUANTIZATION"
NO_MODEL = "no model is known"
HOPELESS = "Take a smaller model, or a larger GPU"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What is known of a deployment's fit: the device that it was looked at for, and an estimate, or why there is none."""

    device: Device | None = None
    estimate: Estimate | None = None
    unknown: str = ""
    fix: str = ""
    resolved: Mapping[str, Resolved] = field(default_factory=dict)
    """What `auto` becomes there, by key, as far as it is known."""

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

    @property
    def starts(self) -> bool | None:
        """None where that is not known."""
        return self.estimate.starts if self.estimate else None

    def differences(self, engine_log: str) -> tuple[Difference, ...]:
        """The estimate beside what the log of a start says; empty where one of the two says nothing."""
        return estimation.compare(self.estimate, engine_log) if self.estimate else ()

    def as_json(self, differences: Sequence[Difference] = ()) -> dict[str, object] | None:
        """Everything for machines; None where there is no estimate."""
        if not self.estimate:
            return None
        return report.as_json(self.estimate, self.changes, differences)

    def show(self, differences: Sequence[Difference] = ()) -> None:
        """The table and the arithmetic on stdout, if there is an estimate, and the `differences` to an engine's log."""
        if self.estimate:
            report.show(self.estimate, self.changes, differences)


def model_folder(settings: Settings) -> Path | None:
    """The folder that the engine reads: MODEL_DIR, or one in it where a folder of models is mounted and ENGINE_MODEL names one."""
    mounted, model = settings.model_dir, settings.value("ENGINE_MODEL")
    if mounted and model.startswith(MODEL_IN_CONTAINER + "/"):
        return mounted / model.removeprefix(MODEL_IN_CONTAINER + "/")
    return mounted


def held_to_model(settings: Settings) -> Settings:
    """`settings` with what the engine would refuse for their model among their errors, as far as its config.json can be read."""
    folder = model_folder(settings)
    if not folder:
        return settings
    draft = drafts.of(settings)
    try:
        refusals = {QUANTIZATION_KEY if _asked(settings) else "MODEL_DIR": _refusal(settings, folder),
                    **({draft.key: drafts.refused(draft, folder)} if draft else {})}
    except PrerequisiteError:
        return settings  # `make doctor` and the start say what is wrong with the folder
    problems = [Problem(file=settings.entries[key].file, line=settings.entries[key].line, key=key, message=message)
                for key, message in refusals.items() if message]
    return replace(settings, problems=(*settings.problems, *problems))


def _asked(settings: Settings) -> str:
    """The method that ENGINE_QUANTIZATION asks for; "": none."""
    wanted = settings.value(QUANTIZATION_KEY)
    return "" if wanted == words.AUTO else wanted


def _refusal(settings: Settings, folder: Path) -> str:
    """Why the engine would not load the checkpoint in `folder` by the method that it has or that is asked for; "" where it would."""
    said, wanted = read_quantization(folder), _asked(settings)
    if not quantization.takes(said, wanted, model_type=str(read_config(folder).get("model_type")), target=settings.image_target):
        state = f"quantized already ({quantization.method(said) or 'it does not say how'})" if said else "not quantized"
        instead = "take the checkpoint with 16-bit weights" if said else f"a method for 16-bit weights: {', '.join(quantization.ONLINE)}"
        return f"the checkpoint in {folder} is {state}, and the engine refuses to make {wanted} of it. Set {QUANTIZATION_KEY}=auto, or {instead}."
    method = quantization.method(said) or wanted
    if method in quantization.DEPRECATED and settings.value(DEPRECATED_KEY) != "true" and wanted != "humming":
        return (f"the engine takes {method} (the checkpoint in {folder}) with {DEPRECATED_KEY}=true alone, and is about to drop it. Add that line, "
                "or take another checkpoint of the model.")
    return ""


def assess(settings: Settings, gpu: str = "", *, host: Host | None = None, idle: bool = True) -> Fit:
    """The fit of `settings` on the GPU called `gpu`, or on this host's: as it is now, or `idle`, as if nothing ran there.

    Raises ConfigurationError only for a wrong `gpu`; whatever else is missing is said in the answer.
    """
    folder = model_folder(settings)
    if not (gpu or folder):
        return Fit(unknown=NO_MODEL, fix="set MODEL_DIR in env/site.env", resolved=_known(settings, folder, None))
    try:
        device = estimation.device_of(settings, gpu, host)
    except PrerequisiteError as error:
        return Fit(unknown=error.message, fix=error.fix, resolved=_known(settings, folder, None))
    return assess_on(settings, devices.idle(device) if device and idle else device)


def assess_on(settings: Settings, device: Device | None) -> Fit:
    """The fit of `settings` on `device` (None: the CPU engine)."""
    folder = model_folder(settings)
    known = _known(settings, folder, device)
    if not folder:
        return Fit(device=device, unknown=NO_MODEL, fix="set MODEL_DIR in env/site.env", resolved=known)
    try:
        return estimated(settings, folder, device)
    except (ConfigurationError, PrerequisiteError) as error:
        return Fit(device=device, unknown=error.message, fix=error.fix, resolved=known)


def estimated(settings: Settings, folder: Path, device: Device | None, *, measured_overhead: int | None = None) -> Fit:
    """As `assess_on`, for the model in `folder`; `measured_overhead` (bytes) replaces the estimated one, and what a start has found to add to it.

    Raises ConfigurationError or PrerequisiteError where there is nothing to compute with: a value that is wrong, a model that is missing or damaged.
    """
    known = _known(settings, folder, device)
    own = _with(settings, known)
    request = requested(own, overhead=measured_overhead)
    if measured_overhead is None:
        request = replace(request, correction=found.correction(own, folder, device))
    model = drafts.beside(read(folder, request.hf_overrides), request.draft, folder, quantization=request.quantization,
                          float_bytes=request.float_bytes)
    estimate = estimation.estimate(model, request, device)
    if estimate.sequences_why:
        known[SEQUENCES_KEY] = Resolved(value=str(estimate.max_num_seqs), why=estimate.sequences_why)
    return Fit(device=device, estimate=estimate, resolved=known)


def resolved(settings: Settings, fit: Fit) -> Settings:
    """`settings` with a value in place of each `auto` that `fit` has resolved; what it could not stays, for the host or container that runs it."""
    return _with(settings, fit.resolved)


def unresolved(settings: Settings) -> str:
    """What to do about an `auto` that only a host with the GPU can resolve, where `settings` still hold it; "" where they do not."""
    if settings.value(SEQUENCES_KEY) != words.AUTO:
        return ""
    return (f"{SEQUENCES_KEY}=auto stays in it: `make up` on the host that runs it puts a number there, and plain Compose starts no engine so. "
            "For plain Compose name the model and the GPU: MODEL_DIR= and GPU=NAME (--gpu NAME)")


def decided(settings: Settings, fit: Fit) -> Settings:
    """As `resolved`, for a start on this host: what only the host resolves, and `fit` could not, is left to the engine."""
    own = resolved(settings, fit)
    if own.value(SEQUENCES_KEY) != words.AUTO:
        return own
    return _with(own, {SEQUENCES_KEY: Resolved(value="", why=f"the engine's own default, because the fit is not known ({fit.unknown})")})


def _with(settings: Settings, values: Mapping[str, Resolved]) -> Settings:
    for key, one in values.items():
        settings = settings.overridden({key: one.value}, f"auto ({settings.entries[key].origin}): {one.why}")
    return settings


def _known(settings: Settings, folder: Path | None, device: Device | None) -> dict[str, Resolved]:
    """ENGINE_QUANTIZATION=auto, where checkpoint and device decide it; by the entrypoint's own rules."""
    model, one = settings.value("ENGINE_MODEL"), None
    if settings.value(QUANTIZATION_KEY) != words.AUTO:
        return {}
    if folder or not model.startswith("/"):
        one = words.by_checkpoint(model, folder, settings.value("ENGINE_DTYPE"))
    elif model != SELFTEST_MODEL:  # it lies in the image, which alone sees it; the bundle's own has 16-bit weights
        device = None
    if one is None and device:
        one = words.by_gpu(device.capability, device.name)
    if one is None and settings.image_target == "cpu":
        one = words.by_gpu(None)
    return {QUANTIZATION_KEY: one} if one else {}


def starts(settings: Settings, device: Device) -> bool | None:
    """Whether the model starts on `device`; None where that cannot be computed."""
    return assess_on(settings, device).starts


def held_to(settings: Settings, fit: Fit) -> Settings:
    """`settings` with everything that keeps them from starting on the device of `fit` among their errors."""
    if fit.estimate:
        wrong, fix = fit.estimate.problems, fit.remedy
    else:
        wrong, fix = tuple(filter(None, [share_refusal(settings, fit.device)])), f"{SHARE_KEY}=auto"
    entry = settings.entries.get(SHARE_KEY) or settings.entries["MODEL_DIR" if fit.estimate else "IMAGE_TARGET"]
    name = fit.device.name if fit.device else "the CPU engine"
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


def described(differences: Sequence[Difference]) -> str:
    """Such as "KV cache 1.00 GiB estimated, 1.02 found (-2.0 %)", for all of them in one line."""
    return "; ".join(f"{one.what} {_number(one, one.estimated)} {one.unit} estimated, {_number(one, one.measured)} found ({one.error_percent:+.1f} %)"
                     for one in differences)


def _number(one: Difference, value: float) -> str:
    return f"{value:,.0f}" if one.unit == "tokens" else f"{value:.2f}"
