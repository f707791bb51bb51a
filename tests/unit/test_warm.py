"""`make warm` before it starts anything: what has nothing to warm, and what must not be disturbed. The start itself: tests/e2e/test_warm.py."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.doctor import accelerator, host
from bundle.doctor.check import Check, ok, warn
from bundle.doctor.host import Needs
from bundle.machine import setup
from bundle.machine.facts import Host
from bundle.service import warm
from bundle.service.deployment import Container, Deployment
from support import verbs

ON_CPU = ("ENGINE_MODEL=/opt/bundle/selftest-model", "ENGINE_ENFORCE_EAGER=false", "TORCHDYNAMO_DISABLE=")
ON_GPU = ("ENGINE_MODEL=/opt/bundle/selftest-model", "ENGINE_MAX_NUM_SEQS=8")


def load(profile: str, *sets: str) -> Settings:
    return settings.load(profile, [], sets, environ={})


def engine(state: str = "running") -> Container:
    return Container(id="1", service="engine", state=state, health="healthy", restarts=0, exit_code=0, out_of_memory=False, started="", image="",
                     memory_bytes=0, probe="", published=None)


@dataclass(frozen=True, kw_only=True)
class Running(Deployment):
    """A deployment of which this is known, and in which nothing can be started."""

    env: dict[str, str] = field(default_factory=dict)
    there: dict[str, Container] = field(default_factory=dict)

    def containers(self) -> dict[str, Container]:
        return self.there

    def values(self, service: str = "engine") -> dict[str, str]:
        return self.env

    def compose(self, *arguments: str, **_: object) -> object:  # type: ignore[override]
        raise AssertionError(arguments)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(setup, "prepare", lambda _: None)
    monkeypatch.setattr(accelerator, "settled", lambda chosen: chosen)
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def checks(monkeypatch: pytest.MonkeyPatch, *found: Check) -> list[Needs]:
    """What the host's checks say, and what they are asked."""
    asked: list[Needs] = []

    def examine(needs: Needs, _: Host) -> list[Check]:
        asked.append(needs)
        return list(found)

    monkeypatch.setattr(host, "examine", examine)
    return asked


class ImagesAskedError(Exception):
    """As far as it goes here: there was room."""


def images(_: Settings) -> object:
    raise ImagesAskedError


@pytest.mark.parametrize(("sets", "said"), [
    ((), "ENGINE_ENFORCE_EAGER=true (env/cpu.env:"), (("ENGINE_ENFORCE_EAGER=false",), "TORCHDYNAMO_DISABLE=1 (env/cpu.env:")])
def test_a_cpu_profile_that_compiles_nothing_has_nothing_to_warm_and_nothing_is_started(sets: tuple[str, ...], said: str, state: Path) -> None:
    warmed = warm.warm(load("cpu", "ENGINE_MODEL=/opt/bundle/selftest-model", *sets), Running(state=state), ensure_images=images)
    assert (warmed.seconds, warmed.why_not.startswith(said)) == (0, True)
    assert not list(state.iterdir()), "not even a lock"


def test_the_verb_says_that_there_is_nothing_to_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "warm", lambda chosen: warm.Warmed(model="m", seconds=0, why_not=warm.nothing_to_warm(chosen)))
    done = verbs.call("warm", "--profile", "cpu")
    assert (done.returncode, done.stdout.startswith("nothing to warm: ENGINE_ENFORCE_EAGER=true (env/cpu.env:")) == (0, True), done


@pytest.mark.parametrize(("written", "sets", "shared"), [
    ({"HOST_GPUS_1": "0"}, (), "GPU 0"),
    ({"HOST_GPUS_1": "1", "HOST_GPUS_2": "0"}, (), "GPU 0"),
    ({"HOST_GPUS_1": "0"}, ("HOST_GPUS=1",), ""),
    ({"HOST_GPUS_1": "0,1"}, ("HOST_GPUS=1",), "GPU 1"),
    ({"HOST_GPUS_1": "0"}, ("HOST_ACCELERATOR=cuda-cdi",), "GPU 0"),
    ({"HOST_GPUS_1": "0", "HOST_ACCELERATOR": "cuda-cdi"}, ("HOST_GPUS=1",), "GPU 0"),
])
def test_a_card_on_which_an_engine_serves_is_not_taken(written: dict[str, str], sets: tuple[str, ...], shared: str, state: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    checks(monkeypatch, ok("gpu memory", "free"))
    deployment = Running(state=state, env=written, there={"engine": engine()})
    with pytest.raises(PrerequisiteError if shared else ImagesAskedError) as raised:
        warm.warm(load("throughput", *ON_GPU, *sets), deployment, ensure_images=images)
    if shared:
        assert f"engine of project vllm runs on {shared}, where the caches would be filled" in str(raised.value)
    stopped = Running(state=state, env=written, there={"engine": engine("exited")})
    with pytest.raises(ImagesAskedError):
        warm.warm(load("throughput", *ON_GPU, *sets), stopped, ensure_images=images)


def test_what_the_own_project_holds_counts_as_in_the_way_and_one_engine_is_asked_for(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = checks(monkeypatch, Check(name="gpu memory", state="fail", found="GPU 2: 29 GiB are wanted, and 3 are free", fix="end what uses it"))
    with pytest.raises(PrerequisiteError, match="gpu memory: GPU 2: 29 GiB are wanted, and 3 are free"):
        warm.warm(load("throughput", *ON_GPU, "HOST_REPLICAS=2", "HOST_GPU_COUNT=2", "HOST_GPUS=2,3,0,1"), Running(state=state), ensure_images=images)
    assert [(each.project, each.port, each.replicas, each.gpus, each.chosen) for each in asked] == [("", 0, 1, 2, ("2", "3"))]


@pytest.mark.parametrize("serves", [True, False])
def test_too_little_memory_beside_an_engine_that_serves_is_a_refusal(serves: bool, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks(monkeypatch, warn("memory", "2.0 GiB free of 24.0", "end other programs"))
    deployment = Running(state=state, there={"engine": engine()} if serves else {})
    with pytest.raises(PrerequisiteError if serves else ImagesAskedError) as raised:
        warm.warm(load("cpu", *ON_CPU), deployment, ensure_images=images)
    assert not serves or "no engine can start beside what runs on this host:\n  memory: 2.0 GiB free of 24.0" in str(raised.value)
