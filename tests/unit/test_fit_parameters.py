"""Parameters and attention of published models, from their config.json alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.fit import modelshape
from support import modelfolder

# The safetensors total that the hub shows beside each model, which is https://huggingface.co/api/models/<name>, "safetensors.total". The name is
# in `_source` of its config. Two differ from what is shown there: gemma-3-4b is less its vision tower (4,300,079,472 - 419,816,304), gpt-oss-20b
# is that of the model's parts unpacked, as its model card (20.9B) and ollama (20914757184) have it.
PUBLISHED = {
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
}


def read(tmp_path: Path, config: Mapping[str, Any]) -> modelshape.Model:
    return modelshape.read(modelfolder.folder(tmp_path, config))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_were_published_to_the_last_one(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, modelfolder.published(name)).parameters == PUBLISHED[name]


def test_every_config_in_the_folder_is_checked_and_names_its_source() -> None:
    assert {path.stem for path in modelfolder.CONFIGS.glob("*.json")} == PUBLISHED.keys()
    assert all(modelfolder.published(name)["_source"].startswith("https://huggingface.co/") for name in PUBLISHED)


# full, windowed, window, KV heads, elements of a key and of a value
@pytest.mark.parametrize(("name", "geometry"), [
    ("qwen3-8b", (36, 0, 0, 8, 128, 128)),
    ("mistral-7b-v0.1", (0, 32, 4096, 8, 128, 128)),
    ("phi-3-mini-4k", (0, 32, 2047, 32, 96, 96)),
    ("gemma-2-9b", (21, 21, 4096, 8, 256, 256)),
    ("gemma-3-1b", (4, 22, 512, 1, 256, 256)),
    ("gemma-3-4b", (5, 29, 1024, 4, 256, 256)),
    ("gpt-oss-20b", (12, 12, 128, 8, 64, 64)),
    ("qwen2.5-7b-instruct", (28, 0, 0, 4, 128, 128)),
    ("deepseek-v3", (61, 0, 0, 1, 576, 0)),
])
def test_what_each_layer_keeps_follows_from_the_config(name: str, geometry: tuple[int, ...], tmp_path: Path) -> None:
    kept = read(tmp_path, modelfolder.published(name)).attention
    assert (kept.full, kept.windowed, kept.window, kept.kv_heads, kept.key_dim, kept.value_dim) == geometry


@pytest.mark.parametrize(("changed", "longest"), [
    ({}, 131_072),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}}, 131_072),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 262_144),
    ({"rope_scaling": None}, 131_072),
    ({"max_position_embeddings": 4096}, 4096),
])
def test_the_longest_context_is_what_the_engine_accepts(changed: dict[str, Any], longest: int, tmp_path: Path) -> None:
    assert read(tmp_path, modelfolder.published("llama-3.1-8b") | changed).longest == longest


def test_a_longrope_model_defaults_to_its_unscaled_length(tmp_path: Path) -> None:
    scaled = {"max_position_embeddings": 131_072, "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}
    model = read(tmp_path, modelfolder.published("phi-3-mini-4k") | scaled)
    assert (model.longest, model.default_length) == (131_072, 4096)


def test_layers_that_share_another_ones_cache_take_none(tmp_path: Path) -> None:
    assert read(tmp_path, modelfolder.published("qwen3-8b") | {"num_kv_shared_layers": 10}).attention.full == 26


def test_an_unknown_architecture_without_weights_asks_for_the_weights(tmp_path: Path) -> None:
    config = modelfolder.published("qwen3-8b") | {"model_type": "novel", "architectures": ["NovelForCausalLM"]}
    with pytest.raises(PrerequisiteError, match=r"NovelForCausalLM.*config\.json alone") as caught:
        read(tmp_path, config)
    assert "download the weights" in caught.value.fix


def test_an_unknown_architecture_with_weights_is_counted_and_the_assumption_is_said(tmp_path: Path) -> None:
    config = modelfolder.published("smollm2-135m") | {"model_type": "novel", "architectures": ["NovelForCausalLM"]}
    modelfolder.folder(tmp_path, config, {"model.embed_tokens.weight": ("BF16", (49_152, 576)), "x.weight": ("BF16", (576, 576))})
    model = modelshape.read(tmp_path)
    assert model.parameters == 49_153 * 576 + 575 * 576
    assert "plain decoder" in model.notes[0]


@pytest.mark.parametrize(("odd", "named"), [
    ({"layer_types": ["linear_attention"] * 18 + ["full_attention"] * 18}, "18 layers with a state"),
    ({"layer_types": ["retention"] * 36}, "retention"), ({"index_topk": 2048}, "index_topk"), ({"is_encoder_decoder": True}, "cross-attention")])
def test_layers_whose_cache_is_no_plain_one_are_refused_not_guessed(odd: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=rf"Qwen3ForCausalLM has layers whose cache fit cannot compute \(.*{named}"):
        read(tmp_path, modelfolder.published("qwen3-8b") | odd)


def test_too_few_kinds_of_layers_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="names the kinds of 2 layers, and num_hidden_layers is 36"):
        read(tmp_path, modelfolder.published("qwen3-8b") | {"layer_types": ["sliding_attention", "full_attention"]})


def test_a_key_that_the_family_does_not_read_changes_nothing(tmp_path: Path) -> None:
    plain = modelfolder.published("qwen3-8b")
    assert read(tmp_path / "a", plain | {"mamba_d_state": 16, "kv_lora_rank": 512}).attention == read(tmp_path / "b", plain).attention


def test_a_vision_tower_without_weights_is_said_not_to_be_counted(tmp_path: Path) -> None:
    assert any("vision or audio tower is not counted" in note for note in read(tmp_path, modelfolder.published("gemma-3-4b")).notes)


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    config = modelfolder.published("qwen3-8b") | {"model_type": "novel"}
    del config["num_hidden_layers"]
    with pytest.raises(PrerequisiteError, match=r"config\.json: no num_hidden_layers"):
        read(tmp_path, config)


@pytest.mark.parametrize(("text", "said"), [
    (None, "no config.json in it"), ("{", "cannot be read"), ("[]", "not a JSON object"), ("{}", "or an empty one")])
def test_a_missing_or_damaged_config_is_a_missing_prerequisite(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(PrerequisiteError, match=said):
        modelshape.read(tmp_path)
