"""Clients that stream all the time, and count what became of every request."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests

TOKENS = 24
PAUSE_S = 0.2


@dataclass(kw_only=True)
class Load:
    """What became of the requests so far: right, refused (503, in form, with Retry-After), lost (no or half an answer), or any other status."""

    seen: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        return self.seen.total()


@contextmanager
def streaming(url: str, model: str, *, clients: int = 16, pause_s: float = 0) -> Iterator[Load]:
    """`clients` of them ask the gateway at `url` while the block runs, with `pause_s` after each answer; it returns when the last has its own."""
    load, lock, over = Load(), threading.Lock(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            outcome = _one(url, model)
            with lock:
                load.seen[outcome] += 1
            over.wait(pause_s if outcome == "right" else PAUSE_S)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _one(url: str, model: str) -> str:
    question = {"model": model, "prompt": "Hello", "max_tokens": TOKENS, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}
    try:
        with requests.post(f"{url}/v1/completions", json=question, stream=True, timeout=120) as reply:
            if reply.status_code == 503 and "Retry-After" in reply.headers and set(reply.json()["error"]) == {"message", "type", "param", "code"}:
                return "refused"
            if reply.status_code != 200:
                return f"{reply.status_code}: {reply.text[:200]}"
            events = [line.removeprefix(b"data: ") for line in reply.iter_lines() if line]
            if events[-1:] != [b"[DONE]"]:
                return "lost: no whole stream"
            tokens = json.loads(events[-2])["usage"]["completion_tokens"]
            return "right" if tokens == TOKENS else f"{tokens} tokens"
    except (requests.RequestException, ValueError, LookupError) as error:
        return f"lost: {type(error).__name__}"
