"""What fit makes of the families that are no plain decoders: KV bytes of a token, state of a sequence, longest context. tests/contract asks the
engine itself about the same configs; the figures here were counted by hand, or stand in a public report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.config import settings
from bundle.fit import assessment, estimation, modelshape
from bundle.fit.estimation import Estimate
from bundle.fit.request import Request
from bundle.machine.devices import find
from support import families, modelfolder

CONFIGS = families.configs()
WEIGHTS: modelfolder.Tensors = {"model.embed_tokens.weight": ("BF16", (1024, 64)), "model.layers.0.mlp.up_proj.weight": ("BF16", (64, 64))}


def folder(path: Path, config: Mapping[str, Any]) -> Path:
    return modelfolder.folder(path, config, WEIGHTS)


def estimate(path: Path, name: str, **request: Any) -> Estimate:
    return estimation.estimate(modelshape.read(folder(path, CONFIGS[name])), Request(target="cuda", **request), find("rtx-5090"))


# KV bytes of a token with a 16-bit cache, and bytes of a sequence's state. Kimi-Linear cannot be asked of the CPU engine: its 20 layers keep
# 3 × 4096 channels × 3 inputs in bfloat16 and 32 × 128 × 128 in float32 (models/kimi_linear, MambaStateShapeCalculator.kda_state_shape).
@pytest.mark.parametrize(("name", "token", "state"), [
    ("minicpm3-4b", 62 * 2 * 40 * 96 * 2, 0),
    ("deepseek-ocr", 12 * 2 * 10 * 128 * 2, 0),
    ("kimi-linear-48b", 7 * 576 * 2, 20 * (3 * 4096 * 3 * 2 + 32 * 128 * 128 * 4)),
    ("lfm2-1.2b", 6 * 2 * 8 * 64 * 2, 10 * 2048 * 2 * 2),
    ("granite-4.0-micro", 40 * 2 * 8 * 64 * 2, 0),
    ("granite-4.0-h-small", 16_384, 77_322_240),
    ("qwen3.6-27b", 16 * 2 * 4 * 256 * 2, 153_944_064),
    ("qwen3.6-27b-bf16-state", 16 * 2 * 4 * 256 * 2, 78_446_592),
    ("qwen3-next-80b", 24_576, 39_518_208),
    ("jamba-mini", 16_384, 8_716_288),
    ("mamba2-1.3b", 0, 51_585_024),
    ("llava-1.5-7b", 524_288, 0),
    ("qwen2.5-omni-7b", 57_344, 0),
    ("falcon-7b", 8_192, 0),
    ("falcon-40b", 122_880, 0),
    ("gemma-3n-e4b", 20 * 2 * 2 * 256 * 2, 0),  # the last 15 of 35 layers read the cache of those before them
    ("bge-m3", 0, 0),
])
def test_a_token_and_a_sequence_take_what_the_engine_keeps_of_them(name: str, token: int, state: int, tmp_path: Path) -> None:
    found = estimate(tmp_path, name)
    assert (found.kv_bytes_per_token, found.state_bytes) == (token, state)


def test_no_config_of_the_table_is_refused_but_those_that_say_why(tmp_path: Path) -> None:
    refused = {}
    for name in CONFIGS:
        try:
            estimate(tmp_path / name, name)
        except PrerequisiteError as error:
            refused[name] = error.message
    assert refused.keys() == {"deepseek-v3.2"}
    assert "DeepseekV32ForCausalLM has layers whose cache fit cannot compute (index_topk: a sparse attention's index" in refused["deepseek-v3.2"]


BLOCKS = [{"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 1.0}}, {"attention": {"no_op": True, "n_heads_in_group": None}},
          {"attention": {"replace_with_linear": True}}, {"attention": {"n_heads_in_group": 16}}]


def test_blocks_that_differ_are_counted_one_by_one(tmp_path: Path) -> None:
    config = families.text("DeciLMForCausalLM", "nemotron-nas", 8192, 4, 64, None, 28_672, 128_256, 131_072, block_configs=BLOCKS)
    kept = modelshape.read(folder(tmp_path, config | {"intermediate_size": None})).attention
    assert [(one.layers, one.kv_heads, one.key_dim) for one in kept.kept] == [(1, 8, 128), (1, 4, 128)]


def test_kinds_of_blocks_are_kinds_of_layers(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIGS["nemotron-h-8b"].items() if key != "hybrid_override_pattern"}
    blocks = [{"block_type": kind, "n_routed_experts": 8} for kind in ("mamba", "moe", "attention", "moe")] * 13
    kept = modelshape.read(folder(tmp_path, config | {"block_configs": blocks})).attention
    assert kept.states is not None
    assert (kept.full, kept.states.layers) == (13, 13)


@pytest.mark.parametrize(("more", "named"), [
    ({"mamba_d_state": 128, "attn_layer_indices": [9, 18]}, "mamba_d_state, attn_layer_indices"), ({"attn_type_list": [0, 1]}, "lightning attention"),
    ({"use_cla": True, "cla_share_factor": 2}, "a cache that layers share"), ({"compress_ratios": [4, 128]}, "compressed caches")])
def test_a_family_that_is_not_known_is_refused_by_the_keys_that_would_be_miscounted(more: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = families.text("BambaForCausalLM", "novel", 4096, 4, 32, 8, 14_336, 128_256, 4096, **more)
    with pytest.raises(PrerequisiteError, match=f"BambaForCausalLM has layers whose cache fit cannot compute .*{named}"):
        modelshape.read(folder(tmp_path, config))


def test_a_cache_that_could_be_shared_and_is_not_is_counted(tmp_path: Path) -> None:
    config = {**CONFIGS["hunyuan-7b"], "use_cla": False, "cla_share_factor": 2}
    assert modelshape.read(folder(tmp_path, config)).attention.full == 32


@pytest.mark.parametrize("path", [("text_config",), ("llm_config",), ("language_config",), ("thinker_config", "text_config")])
def test_the_text_model_is_found_wherever_it_stands(path: tuple[str, ...], tmp_path: Path) -> None:
    inner: dict[str, Any] = {key: value for key, value in CONFIGS["qwen3-8b"].items() if key != "architectures"}
    for key in reversed(path):
        inner = {key: inner}
    found = modelshape.read(folder(tmp_path, {"architectures": ["NovelForConditionalGeneration"], "model_type": "novel", **inner}))
    assert (found.attention.full, found.attention.kv_heads, found.longest) == (36, 8, 40_960)


def test_an_encoder_starts_without_a_kv_cache_up_to_its_tokenizers_length(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 8192}')
    found = estimate(tmp_path, "bge-m3")
    assert found.starts
    assert (found.max_model_len, found.kv_tokens, found.sequence_bytes) == (8192, 0, 0)
    assert not estimate(tmp_path, "bge-m3", max_model_len=8194).starts
    chosen = settings.load("throughput", sets=[f"MODEL_DIR={tmp_path}", "ENGINE_MAX_MODEL_LEN="])
    assert "no KV cache, which an encoder does not keep; 8,192 tokens at most" in assessment.assess(chosen, "rtx-5090").summary


YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1_000_000, "factor": 4.0, "original_max_position_embeddings": 32_768},
        "max_position_embeddings": 131_072}


def test_overrides_reach_fit_from_the_env_file(tmp_path: Path) -> None:
    modelfolder.folder(tmp_path, CONFIGS["qwen3-8b"])
    sets = [f"MODEL_DIR={tmp_path}", "ENGINE_MAX_MODEL_LEN=131072", "ENGINE_KV_CACHE_DTYPE=fp8", "ENGINE_GPU_MEMORY_UTILIZATION=0.92"]
    plain = assessment.assess(settings.load("throughput", sets=sets), "rtx-5090").estimate
    longer = assessment.assess(settings.load("throughput", sets=[*sets, f"ENGINE_HF_OVERRIDES={json.dumps(YARN)}"]), "rtx-5090").estimate
    assert plain is not None
    assert "more than the model's 40,960 tokens" in plain.problems[0]
    assert longer is not None
    assert longer.starts, longer.problems
    assert longer.max_model_len == 131_072


@pytest.mark.parametrize(("changes", "longest"), [
    (YARN, 131_072),
    ({"max_position_embeddings": 8192}, 8192),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 81_920),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 163_840),
    ({"rope_parameters": YARN["rope_parameters"]}, 40_960),  # YaRN's factor is said to be in the length already
])
def test_an_override_of_length_and_rope_does_what_the_engine_does_with_it(changes: dict[str, Any], longest: int, tmp_path: Path) -> None:
    assert modelshape.read(modelfolder.folder(tmp_path, CONFIGS["qwen3-8b"]), changes).longest == longest


@pytest.mark.parametrize("changes", [{"rope_parameters": 7}, {"layer_types": 5}, {"rope_scaling": "yarn"}])
def test_an_override_of_a_form_that_no_model_has_is_told_and_not_a_traceback(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"config\.json with ENGINE_HF_OVERRIDES"):
        modelshape.read(modelfolder.folder(tmp_path, CONFIGS["qwen3-8b"]), changes)


def test_an_override_of_rope_replaces_the_one_in_the_file_under_either_name(tmp_path: Path) -> None:
    old = modelfolder.folder(tmp_path, {**CONFIGS["qwen3-8b"], "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert [modelshape.read(old, change).longest for change in ({}, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}})] == [327_680, 81_920]


def test_an_override_inside_a_nested_config_leaves_the_rest_of_it(tmp_path: Path) -> None:
    changed = modelshape.read(folder(tmp_path, CONFIGS["qwen3-vl-8b"]), {"text_config": {"max_position_embeddings": 4096}})
    assert (changed.longest, changed.attention.full) == (4096, 36)


@pytest.mark.parametrize(("prefix_caching", "states"), [(True, 2), (False, 1)])
def test_the_prefix_cache_of_a_hybrid_keeps_a_second_state_of_each_sequence(prefix_caching: bool, states: int, tmp_path: Path) -> None:
    found = estimate(tmp_path, "qwen3.6-27b", max_model_len=16_384, prefix_caching=prefix_caching)
    page = 784 * 2 * 4 * 256 * 2  # the fewest tokens, 16 at a time, whose keys and values take as much as one layer's state of 3,207,168 bytes
    assert found.block_tokens == 784
    assert found.sequence_bytes == 16 * page * (21 + 3 * states + 1)


def test_graphs_hold_every_layer_of_a_hybrid(tmp_path: Path) -> None:
    found = modelshape.read(folder(tmp_path, CONFIGS["qwen3.6-27b"])).attention
    assert (found.layers, found.depth) == (16, 64)


def test_a_hybrids_states_are_split_over_gpus(tmp_path: Path) -> None:
    one, two = (estimate(tmp_path, "qwen3.6-27b", tensor_parallel=gpus) for gpus in (1, 2))
    assert two.state_bytes * 2 == one.state_bytes


def test_a_group_that_a_gpu_cannot_share_is_held_by_each(tmp_path: Path) -> None:
    one, two = (estimate(tmp_path, "granite-4.0-h-small", tensor_parallel=gpus) for gpus in (1, 2))
    assert two.state_bytes * 2 - one.state_bytes == 36 * 3 * 2 * 128 * 2  # 36 layers, 3 inputs of 2 × 128 channels more, bfloat16


def test_states_are_kept_in_the_type_that_was_asked_for(tmp_path: Path) -> None:
    wide, narrow = (estimate(tmp_path, "qwen3.6-27b", state_type=kind) for kind in ("", "bfloat16"))
    assert (wide.state_bytes, narrow.state_bytes) == (153_944_064, 78_446_592)


def test_consolidated_weights_and_their_other_edition_are_the_same_bytes(tmp_path: Path) -> None:
    config = {**CONFIGS["mistral-small-24b"], "num_hidden_layers": 1, "vocab_size": 1024}
    theirs = {"tok_embeddings.weight": ("BF16", (1024, 5120)), "output.weight": ("BF16", (1024, 5120)), "norm.weight": ("BF16", (5120,)),
              "layers.0.attention.wq.weight": ("BF16", (4096, 5120))}
    ours = {"model.embed_tokens.weight": ("BF16", (1024, 5120)), "lm_head.weight": ("BF16", (1024, 5120)), "model.norm.weight": ("BF16", (5120,)),
            "model.layers.0.self_attn.q_proj.weight": ("BF16", (4096, 5120))}
    modelfolder.folder(tmp_path / "own", config)
    modelfolder.safetensors(tmp_path / "own" / "consolidated.safetensors", theirs)
    sizes = [estimation.estimate(modelshape.read(path), Request(target="cuda", quantization="fp8_per_tensor"), find("rtx-5090")).weights_bytes
             for path in (tmp_path / "own", modelfolder.folder(tmp_path / "hf", config, ours))]
    assert sizes == [2 * 2 * 1024 * 5120 + 2 * 5120 + 4096 * 5120 + 4] * 2


def test_what_a_tower_makes_of_images_is_kept_unless_only_text_is_served(tmp_path: Path) -> None:
    both, text = (estimate(tmp_path, "qwen3-vl-8b", max_num_batched_tokens=8192, text_only=only) for only in (False, True))
    assert both.overhead_bytes - text.overhead_bytes == 8192 * 4096 * 2


@pytest.mark.parametrize("name", ["embed_tokens_per_layer.weight", "layers.0.mixer.conv1d.weight"])
def test_embeddings_and_convolutions_stay_in_16_bits(name: str, tmp_path: Path) -> None:
    def size(quantization: str) -> int:
        model = modelshape.read(modelfolder.folder(tmp_path, CONFIGS["qwen3-8b"], {f"model.{name}": ("BF16", (512, 64))}))
        return estimation.estimate(model, Request(target="cuda", quantization=quantization), find("rtx-5090")).weights_bytes

    assert size("fp8_per_tensor") == size("") == 512 * 64 * 2


def test_a_tower_deeper_than_the_text_is_counted_and_a_draft_head_is_not(tmp_path: Path) -> None:
    layer = ("BF16", (64, 64))
    tensors = {"model.layers.0.mlp.up_proj.weight": layer, "vision_tower.encoder.layers.40.mlp.fc1.weight": layer,
               "model.layers.36.eh_proj.weight": layer, "mtp.layers.0.mlp.up_proj.weight": layer, "talker.model.layers.0.mlp.up_proj.weight": layer}
    weights = modelshape.read(modelfolder.folder(tmp_path, CONFIGS["qwen3-8b"], tensors)).weights
    assert sorted(weight.kind for weight in weights for _ in range(weight.count)) == ["linear", "modality"]
