"""scripts/check.py as an operator and as a machine call it."""

import contextlib
import json
import os
import shlex
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bundle import ROOT
from bundle.config.settings import SELFTEST_MODEL
from bundle.service import preview
from support import modelfolder, verbs
from support.bad_inputs import BAD

NO_MODEL = ("--set", f"ENGINE_MODEL={SELFTEST_MODEL}")
"""Whether the first model lies in this bundle's store or not."""


def check(*arguments: str, environ: dict[str, str] | None = None, cwd: Path = ROOT) -> CompletedProcess[str]:
    # No PATH to Docker and no daemon: `check` must not need one.
    env = {"PATH": "/nonexistent", "HOME": os.environ["HOME"], **(environ or {})}
    with contextlib.chdir(cwd):
        return verbs.call("check", *arguments, env=env)


def test_json_has_exactly_these_keys() -> None:
    done = check("--profile", "throughput", "--json", "--set", "ENGINE_GPU_MEMORY_UTILIZATION=0.99", *NO_MODEL)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert sorted(answer) == ["argv", "environment", "fit", "origin", "problems", "profile", "resolved"]
    assert answer["fit"] is None
    assert answer["profile"] == "throughput"
    assert answer["argv"][:2] == ["vllm", "serve"]
    assert answer["environment"]["CUDA_CACHE_MAXSIZE"] == "2147483648"
    assert answer["origin"]["ENGINE_GPU_MEMORY_UTILIZATION"] == "--set"
    assert [sorted(problem) for problem in answer["problems"]] == [["file", "key", "line", "message", "severity"]]
    assert answer["problems"][0]["severity"] == "warning"


def test_json_holds_the_problems_and_exits_2() -> None:
    done = check("--profile", "cpu", "--json", "--set", "ENGINE_SWAP_SPACE=8", "--set", "ENGINE_SEED=x")
    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"] == [
        {"file": "--set", "line": 0, "key": "ENGINE_SWAP_SPACE", "severity": "error",
         "message": "vLLM 0.32.0 has no --swap-space (removed in 0.18.0). Use ENGINE_KV_OFFLOADING_SIZE=8."},
        {"file": "--set", "line": 0, "key": "ENGINE_SEED", "severity": "error", "message": "'x' is not a whole number."}]
    assert done.stderr == ""


