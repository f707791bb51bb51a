"""A copy of a model that is a little worse: noise on every matrix. The copy's files are its own, its size the same."""

import json
import shutil
from pathlib import Path

import numpy as np


def copy(model: Path, into: Path, *, noise: float, seed: int = 1) -> Path:
    """`model`, of bfloat16 weights in one safetensors file, with relative Gaussian `noise` on each weight of a matrix. Returns `into`."""
    shutil.copytree(model, into)
    file, draw = into / "model.safetensors", np.random.default_rng(seed)
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    for name, entry in header.items():
        if name == "__metadata__" or len(entry["shape"]) < 2:
            continue
        assert entry["dtype"] == "BF16", name
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        weights = np.frombuffer(data[start:end], dtype=np.uint16)
        values = (weights.astype(np.uint32) << 16).view(np.float32)
        values = values * (1 + noise * draw.standard_normal(values.shape, dtype=np.float32))
        data[start:end] = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16).tobytes()
    file.write_bytes(data)
    return into
