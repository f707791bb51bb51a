"""The real thing: a clean Debian 12 is set up from its own mirror; the doctor reads this host, with its daemon, without, and beside a taken port."""

import json
import os
import secrets
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings
from bundle.images import baseimage
from support.project import Project

BASE = baseimage.OWN
SET_UP = """
import sys
from bundle import cli
from bundle.machine import setup
from bundle.machine.facts import Host
sys.exit(cli.run(lambda argv: setup.prepare(argv[0], Host()) or 0))
"""


@pytest.fixture(scope="module")
def base() -> str:
    return baseimage.ensure(settings.load("cpu", sets=[f"BASE_IMAGE={BASE}"], environ={}))


@pytest.fixture
def debian(base: str) -> Iterator[Callable[..., "subprocess.CompletedProcess[str]"]]:
    """Runs shell lines in a clean Debian 12 of the test's own, as root or another user; the bundle and its Python packages are mounted read-only."""
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}"
    mounts = [f"--volume={ROOT}:/bundle:ro", f"--volume={sysconfig.get_path('purelib')}:/packages:ro"]
    subprocess.run(["docker", "run", "--detach", "--rm", "--name", name, *mounts, "--env=PYTHONPATH=/bundle/scripts:/packages",
                    "--env=PYTHONDONTWRITEBYTECODE=1", base, "sleep", "900"], check=True, capture_output=True, timeout=60)

    def run(lines: str, *, user: str = "0") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["docker", "exec", "--user", user, name, "sh", "-c", lines], capture_output=True, text=True, check=False, timeout=600)

    yield run
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True, timeout=60)


def set_up(mode: str) -> str:
    return f"python3 -c '{SET_UP}' {mode}"


def doctor(*arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and checks by name."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts/doctor.py"), "--profile", "cpu", "--json", *arguments],
                          capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environ})
    rows: list[dict[str, str]] = json.loads(done.stdout)
    return done.returncode, {row["name"]: row for row in rows}


def test_a_clean_debian_12_gets_compose_and_buildx_and_says_why_its_daemon_cannot_start(debian: Callable[..., Any]) -> None:
    done = debian(set_up("auto"))
    # A daemon needs more rights than this container has: the message has to say so in the daemon's own words.
    assert done.returncode == 3, done.stderr
    assert "error: dockerd ended. The end of /var/log/dockerd.log:\n" in done.stderr
    assert "failed to start daemon" in done.stderr
    assert debian("docker --version").stdout.startswith("Docker version 20.10.")
    compose = debian("docker compose version --short").stdout.strip()
    assert tuple(map(int, compose.split("-")[0].split("."))) >= (2, 20, 0)
    assert "buildx" in debian("docker buildx version").stdout
    installed = debian("dpkg-query --show --showformat='${Package} ${Version}\\n' docker.io libc6").stdout
    assert "deb12" in installed.split("libc6")[0], "the engine is Debian 12's own"
    assert "deb12" in installed.split("libc6")[1], "and nothing else was lifted to the next suite"
    assert "Candidate: 5.2" in debian("apt-cache policy bash").stdout, "which apt knows without preferring it"
    again = debian(set_up("auto"))
    assert again.returncode == 3
    assert "apt-get" not in again.stderr, "the second time only the daemon is missing"


@pytest.mark.parametrize(("mode", "user", "reason", "sudo"), [
    ("never", "0", "HOST_SETUP=never forbids to set it up", ""),
    ("auto", "1000", "setting it up takes root", "sudo "),
])
def test_what_it_may_not_do_it_shows(debian: Callable[..., Any], mode: str, user: str, reason: str, sudo: str) -> None:
    before = debian("dpkg-query --show | sha256sum; ls -R /etc/apt | sha256sum").stdout
    done = debian(set_up(mode), user=user)
    assert done.returncode == 3
    assert reason in done.stderr
    assert f"    {sudo}apt-get update\n" in done.stderr
    assert "docker.io iptables docker-compose/trixie docker-buildx/trixie\n" in done.stderr
    assert debian("dpkg-query --show | sha256sum; ls -R /etc/apt | sha256sum").stdout == before


def test_the_commands_that_it_shows_work_when_typed(debian: Callable[..., Any]) -> None:
    shown = debian(set_up("never")).stderr
    typed = "\n".join(line.strip() for line in shown.splitlines() if line.startswith("    ") and "dockerd" not in line)
    done = debian(f"set -e\n{typed}\ndocker compose version --short")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2.")


