"""What the CUDA engine image promises, asked of the image itself. No GPU here: nothing is computed, but everything that is there is looked at."""

import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings
from bundle.images import build, buildinputs
from bundle.images.build import SOURCE, Image
from support.image import LAYOUT, answer, inspected, layers_with, run

AHEAD = """
import torch
from flashinfer import aot
wanted = [aot.gen_sampling_module()]
for kept in (torch.bfloat16, torch.float8_e4m3fn):
    wanted += aot.gen_fa2(torch.bfloat16, kept, 128, 128, False, False)
for one in wanted:
    print(one.name, len(one.aot_artifacts), one.is_aot and one.try_load() is not None)
"""
LIMIT_BYTES = 7.0e9
"""A plain installation is 9.62e9."""

SITE = "/opt/venv/lib/python3.11/site-packages"
PROOFS = ((ROOT / "docker/engine/proofs", "/proofs"),)

SEED_VARIABLES = {"CUDA_CACHE_MAXSIZE", "CUDA_ALLOCATOR_BACKEND", "CUDA_MALLOC_ASYNC_POOLS", "CUDA_TENSOR_CORES", "CUBLAS_WORKSPACE_CONFIG",
                  "CUDNN_TENSOR_OPS", "CUDA_L2_PERSISTING_SIZE", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_COPY_SPLIT_THRESHOLD"}
"""The optimizations that an operator turns on in an env file: off must mean off."""

ENVIRONMENT = LAYOUT | {"CUDA_HOME": f"{SITE}/nvidia/cu13", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
"""All that the image sets: where things lie, and that the engine computes."""


@pytest.fixture(scope="module")
def image() -> Image:
    """The image that `make build PROFILE=throughput` has left. A missing one fails the tests; none is built here."""
    return next(image for image in build.wanted_images(settings.load("throughput")) if image.service == "engine")


@pytest.fixture(scope="module")
def config(image: Image) -> dict[str, Any]:
    found: dict[str, Any] = inspected(image.name)["Config"]
    return found


def test_it_is_no_larger_than_promised(image: Image) -> None:
    size = inspected(image.name)["Size"]
    assert size <= LIMIT_BYTES, f"{size / 1e9:.2f} GB"


def test_it_runs_the_bundles_entrypoint_as_nobody_special(image: Image, config: dict[str, Any]) -> None:
    assert config["User"] == "2000:2000"
    assert config["Entrypoint"] == ["/opt/venv/bin/python", "/opt/bundle/entrypoint.py"]
    assert not config["Volumes"]
    assert answer(image.name, "id").startswith("uid=2000(engine) gid=2000(engine)")


def test_its_environment_turns_no_optimization_on(config: dict[str, Any]) -> None:
    environment = dict(line.split("=", 1) for line in config["Env"])
    assert environment == ENVIRONMENT
    assert not SEED_VARIABLES & set(environment)


def test_its_labels_name_its_version_and_its_sources(image: Image, config: dict[str, Any]) -> None:
    labels = config["Labels"]
    assert image.lock is not None
    assert labels[SOURCE] == image.source
    assert labels["org.opencontainers.image.title"] == "vLLM engine (CUDA)"
    ask = "from importlib.metadata import version as v; import torch; print(v('vllm'), torch.__version__, torch.version.cuda)"
    assert answer(image.name, "python", "-c", ask).split() == ["0.33.0", "2.14.0+cu130", "13.0"]
    assert labels["org.opencontainers.image.version"] == "0.33.0"


def test_it_was_proven_while_it_was_built(image: Image) -> None:
    protocol = answer(image.name, "cat", "/opt/bundle/proofs.txt")
    assert [line for line in protocol.splitlines() if line.startswith("---")] == [
        f"--- {title}" for title in re.findall(r"^prove '([^']+)'", (ROOT / "docker/engine/proofs/cuda.sh").read_text(), re.MULTILINE)]
    assert re.search(r"^FlashInfer compiled \w+ as uid 2000 in \d+ s\nok   \w+\.so: sm_120 code [1-9]", protocol, re.MULTILINE)
    assert re.search(r"^ok   \d{3} imports$", protocol, re.MULTILINE)
    assert "Triton: sm_120, CuTe: sm_120" in protocol
    assert "FAIL" not in protocol


def test_its_modules_carry_code_for_an_rtx_5090(image: Image) -> None:
    said = answer(image.name, "python", "/proofs/sm120.py", SITE, mounts=PROOFS)
    assert re.search(r"^ok   _C_stable_libtorch\.abi3\.so: .*sm_120 code \d+", said, re.MULTILINE)
    assert re.search(r"^ok   _moe_C_stable_libtorch\.abi3\.so: .*sm_120 code \d+", said, re.MULTILINE)


def test_a_module_without_such_code_would_be_found(image: Image) -> None:
    # FlashAttention 2 comes as sm_80 code and PTX; a 5090's driver compiles the PTX at the first start.
    done = run(image.name, "python", "/proofs/sm120.py", "--module", f"{SITE}/vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", mounts=PROOFS)
    assert done.returncode == 5
    assert re.fullmatch(r"FAIL _vllm_fa2_C\.abi3\.so: sm_80 PTX \d+, sm_80 code \d+\n", done.stdout)


def test_flashinfer_finds_its_compiler_without_a_warning(image: Image) -> None:
    ask = "from vllm.utils.flashinfer import has_flashinfer; print(has_flashinfer())"
    done = run(image.name, "python", "-c", ask)
    assert done.stdout.split()[-1] == "True"
    assert "kernels are disabled" not in done.stdout + done.stderr
    # A driver to link against that a loader must never find: the host adds the real one.
    linked = answer(image.name, "sh", "-c", 'readelf --dynamic "$CUDA_HOME/lib/stubs/libcuda.so"; ldconfig --print-cache')
    assert "Library soname: [libcuda.so.1]" in linked
    assert "libcuda.so.1 (" not in linked


def test_without_a_flashinfer_compiler_it_would_say_so(image: Image) -> None:
    ask = "import os; os.environ['CUDA_HOME'] = '/none'; from vllm.utils.flashinfer import has_flashinfer; print(has_flashinfer())"
    assert run(image.name, "python", "-c", ask).stdout.split()[-1] == "False"


def test_without_a_gpu_the_engine_ends_with_a_reason_and_not_with_zero(image: Image) -> None:
    done = run(image.name, "vllm", "serve", "/opt/bundle/selftest-model")
    assert done.returncode != 0
    assert "Failed to infer device type" in done.stdout + done.stderr


def test_the_selftest_model_is_in_it(image: Image) -> None:
    ask = "from transformers import AutoConfig, AutoTokenizer as T; p = '/opt/bundle/selftest-model'; " \
          "print(AutoConfig.from_pretrained(p).architectures[0], len(T.from_pretrained(p)('hello').input_ids) > 0)"
    assert answer(image.name, "python", "-c", ask).split() == ["Qwen3ForCausalLM", "True"]
    assert int(answer(image.name, "sh", "-c", "cat /opt/bundle/selftest-model/* | wc -c")) < 10e6


def test_the_builds_tools_stay_out(image: Image) -> None:
    tools = "/build /wheels /run/build/* /run/secrets/* /tmp/* /cache/* /root/.cache /var/lib/apt/lists/* /opt/venv/bin/uv /opt/venv/bin/pip"
    as_root = ["docker", "run", "--rm", "--network=none", "--user=0:0", "--entrypoint=sh", image.name, "-c", f"ls -d {tools} 2> /dev/null || true"]
    assert subprocess.run(as_root, capture_output=True, text=True, check=True, timeout=120).stdout == ""


def test_its_user_can_write_to_the_cache_and_to_nothing_else(image: Image) -> None:
    find = "find / -xdev -not -type l -writable -not -path '/proc/*' -not -path '/dev/*' 2> /dev/null"
    found = subprocess.run(["docker", "run", "--rm", "--network=none", "--entrypoint=sh", image.name, "-c", find],
                           capture_output=True, text=True, check=False, timeout=300).stdout.split()
    assert "/cache" in found
    assert set(found) <= {"/cache", "/tmp", "/var/tmp", "/run/lock"}


def test_its_scripts_are_the_repositorys(image: Image) -> None:
    scripts = {f"{folder.name}/{path.name}": path
               for folder in (ROOT / "healthchecks", ROOT / "docker/engine/middleware") for path in folder.glob("*.py")}
    scripts |= {f"{name}.py": ROOT / "docker/engine" / f"{name}.py"
                for name in ("entrypoint", "exporter", "watch", "vitals", "words", "benchagent", "benchprobe")}
    listed = answer(image.name, "sh", "-c", "cd /opt/bundle && sha256sum *.py healthchecks/*.py middleware/*.py")
    assert {name: digest for digest, name in (line.split() for line in listed.splitlines())} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in scripts.items()}


def test_the_authorities_of_the_build_are_in_no_layer(image: Image) -> None:
    assert not list(layers_with(buildinputs.LEAK_MARK.encode(), image.name))


def test_authorities_in_a_layer_would_be_found(tmp_path: Path) -> None:
    leaking = f"test-leak-{tmp_path.name.replace('_', '-')}:latest"
    (tmp_path / "ca.pem").write_text(f"{buildinputs.LEAK_MARK}\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY ca.pem /etc/\n")
    subprocess.run(["docker", "build", "--tag", leaking, str(tmp_path)], check=True, capture_output=True, timeout=120)
    try:
        assert len(list(layers_with(buildinputs.LEAK_MARK.encode(), leaking))) == 1
    finally:
        subprocess.run(["docker", "image", "rm", leaking], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(("architecture", "found"), [("12.0", "1 True"), ("9.0", "0 False")])
def test_flashinfer_finds_what_was_built_ahead_for_an_rtx_5090_and_for_no_other(architecture: str, found: str, image: Image) -> None:
    said = answer(image.name, "env", f"FLASHINFER_CUDA_ARCH_LIST={architecture}", "python", "-c", AHEAD).splitlines()
    assert len(said) == 5
    for line in said:
        assert line.partition(" ")[2] == found, line
