"""Handoffs without Docker: what is written, that no secret is in it, and that nothing damaged or unsafe is taken in."""

import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle import ROOT
from bundle.base.errors import CheckFailedError, ConfigurationError, PrerequisiteError
from bundle.base.files import digest
from bundle.config import settings
from bundle.config.keys import MOST_REPLICAS
from bundle.config.settings import Settings
from bundle.fit import assessment
from bundle.handoff import imageset, pack, unpack
from bundle.handoff.imageset import Shipped
from support import verbs

SECRET = "sk-never-to-be-seen-4711"


def shipped(service: str, *, saved: bool, digests: tuple[str, ...] = ()) -> Shipped:
    return Shipped(service=service, name=f"some/{service}:1", id=f"sha256:{service}", digests=digests, content="sha256:c", bytes=100,
                   archive=f"images/{service}.tar" if saved else None)


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images that need no daemon: what is asked of it here has tests in tests/e2e."""
    def save(image: Shipped, file: Path) -> None:
        file.write_bytes(image.service.encode() * 25)

    def of(_: Settings, *, saved: bool) -> tuple[Shipped, ...]:
        return shipped("gateway", saved=saved), shipped("engine", saved=saved, digests=("r.example/e@sha256:1",))

    monkeypatch.setattr(imageset, "shipped_images", of)
    monkeypatch.setattr(imageset, "save", save)


def load(*sets: str) -> Settings:
    return settings.load("cpu", [], sets, environ={})


def write(out: Path, *sets: str, with_images: bool = False) -> pack.Handoff:
    chosen = load(*sets)
    return pack.write(chosen, assessment.assess(chosen), out, with_images=with_images)


@pytest.fixture
def folder(no_docker: None, tmp_path: Path) -> Path:
    write(tmp_path / "h")
    return tmp_path / "h"


def test_a_folder_holds_all_that_runs_it_and_its_checksums_hold(folder: Path) -> None:
    names = {name for name, _ in pack.files(folder)}
    assert names == {"HANDOFF.md", "SHA256SUMS", "check.json", "check.txt", "compose.yaml", "docker/engine/accelerator.yaml",
                     "docker/engine/no-model/README", "fit.json", "handoff.env", "images.json"}
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(names) - 1
    assert unpack.verify(folder) == len(names) - 1
    assert [path.name for path in folder.parent.iterdir()] == ["h"]


def test_the_env_file_is_the_same_deployment_with_the_origin_above_each_value(folder: Path) -> None:
    sent, received = load(), unpack.deployment(folder, [])
    assert received.argv == sent.argv
    assert received.environment == sent.environment
    assert received.value("HOST_ENV_FILE") == "handoff.env"
    lines = (folder / "handoff.env").read_text().splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("#"):
            assert lines[number - 1].startswith("# "), line
    assert lines[lines.index("HOST_ENGINE_MEMORY=" + sent.value("HOST_ENGINE_MEMORY")) - 1] == f"# {sent.origin['HOST_ENGINE_MEMORY']}"


def test_key_and_certificate_files_are_named_and_their_content_is_nowhere(no_docker: None, tmp_path: Path) -> None:
    for name in ("keys", "tls.pem"):
        (tmp_path / name).write_text(SECRET)
    written = write(tmp_path / "h", f"GATEWAY_API_KEYS_FILE={tmp_path}/keys", f"GATEWAY_TLS_CERT_FILE={tmp_path}/tls.pem", "MODEL_DIR=/srv/models/x")
    guide = (tmp_path / "h" / "HANDOFF.md").read_text()
    for name in (f"GATEWAY_API_KEYS_FILE={tmp_path}/keys", f"GATEWAY_TLS_CERT_FILE={tmp_path}/tls.pem", "MODEL_DIR=/srv/models/x"):
        assert name in (tmp_path / "h" / "handoff.env").read_text().splitlines()
        assert f"- `{name}`" in guide
        assert sum(name in need for need in written.provide) == 1
    assert not [name for name, path in pack.files(tmp_path / "h") if SECRET in path.read_text()]


def test_a_secret_in_an_option_is_refused_before_anything_is_written(no_docker: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a secret does not belong in an env file"):
        write(tmp_path / "h", f"HF_TOKEN={SECRET}")
    assert list(tmp_path.iterdir()) == []


def test_paths_that_only_a_build_here_needs_stay_here(no_docker: None, tmp_path: Path) -> None:
    write(tmp_path / "h", "WHEELHOUSE=/home/me/wheels", "BUILD_CA_BUNDLE=/home/me/ca.pem", "BASE_IMAGE=mine:1")
    assert not [name for name, path in pack.files(tmp_path / "h") if "/home/me" in path.read_text() or "mine:1" in path.read_text()]


def test_compose_builds_nothing_and_pulls_only_what_a_registry_has(folder: Path) -> None:
    text = (folder / "compose.yaml").read_text()
    ours = (ROOT / "compose.yaml").read_text().splitlines()
    assert "build:" not in text
    assert "build-args" not in text
    added = [line for line in text.splitlines() if line not in ours]
    assert added[:2] == ["    pull_policy: never", "    pull_policy: missing"]
    assert added.pop() == "    pull_policy: never", "monitoring, which this handoff is without"
    assert [line[:38] for line in added[2:]] == [f"  engine-{number}: {{pull_policy: missing, <<:" for number in range(2, MOST_REPLICAS + 1)]
    images = [line.strip() for line in text.splitlines() if line.lstrip().startswith("image:")]
    assert images == ["image: ${IMAGE_ENGINE:?}", "image: ${IMAGE_MONITORING:?}", "image: ${IMAGE_GATEWAY:?}"]


def test_reports_say_what_is_not_known(folder: Path) -> None:
    assert json.loads((folder / "fit.json").read_text()) is None
    assert json.loads((folder / "check.json").read_text())["argv"][:2] == ["vllm", "serve"]
    assert (folder / "check.txt").read_text().endswith("fit: not computed: no model is known\n")
    assert "fit.json is null): no model is known" in (folder / "HANDOFF.md").read_text()
    assert "\x1b" not in (folder / "check.txt").read_text()


def test_json_images_have_name_id_and_digest(folder: Path) -> None:
    images = json.loads((folder / "images.json").read_text())
    assert [(one["name"], one["id"], one["digests"], one["archive"]) for one in images] == [
        ("some/gateway:1", "sha256:gateway", [], None), ("some/engine:1", "sha256:engine", ["r.example/e@sha256:1"], None)]


def test_an_archive_unpacks_to_the_same_files(no_docker: None, tmp_path: Path) -> None:
    written = write(tmp_path / "h.tar.gz", with_images=True)
    assert [path.name for path in tmp_path.iterdir()] == ["h.tar.gz"]
    assert unpack.opened(tmp_path / "h.tar.gz", None) == (tmp_path / "h", len(written.files) - 1)
    unpacked = tmp_path / "h"
    assert tuple(name for name, _ in pack.files(unpacked)) == written.files
    assert {"images/engine.tar", "images/gateway.tar"} < set(written.files)
    assert "docker load --input images/engine.tar" in (unpacked / "HANDOFF.md").read_text()
    with tarfile.open(tmp_path / "h.tar.gz") as tar:
        assert {(member.uid, member.uname) for member in tar} == {(0, "")}
    assert unpack.opened(tmp_path / "h.tar.gz", tmp_path / "elsewhere")[0] == tmp_path / "elsewhere"


@pytest.mark.parametrize("name", ["h", "h.tar.gz"])
def test_an_existing_place_is_never_written_over(no_docker: None, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        write(tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(("place", "found"), [("no/such/h", "there is no folder"), (".tar.gz", "no name before .tar.gz")])
def test_a_place_that_cannot_be_is_refused(no_docker: None, tmp_path: Path, place: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        write(tmp_path / place)


def test_a_save_that_fails_leaves_nothing(no_docker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(_: Shipped, file: Path) -> None:
        file.write_bytes(b"half")
        raise PrerequisiteError("disk full")

    monkeypatch.setattr(imageset, "save", save)
    with pytest.raises(PrerequisiteError, match="disk full"):
        write(tmp_path / "h", with_images=True)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_before_anything_is_saved(no_docker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = Shipped(service="engine", name="e:1", id="sha256:e", digests=(), content="", bytes=10**18, archive="images/engine.tar")
    monkeypatch.setattr(imageset, "shipped_images", lambda _, *, saved: (huge,))
    with pytest.raises(PrerequisiteError, match="needed with images") as refused:
        write(tmp_path / "h.tar.gz", with_images=True)
    assert "2000000000.0 needed" in refused.value.message
    assert list(tmp_path.iterdir()) == []


def tamper(folder: Path) -> str:
    with (folder / "handoff.env").open("a") as file:
        file.write("GATEWAY_BIND=0.0.0.0\n")
    return "handoff.env: changed"


def lose(folder: Path) -> str:
    (folder / "docker/engine/accelerator.yaml").unlink()
    return "docker/engine/accelerator.yaml: missing"


def add(folder: Path) -> str:
    (folder / "docker-compose.override.yml").write_text("services: {}\n")
    return "docker-compose.override.yml: not listed"


def link(folder: Path) -> str:
    (folder / "check.txt").unlink()
    (folder / "check.txt").symlink_to("/etc/hostname")
    return "check.txt: not a plain file"


def link_a_folder(folder: Path) -> str:
    (folder / "images").symlink_to("/etc")
    return "images: not listed"


def climb(folder: Path) -> str:
    with (folder / "SHA256SUMS").open("a") as file:
        file.write("0" * 64 + "  ../outside\n")
    return "not a checksum of a file in this folder"


def garble(folder: Path) -> str:
    (folder / "SHA256SUMS").write_bytes(b"\xff\xfe\n")
    return "SHA256SUMS:1: not a checksum"


def unlist(folder: Path) -> str:
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line + "\n" for line in sums.read_text().splitlines() if not line.endswith("  handoff.env")))
    return "handoff.env: not listed in SHA256SUMS, and every handoff has it"


def lose_the_sums(folder: Path) -> str:
    (folder / "SHA256SUMS").unlink()
    return "has no SHA256SUMS"


@pytest.mark.parametrize("damage", [tamper, lose, add, link, link_a_folder, climb, garble, unlist, lose_the_sums], ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_refused_and_the_file_is_named(folder: Path, damage: Callable[[Path], str]) -> None:
    found = damage(folder)
    with pytest.raises(CheckFailedError) as refused:
        unpack.verify(folder)
    assert refused.value.exit_code == 5
    assert found in refused.value.message


def test_all_damage_is_named_at_once(folder: Path) -> None:
    found = [tamper(folder), lose(folder), add(folder)]
    with pytest.raises(CheckFailedError) as refused:
        unpack.verify(folder)
    assert all(one in refused.value.message for one in found)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(("members", "found"), [
    ([member("/tmp/evil")], "outside its folder"),
    ([member("h", tarfile.DIRTYPE), member("h/../../evil")], "outside its folder"),
    ([member("h", tarfile.DIRTYPE), member("h/link", tarfile.SYMTYPE, "/etc"), member("h/link/evil")], "a link"),
    ([member("h", tarfile.DIRTYPE), member("h/hard", tarfile.LNKTYPE, "/etc/passwd")], "a link"),
    ([member("h", tarfile.DIRTYPE), member("h/pipe", tarfile.FIFOTYPE)], "neither file nor folder"),
    ([member("h", tarfile.DIRTYPE), member("h/disk", tarfile.BLKTYPE)], "neither file nor folder"),
    ([member("h", tarfile.DIRTYPE), member("other/evil")], "is outside its folder 'h'"),
    ([member("h")], "is outside its folder 'h'"),
    ([member("h", tarfile.DIRTYPE), member("h/twice"), member("h/twice")], "twice is in it twice"),
    ([], "is empty"),
], ids=["absolute", "climbing", "symlink", "hard link", "fifo", "device", "two folders", "a file alone", "twice", "empty"])
def test_an_unsafe_archive_is_refused_and_nothing_of_it_stays(tmp_path: Path, members: list[tarfile.TarInfo], found: str) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "bad.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for one in members:
            tar.addfile(one, io.BytesIO())
    with pytest.raises(CheckFailedError) as refused:
        unpack.opened(archive, None)
    assert found in refused.value.message
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["bad.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("cut", [0, 10, 700])
def test_a_cut_or_foreign_archive_is_refused(no_docker: None, tmp_path: Path, cut: int) -> None:
    write(tmp_path / "h.tar.gz")
    whole = (tmp_path / "h.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:cut])
    (tmp_path / "text.tar.gz").write_bytes(b"no archive at all\n" * 9)
    for name in ("cut.tar.gz", "text.tar.gz"):
        with pytest.raises(CheckFailedError, match=r"no whole \.tar\.gz archive"):
            unpack.opened(tmp_path / name, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.tar.gz", "h.tar.gz", "text.tar.gz"]


def test_an_archive_whose_files_have_changed_is_refused_and_nothing_of_it_stays(folder: Path) -> None:
    tamper(folder)
    archive = folder.parent / "changed.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "h")
    with pytest.raises(CheckFailedError, match=r"changed\.tar\.gz is not what was handed over"):
        unpack.opened(archive, None)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["changed.tar.gz", "h"]


def test_an_archive_is_not_unpacked_over_anything(no_docker: None, tmp_path: Path) -> None:
    write(tmp_path / "h.tar.gz")
    (tmp_path / "h").mkdir()
    for source, into in (("h.tar.gz", None), ("h", tmp_path / "x"), ("none", None), ("h.tar.gz", tmp_path / "a" / "b")):
        with pytest.raises(ConfigurationError):
            unpack.opened(tmp_path / source, into)
    assert list((tmp_path / "h").iterdir()) == []


def test_what_is_different_on_the_receiving_host_is_laid_over_and_checked(folder: Path) -> None:
    assert unpack.deployment(folder, ["GATEWAY_PORT=9000", "HOST_PROJECT=other"]).gateway_port == 9000
    with pytest.raises(ConfigurationError, match="GATEWAY_PORT"):
        unpack.deployment(folder, ["GATEWAY_PORT=http"])


@pytest.mark.parametrize("images", [
    "{}x", '[{"name": "a"}]', "[1]", "[" * 100_000, "[]",
    '[{"service": "x", "name": "y", "id": "", "digests": [], "content": "", "bytes": 1, "archive": "../../etc/passwd"}]'])
def test_a_foreign_images_list_is_refused(folder: Path, images: str) -> None:
    (folder / "images.json").write_text(images)
    with pytest.raises(CheckFailedError, match=r"images\.json"):
        unpack.bundled_images(folder, load())


@pytest.mark.parametrize(("field", "value"), [("name", ["y"]), ("id", None), ("digests", [1]), ("bytes", "many"), ("archive", 7)])
def test_an_image_with_a_field_of_another_kind_is_refused(folder: Path, field: str, value: object) -> None:
    images = json.loads((folder / "images.json").read_text())
    images[0][field] = value
    (folder / "images.json").write_text(json.dumps(images))
    with pytest.raises(CheckFailedError, match=r"images\.json is not a list of images"):
        unpack.require_own_services(folder)


def privileged(folder: Path) -> str:
    path = folder / "compose.yaml"
    path.write_text(path.read_text().replace("    cap_drop:", "    privileged: true\n    cap_drop:", 1))
    return "+    privileged: true"


def another_accelerator(folder: Path) -> str:
    with (folder / "docker/engine/accelerator.yaml").open("a") as file:
        file.write("    privileged: true\n")
    return "+    privileged: true"


def laid_over(folder: Path) -> str:
    (folder / "compose.override.yaml").write_text("services: {engine: {privileged: true}}\n")
    return "compose.override.yaml: no file of a handoff"


@pytest.mark.parametrize("change", [privileged, another_accelerator, laid_over], ids=lambda change: change.__name__)
def test_repacked_services_are_shown_and_refused_without_an_explicit_word(folder: Path, change: Callable[[Path], str],
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    unpack.require_own_services(folder)
    expected = change(folder)
    files = [(name, path) for name, path in pack.files(folder) if name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(f"{digest(path)}  {name}\n" for name, path in files))  # as whoever repacks it would
    monkeypatch.setattr(unpack, "install", lambda *_: [])
    refused = verbs.call("receive", str(folder), "--no-start")
    assert refused.returncode == 5
    assert expected in refused.stderr
    assert "--accept-compose" in refused.stderr
    assert verbs.call("receive", str(folder), "--no-start", "--accept-compose").returncode == 0


def test_the_start_command_keeps_what_is_different_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "install", lambda *_: [])
    plain = verbs.call("receive", str(folder), "--no-start").stdout.strip()
    assert plain == f"cd {folder} && docker compose --env-file handoff.env up --detach --wait"
    printed = verbs.call("receive", str(folder), "--no-start", "--set", "ENGINE_SERVED_MODEL_NAME=a b", "--project", "other").stdout
    python, script, *arguments = shlex.split(printed)
    assert (python, script) == ("python3", str(ROOT / "scripts/receive.py"))
    started: list[Settings] = []

    def bring_up(_: Path, chosen: Settings) -> dict[str, object]:
        started.append(chosen)
        return {"base_url": "", "model": "", "curl": ""}

    monkeypatch.setattr(unpack, "bring_up", bring_up)
    assert verbs.call("receive", *arguments).returncode == 0
    assert (started[0].value("ENGINE_SERVED_MODEL_NAME"), started[0].project) == ("a b", "other")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/nonexistent", "HOME": os.environ["HOME"], "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    return subprocess.run([sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments], capture_output=True, text=True, check=False,
                          timeout=60, env=env)


def test_handoff_answers_wrong_settings_with_2_and_a_missing_daemon_with_3(tmp_path: Path) -> None:
    bad = run("handoff", "--profile", "cpu", "--set", "ENGINE_MAX_NUM_SEQ=4", "--out", str(tmp_path / "h"))
    assert bad.returncode == 2
    assert "ENGINE_MAX_NUM_SEQS" in bad.stderr
    away = run("handoff", "--profile", "cpu", "--out", str(tmp_path / "h"))
    assert away.returncode == PrerequisiteError.exit_code
    assert "/nonexistent/docker.sock" in away.stderr
    assert list(tmp_path.iterdir()) == []


def test_receive_names_the_changed_file_and_exits_5_before_it_needs_docker(folder: Path) -> None:
    tamper(folder)
    done = run("receive", str(folder))
    assert done.returncode == 5
    assert "handoff.env: changed" in done.stderr
