"""Weights from safetensors headers, and what quantization makes of them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.fit import estimation, modelshape
from bundle.fit import quantization as schemes
from bundle.fit.architectures import Weight
from bundle.fit.request import Request
from bundle.machine.devices import find
from support import modelfolder, verbs
from support.modelfolder import Tensors

# Two layers of Qwen2: small enough to write down, with every kind of weight.
HIDDEN, WIDTH, VOCABULARY, KEYS = 256, 512, 1024, 128
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": WIDTH, "vocab_size": VOCABULARY,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False}
LINEARS = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
           "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (WIDTH, HIDDEN), "mlp.up_proj": (WIDTH, HIDDEN), "mlp.down_proj": (HIDDEN, WIDTH)}
ENDS = {"model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN)), "lm_head.weight": ("BF16", (VOCABULARY, HIDDEN)),
        "model.norm.weight": ("BF16", (HIDDEN,))}
LINEAR = 2 * sum(rows * columns for rows, columns in LINEARS.values())
ENDS_BYTES = 2 * (2 * VOCABULARY * HIDDEN + HIDDEN)
VECTORS_BYTES = 2 * 2 * (2 * HIDDEN + HIDDEN + 2 * KEYS)
PARAMETERS = LINEAR + (ENDS_BYTES + VECTORS_BYTES) // 2


def decoder(*, packed: Any = None, **more: tuple[str, tuple[int, ...]]) -> Tensors:
    """All tensors of CONFIG; `packed` makes of a linear's name and shape the tensors that hold it."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {**ENDS, **more}
    for layer in range(2):
        start = f"model.layers.{layer}"
        tensors |= {f"{start}.input_layernorm.weight": ("BF16", (HIDDEN,)), f"{start}.post_attention_layernorm.weight": ("BF16", (HIDDEN,)),
                    f"{start}.self_attn.q_proj.bias": ("BF16", (HIDDEN,)), f"{start}.self_attn.k_proj.bias": ("BF16", (KEYS,)),
                    f"{start}.self_attn.v_proj.bias": ("BF16", (KEYS,))}
        for name, (rows, columns) in LINEARS.items():
            held = packed(rows, columns) if packed else {"weight": ("BF16", (rows, columns))}
            tensors |= {f"{start}.{name}.{part}": entry for part, entry in held.items()}
    return tensors


def weights_bytes(folder: Path, **request: Any) -> int:
    return estimation.estimate(modelshape.read(folder), Request(target="cuda", **request), find("rtx-5090")).weights_bytes


def test_headers_and_config_agree_on_parameters_and_bytes(tmp_path: Path) -> None:
    alone, with_files = modelfolder.folder(tmp_path / "a", CONFIG), modelfolder.folder(tmp_path / "b", CONFIG, decoder())
    assert modelshape.read(alone).parameters == modelshape.read(with_files).parameters == PARAMETERS
    assert weights_bytes(alone) == weights_bytes(with_files) == 2 * PARAMETERS
    assert (modelshape.read(alone).source, modelshape.read(with_files).source) == ("config.json", "safetensors headers")
    assert modelshape.read(with_files).notes == ()


def test_files_that_do_not_hold_what_the_config_describes_are_said(tmp_path: Path) -> None:
    tensors = dict(decoder())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    model = modelshape.read(modelfolder.folder(tmp_path, CONFIG, tensors))
    assert model.notes == (f"the files hold {PARAMETERS - WIDTH * HIDDEN:,} parameters, and config.json describes {PARAMETERS:,}",)


def test_float32_weights_are_loaded_in_16_bits_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, CONFIG, {name: ("F32", shape) for name, (_, shape) in decoder().items()})
    assert (weights_bytes(folder), weights_bytes(folder, float_bytes=4)) == (2 * PARAMETERS, 4 * PARAMETERS)


