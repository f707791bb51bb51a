"""What is wrong with values that are each right alone: those that contradict each other, and those that are unwise."""

import ipaddress
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bundle.base.text import near
from bundle.config import catalogue
from bundle.config.catalogue import EXTENSIBLE, PREFIX, Catalogue, env_key, parse_number
from bundle.config.envfile import Entry, Problem
from bundle.config.keys import size_bytes
from bundle.machine import devices
from bundle.machine.devices import GIB

ENGINE_ADDRESS = {"ENGINE_HOST": "0.0.0.0", "ENGINE_PORT": "8000"}  # noqa: S104  (inside its container; the gateway alone publishes)
"""Where the gateway reaches the engine: fixed in compose.yaml and in the gateway's configuration."""

_SPLITS = ("ENGINE_TENSOR_PARALLEL_SIZE", "ENGINE_PIPELINE_PARALLEL_SIZE", "ENGINE_DATA_PARALLEL_SIZE")

LEAVE_S = 3
"""How long an engine still takes requests after SIGTERM while the gateway is told: LEAVE_S of docker/engine/entrypoint.py."""
CPU_ENGINE_GIB = 3.0
"""Peak of a start of the CPU engine without its KV cache (measured: 2.3 to 2.9)."""


@dataclass(frozen=True, kw_only=True)
class _Values:
    """The values that are set and right alone."""

    text: Mapping[str, str]
    given: frozenset[str]
    """Every key that stands in a file, also with an empty value."""
    catalogue: Catalogue

    @property
    def cuda(self) -> bool:
        return self.catalogue.target == "cuda"

    def __contains__(self, key: str) -> bool:
        return key in self.text

    def __getitem__(self, key: str) -> str:
        return self.text.get(key, "")

    def number(self, key: str) -> float | None:
        number = parse_number(self[key], "human_int")
        return parse_number(self[key], "float") if number is None else number

    def switched_on(self, key: str) -> bool:
        """Whether a library's own switch is on; they read 0 as off."""
        return self[key].lower() not in ("", "0", "false")


Finding = tuple[str, str, str]
"""Key, message, severity."""


def find(entries: Mapping[str, Entry], catalogue: Catalogue) -> Iterator[Problem]:
    """The contradictions among `entries`, which hold no value that is wrong alone."""
    values = _Values(text={key: entry.value for key, entry in entries.items() if entry.value}, given=frozenset(entries), catalogue=catalogue)
    for check in _CHECKS:
        for key, message, severity in check(values):
            yield Problem(file=entries[key].file, line=entries[key].line, key=key, message=message, severity=severity)


def _one_flag_set_twice(values: _Values) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for key in values.text:
        if flag := values.catalogue.find(key) if key.startswith(PREFIX) else None:
            if flag.name in first:
                yield key, f"sets {flag.name}, which {first[flag.name]} sets too. Delete one of the two lines.", "error"
            first.setdefault(flag.name, key)


def _deprecated(values: _Values) -> Iterator[Finding]:
    for key in values.text:
        flag = values.catalogue.find(key) if key.startswith(PREFIX) else None
        if flag and flag.deprecated:
            sentence = flag.help.rfind(". ", 0, flag.help.lower().find("deprecated"))
            yield key, f"vLLM {values.catalogue.version}: {textwrap.shorten(flag.help[sentence + 1:], 200)}", "warning"


def _batching(values: _Values) -> Iterator[Finding]:
    tokens, seqs, length = (values.number(f"ENGINE_MAX_{name}") for name in ("NUM_BATCHED_TOKENS", "NUM_SEQS", "MODEL_LEN"))
    if tokens is not None and seqs is not None and tokens < seqs:
        yield ("ENGINE_MAX_NUM_BATCHED_TOKENS", f"a step of {tokens:g} tokens cannot hold a token of each of ENGINE_MAX_NUM_SEQS={seqs:g} requests. "
               f"Use ENGINE_MAX_NUM_BATCHED_TOKENS={seqs:g} or more.", "error")
    if values["ENGINE_ENABLE_CHUNKED_PREFILL"] == "false" and tokens is not None and length is not None and tokens < length:
        yield ("ENGINE_ENABLE_CHUNKED_PREFILL", "without chunked prefill a whole prompt must fit one step, and "
               f"ENGINE_MAX_NUM_BATCHED_TOKENS={tokens:g} is less than ENGINE_MAX_MODEL_LEN={length:g}. Delete the line, or raise that.", "error")


