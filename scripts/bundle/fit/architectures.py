"""How many weights a model has, by its config.json alone: one entry per family of architectures, exact to the last norm."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bundle.base.errors import PrerequisiteError


@dataclass(frozen=True, kw_only=True)
class Weight:
    """`count` matrices of one shape. `kind` decides what quantization and a split over GPUs do to it.

    Kinds: embedding, head, linear, expert, router, vector (norms and biases, columns 1), scale (belongs to quantized weights),
    modality (vision or audio: loaded, not text). `dtype` is the checkpoint's own name of it; "" is the model's. `packed` is the number of
    parameters in one stored element: 8 in an int32 of 4-bit weights, 0 in a scale.
    """

    kind: str
    rows: int
    columns: int = 1
    count: int = 1
    dtype: str = ""
    packed: int = 1

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.count

    @property
    def parameters(self) -> int:
        return self.elements * self.packed


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The values of one config.json (`source`) that describe the text model, with its family's defaults behind them."""

    values: Mapping[str, Any]
    source: str

    def number(self, *keys: str, default: int | None = None) -> int:
        """The first of `keys` that is set. Raises PrerequisiteError when none is and there is no default, and for what no model has: a part of a
        layer, less than no heads, or none of what stands at one and more by default."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, list) and value and all(isinstance(each, (int, float)) for each in value):
                value = max(value)  # one for each layer
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if value < 0 or value % 1 != 0 or (value == 0 and default != 0):
                    raise PrerequisiteError(f"{self.source}: {key} is {value:g}", fix="is it the config.json that was published with the model?")
                return int(value)
        if default is None:
            raise PrerequisiteError(f"{self.source}: no {keys[0]}", fix="is it the config.json that was published with the model?")
        return default

    def is_on(self, key: str) -> bool:
        return bool(self.values.get(key))

    @property
    def layers(self) -> int:
        return self.number("num_hidden_layers", "num_layers", "n_layer", "n_layers")

    @property
    def hidden(self) -> int:
        return self.number("hidden_size", "n_embd", "d_model")

    @property
    def vocabulary(self) -> int:
        return self.number("vocab_size", "padded_vocab_size")

    @property
    def heads(self) -> int:
        return self.number("num_attention_heads", "n_head", "n_heads")

    @property
    def kv_heads(self) -> int:
        """As the engine reads them (vLLM, transformers_utils/model_arch_config_convertor.py, get_total_num_kv_heads)."""
        if self.is_on("multi_query") and not self.is_on("new_decoder_architecture"):  # Falcon, GPT-BigCode
            return 1
        grouped = ("multi_query_group_num",) if self.values.get("multi_query_attention") is not False else ()
        inner = self.values.get("attn_config")  # DBRX
        default = inner.get("kv_n_heads") if isinstance(inner, dict) else None
        return self.number("n_head_kv", "num_kv_heads", "num_key_value_heads", *grouped, "num_attention_groups", default=default or self.heads)

    @property
    def head_dim(self) -> int:
        return self.number("head_dim", "attention_head_dim", "hidden_size_per_head", default=self.hidden // self.heads)

    @property
    def width(self) -> int:
        """Of the dense MLP."""
        return self.number("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "block_ff_dim", "inner_hidden_size", default=4 * self.hidden)

    @property
    def experts(self) -> int:
        return self.number("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", default=0)

    @property
    def expert_width(self) -> int:
        return self.number("moe_intermediate_size", "expert_ffn_hidden_size", default=self.width)

    @property
    def shared_width(self) -> int:
        """Width of the experts that every token passes."""
        return self.number("shared_expert_intermediate_size", default=self.number("n_shared_experts", default=0) * self.expert_width)

    @property
    def sparse_layers(self) -> int:
        """Layers with experts instead of one dense MLP."""
        if not self.experts:
            return 0
        first, every = self.number("first_k_dense_replace", default=0), self.number("moe_layer_freq", default=1)
        step, dense = self.number("decoder_sparse_step", default=1), self.values.get("mlp_only_layers") or ()
        return sum(layer >= first and layer % every == 0 and (layer + 1) % step == 0 and layer not in dense for layer in range(self.layers))


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family's layers have beside the plain decoder's; a text names the config.json key that says so."""

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: str = ""
    """head: one norm of head_dim for queries and one for keys; full: over all heads."""
    norms: int = 2
    sinks: bool = False
    router_bias: bool = False
    latent: bool = False
    """Multi-head latent attention: keys and values are kept as one compressed vector."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the family's published config.json files leave out."""


