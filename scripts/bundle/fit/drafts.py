"""What speculative decoding adds to a model: the weights of its draft, and what the draft's layers keep in the same KV cache.

As vLLM 0.33.0 does it (config/speculative.py): a draft of its own folder (a smaller model, an EAGLE head) is built beside the model, and MTP layers
come with the model's own checkpoint. A contract test asks the engine for the layers of both.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundle.config.settings import ADAPTERS_IN_CONTAINER, MODEL_IN_CONTAINER, Settings
from bundle.fit import modelshape, modeltypes, safetensors
from bundle.fit import quantization as schemes
from bundle.fit.architectures import Weight
from bundle.fit.layers import Kept
from bundle.fit.modelshape import Model

KEY = "ENGINE_SPECULATIVE_CONFIG"
_SHORT = {"ENGINE_SPEC_METHOD": "method", "ENGINE_SPEC_MODEL": "model", "ENGINE_SPEC_TOKENS": "num_speculative_tokens"}

_FROM_THE_PROMPT = ("ngram", "ngram_gpu", "suffix")  # no model at all
_OF_ITS_OWN = ("draft_model", "eagle", "eagle3")
_MTP = {"deepseek_v3": "num_nextn_predict_layers", "glm4_moe": "num_nextn_predict_layers", "mimo": "num_nextn_predict_layers",
        "qwen3_next": "num_nextn_predict_layers", "qwen3_5_text": "mtp_num_hidden_layers", "qwen3_5_moe_text": "mtp_num_hidden_layers"}
"""Models whose checkpoints bring MTP layers that keep what a layer with full attention keeps, and the key that tells their number."""
_ONE_BY_DEFAULT = ("qwen3_next",)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Who guesses. `model` is where the draft lies in the container, or a hub name, "" for the model itself; `folder` the same on this host."""

    method: str
    model: str = ""
    folder: Path | None = None
    guesses: int = 0
    key: str = KEY


def of(settings: Settings) -> Draft | None:
    """The draft that `settings` ask for; None where nothing guesses."""
    try:
        said = json.loads(settings.value(KEY) or "{}")
    except ValueError:
        return None
    said = dict(said) if isinstance(said, Mapping) else {}
    said |= {name: settings.value(key) for key, name in _SHORT.items() if settings.value(key)}
    if not said:
        return None
    model = str(said.get("model") or "")
    key = next((key for key in (KEY, *_SHORT) if settings.value(key)), KEY)
    tokens = str(said.get("num_speculative_tokens") or "")
    return Draft(method=_method(str(said.get("method") or ""), model), model=model, folder=_on_this_host(settings, model), key=key,
                 guesses=int(tokens) if tokens.isdigit() else 0)


def _method(said: str, model: str) -> str:
    if said.strip("[]") in _FROM_THE_PROMPT or (not said and model.strip("[]") in _FROM_THE_PROMPT):
        return (said or model).strip("[]")
    if said.endswith("mtp"):
        return "mtp"
    if said not in ("", "draft_model"):
        return said
    name = Path(model).name.lower()
    return next((method for mark, method in (("eagle-", "eagle"), ("eagle3", "eagle3"), ("dflash", "dflash"), ("dspark", "dspark")) if mark in name),
                "draft_model")


def _on_this_host(settings: Settings, model: str) -> Path | None:
    mounts = ((MODEL_IN_CONTAINER, settings.model_dir), (ADAPTERS_IN_CONTAINER, settings.path("MODEL_ADAPTERS_DIR")))
    for inside, outside in mounts:
        if outside and (model == inside or model.startswith(f"{inside}/")):
            return outside / model.removeprefix(inside).lstrip("/")
    return None


