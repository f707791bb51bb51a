"""Remove from the CUDA image's site-packages what no profile of this bundle can reach. Standard library only.

    python prune_cuda.py SITE_PACKAGES

Runs in the same RUN as the install (a later layer would only add to the image). Whole packages that serving text does not use
are not pruned here but never installed: cuda-overrides.txt. Each rule says what goes and why nothing needs it; the MB are what it
freed with the locked versions. A rule that finds nothing ends the build: the packages have changed, so look again at its reason.

Checked by importing every module of vLLM and of FlashInfer before and after, as on an RTX 5090: the same ones import, but for those that
need what the overrides leave out. Other GPUs from sm_75 on keep all that they had, FlashAttention 3 and 4 too.

Stays although it is large, because torch links it and does not load without it: cuFFT 287 MB, cuSPARSELt 234, cuSPARSE 163,
cuRAND 133, nvJitLink 117, NVRTC 109, nvSHMEM 41. cuSOLVER 141 is opened on the first torch.linalg call on the GPU, and cuDNN's
engines 495 on the first convolution or FlashInfer cuDNN matmul. cuBLASLt's 542 MB are the matrix products of all GPU
generations in one file that no tool can take apart. LLVM (llvmlite 150) compiles the n-gram speculator.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Files or folders to remove (`what`: patterns relative to site-packages) and why nothing needs them."""

    what: tuple[str, ...]
    why: str


RARELY_IMPORTED = ("transformers/models", "flashinfer/data", "flashinfer/experimental", "flashinfer/moe_ep", "flashinfer/attention",
                   "flashinfer/cute_dsl", "cudnn", "vllm/models", "vllm/vllm_flash_attn/cute", "torch/testing", "sympy/physics", "pygments/lexers",
                   "anthropic/types", "anthropic/resources", "openai/resources", "sentry_sdk")
"""Folders of which a start imports at most one module in ten (counted after proofs/imports.py)."""

RULES = (
    # 302 MB
    Rule(what=("triton/backends/nvidia/lib/cupti*",), why="for Triton's profiler only; torch's own profiler uses nvidia/cu13/lib/libcupti"),
    Rule(what=("triton/_C/libproton.so", "triton/profiler"), why="Triton's profiler itself; nothing imports it before someone profiles"),
    Rule(what=("triton/instrumentation", "triton/plugins", "triton/FileCheck"), why="Triton's own compiler tests"),
    # 237 MB
    Rule(what=("nvidia/cudnn/lib/libcudnn_ext.so.9",),
         why="seven causal-convolution functions that neither torch nor vLLM nor FlashInfer calls; libcudnn opens each part at its first use"),
    Rule(what=("nvidia/cudnn/lib/libcudnn_adv.so.9",),
         why="recurrent networks (LSTM, GRU) and CTC loss: no model in vLLM has one; libcudnn opens each part at its first use"),
    # 114 MB
    Rule(what=("nvidia/cu13/lib/libnvrtc.alt.so.13", "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0"),
         why="a second build of NVRTC that a program must ask for by name; torch and FlashInfer name the first"),
    # 104 MB
    Rule(what=("nvidia/cu13/lib/libcusolverMg.so.12",), why="cuSOLVER over several GPUs; torch does not link it"),
    # 64 MB
    Rule(what=("nvidia/cu13/lib/libnvvm.so.4",),
         why="for programs that write NVVM code, such as numba-cuda; nvcc runs nvvm/bin/cicc, and Triton and CuTe bring their own LLVM"),
    Rule(what=("nvidia/cu13/lib/libnvblas.so.13", "nvidia/cu13/lib/libcufftw.so.12"), why="BLAS and FFTW imitations; nothing links them"),
    # 40 MB
    Rule(what=("nvidia/cu13/lib/libnvperf_host.so", "nvidia/cu13/lib/libnvperf_target.so", "nvidia/cu13/lib/libpcsamplingutil.so",
               "nvidia/cu13/lib/libcheckpoint.so"),
         why="hardware counters for profilers; libcupti.so.13, which torch links, loads without them"),
    # 34 MB
    Rule(what=("nvidia/nvshmem/lib/libnvshmem_device.*",), why="for compiling kernels that talk between nodes themselves"),
    # 38 MB
    Rule(what=("nvidia/cu13/bin/nvlink",),
         why="links relocatable device code; of FlashInfer only modules for diffusion and for several nodes ask for that, which vLLM does not call"),
    # 52 MB
    Rule(what=("flashinfer/data/csrc/cake_dsv4",),
         why="sources for DeepSeek-V4, which no host of this bundle holds (cuda-overrides.txt leaves out its other half)"),
    # 21 MB
    Rule(what=("flashinfer/data/cutlass/test", "flashinfer/data/cutlass/examples", "flashinfer/data/cutlass/python", "flashinfer/data/cccl/python"),
         why="tests, examples and Python packages of the headers that FlashInfer compiles against"),
    # 37 MB
    Rule(what=("mistral_common/data/*.model*", "mistral_common/data/tekken_*.json"), why="tokenizers for tests; a Mistral model brings its own"),
    # 20 MB
    Rule(what=("pycountry/locales",), why="country names in 200 languages"),
    # 200 MB
    Rule(what=tuple(f"{folder}/**/__pycache__" for folder in RARELY_IMPORTED),
         why="bytecode of modules of which a start imports few or none: 132, and compiling those again takes 0.2 s of it"),
)

# 566 MB: half of it in Triton's compiler, the rest in torch, NCCL and vLLM's modules
STRIP_ABOVE_BYTES = 2_000_000
KEEP_SYMBOLS = (
    "*.libs/*",  # their wheels moved sections about when they were repaired; strip misaligns such files
)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count nothing."""
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def remove(site: Path, rule: Rule) -> int:
    """Apply one rule and return the bytes that it freed. Raises SystemExit when a pattern finds nothing."""
    freed = 0
    for pattern in rule.what:
        found = sorted(site.glob(pattern))
        if not found:
            raise SystemExit(f"prune_cuda.py: {pattern} matches nothing in {site} ({rule.why}): look again at this rule, the packages have changed")
        for path in found:
            if path.exists():  # not gone with its folder
                freed += size(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed


def strip(path: Path) -> int:
    """Drop a library's symbol table, which only a debugger reads, and return the bytes that it freed. What the loader reads stays."""
    before = path.stat().st_size
    lean = path.with_name(path.name + ".lean")
    subprocess.run(["strip", "--strip-all", "-o", str(lean), str(path)], check=True)
    shutil.copystat(path, lean)
    lean.replace(path)
    return before - path.stat().st_size


def binaries(site: Path) -> list[Path]:
    """The large ELF files that may be stripped."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size < STRIP_ABOVE_BYTES:
            continue
        if any(path.relative_to(site).match(pattern) for pattern in KEEP_SYMBOLS):
            continue
        with path.open("rb") as file:
            if file.read(4) == b"\x7fELF":
                found.append(path)
    return found


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print("usage: prune_cuda.py SITE_PACKAGES", file=sys.stderr)
        return 2
    site = Path(argv[0])
    before = size(site)
    for rule in RULES:
        print(f"{remove(site, rule) / 1e6:7.0f} MB  {', '.join(rule.what)}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        print(f"{sum(pool.map(strip, binaries(site))) / 1e6:7.0f} MB  symbol tables", flush=True)
    print(f"{before / 1e6:7.0f} MB before, {size(site) / 1e6:.0f} MB after")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
