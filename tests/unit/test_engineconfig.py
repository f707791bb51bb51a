"""`check --deep` asks the image: how it is asked, and what becomes of each answer. The image is a script here; tests/contract asks the real ones."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config import settings
from bundle.config.settings import SELFTEST_MODEL, Settings
from bundle.images import engineconfig
from bundle.machine import daemon, devices

GOOD = {"stage": "configuration", "error": "", "architecture": "Qwen3ForCausalLM", "max_model_len": 2048, "quantization": None,
        "kv_cache_dtype": "auto"}


def load(*sets: str, profile: str = "cpu") -> Settings:
    return settings.load(profile, sets=(f"ENGINE_MODEL={SELFTEST_MODEL}", *sets))


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """A `docker` that notes how it was called, and prints and exits as told."""
    monkeypatch.setattr(daemon, "image_id", lambda _name: "sha256:1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answers(text: str, code: int = 0) -> Path:
        (tmp_path / "answer").write_text(text)
        (tmp_path / "docker").write_text(f'#!/bin/sh\nfor word; do echo "$word" >> {tmp_path}/called; done\ncat {tmp_path}/answer\nexit {code}\n')
        (tmp_path / "docker").chmod(0o755)
        return tmp_path / "called"

    return answers


def test_the_image_is_asked_confined_with_the_deployments_own_words(image: Callable[..., Path], tmp_path: Path) -> None:
    called = image("a line of a library\n" + json.dumps(GOOD) + "\n")
    answer = engineconfig.ask(load(f"MODEL_DIR={tmp_path}", "ENGINE_MODEL=/model", "OMP_NUM_THREADS=2"), None)
    assert answer.summary == "Qwen3ForCausalLM, 2,048 tokens, not quantized"
    words = called.read_text().splitlines()
    assert {"--network=none", "--read-only", "--cap-drop=ALL", f"--volume={tmp_path}:/model:ro", "--env=OMP_NUM_THREADS=2"} <= set(words)
    assert "engine_check.py /model --" in words[-1]
    assert "--max-num-seqs 16" in words[-1]
    assert not any("PRETENDED_GPU" in word for word in words)


def test_a_cuda_image_is_asked_as_on_the_gpu_that_is_meant_and_auto_has_a_number_in_its_place(image: Callable[..., Path]) -> None:
    called = image(json.dumps(GOOD))
    chosen = load("ENGINE_GPU_MEMORY_UTILIZATION=auto", "HOST_GPU_COUNT=2", profile="throughput")
    engineconfig.ask(chosen, devices.find("h200"))
    words = next(shlex.split(word) for word in called.read_text().splitlines() if "PRETENDED_GPU" in word)
    told = next(json.loads(word.removeprefix("PRETENDED_GPU=")) for word in words if word.startswith("PRETENDED_GPU="))
    assert (told["capability"], told["count"], told["total_bytes"] >> 30) == ([9, 0], 2, 139)
    assert "--gpu-memory-utilization 0.9" in called.read_text()
    called.unlink()
    engineconfig.ask(chosen, None)
    assert '"name": "rtx-5090"' in called.read_text()


@pytest.mark.parametrize(("error", "key"), [
    ("ValidationError: ModelConfig Value error, User-specified max_model_len (9) is greater than the derived max_model_len", "ENGINE_MAX_MODEL_LEN"),
    ("ValueError: heads (9) must be divisible by tensor parallel size (2).", "ENGINE_TENSOR_PARALLEL_SIZE"),
    ("argument --max-num-seqs: invalid value", "ENGINE_MAX_NUM_SEQS"),
    ("ValidationError: SpeculativeConfig lookup Unexpected keyword argument", "ENGINE_SPECULATIVE_CONFIG"),
    ("OSError: no such thing", "ENGINE_MODEL"),
])
def test_what_the_engine_refuses_is_an_error_at_the_line_that_its_words_name(error: str, key: str) -> None:
    chosen = load("ENGINE_TENSOR_PARALLEL_SIZE=1", 'ENGINE_SPECULATIVE_CONFIG={"method": "ngram"}')
    held = engineconfig.held_to(chosen, engineconfig.Answer(error=error, found={}))
    (problem,) = held.errors
    assert (problem.key, problem.message) == (key, f"the engine itself refuses it: {error}")
    assert problem.file == chosen.entries[key].file
    assert engineconfig.held_to(chosen, engineconfig.Answer(error="", found=GOOD)) == chosen


@pytest.mark.parametrize(("text", "code"), [("", 0), ("no JSON\n", 0), ("{}", 0), ("[]", 0), ("", 125)])
def test_an_image_that_does_not_answer_is_told(text: str, code: int, image: Callable[..., Path]) -> None:
    image(text, code)
    with pytest.raises(PrerequisiteError):
        engineconfig.ask(load(), None)


def test_without_an_image_or_with_a_hub_name_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "image_id", lambda _name: "")
    with pytest.raises(PrerequisiteError, match=r"no image vllm-bundle/engine:cpu") as missing:
        engineconfig.ask(load(), None)
    assert missing.value.fix == "make build PROFILE=cpu"
    with pytest.raises(ConfigurationError, match="hub name"):
        engineconfig.ask(load("ENGINE_MODEL=a/b", "HOST_ENGINE_OFFLINE=false"), None)
