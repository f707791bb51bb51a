"""A folder that looks like a machine: /etc, /proc, a PATH of small shell scripts, and a daemon's socket. Nothing in it is patched."""

import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bundle.machine.facts import Host

SOCKET = "/var/run/docker.sock"
PLUGINS = ({"Name": "compose", "Version": "2.26.1-4"}, {"Name": "buildx", "Version": "0.13.1"})
INFO: dict[str, Any] = {"ServerVersion": "20.10.24", "Driver": "overlay2", "DockerRootDir": "/var/lib/docker", "MemTotal": 24 * 2**30,
                        "Architecture": "x86_64", "MemoryLimit": True, "ClientInfo": {"Version": "20.10.24", "Plugins": list(PLUGINS)}}


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nOK")


class FakeHost:
    """Starts as an empty machine. `folder` needs a short path: a socket's may have no more than 107 characters."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.file("/proc/sys/kernel/osrelease", "6.1.0-amd64\n")
        self.file("/proc/meminfo", f"MemTotal: {24 * 2**20} kB\nMemAvailable: {16 * 2**20} kB\n")
        self.file("/proc/cpuinfo", "flags\t\t: fpu avx avx2\n")
        (folder / "bin").mkdir()

    def file(self, name: str, text: str) -> Path:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str, script: str, *, folder: str = "/bin") -> Path:
        """A program on this machine's PATH; each call of it is noted in `calls`."""
        interpreter = "" if script.startswith("#!") else f"#!/bin/sh\necho \"{name} $*\" >>{self.root}/calls\n"
        path = self.file(f"{folder}/{name}", interpreter + script)
        path.chmod(0o755)
        return path

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def docker(self, *, info: Mapping[str, Any] = INFO, images: bool = True, publishing: str = "", project: str = "", container: str = "web-1",
               address: str = "127.0.0.1") -> None:
        """A `docker` command: what `info` prints, whether images are there, and a container that publishes a port."""
        self.file("/info.json", json.dumps(info))
        bound = [{"HostIp": address, "HostPort": publishing}]
        self.file("/inspect.json", json.dumps([{"Name": f"/{container}", "NetworkSettings": {"Ports": {"8005/tcp": bound, "8404/tcp": None}},
                                                "Config": {"Labels": {"com.docker.compose.project": project} if project else None}}]))
        self.program("docker", f"""case "$*" in
          --version) echo 'Docker version 20.10.24+dfsg1, build 297e128' ;;
          info*) /bin/cat {self.root}/info.json ;;
          *publish={publishing or "none"}*|*project={project or "none"}*) echo 0123456789ab ;;
          inspect*) /bin/cat {self.root}/inspect.json ;;
          image*) exit {0 if images else 1} ;;
        esac\n""")

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """The daemon's socket, answering its ping."""
        path = self.root / SOCKET.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with socketserver.ThreadingUnixStreamServer(str(path), _Answer) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()

    def daemon_program(self, *, then: str = "") -> None:
        """A `dockerd` on PATH that opens the socket, or does `then` (Python) instead."""
        path = self.root / SOCKET.lstrip("/")
        self.program("dockerd", f"""#!{sys.executable}
import os, pathlib, socket
pathlib.Path("{self.root}/dockerd.pid").write_text(str(os.getpid()))
{then}
pathlib.Path("{path}").parent.mkdir(parents=True, exist_ok=True)
server = socket.socket(socket.AF_UNIX)
server.bind("{path}")
server.listen()
while True:
    connection, _ = server.accept()
    connection.recv(100)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nOK")
    connection.close()
""")

    def host(self, *, uid: int = 0, free_gb: float = 100, environ: Mapping[str, str] | None = None) -> Host:
        path = f"{self.root}/bin"
        return Host(root=self.root, uid=uid, patience_s=10, free_bytes=lambda _: int(free_gb * 1e9),
                    environ={"PATH": path, "HOME": str(self.root), "LANG": os.environ.get("LANG", "C"), **(environ or {})})
