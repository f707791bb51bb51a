"""A model as fit sees it: its weights, the geometry of its attention and its longest context, from config.json and safetensors headers."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.base.errors import PrerequisiteError
from bundle.config import words
from bundle.fit import mistral, safetensors
from bundle.fit import quantization as schemes
from bundle.fit.architectures import FAMILIES, Fields, Weight, count

CONFIG, HEADERS = "config.json", "safetensors headers"

_TEXT = ("text_config", "llm_config", "language_config")
_MODALITIES = ("vision_config", "audio_config", "visual", "vision_tower")
# Layers that keep a state instead of keys and values, keep them elsewhere, or differ among each other in size.
_OTHER_CACHES = ("layers_block_type", "hybrid_override_pattern", "attn_type_list", "full_attention_interval", "attn_layer_period", "ssm_state_size",
                 "mamba_d_state", "state_size", "index_topk", "compress_ratios", "global_head_dim", "num_global_key_value_heads",
                 "attention_chunk_size")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_sequence_length")
# These say a max_position_embeddings that is scaled already (vLLM 0.33.0, config/model.py).
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "default", "mrope")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the layers keep of each token: `full` layers of every one, `windowed` layers of the last `window`."""

    full: int
    windowed: int
    window: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    """0: keys and values are one latent vector (MLA), which is not split over GPUs."""
    latent_copies: int = 0
    """Elements of the projections that MLA keeps a second time, in an order that decoding can use."""

    @property
    def layers(self) -> int:
        return self.full + self.windowed


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model. `weights` and `parameters` are exact when `source` is the headers, and where the family is known."""

    architecture: str
    source: str
    weights: tuple[Weight, ...]
    parameters: int
    attention: Attention
    hidden: int
    width: int
    """Elements of all MLP matrices' outputs that one token passes in one layer."""
    vocabulary: int
    longest: int
    """Tokens of context that the engine accepts at most."""
    default_length: int
    quantization: Mapping[str, Any]
    notes: tuple[str, ...]


def read(directory: Path) -> Model:
    """The model in `directory`. Raises PrerequisiteError when config.json or a weight file is missing or damaged, or the architecture alone
    does not say how many weights there are and there are none to look at."""
    raw = read_config(directory)
    text = next((raw[key] for key in _TEXT if isinstance(raw.get(key), dict)), raw)
    kind = str(text.get("model_type") or raw.get("model_type") or "")
    family = FAMILIES.get(kind)
    outer = {key: raw[key] for key in ("tie_word_embeddings",) if key in raw}
    fields = Fields(values={**(family.defaults if family else {}), **outer, **text}, source=str(directory / CONFIG))
    architecture = architectures(raw) or kind or "unnamed architecture"
    quantization = read_quantization(directory)
    scheme = schemes.stored(quantization)
    attention = _attention(fields, architecture, latent=family.latent if family else "kv_lora_rank" in text)
    counted = count(fields, family) if family else ()
    weights = safetensors.read(directory, layers=fields.layers, tied=fields.is_on("tie_word_embeddings"), bits=scheme.bits if scheme else 4)
    if not weights and not counted:
        raise PrerequisiteError(f"{directory}: no safetensors files, and {architecture} is not an architecture whose weights fit can count from "
                                "config.json alone", fix=f"download the weights too; or the config.json of one of: {', '.join(FAMILIES)}")
    if not weights and quantization and not scheme:
        raise PrerequisiteError(f"{directory}: no safetensors files, and fit does not know quantization method {quantization.get('quant_method')!r}",
                                fix="download the weights too: their headers say how many bytes they take")
    parameters = sum(weight.parameters for weight in counted or weights)
    return Model(architecture=architecture, source=HEADERS if weights else CONFIG, weights=weights or counted, parameters=parameters,
                 attention=attention, hidden=fields.number("hidden_size"), width=_width(fields), vocabulary=fields.number("vocab_size"),
                 longest=_longest(fields), default_length=_default_length(fields), quantization=quantization,
                 notes=tuple(_notes(raw, architecture, weights, counted, scheme)))


def read_config(directory: Path) -> Mapping[str, Any]:
    """What config.json says; where there is only Mistral's own params.json, the same in its words. Raises PrerequisiteError as `read`."""
    if not (directory / CONFIG).exists() and (directory / mistral.PARAMS).exists():
        return mistral.config(_json(directory / mistral.PARAMS), str(directory / mistral.PARAMS))
    return _json(directory / CONFIG)


def architectures(config: Mapping[str, Any]) -> str:
    """The architectures that a config names, with commas between; "" where it names none."""
    named = config.get("architectures") or []
    return ", ".join(map(str, named if isinstance(named, list) else [named]))


def read_quantization(directory: Path) -> Mapping[str, Any]:
    """How the checkpoint in `directory` says that it is quantized (`words.declared`); empty when it does not. Raises PrerequisiteError as `read`."""
    return words.declared(read_config(directory), directory)


