"""A model as fit sees it: its weights, the geometry of its attention and its longest context, from config.json and safetensors headers."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.base.errors import PrerequisiteError
from bundle.config import words
from bundle.fit import layers, mistral, modeltypes, safetensors
from bundle.fit import quantization as schemes
from bundle.fit.architectures import FAMILIES, Fields, Weight, count
from bundle.fit.layers import Attention

CONFIG, HEADERS = "config.json", "safetensors headers"

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_MODALITIES = ("vision_config", "audio_config", "visual", "vision_tower")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions", "max_sequence_length",
            "max_seq_length", "seq_len")
_ROPE = ("rope_scaling", "rope_parameters")
# These say a max_position_embeddings that is scaled already (vLLM 0.33.0, config/model.py).
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


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
    towers: bool = False
    """It takes images or sound too."""
    draft: tuple[int, int] = (0, 0)
    """Elements and bytes of the weights of what guesses ahead (drafts.py)."""


def read(directory: Path, overrides: Mapping[str, Any] | None = None) -> Model:
    """The model in `directory`, with what ENGINE_HF_OVERRIDES changes of its config.json. Raises PrerequisiteError when config.json or a weight file
    is missing or damaged, when the architecture alone does not say how many weights there are and there are none to look at, and for layers whose
    cache cannot be counted."""
    raw = overridden(read_config(directory), overrides or {})
    try:
        return _read(directory, raw)
    except (TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        source = f"{directory / CONFIG}{' with ENGINE_HF_OVERRIDES' if overrides else ''}"
        raise PrerequisiteError(f"{source}: a value has a form that no model has ({error})",
                                fix="is it the config.json that was published with the model?") from error


def _read(directory: Path, raw: Mapping[str, Any]) -> Model:
    fields = modeltypes.text_fields(raw, str(directory / CONFIG))
    family = FAMILIES.get(str(fields.values["model_type"]))
    architecture = architectures(raw) or str(fields.values["model_type"]) or "unnamed architecture"
    quantization = read_quantization(directory)
    scheme = schemes.stored(quantization)
    kept = layers.attention(fields, architecture)
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
                 attention=kept, hidden=fields.hidden, width=_width(fields), vocabulary=fields.vocabulary,
                 longest=_longest(fields, directory, architecture), default_length=_default_length(fields, directory, architecture),
                 quantization=quantization, towers=_has_towers(raw),
                 notes=tuple(_notes(raw, architecture, weights, counted, scheme, known=modeltypes.is_known(str(fields.values["model_type"])))))


def read_config(directory: Path) -> Mapping[str, Any]:
    """What config.json says; where there is only Mistral's own params.json, the same in its words. Raises PrerequisiteError as `read`."""
    if not (directory / CONFIG).exists() and (directory / mistral.PARAMS).exists():
        return mistral.config(_json(directory / mistral.PARAMS), str(directory / mistral.PARAMS))
    return _json(directory / CONFIG)


def overridden(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `changes` as the engine applies them: into a nested config, else as a whole (vLLM 0.33.0, ModelConfig._apply_dict_overrides)."""
    merged = dict(config)
    for key, value in changes.items():
        inner = merged.get(key)
        nested = isinstance(value, dict) and isinstance(inner, dict) and (key in _NESTED or key in _MODALITIES)
        merged[key] = overridden(inner, value) if nested and isinstance(inner, dict) else value
        if key in _ROPE:  # two names of one thing
            merged |= {other: None for other in _ROPE if other not in changes}
    return merged


def architectures(config: Mapping[str, Any]) -> str:
    """The architectures that a config names, with commas between; "" where it names none."""
    named = config.get("architectures") or []
    return ", ".join(map(str, named if isinstance(named, list) else [named]))


def read_quantization(directory: Path) -> Mapping[str, Any]:
    """How the checkpoint in `directory` says that it is quantized (`words.declared`); empty when it does not. Raises PrerequisiteError as `read`."""
    said = words.declared(read_config(directory), directory)
    producer = said.get("producer")  # ModelOpt's own file, put into config.json as it is (model_arch_config_convertor.py)
    return {**said, "quant_method": "modelopt"} if isinstance(producer, dict) and producer.get("name") == "modelopt" else said


def _has_towers(raw: Mapping[str, Any]) -> bool:
    inner = raw.get("thinker_config")
    parts: tuple[Mapping[str, Any], ...] = (raw, inner if isinstance(inner, dict) else {})
    return any(part.get(key) for part in parts for key in _MODALITIES)


def _notes(raw: Mapping[str, Any], architecture: str, weights: tuple[Weight, ...], counted: tuple[Weight, ...],
           scheme: schemes.Scheme | None, *, known: bool) -> Iterator[str]:
    """What the reader of the numbers should know of how they came about."""
    if not known:
        yield f"{architecture} is not known to fit: the weights are the files', the KV cache is that of a plain decoder with this config.json"
    elif not counted:
        pass  # the files alone say how many there are
    elif weights and not scheme:
        held, described = (sum(weight.parameters for weight in some) for some in (weights, counted))
        if held != described:
            yield f"the files hold {held:,} parameters, and config.json describes {described:,}"
    if _has_towers(raw):
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


def _width(fields: Fields) -> int:
    if not fields.sparse_layers:
        return 3 * fields.width
    chosen = fields.number("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", default=1)
    sparse = 3 * (chosen * fields.expert_width + fields.shared_width)
    return max(sparse, 3 * fields.width if fields.sparse_layers < fields.layers else 0)


def _rope(fields: Fields) -> Iterator[tuple[str, float]]:
    """Each kind of rotary embedding, and the factor that it stretches the context by."""
    said: Mapping[str, Any] = next((found for key in _ROPE if (found := fields.values.get(key))), {})
    nested: list[Mapping[str, Any]] = [value for value in said.values() if isinstance(value, dict)]
    for one in nested or [said]:
        yield str(one.get("rope_type") or one.get("type") or "default"), float(one.get("factor") or 1)


def _longest(fields: Fields, directory: Path, architecture: str) -> int:
    """As vLLM derives it (0.33.0, config/model.py, _get_and_verify_max_len)."""
    said = [fields.number(key) for key in _LENGTHS if fields.values.get(key) is not None]
    length = fields.number("model_max_length", default=min(said, default=2048))
    if layers.is_encoder(fields, architecture) and fields.values.get("position_embedding_type") == "absolute":
        length = min(length, _tokenizer_length(directory) or length)
    if "gemma3" in str(fields.values.get("model_type")):  # says a length that is scaled already
        return length
    return int(length * next((factor for kind, factor in reversed([*_rope(fields)]) if kind not in _SCALED), 1))


def _tokenizer_length(directory: Path) -> int | None:
    path = directory / "tokenizer_config.json"
    said = _json(path).get("model_max_length") if path.is_file() else None
    return int(said) if isinstance(said, (int, float)) and 0 < said < 10**9 else None


def _default_length(fields: Fields, directory: Path, architecture: str) -> int:
    """vLLM's own choice where no length is asked for: all, but the unscaled length of a LongRoPE model."""
    longest = _longest(fields, directory, architecture)
    return fields.number("original_max_position_embeddings", default=longest) if any(kind == "longrope" for kind, _ in _rope(fields)) else longest
