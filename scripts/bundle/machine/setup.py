"""Give the host what `make up` needs of Docker: packages from the distribution, and a running daemon. Does nothing where all is there."""

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bundle.base import console, shell
from bundle.base.errors import PrerequisiteError
from bundle.machine import apt
from bundle.machine.facts import Docker, Host

LOG = "/var/log/dockerd.log"
PID_FILE = "/var/run/docker.pid"
INSTALL_TIMEOUT_S = 1200
START_TIMEOUT_S = 60
TAIL_LINES = 15

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ELSEWHERE = "install Docker Engine, its Compose plugin and buildx: https://docs.docker.com/engine/install/"


def prepare(mode: str, host: Host | None = None, *, start_timeout_s: float = START_TIMEOUT_S) -> None:
    """Install and start what is missing of Docker, if `mode` is auto; each step is said before it is done. 40 to 100 ms when nothing is missing.

    Raises PrerequisiteError, with the commands to type, where it may not (mode never, not root, DOCKER_HOST) or cannot.
    """
    host = host or Host()
    docker = host.docker()
    if not docker.missing:
        return
    if docker.denied:
        raise PrerequisiteError(f"this user may not talk to the Docker daemon at {docker.address}",
                                fix='sudo usermod -aG docker "$USER" and log in again; or: sudo make up')
    if docker.elsewhere and docker.error and docker.clients:
        raise PrerequisiteError(f"no Docker daemon at {docker.address}, where DOCKER_HOST or the docker context points: {docker.error}",
                                fix="start that daemon or correct the address; without one, `make up` uses this machine's own")
    plan = _plan(docker, host)
    if why_not := _why_not(mode, plan, docker, host):
        raise PrerequisiteError(f"{_lacks(docker)}, and {why_not}", fix=plan.instructions(sudo=host.uid != 0))
    _carry_out(plan, host, start_timeout_s)
    _verify(host.docker())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, in this order: write `files`, install `packages`, start the daemon."""

    files: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    possible: bool = True
    """Whether this distribution's packages are known."""

    def instructions(self, *, sudo: bool) -> str:
        """The commands that do it by hand."""
        if not self.possible:
            return _ELSEWHERE
        prefix = "sudo " if sudo else ""
        lines = [f"printf '%s\\n' {' '.join(map(shlex.quote, text.splitlines()))} | {prefix}tee {name}" for name, text in self.files.items()]
        if self.packages:
            lines += [prefix + shlex.join(apt.UPDATE), prefix + shlex.join(apt.install(*self.packages))]
        if self.start:
            lines.append(prefix + shlex.join(self.start))
        return "\n".join(["type:", *(f"    {line}" for line in lines)])


def _why_not(mode: str, plan: Plan, docker: Docker, host: Host) -> str:
    """What stands against carrying out the plan; empty when nothing does."""
    if not plan.possible:
        name, release = host.distribution
        return f"which packages {name or 'this system'}{f' {release}' if release else ''} has is not known here"
    if mode == "never":
        return "HOST_SETUP=never forbids to set it up"
    if docker.elsewhere:
        return "where DOCKER_HOST or a docker context chooses the daemon, nothing is installed"
    return "setting it up takes root" if host.uid != 0 else ""


def _plan(docker: Docker, host: Host) -> Plan:
    """What is missing, and how this distribution provides it."""
    start: tuple[str, ...] = ()
    if docker.error and not docker.elsewhere:
        start = ("systemctl", "start", "docker") if host.systemd else ("sh", "-c", f"setsid dockerd >>{LOG} 2>&1 </dev/null &")
    wanted = [part for part in docker.missing if part in ("compose", "buildx")]
    if "docker" in docker.missing or (docker.error and not _dockerd(host)):
        wanted.insert(0, "engine")
    if not wanted:
        return Plan(start=start)
    names = _packages(*host.distribution)
    if not names:
        return Plan(possible=False)
    packages = [package for part in wanted for package in names[part].split()]
    if "engine" in wanted and host.read("/sys/module/apparmor/parameters/enabled").startswith("Y"):
        packages.append("apparmor")  # with AppArmor in the kernel and no parser for it, no container starts
    suites = {package.split("/")[1] for package in packages if "/" in package}
    files = {name: text for suite in suites for name, text in _suite_files(host, suite).items()}
    return Plan(files=files, packages=tuple(packages), start=start)


def _packages(distribution: str, release: int) -> dict[str, str]:
    """What engine, compose and buildx are called there; empty where that is not known."""
    if distribution == "debian" and release == 12:
        # Debian 12's docker-compose is the old 1.29, and it has no buildx. The next suite's are static programs: they pull nothing else up.
        return {"engine": "docker.io iptables", "compose": "docker-compose/trixie", "buildx": "docker-buildx/trixie"}
    if distribution == "debian" and release > 12:
        return {"engine": "docker.io docker-cli iptables", "compose": "docker-compose", "buildx": "docker-buildx"}
    if distribution == "ubuntu" and release >= 22:
        return {"engine": "docker.io iptables", "compose": "docker-compose-v2", "buildx": "docker-buildx"}
    return {}


