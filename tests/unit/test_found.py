"""What a start has found corrects the next estimate of the same on this host, and of nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.fit import assessment, found
from bundle.fit.assessment import Fit
from bundle.machine import daemon
from bundle.machine.devices import GIB, Device
from support import modelfolder

RECORDED = Path(__file__).parent / "data" / "start-cuda-h200-vllm-0.26.0.log"
"""A start of Qwen3-8B's shape with the profile `throughput` on an H200 held down to a 5090's memory."""

CARD = Device(name="NVIDIA H200", total=round(139.80 * GIB), free=round(139.3 * GIB), capability=(9, 0), source="")
OF_RECORDED = ("ENGINE_GPU_MEMORY_UTILIZATION=0.20862", "ENGINE_MAX_NUM_SEQS=256")


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Image ids by name, and a folder of the test's own for what is kept."""
    ids = {"vllm-bundle/engine:cuda-0.33.0": "sha256:1", "vllm-bundle/engine:cpu-0.32.0": "sha256:2"}
    monkeypatch.setattr(daemon, "image_id", lambda name: ids.get(name, ""))
    monkeypatch.setattr(found, "FOLDER", tmp_path / "found")
    return ids


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))


def load(model: Path, *sets: str, profile: str = "throughput") -> Settings:
    return settings.load(profile, sets=[f"MODEL_DIR={model}", *sets])


def start(chosen: Settings, model: Path, log: str, device: Device | None = CARD) -> Fit:
    """What `make up` does after a start: it compares, and keeps."""
    fit = assessment.assess_on(chosen, device)
    assert fit.estimate
    found.keep(assessment.decided(chosen, fit), model, fit.estimate, fit.differences(log), log)
    return fit


def kv_gib(chosen: Settings, device: Device | None = CARD) -> float:
    estimate = assessment.assess_on(chosen, device).estimate
    assert estimate
    return round(estimate.kv_bytes / GIB, 2)


def test_the_next_estimate_is_what_a_recorded_start_has_found(model: Path) -> None:
    log = RECORDED.read_text()
    chosen = load(model, *OF_RECORDED)
    first = start(chosen, model, log)
    memory = next(one for one in first.differences(log) if (one.what, one.unit) == ("KV cache", "GiB"))
    assert abs(memory.estimated - memory.measured) > 0.1, "the recorded start differs from the estimate"
    again = assessment.assess_on(chosen, CARD)
    assert again.estimate
    assert round(again.estimate.kv_bytes / GIB, 2) == memory.measured
    line = next(line for line in again.estimate.arithmetic if line.startswith("corrected by the start of 2"))
    assert line.endswith(f"overhead {first.estimate.overhead_bytes / GIB:.2f} -> {again.estimate.overhead_bytes / GIB:.2f} GiB")  # type: ignore[union-attr]


def test_a_second_start_replaces_the_first_and_is_not_added_to_it(model: Path) -> None:
    chosen = load(model, *OF_RECORDED)
    for memory in ("17.50", "18.25"):
        start(chosen, model, f"Available KV cache memory: {memory} GiB\n")
        assert kv_gib(chosen) == float(memory)
    assert len(list(found.FOLDER.glob("*.json"))) == 1


@pytest.mark.parametrize("changed", ["ENGINE_GPU_MEMORY_UTILIZATION=0.3", "ENGINE_MAX_NUM_SEQS=100", "ENGINE_MAX_NUM_SEQS=auto",
                                     "ENGINE_MAX_MODEL_LEN=8K", "GATEWAY_PORT=9000", "ENGINE_SERVED_MODEL_NAME=other"])
def test_what_the_overhead_does_not_depend_on_or_is_counted_keeps_the_correction(changed: str, model: Path) -> None:
    before = kv_gib(load(model, *OF_RECORDED, changed))
    base = kv_gib(load(model, *OF_RECORDED))
    start(load(model, *OF_RECORDED), model, f"Available KV cache memory: {base - 0.5:.2f} GiB\n")
    assert before - kv_gib(load(model, *OF_RECORDED, changed)) == pytest.approx(0.5, abs=0.05), "fewer requests take less beside the cache"


@pytest.mark.parametrize("changed", ["ENGINE_MAX_NUM_BATCHED_TOKENS=4096", "ENGINE_ENFORCE_EAGER=true", "ENGINE_QUANTIZATION=",
                                     "ENGINE_KV_CACHE_DTYPE=fp8", "ENGINE_ATTENTION_BACKEND=TRITON_ATTN", "VLLM_USE_FLASHINFER_SAMPLER=0",
                                     "IMAGE_ENGINE=other:1"])
