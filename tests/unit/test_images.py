"""Building images, without Docker: what a build takes from the host, when it is due, and what is shown of it."""

import hashlib
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import certifi
import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.images import baseimage, build, buildinputs
from bundle.images.build import Image
from bundle.images.progress import Progress
from bundle.machine import daemon

GOOD = Path(certifi.where()).read_text()
ONE = GOOD[GOOD.index("-----BEGIN"):GOOD.index("-----END") + len("-----END CERTIFICATE-----")] + "\n"


def cpu(*sets: str) -> Settings:
    return settings.load("cpu", sets=sets, environ={})


# --- authorities

@pytest.mark.parametrize(("content", "found"), [
    (b"", "an empty file"),
    (b"\n \n", "an empty file"),
    (b"\x30\x82\x03\x0a\x02", "binary DER"),
    (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key"),
    (ONE[:200].encode(), "a certificate that is cut off"),
    (b"<html><body>Sign in</body></html>", "text that begins with '<html>"),
    (ONE.replace("MII", "???", 1).encode(), ":1: certificate 1 of 1 cannot be read"),
    ((ONE + "# mine\n" + re.sub(r"\n[A-Za-z0-9+/]{64}\n", "\n", ONE, count=3)).encode(),
     f":{ONE.count(chr(10)) + 2}: certificate 2 of 2 cannot be read"),
])
def test_a_bundle_that_is_no_pem_is_refused_with_what_was_found(tmp_path: Path, content: bytes, found: str) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        buildinputs.authorities(cpu(f"BUILD_CA_BUNDLE={bundle}"), environ={})
    assert found in refused.value.message
    assert refused.value.message.startswith(f"--set: BUILD_CA_BUNDLE={bundle}")
    assert refused.value.exit_code == 2
    assert "PEM" in refused.value.fix


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        buildinputs.authorities(cpu(f"BUILD_CA_BUNDLE={tmp_path / 'nothing.pem'}"), environ={})


def test_every_certificate_of_a_good_bundle_is_handed_on(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("a comment\n" + GOOD)
    assert buildinputs.authorities(cpu(f"BUILD_CA_BUNDLE={bundle}"), environ={}) == "a comment\n" + GOOD


def test_the_env_file_wins_over_the_environment_and_that_over_the_host(tmp_path: Path) -> None:
    for name in ("chosen", "environment", "host"):
        (tmp_path / name).write_text(f"{name}\n{ONE}")
    host, environ = [str(tmp_path / "host")], {"PIP_CERT": str(tmp_path / "environment")}
    assert buildinputs.authorities(cpu(f"BUILD_CA_BUNDLE={tmp_path / 'chosen'}"), environ, host).startswith("chosen")
    assert buildinputs.authorities(cpu(), environ, host).startswith("environment")
    assert buildinputs.authorities(cpu(), {}, host).startswith("host")
    assert buildinputs.authorities(cpu(), {}, [str(tmp_path / "nothing")]) == ""


def test_a_bad_bundle_from_the_environment_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="environment: SSL_CERT_FILE="):
        buildinputs.authorities(cpu(), {"SSL_CERT_FILE": str(tmp_path)}, [])


# --- package indexes

PIP = """:env:.index-url='https://env.example/simple'
global.index-url='https://global.example/simple'
global.extra-index-url='file:///srv/wheels/simple https://more.example/simple'
install.trusted-host='more.example'
"""


def test_pips_environment_wins_over_its_files() -> None:
    pip = buildinputs.parse_pip_configuration(PIP)
    assert pip["index-url"] == "https://env.example/simple"
    assert pip["trusted-host"] == "more.example"


def test_the_hosts_indexes_reach_uv_and_pip_without_those_in_local_folders() -> None:
    handed = buildinputs.indexes(buildinputs.parse_pip_configuration(PIP), {}).splitlines()
    assert "UV_DEFAULT_INDEX=https://env.example/simple" in handed
    assert "PIP_INDEX_URL=https://env.example/simple" in handed
    assert "UV_INDEX=https://more.example/simple" in handed
    assert "UV_INSECURE_HOST=more.example" in handed
    assert not any("file:" in line for line in handed)


def test_uvs_own_variables_win_and_a_named_index_is_unnamed_for_pip() -> None:
    handed = buildinputs.indexes({"index-url": "https://pip.example"}, {"UV_DEFAULT_INDEX": "https://uv.example", "UV_INDEX": "inner=https://in.example/a"})
    assert "UV_DEFAULT_INDEX=https://uv.example" in handed
    assert "UV_INDEX=inner=https://in.example/a" in handed
    assert "PIP_EXTRA_INDEX_URL=https://in.example/a" in handed


def test_a_password_with_a_quote_in_it_stays_one_shell_word() -> None:
    handed = buildinputs.indexes({"index-url": "https://u:p'; x@in.example"}, {})
    assert shlex.split(handed)[0] == "UV_DEFAULT_INDEX=https://u:p'; x@in.example"


def test_a_host_without_configuration_hands_nothing_on() -> None:
    assert buildinputs.indexes({"extra-index-url": "file:///srv", "trusted-host": "x"}, {}) == ""


# --- wheels

@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "cpu.lock"
    path.write_text(f"some-thing==1.0+cpu \\\n    --hash=sha256:{hashlib.sha256(b'good').hexdigest()}\nother==2.0 \\\n    --hash=sha256:{'0' * 64}\n")
    return path


def house(tmp_path: Path, **wheels: bytes) -> Path:
    folder = tmp_path / "house"
    folder.mkdir()
    for name, content in wheels.items():
        (folder / f"{name.replace('__', '-')}+cpu-py3-none-any.whl").write_bytes(content)
    return folder


def test_of_a_wheelhouse_the_wheels_that_the_lock_names_are_taken(tmp_path: Path, lock: Path) -> None:
    folder = house(tmp_path, Some_Thing__1_0=b"?", **{"Some_Thing-1.0": b"good", "unlocked-1.0": b"good"})
    found = buildinputs.wheels(cpu(f"WHEELHOUSE={folder}"), {}, lock)
    assert found == {folder / "Some_Thing-1.0+cpu-py3-none-any.whl": hashlib.sha256(b"good").hexdigest()}


def test_without_a_wheelhouse_pips_find_links_folders_are_looked_through(tmp_path: Path, lock: Path) -> None:
    folder = house(tmp_path, **{"some_thing-1.0": b"good"})
    found = buildinputs.wheels(cpu(), {"find-links": f"https://wheels.example/list.html {tmp_path / 'nothing'} file://{folder}"}, lock)
    assert [wheel.name for wheel in found] == ["some_thing-1.0+cpu-py3-none-any.whl"]


def test_a_find_links_wheel_that_differs_from_the_lock_is_left_to_the_index(tmp_path: Path, lock: Path) -> None:
    folder = house(tmp_path, **{"some_thing-1.0": b"other"})
    assert buildinputs.wheels(cpu(), {"find-links": str(folder)}, lock) == {}


def test_a_wheelhouse_wheel_that_differs_from_the_lock_is_refused(tmp_path: Path, lock: Path) -> None:
    folder = house(tmp_path, **{"some_thing-1.0": b"tampered"})
    with pytest.raises(ConfigurationError, match=r"some_thing-1\.0\+cpu-py3-none-any\.whl: not the file that cpu\.lock names"):
        buildinputs.wheels(cpu(f"WHEELHOUSE={folder}"), {}, lock)


def test_a_wheelhouse_that_is_no_folder_or_has_no_wheel_is_refused(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").touch()
    for place, said in (("nothing", "no such folder"), ("cpu.lock", "not a folder"), ("empty", "no wheel in it, found 1 other entries")):
        with pytest.raises(ConfigurationError) as refused:
            buildinputs.wheels(cpu(f"WHEELHOUSE={tmp_path / place}"), {}, lock)
        assert refused.value.message == f"--set: WHEELHOUSE={tmp_path / place}: {said}"
        assert refused.value.exit_code == 2


# --- base image

@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A daemon with some images, and a registry with some."""
    world = SimpleNamespace(here=set(), there=set(), pulled=[], made=[])

    def pull(name: str) -> str:
        world.pulled.append(name)
        return "" if name in world.there else "no such host"

    monkeypatch.setattr(baseimage, "present", lambda name: name in world.here)
    monkeypatch.setattr(baseimage, "_pull", pull)
    return world


def test_a_chosen_base_that_is_there_is_not_pulled(registry: SimpleNamespace) -> None:
    registry.here = {"mine:1"}
    assert baseimage.ensure(cpu("BASE_IMAGE=mine:1")) == "mine:1"
    assert not registry.pulled


def test_a_chosen_base_that_is_missing_is_pulled_or_named(registry: SimpleNamespace) -> None:
    with pytest.raises(PrerequisiteError) as missing:
        baseimage.ensure(cpu("BASE_IMAGE=mine:1"))
    assert missing.value.message == "--set: BASE_IMAGE=mine:1 is not on this host and cannot be pulled: no such host"
    assert missing.value.exit_code == 3
    registry.there = {"mine:1"}
    assert baseimage.ensure(cpu("BASE_IMAGE=mine:1")) == "mine:1"


def test_without_a_choice_what_is_there_comes_before_what_can_be_pulled(registry: SimpleNamespace) -> None:
    registry.there = {baseimage.PUBLIC}
    assert baseimage.ensure(cpu()) == baseimage.PUBLIC
    registry.here = {baseimage.OWN}
    assert baseimage.ensure(cpu()) == baseimage.OWN
    assert registry.pulled == [baseimage.PUBLIC]


def test_where_none_can_be_pulled_one_is_made(registry: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseimage, "_bootstrap", lambda *arguments: registry.made.append(arguments))
    assert baseimage.ensure(cpu()) == baseimage.OWN
    assert registry.made == [(False, Path("/"), "debian:bookworm-slim cannot be pulled (no such host)")]
    assert baseimage.ensure(cpu(f"BASE_IMAGE={baseimage.OWN}", "HOST_SETUP=never")) == baseimage.OWN
    assert registry.made[1][0] is True
    assert registry.pulled == [baseimage.PUBLIC]  # a name of ours is never asked of a registry


def apt_root(tmp_path: Path, release: str, sources: str) -> Path:
    (tmp_path / "etc/apt").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text(release)
    (tmp_path / "etc/apt/sources.list").write_text(sources)
    return tmp_path


@pytest.mark.parametrize(("release", "sources"), [
    ('ID=ubuntu\nVERSION_CODENAME=noble\nPRETTY_NAME="Ubuntu 24.04"\n', "deb http://mirror.example/ubuntu noble main\n"),
    ("ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://other.example/tools bookworm tools\n"),
    ("ID=debian\nVERSION_CODENAME=bookworm\n", ""),
])
def test_without_a_debian_mirror_no_base_is_made(tmp_path: Path, release: str, sources: str) -> None:
    with pytest.raises(PrerequisiteError, match="no Debian mirror"):
        baseimage._bootstrap(False, apt_root(tmp_path, release, sources), "none can be pulled")


def test_the_base_is_made_from_the_mirror_in_use_and_without_manuals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = apt_root(tmp_path, "ID=debian\nVERSION_CODENAME=trixie\n",
                    "deb http://mirror.example/debian trixie main\ndeb http://mirror.example/debian-security trixie-security main\n")
    ran: list[list[str]] = []
    kept: dict[str, str] = {}

    def run(argv: list[str], **_: object) -> None:
        ran.append(argv)
        if argv[0] == "debootstrap":
            for name in ("etc/apt/sources.list.d", "etc/dpkg/dpkg.cfg.d", "usr/share/man/de", "var/cache/apt/archives"):
                (Path(argv[-2]) / name).mkdir(parents=True)
        elif argv[0] == "tar":
            system = Path(argv[3])
            kept.update({str(file.relative_to(system)): file.read_text() for file in system.rglob("*") if file.is_file()})
            assert not list((system / "usr/share/man").iterdir())

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr("bundle.base.shell.run", run)
    baseimage._bootstrap(True, root, "none can be pulled")
    assert ran[0][-3] == "bookworm"
    assert ran[0][-1] == "http://mirror.example/debian"
    assert ran[-1][-1] == baseimage.OWN
    assert kept["etc/apt/sources.list.d/security.list"] == "deb http://mirror.example/debian-security bookworm-security main\n"
    assert "path-exclude /usr/share/man/*" in kept["etc/dpkg/dpkg.cfg.d/vllm-bundle"]


@pytest.mark.parametrize(("said", "message", "fix"), [
    ("E: Cannot install into target '/tmp/base-image-x/root' mounted with noexec or nodev", "it is mounted noexec or nodev", "TMPDIR=/var/tmp"),
    ("E: Failed getting release file http://mirror.example/dists/bookworm/Release", "Failed getting release file", "is the mirror reachable"),
])
def test_what_keeps_debootstrap_from_its_work_is_told_apart(said: str, message: str, fix: str, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    root = apt_root(tmp_path, "ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://mirror.example/debian bookworm main\n")
    stub = tmp_path / "bin" / "debootstrap"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\necho \"{said}\" >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(PrerequisiteError, match=message) as refused:
        baseimage._bootstrap(True, root, "none can be pulled")
    assert fix in refused.value.fix
    assert ("mirror" in refused.value.fix) is ("release file" in said)


def test_debootstrap_is_not_installed_where_the_host_may_not_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = apt_root(tmp_path, "ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://mirror.example/debian bookworm main\n")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(PrerequisiteError, match="HOST_SETUP=never forbids") as refused:
        baseimage._bootstrap(True, root, "none can be pulled")
    assert "apt-get" in refused.value.fix
    assert "debootstrap" in refused.value.fix


def test_making_a_base_takes_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = apt_root(tmp_path, "ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://mirror.example/debian bookworm main\n")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PrerequisiteError, match="takes root"):
        baseimage._bootstrap(False, root, "none can be pulled")


# --- when a build is due

@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in small."""
    for name in ("docker/engine/Dockerfile", "docker/engine/cpu.lock", "docker/engine/cuda.lock", "docker/engine/build.lock",
                 "docker/engine/notes.md", "docker/engine/proofs/a.py", "docker/engine/proofs/__pycache__/a.pyc", "docker/gateway/Dockerfile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".dockerignore").write_text("*\n!docker/engine/Dockerfile\n!docker/engine/*.lock\n!docker/engine/proofs\n**/__pycache__\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


def sources(*sets: str) -> dict[str, str]:
    return {image.service: image.source for image in build.wanted_images(cpu(*sets))}


@pytest.mark.parametrize(("change", "stale"), [
    ("docker/engine/Dockerfile", {"engine"}), ("docker/engine/cpu.lock", {"engine"}), ("docker/engine/build.lock", {"engine"}),
    ("docker/engine/proofs/a.py", {"engine"}), ("docker/gateway/Dockerfile", {"gateway"}), ("docker/gateway/new.cfg", {"gateway"}),
    ("docker/engine/cuda.lock", set()), ("docker/engine/notes.md", set()), ("docker/engine/proofs/__pycache__/a.pyc", set()),
])
def test_an_image_is_stale_when_a_file_that_shapes_it_changes(tree: Path, change: str, stale: set[str]) -> None:
    before = sources()
    (tree / change).write_text("changed")
    after = sources()
    assert {service for service in before if before[service] != after[service]} == stale


def test_a_renamed_file_and_another_base_make_stale_too(tree: Path) -> None:
    before = sources()
    assert sources("BASE_IMAGE=other:1") != before
    (tree / "docker/engine/proofs/a.py").rename(tree / "docker/engine/proofs/b.py")
    assert sources()["engine"] != before["engine"]


@pytest.mark.parametrize(("labels", "why"), [
    (None, "not there"), ({}, ""), ({build.SOURCE: "old"}, "its sources have changed"), ({build.SOURCE: ""}, "its sources have changed"),
])
def test_a_foreign_image_is_left_alone_and_an_old_one_is_not(tree: Path, monkeypatch: pytest.MonkeyPatch,
                                                             labels: dict[str, str] | None, why: str) -> None:
    found = [] if labels is None else [SimpleNamespace(labels=labels)]
    monkeypatch.setattr(daemon, "client", lambda: SimpleNamespace(images=SimpleNamespace(list=lambda name: found)))
    assert build.wanted_images(cpu())[1].why_build() == why


def test_a_current_image_is_not_built(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = build.wanted_images(cpu())
    labelled = [SimpleNamespace(labels={"io.vllm-bundle.source": wanted[1].source})]
    monkeypatch.setattr(daemon, "client", lambda: SimpleNamespace(images=SimpleNamespace(list=lambda name: labelled)))
    assert wanted[1].why_build() == ""
    assert wanted[0].why_build() != ""


def test_everything_that_the_dockerfile_copies_is_in_its_context_and_in_the_hash() -> None:
    text = (ROOT / "docker/engine/Dockerfile").read_text().replace("\\\n", " ")
    copied = [word for line in re.findall(r"^COPY (?!.*--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1] if not word.startswith("--")]
    copied += re.findall(r"--mount=type=bind,source=([^,\s]+)", text)
    hashed = {str(path.relative_to(ROOT)) for target in ("cpu", "cuda") for image in _engines(target) for path in image.inputs}
    for name in copied:
        assert any(path == name or path.startswith(f"{name.rstrip('/')}/") for path in hashed), name
    assert len(copied) > 5


def _engines(target: str) -> list[Image]:
    return [image for image in build.wanted_images(cpu(f"IMAGE_TARGET={target}")) if image.service == "engine"]


# --- what is shown

OUTPUT = """#0 building with "default" instance using docker driver
#1 [engine internal] load build definition from Dockerfile
#1 DONE 2.0s
#7 [engine os 1/2] FROM docker.io/library/debian
#7 CACHED
#8 [engine scripts 1/2] COPY entrypoint.py /opt/bundle/
#8 DONE 0.0s
#14 [engine build 3/4] RUN --mount=type=secret,id=ca,target=/run/secrets/ca     --mount=type=cache,target=/root/.cache/pip     pip install
#14 0.410 Collecting uv
#17 [engine cpu-build 2/2] RUN install.sh
#14 0.500 Installed
#17 0.100 Resolved
#14 DONE 4.2s
#17 ERROR: executor failed running [install.sh]: exit code: 2
#18 [engine cpu-venv 1/1] COPY --from=cpu-build /opt/venv /opt/venv
#18 DONE 7.7s
#25 [engine] exporting to image
#25 exporting layers
#25 DONE 11.5s
not a step
""".splitlines()


def test_progress_names_each_step_that_takes_time_and_ends_it_with_its_time() -> None:
    progress = Progress()
    assert [shown for line in OUTPUT if (shown := progress.feed(line))] == [
        "· build 3/4: RUN pip install", "· cpu-build 2/2: RUN install.sh", "✓ build 3/4: RUN pip install 4.2s", "✗ cpu-build 2/2: RUN install.sh",
        "✓ cpu-venv 1/1: COPY --from=cpu-build /opt/venv /opt/venv 7.7s", "· exporting to image", "✓ exporting to image 11.5s"]


def test_a_long_step_is_shown_in_one_line() -> None:
    progress = Progress()
    progress.feed(f"#3 [engine os 2/2] RUN {'apt-get install ' * 30}")
    shown = progress.feed("#3 0.1 output")
    assert shown is not None
    assert len(shown) < 110
    assert shown.endswith("…")


@pytest.mark.parametrize(("line", "fix"), [
    ("  Caused by: invalid peer certificate: UnknownIssuer", "BUILD_CA_BUNDLE"),
    ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "BUILD_CA_BUNDLE"),
    ("write /opt/venv/x: no space left on device", "docker system df"),
    ("× No solution found when resolving dependencies:", "WHEELHOUSE"),
    ("Temporary failure resolving 'deb.example'", "HTTPS_PROXY"),
    ("× Hash mismatch for `torch==2.13.0+cpu`", "another file than the lock names"),
    ("g++: internal error", "the lines above say why"),
])
def test_a_failed_build_says_what_to_do(line: str, fix: str) -> None:
    assert fix in build.remedy(["#17 0.1 before", f"#17 1.2 {line}", "ERROR: failed to solve: exit code: 2"])


def test_no_lock_records_an_address() -> None:
    locks = [*(ROOT / "docker/engine").glob("*.lock"), *ROOT.glob("*.lock")]
    assert {"cpu.lock", "build.lock", "requirements.lock"} <= {lock.name for lock in locks}
    for lock in locks:
        assert not re.search(r"://|--index|--find-links| @ ", lock.read_text()), lock.name
