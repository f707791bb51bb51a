"""Clients that keep asking while something goes wrong, and what became of each of their requests.

right           the whole answer: as many tokens as were asked for, and for a stream its [DONE]
wrong           an answer that ended as if it were whole, and is not
failed in form  an error in the API's form, or a connection that broke: whoever asked knows that it failed
lost            neither, within the time that a client waits
"""

import http.client
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

WAIT_S = 180


@dataclass(kw_only=True)
class Tally:
    """What became of the requests so far; `notes` counts how they failed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    right_at: list[float] = field(default_factory=list)
    """When an answer was complete (monotonic)."""

    @property
    def sent(self) -> int:
        return sum(self.outcomes.values())


def ask(url: str, tally: Tally, *, key: str = "", stream: bool = False, tokens: int = 16, wait_s: float = WAIT_S, session: str = "") -> str:
    """One completion through the gateway at `url`; its outcome, which is noted too. Requests of one `session`, and all that have none, are answered
    by one engine while it serves."""
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=wait_s)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}) \
        | ({"X-Session-Id": session} if session else {})
    body = {"model": "selftest", "prompt": "1", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    status = 0
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        status = reply.status
        data = reply.read()
        if status == 200 and stream and not data.rstrip().endswith(b"data: [DONE]"):
            outcome, note = "wrong", "a stream that ended clean without [DONE]"
        elif status == 200 and any(in_form(line[6:]) for line in data.split(b"\n") if line.startswith(b'data: {"error"')):
            outcome, note = "failed in form", "an error in the stream"
        elif status == 200:
            outcome, note = ("right", "") if _tokens(data, stream) == tokens else ("wrong", "fewer tokens than asked for")
        else:
            outcome, note = ("failed in form", f"HTTP {status}") if in_form(data) else ("wrong", f"HTTP {status} out of form: {data[:80]!r}")
    except TimeoutError:
        outcome, note = "lost", f"nothing in {wait_s:.0f} s"
    except (OSError, http.client.HTTPException) as error:
        outcome, note = "failed in form", f"{type(error).__name__} after {'the first byte' if status else 'no byte'}"
    finally:
        connection.close()
    tally.outcomes[outcome] += 1
    tally.statuses[status] += 1
    if note:
        tally.notes[note] += 1
    if outcome == "right":
        tally.right_at.append(time.monotonic())
    return outcome


def in_form(data: bytes) -> bool:
    """Whether that is an error as OpenAI's API gives it, and nothing else."""
    try:
        error = json.loads(data)["error"]
        return bool(error["message"]) and {"message", "type", "code"} <= set(error)
    except (ValueError, KeyError, TypeError):
        return False


def _tokens(data: bytes, stream: bool) -> int:
    try:
        answers: list[Any] = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")] if stream else [json.loads(data)]
        return max(int((answer.get("usage") or {}).get("completion_tokens", 0)) for answer in answers)
    except (ValueError, TypeError, AttributeError):
        return -1


@contextmanager
def keep_asking(url: str, clients: int, *, key: str = "", tokens: int = 16, rest_s: float = 0, pause_s: float = 0.05,
                spread: bool = False) -> Iterator[Tally]:
    """While the block runs, so many clients ask, every other one for streams, and again `rest_s` after an answer; `spread`: each request of a session
    of its own. The tally is whole once the block has ended."""
    tally, over = Tally(), threading.Event()

    def client(number: int) -> None:
        while not over.is_set():
            outcome = ask(url, tally, key=key, stream=number % 2 == 0, tokens=tokens, session=secrets.token_hex(8) if spread else "")
            over.wait(rest_s if outcome == "right" else pause_s)

    with ThreadPoolExecutor(max_workers=clients) as pool:
        asking = [pool.submit(client, number) for number in range(clients)]
        try:
            yield tally
        finally:
            over.set()
        for one in asking:
            one.result()
