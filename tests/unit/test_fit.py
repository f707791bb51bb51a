"""The verdict: what starts on which GPU, the nearest change that lets it start, and the estimate beside an engine's log."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config import settings
from bundle.fit import assessment, estimation, modelshape, overhead, remedies
from bundle.fit.estimation import Estimate
from bundle.fit.request import Request, requested
from bundle.machine import devices
from bundle.machine.devices import GIB, find
from support import modelfolder, verbs
from support.fakehost import FakeHost


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    return modelfolder.folder(tmp_path / "qwen3", modelfolder.published("qwen3-8b"))


# Every value that matters here, so that a profile may change without these tests.
CUDA = ("IMAGE_TARGET=cuda", "ENGINE_QUANTIZATION=fp8_per_tensor", "ENGINE_GPU_MEMORY_UTILIZATION=0.93", "ENGINE_MAX_MODEL_LEN=16K",
        "ENGINE_MAX_NUM_SEQS=256", "ENGINE_MAX_NUM_BATCHED_TOKENS=8192", "ENGINE_PERFORMANCE_MODE=", "ENGINE_KV_CACHE_DTYPE=",
        "ENGINE_ENFORCE_EAGER=", "ENGINE_KV_CACHE_MEMORY_BYTES=", "ENGINE_CUDAGRAPH_CAPTURE_SIZES=")
CPU = ("IMAGE_TARGET=cpu", "VLLM_CPU_KVCACHE_SPACE=1", "HOST_ENGINE_MEMORY=8g", "ENGINE_MAX_MODEL_LEN=2048")


def on(folder: Path, *sets: str, profile: str = "throughput", gpu: str = "rtx-5090") -> Estimate:
    """The estimate with single values over a plain deployment."""
    chosen = settings.load(profile, sets=[*(CPU if profile == "cpu" else CUDA), *sets])
    found = assessment.estimated(chosen, folder, estimation.device_of(chosen, gpu)).estimate
    assert found
    return found


def script(*arguments: str) -> CompletedProcess[str]:
    return verbs.call("fit", *arguments)


# The verdict

def test_the_seeds_099_is_refused_on_a_5090_with_its_arithmetic_and_auto_starts(qwen3: Path) -> None:
    refused = on(qwen3, "ENGINE_GPU_MEMORY_UTILIZATION=0.99")
    assert not refused.starts
    assert refused.problems[0].startswith("31.05 GiB are wanted of 31.36, and 30.86 are free at start")
    assert on(qwen3, "ENGINE_GPU_MEMORY_UTILIZATION=auto").starts


@pytest.mark.parametrize("gpu", devices.names())
def test_auto_is_the_most_that_starts_with_the_margin_left(gpu: str) -> None:
    device = find(gpu)
    share = estimation.most_that_starts(device)
    assert device.free - share * device.total >= estimation.AUTO_MARGIN_BYTES
    assert device.free - (share + 0.001) * device.total < estimation.AUTO_MARGIN_BYTES


def test_a_sequence_that_does_not_fit_is_refused_with_what_it_needs(qwen3: Path) -> None:
    refused = on(qwen3, "ENGINE_QUANTIZATION=", "ENGINE_MAX_MODEL_LEN=131072", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    assert len(refused.problems) == 1
    assert refused.problems[0].startswith("one sequence of 131,072 tokens needs 18.00 GiB of KV cache, and there are 11.")


def test_a_length_beyond_the_models_is_refused_unless_it_is_allowed(qwen3: Path) -> None:
    assert "more than the model's 40,960 tokens" in on(qwen3, "ENGINE_MAX_MODEL_LEN=64K").problems[0]
    assert on(qwen3, "ENGINE_MAX_MODEL_LEN=64K", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1").starts


def test_auto_length_is_the_longest_that_fits(qwen3: Path) -> None:
    sets = ("ENGINE_QUANTIZATION=", "ENGINE_GPU_MEMORY_UTILIZATION=0.7", "ENGINE_MAX_MODEL_LEN=")
    found = on(qwen3, sets[0], sets[1], "ENGINE_MAX_MODEL_LEN=auto")
    assert found.starts
    assert 1024 < found.max_model_len < 40_960
    assert not on(qwen3, *sets, f"ENGINE_MAX_MODEL_LEN={found.max_model_len + found.block_tokens}").starts


def test_kv_memory_that_is_set_is_what_there_is_and_must_be_free(qwen3: Path) -> None:
    assert on(qwen3, "ENGINE_KV_CACHE_MEMORY_BYTES=4G").kv_tokens == 4 * GIB // 147_456 // 16 * 16
    assert "CUDA runs out of memory" in on(qwen3, "ENGINE_KV_CACHE_MEMORY_BYTES=24G").problems[0]


def test_offloaded_weights_make_room(qwen3: Path) -> None:
    kept, offloaded = on(qwen3), on(qwen3, "ENGINE_CPU_OFFLOAD_GB=2")
    assert kept.weights_gpu_bytes - offloaded.weights_gpu_bytes == offloaded.kv_bytes - kept.kv_bytes == 2 * GIB
    assert kept.weights_bytes == offloaded.weights_bytes


def test_two_gpus_hold_half_the_weights_each(qwen3: Path) -> None:
    one, two = on(qwen3), on(qwen3, "ENGINE_TENSOR_PARALLEL_SIZE=2", "HOST_GPU_COUNT=2")
    assert two.weights_gpu_bytes == pytest.approx(one.weights_gpu_bytes / 2, rel=0.001)
    assert two.arithmetic[0].endswith("8.79 GiB, of which each GPU holds 4.39 GiB")


@pytest.mark.parametrize(("setting", "said"), [
    ("ENGINE_MAX_MODEL_LEN=long", "is not a whole number"), ("ENGINE_GPU_MEMORY_UTILIZATION=1.4", "outside the engine's range"),
    ("ENGINE_PIPELINE_PARALLEL_SIZE=2", "one stage only"), ("ENGINE_KV_CACHE_DTYPE=turboquant_k8v4", "does not know how many bytes")])
def test_a_value_that_cannot_be_computed_is_a_configuration_error(setting: str, said: str, qwen3: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        on(qwen3, setting, "HOST_GPU_COUNT=2")


def test_a_wrong_value_that_has_nothing_to_do_with_memory_does_not_stop_fit(qwen3: Path) -> None:
    assert on(qwen3, "ENGINE_SCHEDULING_POLICY=fancy").starts


def test_what_takes_memory_and_is_not_in_the_sum_is_said(qwen3: Path) -> None:
    guessing = 'ENGINE_SPECULATIVE_CONFIG={"method": "eagle3", "model": "/model/draft", "num_speculative_tokens": 3}'
    assert on(qwen3, guessing).notes == (
        "not counted: the draft of ENGINE_SPECULATIVE_CONFIG (eagle3, /model/draft), which is not on this host",)


def test_guesses_from_the_prompt_take_no_memory(qwen3: Path) -> None:
    assert on(qwen3, 'ENGINE_SPECULATIVE_CONFIG={"method": "ngram", "num_speculative_tokens": 3}').notes == ()


def test_adapters_take_two_narrow_matrices_beside_each_linear_layer(qwen3: Path) -> None:
    plain, with_lora = on(qwen3), on(qwen3, "ENGINE_ENABLE_LORA=true", "ENGINE_MAX_LORAS=4", "ENGINE_MAX_LORA_RANK=32")
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12_288)  # q and o, k and v, and the MLP's three
    assert with_lora.overhead["4 LoRA adapters of rank 32"] == with_lora.overhead_bytes - plain.overhead_bytes == 36 * sides * 32 * 4 * 2


@pytest.mark.parametrize(("more", "sides"), [
    ((), (4096 + 2048) * 2 + (4096 + 512) * 2 + (4096 + 6144) * 3), (("ENGINE_FULLY_SHARDED_LORAS=true",), (4096 * 4 + 5120 * 2 + 16_384 * 3) // 2)])
def test_two_gpus_share_one_side_of_each_adapters_matrices_or_both(more: tuple[str, ...], sides: int, qwen3: Path) -> None:
    found = on(qwen3, "ENGINE_ENABLE_LORA=true", "ENGINE_TENSOR_PARALLEL_SIZE=2", "HOST_GPU_COUNT=2", *more)
    assert found.overhead["1 LoRA adapters of rank 16"] == 36 * sides * 16 * 2


def test_the_arithmetic_holds_every_number_of_the_answer(qwen3: Path) -> None:
    found = on(qwen3)
    text = "\n".join(found.arithmetic)
    for number in (f"{found.kv_bytes_per_token:,} bytes", f"{found.kv_tokens:,}", f"{found.sequences_at_full_length:.2f}",
                   estimation.gib(found.kv_bytes),
                   estimation.gib(found.overhead_bytes), "31.36", "30.86", estimation.gib(found.weights_bytes)):
        assert number in text


# The CPU engine

def test_the_cpu_engines_cache_is_what_its_variable_says(qwen3: Path) -> None:
    sets = ("ENGINE_MAX_MODEL_LEN=2048", "HOST_ENGINE_MEMORY=24g")
    found = on(qwen3, "VLLM_CPU_KVCACHE_SPACE=3", *sets, profile="cpu", gpu="")
    assert (found.kv_bytes, found.block_tokens, found.overhead_bytes, found.utilization) == (3 * GIB, 128, 0, None)
    assert found.kv_tokens == 3 * GIB // (128 * 147_456) * 128
    assert found.starts


def test_a_model_that_its_container_cannot_hold_is_refused(qwen3: Path) -> None:
    refused = on(qwen3, profile="cpu", gpu="")
    assert "19.26 GiB, more than HOST_ENGINE_MEMORY (8.00 GiB)" in refused.problems[0]
    assert [change.lines for change in remedies.nearest(refused)] == [("HOST_ENGINE_MEMORY=20g",)]


def test_without_a_size_the_cpu_engines_cache_is_not_guessed(qwen3: Path) -> None:
    with pytest.raises(ConfigurationError, match="VLLM_CPU_KVCACHE_SPACE is not set"):
        on(qwen3, "VLLM_CPU_KVCACHE_SPACE=", profile="cpu", gpu="")


def test_a_gpu_for_the_cpu_profile_is_an_error(qwen3: Path) -> None:
    with pytest.raises(ConfigurationError, match="runs on the CPU"):
        on(qwen3, profile="cpu")


# The nearest change

@pytest.mark.parametrize(("model", "gpu", "sets", "lines"), [
    ("qwen3-8b", "rtx-5090", ("ENGINE_GPU_MEMORY_UTILIZATION=0.99",), [("ENGINE_GPU_MEMORY_UTILIZATION=0.96",)]),
    ("llama-3.1-8b", "rtx-5090", ("ENGINE_MAX_MODEL_LEN=131072", "ENGINE_QUANTIZATION="),
     [("ENGINE_KV_CACHE_DTYPE=fp8",), ("ENGINE_MAX_MODEL_LEN=96256",), ("ENGINE_QUANTIZATION=fp8_per_tensor",),
      ("ENGINE_TENSOR_PARALLEL_SIZE=2", "HOST_GPU_COUNT=2")]),
    ("phi-4", "rtx-5090", ("ENGINE_QUANTIZATION=", "ENGINE_MAX_NUM_BATCHED_TOKENS=16384"),
     [("ENGINE_QUANTIZATION=fp8_per_tensor",), ("ENGINE_TENSOR_PARALLEL_SIZE=2", "HOST_GPU_COUNT=2")]),
    ("llama-3.1-8b", "rtx-4090", ("ENGINE_MAX_MODEL_LEN=131072", "ENGINE_QUANTIZATION="),
     [("ENGINE_MAX_MODEL_LEN=37888",), ("ENGINE_TENSOR_PARALLEL_SIZE=2", "HOST_GPU_COUNT=2")]),
    ("deepseek-v3", "rtx-5090", ("ENGINE_QUANTIZATION=",), []),
])
def test_the_nearest_changes_are_found(model: str, gpu: str, sets: Sequence[str], lines: list[tuple[str, ...]], tmp_path: Path) -> None:
    refused = on(modelfolder.folder(tmp_path, modelfolder.published(model)), *sets, gpu=gpu)
    assert not refused.starts
    assert [change.lines for change in remedies.nearest(refused)] == lines


@pytest.mark.parametrize("model", ["qwen3-8b", "phi-4", "llama-3.1-8b", "gemma-2-9b", "mixtral-8x7b", "gpt-oss-20b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("gpu", ["rtx-5090", "rtx-4090"])
@pytest.mark.parametrize("sets", [("ENGINE_GPU_MEMORY_UTILIZATION=0.99", "ENGINE_MAX_NUM_BATCHED_TOKENS=65536"), ("ENGINE_MAX_MODEL_LEN=",),
                                  ("ENGINE_KV_CACHE_MEMORY_BYTES=60G",)])
def test_every_change_starts_when_its_lines_are_pasted(model: str, gpu: str, sets: Sequence[str], tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, modelfolder.published(model))
    before = ("ENGINE_QUANTIZATION=", *sets)
    refused = on(folder, *before, gpu=gpu)
    for change in [] if refused.starts else remedies.nearest(refused):
        pasted = on(folder, *before, *change.lines, gpu=gpu)
        assert pasted.starts, (change.lines, pasted.problems)
        assert pasted.kv_tokens == change.estimate.kv_tokens


def test_where_no_single_change_does_the_fewest_together_are_given(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path, modelfolder.published("qwen3-8b"))
    refused = on(folder, "ENGINE_QUANTIZATION=", "ENGINE_GPU_MEMORY_UTILIZATION=0.99", "ENGINE_MAX_MODEL_LEN=131072",
                 "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    [change] = remedies.nearest(refused)
    assert change.lines == ("ENGINE_GPU_MEMORY_UTILIZATION=0.96", "ENGINE_KV_CACHE_DTYPE=fp8")


# The overhead

def test_the_overhead_of_a_public_start_is_met_and_with_it_its_kv_cache(tmp_path: Path) -> None:
    """vLLM 0.31.0, Llama-3.1-8B-Instruct on an A100 80 GB with all defaults: its log is in LOG below."""
    llama = modelshape.read(modelfolder.folder(tmp_path, modelfolder.published("llama-3.1-8b")))
    found = estimation.estimate(llama, Request(target="cuda"), find("a100-80gb"))
    errors = {f"{one.what}, {one.unit}": one.error_percent for one in estimation.compare(found, LOG)}
    assert found.starts
    assert abs(errors["KV cache, tokens"]) < 0.5
    assert abs(errors["weights, GiB"]) < 0.5
    assert found.overhead_bytes / GIB == pytest.approx(72.91 - 14.96 - 56.21, abs=0.1)


def test_a_start_that_the_estimate_was_not_fitted_to_is_met_within_five_percent(qwen3: Path) -> None:
    """vLLM 0.26.0 on an H200 of which 30.85 GiB were free, Qwen3-8B's shape with random weights: its whole log is the data."""
    h200 = replace(find("h200"), free=round(30.85 * GIB))
    request = Request(target="cuda", quantization="fp8_per_tensor", max_model_len=16_384, max_num_seqs=256, max_num_batched_tokens=8192,
                      utilization=0.20862)
    log = (Path(__file__).parent / "data" / "start-cuda-h200-vllm-0.26.0.log").read_text(encoding="utf-8")
    found = estimation.estimate(modelshape.read(qwen3), request, h200)
    errors = {f"{one.what}, {one.unit}": one.error_percent for one in estimation.compare(found, log)}
    assert found.starts
    assert sorted(errors) == ["KV cache, GiB", "KV cache, tokens", "at full length, sequences", "weights, GiB"]
    assert -5 < errors["KV cache, tokens"] < 0, "too little is the safe side"
    assert abs(errors["weights, GiB"]) < 1.5


