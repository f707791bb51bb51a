"""Setting up Docker: what is done on which distribution, what is never done, what a failure says. The programs are stand-ins."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.machine.setup import prepare
from support.fakehost import INFO, PLUGINS, FakeHost

DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
DEBIAN_13 = 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
UBUNTU_24 = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
SOURCES = "deb http://mirror.example/debian bookworm main\n"
OPTIONS = "-o DPkg::Lock::Timeout=300 install --yes --no-install-recommends --no-remove"
BROKEN_CLIENT = {"ClientInfo": {"Version": "18.09", "Plugins": []}}


@pytest.fixture
def fake() -> Iterator[FakeHost]:
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        host = FakeHost(Path(folder))
        host.file("/etc/os-release", DEBIAN_12)
        host.file("/etc/apt/sources.list", SOURCES)
        yield host
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((host.root / "dockerd.pid").read_text()), signal.SIGKILL)


def apt_that_installs(fake: FakeHost) -> None:
    """An apt-get that puts a `docker` and a `dockerd` on PATH, which wait beside it until then."""
    fake.docker()
    fake.daemon_program()
    for name in ("docker", "dockerd"):
        (fake.root / "bin" / name).rename(fake.root / name)
    fake.program("apt-get", f'case "$*" in *install*) /bin/cp {fake.root}/docker {fake.root}/dockerd {fake.root}/bin/ ;; esac\n')


def refusal(fake: FakeHost, mode: str = "auto", uid: int = 0) -> PrerequisiteError:
    with pytest.raises(PrerequisiteError) as caught:
        prepare(mode, fake.host(uid=uid), start_timeout_s=0.5)
    assert caught.value.exit_code == 3
    return caught.value


# Nothing to do, or nothing that may be done


def test_a_complete_host_is_left_alone_without_a_word(fake: FakeHost, capfd: pytest.CaptureFixture[str]) -> None:
    fake.docker()
    fake.program("apt-get", "exit 1")
    with fake.daemon():
        prepare("auto", fake.host())
    assert [call.split()[0] for call in fake.calls] == ["docker"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("uid", [0, 1000])
def test_never_means_never_and_shows_the_commands(fake: FakeHost, uid: int) -> None:
    apt_that_installs(fake)
    error = refusal(fake, "never", uid=uid)
    sudo = "sudo " if uid else ""
    assert error.message == ("this host lacks the docker command, Docker Compose 2.20 or newer, buildx, a running Docker daemon, "
                             "and HOST_SETUP=never forbids to set it up")
    assert error.fix.splitlines() == [
        "type:",
        f"    printf '%s\\n' 'deb http://mirror.example/debian trixie main' | {sudo}tee /etc/apt/sources.list.d/vllm-bundle-trixie.list",
        f"    printf '%s\\n' 'Package: *' 'Pin: release n=trixie' 'Pin-Priority: 100' | {sudo}tee /etc/apt/preferences.d/vllm-bundle-trixie",
        f"    {sudo}apt-get update",
        f"    {sudo}apt-get {OPTIONS} docker.io iptables docker-compose/trixie docker-buildx/trixie",
        f"    {sudo}sh -c 'setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &'",
    ]
    assert fake.calls == []
    assert not (fake.root / "etc/apt/preferences.d").exists()


def test_without_root_nothing_is_tried(fake: FakeHost) -> None:
    apt_that_installs(fake)
    error = refusal(fake, uid=1000)
    assert "setting it up takes root" in error.message
    assert "sudo apt-get update" in error.fix
    assert fake.calls == []


def test_a_daemon_alone_that_is_down_needs_one_command(fake: FakeHost) -> None:
    fake.docker()
    fake.program("dockerd", "exit 1")
    (fake.root / "run/systemd/system").mkdir(parents=True)
    error = refusal(fake, uid=1000)
    assert error.message == "this host lacks a running Docker daemon, and setting it up takes root"
    assert error.fix == "type:\n    sudo systemctl start docker"


def test_a_user_whom_the_daemon_refuses_is_told_how_to_get_in(fake: FakeHost) -> None:
    fake.docker()
    fake.root.chmod(0o755)
    root = os.geteuid() == 0
    with fake.daemon():
        (fake.root / "var/run/docker.sock").chmod(0)
        if root:
            os.seteuid(65534)  # every socket opens to root
        try:
            error = refusal(fake, uid=1000)
        finally:
            if root:
                os.seteuid(0)
    assert error.message == "this user may not talk to the Docker daemon at unix:///var/run/docker.sock"
    assert "usermod -aG docker" in error.fix


@pytest.mark.parametrize(("release", "name"), [("ID=fedora\nVERSION_ID=41\n", "fedora 41"), ("", "this system"),
                                               ('ID=debian\nVERSION_ID="11"\n', "debian 11")])
def test_another_distribution_is_not_guessed_at(fake: FakeHost, release: str, name: str) -> None:
    fake.file("/etc/os-release", release)
    apt_that_installs(fake)
    error = refusal(fake)
    assert error.message.endswith(f"which packages {name} has is not known here")
    assert error.fix.endswith("https://docs.docker.com/engine/install/")
    assert fake.calls == []


def test_a_daemon_that_docker_host_names_is_never_started(fake: FakeHost) -> None:
    fake.docker()
    fake.daemon_program()
    with pytest.raises(PrerequisiteError, match="no Docker daemon at unix:///elsewhere, where DOCKER_HOST or the docker context points"):
        prepare("auto", fake.host(environ={"DOCKER_HOST": "unix:///elsewhere"}))
    assert not (fake.root / "dockerd.pid").exists()


def test_with_docker_host_set_nothing_is_installed_either(fake: FakeHost) -> None:
    apt_that_installs(fake)
    with pytest.raises(PrerequisiteError, match="nothing is installed") as caught:
        prepare("auto", fake.host(environ={"DOCKER_HOST": "unix:///elsewhere"}))
    assert fake.calls == []
    assert "dockerd" not in caught.value.fix


def test_docker_host_with_the_default_address_is_this_machines_daemon(fake: FakeHost) -> None:
    apt_that_installs(fake)
    prepare("auto", fake.host(environ={"DOCKER_HOST": "unix:///var/run/docker.sock"}))
    assert (fake.root / "dockerd.pid").exists()


# Installing


def test_an_empty_debian_12_gets_everything_and_says_each_step_first(fake: FakeHost, capfd: pytest.CaptureFixture[str]) -> None:
    apt_that_installs(fake)
    prepare("auto", fake.host())
    assert fake.calls[:2] == ["apt-get update", f"apt-get {OPTIONS} docker.io iptables docker-compose/trixie docker-buildx/trixie"]
    assert (fake.root / "etc/apt/sources.list.d/vllm-bundle-trixie.list").read_text() == "deb http://mirror.example/debian trixie main\n"
    assert "Pin-Priority: 100" in (fake.root / "etc/apt/preferences.d/vllm-bundle-trixie").read_text()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("·")]
    assert [line.split()[1] for line in said] == ["/etc/apt/sources.list.d/vllm-bundle-trixie.list:", "/etc/apt/preferences.d/vllm-bundle-trixie:",
                                                  "package", "packages", "Docker"]


def test_a_second_time_there_is_nothing_to_do(fake: FakeHost, capfd: pytest.CaptureFixture[str]) -> None:
    apt_that_installs(fake)
    prepare("auto", fake.host())
    capfd.readouterr()
    before = len(fake.calls)
    prepare("auto", fake.host())
    assert [call.split()[0] for call in fake.calls[before:]] == ["docker"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("release", "packages"), [
    (DEBIAN_13, "docker.io docker-cli iptables docker-compose docker-buildx"),
    (UBUNTU_24, "docker.io iptables docker-compose-v2 docker-buildx"),
])
def test_newer_distributions_have_it_all_themselves(fake: FakeHost, release: str, packages: str) -> None:
    fake.file("/etc/os-release", release)
    apt_that_installs(fake)
    prepare("auto", fake.host())
    assert fake.calls[1] == f"apt-get {OPTIONS} {packages}"
    assert not (fake.root / "etc/apt/sources.list.d").exists()


def test_only_what_is_missing_is_installed(fake: FakeHost) -> None:
    fake.docker(info={**INFO, "ClientInfo": {"Version": "20.10.24", "Plugins": [{"Name": "compose", "Version": "2.19.1"}, PLUGINS[1]]}})
    whole = json.dumps(INFO)
    fake.program("apt-get", f"case \"$*\" in *install*) echo '{whole}' >{fake.root}/info.json ;; esac\n")
    with fake.daemon():
        prepare("auto", fake.host())
    assert [call for call in fake.calls if "install" in call] == [f"apt-get {OPTIONS} docker-compose/trixie"]


def test_with_apparmor_in_the_kernel_its_parser_is_installed_too(fake: FakeHost) -> None:
    fake.file("/sys/module/apparmor/parameters/enabled", "Y\n")
    apt_that_installs(fake)
    prepare("auto", fake.host())
    assert fake.calls[1].endswith(" apparmor")


DEB822 = """Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://security.example/
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(("name", "text", "written"), [
    ("sources.list", "# deb http://off.example bookworm main\ndeb cdrom:[Debian]/ bookworm main\n"
     "deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian/ bookworm main contrib # mine\n",
     "deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian/ trixie main\n"),
    ("sources.list", "deb-src http://src.example bookworm main\ndeb http://c.example bookworm contrib\ndeb http://mirror.example oldstable main\n",
     "deb http://mirror.example trixie main\n"),
    ("sources.list.d/debian.sources", DEB822,
     "Types: deb\nUris: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
     "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"),
    ("sources.list.d/debian.sources", DEB822.replace("Types: deb\n#", "Enabled: no\nTypes: deb\n#") + "\nTypes: deb deb-src\nURIs: http://b.example\n"
     "Suites: bookworm\nComponents: main\n", "Types: deb\nUris: http://b.example\nSuites: trixie\nComponents: main\n"),
])
def test_the_next_suite_comes_from_the_mirror_in_use(fake: FakeHost, name: str, text: str, written: str) -> None:
    (fake.root / "etc/apt/sources.list").unlink()
    fake.file(f"/etc/apt/{name}", text)
    apt_that_installs(fake)
    prepare("auto", fake.host())
    suffix = "sources" if name.endswith("sources") else "list"
    assert (fake.root / f"etc/apt/sources.list.d/vllm-bundle-trixie.{suffix}").read_text() == written