def _notes(raw: Mapping[str, Any], architecture: str, weights: tuple[Weight, ...], counted: tuple[Weight, ...],
           scheme: schemes.Scheme | None) -> Iterator[str]:
    """What the reader of the numbers should know of how they came about."""
    if not counted:
        yield f"{architecture} is not known to fit: the weights are the files', the KV cache is that of a plain decoder with this config.json"
    elif weights and not scheme:
        held, described = (sum(weight.parameters for weight in some) for some in (weights, counted))
        if held != described:
            yield f"the files hold {held:,} parameters, and config.json describes {described:,}"
    if any(key in raw for key in _MODALITIES):
        tower = "the vision or audio tower counts among the weights" if weights else "the vision or audio tower is not counted and comes on top"
        yield f"parameters are the text model's; {tower}"
    if scheme and not weights:
        yield f"weights are computed from quantization_config ({scheme.name}), as if it left out no layer"
    if scheme and scheme.name == "mxfp4":
        yield "vLLM pads mxfp4 experts to the tile sizes of its kernels (128 or 256): they take more than counted, by up to 14 % with gpt-oss's 2,880"


def _json(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        found = f"no {path.name} in it" if path.parent.is_dir() else "no such directory"
        raise PrerequisiteError(f"{path.parent}: {found}", fix="give the folder that holds the model's config.json")
    try:
        if not path.is_file():
            raise ValueError("not a file")
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PrerequisiteError(f"{path}: cannot be read ({error})", fix="download it again") from error
    if not isinstance(raw, dict) or not raw:
        raise PrerequisiteError(f"{path}: not a JSON object, or an empty one", fix="download it again")
    return raw


def _attention(fields: Fields, architecture: str, *, latent: bool) -> Attention:
    values = fields.values
    types = values.get("layer_types") or []
    odd = sorted({str(kind) for kind in types} - {"full_attention", "sliding_attention", "attention"})
    odd += [key for key in _OTHER_CACHES if values.get(key)]
    if odd:
        raise PrerequisiteError(f"{fields.source}: {architecture} has layers whose cache fit cannot compute ({', '.join(odd)})",
                                fix="start it once: the engine's log says how many tokens its KV cache holds")
    layers = fields.layers - fields.number("num_kv_shared_layers", default=0)
    window = 0 if values.get("use_sliding_window") is False else fields.number("sliding_window", default=0)
    windowed = _windowed(fields, types)[:layers].count(True) if window else 0
    if latent:
        rank, plain, value = (fields.number(key) for key in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"))
        return Attention(full=layers, windowed=0, window=0, heads=fields.heads, kv_heads=1, key_dim=rank + fields.number("qk_rope_head_dim"),
                         value_dim=0, latent_copies=layers * fields.heads * (plain + value) * rank)
    return Attention(full=layers - windowed, windowed=windowed, window=window if windowed else 0, heads=fields.heads, kv_heads=fields.kv_heads,
                     key_dim=fields.head_dim, value_dim=fields.head_dim)


def _windowed(fields: Fields, types: list[str]) -> list[bool]:
    """Which layers look back over a window only."""
    numbers = range(fields.layers)
    if types:
        return [kind == "sliding_attention" for kind in types]
    kind = fields.values.get("model_type")
    if kind in ("gemma2", "gpt_oss"):
        return [layer % 2 == 0 for layer in numbers]
    if pattern := fields.number("sliding_window_pattern", default=0):
        return [(layer + 1) % pattern != 0 for layer in numbers]
    if fields.is_on("use_sliding_window"):
        return [layer >= fields.number("max_window_layers", default=0) for layer in numbers]
    return [True for _ in numbers]


def _width(fields: Fields) -> int:
    if not fields.sparse_layers:
        return 3 * fields.number("intermediate_size")
    chosen = fields.number("num_experts_per_tok", "experts_per_token", default=1)
    sparse = 3 * (chosen * fields.expert_width + fields.shared_width)
    return max(sparse, 3 * fields.number("intermediate_size") if fields.sparse_layers < fields.layers else 0)


def _rope(fields: Fields) -> tuple[str, float]:
    scaling = fields.values.get("rope_scaling") or fields.values.get("rope_parameters") or {}
    nested = [value for value in scaling.values() if isinstance(value, dict)]
    scaling = nested[0] if nested else scaling
    return str(scaling.get("rope_type") or scaling.get("type") or "default"), float(scaling.get("factor") or 1)


def _longest(fields: Fields) -> int:
    kind, factor = _rope(fields)
    scaled = kind in _SCALED or "gemma3" in str(fields.values.get("model_type"))
    return int(fields.number(*_LENGTHS, default=2048) * (1 if scaled else factor))


def _default_length(fields: Fields) -> int:
    """vLLM's own choice where no length is asked for: all, but the unscaled length of a LongRoPE model."""
    longest = _longest(fields)
    return fields.number("original_max_position_embeddings", default=longest) if _rope(fields)[0] == "longrope" else longest

