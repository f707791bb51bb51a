"""Which daemon is talked to, and what is said when it does not do as asked. The daemon here is a few lines of HTTP on a socket."""

import gc
import hashlib
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.machine import daemon


class _Api(socketserver.StreamRequestHandler):
    """Knows its version, and has no container."""

    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        there = path.endswith("/version")
        status, body = ("200 OK", '{"ApiVersion": "1.41"}') if there else ("404 Not Found", '{"message": "No such container: c1"}')
        self.wfile.write(f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with nothing of the caller's Docker in it; short, because a socket's path has a limit."""
    for key in [key for key in os.environ if key.startswith("DOCKER_")]:
        monkeypatch.delenv(key)
    with TemporaryDirectory(prefix="d") as short:
        monkeypatch.setenv("HOME", short)
        daemon.client.cache_clear()
        yield Path(short)
        if daemon.client.cache_info().currsize:
            daemon.client().close()
        daemon.client.cache_clear()


@pytest.fixture
def listening(folder: Path) -> Iterator[str]:
    with socketserver.ThreadingUnixStreamServer(f"{folder}/s", _Api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"unix://{folder}/s"
        daemon.client().close()
        server.shutdown()
        thread.join()


def context(folder: Path, name: str, host: str) -> None:
    meta = folder / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}))


def test_reading_follows_docker_context_as_the_docker_command_does(folder: Path, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context(folder, "mine", listening)
    context(folder, "other", "unix:///nonexistent/s")
    (folder / ".docker" / "config.json").write_text('{"currentContext": "other"}')
    monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    assert daemon.address() == listening
    assert daemon.client().version()["ApiVersion"] == "1.41"
    assert daemon.client_environment()["DOCKER_CONTEXT"] == "mine"


def test_docker_host_wins_over_docker_context_for_reading_and_for_writing(folder: Path, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context(folder, "other", "unix:///nonexistent/s")
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    monkeypatch.setenv("DOCKER_HOST", listening)
    assert daemon.address() == listening
    assert daemon.client().version()["ApiVersion"] == "1.41"
    environment = daemon.client_environment()
    assert (environment["DOCKER_HOST"], environment.get("DOCKER_CONTEXT")) == (listening, None)


def test_an_unknown_context_is_refused_and_not_replaced_by_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nosuch")
    with pytest.raises(PrerequisiteError, match="no such docker context nosuch"):
        daemon.client()


def test_an_empty_docker_host_is_none(folder: Path) -> None:
    assert "DOCKER_HOST" not in daemon.client_environment({"DOCKER_HOST": "", "DOCKER_CONTEXT": "x"})


def test_another_builder_of_the_callers_is_not_passed_on() -> None:
    assert "BUILDX_BUILDER" not in daemon.client_environment({"BUILDX_BUILDER": "elsewhere", "PATH": "/bin"})


def test_a_container_that_goes_while_one_looks_is_no_failure(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", listening)
    assert daemon.execute("c1", ["true"]) is None
    assert daemon.log("c1", tail=3) == ""


def test_a_daemon_that_refuses_is_not_told_as_one_that_does_not_answer(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", listening)
    with pytest.raises(PrerequisiteError) as raised, daemon.reachable():
        daemon.client().containers.get("c1")
    assert "refuses: No such container: c1" in raised.value.message
    assert "start it" not in raised.value.fix


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker-py does not close its socket then
def test_a_daemon_that_does_not_answer_is_told_as_such(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/none")
    with pytest.raises(PrerequisiteError, match="does not answer"):
        daemon.client()
    gc.collect()