@pytest.mark.parametrize(("request_", "sizes"), [
    (Request(target="cuda"), [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]),
    (Request(target="cuda", max_num_seqs=3), [1, 2, 3, 4]),
    (Request(target="cuda", max_num_seqs=16), [1, 2, 4, 8, 16, 24, 32]),
    (Request(target="cuda", max_num_seqs=32, performance_mode="interactivity"), [*range(1, 33), 40, 48, 56, 64]),
    (Request(target="cuda", captured=(16, 1, 8, 4096)), [1, 8, 16]),
    (Request(target="cuda", largest_capture=32), [1, 2, 4, 8, 16, 24, 32]),
    (Request(target="cuda", graphs=False), []),
])
def test_the_captured_sizes_are_those_that_the_engine_makes(request_: Request, sizes: list[int]) -> None:
    assert overhead.capture_sizes(request_, find("rtx-5090"), tokens=2048, seqs=request_.max_num_seqs or 256) == sizes


def test_larger_steps_leave_less_for_the_cache_and_eager_more(qwen3: Path) -> None:
    plain, large, eager = on(qwen3), on(qwen3, "ENGINE_MAX_NUM_BATCHED_TOKENS=65536"), on(qwen3, "ENGINE_ENFORCE_EAGER=true")
    assert large.kv_bytes < plain.kv_bytes < eager.kv_bytes


