"""The real gateway container in a network of the test's own, in front of a fake engine."""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle import ROOT

IMAGE = os.environ.get("IMAGE_GATEWAY", "vllm-bundle/gateway:3.0")
CONFIG = "/usr/local/etc/haproxy/haproxy.cfg"
KEY = "sk-canary-4f1d0c"
# As compose.yaml runs it; tests/contract/test_compose.py holds compose.yaml to that.
HARDENED = ("--user", "2001:2001", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "64",
            "--memory", "1g", "--tmpfs", "/run/haproxy:uid=2001,gid=2001,mode=0700,size=1m")


def docker(*arguments: str, check: bool = True) -> str:
    """Run docker; both output streams, as text."""
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}"
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The `code` of an OpenAI-style error; asserts that the whole body is one."""
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return str(error["code"])


@dataclass(frozen=True, kw_only=True)
class Door:
    """One running gateway container and its published port."""

    name: str
    port: int

    def send(self, data: bytes, *, timeout_s: float = 20) -> socket.socket:
        """A connection on which `data` is sent, for answers that are read piece by piece."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
        connection.sendall(data)
        return connection

    def exchange(self, data: bytes, *, timeout_s: float = 20) -> bytes:
        """Everything that comes back to `data` until the gateway closes or is silent for long. Empty when it refused to talk."""
        answer = b""
        with self.send(data, timeout_s=timeout_s) as connection:
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except (ConnectionResetError, TimeoutError):
                pass
        return answer

    def ask(self, method: str, target: str, *, headers: Mapping[str, str] | None = None, key: str | None = None, json_body: Any = None,
            timeout_s: float = 20) -> Reply:
        """One request with `target` exactly as given, on a connection of its own."""
        return parse(self.exchange(request(method, target, headers=headers, key=key, json_body=json_body), timeout_s=timeout_s))

    @property
    def log(self) -> str:
        return docker("logs", self.name)

    def records(self) -> list[dict[str, Any]]:
        """The access log: every line of stdout is a JSON object."""
        out = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=True, timeout=60).stdout
        return [json.loads(line) for line in out.splitlines()]


def request(method: str, target: str, *, headers: Mapping[str, str] | None = None, key: str | None = None, json_body: Any = None) -> bytes:
    """The bytes of a request that asks for the connection to be closed after it."""
    body = b"" if json_body is None else json.dumps(json_body).encode()
    lines = {"Host": "gateway.test", "Connection": "close"}
    if json_body is not None or method == "POST":
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if key is not None:
        lines["Authorization"] = f"Bearer {key}"
    lines |= headers or {}
    return "".join([f"{method} {target} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in lines.items()), "\r\n"]).encode() + body


def parse(answer: bytes) -> Reply:
    """The first answer in `answer`; asserts that there is a whole one."""
    head, separator, rest = answer.partition(b"\r\n\r\n")
    assert separator, f"no HTTP answer: {answer!r}"
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[:int(size, 16)], rest[int(size, 16) + 2:]
    else:
        body = rest[:int(headers.get("content-length", len(rest)))]
    return Reply(status=int(status.split()[1]), headers=headers, body=body)


@dataclass(kw_only=True)
class Site:
    """A network, a fake engine named `engine` in it, and the gateways that a test opens. `close` removes all of it."""

    folder: Path
    name: str = field(default_factory=lambda: f"test-{os.getpid()}-gw-{secrets.token_hex(3)}")
    containers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        docker("network", "create", self.name)

    def close(self) -> None:
        for container in self.containers:
            docker("rm", "--force", "--volumes", container, check=False)
        docker("network", "rm", self.name)

    # --- the engine

    @property
    def upstream(self) -> str:
        return f"{self.name}-engine"

    def start_engine(self, *options: str, faults: Sequence[str] = (), service: str = "engine", model: str = "fake") -> None:
        """`service`: engine, of a replica engine-2 …, of another model engine-b …"""
        self.containers.append(f"{self.name}-{service}")
        docker("run", "--detach", "--init", "--name", self.containers[-1], "--network", self.name, "--network-alias", service, "--no-healthcheck",
               "--env", f"FAKE_MODEL={model}", "--volume", f"{ROOT / 'tests' / 'fake_openai.py'}:/fake_openai.py:ro", "--entrypoint", "python3",
               *options, IMAGE, "/fake_openai.py", "8000", *faults)

    def stop_engine(self) -> None:
        docker("rm", "--force", self.upstream)

    def events(self, service: str = "engine") -> list[dict[str, Any]]:
        """What the engine saw and did, in order."""
        return [json.loads(line) for line in docker("logs", f"{self.name}-{service}").splitlines() if line.startswith("{")]

    def seen(self, *, by_way_of: Door, key: str | None = None) -> dict[str, dict[str, Any]]:
        """The requests that reached the engine until now, by request id. One more is sent as a mark: Docker's log lags behind."""
        mark = secrets.token_hex(8)
        by_way_of.ask("GET", "/v1/models", headers={"X-Request-Id": mark}, key=key)
        end = time.monotonic() + 20
        while True:
            found = {event["headers"].get("x-request-id", ""): event for event in self.events() if event["event"] == "request"}
            if mark in found:
                return found
            assert time.monotonic() < end, "the mark did not arrive"

    # --- the gateway

    def open(self, *, keys: str | None = None, certificate: str | None = None, models: str | None = None, config: str | None = None,
             environment: Mapping[str, str] | None = None, wait: bool = True) -> Door:
        """Start a gateway: `keys`, `certificate` and `models` are the texts of its secret files, `config` replaces its configuration."""
        name = f"{self.name}-{len(self.containers)}"
        self.containers.append(name)
        settings = {"GATEWAY_AUTH": "" if keys is None else "on", "GATEWAY_TLS": "" if certificate is None else "on",
                    "GATEWAY_MODELS": "" if models is None else "on", **(environment or {})}
        files = {"/run/secrets/gateway_api_keys": keys, "/run/secrets/gateway_tls": certificate, "/run/secrets/gateway_models": models,
                 CONFIG: config}
        options = [option for key, value in settings.items() for option in ("--env", f"{key}={value}")]
        for number, (target, text) in enumerate(files.items()):
            if text is not None:
                source = self.folder / f"{name}-{number}"
                source.write_text(text)
                source.chmod(0o444)
                options += ["--volume", f"{source}:{target}:ro"]
        docker("run", "--detach", "--name", name, "--network", self.name, "--publish", "127.0.0.1:0:8005", *HARDENED, *options, IMAGE)
        if not wait:
            return Door(name=name, port=0)
        end = time.monotonic() + 30
        while "gateway ready" not in docker("exec", name, "python3", "-c", READY, check=False):
            assert time.monotonic() < end, docker("logs", name)
        return Door(name=name, port=int(docker("port", name, "8005/tcp").strip().rpartition(":")[2]))


# The gateway knows of its engine: asked over its admin socket, so that it does not show in the access log.
READY = """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/haproxy/admin.sock")
s.sendall(b"show servers state\\n")
print("gateway ready", *("=".join((row[3], row[5])) for row in map(str.split, s.makefile().read().splitlines()[2:]) if row))
"""


def operational(door: Door, service: str = "engine") -> bool:
    """Whether the gateway takes an engine to be up (HAProxy's operational state 2)."""
    return f"{service}=2" in docker("exec", door.name, "python3", "-c", READY).split()
