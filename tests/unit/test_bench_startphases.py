"""Where a start spent its time and what its engine said of itself, read from logs that real engines wrote."""

import re
from datetime import datetime
from pathlib import Path

import pytest

from bundle.bench import startphases
from bundle.bench.rundata import StartTimes

DATA = Path(__file__).parent / "data"
Log = list[tuple[float, str]]

# vLLM 0.32.0's own format strings, filled with synthetic numbers.
SYNTHETIC_GPU_032 = """\
(EngineCore pid=7) INFO 11-24 10:00:00 [cuda.py:500] Using FLASHINFER attention backend out of potential backends: ['FLASHINFER'].
(EngineCore pid=7) INFO 11-24 10:00:00 [gpu_model_runner.py:5150] Model loading took 5.68 GiB memory and 3.250000 seconds
(EngineCore pid=7) INFO 11-24 10:00:00 [decorators.py:320] Directly load AOT compilation from path /cache/vllm/torch_aot_compile/a/model
(EngineCore pid=7) INFO 11-24 10:00:00 [backends.py:399] [backbone] Compiling a graph for compile range (1, 8192) takes 2.50 s
(EngineCore pid=7) INFO 11-24 10:00:00 [backends.py:399] [eagle_head] Compiling a graph for compile range (1, 8192) takes 0.50 s
(EngineCore pid=7) INFO 11-24 10:00:00 [monitor.py:62] torch.compile took 4.00 s in total
(EngineCore pid=7) INFO 11-24 10:00:00 [monitor.py:62] [eagle_head] torch.compile took 1.00 s in total
(EngineCore pid=7) INFO 11-24 10:00:00 [gpu_worker.py:760] Available KV cache memory: 20.25 GiB
(EngineCore pid=7) INFO 11-24 10:00:00 [kv_cache_utils.py:2327] GPU + host KV cache size: 147,456 tokens, Maximum concurrency for 16,384 tokens per \
request: 9.00x
(EngineCore pid=7) INFO 11-24 10:00:00 [gpu_model_runner.py:6582] Graph capturing finished in 4 secs, took -0.25 GiB
(EngineCore pid=7) INFO 11-24 10:00:00 [gpu_worker.py:1041] Free memory on device (31.00/31.36 GiB) on startup. Desired GPU memory utilization is \
(0.9, 28.22 GiB). Actual usage is 6.00 GiB for consumed memory (weights + non-torch), 1.50 GiB for peak activation, and -0.25 GiB for CUDAGraph \
memory.
"""


def cuda_log() -> Log:
    """An H200 and vLLM 0.26.0: each line at the second that vLLM itself printed, lines without one with the line before."""
    log, at = [], datetime.fromisoformat("2026-11-23T15:27:41+00:00").timestamp()
    for line in (DATA / "start-cuda-h200-vllm-0.26.0.log").read_text().splitlines():
        if printed := re.search(r" 11-23 (\d\d:\d\d:\d\d) \[", line):
            at = datetime.fromisoformat(f"2026-11-23T{printed[1]}+00:00").timestamp()
        log.append((at, line))
    return log


def cpu_log() -> Log:
    """The CPU profile and vLLM 0.32.0, as Docker stamped it (long lines cut, routes left out)."""
    lines = (line.partition(" ") for line in (DATA / "bench-start-cpu-vllm-0.32.0.log").read_text().splitlines())
    return [(datetime.fromisoformat(stamp[:26] + "+00:00").timestamp(), text) for stamp, _, text in lines]


def test_a_start_on_a_gpu_is_split_by_phase_and_the_phases_sum_to_it() -> None:
    log = cuda_log()
    started, ready = log[0][0] - 1, log[-1][0] + 3
    found = startphases.phases(log, started, ready)
    assert found == [("starting Python", 19), ("configuring", 18), ("starting the engine process", 18), ("loading weights", 2), ("compiling", 38),
                     ("profiling memory", 2), ("capturing graphs", 3), ("warming up", 12), ("starting the API", 2), ("first answer", 3)]
    assert sum(seconds for _, seconds in found) == ready - started


def test_a_start_on_the_cpu_neither_compiles_nor_captures() -> None:
    log = cpu_log()
    started, ready = log[0][0] - 0.5, log[-1][0] + 0.25
    found = startphases.phases(log, started, ready)
    assert [name for name, _ in found] == ["starting Python", "configuring", "starting the engine process", "loading weights", "warming up",
                                           "starting the API", "first answer"]
    assert sum(seconds for _, seconds in found) == pytest.approx(ready - started)
    assert dict(found)["starting the engine process"] == pytest.approx(10.01, abs=0.01), "its imports, and those of its worker"


