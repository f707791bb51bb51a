"""What of a deployment's settings decides about memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bundle.base.errors import ConfigurationError
from bundle.config import catalogue
from bundle.config.keys import size_bytes
from bundle.config.settings import Settings
from bundle.fit import drafts
from bundle.fit.drafts import Draft
from bundle.machine.devices import GIB

AUTO = "auto"
ALL_THAT_FIT = -1
"""As a number of sequences: ENGINE_MAX_NUM_SEQS=auto."""
DEFAULT_UTILIZATION = 0.92  # vLLM's own

_FLAGS = ("--gpu-memory-utilization", "--dtype", "--quantization", "--kv-cache-dtype", "--max-model-len", "--max-num-seqs",
          "--max-num-batched-tokens", "--kv-cache-memory-bytes", "--tensor-parallel-size", "--pipeline-parallel-size", "--block-size",
          "--cudagraph-capture-sizes", "--max-cudagraph-capture-size", "--performance-mode", "--enforce-eager", "--optimization-level",
          "--compilation-config", "--async-scheduling", "--cpu-offload-gb", "--disable-hybrid-kv-cache-manager", "--disable-sliding-window",
          "--enable-lora", "--max-loras", "--max-lora-rank", "--fully-sharded-loras", "--language-model-only", "--hf-overrides",
          "--enable-prefix-caching", "--mamba-ssm-cache-dtype", "--speculative-config", "--spec-method", "--spec-model", "--spec-tokens")
_KEYS = ("HOST_ENGINE_MEMORY", "HOST_REQUEST_TOKENS", "IMAGE_TARGET", "VLLM_CPU_KVCACHE_SPACE")
_UNCOUNTED = {"--kv-cache-dtype-skip-layers": "layers that keep 16-bit keys and values"}


@dataclass(frozen=True, kw_only=True)
class Correction:
    """By how many bytes an estimated overhead was too low (negative: too high) at the start of `since`."""

    since: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """The memory part of a deployment; None is not set: vLLM's own default."""

    target: str
    float_bytes: int = 2
    quantization: str = ""
    kv_dtype: str = AUTO
    max_model_len: int | None = None
    """-1: the largest that fits."""
    max_num_seqs: int | None = None
    """ALL_THAT_FIT: as many as the KV cache holds requests of `request_tokens`."""
    request_tokens: int = 0
    """Tokens of prompt and answer together that a request is expected to have; 0 where that is not known."""
    max_num_batched_tokens: int | None = None
    utilization: float | None = DEFAULT_UTILIZATION
    """None: auto, the most that starts."""
    kv_memory: int | None = None
    """Bytes of KV cache on each GPU, instead of what `utilization` leaves."""
    tensor_parallel: int = 1
    block_tokens: int | None = None
    captured: tuple[int, ...] = ()
    largest_capture: int | None = None
    graphs: bool = True
    performance_mode: str = ""
    async_scheduling: bool = True
    offloaded: int = 0
    """Bytes of weights that stay in the host's memory, for each GPU."""
    hybrid_cache: bool = True
    """False: the cache keeps all tokens of layers with a window too."""
    windows: bool = True
    """False: no layer has a window, and no sequence is longer than it was."""
    allow_long: bool = False
    host_memory: int = 0
    overhead: int | None = None
    """A measured overhead in bytes, instead of the estimate."""
    correction: Correction | None = None
    """What a start on this host has found the estimated overhead to be wrong by."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    """What ENGINE_HF_OVERRIDES changes of the model's config.json."""
    prefix_caching: bool = True
    """False: no state of a hybrid's layers is kept for it."""
    state_type: str = ""
    """The data type of the states of layers without keys and values; "": the model's."""
    draft: Draft | None = None
    """Who guesses ahead."""
    adapters: int = 0
    """LoRA adapters that a batch can use, for which buffers of `rank` are held."""
    rank: int = 16
    sharded_adapters: bool = False
    """Both matrices of an adapter are split over the GPUs, not one side of each."""
    text_only: bool = False
    """Images and sound are not taken, and what a tower makes of them is not kept."""
    uncounted: tuple[str, ...] = ()
    """What takes memory too, and is not in the sum."""