@pytest.mark.parametrize(("quantization", "packed", "per_linear"), [
    # Each: the tensors of one linear layer, and the bytes of all linear layers by hand.
    ({"quant_method": "fp8", "weight_block_size": [128, 128]},
     lambda rows, columns: {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (rows // 128, columns // 128))}, 1 + 4 / 128**2),
    ({"quant_method": "awq", "bits": 4, "group_size": 128},
     lambda rows, columns: {"qweight": ("I32", (columns, rows // 8)), "scales": ("F16", (columns // 128, rows)),
                            "qzeros": ("I32", (columns // 128, rows // 8))}, 0.5 + 2.5 / 128),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128},
     lambda rows, columns: {"qweight": ("I32", (columns // 8, rows)), "scales": ("F16", (columns // 128, rows)),
                            "qzeros": ("I32", (columns // 128, rows // 8))}, 0.5 + 2.5 / 128),
    ({"quant_method": "gptq", "bits": 8, "group_size": 128},
     lambda rows, columns: {"qweight": ("I32", (columns // 4, rows)), "scales": ("F16", (columns // 128, rows)),
                            "qzeros": ("I32", (columns // 128, rows // 4))}, 1 + 3 / 128),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128,
                                                                                      "symmetric": True, "strategy": "group"}}}},
     lambda rows, columns: {"weight_packed": ("I32", (rows, columns // 8)), "weight_scale": ("BF16", (rows, columns // 128))}, 0.5 + 2 / 128),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}},
     lambda rows, columns: {"weight_packed": ("U8", (rows, columns // 2)), "weight_scale": ("F8_E4M3", (rows, columns // 16))}, 0.5 + 1 / 16),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"},
     lambda rows, columns: {"weight": ("U8", (rows, columns // 2)), "weight_scale": ("F8_E4M3", (rows, columns // 16))}, 0.5 + 1 / 16),
], ids=["fp8 blocks", "awq", "gptq 4", "gptq 8", "compressed int4", "compressed nvfp4", "modelopt nvfp4"])
def test_a_quantized_checkpoint_takes_the_bytes_that_it_stores(quantization: dict[str, Any], packed: Any, per_linear: float, tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": quantization}
    stored = modelfolder.folder(tmp_path / "files", config, decoder(packed=packed))
    expected = ENDS_BYTES + VECTORS_BYTES + round(LINEAR * per_linear)
    assert weights_bytes(stored) == expected
    assert modelshape.read(stored).parameters == PARAMETERS
    by_config = weights_bytes(modelfolder.folder(tmp_path / "config", config))
    assert abs(by_config - expected) <= 0.001 * expected, "quantization_config alone must come to the same"


def test_the_parameters_of_packed_weights_are_unpacked_for_an_unknown_architecture(tmp_path: Path) -> None:
    config = CONFIG | {"model_type": "novel", "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    awq = decoder(packed=lambda rows, columns: {"qweight": ("I32", (columns, rows // 8)), "scales": ("F16", (columns // 128, rows)),
                                                "qzeros": ("I32", (columns // 128, rows // 8))})
    assert modelshape.read(modelfolder.folder(tmp_path, config, awq)).parameters == PARAMETERS


def test_mxfp4_experts_are_counted_by_their_blocks(tmp_path: Path) -> None:
    config = modelfolder.published("gpt-oss-20b") | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    start, experts = "model.layers.0.mlp.experts", 32
    blocks = {f"{start}.gate_up_proj_blocks": ("U8", (experts, 5760, 90, 16)), f"{start}.gate_up_proj_scales": ("U8", (experts, 5760, 90)),
              f"{start}.down_proj_blocks": ("U8", (experts, 2880, 90, 16)), f"{start}.down_proj_scales": ("U8", (experts, 2880, 90))}
    model = modelshape.read(modelfolder.folder(tmp_path, config, blocks))
    assert sum(weight.parameters for weight in model.weights) == experts * 3 * 2880 * 2880
    assert weights_bytes(tmp_path) == experts * 3 * 2880 * 2880 * 17 // 32


@pytest.mark.parametrize(("flag", "per_linear"), [("fp8_per_tensor", 1.0), ("fp8", 1.0), ("mxfp8", 1 + 1 / 32), ("nvfp4_per_token", 0.5 + 1 / 16)])
def test_online_quantization_shrinks_linear_layers_and_leaves_embedding_and_head(flag: str, per_linear: float, tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, CONFIG, decoder())
    assert weights_bytes(folder, quantization=flag) == pytest.approx(ENDS_BYTES + VECTORS_BYTES + LINEAR * per_linear, abs=4 * 2 * len(LINEARS))


def test_weight_only_int8_shrinks_experts_alone() -> None:
    scheme = schemes.online("experts_int8")
    linear, expert = (Weight(kind=kind, rows=8, columns=16, count=2) for kind in ("linear", "expert"))
    assert schemes.loaded_bytes(linear, element_bits=16, scheme=scheme) == 2 * 8 * 16 * 2
    assert schemes.loaded_bytes(expert, element_bits=16, scheme=scheme) == 2 * (8 * 16 + 8 * 4)


def test_a_flag_that_needs_a_quantized_checkpoint_is_refused_on_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ENGINE_QUANTIZATION=awq: the checkpoint is not quantized"):
        weights_bytes(modelfolder.folder(tmp_path, CONFIG), quantization="awq")


def test_an_unknown_method_is_exact_with_files_and_refused_without(tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "brand-new"}}
    with pytest.raises(PrerequisiteError, match="does not know quantization method 'brand-new'"):
        modelshape.read(modelfolder.folder(tmp_path / "config", config))
    files = modelfolder.folder(tmp_path / "files", config, decoder(packed=lambda rows, columns: {"weight": ("I8", (rows, columns))}))
    assert weights_bytes(files) == ENDS_BYTES + VECTORS_BYTES + LINEAR


def test_what_the_engine_does_not_load_is_not_counted(tmp_path: Path) -> None:
    extra: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.layers.2.mlp.up_proj.weight": ("BF16", (WIDTH, HIDDEN)), "mtp.fc.weight": ("BF16", (HIDDEN, HIDDEN)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (32,))}
    assert weights_bytes(modelfolder.folder(tmp_path / "plain", CONFIG, decoder(**extra))) == 2 * PARAMETERS
    tied = modelfolder.folder(tmp_path / "tied", CONFIG | {"tie_word_embeddings": True}, decoder())
    assert weights_bytes(tied) == 2 * (PARAMETERS - VOCABULARY * HIDDEN)


def test_a_vision_tower_in_the_files_counts_among_the_weights_not_the_parameters(tmp_path: Path) -> None:
    tower: dict[str, tuple[str, tuple[int, ...]]] = {"visual.patch_embed.weight": ("BF16", (128, 3, 14, 14))}
    folder = modelfolder.folder(tmp_path, CONFIG | {"vision_config": {}}, decoder(**tower))
    assert modelshape.read(folder).parameters == PARAMETERS
    assert weights_bytes(folder) == 2 * (PARAMETERS + 128 * 3 * 14 * 14)


def test_a_second_copy_beside_the_indexed_shards_is_not_counted(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, CONFIG)
    tensors = list(decoder().items())
    for number in (1, 2):
        modelfolder.safetensors(folder / f"model-{number}.safetensors", dict(tensors[number - 1::2]))
    modelfolder.safetensors(folder / "consolidated.safetensors", decoder())
    placed = {name: f"model-{1 + index % 2}.safetensors" for index, (name, _) in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    assert weights_bytes(folder) == 2 * PARAMETERS
    (folder / "model.safetensors.index.json").unlink()
    assert weights_bytes(folder) == 2 * PARAMETERS


@pytest.mark.parametrize(("damage", "said"), [
    (lambda data: data[:5], "not a safetensors file"),
    (lambda data: data[:200], "cut off inside its header"),
    (lambda data: data[:-1], "the download was cut off"),
    (lambda data: (2).to_bytes(8, "little") + b"[]", "not safetensors' JSON"),
    (lambda data: b"<html>" * 100, "not a safetensors file"),
    (lambda data: data.replace(b'"BF16"', b'"XX16"'), "data type XX16 is not known"),
])
def test_a_damaged_file_is_named_with_what_is_wrong(damage: Any, said: str, tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, CONFIG, decoder())
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PrerequisiteError, match=said) as caught:
        modelshape.read(folder)
    assert str(file) in caught.value.message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, CONFIG)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(PrerequisiteError, match=r"model-1\.safetensors: .* not there \(2 of 2 files\)"):
        modelshape.read(folder)


GPT_OSS = {"model_type": "gpt_oss", "num_local_experts": 2}


@pytest.mark.parametrize(("method", "wanted", "more", "refused"), [
    ("awq", "fp8_per_tensor", {}, True), ("gptq", "fp8_per_tensor", {}, True), ("fp8", "fp8_per_tensor", {}, True),
    ("compressed-tensors", "fp8_per_tensor", {}, True), ("mxfp4", "fp8", {}, True), ("gptq", "awq", {}, True),
    ("modelopt", "fp8_per_tensor", {}, True),
    ("awq", "awq_marlin", {}, False), ("gptq", "auto_gptq", {}, False), ("fp8", "fp8", {}, False), ("awq", "", {}, False),
    ("awq", "humming", {}, False), ("auto-round", "fp8_per_tensor", {}, False), ("modelopt", "fp8_per_tensor", {"quant_algo": "NVFP4"}, False),
    ("mxfp4", "fp8", GPT_OSS, False), ("mxfp4", "fp8_per_tensor", GPT_OSS, False), ("mxfp4", "humming", GPT_OSS, True)])
def test_a_method_that_the_engine_refuses_for_the_checkpoint_is_an_error_with_its_line(method: str, wanted: str, more: dict[str, Any], refused: bool,
                                                                                          tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", CONFIG | more | {"quantization_config": {"quant_method": method, **more}})
    done = verbs.call("check", "--profile", "throughput", "--set", f"MODEL_DIR={folder}", "--set", f"ENGINE_QUANTIZATION={wanted}")
    assert done.returncode == (2 if refused else 0), done.stderr
    assert (f"--set: ENGINE_QUANTIZATION: the checkpoint in {folder} is quantized already ({method})" in done.stderr) == refused


def test_a_method_that_takes_a_quantized_checkpoint_is_refused_for_another(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", CONFIG)
    done = verbs.call("check", "--profile", "throughput", "--set", f"MODEL_DIR={folder}", "--set", "ENGINE_QUANTIZATION=awq")
    assert done.returncode == 2
    assert f"--set: ENGINE_QUANTIZATION: the checkpoint in {folder} is not quantized, and the engine refuses to make awq of it." in done.stderr


def test_a_method_that_the_engine_is_about_to_drop_needs_its_line(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", CONFIG | {"quantization_config": {"quant_method": "fbgemm_fp8"}})
    call = ("check", "--profile", "throughput", "--set", f"MODEL_DIR={folder}")
    done = verbs.call(*call)
    assert done.returncode == 2
    assert "--set: MODEL_DIR: the engine takes fbgemm_fp8" in done.stderr
    assert verbs.call(*call, "--set", "ENGINE_ALLOW_DEPRECATED_QUANTIZATION=true").returncode == 0


def test_a_quantized_checkpoint_is_taken_as_it_is_by_auto_and_a_line_that_quantizes_it_is_refused_with_the_fix(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}})
    (tmp_path / "mine.env").write_text("# mine\nENGINE_QUANTIZATION=fp8_per_tensor\n")
    call = ("check", "--profile", "throughput", "--set", f"MODEL_DIR={folder}")
    taken = verbs.call(*call)
    assert taken.returncode == 0, taken.stderr
    assert "ENGINE_QUANTIZATION=auto: not set: the checkpoint brings its own method (awq)\n" in taken.stdout
    assert "--quantization" not in taken.stdout
    done = verbs.call(*call, "--env-file", str(tmp_path / "mine.env"))
    assert done.returncode == 2
    assert f"{tmp_path}/mine.env:2: ENGINE_QUANTIZATION: the checkpoint in {folder} is quantized already (awq)" in done.stderr
    assert "Set ENGINE_QUANTIZATION=auto" in done.stderr


def test_modelopts_own_file_says_quantization_and_kv_cache(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", CONFIG)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}))
    said = modelshape.read_quantization(folder)
    assert (said["quant_method"], schemes.kv_cache(said)) == ("modelopt", "fp8")


def test_a_config_that_is_no_file_or_nested_without_end_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(PrerequisiteError, match="not a file"):
        modelshape.read(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(PrerequisiteError, match="cannot be read"):
        modelshape.read(tmp_path)


@pytest.mark.parametrize(("key", "value"), [
    ("num_hidden_layers", -4), ("num_hidden_layers", 0), ("num_hidden_layers", 2.5), ("num_hidden_layers", float("inf")),
    ("num_hidden_layers", float("nan")), ("num_attention_heads", 0), ("num_attention_heads", -1), ("num_key_value_heads", 0),
    ("num_key_value_heads", -2), ("head_dim", 0), ("hidden_size", 0), ("vocab_size", -1), ("intermediate_size", 0), ("max_position_embeddings", 0),
    ("sliding_window", -1)])
def test_a_config_with_numbers_that_no_model_has_is_named(key: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=rf"config\.json: {key} is "):
        modelshape.read(modelfolder.folder(tmp_path / "m", CONFIG | {"use_sliding_window": True, key: value}))


@pytest.mark.parametrize(("named", "shown"), [("LlamaForCausalLM", "LlamaForCausalLM"), ([5, None], "5, None"), ([], "qwen2"), (None, "qwen2")])
def test_architectures_are_shown_whatever_they_are(named: Any, shown: str, tmp_path: Path) -> None:
    assert modelshape.read(modelfolder.folder(tmp_path / "m", CONFIG | {"architectures": named})).architecture == shown


# Mistral's own edition

PARAMS: dict[str, Any] = {"dim": 5120, "n_layers": 40, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "hidden_dim": 32_768, "vocab_size": 131_072,
                          "norm_eps": 1e-5, "rope_theta": 1e8, "max_position_embeddings": 32_768}
PUBLISHED: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 32_768, "vocab_size": 131_072, "max_position_embeddings": 32_768,
    "sliding_window": None, "tie_word_embeddings": False}


def mistral(path: Path, **changes: Any) -> modelshape.Model:
    path.mkdir()
    (path / "params.json").write_text(json.dumps(PARAMS | changes))
    return modelshape.read(path)


def test_params_json_alone_says_what_the_config_of_the_same_model_says(tmp_path: Path) -> None:
    assert mistral(tmp_path / "own") == modelshape.read(modelfolder.folder(tmp_path / "hf", PUBLISHED))


def test_the_head_of_mistrals_own_edition_stays_as_it_is(tmp_path: Path) -> None:
    own, tensors = tmp_path / "own", {"tok_embeddings.weight": ("BF16", (64, 32)), "output.weight": ("BF16", (64, 32)),
                                      "layers.0.attention.wq.weight": ("BF16", (32, 32)), "vision_encoder.patch_conv.weight": ("BF16", (8, 8))}
    mistral(own, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, hidden_dim=64, vocab_size=64)
    modelfolder.safetensors(own / "consolidated.safetensors", tensors)
    held = {(weight.kind, weight.rows) for weight in modelshape.read(own).weights}
    assert held == {("embedding", 64), ("head", 64), ("linear", 32), ("modality", 8)}


def test_windows_vision_and_quantization_of_params_json_are_read(tmp_path: Path) -> None:
    found = mistral(tmp_path / "a", sliding_window=[None, 1024, 1024, 1024], quantization={"qformat_weight": "fp8_e4m3"}, vision_encoder={"dim": 8})
    assert (found.attention.full, found.attention.windowed, found.attention.window) == (10, 30, 1024)
    assert found.quantization == {"quant_method": "fp8"}
    assert found.architecture == "PixtralForConditionalGeneration"
    assert any("tower" in note for note in found.notes)
    (tmp_path / "a" / "params.json").write_text(json.dumps({key: value for key, value in PARAMS.items() if key != "max_position_embeddings"}))
    assert modelshape.read(tmp_path / "a").longest == 128_000


@pytest.mark.parametrize("key", ["moe", "qk_nope_head_dim"])
def test_what_is_not_read_of_params_json_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=rf"params\.json: fit does not read {key} in Mistral's own edition"):
        mistral(tmp_path / "m", **{key: {"num_experts": 8}})
