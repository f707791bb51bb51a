"""How far a load was from the limit: the least time that its arithmetic and its memory traffic take at the rates that the probe measured.

Prefill: two operations for each parameter that a prompt's token passes, and attention over the tokens before it, at the measured rate of matrix
products; tokens that the prefix cache held are not computed. The head is passed once a prompt.

Decode: as many steps as the mean batch makes of the tokens after each request's first. A step reads all weights that it uses, and the keys and
values of every request so far, at the measured copy bandwidth, or computes for as long as its operations take, whichever is longer. The mean
context is the prompt and half of the answer.

What it leaves out: activations, norms, sampling, the writing of keys and values, the gaps between steps, and everything on the host. So nothing
reaches 1. Prefill and decode count one after the other: an engine that mixes both in one step reads the weights once for both, and could come
closer than is computed here. The batch is the mean over the load with its ramps, and taken as the same in every step. A load that waits for
requests (an open loop below the engine's rate) is far from the limit because it waits. With fp8 weights all products count at the fp8 rate, head and
attention too. The probe measures no 4-bit and no int8 products: the former count as fp8, the latter as 16-bit, less than a GPU can do that has them.
One GPU only, and no speculative decoding, whose steps give more than a token each.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bundle import ROOT
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.bench.rundata import Ceilings, Distance, Sample
from bundle.config.envfile import Entry
from bundle.config.settings import Settings
from bundle.fit import estimation, modelshape
from bundle.fit import quantization as schemes
from bundle.fit.architectures import Fields
from bundle.fit.modelshape import Model
from bundle.fit.request import Request, requested
from bundle.machine.devices import Device

BANDWIDTH, COMPUTE = "memory bandwidth", "compute"

_SPECULATIVE = ("ENGINE_SPECULATIVE_CONFIG", "ENGINE_SPEC_MODEL", "ENGINE_SPEC_METHOD")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one token costs under one cell's settings, and what the GPU of the probe can do; bytes, operations and seconds."""

    model: Model
    parameters: float
    """That a token passes in all layers; of experts only those that are chosen."""
    head: int
    weights: int
    """Bytes that every decode step reads, whatever its batch."""
    experts: int
    """Bytes of all experts; a step reads those that its tokens chose."""
    chosen: float
    """The share of the experts that one token passes."""
    kv_layer_bytes: float
    """Bytes that one layer keeps of one token."""
    bandwidth: float
    rate: float

    def prefill_s(self, prompts: float, length: float, hits: float) -> float:
        """Seconds for `prompts` prompts of `length` tokens each, of which the share `hits` is in the prefix cache."""
        operations = 2 * (self.parameters * length * (1 - hits) + self.head) + self._attention(self._pairs(length) - self._pairs(length * hits))
        return prompts * operations / self.rate

    def step_s(self, batch: float, context: float) -> tuple[float, float]:
        """Seconds that one decode step of `batch` requests with `context` tokens each takes to read, and to compute."""
        kept = self.model.attention
        seen = kept.full * context + kept.windowed * min(context, kept.window)
        read = self.weights + self.experts * (1 - (1 - self.chosen) ** batch) + batch * seen * self.kv_layer_bytes
        operations = batch * (2 * (self.parameters + self.head) + self._attention(seen))
        return read / self.bandwidth, operations / self.rate

    def _attention(self, pairs: float) -> float:
        """Operations of `pairs` pairs of a query and a key, over the heads: their product, and the same with the value."""
        kept = self.model.attention
        return 2 * kept.heads * (kept.key_dim + (kept.value_dim or kept.key_dim)) * pairs

    def _pairs(self, length: float) -> float:
        """Pairs of a token and one before it in a prompt of `length` tokens, summed over the layers."""
        kept = self.model.attention
        inside = min(length, kept.window)
        return kept.full * length**2 / 2 + kept.windowed * (inside**2 / 2 + (length - inside) * inside)


def work(config: Mapping[str, Any], settings: Mapping[str, str], ceilings: Ceilings) -> Work:
    """What the model of `config` (its config.json) costs with a cell's `settings`, on the GPU that `ceilings` (the probe's answer) describes.

    Raises ConfigurationError or PrerequisiteError where that cannot be computed, with the reason.
    """
    if drafts := [key for key in _SPECULATIVE if settings.get(key)]:
        raise ConfigurationError(f"{drafts[0]}: how many tokens a step gives depends on what is guessed right")
    rates = ceilings.get("matmul_tflops") or {}
    if not (ceilings.get("copy_gb_s") and rates.get("bf16")):
        raise ConfigurationError("the run has no measured bandwidth and matmul rate")
    if not config:
        raise ConfigurationError("the run does not hold the model's config.json")
    model, device = _model(config), _device(ceilings)
    request = _request(settings, device)
    if request.tensor_parallel != 1:
        raise ConfigurationError("ENGINE_TENSOR_PARALLEL_SIZE: only the limit of one GPU is known")
    kinds = {kind: sum(weight.parameters for weight in model.weights if weight.kind == kind) for kind in {one.kind for one in model.weights}}
    # A tied embedding is read as the head; else a step looks up a few of its rows.
    head = "head" if "head" in kinds else "embedding"
    chosen = _chosen(config) if kinds.get("expert") else 0.0
    held = [kind for kind in kinds if kind not in ("embedding", "expert", "modality", head)]
    return Work(
        model=model, parameters=sum(kinds.get(kind, 0) for kind in ("linear", "router")) + kinds.get("expert", 0) * chosen, head=kinds[head],
        weights=_bytes(model, request, device, [*held, head]), experts=_bytes(model, request, device, ["expert"]), chosen=chosen,
        kv_layer_bytes=estimation.estimate(model, request, device).kv_bytes_per_token / max(1, model.attention.layers),
        bandwidth=ceilings["copy_gb_s"] * 1e9, rate=_rate(model, request, rates) * 1e12)


