"""One JSON line for each request that an engine answers, with the id that the gateway gave it: ENGINE_MIDDLEWARE=requestlog.RequestLog.

vLLM's own --enable-log-requests writes the request's parameters, which hold what clients send (stop words, schemas). Here is nothing of that:

    {"time": "…Z", "id": "…", "path": "/v1/completions", "status": 200, "first_ms": 31.0, "total_ms": 812.4, "end": "whole"}

first_ms: until the first byte of the answer's body. end: whole, or broken (the client hung up, or the engine failed).
Runs inside vLLM's API server, as an ASGI middleware (https://asgi.readthedocs.io/en/latest/specs/www.html); standard library alone.
"""

import json
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
STDOUT = 1


class RequestLog:
    """Around vLLM's application."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started, first, status, whole = time.monotonic(), None, 0, False

        async def noted(message: Message) -> None:
            nonlocal first, status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                if first is None and message.get("body"):
                    first = time.monotonic()
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            named = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
            line = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "id": named.decode() if ID.fullmatch(named) else "",
                    "path": scope["path"][:256], "status": status, "first_ms": first and _ms(first - started),
                    "total_ms": _ms(time.monotonic() - started), "end": "whole" if whole else "broken"}
            # Not print: vLLM puts the process's name before each line of that.
            os.write(STDOUT, json.dumps(line).encode() + b"\n")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
