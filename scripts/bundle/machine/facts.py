"""What is read of this machine. All of it goes through one seam, Host: a folder to look in, an environment, a user id."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from bundle.machine import apt

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
MIN_ENGINE = (20, 10)
MIN_COMPOSE = (2, 20)  # `up --wait`, `extends` and `create_host_path` as compose.yaml uses them

_INFO = ("info", "--format", "{{json .}}")


def version(text: str) -> tuple[int, int]:
    """`v2.26.1-4` → (2, 26); (0, 0) where there is no version in it."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True, kw_only=True)
class Docker:
    """Docker as this machine's `docker` command and the daemon's socket show it."""

    address: str
    clients: tuple[Path, ...]
    """Every `docker` on PATH, the one that is used first; two names of one file count once."""
    client_version: str
    plugins: Mapping[str, str]
    """Version of each plugin of the client that is used."""
    server: Mapping[str, Any]
    """What `docker info` says; empty while the daemon does not answer."""
    error: str
    """Why the daemon does not answer; empty when it does."""
    denied: bool
    """There is a daemon, and this user may not talk to it."""
    shim: str = ""
    """What a `docker` that is not Docker's own calls itself."""

    @property
    def elsewhere(self) -> bool:
        """Whether the operator has pointed the client at another daemon than this machine's own."""
        return self.address != DEFAULT_ADDRESS

    @property
    def remote(self) -> bool:
        """Whether the daemon sees another file system, memory and ports than this process does."""
        return not self.address.startswith("unix://") or self.server.get("OperatingSystem") == "Docker Desktop"

    @property
    def rootless(self) -> bool:
        return "name=rootless" in (self.server.get("SecurityOptions") or [])

    @property
    def missing(self) -> tuple[str, ...]:
        """What of docker, compose, buildx and daemon is not there, or (compose) too old."""
        there = {"docker": bool(self.client_version), "compose": version(self.plugins.get("compose", "")) >= MIN_COMPOSE,
                 "buildx": "buildx" in self.plugins, "daemon": not self.error}
        return tuple(name for name, is_there in there.items() if not is_there)


@dataclass(frozen=True, kw_only=True)
class Host:
    """This machine, or in a test a folder that looks like one."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    uid: int = field(default_factory=os.geteuid)
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    patience_s: float = 20

    def path(self, name: str | Path) -> Path:
        """Where the absolute path `name` of this machine is found."""
        return self.root / str(name).lstrip("/")

    def read(self, name: str) -> str:
        """The text of a file, empty when it is not there or may not be read."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return ""

    def run(self, *argv: str) -> CompletedProcess[str]:
        """Run a program that only reads. Never raises: 127 when there is no such program, 124 when it does not end."""
        try:
            return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=self.patience_s, env=self.environ)
        except subprocess.TimeoutExpired:
            return CompletedProcess(argv, 124, "", f"{argv[0]}: no answer after {self.patience_s:g} s")
        except OSError as error:
            return CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")

    def programs(self, name: str, *more_folders: str) -> tuple[Path, ...]:
        """Every program `name` on PATH, then in `more_folders`, in that order; two names of one file count once."""
        found: dict[Path, Path] = {}
        for folder in (*self.environ.get("PATH", "").split(":"), *more_folders):
            path = Path(folder, name)
            if folder and path.is_file() and os.access(path, os.X_OK):
                found.setdefault(path.resolve(), path)
        return tuple(found.values())

    @property
    def distribution(self) -> tuple[str, int]:
        """Such as ("debian", 12); the number is 0 where the distribution names none."""
        fields = apt.os_release(self.read("/etc/os-release"))
        return fields.get("ID", ""), version(fields.get("VERSION_ID", "") + ".0")[0]

    @property
    def wsl(self) -> bool:
        """Whether it is Linux inside Windows."""
        return "microsoft" in self.read("/proc/sys/kernel/osrelease").lower()

    @property
    def systemd(self) -> bool:
        return self.path("/run/systemd/system").is_dir()

    def memory(self, field_name: str) -> int:
        """A line of /proc/meminfo in bytes, 0 when it is not there."""
        match = re.search(rf"^{field_name}:\s+(\d+) kB", self.read("/proc/meminfo"), re.MULTILINE)
        return int(match[1]) * 1024 if match else 0

    @property
    def docker_address(self) -> str:
        """Where the `docker` command looks for the daemon: DOCKER_HOST, else the context in use, else the default socket."""
        if address := self.environ.get("DOCKER_HOST"):
            return address
        folder = Path(self.environ.get("DOCKER_CONFIG") or Path(self.environ.get("HOME", "/"), ".docker"))
        context = self.environ.get("DOCKER_CONTEXT") or _json(folder / "config.json").get("currentContext") or "default"
        if context == "default":
            return DEFAULT_ADDRESS
        meta = _json(folder / "contexts/meta" / hashlib.sha256(context.encode()).hexdigest() / "meta.json")
        return str(meta.get("Endpoints", {}).get("docker", {}).get("Host") or f"context {context}")

    def ping(self) -> None:
        """Return when a daemon answers; raise OSError (PermissionError, ConnectionRefusedError, …) when none does."""
        address = self.docker_address
        if not address.startswith("unix://"):
            done = self.run("docker", "version", "--format", "{{.Server.Version}}")
            if done.returncode != 0:
                raise ConnectionError(_last_line(done.stderr))
            return
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self.patience_s)
            connection.connect(str(self.path(address.removeprefix("unix://"))))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            status = connection.recv(64).split(b"\r\n")[0]
        if b" 200" not in status:
            raise ConnectionError(f"answers {status.decode(errors='replace') or 'nothing'}")

    def _client_version(self) -> str:
        """Docker 20.10's `docker info` does not say it: "Docker version 20.10.24+dfsg1, build 297e128"."""
        match = re.search(r"version ([^,\s]+)", self.run("docker", "--version").stdout)
        return match[1] if match else "unknown"

    def docker(self) -> Docker:
        """Ask the daemon's socket and the `docker` command; never raises. 40 to 100 ms."""
        error, denied = "", False
        try:
            self.ping()
        except OSError as refused:
            error, denied = refused.strerror or str(refused), isinstance(refused, PermissionError)
        info: dict[str, Any] = {}
        clients = self.programs("docker")
        if clients:
            done = self.run("docker", *_INFO)
            info = _object(done.stdout)
            if "ClientInfo" not in info:  # the context in use is not there, or this is Podman's `docker`, which has none at all
                info = {"ClientInfo": _object(self.run("docker", "--context", "default", *_INFO).stdout).get("ClientInfo")}
            if not error and info["ClientInfo"] and not info.get("ServerVersion"):
                error = _last_line(done.stderr) or "`docker info` does not show it"
        client = info.get("ClientInfo") or {}
        number = client.get("Version") or (client and self._client_version())
        plugins = {plugin["Name"]: str(plugin.get("Version", "")) for plugin in client.get("Plugins") or [] if not plugin.get("Err")}
        shim = self.run("docker", "--version").stdout.strip() if clients and not client else ""
        return Docker(address=self.docker_address, clients=clients, client_version=str(number or ""), plugins=plugins,
                      server={} if error else info, error=error, denied=denied, shim=shim)


def _json(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_text())
    except OSError:
        return {}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
