"""What a benchmark runs beside: the GPUs that its engines take, and other deployments on this host. The daemon and nvidia-smi are fakes."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundle import ROOT
from bundle.base.errors import PrerequisiteError
from bundle.bench import composeruntime, runtimes
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.machine import daemon, gpu
from bundle.machine.gpu import Gpu, Nvidia

CARDS = tuple(Gpu(index=index, name=f"card {index}", compute_capability=(12, 0), total_mib=1024 * (index + 1), free_mib=1, uuid=f"GPU-{index}a")
              for index in range(4))


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "read", lambda host: Nvidia(driver="580.1", gpus=CARDS))


def cell(profile: str, *sets: str) -> Settings:
    return settings.load(profile, sets=sets, environ={})


@pytest.mark.parametrize(("cells", "visible", "taken"), [
    ([cell("throughput")], "", [0]),
    ([cell("throughput"), cell("throughput", "ENGINE_MAX_NUM_SEQS=8")], "", [0]),
    ([cell("throughput", "HOST_GPUS=2")], "", [2]),
    ([cell("throughput", "HOST_GPUS=2"), cell("throughput", "HOST_GPUS=GPU-3a")], "", [2, 3]),
    ([cell("throughput", "HOST_GPU_COUNT=2", "ENGINE_TENSOR_PARALLEL_SIZE=2")], "", [0, 1]),
    ([cell("throughput")], "1,3", [1]),
    ([cell("throughput", "HOST_GPU_COUNT=2", "ENGINE_TENSOR_PARALLEL_SIZE=2")], "1,GPU-3a", [1, 3]),
    ([cell("cpu")], "", []),
])
def test_only_the_gpus_that_the_engines_take_are_measured(cells: list[Settings], visible: str, taken: list[int]) -> None:
    assert [card.index for card in runtimes.cards(cells, visible)] == taken


def test_a_run_comes_from_the_gpus_that_its_engines_take(tmp_path: Path) -> None:
    runtime = composeruntime.ComposeRuntime("some", tmp_path)
    runtime.cards = CARDS[1:3]
    found = runtimes.provenance(runtime, {}, {})
    assert (found["gpu"], found["gpu_memory_gib"]) == ("card 1, card 2", 5.0)


def beside(monkeypatch: pytest.MonkeyPatch, folders: Mapping[str, str]) -> None:
    """Refuse or warn beside engines of these projects, by the folders they were started from."""
    found = [SimpleNamespace(labels={"com.docker.compose.project": name, "com.docker.compose.project.working_dir": folder,
                                     "org.opencontainers.image.title": "vLLM engine (cpu)"}) for name, folder in folders.items()]
    client = SimpleNamespace(containers=SimpleNamespace(list=lambda filters: found))
    monkeypatch.setattr(daemon, "client", lambda: client)
    composeruntime._refuse_company("bench-mine")


def test_beside_a_deployment_of_this_folder_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrerequisiteError, match=r"project vllm\)") as refused:
        beside(monkeypatch, {"vllm": str(ROOT), "theirs": "/srv/other", "bench-mine": str(ROOT)})
    assert refused.value.fix == "make down PROJECT=vllm; `make up` again after the benchmark"


def test_a_deployment_of_somebody_elses_is_named_with_its_folder_and_not_to_be_taken_down(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    beside(monkeypatch, {"theirs": "/srv/other", "bench-mine": str(ROOT)})
    said = capsys.readouterr().err
    assert "project theirs in /srv/other" in said
    assert "make down" not in said
    assert "bench-mine" not in said