def test_a_machine_that_knows_the_next_suite_already_keeps_its_own_sources(fake: FakeHost) -> None:
    fake.file("/etc/apt/sources.list.d/mine.list", "deb http://mirror.example/debian trixie main\n")
    apt_that_installs(fake)
    prepare("auto", fake.host())
    assert not list((fake.root / "etc/apt").rglob("vllm-bundle*"))


def test_without_any_mirror_the_message_says_what_to_add(fake: FakeHost) -> None:
    (fake.root / "etc/apt/sources.list").unlink()
    error = refusal(fake)
    assert "no apt source for bookworm main" in error.message
    assert error.fix.endswith("deb MIRROR bookworm main")


def test_a_failed_installation_shows_what_apt_said(fake: FakeHost) -> None:
    fake.program("apt-get", "case \"$*\" in update) echo 'W: mirror.example: Name or service not known' >&2 ;; "
                            "*) echo 'E: Unable to locate package docker.io' >&2; exit 100 ;; esac\n")
    error = refusal(fake)
    assert "exited 100:\nW: mirror.example: Name or service not known\nE: Unable to locate package docker.io" in error.message
    assert "is the mirror reachable?" in error.fix


def test_a_failed_update_alone_does_not_stop_an_installation_that_works(fake: FakeHost) -> None:
    apt_that_installs(fake)
    installs = (fake.root / "bin/apt-get").read_text()
    fake.program("apt-get", installs.replace("case", '[ "$*" = update ] && exit 100\ncase', 1).split("\n", 2)[2])
    prepare("auto", fake.host())
    assert fake.calls[0] == "apt-get update"