def refused(draft: Draft, folder: Path) -> str:
    """Why the engine would not start with `draft` beside the model in `folder`; "" where it would, or that is not known.

    Raises PrerequisiteError where the model's own config.json cannot be read.
    """
    if draft.method in _FROM_THE_PROMPT:
        return ""
    fields = modeltypes.text_fields(modelshape.read_config(folder), str(folder / modelshape.CONFIG))
    kind = str(fields.values["model_type"])
    if draft.method == "mtp" and not draft.model:
        return "" if kind not in _MTP or _mtp_layers(fields.values, kind) else (
            f"the model in {folder} has no layers for it (no {_MTP[kind]} in its config.json). Take another method, or another edition of the model.")
    if draft.folder and not (draft.folder / modelshape.CONFIG).is_file():
        return f"the draft {draft.model} would be {draft.folder} on this host, and there is no config.json. Put its folder there, or name another."
    if draft.method in _OF_ITS_OWN and not draft.guesses:
        return f'it does not say how many tokens are guessed ahead, and {draft.method} has no number of its own. Add "num_speculative_tokens": 3.'
    if draft.method == "draft_model" and draft.folder:
        other = modeltypes.text_fields(modelshape.read_config(draft.folder), str(draft.folder / modelshape.CONFIG))
        if other.vocabulary != fields.vocabulary:
            return (f"the draft in {draft.folder} has a vocabulary of {other.vocabulary:,} tokens, and the model has {fields.vocabulary:,}: the "
                    "engine refuses the pair. Take a smaller model of the same family.")
    return ""


def beside(model: Model, draft: Draft | None, folder: Path, *, quantization: str, float_bytes: int) -> Model:
    """`model`, which lies in `folder`, with what `draft` adds to it; with a note in place of that where it cannot be counted.

    Raises PrerequisiteError where the draft is here and damaged, ConfigurationError for a `quantization` that makes nothing of its weights.
    """
    if draft is None or draft.method in _FROM_THE_PROMPT:
        return model
    if draft.method == "mtp" and not draft.model:
        fields = modeltypes.text_fields(modelshape.read_config(folder), str(folder / modelshape.CONFIG))
        layers, full = _mtp_layers(fields.values, str(fields.values["model_type"])), [one for one in model.attention.kept if not one.window]
        if not layers or not full:
            return _uncounted(model, f"the MTP layers of {model.architecture}, whose cache fit does not know")
        weights = safetensors.read(folder, layers=fields.layers, tied=False, bits=4, drafts=True)
        scheme = schemes.online(quantization) if not model.quantization else None
        found = _with(model, [replace(full[0], layers=layers)], weights, scheme, float_bytes)
        return found if weights else _noted(found, "the weights of its MTP layers are not in the files, and not counted")
    if draft.method not in _OF_ITS_OWN or draft.folder is None:
        where = "fit does not know its layers" if draft.method not in _OF_ITS_OWN else "which is not on this host"
        return _uncounted(model, f"the draft of {draft.key} ({draft.method}{f', {draft.model}' if draft.model else ''}), {where}")
    other = modelshape.read(draft.folder)
    if other.attention.states or (model.attention.states and not all(_is_among(kept, model.attention.kept) for kept in other.attention.kept)):
        return _uncounted(model, f"the draft {draft.model}: beside layers with a state, blocks of its own size")
    own = schemes.stored(other.quantization) if other.quantization and other.source == modelshape.CONFIG else None
    found = _with(model, list(other.attention.kept), other.weights, own, float_bytes)
    about = f"the draft {draft.model} ({other.architecture}) counts among weights and KV cache"
    return _noted(found, about if other.source != modelshape.CONFIG else f"{about}, by its config.json alone")


def _mtp_layers(values: Mapping[str, Any], kind: str) -> int:
    said = values.get(_MTP.get(kind, ""))
    return said if isinstance(said, int) else int(kind in _ONE_BY_DEFAULT)


def _with(model: Model, kept: Sequence[Kept], weights: Sequence[Weight], scheme: schemes.Scheme | None, float_bytes: int) -> Model:
    layers: Counter[Kept] = Counter()  # layers that keep the same share their blocks, whoever they belong to
    for one in (*model.attention.kept, *kept):
        layers[replace(one, layers=1)] += one.layers
    together = tuple(replace(one, layers=number) for one, number in layers.items())
    size = sum(schemes.loaded_bytes(weight, element_bits=8 * float_bytes, scheme=scheme) for weight in weights)
    return replace(model, attention=replace(model.attention, kept=together), draft=(sum(weight.elements for weight in weights), size))


def _is_among(kept: Kept, others: Sequence[Kept]) -> bool:
    return any(replace(kept, layers=other.layers) == other for other in others)


def _uncounted(model: Model, what: str) -> Model:
    return _noted(model, f"not counted: {what}")


def _noted(model: Model, note: str) -> Model:
    return replace(model, notes=(*model.notes, note))
