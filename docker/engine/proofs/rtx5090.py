"""Let vLLM's code for an RTX 5090 be imported where there is no GPU: the build's proofs look at what is installed, not at a card.

Import this before any other part of vLLM. Nothing is computed on the pretended card. vLLM's extension modules are linked against
the driver: the stub in CUDA_HOME must be on the loader's path as libcuda.so.1.
"""

import importlib
from typing import Any

torch: Any = importlib.import_module("torch")
platforms: Any = importlib.import_module("vllm.platforms")
capability: Any = importlib.import_module("vllm.platforms.interface").DeviceCapability(12, 0)


def get_device_capability(*_of: Any, **_more: Any) -> Any:
    return capability


def get_device_name(*_of: Any, **_more: Any) -> str:
    return "NVIDIA GeForce RTX 5090"


cuda: Any = importlib.import_module("vllm.platforms.cuda").CudaPlatform
cuda.get_device_capability = staticmethod(get_device_capability)
cuda.get_device_name = staticmethod(get_device_name)
platforms.current_platform = cuda()
torch.cuda.get_device_capability = get_device_capability