def distance(cost: Work, samples: Sequence[Sample]) -> Distance | None:
    """How far the repeats of one load were from the limit: the median of each number over `samples`; None where no request came through."""
    rows = [row for sample in samples if (row := _least(cost, sample))]
    if not rows:
        return None
    prefill, reading, computing, measured = (median(column) for column in zip(*rows, strict=True))
    decode = max(reading, computing)
    return {"share_of_limit": (prefill + decode) / measured, "bound": "prefill" if prefill > decode else "decode", "prefill_s": prefill,
            "decode_s": decode, "measured_s": measured, "limited_by": COMPUTE if computing > reading else BANDWIDTH}


def _least(cost: Work, sample: Sample) -> tuple[float, float, float, float] | None:
    """Seconds of prefill, of reading and of computing in all decode steps, and as measured."""
    requests, tokens, metrics = sample["requests"]["completed"], sample["tokens"], sample["metrics"]
    if not (requests and sample["seconds"] > 0):
        return None
    prompt, answer = tokens["input"] / requests, tokens["output"] / requests
    after_first = max(0, tokens["output"] - requests)
    batch = max(1.0, metrics.get("running_mean") or _batch(sample, requests))
    reading, computing = (seconds * after_first / batch for seconds in cost.step_s(batch, prompt + answer / 2))
    hits = min(1.0, max(0.0, metrics.get("prefix_hit_rate") or 0.0))
    return cost.prefill_s(requests, prompt, hits), reading, computing, sample["seconds"]


def _batch(sample: Sample, requests: int) -> float:
    """Requests in the engine on average, where nobody counted them: their time in it over the load's (Little's law)."""
    return requests * float(sample["metrics"].get("e2e_ms_p50") or 0.0) / 1000 / float(sample["seconds"])


def _model(config: Mapping[str, Any]) -> Model:
    with tempfile.TemporaryDirectory() as folder:  # modelshape reads folders
        (Path(folder) / modelshape.CONFIG).write_text(json.dumps(config), encoding="utf-8")
        try:
            return modelshape.read(Path(folder))
        except PrerequisiteError as error:
            raise PrerequisiteError(error.message.replace(folder, "the model of this run")) from error


def _chosen(config: Mapping[str, Any]) -> float:
    """The share of the experts that one token passes; a model with other inputs beside text has its text part one level down."""
    parts = (Fields(values=part, source=modelshape.CONFIG) for part in (config, *config.values()) if isinstance(part, Mapping))
    text = next(part for part in parts if part.experts)
    return text.number("num_experts_per_tok", "experts_per_token", default=1) / text.experts


def _device(ceilings: Ceilings) -> Device | None:
    if ceilings.get("device") == "cpu":
        return None
    # Only bytes of weights and of a token are asked of fit here: they do not depend on how much memory there is.
    return Device(name=str(ceilings.get("device")), total=1, free=1, capability=(0, 0), source="the probe")


def _request(settings: Mapping[str, str], device: Device | None) -> Request:
    given = {"IMAGE_TARGET": "cuda" if device else "cpu", **settings}
    entries = {key: Entry(key=key, value=value, file="run.json", line=0) for key, value in given.items()}
    request = requested(Settings(root=ROOT, profile="", entries=entries, argv=(), environment={}, verdicts=(), problems=()))
    return replace(request, kv_memory=request.kv_memory or 1)


def _bytes(model: Model, request: Request, device: Device | None, kinds: Sequence[str]) -> int:
    """Bytes of the weights of `kinds`, as fit counts them."""
    some = replace(model, weights=tuple(weight for weight in model.weights if weight.kind in kinds))
    return estimation.estimate(some, request, device).weights_bytes


def _rate(model: Model, request: Request, rates: Mapping[str, float]) -> float:
    """TFLOP/s for the precision of matrix products: weights of few bits are unpacked for 16-bit products, unless the GPU computes in theirs."""
    scheme = schemes.stored(model.quantization) if model.quantization else schemes.online(request.quantization)
    narrow = scheme is not None and any(name in scheme.name for name in ("fp8", "fp4"))
    return max(rates.values()) if narrow else rates["bf16"]
