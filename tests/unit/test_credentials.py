"""The key file as `make keys` changes it."""

import json
import stat
from pathlib import Path

import pytest

from bundle.config import apikeys
from support.verbs import call

ALICE = "sk-canary-alice-4711 alice\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def keys(file: Path, *arguments: str) -> tuple[int, str, str]:
    done = call("keys", "--profile", "cpu", "--project", "no-such-project", "--set", f"GATEWAY_API_KEYS_FILE={file}", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_the_first_key_makes_a_file_that_the_gateways_user_can_read(file: Path) -> None:
    code, out, _ = keys(file, "--add", "alice")
    assert code == 0
    assert file.read_text() == f"{out.strip()} alice\n"
    assert len(out.strip()) >= apikeys.SHORTEST * 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o444


def test_what_stands_in_the_file_stays(file: Path) -> None:
    file.write_text(f"# ours\n\n{ALICE}sk-canary-unnamed-4711")
    file.chmod(0o640)
    code, out, _ = keys(file, "--add", "prometheus", "--metrics-only")
    assert code == 0
    assert file.read_text() == f"# ours\n\n{ALICE}sk-canary-unnamed-4711\n{out.strip()} prometheus metrics-only\n"
    assert keys(file, "--revoke", "prometheus")[0] == 0
    assert file.read_text() == f"# ours\n\n{ALICE}sk-canary-unnamed-4711\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_list_shows_names_and_no_key(file: Path) -> None:
    file.write_text(f"{ALICE}sk-canary-unnamed-4711\nsk-canary-scraper-4711 prometheus metrics-only\n")
    shown = keys(file)
    assert (shown[0], "canary" in shown[1]) == (0, False)
    assert json.loads(keys(file, "--json")[1])["keys"] == [
        {"name": "alice", "metrics_only": False, "class": None}, {"name": "", "metrics_only": False, "class": None},
        {"name": "prometheus", "metrics_only": True, "class": None}]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--add", "alice"], "there is a key of the name alice already"),
    (["--add", "a b"], "'a b' is no name"),
    (["--add", "bob", "--class", "urgent"], "invalid choice: 'urgent'"),
    (["--class", "batch"], "--class goes with --add"),
    (["--add", "bob", "--class", "batch", "--metrics-only"], "--class goes with --add, and not with --metrics-only"),
    (["--add", ""], "'' is no name"),
    (["--add", "x\ny"], "is no name"),
    (["--add", "metrics-only"], "metrics-only is no name"),
    (["--add", "a" * 61], "is no name"),
    (["--revoke", "bob"], "has no key of the name bob"),
    (["--revoke", ""], "has no key of the name"),
    (["--metrics-only"], "--metrics-only goes with --add"),
    (["--add", "bob", "--revoke", "alice"], "not allowed with"),
    (["--set", "GATEWAY_API_KEYS_FILE=", "--add", "bob"], "GATEWAY_API_KEYS_FILE is not set"),
])
def test_what_cannot_be_done_says_so_and_changes_nothing(file: Path, arguments: list[str], said: str) -> None:
    file.write_text(ALICE)
    code, out, err = keys(file, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert file.read_text() == ALICE


def test_a_broken_file_is_named_with_its_line_and_no_key(file: Path) -> None:
    file.write_text(f"{ALICE}canary\n")
    for arguments in ((), ("--add", "bob"), ("--revoke", "alice")):
        code, _, err = keys(file, *arguments)
        assert code == 2
        assert f"{file}:2: this key has 6 characters" in err
        assert "canary" not in err
        assert file.read_text() == f"{ALICE}canary\n"


def test_the_gateway_refuses_keys_as_short_as_the_check_does() -> None:
    gateway = (Path(__file__).parents[2] / "docker" / "gateway" / "haproxy.cfg").read_text()
    assert gateway.count(f"length ge {apikeys.SHORTEST} }}") == 2


def test_a_key_has_a_class_that_is_said_to_do_nothing_where_no_model_goes_by_it(file: Path) -> None:
    code, out, err = keys(file, "--add", "nightly", "--class", "batch")
    assert (code, file.read_text()) == (0, f"{out.strip()} nightly batch\n")
    assert "the class has no effect yet: no model has ENGINE_SCHEDULING_POLICY=priority" in err
    assert json.loads(keys(file, "--json")[1])["keys"] == [{"name": "nightly", "metrics_only": False, "class": "batch"}]
    assert "no effect" not in keys(file, "--set", "ENGINE_SCHEDULING_POLICY=priority", "--add", "day", "--class", "interactive")[2]
    file.write_text("sk-canary-alice-4711 alice urgent\n")
    assert "then at most one of metrics-only, interactive, batch" in keys(file)[2]
