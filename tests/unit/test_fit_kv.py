"""KV cache arithmetic: bytes of a token, and the blocks and tokens that vLLM makes of an amount of memory."""

from pathlib import Path

import pytest

from bundle.base.errors import ConfigurationError
from bundle.fit import estimation, modelshape
from bundle.fit.kvcache import Cache, Layout, cache, cell_bytes
from bundle.fit.layers import Attention, Kept
from bundle.fit.modelshape import Model
from bundle.fit.request import Request
from bundle.machine.devices import GIB, Device, find
from support import modelfolder


@pytest.fixture
def qwen3(tmp_path: Path) -> Model:
    return modelshape.read(modelfolder.folder(tmp_path, modelfolder.published("qwen3-8b")))


def cut(full: int, windowed: int, window: int, heads: int, dim: int, *, each: int = 2, block: int = 16, in_flight: int = 4096) -> Cache:
    """The cache of layers alike; `each` is the bytes of an element."""
    kept = [Kept(layers=layers, kv_heads=heads, key_dim=dim, value_dim=dim, window=length)
            for layers, length in ((full, 0), (windowed, window)) if layers]
    dtype = {1: "fp8", 2: "bfloat16"}[each]
    return cache(Attention(kept=tuple(kept), heads=heads), Layout(dtype=dtype, float_bytes=2, gpus=1, block_tokens=block, in_flight=in_flight))


HEAD = Kept(layers=1, kv_heads=8, key_dim=128, value_dim=128)


# What vLLM 0.33.0's own planner (v1/core/kv_cache_planning.py: groups, blocks, capacity) answers for made-up layers: full, windowed, window,
# KV heads, head size, bytes of an element, tokens of a block, tokens in flight, max_model_len, KV memory → size in tokens, least memory to start.
@pytest.mark.parametrize(("full", "windowed", "window", "heads", "dim", "each", "block", "in_flight", "length", "memory", "tokens", "least"), [
    (0, 32, 4096, 8, 128, 1, 32, 4096, 2048, 29426496434, 442084, 138412032),
    (12, 12, 1024, 4, 64, 1, 128, 4096, 189232, 18062376437, 2859270, 1196163072),
    (36, 0, 0, 4, 256, 2, 128, 2048, 8192, 15109108948, 102400, 1226833920),
    (21, 21, 1024, 8, 256, 2, 32, 2048, 48130, 14271944918, 77873, 8824553472),
    (10, 52, 512, 2, 256, 1, 16, 2048, 2048, 23812702029, 329998, 147947520),
    (4, 22, 4096, 2, 128, 2, 128, 16384, 32768, 30863367943, 1578521, 641204224),
    (5, 29, 128, 8, 256, 1, 128, 16384, 32768, 19636020431, 236903, 2718433280),
    (11, 9, 1024, 1, 128, 2, 16, 16384, 8192, 40581321151, 3599229, 92454912),
    (7, 6, 4096, 4, 256, 2, 128, 2048, 8192, 3182958133, 62853, 418381824),
    (10, 1, 512, 4, 64, 2, 128, 2048, 8192, 18620439900, 1760623, 86769664),
])
def test_tokens_and_least_memory_are_what_vllms_own_planner_answers(
        full: int, windowed: int, window: int, heads: int, dim: int, each: int, block: int, in_flight: int, length: int, memory: int, tokens: int,
        least: int) -> None:
    made = cut(full, windowed, window, heads, dim, each=each, block=block, in_flight=in_flight)
    assert made.tokens(memory, length) == tokens
    assert made.sequence_bytes(length) == least


# Tokens for Qwen3-8B's shape, at 1.5 GiB of overhead and sequences of a whole number of blocks: bf16 weights with bf16 and fp8 KV, fp8 with both.
@pytest.mark.parametrize(("total_gib", "share", "tokens"), [
    (31.36, 0.85, (72_080, 144_160, 119_184, 238_368)), (32.00, 0.85, (76_032, 152_080, 123_136, 246_288)),
    (31.36, 0.92, (88_064, 176_128, 135_168, 270_336)), (32.00, 0.92, (92_352, 184_704, 139_456, 278_912)),
    (31.36, 0.95, (94_912, 189_840, 142_016, 284_048)), (32.00, 0.95, (99_344, 198_688, 146_448, 292_896)),
    (31.36, 0.99, (104_048, 208_112, 151_152, 302_320)), (32.00, 0.99, (108_656, 217_328, 155_760, 311_536)),
])
def test_the_table_of_an_8b_model_on_a_5090_comes_out(total_gib: float, share: float, tokens: tuple[int, ...], qwen3: Model) -> None:
    device = Device(name="5090", total=round(total_gib * GIB), free=round(total_gib * GIB), capability=(12, 0), source="")
    for expected, (quantization, kv) in zip(tokens, [("", "auto"), ("", "fp8"), ("fp8_per_tensor", "auto"), ("fp8_per_tensor", "fp8")], strict=True):
        request = Request(target="cuda", quantization=quantization, kv_dtype=kv, utilization=share, max_model_len=16_384, overhead=round(1.5 * GIB))
        assert estimation.estimate(qwen3, request, device).kv_tokens == expected


