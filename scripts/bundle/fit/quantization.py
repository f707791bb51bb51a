"""How many bytes a weight takes on the device: as it is stored, or as the engine quantizes it while loading."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from bundle.base.errors import ConfigurationError
from bundle.fit.architectures import Weight
from bundle.fit.safetensors import DTYPE_BITS

_FLOATS = ("F64", "F32", "F16", "BF16")
_PER_TENSOR = 1 << 62
_BOTH = frozenset({"linear", "expert"})
_EXPERTS = frozenset({"expert"})


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Bits of one element, and `group_bytes` of scales for each `group` elements (0: for each row) of the `kinds` it covers."""

    name: str
    bits: int
    group: int = _PER_TENSOR
    group_bytes: float = 4
    kinds: frozenset[str] = _BOTH

    def bytes(self, weight: Weight) -> int:
        elements = weight.rows * weight.columns
        scales = ceil(ceil(elements / (self.group or weight.columns)) * self.group_bytes)
        return weight.count * (ceil(elements * self.bits / 8) + scales)


ONLINE = {scheme.name: scheme for scheme in (
    Scheme(name="fp8_per_tensor", bits=8),
    Scheme(name="fp8", bits=8),  # on an unquantized checkpoint: redirected to fp8_per_tensor
    Scheme(name="fp8_per_channel", bits=8, group=0),
    Scheme(name="fp8_per_block", bits=8, group=128 * 128),
    Scheme(name="mxfp8", bits=8, group=32, group_bytes=1),
    Scheme(name="nvfp4_per_token", bits=4, group=16, group_bytes=1),
    Scheme(name="int8_per_channel_weight_only", bits=8, group=0, kinds=_EXPERTS),
    Scheme(name="experts_int8", bits=8, group=0, kinds=_EXPERTS),
)}
"""ENGINE_QUANTIZATION on a checkpoint that is not quantized: linear layers and experts shrink, embeddings and head stay."""


def online(name: str) -> Scheme | None:
    """What the flag --quantization `name` makes of unquantized weights; None for "". Raises ConfigurationError for one that needs a checkpoint."""
    if name in ("", "None"):
        return None
    if name not in ONLINE:
        raise ConfigurationError(f"ENGINE_QUANTIZATION={name}: the checkpoint is not quantized, and fit knows of no {name} made while loading",
                                 fix=f"delete the line, or use one of: {', '.join(ONLINE)}")
    return ONLINE[name]


def stored(config: Mapping[str, Any]) -> Scheme | None:
    """How the checkpoint that `config` (its quantization_config) describes stores its weights; None where fit does not know the method."""
    method = str(config.get("quant_method") or config.get("quant_algo") or "").lower()
    bits = int(config.get("bits") or config.get("w_bit") or 4)
    group = max(0, int(config.get("group_size") or config.get("q_group_size") or 128))  # -1: one group is a row
    if method in ("gptq", "awq", "auto_round"):
        return Scheme(name=f"{method} {bits} bit", bits=bits, group=group, group_bytes=2 + bits / 8)
    if method in ("fp8", "fbgemm_fp8"):
        rows, columns = config.get("weight_block_size") or (0, 0)
        return Scheme(name="fp8", bits=8, group=rows * columns or _PER_TENSOR)
    if method == "mxfp4":
        return Scheme(name="mxfp4", bits=4, group=32, group_bytes=1, kinds=_EXPERTS)
    if method == "compressed-tensors":
        return _compressed(config)
    if method.startswith("modelopt") or method in ("nvfp4", "fp4"):
        algorithm = str((config.get("quantization") or config).get("quant_algo") or method).upper()
        return Scheme(name=algorithm.lower(), bits=4, group=16, group_bytes=1) if "FP4" in algorithm else Scheme(name="fp8", bits=8)
    return None