def test_a_measured_overhead_replaces_the_estimate(qwen3: Path) -> None:
    found = assessment.estimated(settings.load("throughput"), qwen3, find("rtx-5090"), measured_overhead=GIB).estimate
    assert found
    assert found.overhead == {"measured": GIB}


def test_seqs_and_steps_that_are_not_set_are_the_gpus_own_defaults() -> None:
    defaults = [find(name).batch_defaults for name in ("rtx-5090", "a100-80gb", "h100", "b200")]
    assert defaults == [(2048, 256), (2048, 256), (8192, 1024), (16384, 1024)]


def test_the_flags_alias_is_read_as_the_flag() -> None:
    sets = [*CUDA, "ENGINE_GPU_MEMORY_UTILIZATION=", "ENGINE_DEVICE_MEMORY_UTILIZATION=0.5"]
    assert requested(settings.load("throughput", sets=sets)).utilization == 0.5


# The engine's log

LOG = """(EngineCore pid=326) INFO 10-06 17:00:11 [model_runner.py:407] Model loading took 15.0 GiB memory and 5.420225 seconds
(EngineCore pid=326) INFO 10-06 17:00:33 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB
(EngineCore pid=326) INFO 10-06 17:00:33 [kv_cache_utils.py:2464] GPU KV cache size: 460,496 tokens, \
Maximum concurrency for 131,072 tokens per request: 3.51x
"""


