"""Phases and causes are read from logs that real engines wrote."""

from pathlib import Path

import pytest

from bundle.service import enginelog

# env/throughput.env, started by the entrypoint on an H200 with vLLM 0.26.0 and random weights in the shape of Qwen3-8B.
CUDA = (Path(__file__).parent / "data" / "start-cuda-h200-vllm-0.26.0.log").read_text()


def phases(log: str) -> list[str]:
    """The phases that a watcher of the growing log sees, in order."""
    lines, seen = log.splitlines(keepends=True), ["starting Python"]
    for end in range(len(lines)):
        now = enginelog.phase("".join(lines[:end + 1]))
        if now != seen[-1]:
            seen.append(now)
    return seen


def test_a_real_start_on_a_gpu_passes_through_every_phase_once_and_in_order() -> None:
    assert phases(CUDA) == ["starting Python", "configuring", "starting the engine process", "loading weights", "compiling", "profiling memory",
                            "capturing graphs", "warming up", "starting the API", "first answer"]


def test_words_about_compiling_in_a_configuration_are_not_the_phase() -> None:
    log = ("(APIServer pid=7) INFO [api_utils.py:273] non-default args: {'model': 'm'}\n"
           "(APIServer pid=7) WARNING [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs, and JIT kernel warmup.\n")
    assert enginelog.phase(log) == "configuring"


def test_the_last_error_is_the_one_that_the_entrypoint_passed_on() -> None:
    log = ("Traceback (most recent call last):\nRuntimeError: Engine core initialization failed. See root cause above.\n"
           "entrypoint: the engine ended unasked with code 1 after 20 s; its last error: ValueError: User-specified max_model_len (9) is too long\n")
    assert enginelog.last_error(log) == "ValueError: User-specified max_model_len (9) is too long"


def test_an_engine_killed_together_with_its_entrypoint_leaves_its_last_line() -> None:
    assert enginelog.last_error("loading\nhalf a line\n\n") == "half a line"
    assert enginelog.last_error("") == "it printed nothing"


@pytest.mark.parametrize(("line", "advice"), [
    ("ValueError: Free memory on device (10.0/31.36 GiB) on startup is less than desired GPU memory utilization", "nvidia-smi"),
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "ENGINE_MAX_MODEL_LEN"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "ENGINE_MAX_NUM_SEQS"),
    ("OSError: [Errno 28] No space left on device", "docker system df"),
    ("PermissionError: [Errno 13] Permission denied: '/model/config.json'", "uid 2000"),
    ("something new", "make logs"),
])
def test_each_known_cause_has_its_next_step(line: str, advice: str) -> None:
    assert advice in enginelog.remedy(line)
