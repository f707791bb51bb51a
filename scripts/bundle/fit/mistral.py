"""Mistral's own edition of a model: what its params.json says, in the words of a config.json (vLLM 0.33.0, transformers_utils/configs/mistral.py)."""

from collections.abc import Mapping
from typing import Any

from bundle.base.errors import PrerequisiteError

PARAMS = "params.json"

_NAMES = {"dim": "hidden_size", "n_kv_heads": "num_key_value_heads", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
          "hidden_dim": "intermediate_size", "tied_embeddings": "tie_word_embeddings"}
_LENGTH = 128_000
"""Tokens of context where params.json names none."""
_OTHER = ("moe", "qk_nope_head_dim")


def config(params: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """`params` as the config.json of the same model; `source` is the file's name. Raises PrerequisiteError for what is not read here."""
    if odd := [key for key in _OTHER if params.get(key)]:
        raise PrerequisiteError(f"{source}: fit does not read {odd[0]} in Mistral's own edition", fix="the edition of the model with a config.json")
    found = {_NAMES.get(key, key): value for key, value in params.items()}
    found = {"architectures": ["MistralForCausalLM"], "max_position_embeddings": _LENGTH, "tie_word_embeddings": False,
             "sliding_window": None, **found,
             "model_type": "mistral"}
    windows = found.get("sliding_window")
    if isinstance(windows, list) and windows:
        repeats = int(found["num_hidden_layers"]) // len(windows)
        found["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows * repeats]
        found["sliding_window"] = next((window for window in windows if window), None)
    said = found.pop("quantization", None)
    if isinstance(said, dict) and said:
        found["quantization_config"] = {"quant_method": "fp8"} if said.get("qformat_weight") == "fp8_e4m3" else said
    if vision := found.pop("vision_encoder", None) or (found.pop("multimodal", None) or {}).get("vision_encoder_args"):
        return {"architectures": ["PixtralForConditionalGeneration"], "text_config": found, "vision_config": vision}
    return found