def test_every_line_of_the_log_is_compared_with_its_error(qwen3: Path) -> None:
    found = replace(on(qwen3), kv_tokens=230_248, weights_gpu_bytes=30 * GIB, kv_bytes=round(56.21 * GIB), sequences_at_full_length=3.51)
    assert [(one.what, one.unit, one.measured, round(one.error_percent, 1)) for one in estimation.compare(found, LOG)] == [
        ("weights", "GiB", 15.0, 100.0), ("KV cache", "GiB", 56.21, 0.0), ("KV cache", "tokens", 460_496, -50.0),
        ("at full length", "sequences", 3.51, 0.0)]


def test_of_several_starts_in_a_log_the_last_counts(qwen3: Path) -> None:
    again = LOG.replace("460,496", "1,000")
    assert [one.measured for one in estimation.compare(on(qwen3), LOG + again) if one.unit == "tokens"] == [1000]


def test_a_log_without_these_lines_compares_nothing(qwen3: Path) -> None:
    assert estimation.compare(on(qwen3), "INFO: Application startup complete.") == ()


# The GPU

@pytest.mark.parametrize("name", ["rtx-5090", "RTX 5090", "NVIDIA GeForce RTX 5090"])
def test_a_gpu_is_known_by_its_short_and_its_full_name(name: str) -> None:
    assert (find(name).total, find(name).free) == (round(31.36 * GIB), round(30.86 * GIB))