def _graphs(values: _Values) -> Iterator[Finding]:
    largest, sizes = values.number("ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE"), values["ENGINE_CUDAGRAPH_CAPTURE_SIZES"].split()
    if largest is not None and sizes and all(size.isdigit() for size in sizes) and largest != max(map(int, sizes)):
        yield ("ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE", f"{largest:g} is not the largest of ENGINE_CUDAGRAPH_CAPTURE_SIZES={' '.join(sizes)}, "
               "and vLLM refuses the pair. Delete one of the two lines.", "error")


def _metrics(values: _Values) -> Iterator[Finding]:
    if values["ENGINE_DISABLE_LOG_STATS"] == "true":
        yield "ENGINE_DISABLE_LOG_STATS", "turns off the metrics that the health check and `make status` read. Delete the line.", "warning"
        if values["ENGINE_ENABLE_PER_REQUEST_METRICS"] == "true":
            yield "ENGINE_ENABLE_PER_REQUEST_METRICS", "needs the metrics that ENGINE_DISABLE_LOG_STATS turns off. Delete that line.", "error"


def _gpu_memory(values: _Values) -> Iterator[Finding]:
    share = values.number("ENGINE_GPU_MEMORY_UTILIZATION")
    if "ENGINE_GPU_MEMORY_UTILIZATION" in values and "ENGINE_KV_CACHE_MEMORY_BYTES" in values:
        yield "ENGINE_GPU_MEMORY_UTILIZATION", "not used: ENGINE_KV_CACHE_MEMORY_BYTES sizes the cache. Delete one of the two lines.", "warning"
    elif share is not None and values.cuda and devices.refusal(card := devices.find("rtx-5090"), share):
        total, free = card.total / GIB, card.free / GIB
        yield ("ENGINE_GPU_MEMORY_UTILIZATION", f"{share:g} × {total:.2f} GiB = {share * total:.2f} GiB is more than the {free:.2f} GiB that are "
               f"free on an RTX 5090 at start: vLLM would not start there. At most {int(free / total * 100) / 100:g} without a desktop; "
               "use auto, or try 0.93.", "warning")


def _container_memory(values: _Values) -> Iterator[Finding]:
    if "HOST_ENGINE_MEMORY" not in values:
        return
    limit = size_bytes(values["HOST_ENGINE_MEMORY"])
    if "HOST_SHM_SIZE" in values and size_bytes(values["HOST_SHM_SIZE"]) >= limit:
        yield "HOST_SHM_SIZE", f"shared memory counts within HOST_ENGINE_MEMORY={values['HOST_ENGINE_MEMORY']}. Make it less.", "error"
    cache = values.number("VLLM_CPU_KVCACHE_SPACE")
    if not values.cuda and cache is not None and (cache + CPU_ENGINE_GIB) * 2**30 > limit:
        yield ("VLLM_CPU_KVCACHE_SPACE", f"{cache:g} GiB of KV cache and about {CPU_ENGINE_GIB:g} GiB for the engine are more than "
               f"HOST_ENGINE_MEMORY={values['HOST_ENGINE_MEMORY']}: the kernel would kill it. Lower the one, or raise the other.", "warning")


