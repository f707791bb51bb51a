"""scripts/model.py with the hub's real client against a hub on loopback: what arrives, what is refused, and that nothing is fetched twice."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from bundle import ROOT
from fake_hub import OTHER_TOKEN, TOKEN, FakeHub, Repo, model
from support.project import wait_until

NAME = "acme/tiny"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TAKEN = {"LICENSE", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", FIRST, SECOND}
MIB = 2**20


@cache
def large() -> dict[str, bytes]:
    """A model with shards of 24 MiB: the client writes to disk 10 MiB at a time, so a broken download leaves something to resume."""
    return model(shard_bytes=24 * MIB)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """scripts/model.py as an operator runs it, with a home of its own."""

    store: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.store / NAME

    @property
    def incomplete(self) -> Path:
        return self.store / f"{NAME}.incomplete"

    def command(self, *arguments: str, name: str = NAME) -> tuple[list[str], dict[str, str]]:
        return ([sys.executable, str(ROOT / "scripts" / "model.py"), "--name", name, "--into", str(self.store), *arguments],
                {**os.environ, "HOME": str(self.store.parent), "HF_HOME": str(self.store.parent / "hf"), **self.environment})

    def __call__(self, *arguments: str, name: str = NAME, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        argv, env = self.command(*arguments, name=name)
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120, preexec_fn=before)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({NAME: Repo(files=model())}) as running:
        yield running


@pytest.fixture
def fetch(hub: FakeHub, tmp_path: Path) -> Verb:
    return Verb(store=tmp_path / "models", environment={"HF_ENDPOINT": hub.url})


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".model.json"}


def only(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name in TAKEN}


def arrived(verb: Verb, name: str) -> Path:
    """What has arrived of `name` in a run that did not end well."""
    (part,) = verb.incomplete.glob(f"{name}.*.part")
    return part


def test_the_fake_hub_satisfies_the_librarys_own_download(hub: FakeHub, tmp_path: Path) -> None:
    snapshot_download(NAME, endpoint=hub.url, local_dir=tmp_path / "all", cache_dir=tmp_path / "cache", token=False)
    assert {name: data for name, data in content(tmp_path / "all").items() if not name.startswith(".cache")} == model()


def test_a_fetched_model_holds_what_vllm_needs_and_the_line_names_it(fetch: Verb) -> None:
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert content(fetch.directory) == only(model())
    assert done.stdout == f"MODEL_DIR={fetch.directory}\n"
    assert "make up" in done.stderr
    assert not fetch.incomplete.exists()


def test_a_fetched_model_is_readable_by_the_engines_user_whatever_the_umask(fetch: Verb) -> None:
    assert fetch(before=lambda: _umask(0o077)).returncode == 0
    for path in (fetch.directory, *fetch.directory.rglob("*")):
        assert path.stat().st_mode & 0o004, path
    assert fetch.directory.stat().st_mode & 0o001


def test_the_answer_for_machines_says_what_was_fetched_and_verified(hub: FakeHub, fetch: Verb) -> None:
    first, second = (json.loads(fetch("--json").stdout) for _ in range(2))
    total = sum(map(len, only(model()).values()))
    assert first == {"directory": str(fetch.directory), "name": NAME, "commit": hub.repos[NAME].commit, "bytes": total,
                     "fetched_bytes": total, "verified": len(TAKEN), "line": f"MODEL_DIR={fetch.directory}"}
    assert second == {**first, "fetched_bytes": 0}


def test_a_second_run_fetches_nothing(hub: FakeHub, fetch: Verb) -> None:
    assert fetch().returncode == 0
    hub.requests.clear()
    again = fetch()
    assert again.returncode == 0, again.stderr
    assert [request.path for request in hub.requests] == [f"/api/models/{NAME}/revision/main"]


def test_a_connection_that_breaks_is_resumed_within_the_run(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files=large())
    hub.cut[FIRST], hub.times[FIRST] = 15 * MIB, 1
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert "Trying to resume" in done.stderr
    assert [request.range for request in hub.asked(FIRST)] == ["", f"bytes={10 * MIB}-"]
    assert content(fetch.directory) == only(large())


def test_a_download_that_stays_broken_is_named_as_incomplete_and_resumed_by_the_next_run(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files=large())
    hub.cut[FIRST] = 15 * MIB
    broken = fetch()
    assert broken.returncode == 3, broken.stderr
    assert "cannot be reached" in broken.stderr
    assert "goes on where it stopped" in broken.stderr
    assert not fetch.directory.exists()
    offline = fetch("--offline")
    assert offline.returncode == 3
    assert f"{fetch.directory} is incomplete" in offline.stderr
    assert f"{FIRST} (10.5 MB of 25.2 MB)" in offline.stderr
    hub.heal()
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert [request.range for request in hub.asked(FIRST)] == [f"bytes={10 * MIB}-"]
    assert content(fetch.directory) == only(large())
    assert not fetch.incomplete.exists()


def test_an_interrupted_download_exits_130_and_is_resumed_by_the_next_run(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files=large())
    hub.stall[FIRST] = 15 * MIB
    argv, env = fetch.command()
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: hub.stalled.is_set() and arrived(fetch, FIRST).stat().st_size == 10 * MIB, deadline_s=60, what="half of a shard")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    hub.heal()
    assert fetch().returncode == 0
    assert [request.range for request in hub.asked(FIRST)] == [f"bytes={10 * MIB}-"]
    assert content(fetch.directory) == only(large())


def test_a_hub_that_ignores_range_is_read_from_the_start(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files=large())
    hub.whole_only = True
    hub.cut[FIRST], hub.times[FIRST] = 15 * MIB, 1
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert content(fetch.directory) == only(large())


def test_a_damaged_remainder_of_an_earlier_run_is_fetched_anew(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files=large())
    break_at(hub, fetch, 15 * MIB)
    part = arrived(fetch, FIRST)
    part.write_bytes(b"\0" * part.stat().st_size)
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert f"{FIRST}: not the bytes that the hub lists; fetching it again" in done.stderr
    assert content(fetch.directory) == only(large())


@pytest.mark.parametrize("longer", [0, 1])
def test_a_remainder_that_is_as_long_as_the_file_or_longer_is_not_trusted(hub: FakeHub, fetch: Verb, longer: int) -> None:
    break_at(hub, fetch, 100)
    part = arrived(fetch, FIRST)
    part.write_bytes(b"\0" * (len(model()[FIRST]) + longer))
    assert fetch().returncode == 0
    assert content(fetch.directory) == only(model())


def test_a_file_damaged_on_disk_is_found_by_its_checksum_and_fetched_alone(hub: FakeHub, fetch: Verb) -> None:
    assert fetch().returncode == 0
    for name in (SECOND, "config.json"):  # one checksum of each kind: the sha256 of a large file, the git hash of a small one
        path = fetch.directory / name
        path.write_bytes(path.read_bytes()[:-2] + b"?\n")
    offline = fetch("--offline")
    assert offline.returncode == 5
    assert f"not the bytes that the hub lists: config.json, {SECOND}" in offline.stderr
    hub.requests.clear()
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert {request.path.rpartition("/")[2] for request in hub.requests if "/api/" not in request.path} == {"config.json", SECOND}
    assert content(fetch.directory) == only(model())


def test_bytes_damaged_on_the_way_once_are_fetched_again(hub: FakeHub, fetch: Verb) -> None:
    hub.damage = {FIRST: 1, "config.json": 1}
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert len(hub.asked(FIRST)) == 2
    assert content(fetch.directory) == only(model())


@pytest.mark.parametrize("kind", ["damage", "shorter"])
def test_a_hub_that_keeps_sending_other_bytes_is_named_and_no_directory_appears(hub: FakeHub, fetch: Verb, kind: str) -> None:
    if kind == "damage":
        hub.damage[FIRST] = 99
    else:
        hub.shorter.add(FIRST)
    done = fetch()
    assert done.returncode == 5, done.stderr
    assert f"{FIRST} is listed with 4176 bytes and sha256:" in done.stderr
    assert not fetch.directory.exists()
    hub.heal()
    assert fetch().returncode == 0


def test_a_gated_model_says_how_to_get_it_and_comes_with_a_token(hub: FakeHub, fetch: Verb, tmp_path: Path) -> None:
    hub.repos[NAME].gated = True
    file = tmp_path / "token"
    file.touch(mode=0o600)
    without = fetch()
    assert without.returncode == 3
    assert "is gated, and no token was given" in without.stderr
    assert f"{hub.url}/{NAME}" in without.stderr
    assert "TOKEN_FILE=" in without.stderr
    file.write_text(OTHER_TOKEN)
    other = fetch("--token-file", str(file))
    assert other.returncode == 3
    assert "is gated, and this token's account has no access" in other.stderr
    file.write_text(TOKEN + "\n")
    hub.requests.clear()
    done = fetch("--token-file", str(file))
    assert done.returncode == 0, done.stderr
    assert content(fetch.directory) == only(model())
    assert {request.authorization for request in hub.requests if not request.storage} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in hub.requests if request.storage} == {""}
    for run in (without, other, done):
        assert TOKEN not in run.stdout + run.stderr
        assert OTHER_TOKEN not in run.stdout + run.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != file and TOKEN.encode() in path.read_bytes()]


def test_a_token_is_not_shown_when_a_download_breaks_or_the_library_is_asked_to_debug(hub: FakeHub, fetch: Verb, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(TOKEN)
    hub.cut[FIRST], hub.gone_after_cut = 100, True
    run = replace(fetch, environment={**fetch.environment, "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"})("--token-file", str(file))
    assert run.returncode == 3
    assert "Trying to resume" in run.stderr
    assert TOKEN not in run.stdout + run.stderr


def test_a_private_model_is_told_as_not_there_and_comes_with_a_token(hub: FakeHub, fetch: Verb, tmp_path: Path) -> None:
    hub.repos[NAME].private = True
    without = fetch()
    assert without.returncode == 3
    assert "no such model that can be seen without a token (401)" in without.stderr
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(OTHER_TOKEN)
    other = fetch("--token-file", str(file))
    assert "no such model that this token may see (404)" in other.stderr
    file.write_text(TOKEN)
    assert fetch("--token-file", str(file)).returncode == 0


def test_a_token_that_the_hub_does_not_know_is_refused(fetch: Verb, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("hf_expired")
    run = fetch("--token-file", str(file))
    assert run.returncode == 3
    assert "the hub refuses the token (401)" in run.stderr
    assert "hf_expired" not in run.stdout + run.stderr


def test_a_token_of_the_environment_is_not_used(hub: FakeHub, fetch: Verb) -> None:
    assert replace(fetch, environment={**fetch.environment, "HF_TOKEN": TOKEN})().returncode == 0
    assert {request.authorization for request in hub.requests} == {""}


def test_a_token_does_not_cross_a_network_unencrypted(fetch: Verb, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    run = fetch("--token-file", str(tmp_path / "token"), "--endpoint", "http://hub.invalid")
    assert run.returncode == 2
    assert "over plain http" in run.stderr


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (["--revision", "v9"], 2, "has no revision 'v9'"),
    (["--endpoint", "ftp://hub.invalid"], 2, "is not a hub's address"),
    (["--token-file", "/nonexistent/token"], 2, "/nonexistent/token: the token file cannot be read"),
], ids=["revision", "endpoint", "token file"])
def test_a_wrong_option_is_named(fetch: Verb, arguments: list[str], status: int, said: str) -> None:
    run = fetch(*arguments)
    assert (run.returncode, "Traceback" in run.stderr) == (status, False)
    assert said in run.stderr
    assert not fetch.store.exists()


@pytest.mark.parametrize(("name", "status", "said"), [("acme/nosuch", 3, "no such model"), ("../../etc", 2, "not a model's name")])
def test_a_wrong_name_is_named(fetch: Verb, name: str, status: int, said: str) -> None:
    run = fetch(name=name)
    assert run.returncode == status
    assert said in run.stderr


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_refuses_is_named_with_its_status(hub: FakeHub, fetch: Verb, status: int) -> None:
    hub.refuse = status
    run = fetch()
    assert run.returncode == 3
    assert f"the hub answers {status}" in run.stderr


def test_a_web_page_in_place_of_the_hub_is_recognized(hub: FakeHub, fetch: Verb) -> None:
    hub.web_page = True
    run = fetch()
    assert run.returncode == 3
    assert "does not answer as a model hub does" in run.stderr


def test_no_network_is_named_and_a_complete_model_still_verifies_offline(fetch: Verb) -> None:
    assert fetch().returncode == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        cut_off = replace(fetch, environment={"HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}"})
        online, offline = cut_off(), cut_off("--offline")
    assert online.returncode == 3
    assert "cannot be reached" in online.stderr
    assert "HTTPS_PROXY" in online.stderr
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == f"MODEL_DIR={fetch.directory}\n"


def test_offline_by_environment_asks_nobody(hub: FakeHub, fetch: Verb) -> None:
    run = replace(fetch, environment={**fetch.environment, "HF_HUB_OFFLINE": "1"})()
    assert run.returncode == 3
    assert "HF_HUB_OFFLINE is set" in run.stderr
    assert not hub.requests


def test_offline_without_the_model_says_how_to_get_it(hub: FakeHub, fetch: Verb) -> None:
    run = fetch("--offline")
    assert run.returncode == 3
    assert "no such directory" in run.stderr
    assert "make model NAME=" in run.stderr
    assert not hub.requests


def test_a_model_larger_than_the_disk_is_refused_before_anything_is_fetched(hub: FakeHub, fetch: Verb, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files={**model(), **{f"model-{n}.safetensors": b"" for n in range(2_000)}},
                           sizes={f"model-{n}.safetensors": 49 * 10**9 for n in range(2_000)})
    run = fetch()
    assert run.returncode == 3
    assert "98000.0 GB are to come" in run.stderr
    assert f"{tmp_path} has" in run.stderr
    assert len(hub.requests) == 1
    assert not fetch.store.exists()


def test_a_disk_that_fills_up_is_named_and_the_next_run_resumes(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files=large())
    full = fetch(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (15 * MIB, 15 * MIB)))
    assert full.returncode == 3, full.stderr
    assert "File too large" in full.stderr
    assert "free some disk" in full.stderr
    assert not fetch.directory.exists()
    hub.requests.clear()
    assert fetch().returncode == 0
    assert any(request.range for request in (*hub.asked(FIRST), *hub.asked(SECOND)))
    assert content(fetch.directory) == only(large())


def test_a_store_that_cannot_be_made_is_named(fetch: Verb) -> None:
    fetch.store.write_text("a file")
    run = fetch()
    assert run.returncode == 3
    assert "Not a directory" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_file_where_the_model_would_lie_is_refused_before_the_hub_is_asked(hub: FakeHub, fetch: Verb) -> None:
    fetch.directory.parent.mkdir(parents=True)
    fetch.directory.write_text("a file")
    run = fetch()
    assert run.returncode == 2
    assert not hub.requests


def test_a_model_that_the_engine_cannot_load_is_not_fetched(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files={"config.json": b"{}", "model.Q4_K_M.gguf": b"x"})
    run = fetch()
    assert run.returncode == 3
    assert "has no *.safetensors, the one format that is taken" in run.stderr
    assert "fix: " in run.stderr
    assert len(hub.requests) == 1


def test_a_model_without_a_tokenizer_is_told_after_the_fetch(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files={name: data for name, data in model().items() if not name.startswith("tokenizer")})
    run = fetch()
    assert run.returncode == 3
    assert "no tokenizer" in run.stderr


def test_a_listing_that_leaves_its_folder_is_refused(hub: FakeHub, fetch: Verb, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files={**model(), "../../../escaped.json": b"{}"})
    run = fetch()
    assert run.returncode == 5
    assert "outside of its own folder" in run.stderr
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_new_commit_brings_only_what_changed_and_takes_away_what_is_gone(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files={**model(), "added_tokens.json": b"{}\n"})
    assert fetch().returncode == 0
    hub.repos[NAME] = Repo(files={**model(), "config.json": b'{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "new": 1}\n'})
    (fetch.directory / "mine.txt").write_text("the operator's")
    hub.requests.clear()
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert [request.path.rpartition("/")[2] for request in hub.requests if "/api/" not in request.path] == ["config.json"]
    assert content(fetch.directory) == {**only(hub.repos[NAME].files), "mine.txt": b"the operator's"}
    assert fetch("--offline").returncode == 0


def test_what_is_left_of_an_older_commit_is_not_taken_for_the_new_one(hub: FakeHub, fetch: Verb) -> None:
    hub.repos[NAME] = Repo(files={**large(), "old.json": b"{}"})
    break_at(hub, fetch, 15 * MIB)
    assert arrived(fetch, FIRST).stat().st_size == 10 * MIB
    hub.repos[NAME] = Repo(files=model())
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert [request.range for request in hub.asked(FIRST)] == [""]
    assert content(fetch.directory) == only(model())


def test_two_runs_at_once_on_one_model_do_not_meet(hub: FakeHub, fetch: Verb) -> None:
    hub.stall[FIRST] = 0
    argv, env = fetch.command()
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        wait_until(hub.stalled.is_set, deadline_s=60, what="the first run at the shard")
        second = fetch()
        hub.go_on.set()
        _, said = first.communicate(timeout=60)
    assert second.returncode == 3
    assert "another run is fetching into it" in second.stderr
    assert first.returncode == 0, said
    assert content(fetch.directory) == only(model())


def test_a_commit_can_be_asked_for_by_its_number(hub: FakeHub, fetch: Verb) -> None:
    done = fetch("--revision", hub.repos[NAME].commit, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == hub.repos[NAME].commit


def test_a_local_model_is_adopted_without_a_hub_and_unchanged(hub: FakeHub, fetch: Verb) -> None:
    assert fetch().returncode == 0
    before = {path: path.stat().st_mtime_ns for path in fetch.directory.rglob("*")}
    hub.requests.clear()
    done = adopt(fetch.directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"MODEL_DIR={fetch.directory}\n"
    assert {path: path.stat().st_mtime_ns for path in fetch.directory.rglob("*")} == before
    assert not hub.requests


def test_adopting_a_local_model_with_a_shard_missing_names_the_shard(tmp_path: Path) -> None:
    for name, data in only(model()).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / SECOND).unlink()
    tmp_path.chmod(0o755)
    run = adopt(tmp_path)
    assert run.returncode == 3
    assert f"{SECOND}: listed in model.safetensors.index.json, and not there (1 of 2 shards)" in run.stderr
    assert run.stdout == ""


def test_the_verb_needs_a_name_or_a_directory_and_not_both(tmp_path: Path) -> None:
    for arguments in ([], ["--name", NAME, "--from", str(tmp_path)]):
        run = script(*arguments)
        assert run.returncode == 2
        assert "usage:" in run.stderr


def break_at(hub: FakeHub, fetch: Verb, byte: int) -> None:
    """A run that ends because the hub went away at that byte of the first shard."""
    hub.cut[FIRST], hub.gone_after_cut = byte, True
    run = fetch()
    assert run.returncode == 3, run.stderr
    assert "the hub answers 503" in run.stderr
    hub.heal()


def adopt(directory: Path) -> subprocess.CompletedProcess[str]:
    return script("--from", str(directory))


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "model.py"), *arguments], capture_output=True, text=True, check=False, timeout=60)


def _umask(mask: int) -> None:
    os.umask(mask)