def test_a_wrong_gpu_name_gets_the_near_one() -> None:
    with pytest.raises(ConfigurationError, match=r"rtx-5900: not a GPU .* Did you mean rtx-5090\?"):
        find("rtx-5900")


def test_where_free_memory_is_not_known_it_is_said_to_be_assumed() -> None:
    assert find("h200").source.endswith("free at start is assumed")


# Name, total and free MiB as nvidia-smi says them → total and free GiB as vLLM will see them.
@pytest.mark.parametrize(("rows", "total", "free"), [
    (["NVIDIA GeForce RTX 5090, 12.0, 32607, 32110"], 31.36, 30.86),
    (["NVIDIA GeForce RTX 5090, 12.0, 32607, 20480"], 31.36, 19.50),
    (["NVIDIA GeForce RTX 5090, 12.0, 32607, 10240", "NVIDIA GeForce RTX 5090, 12.0, 32607, 32110"], 31.36, 9.50),
    (["NVIDIA GeForce RTX 5060 Ti, 12.0, 16311, 16000"], 15.45, 14.95),
    (["NVIDIA GeForce RTX 5060 Ti, 12.0, 8151, 8000"], 7.84, 7.31),
    (["NVIDIA RTX 9999, 13.0, 65536, 65000"], 63.04, 62.54),
])
def test_a_card_in_this_host_is_seen_as_the_engine_will_see_it(rows: list[str], total: float, free: float, tmp_path: Path) -> None:
    fake = FakeHost(tmp_path)
    cards = "".join(f"{index}, {row}, 580.65.06, GPU-{index}\\n" for index, row in enumerate(rows))
    fake.program("nvidia-smi", f"printf '{cards}'")
    found = find("", host=fake.host())
    assert (round(found.total / GIB, 2), round(found.free / GIB, 2)) == (total, free)


