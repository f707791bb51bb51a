"""Fit: the draft of speculative decoding, counted, named or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bundle.config import settings
from bundle.fit import assessment, drafts, estimation
from bundle.fit.estimation import Estimate
from support import families, modelfolder, verbs

SMALL = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936, "max_position_embeddings": 40_960,
         "tie_word_embeddings": True}
EAGLE3 = SMALL | {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 1,
                  "num_attention_heads": 32, "intermediate_size": 12_288}
TOKEN = 147_456  # of Qwen3-8B


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder with a model and three drafts."""
    modelfolder.folder(tmp_path / "store/qwen3", modelfolder.published("qwen3-8b"))
    modelfolder.folder(tmp_path / "store/small", SMALL)
    modelfolder.folder(tmp_path / "store/head", EAGLE3, {
        "midlayer.mlp.up_proj.weight": ("BF16", (12_288, 4096)), "fc.weight": ("BF16", (4096, 12_288))})
    modelfolder.folder(tmp_path / "store/stranger", SMALL | {"vocab_size": 32_000})
    return tmp_path / "store"


def sets(store: Path, said: dict[str, Any], *more: str) -> list[str]:
    return [f"MODEL_DIR={store}", "ENGINE_MODEL=/model/qwen3", f"ENGINE_SPECULATIVE_CONFIG={json.dumps(said)}", "ENGINE_QUANTIZATION=",
            "ENGINE_MAX_NUM_SEQS=64", *more]


def fit(store: Path, said: dict[str, Any], *more: str) -> Estimate:
    chosen = settings.load("throughput", sets=sets(store, said, *more))
    folder = assessment.model_folder(chosen)
    assert folder
    found = assessment.estimated(chosen, folder, estimation.device_of(chosen, "rtx-5090")).estimate
    assert found
    return found


def test_a_smaller_model_counts_with_its_weights_and_its_cache(store: Path) -> None:
    plain = fit(store, {"method": "ngram", "num_speculative_tokens": 3})
    found = fit(store, {"model": "/model/small", "num_speculative_tokens": 3})
    assert plain.kv_bytes_per_token == TOKEN
    assert found.kv_bytes_per_token == TOKEN + 28 * 2 * 8 * 128 * 2
    assert found.weights_bytes - plain.weights_bytes == 596_049_920 * 2  # parameters as published with Qwen3-0.6B
    assert found.kv_bytes < plain.kv_bytes - 596_049_920 * 2


def test_a_head_that_reads_the_models_states_counts_as_its_files_say(store: Path) -> None:
    plain = fit(store, {"method": "ngram", "num_speculative_tokens": 3})
    found = fit(store, {"method": "eagle3", "model": "/model/head", "num_speculative_tokens": 3})
    assert found.kv_bytes_per_token == TOKEN + 2 * 8 * 128 * 2
    assert found.weights_bytes - plain.weights_bytes == 2 * 2 * 12_288 * 4096
    assert "counts among weights and KV cache" in found.notes[-1]


def test_mtp_layers_are_the_models_own_and_are_loaded_for_guessing_alone(tmp_path: Path) -> None:
    config = families.with_draft("qwen3-next-80b and its MTP layer")
    tensors = {"model.embed_tokens.weight": ("BF16", (64, 64)), "mtp.layers.0.mlp.up_proj.weight": ("BF16", (64, 128))}
    modelfolder.folder(tmp_path / "qwen3", config, tensors)
    more = ("ENGINE_MAX_MODEL_LEN=4096",)
    plain, found = (fit(tmp_path, {"method": method, "num_speculative_tokens": 1}, *more) for method in ("ngram", "mtp"))
    assert found.kv_bytes_per_token == plain.kv_bytes_per_token * 13 // 12
    assert found.weights_bytes - plain.weights_bytes == 2 * 64 * 128


@pytest.mark.parametrize(("said", "named"), [
    ({"method": "eagle3", "model": "org/eagle", "num_speculative_tokens": 3}, "(eagle3, org/eagle), which is not on this host"),
    ({"method": "dflash", "model": "/model/small", "num_speculative_tokens": 3}, "(dflash, /model/small), fit does not know its layers"),
    ({"method": "mtp", "num_speculative_tokens": 1}, "the MTP layers of Qwen3ForCausalLM, whose cache fit does not know")])
def test_a_draft_that_cannot_be_counted_is_named(said: dict[str, Any], named: str, store: Path) -> None:
    found = fit(store, said)
    assert found.kv_bytes_per_token == TOKEN
    assert f"not counted: the draft of ENGINE_SPECULATIVE_CONFIG {named}" in found.notes or f"not counted: {named}" in found.notes


@pytest.mark.parametrize(("said", "why"), [
    ({"model": "/model/stranger", "num_speculative_tokens": 3}, "has a vocabulary of 32,000 tokens, and the model has 151,936"),
    ({"model": "/model/gone", "num_speculative_tokens": 3}, "on this host, and there is no config.json"),
    ({"method": "eagle3", "model": "/model/head"}, "it does not say how many tokens are guessed ahead")])
def test_a_draft_that_the_engine_refuses_is_an_error_with_its_line_for_check_and_fit(said: dict[str, Any], why: str, store: Path) -> None:
    (store / "mine.env").write_text("# mine\n" + "\n".join(sets(store, said)[:3]) + "\n")
    for verb in ("check", "fit"):
        done = verbs.call(verb, "--profile", "throughput", "--gpu", "rtx-5090", "--env-file", str(store / "mine.env"))
        assert done.returncode == 2, done.stderr
        assert f"{store}/mine.env:4: ENGINE_SPECULATIVE_CONFIG: " in done.stderr
        assert why in done.stderr


def test_mtp_for_a_model_without_such_layers_is_refused(tmp_path: Path) -> None:
    config = {key: value for key, value in families.with_draft("glm-4.5-air and its MTP layer").items() if key != "num_nextn_predict_layers"}
    folder = modelfolder.folder(tmp_path / "m", config)
    assert "has no layers for it (no num_nextn_predict_layers" in drafts.refused(drafts.Draft(method="mtp", guesses=1), folder)


@pytest.mark.parametrize(("said", "method"), [
    ({"method": "ngram"}, "ngram"), ({"model": "[ngram]"}, "ngram"), ({"method": "deepseek_mtp"}, "mtp"),
    ({"model": "org/EAGLE3-LLaMA3.1-8B"}, "eagle3"),
    ({"model": "org/EAGLE-LLaMA3"}, "eagle"), ({"model": "org/small"}, "draft_model"), ({"method": "suffix"}, "suffix")])
def test_the_method_is_told_as_the_engine_tells_it(said: dict[str, Any], method: str) -> None:
    found = drafts.of(settings.load("throughput", sets=[f"ENGINE_SPECULATIVE_CONFIG={json.dumps(said)}"]))
    assert found
    assert found.method == method


def test_the_short_flags_say_the_same() -> None:
    found = drafts.of(settings.load("throughput", sets=["ENGINE_SPEC_METHOD=eagle3", "ENGINE_SPEC_MODEL=org/head", "ENGINE_SPEC_TOKENS=2"]))
    assert found == drafts.Draft(method="eagle3", model="org/head", guesses=2, key="ENGINE_SPEC_METHOD")
