"""The least time that a load takes, against numbers worked out by hand for Qwen3-8B and a few others."""

from typing import Any

import pytest

from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.bench import roofline
from bundle.bench.rundata import Ceilings, Sample, held_to
from bundle.fit import estimation
from bundle.machine.devices import GIB
from support import benchruns, modelfolder

QWEN3 = modelfolder.published("qwen3-8b")
CEILINGS: Ceilings = {"device": "synthetic GPU", "copy_gb_s": 1000.0, "matmul_tflops": {"bf16": 200.0, "fp8": 400.0}}
FP8 = {"ENGINE_QUANTIZATION": "fp8_per_tensor"}
LAYERS = 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12_288)
"""Parameters of Qwen3-8B's matrices in its layers: queries and output, keys and values, MLP."""
HEAD = 151_936 * 4096


def work(settings: dict[str, str], config: dict[str, Any] = QWEN3) -> roofline.Work:
    return roofline.work(config, settings, CEILINGS)


def sample(**changes: Any) -> Sample:
    """100 requests of 1000 tokens with answers of 101, 50 at once."""
    return held_to(Sample, {
        "requests": {"asked": 100, "completed": 100, "failed": 0, "errors": []}, "tokens": {"input": 100_000, "output": 10_100}, "seconds": 20.0,
        "metrics": {"running_mean": 50.0}, "at": 0.0, "quantiles": {}, "series": {}, "workload": "", "repeat": 0, "seed": 0, "gpu": {}} | changes)


def test_the_shape_of_qwen3_8b_comes_out_as_published() -> None:
    bf16, fp8 = work({}), work(FP8)
    assert bf16.model.parameters == 8_190_735_360
    assert (bf16.parameters, bf16.head) == (LAYERS, HEAD)
    assert bf16.kv_layer_bytes * 36 == 147_456
    assert work({"ENGINE_KV_CACHE_DTYPE": "fp8"}).kv_layer_bytes * 36 == 73_728
    embedding = 2 * HEAD  # looked up, not read by a step
    assert (fp8.weights + embedding) / GIB == pytest.approx(8.79, abs=0.005)
    assert bf16.weights + embedding == pytest.approx(2 * 8_190_735_360, rel=1e-6)


def test_a_step_alone_takes_as_long_as_its_weights_take_to_read() -> None:
    reading, computing = work(FP8).step_s(1, 0)
    assert reading == pytest.approx((LAYERS + 2 * HEAD) / 1e12, rel=0.001)
    assert computing == pytest.approx(2 * (LAYERS + HEAD) / 400e12, rel=0.001)


def test_a_batch_reads_the_weights_once_and_the_cache_of_every_request() -> None:
    one, many = (work(FP8).step_s(batch, 2000)[0] for batch in (1, 65))
    assert many - one == pytest.approx(64 * 2000 * 147_456 / 1e12)


def test_a_prefill_computes_its_tokens_the_head_once_and_attention_over_what_came_before() -> None:
    matrices = 2 * (LAYERS * 1000 + HEAD)
    attention = 36 * 2 * 32 * (128 + 128) * 1000**2 / 2
    assert work(FP8).prefill_s(100, 1000, 0) == pytest.approx(100 * (matrices + attention) / 400e12)
    assert work({}).prefill_s(100, 1000, 0) == pytest.approx(2 * work(FP8).prefill_s(100, 1000, 0))


def test_tokens_in_the_prefix_cache_are_not_computed_but_attended_to() -> None:
    matrices = 2 * (LAYERS * 250 + HEAD)
    attention = 36 * 2 * 32 * (128 + 128) * (1000**2 - 750**2) / 2
    assert work(FP8).prefill_s(1, 1000, 0.75) == pytest.approx((matrices + attention) / 400e12)


def test_a_load_is_prefill_and_the_steps_that_its_mean_batch_makes() -> None:
    cost = work(FP8)
    found = roofline.distance(cost, [sample()])
    assert found is not None
    decode = 10_000 / 50 * cost.step_s(50, 1000 + 101 / 2)[0]  # the first token of each answer comes out of the prefill
    assert found["decode_s"] == pytest.approx(decode)
    assert found["prefill_s"] == pytest.approx(cost.prefill_s(100, 1000, 0))
    assert found["share_of_limit"] == pytest.approx((found["prefill_s"] + found["decode_s"]) / 20)
    assert (found["bound"], found["limited_by"], found["measured_s"]) == ("prefill", "memory bandwidth", 20.0)


def test_hits_of_the_prefix_cache_turn_the_bound_to_decode() -> None:
    found = roofline.distance(work(FP8), [sample(metrics={"running_mean": 50.0, "prefix_hit_rate": 0.9})])
    assert found is not None
    assert found["bound"] == "decode"


def test_a_batch_so_large_that_its_products_take_longer_than_the_reading_is_limited_by_compute() -> None:
    short = sample(requests={"asked": 4000, "completed": 4000, "failed": 0, "errors": []},
                   tokens={"input": 4000, "output": 400_000}, metrics={"running_mean": 4000.0})
    found = roofline.distance(work({**FP8, "ENGINE_KV_CACHE_DTYPE": "fp8"}), [short])
    assert found is not None
    assert (found["bound"], found["limited_by"]) == ("decode", "compute")


