"""Does everything that a profile may need still import after pruning, as it would on an RTX 5090?

    LD_LIBRARY_PATH=<folder with the stub libcuda.so.1> python imports.py

Goes by name where a profile names something, and through vLLM's own registries where there are many: every quantization method,
every attention backend of this card, every model. Exits 5 and lists what fails.
"""

import importlib
import pkgutil
import sys
from typing import Any

import rtx5090  # noqa: F401  (makes vLLM believe that it sees the card)

SERVE = (
    "vllm.entrypoints.cli.serve", "vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.v1.engine.async_llm", "vllm.v1.engine.core", "vllm.v1.executor.uniproc_executor", "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner", "vllm.device_allocator.cumem",
    "vllm.compilation.backends", "vllm.compilation.passes.pass_manager", "vllm.model_executor.model_loader.default_loader",
    "vllm.benchmarks.serve", "vllm.utils.flashinfer", "torch._inductor.compile_fx", "transformers.models.auto",
)
KERNELS = (
    "vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch", "vllm.cumem_allocator", "flashinfer", "flashinfer.sampling", "flashinfer.prefill",
    "flashinfer.decode", "flashinfer.gemm", "flashinfer.fused_moe", "flashinfer.norm", "flashinfer.autotuner", "triton.language", "cutlass.cute",
    "cuda.bindings.driver", "cudnn",
)
SPECULATION = ("vllm.v1.spec_decode.ngram_proposer", "vllm.v1.spec_decode.eagle", "vllm.v1.spec_decode.draft_model",
               "vllm.v1.spec_decode.suffix_decoding", "vllm.v1.worker.gpu.spec_decode")
OFFLOAD = ("vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector", "vllm.model_executor.offloader")
STRUCTURED_OUTPUT = ("vllm.v1.structured_output.backend_xgrammar", "vllm.v1.structured_output.backend_guidance",
                     "vllm.v1.structured_output.backend_outlines", "vllm.v1.structured_output.backend_lm_format_enforcer")

BACKENDS = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT")
"""What vLLM chooses from for an RTX 5090, first choice first (vllm/platforms/cuda.py)."""

WITHOUT = {
    "cohere_asr": "torchaudio", "funasr": "torchaudio", "midashenglm": "torchaudio",  # cuda-overrides.txt
    "kanana_v": "timm", "terratorch": "terratorch",  # not in a plain vLLM either
}
"""Models that are known not to import, and the package that they miss."""


def attempts() -> Any:
    """(name, what to call) for everything that must work."""
    for name in (*SERVE, *KERNELS, *SPECULATION, *OFFLOAD, *STRUCTURED_OUTPUT):
        yield name, lambda name=name: importlib.import_module(name)
    for model in pkgutil.iter_modules(importlib.import_module("vllm.model_executor.models").__path__):
        yield f"model {model.name}", lambda model=model.name: import_model(model)
    quantization: Any = importlib.import_module("vllm.model_executor.layers.quantization")
    for method in quantization.QUANTIZATION_METHODS:
        yield f"quantization {method}", lambda method=method: quantization.get_quantization_config(method)
    registry: Any = importlib.import_module("vllm.v1.attention.backends.registry")
    for backend in BACKENDS:
        yield f"attention {backend}", registry.AttentionBackendEnum[backend].get_class
    yield "FlashAttention 2", flash_attention


def import_model(name: str) -> None:
    """Raises whatever the import raises, and ImportError when a model that was known to miss a package misses none."""
    try:
        importlib.import_module(f"vllm.model_executor.models.{name}")
    except ModuleNotFoundError as error:
        if error.name != WITHOUT.get(name):
            raise
    else:
        if name in WITHOUT:
            raise ImportError(f"imports although {WITHOUT[name]} was to be missing: take it out of WITHOUT")


def flash_attention() -> None:
    """Raises ImportError with vLLM's own reason when the module that a 5090 uses does not load."""
    interface: Any = importlib.import_module("vllm.vllm_flash_attn.flash_attn_interface")
    if not interface.is_fa_version_supported(2):
        raise ImportError(interface.fa_version_unsupported_reason(2))


def main() -> int:
    failures, count = [], 0
    for name, attempt in attempts():
        count += 1
        try:
            attempt()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what the operator would see)
            failures.append(f"{name}: {type(error).__name__}: {error}")
    print("\n".join(failures) or f"ok   {count} imports", flush=True)
    return 5 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
