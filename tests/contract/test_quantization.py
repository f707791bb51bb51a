"""Which quantization an engine takes for which checkpoint: fit's rules against both engines' own answers, for every pair."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings
from bundle.fit import modelshape, quantization
from bundle.images import build, engineconfig
from bundle.machine import devices
from bundle.models import folder
from support import image, modelfolder

PROBES = ROOT / "tests/support"
UNQUANTIZED = "16 bit"
SHAPE = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 2048,
         "torch_dtype": "bfloat16"}
GPT_OSS = SHAPE | {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FP8_CHANNELS = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}}
SAID: Mapping[str, Mapping[str, Any]] = {
    "awq": {"quant_method": "awq", **AWQ}, "awq in capitals": {"quant_method": "AWQ", **AWQ},
    "awq of 8 bits": {"quant_method": "awq", **AWQ, "bits": 8},
    "awq_marlin": {"quant_method": "awq_marlin", **AWQ}, "gptq": GPTQ, "gptq of 3 bits": GPTQ | {"bits": 3},
    "gptq reordered": GPTQ | {"desc_act": True},
    "gptq reordered, one group": GPTQ | {"desc_act": True, "group_size": -1}, "gptq_marlin": GPTQ | {"quant_method": "gptq_marlin"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": FP8_CHANNELS}},
    "compressed_tensors": {"quant_method": "compressed_tensors", "format": "float-quantized", "config_groups": {"group_0": FP8_CHANNELS}},
    "mxfp4": {"quant_method": "mxfp4"}, "mxfp8": {"quant_method": "mxfp8", "ignored_layers": []},
    "modelopt fp8": {"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "modelopt mxfp8": {"quant_method": "modelopt", "quant_algo": "MXFP8"},
    "modelopt mixed": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
    "modelopt int4": {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
    "modelopt's own file": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": []}},
    "auto-round": {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}, "inc": {"quant_method": "inc", "bits": 4},
    "quark": {"quant_method": "quark"}, "torchao": {"quant_method": "torchao"}, "experts_int8": {"quant_method": "experts_int8"},
    "moe_wna16": {"quant_method": "moe_wna16"}, "fbgemm_fp8": {"quant_method": "fbgemm_fp8"}, "fp_quant": {"quant_method": "fp_quant"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "exl3": {"quant_method": "exl3"}, "hqq": {"quant_method": "hqq"},
    "aqlm": {"quant_method": "aqlm"}, "quanto": {"quant_method": "quanto"}, "mlx": {"group_size": 64, "bits": 4}}
CONFIGS = {UNQUANTIZED: SHAPE, **{name: SHAPE | {"quantization_config": said} for name, said in SAID.items()},
           "gpt-oss": GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}}
NOT_LOADED = ("bitsandbytes", "exl3", "hqq", "aqlm", "quanto", "mlx")
"""Refused as a folder, whatever is asked for."""


@pytest.fixture(scope="module", params=["throughput", "cpu"])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Mapping[str, Mapping[str, str]]]:
    """The engine's target, and what it says of each pair."""
    chosen = settings.load(request.param)
    build.ensure(chosen)
    place = tmp_path_factory.mktemp("configs")
    place.chmod(0o755)
    (place / "configs.json").write_text(json.dumps(CONFIGS))
    command = "exec python /probe/quantization_probe.py /configs/configs.json"
    if chosen.image_target == "cuda":
        command = engineconfig.as_on(devices.find("rtx-5090"), "/pretended", command)
    said = image.answer(chosen.image_engine, "sh", "-c", command, timeout_s=1200,
                        mounts=[(PROBES, "/probe"), (place, "/configs"), (ROOT / "docker/model/pretended", "/pretended")])
    return chosen.image_target, json.loads(said.splitlines()[-1])


def test_every_pair_is_taken_or_refused_as_the_engine_does(answers: tuple[str, Mapping[str, Mapping[str, str]]], tmp_path: Path) -> None:
    target, found = answers
    wrong = []
    for name, by_method in found.items():
        config = CONFIGS[name]
        said = modelshape.read_quantization(modelfolder.folder(tmp_path / name, config))
        for asked, answer in by_method.items():
            refused = answer.startswith("refused: ")
            if refused and ("is deprecated" in answer or "Unknown quantization method" in answer):
                own = quantization.method(said) or asked
                assert own in quantization.DEPRECATED or name in NOT_LOADED, (name, asked, answer)
            elif quantization.takes(said, asked, model_type=str(config["model_type"]), target=target) == refused:
                wrong.append((name, asked, answer))
    assert not wrong
    assert sum(map(len, found.values())) > 1000


def test_what_no_engine_loads_is_refused_as_a_folder_and_nothing_else_is(answers: tuple[str, Mapping[str, Mapping[str, str]]],
                                                                         tmp_path: Path) -> None:
    _, found = answers
    refused = {name for name in found if folder.misfits(modelfolder.folder(tmp_path / name, CONFIGS[name]))}
    assert refused == set(NOT_LOADED)
    # MLX's is taken for a checkpoint with 16-bit weights, which it is not.
    assert {name for name, by_method in found.items() if "Unknown quantization method" in by_method[""]} == refused - {"mlx"}
    assert found["mlx"][""] == "None"
