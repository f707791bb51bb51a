"""Will this deployment start on that GPU, and how many tokens will its KV cache hold? Arithmetic on files, no GPU library, no engine.

Exact: parameters, weights, bytes per token, and the blocks and tokens that an amount of KV memory makes. An estimate: the overhead (overhead.py),
and with it that amount. `compare` says how far off an estimate was from what the engine's log says.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from bundle.base.errors import ConfigurationError
from bundle.config.contradictions import CPU_ENGINE_GIB
from bundle.config.settings import Settings
from bundle.fit import modelshape, overhead
from bundle.fit import quantization as schemes
from bundle.fit.kvcache import Cache, Layout, cache
from bundle.fit.layers import Attention
from bundle.fit.modelshape import Model
from bundle.fit.request import ALL_THAT_FIT, AUTO, Request
from bundle.machine import devices
from bundle.machine.devices import GIB, Device
from bundle.machine.facts import Host

AUTO_MARGIN_BYTES = GIB // 2
"""Left free by ENGINE_GPU_MEMORY_UTILIZATION=auto, for buffers that vLLM takes after it has measured. With 0.17 GiB left free a public start on
an RTX 5090 died at its first request, which wanted 0.25; with 0.75 GiB it served."""

_BLOCK_TOKENS = {"cuda": 16, "cpu": 128}
_CPU_BATCH = 2048, 128  # vLLM's own tokens and sequences of a step


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer. Where there are several GPUs all but `weights_bytes` is of one of them."""

    model: Model
    request: Request
    device: Device | None
    weights_bytes: int
    weights_gpu_bytes: int
    overhead: Mapping[str, int]
    kv_bytes_per_token: int
    """Of one token over all layers, while it is inside every window; 0 where nothing is kept: an encoder, or layers with a state alone."""
    state_bytes: int
    """Of one sequence, whatever its length: layers with a state."""
    kv_bytes: int
    kv_tokens: int
    sequences_at_full_length: float
    requests: float
    """Requests of `request_tokens` tokens that the KV cache holds at once."""
    request_tokens: int
    max_num_seqs: int
    """Requests that are computed at once, and where ENGINE_MAX_NUM_SEQS=auto has found that number, how."""
    sequences_why: str
    max_model_len: int
    sequence_bytes: int
    """KV memory that must be there to serve one sequence of `max_model_len` tokens."""
    utilization: float | None
    block_tokens: int
    problems: tuple[str, ...]
    """Why it does not start, each with its numbers."""
    arithmetic: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def starts(self) -> bool:
        return not self.problems

    @property
    def parameters(self) -> int:
        return self.model.parameters

    @property
    def overhead_bytes(self) -> int:
        return sum(self.overhead.values())


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One quantity as the estimate has it and as the engine's log has it; `unit` is GiB, tokens or sequences."""

    what: str
    unit: str
    estimated: float
    measured: float

    @property
    def error_percent(self) -> float:
        """By how much the estimate was too high; negative: too low."""
        return (self.estimated / self.measured - 1) * 100 if self.measured else 0.0


def device_of(settings: Settings, gpu: str = "", host: Host | None = None) -> Device | None:
    """The GPU called `gpu`, or this host's, for an engine with `settings`; None for the CPU engine.

    Raises ConfigurationError for a GPU that is not known or makes no sense, PrerequisiteError where there is none to look at.
    """
    if settings.image_target != "cpu":
        return devices.find(gpu, root=settings.root, host=host, named=settings.gpus, count=settings.gpu_count)
    if gpu:
        raise ConfigurationError(f"--gpu {gpu}: profile {settings.profile} runs on the CPU", fix="choose a profile with IMAGE_TARGET=cuda")
    return None


