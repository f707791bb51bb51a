"""What each layer of a model keeps of a sequence: keys and values of its tokens, or a state of fixed size. One entry per family that is no plain
decoder, with the file of vLLM 0.33.0 that says so; a contract test asks the engine itself.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundle.base.errors import PrerequisiteError
from bundle.fit.architectures import FAMILIES, Fields


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Layers that keep keys and values alike: of every token, or with a `window` of the last ones only."""

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    """0: keys and values are one latent vector (MLA), which is not split over GPUs."""
    window: int = 0
    chunked: bool = False
    """The window is cut at its multiples (Llama 4): a token sees its own chunk."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Layers that keep a state of fixed size of each sequence: the last inputs of a short convolution and a matrix for each head.

    All of it is divided over the GPUs of a tensor-parallel engine (vLLM, model_executor/layers/mamba/mamba_utils.py).
    """

    layers: int
    channels: int
    """Of the convolution, without those of `groups`."""
    taps: int
    matrix: int = 0
    """Elements."""
    groups: int = 0
    group_channels: int = 0
    matrix_type: str = ""
    """The data type of the matrix; "": the convolution's."""
    checkpoints: int = 0
    """States beside the running one and the one before it that a prefill may write for the prefix cache."""

    def size(self, *, gpus: int = 1, float_bytes: int = 2, guesses: int = 0, matrix_type: str = "") -> int:
        """Of one layer on one GPU; `guesses` is the number of tokens that speculative decoding adds to a step, `matrix_type` the type that the
        engine is asked to keep matrices in."""
        groups = self.groups if self.groups % gpus == 0 else gpus  # a GPU holds every group that one of its heads needs
        convolution = (self.channels + groups * self.group_channels) // gpus * (self.taps + (guesses if self.taps else 0))
        return convolution * float_bytes + self.matrix // gpus * _BYTES.get(matrix_type or self.matrix_type, float_bytes)


_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """All layers that keep anything. `heads` are the queries'."""

    kept: tuple[Kept, ...]
    heads: int
    states: State | None = None
    latent_copies: int = 0
    """Elements of the projections that MLA keeps a second time, in an order that decoding can use."""

    @property
    def full(self) -> int:
        """Layers that keep every token."""
        return sum(one.layers for one in self.kept if not one.window)

    @property
    def windowed(self) -> int:
        return sum(one.layers for one in self.kept if one.window)

    @property
    def window(self) -> int:
        return max((one.window for one in self.kept), default=0)

    @property
    def layers(self) -> int:
        """Layers with keys and values."""
        return self.full + self.windowed

    @property
    def depth(self) -> int:
        """Layers of any kind that keep something."""
        return self.layers + (self.states.layers if self.states else 0)

    @property
    def kv_heads(self) -> int:
        return max((one.kv_heads for one in self.kept), default=0)

    @property
    def key_dim(self) -> int:
        return max((one.key_dim for one in self.kept), default=0)

    @property
    def value_dim(self) -> int:
        return max((one.value_dim for one in self.kept), default=0)


FULL, WINDOW, CHUNK, STATE, BOTH, NONE = "full", "window", "chunk", "state", "both", "none"
_WORDS = {
    "full_attention": FULL, "attention": FULL, "global_attention": FULL, "full": FULL, "global": FULL, "sliding_attention": WINDOW,
    "sliding_window": WINDOW, "local_attention": WINDOW, "chunked_attention": CHUNK, "linear_attention": STATE, "mamba": STATE, "mamba2": STATE,
    "conv": STATE, "short_conv": STATE, "hybrid": BOTH, "mlp": NONE, "moe": NONE, "*": FULL, "M": STATE, "-": NONE, "E": NONE}
"""What configs call a layer."""

_LATENT = ("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_mtp", "glm_moe_dsa", "glm4_moe_lite", "kimi_k2", "kimi_linear",
           "longcat_flash", "pangu_ultra_moe", "bailing_hybrid")
