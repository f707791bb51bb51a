"""For a deployment that does not start: the nearest changes with which it does, as env lines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil

from bundle.config.contradictions import CPU_ENGINE_GIB
from bundle.fit import estimation
from bundle.fit.estimation import Estimate
from bundle.fit.request import AUTO, Request
from bundle.machine.devices import GIB

_STEP = 1024  # lengths are offered in whole Ki


@dataclass(frozen=True, kw_only=True)
class Change:
    """Lines for an env file, and the estimate with them."""

    lines: tuple[str, ...]
    estimate: Estimate


Lever = Callable[[Estimate], Iterator[tuple[str, Request]]]
"""One thing that can be changed: gives its env lines and the request with them, or nothing where there is nothing to change."""


def nearest(refused: Estimate) -> list[Change]:
    """Every single change that lets `refused` start, the gentlest first; where none does alone, the fewest together; empty when nothing helps."""
    alone = [_with(refused, [lever]) for lever in _levers(refused)]
    return [change for change in alone if change.estimate.starts] or _together(refused)


def _together(refused: Estimate) -> list[Change]:
    """Lever upon lever until it starts, then without each that was not needed."""
    pulled: list[Lever] = []
    for lever in _levers(refused):
        pulled.append(lever)
        if not _with(refused, pulled).estimate.starts:
            continue
        for spare in pulled[:-1]:
            fewer = [other for other in pulled if other is not spare]
            if _with(refused, fewer).estimate.starts:
                pulled = fewer
        return [_with(refused, pulled)]
    return []


def _with(refused: Estimate, levers: list[Lever]) -> Change:
    lines: list[str] = []
    now = refused
    for lever in levers:
        for line, request in lever(now):
            lines += line.splitlines()
            now = estimation.estimate(refused.model, request, refused.device)
    return Change(lines=tuple(lines), estimate=now)


def _levers(refused: Estimate) -> tuple[Lever, ...]:
    return (_share, _batch, _kv_type, _length, _weights, _gpus) if refused.device else (_cpu_space, _length, _cpu_limit)


def _share(now: Estimate) -> Iterator[tuple[str, Request]]:
    """The utilization that auto would take, in whole hundredths."""
    most = int(estimation.most_that_starts(now.device) * 100) / 100 if now.device else 0.0
    if not now.device or now.request.utilization is None or most <= 0:
        return
    if now.request.kv_memory is None and most != now.utilization:
        yield f"ENGINE_GPU_MEMORY_UTILIZATION={most:g}", replace(now.request, utilization=most)
    elif now.request.kv_memory is not None and (room := int(now.device.total * most) - now.weights_gpu_bytes - now.overhead_bytes) > 0:
        yield f"ENGINE_KV_CACHE_MEMORY_BYTES={room}", replace(now.request, kv_memory=room)


def _batch(now: Estimate) -> Iterator[tuple[str, Request]]:
    smaller = max(2048, now.request.max_num_seqs or 0)
    if (now.request.max_num_batched_tokens or 0) > smaller:
        yield f"ENGINE_MAX_NUM_BATCHED_TOKENS={smaller}", replace(now.request, max_num_batched_tokens=smaller)


def _kv_type(now: Estimate) -> Iterator[tuple[str, Request]]:
    if now.request.kv_dtype in (AUTO, "bfloat16", "float16"):
        yield "ENGINE_KV_CACHE_DTYPE=fp8", replace(now.request, kv_dtype="fp8")


def _length(now: Estimate) -> Iterator[tuple[str, Request]]:
    """The longest context that fits, if that is shorter."""
    longest = estimation.estimate(now.model, replace(now.request, max_model_len=-1), now.device).max_model_len
    length = longest // _STEP * _STEP
    if 0 < length < now.max_model_len:
        yield f"ENGINE_MAX_MODEL_LEN={length}", replace(now.request, max_model_len=length)


def _weights(now: Estimate) -> Iterator[tuple[str, Request]]:
    if not now.model.quantization and not now.request.quantization:
        yield "ENGINE_QUANTIZATION=fp8_per_tensor", replace(now.request, quantization="fp8_per_tensor")


def _gpus(now: Estimate) -> Iterator[tuple[str, Request]]:
    for gpus in (2, 4, 8):
        request = replace(now.request, tensor_parallel=gpus)
        if gpus > now.request.tensor_parallel and estimation.estimate(now.model, request, now.device).starts:
            yield f"ENGINE_TENSOR_PARALLEL_SIZE={gpus}\nHOST_GPU_COUNT={gpus}", request
            return


def _cpu_space(now: Estimate) -> Iterator[tuple[str, Request]]:
    needed = ceil(now.sequence_bytes / GIB)
    if needed * GIB > now.kv_bytes:
        yield f"VLLM_CPU_KVCACHE_SPACE={needed}", replace(now.request, kv_memory=needed * GIB)


def _cpu_limit(now: Estimate) -> Iterator[tuple[str, Request]]:
    needed = ceil((now.weights_gpu_bytes + now.kv_bytes) / GIB + CPU_ENGINE_GIB)
    if needed * GIB > now.request.host_memory > 0:
        yield f"HOST_ENGINE_MEMORY={needed}g", replace(now.request, host_memory=needed * GIB)