def test_a_client_that_hides_the_packages_is_named(fake: FakeHost) -> None:
    fake.docker(info={**INFO, **BROKEN_CLIENT})
    hidden = fake.program("docker", "exit 1", folder="/usr/bin")
    fake.program("apt-get", "exit 0")
    with fake.daemon(), pytest.raises(PrerequisiteError) as caught:
        prepare("auto", fake.host(environ={"PATH": f"{fake.root}/bin:{fake.root}/usr/bin"}))
    assert caught.value.message == "this host lacks Docker Compose 2.20 or newer, buildx, though the packages are installed"
    assert f"the `docker` that is used is {fake.root}/bin/docker; it hides {hidden}: move it out of the way" in caught.value.fix


# Starting


def test_a_daemon_that_is_down_is_started_in_a_session_of_its_own(fake: FakeHost) -> None:
    fake.docker()
    fake.daemon_program()
    prepare("auto", fake.host())
    pid = int((fake.root / "dockerd.pid").read_text())
    assert os.getsid(pid) != os.getsid(0)
    assert not [call for call in fake.calls if call.startswith("apt-get")]


def test_systemd_starts_it_where_there_is_one(fake: FakeHost) -> None:
    fake.docker()
    fake.program("dockerd", "echo started >&2; exit 1")
    (fake.root / "run/systemd/system").mkdir(parents=True)
    fake.program("systemctl", "exit 0")
    with fake.daemon():
        socket = fake.root / "var/run/docker.sock"
        socket.rename(f"{socket}.later")
        fake.program("systemctl", f"/bin/mv {socket}.later {socket}\n")
        prepare("auto", fake.host())
    assert "systemctl start docker" in fake.calls
    assert not [call for call in fake.calls if call.startswith("dockerd")]


