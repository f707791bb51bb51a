"""A LoRA adapter for the self-test model (docker/engine/selftest_model.py): random, the same each time, and strong enough to change its answers."""

import json
import random
import struct
from pathlib import Path

RANK, HIDDEN, LAYERS = 8, 256, 2
OUT = {"q_proj": 512, "v_proj": 256}


def write(folder: Path) -> None:
    """The two files of an adapter, as PEFT writes them, readable by the engine's user."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "selftest", "r": RANK, "lora_alpha": 2 * RANK,
              "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(OUT)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    numbers = random.Random(1)
    header: dict[str, object] = {}
    data = b""
    for layer in range(LAYERS):
        for name, out in OUT.items():
            for part, shape in (("lora_A", (RANK, HIDDEN)), ("lora_B", (out, RANK))):
                count = shape[0] * shape[1]
                header[f"base_model.model.model.layers.{layer}.self_attn.{name}.{part}.weight"] = {
                    "dtype": "F32", "shape": shape, "data_offsets": (len(data), len(data) + 4 * count)}
                data += struct.pack(f"<{count}f", *(numbers.gauss(0, 0.5) for _ in range(count)))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
