"""What the engine's config classes know of a model type that its config.json need not say: defaults, other names of keys, and where the text is.

modeltypes.json is read out of the CUDA engine's image (vLLM 0.33.0, Transformers' classes and vLLM's own) by tests/support/modeltypes_probe.py;
a contract test holds it against the image.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bundle.fit.architectures import FAMILIES, Fields

_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
"""The keys under which a text model's own config stands, where the model type is not known or spells it in another way."""
_OUTER = ("tie_word_embeddings", "is_causal", "use_bidirectional_attention", "position_embedding_type")
_TIED = ("tie_embedding", "tie_embeddings")  # LFM2's


@cache
def _known() -> Mapping[str, Any]:
    known: dict[str, Any] = json.loads((Path(__file__).parent / "modeltypes.json").read_text())
    return known


def is_known(kind: str) -> bool:
    return kind in _known()


def text_fields(raw: Mapping[str, Any], source: str) -> Fields:
    """The text model's values in `raw`, the values of the config.json `source`, with the defaults of its model type behind them."""
    outer = str(raw.get("model_type") or "")
    *path, default = _known().get(outer, {}).get("text") or [outer]
    text = _inside(raw, path)
    # All on one level, as old multimodal configs are: the text's defaults are behind it all the same.
    kind = default if text is raw else str(text.get("model_type") or default)
    about = _known().get(kind, {})
    family = FAMILIES.get(kind)
    values = {**about.get("defaults", {}), **(family.defaults if family else {}), **{key: raw[key] for key in _OUTER if key in raw}, **text}
    for name, key in about.get("names", {}).items():
        if text.get(name) is None and values.get(key) is not None:
            values[name] = values[key]
    for tied in filter(text.__contains__, _TIED):
        values["tie_word_embeddings"] = text[tied]
    return Fields(values={**values, "model_type": kind}, source=source)


def _inside(raw: Mapping[str, Any], path: list[str]) -> Mapping[str, Any]:
    """The config of the text model: at `path`, else under one of the usual keys, else `raw` itself."""
    for key in (*path[:1], *_TEXT):
        if isinstance(part := raw.get(key), dict):
            return _inside(part, path[1:] if [key] == path[:1] else [])
    return raw
