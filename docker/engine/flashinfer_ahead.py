"""FlashInfer's modules that the profiles load, compiled while the image is built, so that the first start on an RTX 5090 need not.

    flashinfer_ahead.py OUT

OUT becomes the package `flashinfer_jit_cache`, in the form in which FlashInfer looks for modules that were built ahead (flashinfer/jit/env.py,
get_aot_artifacts): FlashInfer's own list would take hours and gigabytes, this one is what vLLM asks for: its sampler, and attention with heads of 128
(Llama, Qwen, Mistral) over a 16-bit and an 8-bit KV cache. Other GPUs, and other shapes, still compile at their first start. Needs no GPU.
"""

import importlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ARCHITECTURE = "12.0"
PACKAGE = '''"""Made by docker/engine/flashinfer_ahead.py."""
from collections import namedtuple
from pathlib import Path

__version__ = {version!r}
_Provider = namedtuple("_Provider", "provider_id distribution version jit_cache_dir cuda_architectures modules")


def get_jit_cache_providers():
    return [_Provider("bundle", "flashinfer-jit-cache", __version__, Path(__file__).parent / "modules", {architectures!r}, {modules!r})]
'''


def specifications() -> list[Any]:
    """What is compiled: FlashInfer's JitSpec of each module, by the functions with which it builds ahead itself."""
    torch, aot = importlib.import_module("torch"), importlib.import_module("flashinfer.aot")
    found = [aot.gen_sampling_module()]
    for kept in (torch.bfloat16, torch.float8_e4m3fn):
        found += aot.gen_fa2(dtype_qo=torch.bfloat16, dtype_kv=kept, head_dim_qk=128, head_dim_vo=128, use_sliding_window=False,
                             use_logits_soft_cap=False)
    return found


def main() -> int:
    out = Path(sys.argv[1])
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = ARCHITECTURE
    # FlashInfer is imported only now: it reads its environment while it is being imported.
    environment: Any = importlib.import_module("flashinfer.jit.env")
    version = importlib.import_module("flashinfer.version").__version__
    names = []
    for module in specifications():
        began = time.monotonic()
        module.build()
        target = out / "modules" / module.name / f"{module.name}.so"
        target.parent.mkdir(parents=True)
        shutil.copyfile(module.jit_library_path, target)
        names.append(module.name)
        print(f"{module.name}: {target.stat().st_size / 2**20:.1f} MiB in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    (out / "__init__.py").write_text(PACKAGE.format(version=version, architectures=sorted(environment._target_cuda_architectures()), modules=names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