def test_where_nobody_counted_the_batch_it_follows_from_the_time_in_the_engine() -> None:
    known = roofline.distance(work(FP8), [sample()])
    guessed = roofline.distance(work(FP8), [sample(metrics={"e2e_ms_p50": 10_000.0})])  # 100 requests × 10 s in 20 s: 50 at once
    assert guessed == known


def test_repeats_give_medians_and_a_load_without_answers_gives_nothing() -> None:
    found = roofline.distance(work(FP8), [sample(seconds=seconds) for seconds in (10.0, 20.0, 90.0)])
    assert found is not None
    assert found["measured_s"] == 20.0
    assert roofline.distance(work(FP8), [sample(requests={"asked": 4, "completed": 0, "failed": 4, "errors": []})]) is None


def test_a_token_passes_few_experts_and_a_large_batch_reads_them_all() -> None:
    cost = work({}, modelfolder.published("qwen3-30b-a3b"))
    assert (cost.parameters + 2 * cost.head) / 1e9 == pytest.approx(3.35, abs=0.02)  # "A3B": 3.3 B of 30.5 B
    alone, many = ((cost.step_s(batch, 0)[0] * 1e12 - cost.weights) / cost.experts for batch in (1, 1000))
    assert alone == pytest.approx(8 / 128)
    assert many == pytest.approx(1)


def test_experts_of_a_model_with_other_inputs_beside_text_are_found() -> None:
    text = modelfolder.published("qwen3-30b-a3b")
    nested = {"architectures": ["Synthetic"], "model_type": "qwen3_vl_moe", "text_config": {**text, "model_type": "qwen3_vl_moe_text"}}
    assert work({}, nested).chosen == 8 / 128


def test_a_tied_embedding_is_read_as_the_head() -> None:
    cost = work({}, modelfolder.published("llama-3.2-1b"))
    assert cost.head == 128_256 * 2048
    assert cost.weights == pytest.approx(2 * cost.model.parameters, rel=1e-6)


def test_layers_with_a_window_look_back_no_further() -> None:
    config = modelfolder.published("mistral-7b-v0.1")  # all 32 layers: 4096 tokens
    cost = work({}, config)
    assert cost.step_s(1, 4096) == cost.step_s(1, 100_000)
    plain = work({}, {**config, "sliding_window": None})
    assert cost.prefill_s(1, 4096, 0) == plain.prefill_s(1, 4096, 0)
    pairs = 4096**2 / 2 + (8192 - 4096) * 4096
    assert plain.prefill_s(1, 8192, 0) - cost.prefill_s(1, 8192, 0) == pytest.approx(32 * 2 * 32 * 256 * (8192**2 / 2 - pairs) / 200e12)


def test_weights_of_few_bits_compute_in_sixteen_unless_the_gpu_has_their_products() -> None:
    gptq = {**QWEN3, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    assert work({}, gptq).rate == 200e12
    assert work({}, gptq).weights < work(FP8).weights
    assert work({}, {**QWEN3, "quantization_config": {"quant_method": "fp8"}}).rate == 400e12
    assert roofline.work(QWEN3, FP8, {**CEILINGS, "matmul_tflops": {"bf16": 200.0}}).rate == 200e12


def test_the_cpu_engine_has_a_limit_too() -> None:
    cpu: Ceilings = {"device": "cpu", "copy_gb_s": 20.0, "matmul_tflops": {"bf16": 0.4}}
    cost = roofline.work(QWEN3, {"ENGINE_DTYPE": "bfloat16"}, cpu)
    assert cost.step_s(1, 0)[0] == pytest.approx(2 * (LAYERS + HEAD) / 20e9, rel=0.001)


@pytest.mark.parametrize(("settings", "config", "ceilings", "reason"), [
    ({"ENGINE_SPECULATIVE_CONFIG": '{"method": "ngram"}'}, QWEN3, CEILINGS, "ENGINE_SPECULATIVE_CONFIG"),
    ({"ENGINE_TENSOR_PARALLEL_SIZE": "2"}, QWEN3, CEILINGS, "ENGINE_TENSOR_PARALLEL_SIZE"),
    ({}, QWEN3, {}, "no measured bandwidth"),
    ({}, {}, CEILINGS, "config.json"),
])
def test_what_cannot_be_computed_says_why(settings: dict[str, str], config: dict[str, Any], ceilings: Ceilings, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        roofline.work(config, settings, ceilings)


def test_a_model_that_fit_does_not_know_is_named_without_the_folder_it_was_read_from() -> None:
    with pytest.raises(PrerequisiteError, match=r"^the model of this run: no safetensors files, and Unheard is not an architecture"):
        work({}, {**QWEN3, "model_type": "unheard", "architectures": ["Unheard"]})


def test_the_profile_of_the_synthetic_runs_is_what_fit_counts() -> None:
    cost = work(benchruns.PROFILE)
    assert estimation.gib(cost.weights) == "7.63"
