"""`auto`: what it becomes where an env line holds it in place of a value. Standard library only.

One file for the two who resolve it, so that they cannot disagree: the entrypoint at the start, and `make check` before it, on the host
(scripts/bundle/config/words.py reads this file where it lies).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTO = "auto"

SHARE, QUANTIZATION, SEQUENCES = "--gpu-memory-utilization", "--quantization", "--max-num-seqs"
WORDS = {
    SHARE: "the most that starts, measured by the entrypoint right before the start",
    QUANTIZATION: "what suits the checkpoint and the GPU, by the host where it knows both, else by the entrypoint",
    SEQUENCES: "as many as the KV cache holds, by the host: the entrypoint knows of no KV cache",
}
"""Every flag that takes the word, and who puts a value in its place."""

FP8 = "fp8_per_tensor"
FP8_CAPABILITY = (8, 9)
"""The first compute capability with 8-bit floating-point matrix products (NVIDIA Ada)."""

CONFIG, PARAMS, MODELOPT = "config.json", "params.json", "hf_quant_config.json"
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_FLOATS = ("", "auto", "bfloat16", "float16", "half", "float32", "float", "float64")
"""What weights may be stored as for the engine to hold them in 16 bits: it narrows the wider ones by itself."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a word became, and why; `value` "" is "not set"."""

    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.value or 'not set'}: {self.why}"


def by_checkpoint(model: str, folder: Path | None, dtype: str = "") -> Resolved | None:
    """ENGINE_QUANTIZATION=auto, as far as the checkpoint decides: None where it leaves it to the GPU (`by_gpu`).

    `model` is ENGINE_MODEL, `folder` where it lies (None: it is a hub name), and `dtype` ENGINE_DTYPE.
    """
    if folder is None:
        return Resolved(value="", why=f"{model} is a hub name, so that its config.json is not here to look at")
    try:
        config = read(folder)
    except ValueError as error:
        return Resolved(value="", why=str(error))
    if said := declared(config, folder):
        return Resolved(value="", why=f"the checkpoint brings its own method ({method(said) or 'unnamed'})")
    if dtype in ("float32", "float"):
        return Resolved(value="", why=f"ENGINE_DTYPE={dtype} asks for 32 bits")
    if (stored := _stored(config)) not in _FLOATS:
        return Resolved(value="", why=f"the checkpoint's weights are {stored}, not 16 bit")
    return None


def by_gpu(capability: tuple[int, int] | None, name: str = "the GPU") -> Resolved:
    """ENGINE_QUANTIZATION=auto for 16-bit weights, on the weakest GPU of the engine; None: on the CPU."""
    if capability is None:
        return Resolved(value="", why="the CPU engine computes with weights as they are stored")
    version = ".".join(map(str, capability))
    if capability < FP8_CAPABILITY:
        return Resolved(value="", why=f"16-bit weights, and {name} ({version}) has no 8-bit floating point")
    return Resolved(value=FP8, why=f"16-bit weights, and {name} ({version}) computes in 8-bit floating point")


def read(folder: Path) -> Mapping[str, Any]:
    """config.json, or what there is in its place of Mistral's own edition. Raises ValueError that says what is wrong."""
    path = next((folder / name for name in (CONFIG, PARAMS) if (folder / name).is_file()), folder / CONFIG)
    found = _object(path)
    said = found.get("quantization")
    return {"quantization_config": said} if path.name == PARAMS and said else found


def declared(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """How the checkpoint in `folder`, with that config.json, says that it is quantized; empty where it does not.

    As the engine looks (vLLM 0.33.0, transformers_utils/config.py and model_arch_config_convertor.py): quantization_config, else ModelOpt's own
    file, else compression_config, and then the same inside of the text model.
    """
    nested = [config[key] for key in _NESTED if isinstance(config.get(key), dict)]
    if isinstance(said := config.get("quantization_config"), dict) and said:
        return said
    if (folder / MODELOPT).is_file():
        try:
            said = _object(folder / MODELOPT).get("quantization")
        except ValueError:
            said = None  # the engine says what is wrong with the file
        if isinstance(said, dict) and said:
            return {"quant_method": "modelopt", **said}
    for one in (config, *nested):
        for key in ("quantization_config", "compression_config"):
            if isinstance(said := one.get(key), dict) and said:
                return said
    return {}


def method(said: Mapping[str, Any]) -> str:
    """The method's name, as the checkpoint has it, in lower case."""
    return str(said.get("quant_method") or said.get("quant_algo") or "").lower()


def _stored(config: Mapping[str, Any]) -> str:
    nested = [config[key] for key in _NESTED if isinstance(config.get(key), dict)]
    found = (one.get(key) for one in (config, *nested) for key in ("dtype", "torch_dtype"))
    return str(next(filter(None, found), "")).removeprefix("torch.")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise ValueError(f"{path} cannot be read ({reason})") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} cannot be read (not an object, or an empty one)")
    return found