def requested(settings: Settings, *, overhead: int | None = None) -> Request:
    """The memory part of `settings`. Raises ConfigurationError for a value of it that is wrong, or that fit cannot compute."""
    target = settings.image_target
    flags = catalogue.load(target if target in catalogue.TARGETS else "cuda", root=settings.root)
    names = {key: flag.name if (flag := flags.find(key)) else key for key in settings.entries}
    values = {names[key]: entry.value for key, entry in settings.entries.items() if entry.value}
    share, length = values.get("--gpu-memory-utilization", ""), values.get("--max-model-len", "")
    wrong = [str(problem) for problem in settings.errors if names.get(problem.key, problem.key) in (*_FLAGS, *_KEYS)]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    if values.get("--pipeline-parallel-size", "1") != "1":
        raise ConfigurationError("ENGINE_PIPELINE_PARALLEL_SIZE: fit computes engines of one stage only", fix="use ENGINE_TENSOR_PARALLEL_SIZE")

    def number(name: str) -> int | None:
        found = catalogue.parse_number(values.get(name, ""), "human_int")
        return None if found is None else int(found)

    kv_memory = number("--kv-cache-memory-bytes")
    if target == "cpu" and (space := number("VLLM_CPU_KVCACHE_SPACE")) is not None:
        kv_memory = space * GIB
    compilation = values.get("--compilation-config", "")
    no_graphs = compilation.startswith("{") and json.loads(compilation).get("cudagraph_mode") == "NONE"
    return Request(
        target=target, float_bytes=4 if values.get("--dtype") in ("float32", "float") else 2, quantization=values.get("--quantization", ""),
        kv_dtype=values.get("--kv-cache-dtype", AUTO), max_model_len=-1 if length == AUTO else number("--max-model-len"),
        max_num_seqs=ALL_THAT_FIT if values.get("--max-num-seqs") == AUTO else number("--max-num-seqs"),
        request_tokens=number("HOST_REQUEST_TOKENS") or 0, max_num_batched_tokens=number("--max-num-batched-tokens"),
        utilization=None if share == AUTO else float(share or DEFAULT_UTILIZATION), kv_memory=kv_memory,
        tensor_parallel=number("--tensor-parallel-size") or 1, block_tokens=number("--block-size"),
        captured=tuple(int(size) for size in values.get("--cudagraph-capture-sizes", "").split()),
        largest_capture=number("--max-cudagraph-capture-size"), performance_mode=values.get("--performance-mode", ""),
        graphs=not (no_graphs or values.get("--enforce-eager") == "true" or values.get("--optimization-level") == "0"),
        async_scheduling=target == "cuda" and values.get("--async-scheduling") != "false",
        offloaded=round(float(values.get("--cpu-offload-gb", "0")) * GIB), hybrid_cache=values.get("--disable-hybrid-kv-cache-manager") != "true",
        windows=values.get("--disable-sliding-window") != "true", allow_long=values.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1",
        host_memory=size_bytes(values["HOST_ENGINE_MEMORY"]) if "HOST_ENGINE_MEMORY" in values else 0, overhead=overhead,
        hf_overrides=json.loads(values.get("--hf-overrides", "{}")), prefix_caching=values.get("--enable-prefix-caching") != "false",
        draft=drafts.of(settings),
        state_type=values.get("--mamba-ssm-cache-dtype", AUTO).replace(AUTO, ""),
        adapters=(number("--max-loras") or 1) if values.get("--enable-lora") == "true" else 0, rank=number("--max-lora-rank") or 16,
        sharded_adapters=values.get("--fully-sharded-loras") == "true",
        text_only=values.get("--language-model-only") == "true",
        uncounted=tuple(what for name, what in _UNCOUNTED.items() if name in values))