def test_no_gpu_and_no_name_is_a_missing_prerequisite(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no GPU to look at") as caught:
        find("", host=FakeHost(tmp_path).host())
    assert "--gpu rtx-5090" in caught.value.fix


# The script

def test_the_json_has_the_promised_keys_and_exit_0_says_that_it_starts(qwen3: Path) -> None:
    done = script(str(qwen3), "--gpu", "rtx-5090", "--profile", "throughput", "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert {"parameters", "weights_bytes", "kv_bytes_per_token", "kv_tokens", "sequences_at_full_length", "starts", "arithmetic"} <= answer.keys()
    assert (answer["parameters"], answer["kv_bytes_per_token"], answer["starts"]) == (8_190_735_360, 147_456, True)


def test_what_does_not_start_exits_5_and_prints_lines_to_paste(qwen3: Path) -> None:
    done = script(str(qwen3), "--gpu", "rtx-5090", *(f"--set={value}" for value in CUDA), "--set", "ENGINE_GPU_MEMORY_UTILIZATION=0.99")
    assert done.returncode == 5
    assert "\nENGINE_GPU_MEMORY_UTILIZATION=0.96\n" in done.stdout
    assert "31.36 GiB × 0.99 = 31.05 GiB; free at start: 30.86 GiB" in done.stdout


def test_a_log_is_compared(qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text(LOG)
    done = script(str(qwen3), "--gpu", "rtx-5090", "--log", str(tmp_path / "engine.log"))
    assert done.returncode == 0, done.stderr
    assert "460,496 tokens" in done.stdout


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (("--gpu", "rtx-509"), 2, "Did you mean rtx-5090?"),
    (("--gpu", "rtx-5090", "--set", "ENGINE_KV_CACHE_DTYPE=fp9"), 2, "'fp9' is not one of"),
    (("--gpu", "rtx-5090", "--log", "/nowhere/engine.log"), 3, "No such file"),
])
def test_wrong_input_is_named(arguments: Sequence[str], code: int, said: str, qwen3: Path) -> None:
    done = script(str(qwen3), *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_a_folder_without_a_model_is_a_missing_prerequisite(tmp_path: Path) -> None:
    done = script(str(tmp_path / "nothing"), "--gpu", "rtx-5090")
    assert (done.returncode, "no such directory" in done.stderr) == (3, True)
