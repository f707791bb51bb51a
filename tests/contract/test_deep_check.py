"""`make check DEEP=1` on the real images: what the engine itself says of a deployment, without a GPU, a network or weights."""

import json
import subprocess
import sys

from bundle import ROOT
from bundle.config.settings import SELFTEST_MODEL


def check(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(ROOT / "scripts/check.py"), "--deep", "--set", f"ENGINE_MODEL={SELFTEST_MODEL}", *arguments],
                          capture_output=True, text=True, check=False, timeout=300)


def test_the_cpu_engine_takes_its_profile() -> None:
    done = check("--profile", "cpu")
    assert done.returncode == 0, done.stderr
    assert "the engine takes it: Qwen3ForCausalLM, 2,048 tokens, not quantized" in done.stderr


def test_the_cuda_engine_takes_its_profile_as_on_an_rtx_5090() -> None:
    done = check("--profile", "throughput")
    assert done.returncode == 0, done.stderr
    assert "the engine takes it: Qwen3ForCausalLM, 16,384 tokens, fp8_per_tensor" in done.stderr


def test_what_only_the_engine_knows_is_told_with_its_line() -> None:
    done = check("--profile", "throughput", "--set", "ENGINE_TENSOR_PARALLEL_SIZE=3", "--set", "HOST_GPU_COUNT=3", "--json")
    assert done.returncode == 2, done.stderr
    (problem,) = (each for each in json.loads(done.stdout)["problems"] if each["severity"] == "error")
    assert problem["key"] == "ENGINE_TENSOR_PARALLEL_SIZE"
    assert "Total number of attention heads (4) must be divisible by tensor parallel size (3)" in problem["message"]
