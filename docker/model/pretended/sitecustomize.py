"""Let vLLM see GPUs that are not there, in this process and in those that it starts: Python imports this by its name, from PYTHONPATH.

PRETENDED_GPU says which: JSON with name, capability, total_bytes, free_bytes and count. Nothing can be computed on them.
"""

import importlib
import json
import os
from types import SimpleNamespace
from typing import Any

told = json.loads(os.environ["PRETENDED_GPU"])
major, minor = told["capability"]
properties = SimpleNamespace(name=told["name"], total_memory=told["total_bytes"], major=major, minor=minor, multi_processor_count=170, warp_size=32,
                             shared_memory_per_block_optin=101_376, L2_cache_size=96 * 2**20, is_integrated=0, regs_per_multiprocessor=65_536,
                             max_threads_per_multi_processor=1536, uuid="pretended")
is_file = os.path.isfile


def pretended_is_file(path: Any) -> bool:
    # vLLM finds its CUDA platform by NVML, which needs a driver, or by this file, as on a Jetson.
    return path == "/etc/nv_tegra_release" or is_file(path)


os.path.isfile = pretended_is_file
cuda: Any = importlib.import_module("torch").cuda
cuda.is_available = lambda: True
cuda.device_count = cuda._device_count_nvml = lambda: told["count"]
cuda.get_device_capability = lambda *_of: (major, minor)
cuda.get_device_name = lambda *_of: told["name"]
cuda.get_device_properties = lambda *_of: properties
cuda.mem_get_info = lambda *_of: (told["free_bytes"], told["total_bytes"])
