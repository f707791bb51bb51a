"""Manifests for Kubernetes before Compose is asked: what cannot go there, and the folder that is never written over. The rest: tests/contract."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bundle.base.errors import BundleError
from bundle.config import settings
from bundle.hosts import composed, kubernetes, kubernetesfiles
from support import verbs

KEYS = "GATEWAY_API_KEYS_FILE=/etc/keys"
SELFTEST = "ENGINE_MODEL=/opt/bundle/selftest-model"


def written(out: Path, *sets: str, profile: str = "cpu") -> "CompletedProcess[str]":
    named = [word for each in (SELFTEST, *sets) for word in ("--set", each)]
    return verbs.call("k8s", "--profile", profile, *named, "--out", str(out))


@pytest.mark.parametrize(("profile", "sets", "said"), [
    ("cpu", (), "GATEWAY_API_KEYS_FILE is not set, and in a cluster more than this host reaches the gateway"),
    ("cpu", (KEYS, "HOST_PROJECT=my_models"), "--set: HOST_PROJECT=my_models becomes a namespace"),
    ("cpu", (KEYS, f"HOST_PROJECT={'a' * 64}"), "at most 63 of them"),
    ("cpu", (KEYS, "HOST_PROJECT=models-"), "a letter or digit at the end"),
    ("cpu", (KEYS, "HOST_MONITORING=on"), "HOST_MONITORING=on is Prometheus and Alertmanager for one host"),
    ("throughput", (KEYS, "HOST_GPUS=1", "ENGINE_MAX_NUM_SEQS=256"), "HOST_GPUS=1 names cards of one host"),
    ("throughput", (KEYS,), "ENGINE_MAX_NUM_SEQS=auto needs the model and the GPU of the nodes"),
    ("cpu,cpu-embed", (KEYS,), "cpu,cpu-embed are several models, and this verb takes one"),
    ("cpu", (KEYS, "MODEL_DIR=/nowhere/model"), "MODEL_DIR=/nowhere/model is not here, or empty"),
    ("cpu", (KEYS, "ENGINE_MAX_NUM_SEQ=4"), "Did you mean ENGINE_MAX_NUM_SEQS?"),
    ("cup", (KEYS,), "no profile 'cup'"),
])
def test_what_cannot_go_to_a_cluster_is_refused_by_name_and_nothing_is_written(profile: str, sets: tuple[str, ...], said: str,
                                                                                       tmp_path: Path) -> None:
    done = written(tmp_path / "out", *sets, profile=profile)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    done = written(tmp_path / "out", "HOST_PROJECT=my_models", "HOST_MONITORING=on")
    assert done.returncode == 2
    assert [name for name in ("GATEWAY_API_KEYS_FILE", "HOST_PROJECT", "HOST_MONITORING") if name in done.stderr] == [
        "GATEWAY_API_KEYS_FILE", "HOST_PROJECT", "HOST_MONITORING"]


def test_without_a_place_to_write_to_the_usage_is_shown() -> None:
    done = verbs.call("k8s", "--profile", "cpu")
    assert done.returncode == 2
    assert "--out" in done.stderr


@pytest.mark.parametrize(("there", "said"), [
    ({"notes.txt": "mine"}, "holds what is not of `make k8s`: notes.txt"),
    ({"engine.yaml": "mine"}, "holds engine.yaml, and no kustomization.yaml"),
    ({"kustomization.yaml": "", "overlay/patch.yaml": ""}, "holds what is not of `make k8s`: overlay"),
    (None, "is a file"),
])
def test_a_folder_that_holds_something_else_is_left_as_it_is(there: dict[str, str] | None, said: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there is None:
        out.write_text("mine")
    for name, text in (there or {}).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    done = written(out, KEYS)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


def test_a_folder_whose_parent_is_missing_is_not_made(tmp_path: Path) -> None:
    done = written(tmp_path / "a" / "b", KEYS)
    assert (done.returncode, f"there is no folder {tmp_path}/a" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("key", "value"), [
    ("sysctls", {"net.core.somaxconn": "1024"}), ("cap_add", ["NET_ADMIN"]), ("devices", ["/dev/fuse"]), ("privileged", True), ("ipc", "host"),
    ("command", ["other"]), ("cap_drop", ["NET_RAW"]), ("read_only", False), ("security_opt", []), ("restart", "no"),
    ("secrets", [{"source": "another"}]),
])
def test_what_compose_says_and_nobody_has_translated_is_refused(key: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    service = {"image": "x:1", "cap_drop": ["ALL"], "read_only": True, "security_opt": ["no-new-privileges:true"], "restart": "unless-stopped",
               key: value}
    monkeypatch.setattr(composed, "of", lambda _: {"services": {"engine": service, "gateway": service}})
    with pytest.raises(BundleError, match=rf"compose.yaml: engine: (the secret another|{key}) .*has (no|a) translation"):
        kubernetes.manifests(settings.load("cpu", [], [KEYS], environ={}), {})


def test_durations_and_quantities_are_read_as_compose_writes_them() -> None:
    assert [composed.seconds(text) for text in ("45s", "1m0s", "30m0s", "1h0m5s", "1.5s")] == [45, 60, 1800, 3605, 1.5]
    assert [kubernetes._quantity(number) for number in (2**33, 3 * 2**19, 65536, 1000)] == ["8Gi", "1536Ki", "64Ki", "1000"]


def test_the_page_does_not_name_a_registry_twice(tmp_path: Path) -> None:
    from bundle.hosts import kubernetespage

    assert [kubernetespage._has_registry(name) for name in ("vllm-bundle/engine:1", "r.example/engine:1", "localhost:5000/e:1", "engine:1")] == [
        False, True, True, False]


def test_names_of_all_files_are_known_so_that_an_old_one_goes_away() -> None:
    assert len(set(kubernetesfiles.NAMES)) == 12