def test_a_start_with_other_settings_corrects_nothing(changed: str, model: Path) -> None:
    before = kv_gib(load(model, *OF_RECORDED, changed))
    start(load(model, *OF_RECORDED), model, "Available KV cache memory: 10.00 GiB\n")
    assert kv_gib(load(model, *OF_RECORDED)) == 10
    assert kv_gib(load(model, *OF_RECORDED, changed)) == before


def test_a_stale_record_is_never_used(model: Path, images: dict[str, str], tmp_path: Path) -> None:
    chosen = load(model, *OF_RECORDED)
    untouched = kv_gib(chosen)
    start(chosen, model, "Available KV cache memory: 10.00 GiB\n")
    assert kv_gib(chosen, replace(CARD, name="NVIDIA H100 80GB HBM3")) == untouched, "another GPU"
    assert kv_gib(chosen, replace(CARD, name="h200")) == untouched, "not this host's: one that was named"
    images["vllm-bundle/engine:cuda-0.33.0"] = "sha256:new"
    assert kv_gib(chosen) == untouched, "the name means another image"
    images["vllm-bundle/engine:cuda-0.33.0"] = "sha256:1"
    assert kv_gib(chosen) == 10
    (model / "config.json").write_text(json.dumps({**modelfolder.published("qwen3-8b"), "rope_theta": 5}))
    assert kv_gib(chosen) == untouched, "another model in the same folder"


def test_without_docker_it_is_not_known_which_image_would_start(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load(model, *OF_RECORDED)
    untouched = kv_gib(chosen)
    start(chosen, model, "Available KV cache memory: 10.00 GiB\n")

    def refuses(_name: str) -> str:
        raise PrerequisiteError("the Docker daemon does not answer")

    monkeypatch.setattr(daemon, "image_id", refuses)
    assert kv_gib(chosen) == untouched


@pytest.mark.parametrize("text", ["", "{", "[]", '{"gpu": 1}'])
def test_a_damaged_record_is_none(text: str, model: Path) -> None:
    chosen = load(model, *OF_RECORDED)
    untouched = kv_gib(chosen)
    start(chosen, model, "Available KV cache memory: 10.00 GiB\n")
    (place,) = found.FOLDER.glob("*.json")
    place.write_text(text)
    assert kv_gib(chosen) == untouched
    assert found.last("vllm") is None


def test_a_share_that_was_measured_at_the_start_is_no_fault_of_the_overhead(model: Path) -> None:
    chosen = load(model, "ENGINE_GPU_MEMORY_UTILIZATION=auto", "ENGINE_MAX_NUM_SEQS=256")
    expected = kv_gib(chosen)
    log = ("entrypoint: starting: vllm serve /model --gpu-memory-utilization 0.5 --max-num-seqs 256\n"
           f"Available KV cache memory: {expected - (0.992 - 0.5) * CARD.total / GIB:.2f} GiB\n")  # auto expects 0.992 of this card
    start(chosen, model, log)
    assert kv_gib(chosen) == pytest.approx(expected, abs=0.02)


def test_a_measured_overhead_is_not_corrected(model: Path) -> None:
    chosen = load(model, *OF_RECORDED)
    start(chosen, model, "Available KV cache memory: 10.00 GiB\n")
    estimate = assessment.estimated(chosen, model, CARD, measured_overhead=GIB).estimate
    assert estimate
    assert estimate.overhead == {"measured": GIB}


@pytest.mark.parametrize(("profile", "device", "log"), [
    ("cpu", None, "CPU KV cache size: 46,592 tokens\nAvailable KV cache memory: 1.00 GiB\n"),
    ("memory", CARD, "Explicitly set (4.0 GiB)\nGPU KV cache size: 58,240 tokens\n"),
    ("throughput", CARD, "Model loading took 8.79 GiB and 3 seconds\n"),
])
def test_a_start_that_does_not_tell_the_overhead_is_kept_and_corrects_nothing(profile: str, device: Device | None, log: str, model: Path) -> None:
    chosen = load(model, profile=profile)
    before = assessment.assess_on(chosen, device).estimate
    start(chosen, model, log, device)
    assert assessment.assess_on(chosen, device).estimate == before
    kept = found.last("vllm")
    assert kept
    assert kept.correction is None
    assert kept.differences == assessment.assess_on(chosen, device).differences(log)


def test_status_shows_the_last_start_of_its_own_project(model: Path) -> None:
    chosen = load(model, *OF_RECORDED)
    start(chosen, model, "Available KV cache memory: 10.00 GiB\n")
    assert found.last("another") is None
    kept = found.last("vllm")
    assert kept
    assert "KV cache" in assessment.described(kept.differences)