def test_the_time_that_an_engine_was_held_is_in_no_phase() -> None:
    log = cuda_log()
    started, ready = log[0][0], log[-1][0]
    free, held = dict(startphases.phases(log, started, ready)), dict(startphases.phases(log, started, ready, 12.5))
    assert held.pop("starting the engine process") == free.pop("starting the engine process") - 12.5
    assert held == free


def test_without_a_compiler_what_follows_the_weights_is_profiling() -> None:
    log = [(at, line) for at, line in cuda_log() if not re.search(r"torch\.?_?compile|Dynamo|Compiling|compile range", line)]
    names = [name for name, _ in startphases.phases(log, log[0][0], log[-1][0])]
    assert "compiling" not in names
    assert names[names.index("loading weights") + 1] == "profiling memory"


def test_a_phase_that_comes_twice_is_counted_where_it_came_first() -> None:
    log = [(10.0, "Loading weights"), (12.0, "torch.compile took 1 s in total"), (13.0, "Compiling a graph"),
           (17.0, "Initial profiling/warmup run took")]
    assert startphases.phases(log, 8.0, 18.0) == [("starting Python", 2), ("loading weights", 2), ("profiling memory", 2), ("compiling", 4)]


def test_what_was_printed_after_the_first_answer_is_no_phase_of_the_start() -> None:
    assert startphases.phases([(3.0, "Loading weights"), (9.0, "Application startup complete")], 1.0, 5.0) == [
        ("starting Python", 2), ("loading weights", 2)]


def test_an_empty_log_is_one_phase() -> None:
    assert startphases.phases([], 1.0, 5.0) == [("starting Python", 4)]


def test_the_facts_of_a_start_on_a_gpu() -> None:
    assert startphases.facts(cuda_log()) == {
        "weights_gib": 8.88, "load_s": 2.969637, "free_gib": 30.85, "requested_share": 0.20862, "requested_gib": 29.17, "activation_gib": 1.32,
        "non_torch_gib": 0.22, "cuda_graphs_gib": 0.55, "capture_s": 3, "kv_cache_gib": 18.74, "kv_cache_tokens": 136464,
        "full_length_sequences": 8.33, "max_model_len_tokens": 16384, "attention_backend": "FLASH_ATTN", "dynamo_s": 12.42, "inductor_s": 13.47,
        "compile_s": 37.22, "engine_init_s": 54.35,
    }


def test_the_facts_as_a_later_engine_words_them() -> None:
    assert startphases.facts([(0.0, line) for line in SYNTHETIC_GPU_032.splitlines()]) == {
        "weights_gib": 5.68, "load_s": 3.25, "free_gib": 31.0, "requested_share": 0.9, "requested_gib": 28.22, "activation_gib": 1.5,
        "cuda_graphs_gib": -0.25, "capture_s": 4, "kv_cache_gib": 20.25, "kv_cache_tokens": 147456, "full_length_sequences": 9,
        "attention_backend": "FLASHINFER", "inductor_s": 3.0, "compile_s": 5.0, "compiled_from_cache": 1,
    }


def test_the_facts_of_a_start_on_the_cpu() -> None:
    assert startphases.facts(cpu_log()) == {"kv_cache_gib": 1.0, "kv_cache_tokens": 524288, "full_length_sequences": 256,
                                            "max_model_len_tokens": 2048, "engine_init_s": 1.53}


def test_an_engine_that_found_too_little_memory_tells_how_much() -> None:
    line = "ValueError: Free memory on device cuda:0 (20.11/31.36 GiB) on startup is less than desired GPU memory utilization (0.92, 28.85 GiB)."
    assert startphases.facts([(0.0, line)]) == {"free_gib": 20.11, "requested_share": 0.92, "requested_gib": 28.85}


def test_a_start_that_compiled_is_cold_and_one_that_found_it_compiled_is_not() -> None:
    def start(log: Log, *, cold: bool = False) -> StartTimes:
        return {"ok": True, "seconds": 1.0, "phases": [], "cold": cold, "facts": startphases.facts(log)}

    assert startphases.cold(start(cuda_log())), "a real first start"
    assert not startphases.cold(start([(0.0, line) for line in SYNTHETIC_GPU_032.splitlines()])), "it says that it loaded what was compiled"
    assert not startphases.cold(start(cpu_log())), "it compiles nothing"
    assert startphases.cold(start(cpu_log(), cold=True)), "with empty caches"
