"""The audit of real images: the records of env/optimizations.yaml agree with what is built, and a record that does not is caught."""

import json
import os
import secrets
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings, verdicts
from bundle.images import build
from bundle.tuning import audit

INERT = ["CUDA_ALLOCATOR_BACKEND", "CUDA_COPY_SPLIT_THRESHOLD", "CUDA_L2_PERSISTING_SIZE", "CUDA_MALLOC_ASYNC_POOLS", "CUDA_TENSOR_CORES",
         "CUDNN_TENSOR_OPS"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "optimizations.py"), "audit", *words], capture_output=True, text=True, check=False,
                          timeout=1200, env={**os.environ, "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def cuda() -> Any:
    """What the audit says of the GPU profiles' image; building it takes half an hour, so it has to be there."""
    done = run("--json", "--image", settings.load("throughput").image_engine)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cpu() -> str:
    """The CPU image as `make build` leaves it."""
    chosen = settings.load("cpu")
    build.ensure(chosen)
    return chosen.image_engine


def test_every_record_agrees_with_the_cuda_image(cuda: Any) -> None:
    assert cuda["agrees"] is True
    assert cuda["image"] == settings.load("throughput").image_engine
    assert (cuda["engine"], cuda["target"]) == ("0.33.0", "cuda")
    assert len(cuda["findings"]) + cuda["out_of_scope"] == len(verdicts.load())
    assert cuda["bytes"] > 4e9  # the libraries, not only their sources


def test_the_search_finds_its_controls_in_the_cuda_image(cuda: Any) -> None:
    assert {control["state"] for control in cuda["controls"]} == {"ok"}
    assert len(cuda["controls"]) > len(audit.CONTROLS["cuda"])


def test_six_of_the_seeds_nine_variables_are_in_no_file_of_the_cuda_image(cuda: Any) -> None:
    assert sorted(line["name"] for line in cuda["findings"] if line["verdict"] == "inert") == INERT
    assert all(line["found"].startswith("in no file") for line in cuda["findings"] if line["verdict"] == "inert")


def test_only_what_the_driver_reads_may_stay_open(cuda: Any) -> None:
    driver = {record.name for record in verdicts.load() if audit.DRIVER in record.readers}
    assert {line["name"] for line in cuda["findings"] if line["state"] == "open"} == (set() if cuda["drivers"] else driver)


def test_every_record_about_the_cpu_image_agrees_and_a_wrong_one_does_not(cpu: str) -> None:
    records = verdicts.load()
    read = next(record for record in records if record.name == "VLLM_CACHE_ROOT")
    known = next(record for record in records if record.name == "--max-num-seqs")
    wrong = [replace(read, verdict="inert", read_by="nothing"), replace(known, verdict="removed", read_by="nothing")]
    answer = audit.run(cpu, [], [*records, *wrong], 900)
    assert [(finding.name, finding.verdict) for finding in answer.failures] == [("VLLM_CACHE_ROOT", "inert"), ("--max-num-seqs", "removed")]
    assert "vllm/envs.py" in answer.failures[0].found


def test_an_image_that_is_not_there_exits_3() -> None:
    done = run("--image", f"vllm-bundle/engine:no-{secrets.token_hex(4)}")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no such image here" in done.stderr


def test_an_image_that_is_no_engine_exits_3(cpu: str) -> None:
    done = run("--image", settings.load("cpu").image_gateway)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no flag catalogue in it" in done.stderr


def test_a_search_in_an_image_ends_when_its_time_is_over(cpu: str) -> None:
    done = run("--image", cpu, "--limit", "0.001")
    assert done.returncode == 5
    assert "the search did not end in 0.001 s" in done.stderr
    assert "--limit" in done.stderr
