"""What the engine takes on a GPU beside weights and KV cache: an estimate, since vLLM measures it at start.

Fitted to a public start of vLLM 0.31.0 (Llama-3.1-8B-Instruct, A100 80 GB, all defaults: 15.26 GiB held, 14.96 of them weights, and a peak of
1.44 GiB above), and to 1.00 GiB of graphs for 51 sizes of Qwen3-8B's 36 layers (vLLM 0.26.0, H200).

Held against a start of our own that it was not fitted to (vLLM 0.26.0, H200, Qwen3-8B's shape in fp8, 8192 tokens and 256 sequences): 2.41 GiB
estimated; the engine said 1.32 for its peak, 0.22 for the rest and 0.55 for graphs, which that version did not keep out of the KV cache: 4 % more
cache than estimated. One start cannot say which part is too high, and too high is the safe side: nothing was changed for it.
"""

from bundle.fit.architectures import Weight
from bundle.fit.modelshape import Model
from bundle.fit.request import Request
from bundle.machine.devices import GIB, Device

LIBRARIES_BYTES = round(0.3 * GIB)
GRAPH_LAYER_BYTES = GIB / (51 * 36)
LOGIT_BYTES = 10  # bfloat16, float32 and a sampler's copy of each logit


def parts(model: Model, request: Request, device: Device, *, tokens: int, seqs: int) -> dict[str, int]:
    """Bytes of each part, for steps of `tokens` tokens and `seqs` sequences; the measured sum where `request` has one."""
    if request.overhead is not None:
        return {"measured": request.overhead}
    gpus, sizes = request.tensor_parallel, capture_sizes(request, device, tokens=tokens, seqs=seqs)
    found = {"libraries": LIBRARIES_BYTES,
             f"activations of {tokens:,} tokens": tokens * (model.width // gpus + 3 * model.hidden) * request.float_bytes,
             f"logits of {seqs:,} sequences": seqs * model.vocabulary * LOGIT_BYTES,
             f"graphs of {len(sizes)} sizes": round(len(sizes) * model.attention.depth * GRAPH_LAYER_BYTES)}
    if model.attention.latent_copies:
        found["second copy of MLA projections"] = model.attention.latent_copies * request.float_bytes // gpus
    if request.adapters:
        size = sum(_sides(model, weight, request) * weight.count for weight in model.weights if weight.kind in ("linear", "expert"))
        found[f"{request.adapters} LoRA adapters of rank {request.rank}"] = size * request.rank * request.adapters * request.float_bytes
    if model.towers and not request.text_only:
        # One step's worth of embeddings at least (v1/core/encoder_cache_manager.py, compute_mm_encoder_budget).
        found["cache of encoded images and sound"] = tokens * model.hidden * request.float_bytes
    if request.correction:
        found["what a start has found beside that"] = request.correction.bytes
    return found


def most_captured(request: Request, device: Device, *, tokens: int) -> int:
    """The largest batch that can have a CUDA graph, however many sequences there are (as `capture_sizes`)."""
    if request.captured:
        return max(request.captured)
    return min(request.largest_capture or (1024 if device.capability[0] == 10 else 512), tokens)


def _sides(model: Model, weight: Weight, request: Request) -> int:
    """Inputs and outputs of a linear layer on one GPU: the sides of an adapter's two matrices, which the engine holds beside it, zero until one is
    loaded (lora/layers/base_linear.py and fused_moe.py, create_lora_weights).

    The side that is as wide as the model is whole on every GPU, what is in between is split with the layer; fully sharded, both are.
    """
    packed, gpus, method = max(1, weight.packed), request.tensor_parallel, str(model.quantization.get("quant_method", ""))
    inputs, outputs = weight.columns * packed, weight.rows
    if packed > 1 and method.startswith("gptq"):
        inputs, outputs = weight.rows * packed, weight.columns
    elif packed > 1 and method.startswith("awq"):
        inputs, outputs = weight.rows, weight.columns * packed
    if request.sharded_adapters:
        return (inputs + outputs) // gpus
    return inputs // gpus + outputs if outputs == model.hidden != inputs else inputs + outputs // gpus


def capture_sizes(request: Request, device: Device, *, tokens: int, seqs: int) -> list[int]:
    """The batch sizes that CUDA graphs are captured for (vLLM 0.33.0, VllmConfig._set_cudagraph_sizes, without speculative decoding)."""
    if not request.graphs:
        return []
    if request.captured:
        return sorted({size for size in request.captured if size <= tokens})
    most = most_captured(request, device, tokens=tokens)
    largest = most if request.largest_capture else min(2 * seqs, most)
    small = range(1, min(largest, 32) + 1) if request.performance_mode == "interactivity" else (1, 2, 4)
    sizes = {*small, *range(8, min(largest + 1, 256), 8), *range(256, largest + 1, 16), tokens, *([] if request.largest_capture else [seqs])}
    return sorted(size for size in sizes if size <= largest)
