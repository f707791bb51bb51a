"""What the device can do at most: how fast it copies its own memory, and how fast it multiplies matrices. One JSON line on stdout.

    python benchprobe.py

{"device": its name or "cpu", "copy_gb_s": bytes read and written per second / 1e9, "matmul_tflops": {"bf16": …, "fp8": …}, "seconds": …}

fp8 is left out where torch cannot multiply it. Medians of many runs, on random data: zeros draw less power and would flatter. Takes a few
seconds and less than 1.5 GiB of GPU memory; run it while nothing else uses the device.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found]  # only beside the engine

COPY_BYTES = {"cuda": 384 * 2**20, "cpu": 128 * 2**20}
"""Several times what any of the caches hold: what counts is the memory."""
EDGE = {"cuda": 8192, "cpu": 1024}
WARM_UP, RUNS = 10, {"cuda": 50, "cpu": 31}


def main() -> int:
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        answer = {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "copy_gb_s": copy_rate(device) / 1e9,
            "matmul_tflops": {name: rate / 1e12 for name, rate in matmul_rates(device).items()},
        }
    print(json.dumps(answer | {"seconds": time.monotonic() - started}))
    return 0


def copy_rate(device: str) -> float:
    """Bytes read and written per second."""
    source = torch.randint(-128, 128, (COPY_BYTES[device],), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device] / median_s(device, lambda: target.copy_(source))


def matmul_rates(device: str) -> dict[str, float]:
    """Operations per second by number format; a multiplication and its addition are two."""
    if device == "cuda":
        torch.cuda.empty_cache()  # the buffers of the copy
    edge = EDGE[device]
    left, right = (torch.randn(edge, edge, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = torch.empty_like(left)
    rates = {"bf16": 2 * edge**3 / median_s(device, lambda: torch.mm(left, right, out=product))}
    if device == "cuda":
        try:
            rates["fp8"] = 2 * edge**3 / median_s(device, fp8_matmul(left, right))
        except (AttributeError, NotImplementedError, RuntimeError) as error:  # an older card, or a torch without it
            print(f"no fp8 matmul: {error}", file=sys.stderr)
    return rates


def fp8_matmul(left: Any, right: Any) -> Callable[[], object]:
    """The multiplication that engines use: row-major times column-major, one scale for each, sums kept as the tensor cores keep them."""
    first, second = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t().contiguous().t()
    one = torch.ones((), dtype=torch.float32, device=left.device)
    return lambda: torch._scaled_mm(first, second, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def median_s(device: str, work: Callable[[], object]) -> float:
    """The median time of one run in seconds, by the device's own clock."""
    if device == "cpu":
        work()
        return statistics.median(timed(work) for _ in range(RUNS["cpu"]))
    for _ in range(WARM_UP):  # the clocks rise, and the library chooses its kernel
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(RUNS["cuda"] + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median([float(before.elapsed_time(after)) for before, after in itertools.pairwise(marks)]) / 1e3


def timed(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


if __name__ == "__main__":
    sys.exit(main())
