"""Model folders in a test: a published config.json, and safetensors files of any size whose data is a hole in the file."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from bundle.fit.safetensors import DTYPE_BITS

CONFIGS = Path(__file__).parents[1] / "unit" / "configs"

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Name → data type and shape."""


def published(name: str) -> dict[str, Any]:
    """The values of the config.json that was published with the model `name`; `_source` says where."""
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


def folder(path: Path, config: Mapping[str, Any], tensors: Tensors | None = None) -> Path:
    """`path` with `config` as config.json, and `tensors` in one file."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if tensors:
        safetensors(path / "model.safetensors", tensors)
    return path


def safetensors(path: Path, tensors: Tensors) -> None:
    """A whole file that holds `tensors`; it takes a block on disk, whatever its size."""
    header, start = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