"""Model types whose keys and values vLLM keeps as one latent vector, if their kv_lora_rank is set: is_deepseek_mla in
transformers_utils/model_arch_config_convertor.py. Others with that key keep full heads."""

_REFUSED = {
    "index_topk": "a sparse attention's index beside the cache", "compress_ratios": "compressed caches", "hybrid_layer_pattern": "heads of two sizes",
    "attn_type_list": "lightning attention", "layer_group_size": "lightning attention", "use_cla": "a cache that layers share",
    "yoco_cross_layers": "a cache that layers share", "per_layer_config": "layers of several shapes"}
"""Keys of layers that keep something which is not counted here."""

_OF_STATES = ("mamba_d_state", "ssm_state_size", "state_size", "linear_attn_config", "linear_num_value_heads", "conv_L_cache", "attn_layer_indices")
"""Keys that tell of layers with a state in a model type that is not known here; known ones may carry them and not read them."""

_ENCODER = re.compile(r"Bert|Roberta|^Gte|^CLIPModel|^Siglip|Bidirectional|^LlamaNemotronVL")
"""Architectures whose tokens all see each other (model_executor/models/registry.py: those with encoder-only attention)."""
_POOLERS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForRewardModel", "EmbedModel")

_EVERY = {"gemma2": 2, "gpt_oss": 2, "cohere2": 4, "olmo3": 4, "exaone4": 4, "gemma3n_text": 5, "gemma3_text": 6, "gemma4_text": 6}
"""Where layers are of two kinds and config.json does not say which: each so many-th sees everything (Transformers' configuration classes)."""
_WIDER = {"cohere2": 1}  # its window does not count the token itself (model_executor/models/commandr.py)


def _mamba(inner: int, fields: Fields, state: str, kernel: str) -> State:
    return State(layers=0, channels=inner, taps=fields.number(kernel, default=4) - 1, matrix=inner * fields.number(state))