_LLAMA = Family(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias")
_QWEN2 = Family(qkv_bias=True, defaults={"use_sliding_window": False})
_QWEN3 = Family(qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head", defaults={"use_sliding_window": False, "head_dim": 128})
_QWEN3_MOE = replace(_QWEN3, defaults={"use_sliding_window": False})
_DEEPSEEK = Family(latent=True)
_GEMMA = {"tie_word_embeddings": True, "head_dim": 256}

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "smollm3": replace(_LLAMA, defaults={"tie_word_embeddings": True}),
    "mistral": Family(),
    "mixtral": Family(),
    "phi3": Family(),
    "olmo2": replace(_LLAMA, qk_norm="full"),
    "qwen2": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen2_moe": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "gemma": Family(defaults=_GEMMA),
    "gemma2": Family(norms=4, defaults=_GEMMA),
    "gemma3_text": Family(norms=4, qk_norm="head", defaults=_GEMMA | {
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131_072,
        "sliding_window": 4096, "sliding_window_pattern": 6}),
    "gpt_oss": Family(qkv_bias=True, output_bias=True, mlp_bias=True, router_bias=True, sinks=True),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}
"""By the text model's `model_type`."""


def count(fields: Fields, family: Family) -> tuple[Weight, ...]:
    """Every weight of the text model that `fields` describes. Raises PrerequisiteError when a value is missing."""
    layers, hidden, vocabulary = fields.layers, fields.hidden, fields.vocabulary
    weights = [Weight(kind="embedding", rows=vocabulary, columns=hidden), Weight(kind="vector", rows=hidden)]
    if not fields.is_on("tie_word_embeddings"):
        weights.append(Weight(kind="head", rows=vocabulary, columns=hidden))
    weights.append(Weight(kind="vector", rows=hidden * family.norms, count=layers))
    latent = family.latent and fields.values.get("kv_lora_rank") is not None
    attention = _latent(fields) if latent else _attention(fields, family)
    weights += [replace(weight, count=weight.count * layers) for weight in attention]
    sparse = fields.sparse_layers
    if dense := layers - sparse:
        weights += [replace(weight, count=weight.count * dense) for weight in _mlp(fields.number("intermediate_size"), fields, family)]
    if sparse:
        weights += [replace(weight, count=weight.count * sparse) for weight in _experts(fields, family)]
    return tuple(weights)


def _says(fields: Fields, what: bool | str) -> bool:
    return fields.is_on(what) if isinstance(what, str) else what


def _attention(fields: Fields, family: Family) -> Iterator[Weight]:
    hidden, queries, keys = fields.number("hidden_size"), fields.heads * fields.head_dim, fields.kv_heads * fields.head_dim
    yield Weight(kind="linear", rows=queries, columns=hidden)
    yield Weight(kind="linear", rows=keys, columns=hidden, count=2)
    yield Weight(kind="linear", rows=hidden, columns=queries)
    if _says(fields, family.qkv_bias):
        yield Weight(kind="vector", rows=queries + 2 * keys)
    if _says(fields, family.output_bias):
        yield Weight(kind="vector", rows=hidden)
    if family.qk_norm:
        yield Weight(kind="vector", rows=2 * fields.head_dim if family.qk_norm == "head" else queries + keys)
    if family.sinks:
        yield Weight(kind="vector", rows=fields.heads)


def _latent(fields: Fields) -> Iterator[Weight]:
    hidden, heads, rank = fields.number("hidden_size"), fields.heads, fields.number("kv_lora_rank")
    plain, rotary, value = (fields.number(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    queries, query_rank = heads * (plain + rotary), fields.number("q_lora_rank", default=0)
    if query_rank:
        yield Weight(kind="linear", rows=query_rank, columns=hidden)
        yield Weight(kind="vector", rows=query_rank)
    yield Weight(kind="linear", rows=queries, columns=query_rank or hidden)
    yield Weight(kind="linear", rows=rank + rotary, columns=hidden)
    yield Weight(kind="vector", rows=rank)
    yield Weight(kind="linear", rows=heads * (plain + value), columns=rank)
    yield Weight(kind="linear", rows=hidden, columns=heads * value)


def _mlp(width: int, fields: Fields, family: Family, *, kind: str = "linear", copies: int = 1) -> Iterator[Weight]:
    hidden = fields.number("hidden_size")
    yield Weight(kind=kind, rows=width, columns=hidden, count=2 * copies)
    yield Weight(kind=kind, rows=hidden, columns=width, count=copies)
    if _says(fields, family.mlp_bias):
        yield Weight(kind="vector", rows=2 * width + hidden, count=copies)


def _experts(fields: Fields, family: Family) -> Iterator[Weight]:
    hidden, experts = fields.number("hidden_size"), fields.experts
    yield Weight(kind="router", rows=experts, columns=hidden)
    if family.router_bias or fields.values.get("topk_method") == "noaux_tc":
        yield Weight(kind="vector", rows=experts)
    yield from _mlp(fields.expert_width, fields, family, kind="expert", copies=experts)
    if fields.shared_width:
        yield from _mlp(fields.shared_width, fields, family)
    if fields.number("shared_expert_intermediate_size", default=0):
        yield Weight(kind="router", rows=1, columns=hidden)
