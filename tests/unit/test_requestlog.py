"""One request's lines: what the engine writes about it, and what `make logs REQUEST=` finds of it."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import requestlog as middleware
from bundle.base.errors import ConfigurationError
from bundle.observe import requestlog
from bundle.service import lifecycle
from bundle.service.deployment import Container
from support.fakedeployment import FakeDeployment, World

ID = "3f2c9a1e-77"


# --- the engine's line

def answered(headers: Sequence[tuple[bytes, bytes]], capfd: pytest.CaptureFixture[str], *, method: str = "POST", fails: bool = False) -> list[Any]:
    """The lines of a request whose answer comes in two pieces, or breaks after the first."""
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"data", "more_body": True})
        if fails:
            raise RuntimeError("the client is gone")
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope = {"type": "http", "method": method, "path": "/v1/completions", "query_string": b"key=sk-canary", "headers": headers}
    try:
        asyncio.run(middleware.RequestLog(app)(scope, send, send))  # type: ignore[arg-type]
    except RuntimeError:
        assert fails
    assert len(sent) == (2 if fails else 3), "the answer is passed on as it is"
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_a_request_leaves_one_line_with_its_id(capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = answered([(b"authorization", b"Bearer sk-canary"), (b"x-request-id", ID.encode())], capfd)
    assert (line["id"], line["path"], line["status"], line["end"]) == (ID, "/v1/completions", 200, "whole")
    assert 0 <= line["first_ms"] <= line["total_ms"]
    assert "canary" not in json.dumps(line)


def test_an_answer_that_breaks_off_is_called_broken(capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = answered([(b"x-request-id", ID.encode())], capfd, fails=True)
    assert line["end"] == "broken"


@pytest.mark.parametrize("value", [b"two words", b"x" * 129, b'"}', b"\xff", b""])
def test_an_id_that_the_gateway_would_not_give_is_not_written(value: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    assert answered([(b"x-request-id", value)], capfd)[0]["id"] == ""


def test_what_only_asks_leaves_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert answered([], capfd, method="GET") == []


# --- finding it

LOGS = {
    "engine": ["2026-11-26T12:00:01.5Z (EngineCore pid=7) Aborted request cmpl-3f2c9a1e-77-0-8a",
               "2026-11-26T12:00:01.0Z cmpl-X3f2c9a1e-77 of another",
               f'2026-11-26T12:00:02.0Z {{"id": "{ID}", "status": 200}}', f'2026-11-26T12:00:02.0Z {{"id": "{ID}8", "status": 500}}'],
    "gateway": [f'2026-11-26T12:00:02.0Z {{"id": "{ID}", "key": "alice"}}', f'2026-11-26T12:00:03.0Z {{"id": "other", "path": "/{ID}"}}'],
}


@dataclass(frozen=True, kw_only=True)
class Logged(FakeDeployment):
    def lines(self, container: Container) -> Iterator[str]:
        return iter(LOGS[container.service])


@pytest.fixture
def deployment(tmp_path: Path) -> Logged:
    world = World(tmp_path)
    lifecycle.apply(world.deployment(), world.env())
    return Logged(project="fake", state=tmp_path, clock=world.deployment().clock, world=world)


def test_a_request_is_found_in_every_service_in_order_and_nothing_of_another(deployment: Logged) -> None:
    first, second, third = requestlog.find(deployment, ID)
    assert (first["service"], first["line"][-28:]) == ("engine", "request cmpl-3f2c9a1e-77-0-8a"[-28:])
    assert (second["service"], second["status"]) == ("engine", 200)
    assert (third["service"], third["key"]) == ("gateway", "alice")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "$(id)", "ä"])
def test_what_is_no_id_is_refused_before_anything_is_read(given: str, deployment: Logged) -> None:
    with pytest.raises(ConfigurationError, match="is no request id"):
        requestlog.find(deployment, given)