def _mamba2(inner: int, fields: Fields, *, groups: str, heads: str, head: str, state: str, kernel: str) -> State:
    width = fields.number(state)
    matrix = fields.number(heads) * fields.number(head, default=inner // fields.number(heads)) * width
    return State(layers=0, channels=inner, taps=fields.number(kernel, default=4) - 1, matrix=matrix, groups=fields.number(groups, default=1),
                 group_channels=2 * width, checkpoints=1)


def _jamba(fields: Fields) -> State:
    return _mamba(fields.number("mamba_expand", default=2) * fields.number("hidden_size"), fields, "mamba_d_state", "mamba_d_conv")


def _mamba1(fields: Fields) -> State:
    inner = fields.number("intermediate_size", default=fields.number("expand", default=2) * fields.number("hidden_size"))
    return _mamba(inner, fields, "state_size", "conv_kernel")


def _granite(fields: Fields) -> State:
    return _mamba2(fields.number("mamba_expand", default=2) * fields.number("hidden_size"), fields, groups="mamba_n_groups", heads="mamba_n_heads",
                   head="mamba_d_head", state="mamba_d_state", kernel="mamba_d_conv")


def _falcon_h1(fields: Fields) -> State:
    inner = fields.number("mamba_d_ssm", default=fields.number("mamba_expand", default=2) * fields.number("hidden_size"))
    return _mamba2(inner, fields, groups="mamba_n_groups", heads="mamba_n_heads", head="mamba_d_head", state="mamba_d_state", kernel="mamba_d_conv")


def _nemotron(fields: Fields) -> State:
    inner = fields.number("mamba_num_heads") * fields.number("mamba_head_dim")
    found = _mamba2(inner, fields, groups="n_groups", heads="mamba_num_heads", head="mamba_head_dim", state="ssm_state_size", kernel="conv_kernel")
    # float32 where config.json says nothing (model_executor/models/config.py, NemotronHForCausalLMConfig)
    return replace(found, matrix_type=str(fields.values.get("mamba_ssm_cache_dtype") or "float32"))


def _zamba2(fields: Fields) -> State:
    return _mamba2(fields.number("mamba_expand", default=2) * fields.number("hidden_size"), fields, groups="mamba_ngroups", heads="n_mamba_heads",
                   head="mamba_headdim", state="mamba_d_state", kernel="mamba_d_conv")


def _mamba2_alone(fields: Fields) -> State:
    return _mamba2(fields.number("expand", default=2) * fields.number("hidden_size"), fields, groups="n_groups", heads="num_heads", head="head_dim",
                   state="state_size", kernel="conv_kernel")


def _delta_net(fields: Fields) -> State:
    """Gated delta net (Qwen3-Next and after)."""
    keys, values = fields.number("linear_num_key_heads"), fields.number("linear_num_value_heads")
    key, value = fields.number("linear_key_head_dim"), fields.number("linear_value_head_dim")
    return State(layers=0, channels=2 * key * keys + value * values, taps=fields.number("linear_conv_kernel_dim", default=4) - 1,
                 matrix=values * value * key, matrix_type=str(fields.values.get("mamba_ssm_dtype") or ""))


def _kimi(fields: Fields) -> State:
    """Kimi delta attention; its matrix is float32 (MambaStateDtypeCalculator.kda_state_dtype)."""
    said = Fields(values=fields.values.get("linear_attn_config") or {}, source=f"{fields.source}: linear_attn_config")
    heads, size = said.number("num_heads"), said.number("head_dim")
    return State(layers=0, channels=3 * heads * size, taps=said.number("short_conv_kernel_size", default=4) - 1, matrix=heads * size * size,
                 matrix_type="float32")


def _short_convolution(fields: Fields) -> State:
    width = fields.number("conv_dim", default=fields.number("hidden_size"))
    return State(layers=0, channels=width, taps=fields.number("conv_L_cache", default=3) - 1)


STATES: Mapping[str, Callable[[Fields], State]] = {
    "jamba": _jamba, "mamba": _mamba1, "falcon_mamba": _mamba1, "mamba2": _mamba2_alone, "granitemoehybrid": _granite, "falcon_h1": _falcon_h1,
    "nemotron_h": _nemotron, "zamba2": _zamba2, "qwen3_next": _delta_net, "qwen3_5_text": _delta_net, "qwen3_5_moe_text": _delta_net,
    "olmo_hybrid": _delta_net, "kimi_linear": _kimi, "lfm2": _short_convolution, "lfm2_moe": lambda fields: _short_convolution(
        replace(fields, values={**fields.values, "conv_dim": None}))}
"""The state of one layer, by the text model's `model_type` (model_executor/models/*.py, get_mamba_state_shape_from_config)."""
_BOTH = ("falcon_h1",)
_ONLY_STATES = ("mamba", "mamba2", "falcon_mamba")
_STATE_EVERY = {"qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4}


def attention(fields: Fields, architecture: str) -> Attention:
    """What the layers of the text model keep. Raises PrerequisiteError, naming the key or the layers, for what cannot be counted."""
    if is_encoder(fields, architecture):
        return Attention(kept=(), heads=fields.heads)
    kind = _kind(fields)
    if fields.is_on("is_encoder_decoder"):
        raise _cannot(fields, architecture, "is_encoder_decoder: the cross-attention's cache")
    if odd := [f"{key}: {what}" for key, what in _REFUSED.items() if fields.values.get(key)]:
        raise _cannot(fields, architecture, ", ".join(odd))
    if kind not in STATES and kind not in FAMILIES and not fields.values.get("layer_types") and (
            odd := [key for key in _OF_STATES if fields.values.get(key)]):
        raise _cannot(fields, architecture, f"layers with a state: {', '.join(odd)}")
    words = _layers(fields, architecture)
    states = sum(word in (STATE, BOTH) for word in words)
    if states and kind not in STATES:
        raise _cannot(fields, architecture, f"{states} layers with a state ({_spelled(fields)})")
    state = replace(STATES[kind](fields), layers=states) if states else None
    shared = fields.number("num_kv_shared_layers", default=0)  # the last layers read the cache of those before them
    counted = Counter((word, *_heads(fields, layer, word)) for layer, word in enumerate(words[:len(words) - shared]) if word not in (STATE, NONE))
    window = {WINDOW: fields.number("sliding_window", default=0) + _WIDER.get(kind, 0), CHUNK: fields.number("attention_chunk_size", default=0)}
    latent = kind in _LATENT and fields.values.get("kv_lora_rank") is not None
    if latent:
        return _latent(fields, sum(counted.values()) * (2 if kind == "longcat_flash" else 1), state)
    return Attention(heads=fields.number("num_attention_heads", default=0 if not counted else None), states=state, kept=tuple(
        Kept(layers=layers, kv_heads=heads, key_dim=size, value_dim=size, window=window.get(word, 0), chunked=word == CHUNK)
        for (word, heads, size), layers in counted.items() if heads))


def is_encoder(fields: Fields, architecture: str) -> bool:
    """Whether every token sees every other one at once, so that nothing is kept (vLLM, ModelConfig.attn_type: encoder_only)."""
    first = architecture.split(", ")[0]
    both_ways = fields.values.get("is_causal") is False or fields.is_on("use_bidirectional_attention")
    return bool(_ENCODER.search(first)) or (both_ways and first.endswith(_POOLERS))


def _kind(fields: Fields) -> str:
    return str(fields.values.get("model_type") or "")


def _cannot(fields: Fields, architecture: str, what: str) -> PrerequisiteError:
    return PrerequisiteError(f"{fields.source}: {architecture} has layers whose cache fit cannot compute ({what})",
                             fix="start it once: the engine's log says how many tokens its KV cache holds")


def _spelled(fields: Fields) -> str:
    said = fields.values.get("layer_types") or fields.values.get("layers_block_type") or fields.values.get("hybrid_override_pattern") or ["?"]
    return ", ".join(sorted({str(word) for word in said if _WORDS.get(str(word)) in (STATE, BOTH)}))


def _layers(fields: Fields, architecture: str) -> list[str]:
    """One word a layer, from whatever says it."""
    values, kind, depth = fields.values, _kind(fields), fields.layers
    numbers = range(depth)
    said = values.get("layer_types") or values.get("layers_block_type") or values.get("hybrid_override_pattern") or _blocks(values)
    if said and kind not in _BOTH:
        if unknown := sorted({str(word) for word in said} - _WORDS.keys()):
            raise _cannot(fields, architecture, ", ".join(unknown))
        if len(said) < depth:
            raise PrerequisiteError(f"{fields.source}: it names the kinds of {len(said)} layers, and num_hidden_layers is {depth}",
                                    fix="is it the config.json that was published with the model?")
        words = [_WORDS[str(word)] for word in said[:depth]]
    elif kind in _BOTH:
        words = [BOTH] * depth
    elif kind in _ONLY_STATES:
        words = [STATE] * depth
    elif (full := _full_layers(fields)) is not None:
        words = [FULL if layer in full else STATE for layer in numbers]
    elif (apart := values.get("no_rope_layers")) and fields.number("attention_chunk_size", default=0):
        words = [CHUNK if apart[layer] else FULL for layer in numbers]
    elif fields.number("attention_chunk_size", default=0) and kind == "llama4_text":
        words = [CHUNK if (layer + 1) % fields.number("no_rope_layer_interval", default=4) else FULL for layer in numbers]
    else:
        words = [WINDOW if windowed else FULL for windowed in _windowed(fields)]
    blocks = values.get("block_configs")
    if isinstance(blocks, list):  # Nemotron-NAS: some layers have no attention
        words = [NONE if _no_op(block) else word for word, block in zip(words, blocks, strict=False)]
    window = not (values.get("use_sliding_window") is False or not fields.number("sliding_window", default=0))
    chunk = fields.number("attention_chunk_size", default=0)
    return [FULL if (word == WINDOW and not window) or (word == CHUNK and not chunk) else word for word in words]


def _full_layers(fields: Fields) -> set[int] | None:
    """The layers with attention among layers with a state; None where no key tells them."""
    values, depth, kind = fields.values, fields.layers, _kind(fields)
    if kind not in STATES:
        return None
    for key in ("full_attn_idxs", "attn_layer_indices"):
        if isinstance(values.get(key), list):
            return set(values[key])
    if ids := values.get("hybrid_layer_ids"):
        return set(ids)
    if linear := values.get("linear_attn_config"):
        return {layer - 1 for layer in linear.get("full_attn_layers") or ()}  # counted from 1
    if period := fields.number("attn_layer_period", default=0):
        return {layer for layer in range(depth) if layer % period == fields.number("attn_layer_offset", default=0)}
    if step := fields.number("full_attention_interval", default=_STATE_EVERY.get(kind, 0)):
        return {layer for layer in range(depth) if (layer + 1) % step == 0}
    return None


def _windowed(fields: Fields) -> list[bool]:
    """Which of the layers look back over a window only, if there is one."""
    numbers = range(fields.layers)
    pattern = next((said for key in ("sliding_window_pattern", "_sliding_window_pattern") if (said := fields.values.get(key))), None)
    if isinstance(pattern, str):  # LLLG: local, local, local, global
        return [pattern[layer % len(pattern)] != "G" for layer in numbers]
    if step := pattern or _EVERY.get(_kind(fields), 0):
        return [(layer + 1) % int(step) != 0 for layer in numbers]
    if fields.is_on("use_sliding_window"):
        return [layer >= fields.number("max_window_layers", default=0) for layer in numbers]
    return [True for _ in numbers]


def _blocks(values: Mapping[str, Any]) -> list[str]:
    """The kinds of layers that block_configs names (Nemotron-H Puzzle); empty where it tells something else of them."""
    found = values.get("block_configs")
    kinds = [block.get("block_type") for block in found if isinstance(block, dict)] if isinstance(found, list) else []
    return [str(kind) for kind in kinds] if all(kinds) else []


def _no_op(block: Any) -> bool:
    said = block.get("attention") if isinstance(block, dict) else None
    return isinstance(said, dict) and bool(said.get("no_op") or said.get("replace_with_linear"))


def _heads(fields: Fields, layer: int, word: str) -> tuple[int, int]:
    """KV heads and elements of a key in one layer."""
    values, kind = fields.values, _kind(fields)
    size = fields.head_dim
    if kind == "minicpm3":  # full heads, each of two parts (model_executor/models/minicpm3.py)
        size = fields.number("qk_nope_head_dim") + fields.number("qk_rope_head_dim")
    if kind == "zamba2":  # its attention sees the layer's input beside the embedding
        size = fields.number("attention_head_dim", default=2 * fields.number("hidden_size") // fields.heads)
    if word == FULL and values.get("global_head_dim"):  # Gemma 4
        heads = fields.number("num_global_key_value_heads", default=fields.kv_heads) if fields.is_on("attention_k_eq_v") else fields.kv_heads
        return heads, fields.number("global_head_dim")
    if word == WINDOW and isinstance(other := values.get("attention_other_setting"), dict):  # Step 3.5
        return int(other.get("num_attention_groups") or fields.kv_heads), int(other.get("head_dim") or size)
    for key in ("num_key_value_heads_per_layer", "num_key_value_heads", "num_kv_heads"):
        if isinstance(each := values.get(key), list) and len(each) > layer:
            return int(each[layer]), size
    blocks = values.get("block_configs")
    said = blocks[layer].get("attention") if isinstance(blocks, list) and len(blocks) > layer and isinstance(blocks[layer], dict) else None
    if isinstance(said, dict) and said.get("n_heads_in_group"):  # Nemotron-NAS
        return fields.heads // int(said["n_heads_in_group"]), size
    return fields.kv_heads, size


def _latent(fields: Fields, layers: int, state: State | None) -> Attention:
    rank, plain, value = (fields.number(key) for key in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"))
    kept = Kept(layers=layers, kv_heads=1, key_dim=rank + fields.number("qk_rope_head_dim"), value_dim=0)
    return Attention(kept=(kept,), heads=fields.heads, states=state, latent_copies=layers * fields.heads * (plain + value) * rank)
