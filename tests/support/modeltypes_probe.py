"""Runs inside an engine image: what its config classes know of each model type that a config.json need not say. Prints modeltypes.json.

For each `model_type`: `defaults`, the values that a config leaves out; `names`, the attributes that the engine reads under another key; and
`text`, the keys that lead to the text model's own config and the model type that it has there by default.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

KEYS = frozenset("""
    num_hidden_layers num_layers n_layer n_layers num_attention_heads n_head n_heads num_key_value_heads num_kv_heads n_head_kv head_dim
    multi_query_group_num num_attention_groups hidden_size n_embd d_model intermediate_size n_inner ffn_dim ffn_hidden_size vocab_size
    padded_vocab_size max_position_embeddings n_positions max_seq_len seq_length model_max_length max_target_positions max_sequence_length
    max_seq_length seq_len sliding_window use_sliding_window max_window_layers sliding_window_pattern tie_word_embeddings multi_query
    new_decoder_architecture kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim num_experts num_local_experts n_routed_experts
    moe_num_experts num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size n_shared_experts first_k_dense_replace
    attention_chunk_size num_kv_shared_layers global_head_dim num_global_key_value_heads full_attention_interval attn_layer_period
    attn_layer_offset attn_layer_indices mamba_d_state mamba_d_conv mamba_expand mamba_n_groups mamba_n_heads mamba_d_head mamba_d_ssm mamba_ngroups
    n_mamba_heads mamba_headdim mamba_num_heads mamba_head_dim n_groups ssm_state_size state_size conv_kernel expand num_heads conv_L_cache
    linear_num_value_heads linear_num_key_heads linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim mamba_ssm_dtype
    mamba_ssm_cache_dtype layer_group_size attention_head_dim is_encoder_decoder encoder_layers decoder_layers decoder_attention_heads
    max_source_positions hidden_size_per_layer_input vocab_size_per_layer_input is_causal attention_k_eq_v no_rope_layer_interval
    use_bidirectional_attention position_embedding_type""".split())  # noqa: SIM905
"""What fit reads."""


def described(config: Any) -> dict[str, Any]:
    # A class of vLLM's own writes its defaults in __init__; Transformers' are dataclasses, some of whose defaults are not in the signature.
    found = {field.name: field.default for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
    found |= {name: one.default for name, one in inspect.signature(config.__init__).parameters.items()}
    names = {name: key for name, key in config.attribute_map.items() if name in KEYS and key in KEYS and name != key}
    defaults = {key: value for key, value in found.items() if key in KEYS and isinstance(value, (int, float, str)) and value != ""}
    # What is off is what is absent, but for this one: a window that stands there and is not used.
    defaults = {key: value for key, value in defaults.items() if value is not False or key == "use_sliding_window"}
    return {key: part for key, part in (("defaults", defaults), ("names", names), ("text", text_of(config))) if part}


def text_of(config: Any) -> list[str]:
    with contextlib.suppress(Exception):
        made = config()
        text = made.get_text_config()
        if text is not made:
            return [*path_to(text, made), text.model_type]
    return []


def path_to(wanted: Any, config: Any) -> list[str]:
    for key in (*config.sub_configs, *vars(config)):
        if (part := getattr(config, key, None)) is wanted:
            return [key]
        if hasattr(part, "sub_configs") and part is not config and (rest := path_to(wanted, part)):
            return [key, *rest]
    return []


def is_a_model(known: Mapping[str, Any]) -> bool:
    keys = known.get("defaults", {}).keys() | known.get("names", {}).keys()
    return "text" in known or bool(keys & {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"})


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        theirs = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
        own = import_module("vllm.transformers_utils.config")._CONFIG_REGISTRY
        known = {kind: described(own[kind] if kind in own else theirs[kind]) for kind in sorted({*theirs, *own})}
    lines = (f"{json.dumps(kind)}: {json.dumps(found, sort_keys=True)}" for kind, found in known.items() if is_a_model(found))
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the libraries that the engine loads take long to end
