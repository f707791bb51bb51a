"""Runs inside the CPU engine's image: what the engine itself makes of configs, without weights, GPU or network. Prints one JSON object a line.

    python kvspec_probe.py CONFIGS.json

CONFIGS.json is {name: config.json's values}. An answer: {"model", "architecture", "length", "token_bytes" (of one token while it is inside every
window), "layers" {kind: number}, "windows" [tokens], "state_bytes" (of one sequence, once), "parameters"}, or with "unbuilt" what
ModelConfig alone says, or {"model", "error"}.
The engine is asked as vLLM's own worker does it: EngineArgs.create_engine_config, the model's class on torch's meta device, get_kv_cache_spec.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
import time
import types
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

WORKERS = 2
GUESSING, DRAFT = "_speculative", "_draft"
"""Beside config.json's values: what speculative decoding is asked for, and the config.json of its draft."""
LONGEST = 16_384  # tokens of the sequence that blocks are planned for


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, which the CPU image leaves out: its names are imported, and nothing of it is called here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return Hollow(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class Named(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Hollow(types.ModuleType):
    __version__ = "0.28.0"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {"__init__": lambda self, *_, **__: None, "__call__": lambda self, *_, **__: None})


def prepare() -> None:
    """vLLM, imported once, before the children are forked."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
                   "TRANSFORMERS_VERBOSITY": "error"}
    sys.meta_path.append(Absent())
    torch = import_module("torch")
    # Without, a CPU that has no bfloat16 keeps Mamba's states in float32.
    torch.cpu._is_avx512_bf16_supported = lambda: False
    torch.set_num_threads(1)
    activation = import_module("vllm.model_executor.layers.activation")
    registry = import_module("vllm.model_executor.models.registry")
    for name in ("vllm.v1.worker.gpu.attn_utils", "vllm.v1.worker.gpu_model_runner"):
        import_module(name)
    made = activation.GeluAndMulSparse.__init__

    def on_the_cpu(self: Any, *arguments: Any, **more: Any) -> None:
        with torch.device("cpu"):
            made(self, *arguments, **more)

    activation.GeluAndMulSparse.__init__ = on_the_cpu
    # The engine looks at a model's class in a process of its own, 7 s each; here the child is that process.
    registry._LazyRegisteredModel.inspect_model_cls = lambda self: registry._ModelInfo.from_model_cls(self.load_model_cls())


def ask(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    torch, vllm_config, state = import_module("torch"), import_module("vllm.config"), import_module("vllm.distributed.parallel_state")
    initialize_model = import_module("vllm.model_executor.model_loader.utils").initialize_model
    default_dtype = import_module("vllm.utils.torch_utils").set_default_torch_dtype
    mamba = import_module("vllm.v1.kv_cache_interface").MambaSpec

    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in (GUESSING, DRAFT)}))
    if config.get(DRAFT):
        (folder / "draft").mkdir()
        (folder / "draft/config.json").write_text(json.dumps(config[DRAFT]))
    guessing = {**config.get(GUESSING, {}), **({"model": str(folder / "draft")} if config.get(DRAFT) else {})} or None
    with vllm_config.set_current_vllm_config(vllm_config.VllmConfig()):
        state.init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        state.initialize_model_parallel(1, 1)
    asked = import_module("vllm.engine.arg_utils").EngineArgs(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, dtype="bfloat16",
        speculative_config=guessing).create_engine_config()
    model = asked.model_config
    length = model.max_model_len
    model.max_model_len = min(length, LONGEST)
    parallel = asked.parallel_config
    told = {"architecture": model.architecture, "length": length, "mla": model.use_mla, "hybrid": model.is_hybrid,
            "attention": model.attn_type, "kv_heads": model.get_num_kv_heads(parallel), "head_size": model.get_head_size(),
            "depth": model.get_num_layers(parallel)}
    try:
        with vllm_config.set_current_vllm_config(asked), default_dtype(model.dtype), torch.device("meta"):
            built = initialize_model(vllm_config=asked, model_config=model)
            if guessing and guessing["method"] != "ngram":
                build_draft(asked)
    except Exception as error:  # noqa: BLE001  ModelConfig has answered all the same
        return {**told, "unbuilt": f"{type(error).__name__}: {str(error)[:200]}"}
    with vllm_config.set_current_vllm_config(asked):
        import_module("vllm.platforms").current_platform.update_block_size_for_backend(asked)
        specs = import_module("vllm.v1.worker.gpu.attn_utils").get_kv_cache_spec(asked)
    kept = [spec for spec in specs.values() if not isinstance(spec, mamba)]
    states = [spec for spec in specs.values() if isinstance(spec, mamba)]
    return {
        **told, "token_bytes": round(sum(getattr(spec, "real_page_size_bytes", spec.page_size_bytes) / spec.block_size for spec in kept)),
        "layers": dict(Counter(type(spec).__name__ for spec in specs.values())),
        "windows": sorted({int(tokens) for spec in kept for key in ("sliding_window", "attention_chunk_size")
                           if (tokens := getattr(spec, key, None))}),
        "state_bytes": sum(torch.Size(shape).numel() * dtype.itemsize for spec in states
                           for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)),
        "parameters": sum(one.numel() for one in built.parameters()), "block": asked.cache_config.block_size, **planned(asked, specs)}


def build_draft(asked: Any) -> None:
    """The draft beside the model, whose layers then stand in the same list (v1/spec_decode/llm_base_proposer.py, draft_model.py)."""
    initialize_model = import_module("vllm.model_executor.model_loader.utils").initialize_model
    guessing = asked.speculative_config
    if guessing.method == "draft_model":
        own = import_module("vllm.config.utils").replace(asked, model_config=guessing.draft_model_config)
        initialize_model(vllm_config=own, model_config=guessing.draft_model_config, prefix="draft_model")
    else:
        initialize_model(vllm_config=asked, model_config=guessing.draft_model_config)


def planned(asked: Any, specs: Any) -> dict[str, Any]:
    """How the engine would cut 20 GiB into blocks for these layers."""
    if not specs:
        return {}
    kv_cache_utils, backends = import_module("vllm.v1.core.kv_cache_utils"), import_module("vllm.v1.attention.backends.utils")
    used = import_module("vllm.distributed.kv_transfer.kv_connector.utils").get_current_attn_backends(asked)
    backends.resolve_kv_cache_layout(asked, [[layout.name for layout in backends.get_supported_kv_cache_layouts(used)]], specs.values())
    groups = kv_cache_utils.get_kv_cache_groups(asked, dict(specs))
    cut = kv_cache_utils.get_kv_cache_config_from_groups(asked, groups, 20 * 2**30)
    return {"in_flight": asked.max_in_flight_tokens, "blocks": cut.num_blocks,
            "sequence_bytes": kv_cache_utils._max_memory_usage_bytes_from_groups(asked, groups),
            "groups": [f"{len(group.layer_names)} {type(group.kv_cache_spec).__name__}" for group in groups]}


def answer(name: str, config: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        try:
            return {"model": name, **ask(Path(folder), config)}
        except BaseException as error:  # noqa: BLE001  whatever the engine raises is its answer
            at = error.__traceback__
            while at and at.tb_next:
                at = at.tb_next
            where = f"{at.tb_frame.f_code.co_filename.rpartition('site-packages/')[2]}:{at.tb_lineno}" if at else ""
            return {"model": name, "error": f"{type(error).__name__}: {str(error)[:400]}", "at": where}


def main(path: str) -> None:
    configs = json.loads(Path(path).read_text())
    prepare()
    running: set[int] = set()
    for name, config in configs.items():
        while len(running) >= WORKERS:
            running.discard(os.wait()[0])
        sys.stdout.flush()
        if child := os.fork():
            running.add(child)
            continue
        line = json.dumps({**answer(name, config), "cpu_s": round(time.process_time(), 2)}, default=str)
        os.write(1, f"{line}\n".encode())
        os._exit(0)
    while running:
        running.discard(os.wait()[0])


if __name__ == "__main__":
    main(sys.argv[1])