def test_a_debian_without_python3_venv_gets_it_or_says_the_command(debian: Callable[..., Any]) -> None:
    prepared = debian("dpkg --purge --force-depends python3.11-venv; mkdir -p /repo/scripts/bundle && cd /bundle/scripts/bundle && "
                      "cp -r __init__.py venv.py base machine /repo/scripts/bundle/ && echo '# nothing' >/repo/requirements.lock && "
                      "chmod -R a+rwX /repo")
    assert prepared.returncode == 0, prepared.stderr
    fill = "PYTHONPATH= python3 /repo/scripts/bundle/venv.py /repo/requirements.lock"
    never = debian(f"HOST_SETUP=never {fill}")
    assert (never.returncode, "HOST_SETUP=never forbids to install it" in never.stderr) == (3, True), never.stderr
    debian("rm -rf /repo/.state")
    user = debian(fill, user="1000")
    assert (user.returncode, "fix: sudo apt-get update && sudo apt-get " in user.stderr) == (3, True), user.stderr
    done = debian(f"{fill} && /repo/.venv/bin/python -m pip --version")
    assert done.returncode == 0, done.stderr
    assert "· python3.11-venv from the distribution" in done.stderr
    assert done.stdout.startswith("pip ")


def test_the_doctor_works_where_there_is_no_docker_at_all(debian: Callable[..., Any]) -> None:
    done = debian("cd /bundle/scripts && python3 -c 'import sys, doctor; sys.exit(doctor.main([\"--profile\", \"cpu\", \"--json\"]))'")
    assert done.returncode == 3, done.stderr
    state = {row["name"]: row["state"] for row in json.loads(done.stdout)}
    assert {name for name in state if state[name] == "fail"} >= {"docker client", "docker engine", "compose", "buildx"}
    assert (state["settings"], state["kernel"], state["model"]) == ("ok", "ok", "ok")


def test_this_host_passes(base: str) -> None:
    code, checks = doctor("--set", "GATEWAY_PORT=0")
    assert code == 0, checks
    assert checks["docker engine"]["found"].split()[0].count(".") >= 1
    assert all(check["state"] != "fail" for check in checks.values())


def test_each_check_is_one_line_of_the_table() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts/doctor.py"), "--profile", "cpu"],
                          capture_output=True, text=True, check=False, timeout=120)
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[:4]] == ["check", "settings", "docker client", "docker engine"]
    table = done.stdout.split("\n\n")[0].splitlines()  # the fit's own report follows, where there is a model
    assert all(line.split("  ", 1)[1].split()[0] in ("ok", "warn", "fail") for line in table[1:])


def test_a_daemon_that_is_down_fails_the_doctor_and_the_rest_goes_on() -> None:
    code, checks = doctor("--set", "GATEWAY_PORT=0", DOCKER_HOST="unix:///nonexistent")
    assert code == 3
    assert {name for name, check in checks.items() if check["state"] == "fail"} == {"docker engine"}
    assert checks["docker engine"]["found"] == "no daemon at unix:///nonexistent: No such file or directory"


def test_the_process_that_holds_the_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, checks = doctor("--set", f"GATEWAY_PORT={port}")
    assert code == 3
    mine = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert checks["port"]["found"] == f"127.0.0.1:{port} is taken by {mine} (process {os.getpid()})"


def test_the_container_that_publishes_the_port_is_named_unless_it_is_our_own(base: str, project: Project) -> None:
    subprocess.run(["docker", "run", "--detach", "--rm", "--name", f"{project.name}-web", "--label", f"com.docker.compose.project={project.name}",
                    "--publish", "127.0.0.1::8005", base, "sleep", "120"], check=True, capture_output=True, timeout=60)
    try:
        shown = subprocess.run(["docker", "port", f"{project.name}-web", "8005"], check=True, capture_output=True, text=True, timeout=20)
        port = shown.stdout.strip().rpartition(":")[2]
        code, checks = doctor("--set", f"GATEWAY_PORT={port}")
        assert (code, checks["port"]["state"]) == (3, "fail")
        assert checks["port"]["found"] == f"127.0.0.1:{port} is published by container {project.name}-web of project {project.name}"
        _, checks = doctor("--set", f"GATEWAY_PORT={port}", "--project", project.name)
        assert checks["port"]["found"] == f"127.0.0.1:{port} in use by this project ({project.name}-web)"
    finally:
        subprocess.run(["docker", "rm", "--force", f"{project.name}-web"], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("arguments", [["--set", "GATEWAY_PROT=1"], ["--profile", "nonsense"], ["--env-file", "/nowhere.env"]])
def test_settings_that_are_wrong_are_one_failed_check_among_the_others(arguments: list[str]) -> None:
    code, checks = doctor("--set", "GATEWAY_PORT=0", *arguments)
    assert code == 3
    assert {name for name, check in checks.items() if check["state"] == "fail"} == {"settings"}
    assert arguments[1].split("=")[0] in checks["settings"]["found"]
    assert "docker engine" in checks
