"""What a model's safetensors files hold, from their headers alone: kinds, shapes and data types, exact to the byte."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from bundle.base.errors import PrerequisiteError
from bundle.fit.architectures import Weight

DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
              "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}

_MAX_HEADER = 100_000_000  # the safetensors library's own limit
_SCALE = re.compile(r"(scales?|scale_inv|scale_2|qzeros|zero_points?|zeros|g_idx|weight_shape|absmax|quant_map|quant_state\S*)$")
_PACKED = re.compile(r"(qweight|weight_packed|_blocks)$")
_MODALITY = re.compile(r"(^|\.)(vision_\w+|visual|audio_\w+|image_newline|multi_modal_projector|mm_projector|embed_vision|embed_audio"
                       r"|pre_mm_projector_norm|patch_merger)(\.|$)")
_DRAFT = re.compile(r"(^|\.)mtp(_\w+)?\.")
_UNLOADED = re.compile(r"inv_freq$|^(talker|token2wav|code2wav)\.")  # the latter: the parts of an Omni model that speak
_LAYER = re.compile(r"(^|\.)(?:layers|h|blocks)\.(\d+)\.")
_KINDS = ((re.compile(r"(embed_tokens\w*|embed_positions|wte|wpe|\w*embeddings?)\.\w+$"), "embedding"),
          (re.compile(r"\.conv(1d)?\.weight$"), "vector"),  # short convolutions beside a state: never quantized
          (re.compile(r"(^|\.)lm_head\.|^output\.weight$"), "head"),  # output: in Mistral's own edition
          (re.compile(r"\.(gate|router|shared_expert_gate)\.\w+$"), "router"), (re.compile(r"\.experts\."), "expert"))


def files(directory: Path) -> list[Path]:
    """The safetensors files that the engine loads: those that the index names, else all. Raises PrerequisiteError when one is missing."""
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if not indexes:
        found = sorted(directory.glob("*.safetensors"))
        return [file for file in found if not file.name.startswith("consolidated")] or found
    index = next((file for file in indexes if file.name == "model.safetensors.index.json"), indexes[0])
    try:
        named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrerequisiteError(f"{index}: no weight_map in it", fix=_again(directory)) from error
    if missing := [name for name in named if not (directory / name).is_file()]:
        raise PrerequisiteError(f"{directory / missing[0]}: {index.name} names it, and it is not there ({len(missing)} of {len(named)} files)",
                                fix=_again(directory))
    return [directory / name for name in named]


def read(directory: Path, *, layers: int, tied: bool, bits: int, drafts: bool = False) -> tuple[Weight, ...]:
    """The weights that the engine loads from `directory`; empty when there are no safetensors files.

    `layers` and `tied` are the config's: layers beyond are draft heads, and a tied head is not loaded. `bits` is the width of packed integer
    weights. `drafts`: those of MTP layers alone, which only speculative decoding loads. Raises PrerequisiteError when a file is missing,
    cut off or no safetensors file.
    """
    found: Counter[Weight] = Counter()
    for file in files(directory):
        for name, entry in _header(file).items():
            layer = _LAYER.search(name)
            draft = bool(_DRAFT.search(name) or (layer and int(layer[2]) >= layers and not _MODALITY.search(name)))
            if _UNLOADED.search(name) or draft != drafts or (tied and name.startswith("lm_head.")):
                continue
            for weight in _weight(name, entry["dtype"], entry["shape"], bits):
                found[weight] += 1
    return tuple(replace(weight, count=weight.count * times) for weight, times in found.items())


def _weight(name: str, dtype: str, shape: list[int], bits: int) -> Iterator[Weight]:
    rows, columns = (shape[-2], shape[-1]) if len(shape) > 1 else (prod(shape), 1)
    copies = prod(shape[:-2])
    if _MODALITY.search(name):
        yield Weight(kind="modality", rows=rows, columns=columns, count=copies, dtype=dtype, packed=0)
    elif _SCALE.search(name):
        yield Weight(kind="scale", rows=rows, columns=columns, count=copies, dtype=dtype, packed=0)
    else:
        kind = next((kind for pattern, kind in _KINDS if pattern.search(name)), "linear" if columns > 1 else "vector")
        if kind == "expert" and name.endswith("bias"):
            kind = "vector"
        packed = 1
        if _PACKED.search(name) or (dtype in ("U8", "I32") and kind in ("linear", "expert")):
            packed = max(1, DTYPE_BITS[dtype] // bits)
        yield Weight(kind=kind, rows=rows, columns=columns, count=copies, dtype=dtype, packed=packed)


def _header(file: Path) -> Mapping[str, Any]:
    with file.open("rb") as stream:
        length = int.from_bytes(start := stream.read(8), "little")
        text = stream.read(length) if len(start) == 8 and length <= _MAX_HEADER else b""
    if len(text) < length or len(start) < 8:
        size = file.stat().st_size
        fault = "not a safetensors file" if size < 8 or length > _MAX_HEADER else f"cut off inside its header, which has {length} bytes"
        raise PrerequisiteError(f"{file}: {fault} ({size} bytes in the file)", fix=_again(file.parent))
    try:
        entries: dict[str, Any] = json.loads(text)
        entries.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        unknown = {entry["dtype"] for entry in entries.values()} - DTYPE_BITS.keys()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PrerequisiteError(f"{file}: its header is not safetensors' JSON", fix=_again(file.parent)) from error
    if unknown:
        raise PrerequisiteError(f"{file}: data type {', '.join(sorted(unknown))} is not known to fit")
    if (size := file.stat().st_size) < end:
        raise PrerequisiteError(f"{file}: {size} bytes, and its header describes {end}: the download was cut off", fix=_again(file.parent))
    return entries


def _again(directory: Path) -> str:
    return f"download it again: hf download NAME --local-dir {directory}"