def most_that_starts(device: Device) -> float:
    """ENGINE_GPU_MEMORY_UTILIZATION=auto: (free - margin) / total, rounded down to a thousandth."""
    return max(0, (device.free - AUTO_MARGIN_BYTES) * 1000 // max(1, device.total)) / 1000


def estimate(model: Model, request: Request, device: Device | None) -> Estimate:
    """What `request` makes of `model` on `device` (None: the CPU engine). Raises ConfigurationError where a setting cannot be computed."""
    if request.max_num_seqs == ALL_THAT_FIT:
        return _as_many_as_fit(model, request, device)
    weights = _weights(model, request)
    on_gpu = max(0, sum(_on_one_gpu(kind, size, request.tensor_parallel) for kind, (_, size) in weights.items()) - request.offloaded)
    tokens, seqs = _batch(model, request, device)
    parts = overhead.parts(model, request, device, tokens=tokens, seqs=seqs) if device else {}
    share = None if device is None else most_that_starts(device) if request.utilization is None else request.utilization
    budget = ceil(device.total * share) if device and share is not None else 0
    memory = _cpu_memory(request) if device is None else request.kv_memory
    if memory is None:
        memory = budget - on_gpu - sum(parts.values())
    held = _cache(model, request, in_flight=tokens * (2 if request.async_scheduling else 1))
    length, limit = _length(model, request, held, memory)
    expected = min(request.request_tokens or length, length)
    sums = _Sums(request=request, device=device, attention=model.attention, cache=held, on_gpu=on_gpu, overhead=sum(parts.values()), share=share,
                 budget=budget, memory=memory, length=length)
    return Estimate(
        model=model, request=request, device=device, weights_bytes=sum(size for _, size in weights.values()), weights_gpu_bytes=on_gpu,
        overhead=parts, kv_bytes_per_token=held.token_bytes, kv_bytes=max(0, memory), kv_tokens=held.tokens(memory, length),
        sequences_at_full_length=round(held.sequences(memory, length), 2), requests=held.sequences(memory, expected), request_tokens=expected,
        max_num_seqs=seqs, sequences_why="", max_model_len=length, state_bytes=held.state_bytes,
        sequence_bytes=held.sequence_bytes(length), utilization=share, block_tokens=held.block_tokens,
        problems=(*_refused(model, request, length, limit), *sums.problems()),
        arithmetic=(_weights_line(model, weights, on_gpu), *sums.lines(parts, share)),
        notes=(*model.notes, *([f"not counted: {', '.join(request.uncounted)}"] if request.uncounted else [])))


def _as_many_as_fit(model: Model, request: Request, device: Device | None) -> Estimate:
    """The estimate for the largest number of requests that the KV cache holds at once: none of them has to give way and be computed again.

    A search, because the cache shrinks with the number of requests, whose logits and graphs take their part.
    """
    tokens = request.max_num_batched_tokens or _batch(model, replace(request, max_num_seqs=None), device)[0]
    graphs = overhead.most_captured(request, device, tokens=tokens) if device and request.graphs else 0
    most = min(tokens, graphs or tokens)

    def of(number: int) -> Estimate:
        return estimate(model, replace(request, max_num_seqs=number), device)

    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if of(middle).requests >= middle else (low, middle - 1)
    found = of(low)
    bound = f", and no more than {most:,}: " + (f"the largest batch with a graph is {graphs:,}" if graphs == most else
                                                f"a step has {tokens:,} tokens, one for each") if low == most else ""
    why = (f"{found.kv_tokens:,} tokens of KV cache hold {found.requests:,.1f} requests of {found.request_tokens:,} tokens (HOST_REQUEST_TOKENS)"
           f"{bound}")
    return replace(found, request=request, sequences_why=why, arithmetic=(*found.arithmetic, f"requests at once (auto): {why}: {low}"))


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """The numbers that the verdict and its arithmetic are made of; bytes."""

    request: Request
    device: Device | None
    attention: Attention
    cache: Cache
    on_gpu: int
    overhead: int
    share: float | None
    budget: int
    memory: int
    length: int

    def problems(self) -> Iterator[str]:
        device = self.device
        if device and self.share is not None and (refusal := devices.refusal(device, self.share)):
            yield refusal
        if self.memory <= 0:
            yield (f"weights {gib(self.on_gpu)} GiB and overhead {gib(self.overhead)} GiB (estimate) leave nothing of {gib(self.budget)} GiB "
                   "for the KV cache")
        elif (needed := self.cache.sequence_bytes(self.length)) > self.memory:
            yield (f"one sequence of {self.length:,} tokens needs {gib(needed)} GiB of KV cache, and there are {gib(self.memory)}: "
                   'vLLM raises "To serve at least one request with the model\'s max seq len …"')
        if device and self.request.kv_memory is not None and (total := self.on_gpu + self.overhead + self.memory) > device.free:
            yield f"weights, overhead and ENGINE_KV_CACHE_MEMORY_BYTES are {gib(total)} GiB, and {gib(device.free)} are free: CUDA runs out of memory"
        if not device and (total := self.on_gpu + self.memory + round(CPU_ENGINE_GIB * GIB)) > self.request.host_memory > 0:
            yield (f"weights, KV cache and {CPU_ENGINE_GIB:g} GiB for the engine are {gib(total)} GiB, more than HOST_ENGINE_MEMORY "
                   f"({gib(self.request.host_memory)} GiB): the kernel would kill it")

    def lines(self, parts: Mapping[str, int], share: float | None) -> Iterator[str]:
        """The arithmetic after the weights, spelled out."""
        held, kept = self.cache, self.attention
        if kept.kept:
            windows = f" ({kept.full} keep all tokens, {kept.windowed} the last {kept.window:,})" if kept.windowed else ""
            of_each = f" × {held.token_bytes // kept.layers:,} bytes" if held.token_bytes % kept.layers == 0 and len(kept.kept) < 3 else ""
            yield f"KV per token: {kept.layers} layers{windows}{of_each} = {held.token_bytes:,} bytes"
        if kept.states:
            yield f"state per sequence: {kept.states.layers} layers × {held.state_bytes // kept.states.layers:,} bytes = {held.state_bytes:,} bytes"
        if not held.kinds:
            yield "no KV cache: every token sees every other one at once (an encoder)"
        if self.device:
            yield f"budget: {gib(self.device.total)} GiB × {share:g} = {gib(self.budget)} GiB; free at start: {gib(self.device.free)} GiB"
            yield f"overhead (estimate): {' + '.join(f'{name} {gib(size)}' for name, size in parts.items())} = {gib(self.overhead)} GiB"
            if right := self.request.correction:
                before = self.overhead - right.bytes
                yield f"corrected by the start of {right.since}: overhead {gib(before)} -> {gib(self.overhead)} GiB"
        if not self.device or self.request.kv_memory is not None:
            yield f"KV cache: {gib(self.memory)} GiB, as set"
        else:
            yield f"KV cache: {gib(self.budget)} - {gib(self.on_gpu)} weights - {gib(self.overhead)} overhead = {gib(self.memory)} GiB"
        if not held.kinds:
            return
        blocks, each = held.blocks(self.memory), held.blocks_of_sequence(self.length)
        yield f"blocks: {gib(max(0, self.memory))} GiB / {held.block_bytes:,} bytes for {held.block_tokens} tokens = {blocks:,}"
        yield f"sequences: {blocks:,} blocks / {each:,} for one of {self.length:,} tokens = {blocks / each:.2f}"
        yield f"tokens: {blocks:,} / {each:,} × {self.length:,} = {held.tokens(self.memory, self.length):,}"


def _weights(model: Model, request: Request) -> dict[str, tuple[int, int]]:
    """Elements and bytes of each kind of weight, as the engine holds them."""
    if not model.quantization:
        scheme = schemes.online(request.quantization)
    else:
        # Files say what is quantized, and what is not stays as it is; a config.json alone says only how.
        scheme = schemes.stored(model.quantization) if model.source == modelshape.CONFIG else None
    sums: dict[str, tuple[int, int]] = {}
    for weight in model.weights:
        elements, size = sums.get(weight.kind, (0, 0))
        sums[weight.kind] = elements + weight.elements, size + schemes.loaded_bytes(weight, element_bits=8 * request.float_bytes, scheme=scheme)
    return sums | ({"draft": model.draft} if model.draft[1] else {})


def _on_one_gpu(kind: str, size: int, gpus: int) -> int:
    return size if kind in ("vector", "router", "modality") else ceil(size / gpus)


def _batch(model: Model, request: Request, device: Device | None) -> tuple[int, int]:
    """Tokens and sequences of a step."""
    tokens, seqs = device.batch_defaults if device else _CPU_BATCH
    factor = 2 if request.performance_mode == "throughput" else 1
    seqs = request.max_num_seqs or seqs * factor
    return request.max_num_batched_tokens or min(tokens * factor, seqs * model.longest), seqs


def _cpu_memory(request: Request) -> int:
    if request.kv_memory is None:
        raise ConfigurationError("VLLM_CPU_KVCACHE_SPACE is not set: the CPU engine would take a share of the host's memory, which fit cannot know",
                                 fix="set it to whole GiB: VLLM_CPU_KVCACHE_SPACE=4")
    return request.kv_memory


def _cache(model: Model, request: Request, *, in_flight: int) -> Cache:
    dtype = schemes.kv_cache(model.quantization, latent=not model.attention.value_dim) or AUTO if request.kv_dtype == AUTO else request.kv_dtype
    return cache(model.attention, Layout(
        dtype=dtype, float_bytes=request.float_bytes, gpus=request.tensor_parallel, in_flight=in_flight,
        block_tokens=request.block_tokens or _BLOCK_TOKENS[request.target], windows=request.hybrid_cache and request.windows,
        prefix_caching=request.prefix_caching, guesses=request.draft.guesses if request.draft else 0, state_type=request.state_type))


def _length(model: Model, request: Request, cache: Cache, memory: int) -> tuple[int, int]:
    """Tokens of the longest sequence that is to be served, and the most that the model allows."""
    limit = model.longest if request.windows or not model.attention.window else min(model.longest, model.attention.window)
    own = min(model.default_length, limit)
    if request.max_model_len == -1:
        return max(1, cache.longest(memory, own)), limit
    return request.max_model_len or own, limit


def _refused(model: Model, request: Request, length: int, limit: int) -> Iterator[str]:
    """What vLLM refuses before it looks at memory."""
    gpus, kept = request.tensor_parallel, model.attention
    if kept.heads % gpus or (kept.kept and kept.value_dim and kept.kv_heads % gpus and gpus % kept.kv_heads):
        yield f"{kept.heads} attention heads and {kept.kv_heads} KV heads cannot be split evenly over ENGINE_TENSOR_PARALLEL_SIZE={gpus} GPUs"
    if length > limit and not request.allow_long:
        yield (f"ENGINE_MAX_MODEL_LEN={length} is more than the model's {limit:,} tokens: "
               'vLLM raises "User-specified max_model_len … is greater than the derived max_model_len"')


def _weights_line(model: Model, weights: Mapping[str, tuple[int, int]], on_gpu: int) -> str:
    largest, total = sorted(weights.items(), key=lambda item: -item[1][1]), sum(size for _, size in weights.values())
    parts = " + ".join(f"{kind} {elements:,} in {gib_text(size)}" for kind, (elements, size) in largest)
    return f"weights ({model.source}): {parts} = {gib_text(total)}" + (f", of which each GPU holds {gib_text(on_gpu)}" if on_gpu != total else "")


def gib(size: float) -> str:
    """Bytes as GiB with two decimals, as vLLM logs them."""
    return f"{size / GIB:.2f}"


def gib_text(size: float) -> str:
    """Bytes with their unit: GiB, or MiB where two decimals of GiB would show nothing."""
    return f"{gib(size)} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


_LOG = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "memory": re.compile(r"(?:Available KV cache memory: |Explicitly set \()(-?[\d.]+)"),
    "tokens": re.compile(r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens"),
    "sequences": re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x"),
}


def compare(estimated: Estimate, engine_log: str) -> tuple[Difference, ...]:
    """The estimate beside what the log of a real start says (the last start, where there are several); empty when the log says nothing of it."""
    rows = (("weights", "weights", "GiB", estimated.weights_gpu_bytes / GIB), ("memory", "KV cache", "GiB", estimated.kv_bytes / GIB),
            ("tokens", "KV cache", "tokens", float(estimated.kv_tokens)),
            ("sequences", "at full length", "sequences", estimated.sequences_at_full_length))
    found = {name: pattern.findall(engine_log) for name, pattern in _LOG.items()}
    return tuple(Difference(what=what, unit=unit, estimated=value, measured=float(found[name][-1].replace(",", "")))
                 for name, what, unit, value in rows if found[name])
