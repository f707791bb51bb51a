"""Do the compilers that the engine starts at run time work in this image? None of them needs a GPU to compile for one.

Triton (torch.compile and vLLM's own kernels) and CuTe (some matrix products of FlashInfer and vLLM) to code for an RTX 5090, and
numba (the n-gram speculator) for this processor. Exits 5 when what comes out is not what the card would load.
"""

import os
import struct
import sys

os.environ["CUTE_DSL_ARCH"] = "sm_120a"  # what CuTe finds out from the card, where there is one
os.environ["CUTE_DSL_KEEP"] = "cubin"

import cutlass  # type: ignore[import-not-found]
import numba  # type: ignore[import-not-found]
import numpy as np
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from cutlass import cute
from cutlass.cute.runtime import make_fake_compact_tensor  # type: ignore[import-not-found]
from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found]
from triton.compiler import ASTSource  # type: ignore[import-not-found]

GENERATION = 120


@triton.jit  # type: ignore[untyped-decorator]
def triton_kernel(x, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(x + at, tl.load(x + at, at < count) + 1, at < count)


@cute.kernel  # type: ignore[untyped-decorator]
def cute_kernel(x: cute.Tensor):  # type: ignore[no-untyped-def]
    at, _, _ = cute.arch.thread_idx()
    x[at] = x[at] + cutlass.Float32(1.0)


@cute.jit  # type: ignore[untyped-decorator]
def cute_launch(x: cute.Tensor):  # type: ignore[no-untyped-def]
    cute_kernel(x).launch(grid=(1, 1, 1), block=(32, 1, 1))


@numba.njit(parallel=True)
def numba_sum(x):  # type: ignore[no-untyped-def]
    total = 0
    for at in numba.prange(len(x)):
        total += x[at]
    return total


def generation(code: bytes) -> int:
    """For which GPU generation a compiled kernel is; 0 when it is none. It stands in the flags of its ELF header."""
    return struct.unpack_from("<I", code, 48)[0] >> 8 & 0xFF if code[:4] == b"\x7fELF" else 0


def main() -> int:
    source = ASTSource(fn=triton_kernel, signature={"x": "*fp32", "count": "i32", "block": "constexpr"}, constexprs={(2,): 1024})
    by_triton = generation(triton.compile(source, target=GPUTarget("cuda", GENERATION, 32)).asm["cubin"])
    by_cute = generation(cute.compile(cute_launch, make_fake_compact_tensor(cutlass.Float32, (32,))).artifacts.CUBIN)
    by_numba = int(numba_sum(np.arange(100)))
    print(f"Triton: sm_{by_triton}, CuTe: sm_{by_cute}, numba: {by_numba}", flush=True)
    return 0 if (by_triton, by_cute, by_numba) == (GENERATION, GENERATION, 4950) else 5


if __name__ == "__main__":
    sys.exit(main())