def _suite_files(host: Host, suite: str) -> dict[str, str]:
    """The files that make apt know `suite` without ever preferring it; none where the machine knows it already."""
    stem = f"/etc/apt/sources.list.d/vllm-bundle-{suite}"
    own = [host.path(f"{stem}.{suffix}") for suffix in ("list", "sources")]
    if apt.offers(host.root, suite, besides=own):
        return {}
    codename = apt.os_release(host.read("/etc/os-release")).get("VERSION_CODENAME", "")
    found = apt.source_for(host.root, suite, like=(codename, "stable", "oldstable"))
    if found is None:
        raise PrerequisiteError(f"no apt source for {codename} main in /etc/apt, so there is no mirror to take {suite}'s packages from",
                                fix=f"add a Debian mirror to /etc/apt/sources.list: deb MIRROR {codename} main")
    suffix, text = found
    return {f"{stem}.{suffix}": text, f"/etc/apt/preferences.d/vllm-bundle-{suite}": f"Package: *\nPin: release n={suite}\nPin-Priority: 100\n"}


def _carry_out(plan: Plan, host: Host, start_timeout_s: float) -> None:
    for name, text in plan.files.items():
        with console.step(f"{name}: {' '.join(text.split())}"):
            host.path(name).parent.mkdir(parents=True, exist_ok=True)
            host.path(name).write_text(text)
    if plan.packages:
        environ = {**host.environ, **apt.ENVIRONMENT}
        with console.step("package lists of the distribution (apt-get update)"):
            updated = shell.run(apt.UPDATE, timeout_s=INSTALL_TIMEOUT_S, env=environ, failure=None)
        with console.step(f"packages of the distribution: {' '.join(plan.packages)}"):
            done = shell.run(apt.install(*plan.packages), timeout_s=INSTALL_TIMEOUT_S, env=environ, failure=None)
            if done.returncode != 0:
                # apt-get update exits 0 where it could not fetch a list, and says so only on stderr.
                said = f"{_tail(updated.stderr)}\n{_tail(done.stderr)}".strip()
                raise PrerequisiteError(f"{shlex.join(done.args)} exited {done.returncode}:\n{said}",
                                        fix="is the mirror reachable? where Docker's own packages (docker-ce) are installed, take its plugins too")
    if plan.start:
        with console.step("Docker daemon: systemctl start docker" if host.systemd else f"Docker daemon: dockerd in the background, its log in {LOG}"):
            _start(host, start_timeout_s)


def _start(host: Host, timeout_s: float) -> None:
    """Start the daemon and return when it answers. Raises PrerequisiteError with the end of its log when it ends, or not in time."""
    pid = 0
    if host.systemd:
        shell.run(["systemctl", "start", "docker"], timeout_s=timeout_s + 60, env=dict(host.environ), failure=PrerequisiteError,
                  fix="journalctl --unit docker --lines 50")
    elif not _starting_already(host):
        pid = _spawn(host)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return host.ping()
        except OSError as error:
            ended = pid > 0 and not _alive(pid)
            if ended or time.monotonic() > deadline:
                said = "dockerd ended" if ended else f"the Docker daemon does not answer after {timeout_s:g} s ({error.strerror or error})"
                raise PrerequisiteError(f"{said}. The end of {LOG}:\n{_said(host.read(LOG))}",
                                        fix="the last lines say why; inside a container Docker needs one started with --privileged") from error
        time.sleep(0.1)


def _spawn(host: Host) -> int:
    """Start dockerd in a session of its own, so that it outlasts this terminal; its process id."""
    dockerd = _dockerd(host)
    if dockerd is None:
        raise PrerequisiteError("the package has no dockerd", fix="`apt-get install --reinstall docker.io`")
    log = host.path(LOG)
    log.parent.mkdir(parents=True, exist_ok=True)
    # It calls iptables and containerd, which a user's PATH may lack.
    environ = {**host.environ, "PATH": f"{host.environ.get('PATH', '')}:{_SYSTEM_PATH}"}
    done = shell.run(["sh", "-c", 'cd /; setsid "$0" >>"$1" 2>&1 </dev/null & echo $!', str(dockerd), str(log)], timeout_s=10, env=environ)
    return int(done.stdout)


def _dockerd(host: Host) -> Path | None:
    return next(iter(host.programs("dockerd", *(_SYSTEM_PATH.split(":") if host.root == Path("/") else ()))), None)


def _starting_already(host: Host) -> bool:
    """Whether a dockerd is on its way: the package's own start script may have been quicker."""
    pid = host.read(PID_FILE).strip()
    return pid.isdigit() and host.read(f"/proc/{pid}/comm").strip() == "dockerd"


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _verify(docker: Docker) -> None:
    if not docker.missing:
        return
    first = docker.clients[0] if docker.clients else "docker"
    raise PrerequisiteError(f"{_lacks(docker)}, though the packages are installed",
                            fix=f"the `docker` that is used is {first}; {_hidden(docker.clients)}`{first} info` shows which plugins it finds")


def _hidden(clients: Sequence[Path]) -> str:
    return f"it hides {', '.join(map(str, clients[1:]))}: move it out of the way; " if len(clients) > 1 else ""


def _lacks(docker: Docker) -> str:
    names = {"docker": "the docker command", "compose": "Docker Compose 2.20 or newer", "buildx": "buildx", "daemon": "a running Docker daemon"}
    return f"this host lacks {', '.join(names[part] for part in docker.missing)}"


def _said(log: str) -> str:
    """The end of the daemon's log without its running commentary."""
    lines = [line for line in log.splitlines() if "level=info" not in line and "level=debug" not in line]
    return _tail("\n".join(lines)) or _tail(log)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])
