"""Which profile a host gets without being asked, and what `make profiles` shows."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bundle import ROOT
from bundle.choice import profile, table
from bundle.choice.profile import PREFERRED, default_profile
from bundle.config import profiles, settings
from bundle.doctor.fit import fit_check
from bundle.doctor.host import Needs, examine
from bundle.fit import assessment, estimation
from bundle.machine import devices
from bundle.machine.devices import Device
from support import modelfolder, verbs
from support.fakehost import FakeHost

CARD = "{index}, {name}, {capability}, {total}, {free}, 580.95.05, GPU-{index}a7c\\n"


def host_with(tmp_path: Path, *cards: tuple[str, str, int, int]) -> FakeHost:
    fake = FakeHost(tmp_path / "host")
    rows = "".join(CARD.format(index=index, name=name, capability=capability, total=total, free=free)
                   for index, (name, capability, total, free) in enumerate(cards))
    fake.program("nvidia-smi", f"printf '{rows}'")
    return fake


def no_model(_name: str, _device: Device) -> None:
    return None


RTX_5090 = ("NVIDIA GeForce RTX 5090", "12.0", 32_607, 32_110)
RTX_5080 = ("NVIDIA GeForce RTX 5080", "12.0", 16_303, 15_900)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()


@pytest.mark.parametrize(("cards", "profile", "why"), [
    ([RTX_5090], "throughput", "NVIDIA GeForce RTX 5090 (compute capability 12.0, 31.4 GiB), no model to look at; made for 32 GB"),
    ([RTX_5080], "memory", "no model to look at; made for small GPUs"),
    ([RTX_5090, RTX_5080], "throughput", "NVIDIA GeForce RTX 5090"),
    ([RTX_5080, RTX_5090], "memory", "NVIDIA GeForce RTX 5080"),
    ([("Tesla V100-SXM2-16GB", "7.0", 16_384, 16_000)], "cpu", "the engine has no code for a compute capability under 7.5"),
])
def test_memory_and_compute_capability_decide_where_no_model_is_known(cards: list[tuple[str, str, int, int]], profile: str, why: str,
                                                                     tmp_path: Path) -> None:
    choice = default_profile(no_model, host=host_with(tmp_path, *cards).host())
    assert choice.profile == profile
    assert why in choice.why


@pytest.mark.parametrize(("sets", "card"), [
    ((), "NVIDIA GeForce RTX 5080"),
    (("HOST_GPUS=0",), "NVIDIA GeForce RTX 5080"),
    (("HOST_GPUS=1",), "NVIDIA GeForce RTX 5090"),
    (("HOST_GPUS=GPU-1a7c",), "NVIDIA GeForce RTX 5090"),
    (("HOST_GPU_COUNT=2",), "NVIDIA GeForce RTX 5080"),
    (("HOST_GPU_COUNT=2", "HOST_GPUS=1,0"), "NVIDIA GeForce RTX 5080"),
])
def test_choice_fit_doctor_and_the_container_mean_the_same_card(sets: tuple[str, ...], card: str, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    host = host_with(tmp_path, RTX_5080, RTX_5090).host()
    found = profile.load(profile.Wanted(sets=sets), host=host)
    assert f": {card} (compute capability" in capsys.readouterr().err
    device = estimation.device_of(found, host=host)
    assert device
    assert device.name == card
    (checked,) = (check for check in examine(Needs.from_settings(found), host) if check.name == "gpu")
    assert card in checked.found.partition("GPU 1 is")[0]
    given = {"HOST_GPUS=1": "1", "HOST_GPUS=GPU-1a7c": "GPU-1a7c", "HOST_GPUS=1,0": "1,0", "HOST_GPU_COUNT=2": "0,1"}
    assert found.value("HOST_GPUS_1") == given.get(sets[-1] if sets else "", "0")
    assert found.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_running_engine_does_not_change_the_choice(tmp_path: Path) -> None:
    free, held = host_with(tmp_path, RTX_5090), ("NVIDIA GeForce RTX 5090", "12.0", 32_607, 900)
    asked: list[int] = []

    def starts(_name: str, device: Device) -> bool:
        asked.append(device.free)
        return device.free > 20 * devices.GIB

    first = default_profile(starts, host=free.host())
    free.program("nvidia-smi", f"printf '{CARD.format(index=0, name=held[0], capability=held[1], total=held[2], free=held[3])}'")
    assert default_profile(starts, host=free.host()) == first
    assert len(set(asked)) == 1


@pytest.mark.parametrize(("fits", "profile", "why"), [
    ({"throughput": True, "memory": True}, "throughput", "and the model starts there"),
    ({"throughput": False, "memory": True}, "memory", "and the model starts there, not with throughput"),
    ({"throughput": False, "memory": False}, "throughput", "by the estimate the model starts with none of throughput, memory"),
])
def test_the_models_fit_decides_where_it_is_known(fits: dict[str, bool], profile: str, why: str) -> None:
    choice = default_profile(lambda name, _device: fits[name], device=devices.find("rtx-5090"))
    assert choice.profile == profile
    assert why in choice.why


def test_a_real_config_on_a_small_card_takes_the_memory_profile(tmp_path: Path) -> None:
    # Beside 8.79 GiB of weights and its buffers `throughput` has less than the 5.6 that one sequence of 40,960 tokens takes.
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    small = Device(name="small", total=16 * devices.GIB, free=15 * devices.GIB, capability=(12, 0), source="")
    sets = [f"MODEL_DIR={folder}", "ENGINE_MAX_MODEL_LEN=40960"]
    loaded = {name: settings.load(name, sets=sets if name == "throughput" else sets[:1]) for name in PREFERRED}
    choice = default_profile(lambda name, on: assessment.starts(loaded[name], on), device=small)
    assert choice.profile == "memory"


def test_without_a_gpu_it_is_the_cpu_and_what_was_looked_at_is_said(tmp_path: Path) -> None:
    choice = default_profile(no_model, host=FakeHost(tmp_path / "host").host())
    assert (choice.profile, choice.why) == ("cpu", "no NVIDIA GPU is visible (no /dev/nvidia0, and nvidia-smi is not installed)")


def test_a_card_whose_memory_cannot_be_read_is_still_a_gpu(tmp_path: Path) -> None:
    fake = FakeHost(tmp_path / "host")
    fake.file("/dev/nvidia0", "")
    assert default_profile(no_model, host=fake.host()).profile == "throughput"


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_says_in_its_first_line_what_it_is_for(name: str) -> None:
    assert (ROOT / "env" / f"{name}.env").read_text(encoding="utf-8").startswith("# ")
    assert profiles.description(name).endswith(".")


# make profiles

def test_all_profiles_are_listed_with_the_models_fit(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    choice, rows = table.profile_table("rtx-5090", sets=[f"MODEL_DIR={folder}"])
    assert choice.profile == "throughput"
    assert [row.profile for row in rows] == profiles.names()
    assert {row.profile: row.starts for row in rows} == {name: name != "cpu" and "embed" not in name for name in profiles.names()}
    assert all("tokens of KV cache" in row.summary for row in rows if row.starts)


def test_without_a_model_a_share_that_cannot_start_is_refused_all_the_same() -> None:
    _, rows = table.profile_table("rtx-5090", sets=["ENGINE_GPU_MEMORY_UTILIZATION=0.99"])
    throughput = next(row for row in rows if row.profile == "throughput")
    assert throughput.starts is False
    assert throughput.summary.startswith("31.05 GiB are wanted of 31.36, and 30.86 are free at start")


def script(*arguments: str) -> CompletedProcess[str]:
    return verbs.call("profiles", *arguments)


def test_the_script_lists_them_for_people_and_for_machines() -> None:
    done = script("--gpu", "rtx-5090")
    assert done.returncode == 0, done.stderr
    assert "without PROFILE: throughput (rtx-5090 (compute capability 12.0" in done.stdout
    answer = json.loads(script("--gpu", "rtx-5090", "--json").stdout)
    assert answer["chosen"] == "throughput"
    assert sorted(answer["profiles"][0]) == ["description", "fit", "profile", "said", "starts"]
    assert script("--gpu", "rtx-5900").returncode == 2


# After a start

def test_an_estimate_is_held_against_the_engines_log_in_one_line(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    fit = assessment.assess(settings.load("throughput", sets=[f"MODEL_DIR={folder}"]), "rtx-5090")
    assert fit.estimate
    log = "Model loading took 8.88 GiB and 2.9 seconds\nAvailable KV cache memory: 18.00 GiB\nGPU KV cache size: 131,072 tokens\n"
    line = assessment.described(fit.differences(log))
    assert line.startswith("weights 8.79 GiB estimated, 8.88 found (-1.0 %); KV cache ")
    assert f"KV cache {fit.estimate.kv_tokens:,} tokens estimated, 131,072 found (" in line
    assert "\n" not in line
    assert fit.differences("nothing of it") == ()


# The line of `make doctor`

@pytest.mark.parametrize(("sets", "state", "said"), [
    ((), "ok", "tokens of KV cache"), (("ENGINE_KV_CACHE_MEMORY_BYTES=29G",), "warn", "estimate: weights, overhead and ENGINE_KV_CACHE_MEMORY_BYTES"),
    (("MODEL_DIR=",), "ok", "no model is known"), (("MODEL_DIR=/nonexistent/model",), "warn", "not computed: ")])
def test_the_doctor_says_what_the_estimate_is_and_never_fails_for_it(sets: tuple[str, ...], state: str, said: str, tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    loaded = settings.load("throughput", sets=[f"MODEL_DIR={folder}", *sets])
    check = fit_check(assessment.assess(loaded, host=host_with(tmp_path, RTX_5090).host()))
    assert check.state == state
    assert said in check.found
    assert (check.fix == "") == (state == "ok")


def test_fit_and_check_take_the_same_profile_for_a_named_gpu(tmp_path: Path) -> None:
    folder = modelfolder.folder(tmp_path / "m", modelfolder.published("qwen3-8b"))
    said = [verbs.call(*words).stderr for words in (
        ("fit", str(folder), "--gpu", "rtx-4090"), ("check", "--gpu", "rtx-4090", "--set", f"MODEL_DIR={folder}", "--json"))]
    chosen = {line for text in said for line in text.splitlines() if line.startswith("profile ") or "profile " in line.partition(":")[0]}
    assert len(chosen) == 1, said