def _compressed(config: Mapping[str, Any]) -> Scheme | None:
    groups = list((config.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if groups else {}
    if not weights.get("num_bits"):
        return None
    bits, size = int(weights["num_bits"]), int(weights.get("group_size") or 0)
    if weights.get("type") == "float" and bits == 4:
        return Scheme(name="nvfp4", bits=4, group=16, group_bytes=1)
    strategy = str(weights.get("strategy") or "")
    group = size if size > 0 else 0 if strategy == "channel" else 128 * 128 if strategy == "block" else _PER_TENSOR
    zero_point = 0.0 if weights.get("symmetric", True) else bits / 8
    return Scheme(name=f"compressed-tensors {bits} bit", bits=bits, group=group, group_bytes=2 + zero_point)


DEPRECATED = ("fbgemm_fp8", "fp_quant")
"""Methods that the engine takes with --allow-deprecated-quantization alone (model_executor/layers/quantization/__init__.py)."""

AUTO_ROUND = "auto-round"
"""What the engine knows under another name: inc."""
_NAMES = {"awq": ("auto_awq", "awq", "awq_marlin"), "gptq": ("auto_gptq", "gptq", "gptq_marlin"), "fp8": ("deepseek_v4_fp8", "fp8")}
"""One method under its several names, as the engine takes them for a checkpoint of the first one's."""
_WHILE_LOADING = (*ONLINE, "deepseek_v4_fp8", "gpt_oss_mxfp4", "humming", "mxfp4")
"""What the engine takes for weights that are not quantized."""


def method(config: Mapping[str, Any]) -> str:
    """The method that a checkpoint's `config` (its quantization_config) names, as the engine spells it; "" where it names none."""
    return str(config.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")


def takes(config: Mapping[str, Any], wanted: str, *, model_type: str = "", target: str = "cuda") -> bool:
    """Whether the engine `target` takes --quantization `wanted` for the checkpoint that `config` describes ({}: it is not quantized).

    As vLLM decides it (0.33.0, config/model.py, _verify_quantization, and each method's override_quantization_method); a contract test asks both
    engines for every pair.
    """
    own = method(config)
    if wanted in ("", "None") or not config:
        return wanted in ("", "None", *_WHILE_LOADING)
    if own == "mxfp4" and model_type == "gpt_oss":  # overridden, whatever is asked for
        return wanted != "humming"
    if wanted == "humming" or own == AUTO_ROUND or (own.startswith("modelopt") and _is_overridden(config)):
        return True
    if wanted == "moe_wna16":
        return own == wanted or _goes_to_moe_wna16(own, config, target)
    return wanted in (("awq",) if own == "awq" and target == "cpu" else _NAMES.get(own, (own,)))


def _is_overridden(config: Mapping[str, Any]) -> bool:
    inner = config.get("quantization")
    algorithm = str((inner if isinstance(inner, Mapping) else config).get("quant_algo", "")).upper()
    return algorithm in ("FP8", "MIXED_PRECISION") or "FP4" in algorithm or "MXFP8" in algorithm


def _goes_to_moe_wna16(own: str, config: Mapping[str, Any], target: str) -> bool:
    if own == "gptq":
        return config.get("bits") in (4, 8) and not (config.get("desc_act") and config.get("group_size") != -1)
    return own == "awq" and config.get("bits") == 4 and target != "cpu"


def kv_cache(config: Mapping[str, Any], *, latent: bool = False) -> str:
    """The KV cache type that a quantized checkpoint asks for where the flag says "auto"; "" when it asks for none that the engine heeds.

    As vLLM 0.33.0 does it: ModelOpt's by name or scheme (utils/torch_utils.py), and the scheme of compressed-tensors, of whatever kind, as fp8
    (model_executor/layers/attention/attention.py), which layers with one `latent` vector (MLA) do not look at. No other method's.
    """
    method = str(config.get("quant_method") or "").lower()
    if method == "compressed-tensors":
        return "fp8" if config.get("kv_cache_scheme") is not None and not latent else ""
    if not method.startswith("modelopt"):
        return ""
    inner = config.get("quantization")
    inner = inner if isinstance(inner, Mapping) else config
    said = inner.get("kv_cache_scheme") or config.get("kv_cache_scheme") or inner.get("kv_cache_quant_algo") or config.get("kv_cache_quant_algo")
    if isinstance(said, Mapping):
        bits = said.get("num_bits") if said.get("type") == "float" else 0
        return "fp8" if bits == 8 and said.get("dynamic") is False else "nvfp4" if bits == 4 else ""
    return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(str(said).lower(), "")


def loaded_bytes(weight: Weight, *, element_bits: int, scheme: Scheme | None) -> int:
    """Bytes of `weight` on the device; `element_bits` is the width of the engine's floating-point type, `scheme` what it quantizes with."""
    if weight.kind == "scale" or (weight.dtype and weight.dtype not in _FLOATS):
        return weight.elements * DTYPE_BITS[weight.dtype] // 8
    if scheme and weight.kind in scheme.kinds:
        return scheme.bytes(weight)
    return weight.elements * element_bits // 8
