"""Runs inside an engine's image: which methods of quantization the engine takes for checkpoints of every other. Prints one JSON object.

    python quantization_probe.py CONFIGS.json

CONFIGS.json is {name: config.json's values}. The answer: {name: {asked ("": nothing): what the engine makes of it, or "refused: …"}}.
The engine is asked as it asks itself: ModelConfig._verify_quantization, and VllmConfig's look for the method's own file.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


@cache
def model_of(config: str) -> Any:
    folder = tempfile.mkdtemp()  # the engine looks into it again later; the container ends with it
    (Path(folder) / "config.json").write_text(config)
    return import_module("vllm.engine.arg_utils").EngineArgs(model=folder, skip_tokenizer_init=True, load_format="dummy").create_model_config()


def answers(config: Mapping[str, Any], methods: list[str]) -> dict[str, str]:
    whole, load = import_module("vllm.config").VllmConfig, import_module("vllm.config.load").LoadConfig()
    said, model = config.get("quantization_config"), model_of(json.dumps({key: config[key] for key in config if key != "quantization_config"}))

    def ask(method: str) -> str:
        model.hf_config.quantization_config = json.loads(json.dumps(said))  # the engine writes into it
        model.quantization = method or None
        try:
            model.model_arch_config = model.get_model_arch_config()
            model._verify_quantization()
            if not said:
                whole.get_quantization_config(model, load)
        except Exception as error:  # noqa: BLE001  whatever it raises is its answer
            return f"refused: {str(error)[:200]}"
        return str(model.quantization)

    return {method: ask(method) for method in ("", *methods)}


def main(path: str) -> None:
    configs = json.loads(Path(path).read_text())
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with contextlib.redirect_stdout(sys.stderr):
        methods = import_module("vllm.model_executor.layers.quantization").QUANTIZATION_METHODS
        found = {name: answers(config, methods) for name, config in configs.items()}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # the libraries that the engine loads take long to end