def test_a_unit_that_fails_shows_what_systemctl_said(fake: FakeHost) -> None:
    fake.docker()
    fake.program("dockerd", "exit 1")
    (fake.root / "run/systemd/system").mkdir(parents=True)
    fake.program("systemctl", "echo 'Job for docker.service failed' >&2; exit 1")
    error = refusal(fake)
    assert "Job for docker.service failed" in error.message
    assert "journalctl" in error.fix


def test_a_daemon_that_ends_is_reported_at_once_with_the_end_of_its_log(fake: FakeHost) -> None:
    fake.docker()
    fake.daemon_program(then="print('time=x level=info msg=chatter'); print('failed to start daemon: no iptables', flush=True); raise SystemExit(1)")
    with pytest.raises(PrerequisiteError) as caught:
        prepare("auto", fake.host(), start_timeout_s=60)
    assert caught.value.message == "dockerd ended. The end of /var/log/dockerd.log:\nfailed to start daemon: no iptables"


def test_a_daemon_that_never_answers_is_given_up(fake: FakeHost) -> None:
    fake.docker()
    fake.daemon_program(then="import time\ntime.sleep(600)")
    assert "the Docker daemon does not answer after 0.5 s (No such file or directory)" in refusal(fake).message


def test_a_daemon_that_is_on_its_way_already_is_waited_for_not_doubled(fake: FakeHost) -> None:
    fake.docker()
    fake.daemon_program()
    fake.file("/var/run/docker.pid", "4242\n")
    fake.file("/proc/4242/comm", "dockerd\n")
    assert "does not answer after 0.5 s" in refusal(fake).message
    assert not (fake.root / "dockerd.pid").exists()
    fake.file("/proc/4242/comm", "bash\n")  # a pid file that outlived its daemon, and its number was given to another
    prepare("auto", fake.host())
    assert (fake.root / "dockerd.pid").exists()
