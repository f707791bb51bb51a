"""`auto`: the host and the entrypoint make the same of it, with the same reason; and the number of requests is what the KV cache holds whole."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bundle.config import settings, words
from bundle.config.settings import SELFTEST_MODEL, Settings
from bundle.fit import assessment, estimation, modelshape, quantization
from bundle.fit.request import ALL_THAT_FIT, Request
from bundle.machine import devices
from bundle.service import numbers
from bundle.service.deployment import Deployment
from support import modelfolder
from support.entrypoint import load_entrypoint

QWEN3 = modelfolder.published("qwen3-8b")
FP8 = "fp8_per_tensor"
GPUS = {"rtx-5090": FP8, "rtx-4090": FP8, "h200": FP8, "a100-80gb": "", "the CPU": ""}
"""What 16-bit weights become there."""

MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}

Files = Mapping[str, Any]
CHECKPOINTS: dict[str, tuple[Files, bool]] = {
    "bfloat16": ({"config.json": QWEN3}, True),
    "float16, by the newer name": ({"config.json": {**QWEN3, "torch_dtype": None, "dtype": "float16"}}, True),
    "no type named": ({"config.json": {key: value for key, value in QWEN3.items() if key not in ("dtype", "torch_dtype")}}, True),
    "float32, which the engine narrows": ({"config.json": {**QWEN3, "torch_dtype": "torch.float32"}}, True),
    "text model inside": ({"config.json": {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {**QWEN3}}}, True),
    "an empty quantization_config": ({"config.json": {**QWEN3, "quantization_config": {}}}, True),
    "Mistral's own edition": ({"params.json": {"dim": 4096, "n_layers": 32}}, True),
    "AWQ": ({"config.json": {**QWEN3, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}}, False),
    "GPTQ": ({"config.json": {**QWEN3, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}}, False),
    "FP8 in blocks": ({"config.json": {**QWEN3, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}}, False),
    "compressed-tensors": ({"config.json": {**QWEN3, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}}}, False),
    "compression_config": ({"config.json": {**QWEN3, "compression_config": {"quant_method": "compressed-tensors"}}}, False),
    "mxfp4": ({"config.json": {**QWEN3, "quantization_config": {"quant_method": "mxfp4"}}}, False),
    "ModelOpt, in config.json": ({"config.json": {**QWEN3, "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}}, False),
    "ModelOpt, in a file of its own": ({"config.json": QWEN3, "hf_quant_config.json": MODELOPT}, False),
    "inside of the text model": ({"config.json": {"text_config": {**QWEN3, "quantization_config": {"quant_method": "fp8"}}}}, False),
    "Mistral's own edition in FP8": ({"params.json": {"dim": 4096, "quantization": {"qformat_weight": "fp8_e4m3"}}}, False),
    "8-bit weights without a method": ({"config.json": {**QWEN3, "torch_dtype": "float8_e4m3fn"}}, False),
    "config.json is no JSON": ({"config.json": "{"}, False),
    "no config.json": ({}, False),
}


@pytest.fixture(scope="module")
def entrypoint() -> ModuleType:
    return load_entrypoint()


def folder_of(tmp_path: Path, files: Files) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def by_host(model: Path | str, gpu: str, *sets: str) -> words.Resolved | None:
    """What the scripts make of ENGINE_QUANTIZATION=auto for a model in a folder, or one that is named."""
    on_cpu = gpu == "the CPU"
    where = [f"MODEL_DIR={model}"] if isinstance(model, Path) else ["MODEL_DIR=", f"ENGINE_MODEL={model}", "HOST_ENGINE_OFFLINE=false"]
    chosen = settings.load("cpu" if on_cpu else "throughput", sets=[*where, "ENGINE_QUANTIZATION=auto", *sets])
    return assessment.assess_on(chosen, None if on_cpu else devices.find(gpu)).resolved.get("ENGINE_QUANTIZATION")


def by_container(entrypoint: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path | str, gpu: str, **more: str) -> words.Resolved:
    """What the entrypoint makes of it, where nvidia-smi shows that GPU."""
    on_cpu = gpu == "the CPU"
    version = "" if on_cpu else ".".join(map(str, devices.find(gpu).capability))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{version}, {gpu}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found: words.Resolved = entrypoint.quantization({"ENGINE_MODEL": str(model), **more}, on_cpu=on_cpu)
    return found


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_host_and_entrypoint_make_the_same_of_auto(checkpoint: str, gpu: str, entrypoint: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                    tmp_path: Path) -> None:
    files, is_16_bit = CHECKPOINTS[checkpoint]
    folder = folder_of(tmp_path, files)
    found = by_host(folder, gpu)
    assert found == by_container(entrypoint, monkeypatch, tmp_path, folder, gpu)
    assert found
    assert found.value == (GPUS[gpu] if is_16_bit else ""), found.why
    assert found.why


@pytest.mark.parametrize(("model", "gpu", "dtype", "why"), [
    ("Qwen/Qwen3-8B", "rtx-5090", "", "Qwen/Qwen3-8B is a hub name, so that its config.json is not here to look at"),
    ("folder", "rtx-5090", "float32", "ENGINE_DTYPE=float32 asks for 32 bits"),
])
def test_what_else_decides_is_the_same_for_both(model: str, gpu: str, dtype: str, why: str, entrypoint: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                tmp_path: Path) -> None:
    where = folder_of(tmp_path, {"config.json": QWEN3}) if model == "folder" else model
    expected = words.Resolved(value="", why=why)
    assert by_host(where, gpu, f"ENGINE_DTYPE={dtype}") == expected
    assert by_container(entrypoint, monkeypatch, tmp_path, where, gpu, ENGINE_DTYPE=dtype) == expected


def test_each_word_is_one_that_the_engine_knows_or_the_rules_allow() -> None:
    chosen = settings.load("throughput", sets=["ENGINE_GPU_MEMORY_UTILIZATION=auto", "ENGINE_QUANTIZATION=auto", "ENGINE_MAX_NUM_SEQS=auto"])
    assert not chosen.errors
    assert {word for before, word in zip(chosen.argv, chosen.argv[1:], strict=False) if before in words.WORDS} == {"auto"}


def test_a_model_in_the_image_is_left_to_the_entrypoint_but_the_bundles_own() -> None:
    assert by_host("/opt/somewhere/model", "rtx-5090") is None
    own = by_host(SELFTEST_MODEL, "rtx-5090")
    assert own
    assert own.value == FP8


def test_of_two_gpus_the_one_that_can_less_decides(entrypoint: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"config.json": QWEN3})
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '12.0, NVIDIA GeForce RTX 5090\\n8.6, NVIDIA GeForce RTX 3090\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = entrypoint.quantization({"ENGINE_MODEL": str(folder)}, on_cpu=False)
    assert str(found) == "not set: 16-bit weights, and NVIDIA GeForce RTX 3090 (8.6) has no 8-bit floating point"


@pytest.mark.parametrize("gpu", ["rtx-5090", "a100-80gb"])
@pytest.mark.parametrize("checkpoint", ["bfloat16", "AWQ", "FP8 in blocks", "compressed-tensors", "ModelOpt, in a file of its own"])
def test_what_auto_becomes_is_nothing_that_the_engine_refuses(checkpoint: str, gpu: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, CHECKPOINTS[checkpoint][0])
    found = by_host(folder, gpu)
    assert found
    assert quantization.takes(modelshape.read_quantization(folder), found.value)


# The KV cache that a checkpoint declares, as the engine does it (vLLM 0.33.0; the sources stand at quantization.kv_cache)

SCHEME = {"num_bits": 8, "type": "float", "dynamic": False, "strategy": "tensor"}


@pytest.mark.parametrize(("config", "dtype"), [
    ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "fp8"),
    ({"quant_method": "modelopt_fp4", "quantization": {"kv_cache_quant_algo": "NVFP4"}}, "nvfp4"),
    ({"quant_method": "modelopt", "kv_cache_scheme": SCHEME}, "fp8"),
    ({"quant_method": "modelopt", "kv_cache_scheme": {**SCHEME, "dynamic": True}}, ""),
    ({"quant_method": "modelopt", "kv_cache_scheme": {**SCHEME, "type": "int"}}, ""),
    ({"quant_method": "modelopt", "kv_cache_scheme": {**SCHEME, "num_bits": 4}}, "nvfp4"),
    ({"quant_method": "modelopt", "kv_cache_quant_algo": "INT8"}, ""),
    ({"quant_method": "modelopt", "kv_cache_quant_algo": None}, ""),
    ({"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME}, "fp8"),
    ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, ""),
    ({"quant_method": "compressed-tensors"}, ""),
    ({"quant_method": "fp8", "kv_cache_scheme": SCHEME}, ""),
    ({"quant_method": "awq", "kv_cache_quant_algo": "FP8"}, ""),
    ({}, ""),
])
def test_the_kv_cache_that_a_checkpoint_declares_is_estimated_as_the_engine_takes_it(config: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    assert quantization.kv_cache(config) == dtype
    folder = folder_of(tmp_path, {"config.json": {**QWEN3, "quantization_config": config}})
    if config.get("quant_method") in ("modelopt", "compressed-tensors") and dtype in ("fp8", ""):
        whole = {**config, "quant_algo": "FP8", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}}}
        (folder / "config.json").write_text(json.dumps({**QWEN3, "quantization_config": whole}))
        found = assessment.assess(settings.load("throughput", sets=[f"MODEL_DIR={folder}"]), "rtx-5090").estimate
        assert found
        assert found.kv_bytes_per_token == (73_728 if dtype else 147_456)


def test_layers_with_a_latent_do_not_look_at_the_scheme_of_compressed_tensors() -> None:
    assert quantization.kv_cache({"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME}, latent=True) == ""


# As many requests as the KV cache holds

def throughput(tmp_path: Path, *sets: str) -> Settings:
    folder = modelfolder.folder(tmp_path / "qwen3", QWEN3)
    return settings.load("throughput", sets=[f"MODEL_DIR={folder}", *sets])


def test_throughput_computes_as_many_requests_as_its_kv_cache_holds_whole(tmp_path: Path) -> None:
    chosen = throughput(tmp_path)
    found = assessment.assess(chosen, "rtx-5090")
    estimate = found.estimate
    assert estimate
    assert (estimate.request_tokens, estimate.starts) == (768, True)
    assert estimate.max_num_seqs == int(estimate.requests), "no bound but the cache"
    assert estimate.max_num_seqs * 768 <= estimate.kv_tokens < (estimate.max_num_seqs + 2) * 768
    own = assessment.resolved(chosen, found)
    assert own.argv[own.argv.index("--max-num-seqs") + 1] == str(estimate.max_num_seqs)
    assert own.argv[own.argv.index("--quantization") + 1] == FP8
    assert own.origin["ENGINE_MAX_NUM_SEQS"].startswith("auto (env/throughput.env:")
    assert f"{estimate.kv_tokens:,} tokens of KV cache hold" in own.origin["ENGINE_MAX_NUM_SEQS"]


@pytest.mark.parametrize("tokens", [200, 768, 2048, 5000, 16_384, 100_000])
def test_the_number_is_the_largest_that_holds_them_all(tokens: int, tmp_path: Path) -> None:
    chosen = throughput(tmp_path, f"HOST_REQUEST_TOKENS={tokens}")
    found = assessment.assess(chosen, "rtx-5090").estimate
    assert found
    number, device = found.max_num_seqs, devices.find("rtx-5090")

    def held(seqs: int) -> float:
        return estimation.estimate(found.model, replace(found.request, max_num_seqs=seqs), device).requests

    assert held(number) >= number
    assert held(number + 1) < number + 1 or number == 512
    assert found.request_tokens == min(tokens, 16_384), "no request is longer than ENGINE_MAX_MODEL_LEN"


@pytest.mark.parametrize(("sets", "number", "said"), [
    (("HOST_REQUEST_TOKENS=64",), 512, "no more than 512: the largest batch with a graph is 512"),
    (("HOST_REQUEST_TOKENS=64", "ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE=128"), 128, "the largest batch with a graph is 128"),
    (("HOST_REQUEST_TOKENS=64", "ENGINE_CUDAGRAPH_CAPTURE_SIZES=1 2 4 8 96"), 96, "the largest batch with a graph is 96"),
    (("HOST_REQUEST_TOKENS=64", "ENGINE_ENFORCE_EAGER=true", "ENGINE_MAX_NUM_BATCHED_TOKENS=1000"), 1000, "a step has 1,000 tokens, one for each"),
])
def test_graphs_and_the_tokens_of_a_step_bound_it(sets: Sequence[str], number: int, said: str, tmp_path: Path) -> None:
    found = assessment.assess(throughput(tmp_path, *sets), "rtx-5090").estimate
    assert found
    assert found.max_num_seqs == number
    assert said in found.sequences_why


def test_eager_is_bound_by_no_graph(tmp_path: Path) -> None:
    found = assessment.assess(throughput(tmp_path, "HOST_REQUEST_TOKENS=64", "ENGINE_ENFORCE_EAGER=true"), "rtx-5090").estimate
    assert found
    assert found.max_num_seqs > 512


def test_a_smaller_cache_takes_fewer_and_an_8_bit_one_twice_as_many(tmp_path: Path) -> None:
    numbers_ = [found.max_num_seqs for sets in ((), ("ENGINE_KV_CACHE_DTYPE=fp8",), ("ENGINE_KV_CACHE_MEMORY_BYTES=4G",))
                if (found := assessment.assess(throughput(tmp_path, *sets), "rtx-5090").estimate)]
    assert numbers_[2] == 4 * 2**30 // (147_456 * 768)
    assert 1.9 < numbers_[1] / numbers_[0] < 2.1


def test_the_cpu_engine_counts_its_requests_too(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("smollm2-135m"))
    chosen = settings.load("cpu", sets=[f"MODEL_DIR={folder}", "ENGINE_MAX_NUM_SEQS=auto", "HOST_REQUEST_TOKENS=1024"])
    found = assessment.assess(chosen)
    assert found.resolved["ENGINE_MAX_NUM_SEQS"].value == str(2**30 // (128 * 23_040) // 8)


def test_a_window_holds_more_requests_than_the_same_layers_without(tmp_path: Path) -> None:
    gemma = modelshape.read(modelfolder.folder(tmp_path / "g", modelfolder.published("gemma-3-4b")))
    request = Request(target="cuda", max_num_seqs=ALL_THAT_FIT, request_tokens=8192, max_num_batched_tokens=2048)
    sizes = [estimation.estimate(gemma, replace(request, hybrid_cache=hybrid), devices.find("rtx-5090")).max_num_seqs for hybrid in (True, False)]
    assert sizes[0] > sizes[1] > 1


# Before a start

def test_a_host_without_a_gpu_keeps_the_word_and_says_who_resolves_it(tmp_path: Path) -> None:
    chosen = throughput(tmp_path)
    unknown = assessment.Fit(unknown="no GPU to look at")
    assert assessment.resolved(chosen, unknown) == chosen
    assert "ENGINE_MAX_NUM_SEQS=auto stays in it" in assessment.unresolved(chosen)
    assert assessment.unresolved(assessment.decided(chosen, unknown)) == ""


def test_where_the_fit_is_not_known_the_engine_takes_its_own_number(tmp_path: Path) -> None:
    own = assessment.decided(throughput(tmp_path), assessment.Fit(unknown="no GPU to look at"))
    assert "--max-num-seqs" not in own.argv
    assert own.entries["ENGINE_MAX_NUM_SEQS"].file.endswith("the engine's own default, because the fit is not known (no GPU to look at)")


def running(tmp_path: Path, chosen: Settings) -> Deployment:
    """A deployment whose files say that `chosen` runs."""
    deployment = Deployment(project="p", state=tmp_path / "state")
    deployment.write(deployment.texts([chosen]))
    return deployment


@pytest.fixture
def on_5090(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimation, "device_of", lambda *_args: devices.find("rtx-5090"))


def test_a_start_gets_numbers_and_says_them(on_5090: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = throughput(tmp_path)
    expected = assessment.assess(chosen).resolved["ENGINE_MAX_NUM_SEQS"].value
    started = numbers.settled(Deployment(project="p", state=tmp_path / "none"), chosen)
    assert started.value("ENGINE_MAX_NUM_SEQS") == expected
    said = capsys.readouterr().err
    assert f"ENGINE_MAX_NUM_SEQS: {expected}: auto (env/throughput.env:" in said
    assert "ENGINE_QUANTIZATION: fp8_per_tensor: auto (" in said


def test_a_better_estimate_alone_replaces_no_engine(on_5090: None, tmp_path: Path) -> None:
    chosen = throughput(tmp_path)
    own = assessment.decided(chosen, assessment.assess(chosen)).overridden({"ENGINE_MAX_NUM_SEQS": "170"}, "auto, by an earlier estimate")
    deployment = running(tmp_path, own)
    again = numbers.settled(deployment, chosen)
    assert again.value("ENGINE_MAX_NUM_SEQS") == "170"
    assert again.flatten_engine().replace(again.origin["ENGINE_MAX_NUM_SEQS"], "") == own.flatten_engine().replace(
        own.origin["ENGINE_MAX_NUM_SEQS"], ""), "nothing for which Compose would recreate it"


@pytest.mark.parametrize("changed", ["HOST_REQUEST_TOKENS=2000", "ENGINE_MAX_MODEL_LEN=8K", "ENGINE_KV_CACHE_DTYPE=fp8", "HOST_GPUS=1",
                                     "IMAGE_ENGINE=other:cuda"])
def test_what_the_number_comes_from_changes_it(changed: str, on_5090: None, tmp_path: Path) -> None:
    chosen = throughput(tmp_path)
    own = assessment.decided(chosen, assessment.assess(chosen)).overridden({"ENGINE_MAX_NUM_SEQS": "170"}, "auto, by an earlier estimate")
    deployment = running(tmp_path, own)
    assert numbers.settled(deployment, throughput(tmp_path, changed)).value("ENGINE_MAX_NUM_SEQS") != "170"


def test_a_number_of_the_operators_own_is_left_alone(on_5090: None, tmp_path: Path) -> None:
    assert numbers.settled(Deployment(project="p", state=tmp_path / "none"), throughput(tmp_path, "ENGINE_MAX_NUM_SEQS=7")).value(
        "ENGINE_MAX_NUM_SEQS") == "7"