def test_bytes_of_a_token_of_qwen3_8b_are_the_published_144_kib(qwen3: Model) -> None:
    def bytes_per_token(dtype: str) -> int:
        return estimation.estimate(qwen3, Request(target="cuda", kv_dtype=dtype), find("rtx-5090")).kv_bytes_per_token

    assert (bytes_per_token("auto"), bytes_per_token("fp8")) == (147_456, 73_728)


# A head of 128: 128 elements of a key and 128 of a value. Scales of per-token-head types are float32, one for each side.
@pytest.mark.parametrize(("dtype", "size"), [
    ("auto", 512), ("bfloat16", 512), ("fp8", 256), ("fp8_e5m2", 256), ("int8_per_token_head", 264), ("fp8_per_token_head", 264),
    ("int4_per_token_head", 136), ("nvfp4", 144)])
def test_bytes_that_one_head_keeps_of_a_token(dtype: str, size: int) -> None:
    assert cell_bytes(HEAD, dtype) == size


def test_a_latent_is_kept_once_and_its_own_types_have_their_own_sizes() -> None:
    latent = Kept(layers=61, kv_heads=1, key_dim=576, value_dim=0)
    assert [cell_bytes(latent, dtype) for dtype in ("auto", "fp8", "fp8_ds_mla", "nvfp4_ds_mla")] == [1152, 576, 656, 352]


def test_a_type_whose_layout_is_not_known_is_refused_not_guessed() -> None:
    with pytest.raises(ConfigurationError, match="ENGINE_KV_CACHE_DTYPE=turboquant_k8v4: fit does not know"):
        cell_bytes(HEAD, "turboquant_k8v4")


@pytest.mark.parametrize("limit", [1, 1000, 40_960, 10_000_000])
def test_the_longest_sequence_fits_and_one_token_more_does_not(limit: int) -> None:
    made = cut(5, 29, 1024, 4, 256)
    memory = 3 * GIB
    longest = made.longest(memory, limit)
    assert made.sequence_bytes(longest) <= memory
    assert longest == limit or made.sequence_bytes(longest + 1) > memory


def test_a_window_makes_a_long_sequence_cheaper_than_the_same_layers_without(tmp_path: Path) -> None:
    gemma = modelshape.read(modelfolder.folder(tmp_path, modelfolder.published("gemma-3-4b")))
    with_windows, without = (estimation.estimate(gemma, Request(target="cuda", hybrid_cache=hybrid), find("rtx-5090")) for hybrid in (True, False))
    assert with_windows.kv_bytes_per_token == without.kv_bytes_per_token == 34 * 4 * 2 * 256 * 2
    assert with_windows.kv_tokens > 3 * without.kv_tokens


def test_what_is_in_flight_is_held_beside_a_window_and_twice_with_async_scheduling(tmp_path: Path) -> None:
    gemma = modelshape.read(modelfolder.folder(tmp_path, modelfolder.published("gemma-3-4b")))
    once, twice = (estimation.estimate(gemma, Request(target="cuda", max_num_batched_tokens=8192, async_scheduling=on), find("rtx-5090"))
                   for on in (False, True))
    groups, layers, layer_bytes = 6, 5, 4 * 2 * 256 * 2  # 29 layers with a window in groups of at most 5
    assert twice.sequence_bytes - once.sequence_bytes == groups * (8192 // 16) * layers * 16 * layer_bytes


def test_kv_heads_are_split_over_gpus_and_repeated_where_there_are_too_few(qwen3: Model) -> None:
    sizes = [estimation.estimate(qwen3, Request(target="cuda", tensor_parallel=gpus), find("rtx-5090")).kv_bytes_per_token for gpus in (1, 2, 8, 16)]
    assert sizes == [147_456, 73_728, 18_432, 18_432]
    assert not estimation.estimate(qwen3, Request(target="cuda", tensor_parallel=3), find("rtx-5090")).starts