def _allocator(values: _Values) -> Iterator[Finding]:
    names = [name for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF") if name in values]
    if len(names) == 2:
        yield names[1], f"{names[0]} is set too, and PyTorch's parts do not agree which one wins. Delete one of the two lines.", "error"
    offload = next((key for key in ("ENGINE_KV_OFFLOADING_SIZE", "ENGINE_KV_TRANSFER_CONFIG") if key in values), "")
    for name in names:
        options = values[name].replace(" ", "").lower()
        if "expandable_segments:true" in options and offload and values["ENGINE_ENABLE_CUMEM_ALLOCATOR"] != "true":
            yield name, f"vLLM does not start with expandable_segments:True and {offload} together. Delete one of the two lines.", "error"
        if "backend:cudamallocasync" in options:
            yield (name, "cudaMallocAsync breaks vLLM's memory pools (profiling, CUDA graphs, sleep mode). Delete the line; "
                   f"if memory fragments, use {name}=expandable_segments:True.", "warning")


def _compile_cache(values: _Values) -> Iterator[Finding]:
    if not values.cuda:
        return
    for name in ("CUDA_DISABLE_PTX_JIT", "CUDA_DISABLE_JIT"):
        if values.switched_on(name):
            yield name, "FlashAttention 2 has no code for an RTX 5090 (sm_120) but PTX, and could not be loaded. Delete the line.", "error"
    if values.switched_on("CUDA_CACHE_DISABLE"):
        yield "CUDA_CACHE_DISABLE", "every start would compile FlashAttention 2 for an RTX 5090 again, for minutes. Delete the line.", "warning"
    if values.switched_on("VLLM_ENABLE_CUDA_COMPATIBILITY"):
        yield "VLLM_ENABLE_CUDA_COMPATIBILITY", "a GeForce knows no forward compatibility (CUDA error 803). Delete the line.", "warning"


def _development_routes(values: _Values) -> Iterator[Finding]:
    if values.switched_on("VLLM_SERVER_DEV_MODE"):
        yield "VLLM_SERVER_DEV_MODE", "opens routes that reset and suspend the engine; only the gateway's list of paths guards them.", "warning"


def _address(values: _Values) -> Iterator[Finding]:
    for key, expected in ENGINE_ADDRESS.items():
        if key in values.given and values[key] != expected:
            yield key, f"must be {expected}, where the gateway reaches the engine. GATEWAY_BIND and GATEWAY_PORT say where it is published.", "error"
    bind = values["GATEWAY_BIND"]
    if bind and not ipaddress.ip_address(bind).is_loopback and "GATEWAY_API_KEYS_FILE" not in values:
        yield ("GATEWAY_BIND", f"{bind} lets other hosts in, and no key is asked for. "
               "Set GATEWAY_API_KEYS_FILE to a file with one key per line, or use GATEWAY_BIND=127.0.0.1.", "error")


def _stopping(values: _Values) -> Iterator[Finding]:
    grace, drain = values.number("HOST_STOP_GRACE_S"), values.number("ENGINE_SHUTDOWN_TIMEOUT")
    if grace is not None and drain is not None and grace <= drain + LEAVE_S:
        yield ("HOST_STOP_GRACE_S", f"{grace:g} s is not more than ENGINE_SHUTDOWN_TIMEOUT={drain:g} and the {LEAVE_S:g} s before it in which the "
               f"gateway is told: Docker would kill the engine while it finishes its requests. Use HOST_STOP_GRACE_S={drain + 15:g}.", "error")


def _image(values: _Values) -> Iterator[Finding]:
    other = "cpu" if values.cuda else "cuda"
    if other in re.split(r"[/:@._-]", values["IMAGE_ENGINE"]):
        yield ("IMAGE_ENGINE", f"{values['IMAGE_ENGINE']} is the name of a {other} image, and IMAGE_TARGET={values['IMAGE_TARGET']}. "
               "Change both lines, or neither.", "error")


def _gpus(values: _Values) -> Iterator[Finding]:
    there = values.number("HOST_GPU_COUNT")
    wanted = _parallel(values)
    if values.cuda and there is not None and wanted > there:
        yield (next(key for key in _SPLITS if key in values),
               f"splits the model over {wanted:g} GPUs, and the engine gets HOST_GPU_COUNT={there:g}. Use HOST_GPU_COUNT={wanted:g}.", "error")
    copies, here = values.number("ENGINE_DATA_PARALLEL_SIZE") or 1, values.number("ENGINE_DATA_PARALLEL_SIZE_LOCAL") or 1
    if here > copies:
        yield ("ENGINE_DATA_PARALLEL_SIZE_LOCAL", f"is more than ENGINE_DATA_PARALLEL_SIZE={copies:g}, all the copies that there are. "
               "Delete the line.", "error")


def _visible_gpus(values: _Values) -> Iterator[Finding]:
    """In its container an engine's GPUs are numbered from 0, whichever of the host's they are."""
    named, there = values["CUDA_VISIBLE_DEVICES"], values.number("HOST_GPU_COUNT")
    if values.cuda and "NVIDIA_VISIBLE_DEVICES" in values:
        yield "NVIDIA_VISIBLE_DEVICES", "Docker sets it from HOST_GPUS. Delete the line; HOST_GPUS chooses among the host's GPUs.", "error"
    if not values.cuda or not named or there is None:
        return
    words = [word.strip() for word in named.split(",")]
    beyond = next((word for word in words if word.isdigit() and int(word) >= there), "")
    if beyond:
        yield ("CUDA_VISIBLE_DEVICES", f"the engine's container holds {there:g} GPU{'s' if there > 1 else ''}, numbered from 0, and {beyond} "
               f"is none of them. Delete the line; HOST_GPUS={named} chooses among the host's.", "error")
    elif any(not word.isdigit() and not word.startswith(("GPU-", "MIG-")) for word in words):
        yield ("CUDA_VISIBLE_DEVICES", f"{named!r} hides every GPU from the engine, or the ones from the first such word on. Delete the line; "
               "HOST_GPUS chooses among the host's.", "error")
    elif (wanted := _parallel(values)) > len(words):
        yield ("CUDA_VISIBLE_DEVICES", f"shows the engine {len(words)} of its GPUs, and it splits the model over {wanted:g}. Delete the line.",
               "error")


def _parallel(values: _Values) -> float:
    """Over how many GPUs one engine splits its model."""
    return math.prod(values.number(key) or 1 for key in _SPLITS)


def _adapters(values: _Values) -> Iterator[Finding]:
    if "ENGINE_LORA_MODULES" not in values:
        return
    if values["ENGINE_ENABLE_LORA"] != "true":
        yield "ENGINE_LORA_MODULES", "no adapter is served without ENGINE_ENABLE_LORA=true. Add that line, or delete this one.", "error"
    for name, path in catalogue.adapters(values["ENGINE_LORA_MODULES"]).items():
        if not path or re.search(r"\s", name):
            yield "ENGINE_LORA_MODULES", f"{name!r} is not NAME=PATH, or its name has a blank. Write sql=/adapters/sql.", "error"
        elif path.startswith("/adapters/") and "MODEL_ADAPTERS_DIR" not in values:
            yield ("ENGINE_LORA_MODULES", f"nothing is mounted at /adapters, where {name} is looked for. Set MODEL_ADAPTERS_DIR to the folder on "
                   "this host with the adapters' folders.", "error")
        if name in values["ENGINE_SERVED_MODEL_NAME"].split():
            yield "ENGINE_LORA_MODULES", f"{name} is the model's own name (ENGINE_SERVED_MODEL_NAME). Give the adapter another.", "error"


def _tools(values: _Values) -> Iterator[Finding]:
    parser = values["ENGINE_TOOL_CALL_PARSER"]
    if values["ENGINE_ENABLE_AUTO_TOOL_CHOICE"] == "true" and not parser:
        yield ("ENGINE_ENABLE_AUTO_TOOL_CHOICE", "the engine refuses it without a parser of the model's tool calls. Add ENGINE_TOOL_CALL_PARSER= "
               "with the model's (hermes, llama3_json, qwen3_coder, …), or delete the line.", "error")
    for name, plugin in EXTENSIBLE.items():
        flag, chosen = values.catalogue.flags.get(name), values[env_key(name)]
        if chosen and flag and flag.known and chosen not in flag.known and not values[env_key(plugin)]:
            yield (flag.key, f"vLLM {values.catalogue.version} has no parser {chosen!r}, and {env_key(plugin)} names no file that brings it."
                   f"{near(chosen, flag.known)}", "error")


def _replicas(values: _Values) -> Iterator[Finding]:
    gpus = values["HOST_GPUS"].split(",") if values.cuda and values["HOST_GPUS"] else []
    replicas, each = values.number("HOST_REPLICAS"), values.number("HOST_GPU_COUNT")
    if gpus and replicas and each and len(gpus) != replicas * each:
        yield ("HOST_GPUS", f"names {len(gpus)}, and HOST_REPLICAS={replicas:g} engines with HOST_GPU_COUNT={each:g} take {replicas * each:g}. "
               "Name as many, or leave it empty for the first ones.", "error")
    if len(set(gpus)) < len(gpus):
        yield "HOST_GPUS", "names a GPU twice, and each engine takes most of its GPU's memory. Name each once.", "error"
    if values["HOST_ACCELERATOR"] == "cuda-cdi" and (gpus or (replicas or 1) > 1):
        yield "HOST_ACCELERATOR", "gives an engine all GPUs, and HOST_GPUS or HOST_REPLICAS divide them. Leave one of the two out.", "error"


def _model(values: _Values) -> Iterator[Finding]:
    model = values["ENGINE_MODEL"]
    if model and not model.startswith("/") and values["HOST_ENGINE_OFFLINE"] == "true":
        yield ("ENGINE_MODEL", f"{model} is a hub name, and the engine has no network. Set MODEL_DIR to a directory that holds the model, "
               "or HOST_ENGINE_OFFLINE=false to let the engine download it.", "error")
    if "MODEL_DIR" in values and not (model == "/model" or model.startswith("/model/")):
        yield "ENGINE_MODEL", f"{model} is served, and MODEL_DIR={values['MODEL_DIR']} is not. Delete one of the two lines.", "warning"


_CHECKS: tuple[Callable[[_Values], Iterator[Finding]], ...] = (
    _one_flag_set_twice, _deprecated, _batching, _graphs, _metrics, _gpu_memory, _container_memory, _allocator, _compile_cache, _development_routes,
    _address, _stopping, _image, _gpus, _visible_gpus, _adapters, _tools, _replicas, _model)
