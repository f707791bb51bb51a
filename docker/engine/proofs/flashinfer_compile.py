"""Can FlashInfer compile for an RTX 5090 in this image, as the engine's user? Builds one small module, loads it and looks into it.

    FLASHINFER_WORKSPACE_BASE=<empty folder> python flashinfer_compile.py

The module writes the paged KV cache (two source files); the sampler's, which the engine needs at its first start, takes five times
as long and uses the same compiler, headers, links and stubs. Exits 5 when the result has no sm_120 code.
"""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import sm120


def main() -> int:
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = "12.0"  # what FlashInfer finds out from the card, where there is one
    # FlashInfer is imported only now: it reads its environment while it is being imported.
    page: Any = importlib.import_module("flashinfer.jit.page")
    started = time.monotonic()
    module = page.gen_page_module()
    module.build_and_load()
    print(f"FlashInfer compiled {module.name} as uid {os.getuid()} in {time.monotonic() - started:.0f} s", flush=True)
    return 0 if sm120.check(Path(module.jit_library_path)) else 5


if __name__ == "__main__":
    sys.exit(main())