def test_errors_come_on_stderr_all_at_once_and_nothing_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "bad.env").write_text("\n".join(bad.text.partition("\n")[0] for bad in BAD if bad.name in ("unknown flag", "port in words")))
    done = check("--profile", "cpu", "--env-file", str(tmp_path / "bad.env"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("error: 2 errors in the settings (profile cpu)\n"
                           f"  {tmp_path}/bad.env:1: ENGINE_MAX_NUM_SEQ: vLLM 0.32.0 has no such flag. Did you mean ENGINE_MAX_NUM_SEQS?\n"
                           f"  {tmp_path}/bad.env:2: GATEWAY_PORT: 'http' is not a whole number.\n")


def test_the_command_line_is_one_flag_on_a_line_and_can_be_pasted() -> None:
    done = check("--profile", "cpu", "--set", 'ENGINE_HF_OVERRIDES={"a": "it is"}')
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("command line\n")[1].split("\n\n")[0]
    assert all(line.startswith("  --") for line in text.splitlines()[1:])
    argv = json.loads(check("--profile", "cpu", "--set", 'ENGINE_HF_OVERRIDES={"a": "it is"}', "--json").stdout)["argv"]
    assert [word for word in shlex.split(text) if word != "\n"] == argv


def test_each_value_is_shown_with_its_origin_and_each_optimization_with_its_verdict() -> None:
    done = check("--profile", "throughput", "--set", "CUDA_TENSOR_CORES=1")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "CUDA_TENSOR_CORES 1 --set" in lines
    assert any(line.startswith("ENGINE_QUANTIZATION auto env/throughput.env:") for line in lines)
    assert lines[lines.index("inert CUDA_TENSOR_CORES=1") + 1].endswith("Use VLLM_FLOAT32_MATMUL_PRECISION=high")
    assert "neutral CUDA_CACHE_MAXSIZE=2147483648" in lines


def test_what_auto_becomes_is_one_line_with_its_reason_and_stands_in_the_flattened_file(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    arguments = ("--profile", "throughput", "--gpu", "rtx-5090", "--set", f"MODEL_DIR={folder}")
    shown = check(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "ENGINE_QUANTIZATION=auto: fp8_per_tensor: 16-bit weights, and rtx-5090 (12.0) computes in 8-bit floating point\n" in shown.stdout
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("ENGINE_MAX_NUM_SEQS=auto: ")]
    number = line.removeprefix("ENGINE_MAX_NUM_SEQS=auto: ").partition(":")[0]
    assert " requests of 768 tokens (HOST_REQUEST_TOKENS)" in line
    assert f"requests at once (auto): {line.removeprefix(f'ENGINE_MAX_NUM_SEQS=auto: {number}: ')}: {number}\n" in shown.stdout, "fit's arithmetic"
    answer = json.loads(check(*arguments, "--json").stdout)
    assert answer["resolved"]["ENGINE_MAX_NUM_SEQS"]["value"] == number
    assert "auto" not in answer["argv"]
    flat = tmp_path / "flat.env"
    assert check(*arguments, "--flatten", str(flat)).stderr == f"written: {flat}\n"
    text = flat.read_text()
    assert f"\nENGINE_MAX_NUM_SEQS={number}\n" in text
    assert "\nENGINE_QUANTIZATION=fp8_per_tensor\n" in text


def test_where_no_gpu_is_known_the_flattened_file_keeps_auto_and_it_is_said_who_resolves_it(tmp_path: Path) -> None:
    flat = tmp_path / "flat.env"
    done = check("--profile", "throughput", "--flatten", str(flat), *NO_MODEL)
    assert done.returncode == 0, done.stderr
    assert "ENGINE_MAX_NUM_SEQS=auto stays in it: `make up` on the host that runs it puts a number there" in done.stderr
    assert {"ENGINE_MAX_NUM_SEQS=auto", "ENGINE_QUANTIZATION=auto"} <= set(flat.read_text().splitlines())
    assert "ENGINE_MAX_NUM_SEQS=auto: as many as the KV cache holds, by the host" in check("--profile", "throughput", *NO_MODEL).stdout


def test_warnings_do_not_stop_it() -> None:
    done = check("--profile", "throughput", "--set", "ENGINE_GPU_MEMORY_UTILIZATION=0.99")
    assert done.returncode == 0
    assert "warning: --set: ENGINE_GPU_MEMORY_UTILIZATION: 0.99 × 31.36 GiB = 31.05 GiB" in done.stderr


def test_the_flattened_file_is_written_with_its_own_name_and_means_the_same(tmp_path: Path) -> None:
    flat = tmp_path / "flat.env"
    written = check("--profile", "latency", "--set", "ENGINE_SEED=3", "--flatten", "flat.env", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert f"HOST_ENV_FILE={os.path.relpath(flat, ROOT)}" in flat.read_text().splitlines()
    first = json.loads(check("--profile", "latency", "--set", "ENGINE_SEED=3", "--json").stdout)
    again = json.loads(check("--env-file", "flat.env", "--json", cwd=tmp_path).stdout)
    for key in ("profile", "argv", "environment", "problems"):
        assert again[key] == first[key], key


def test_the_flattened_file_can_go_to_a_pipe() -> None:
    done = check("--profile", "cpu", "--flatten")
    assert done.returncode == 0, done.stderr
    assert "HOST_ENV_FILE=handoff.env" in done.stdout.splitlines()
    assert done.stderr == ""


def test_nothing_is_written_while_something_is_wrong(tmp_path: Path) -> None:
    done = check("--profile", "cpu", "--set", "ENGINE_SEED=x", "--flatten", str(tmp_path / "flat.env"))
    assert done.returncode == 2
    assert not (tmp_path / "flat.env").exists()


@pytest.mark.parametrize("arguments", [("--profile", "nope"), ("--profile", "cpu", "--env-file", "nope.env"), ("--profile", "cpu", "--set", "X"),
                                       ("--profil", "cpu"), ("cpu",)])
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    done = check(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_word_with_blanks_stays_one_word() -> None:
    assert preview.command(("vllm", "serve", "/m", "--x", "a b", "--y", "1", "2")) == "vllm serve /m \\\n  --x 'a b' \\\n  --y 1 2"


# On a GPU that is named

def test_the_seeds_099_is_refused_on_a_5090_with_its_arithmetic() -> None:
    done = check("--profile", "throughput", "--gpu", "rtx-5090", "--set", "ENGINE_GPU_MEMORY_UTILIZATION=0.99", *NO_MODEL)
    assert (done.returncode, done.stdout) == (2, "")
    assert ("--set: ENGINE_GPU_MEMORY_UTILIZATION: on rtx-5090: 31.05 GiB are wanted of 31.36, and 30.86 are free at start: vLLM raises "
            '"Free memory on device … is less than desired GPU memory utilization". Use ENGINE_GPU_MEMORY_UTILIZATION=auto.') in done.stderr
    assert done.stderr.count("31.05") == 1, "the warning about the same value is not said too"


def test_auto_passes_on_a_5090_and_is_shown_as_auto() -> None:
    done = check("--profile", "throughput", "--gpu", "rtx-5090", "--set", "ENGINE_GPU_MEMORY_UTILIZATION=auto")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--gpu-memory-utilization auto" in done.stdout


def test_the_fit_of_a_known_model_is_shown_and_in_the_json(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    arguments = ("--profile", "throughput", "--gpu", "rtx-5090", "--set", f"MODEL_DIR={folder}")
    done = check(*arguments)
    assert done.returncode == 0, done.stderr
    assert "# will it fit?" in done.stdout
    fit = json.loads(check(*arguments, "--json").stdout)["fit"]
    assert (fit["parameters"], fit["starts"], fit["gpu"]["name"]) == (8_190_735_360, True, "rtx-5090")


def test_a_model_that_does_not_fit_the_named_gpu_is_an_error_with_the_change_that_helps(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("phi-4"))
    done = check("--profile", "throughput", "--gpu", "rtx-4090", "--json", "--set", f"MODEL_DIR={folder}", "--set", "ENGINE_QUANTIZATION=")
    assert done.returncode == 2
    [problem] = json.loads(done.stdout)["problems"]
    assert problem["message"].startswith("on rtx-4090: weights 27.31 GiB and overhead ")
    assert "ENGINE_QUANTIZATION=fp8_per_tensor" in problem["message"]


def test_a_known_model_without_a_gpu_to_look_at_is_said_and_stops_nothing(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    done = check("--profile", "throughput", "--set", f"MODEL_DIR={folder}")
    assert done.returncode == 0
    assert "fit is not computed: no GPU to look at" in done.stderr


@pytest.mark.parametrize(("arguments", "said"), [(("--profile", "cpu", "--gpu", "rtx-5090"), "runs on the CPU"),
                                                 (("--profile", "throughput", "--gpu", "rtx-5900"), "Did you mean rtx-5090?")])
def test_a_gpu_that_makes_no_sense_is_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    done = check(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_without_a_profile_the_named_gpu_decides() -> None:
    done = check("--gpu", "rtx-5090")
    assert done.returncode == 0, done.stderr
    assert "profile throughput: rtx-5090 (compute capability 12.0, 31.4 GiB)" in done.stderr
