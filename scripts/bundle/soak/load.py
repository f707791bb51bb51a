"""Clients that ask in every way that clients do, and what became of each request."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bundle.smoke.client import Server, ServerError

COMPLETIONS = "/v1/completions"
Ask = Callable[[random.Random], dict[str, Any]]
PAUSE_S = 0.2
WORDS = ("river", "seven", "under", "light", "carry", "stone", "never", "green", "apple", "write", "cloud", "north")
BAD: Sequence[dict[str, Any]] = ({"max_tokens": -1}, {"temperature": "hot"}, {"model": "no-such-model"}, {"n": 0}, {"prompt": None}, {"top_p": 7})
WEIGHTS = (4, 6, 2, 1, 1)
"""How often each of Clients.kinds."""
REPEATED = 16
"""An answer of so many tokens that are all the same is none, at temperature 1."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request. Times in seconds; `at` is when it ended, from the start of the load.

    outcome  right: answered as it had to be (a bad one is refused, a cancelled one had begun) · told to wait: 429 or 503 ·
             wrong: any other answer · failed: no whole answer
    """

    at: float
    kind: str
    outcome: str
    note: str = ""
    first_s: float | None = None
    """To the first token, of a stream."""
    token_s: float | None = None
    """Between its tokens, on average."""
    text: str = ""
    """Of the one question that is asked again and again."""


class WrongAnswerError(Exception):
    """What was wrong with an answer."""


class Clients:
    """The load on `server`; `requests` grows while it runs."""

    def __init__(self, server: Server) -> None:
        self._server, self._words = server, max(1, (server.context or 2048) // 16)
        self.began = time.monotonic()
        self.requests: list[Request] = []
        self._over = threading.Event()

    @contextmanager
    def asking(self, clients: int) -> Iterator[None]:
        """While the block runs, so many of them; it ends when each has its last answer."""
        with ThreadPoolExecutor(max_workers=clients) as pool:
            running = [pool.submit(self._client, random.Random(number)) for number in range(clients)]  # noqa: S311
            try:
                yield
            finally:
                self._over.set()
            for one in running:
                one.result()

    @property
    def kinds(self) -> Mapping[str, Ask]:
        """The ways to ask: each asks once, and gives what else is to be kept of it."""
        return {"whole": self._whole, "stream": self._stream, "cancelled": self._cancelled, "bad": self._bad, "same": self._same}

    def one(self, kind: str, ask: Ask, dice: random.Random) -> Request:
        """One request, and how it ended; it is kept in `requests`."""
        found: dict[str, Any] = {"outcome": "right"}
        try:
            found |= ask(dice)
        except WrongAnswerError as error:
            found |= {"outcome": "wrong", "note": str(error)}
        except ServerError as error:
            waits = str(error).startswith(("status 429", "status 503"))
            found |= {"outcome": "told to wait" if waits else "failed", "note": str(error)[:200]}
        self.requests.append(Request(at=time.monotonic() - self.began, kind=kind, **found))
        return self.requests[-1]

    def _client(self, dice: random.Random) -> None:
        while not self._over.is_set():
            ((kind, ask),) = dice.choices(list(self.kinds.items()), weights=WEIGHTS)
            if self.one(kind, ask, dice).outcome != "right":
                self._over.wait(PAUSE_S)

    def _question(self, dice: random.Random) -> dict[str, Any]:
        """Mixed lengths: most are short, some are long."""
        words = round(self._words ** dice.random())
        return {"prompt": " ".join(dice.choices(WORDS, k=words)), "max_tokens": round(128 ** dice.random()), "temperature": 1,
                "seed": dice.randrange(2**31), "ignore_eos": True}

    def _ask(self, **body: Any) -> Any:
        reply = self._server.post(COMPLETIONS, **body)
        if reply.status != 200:
            raise ServerError(str(reply))
        return reply.json()

    def _whole(self, dice: random.Random) -> dict[str, Any]:
        question = self._question(dice)
        answer = self._ask(**question, return_token_ids=True)
        _counted(answer, question)
        tokens = answer["choices"][0].get("token_ids") or []
        if len(tokens) >= REPEATED and len(set(tokens)) == 1:
            raise WrongAnswerError(f"{len(tokens)} times token {tokens[0]}")
        return {}

    def _stream(self, dice: random.Random) -> dict[str, Any]:
        question = self._question(dice)
        began, times, last = time.monotonic(), list[float](), ""
        answer: Any = {}
        for last in self._server.events(COMPLETIONS, **question, stream_options={"include_usage": True}):
            times.append(time.monotonic())
            answer = _json(last) or answer
        if last != "[DONE]":
            raise WrongAnswerError("a stream that ended without [DONE]")
        _counted(answer, question)
        return {"first_s": times[0] - began, "token_s": (times[-1] - times[0]) / max(1, question["max_tokens"] - 1)}

    def _cancelled(self, dice: random.Random) -> dict[str, Any]:
        events = self._server.events(COMPLETIONS, **self._question(dice) | {"max_tokens": 512})
        for _ in range(dice.randrange(1, 5)):
            next(events)
        events.close()  # type: ignore[attr-defined]  # a generator's: hangs up
        return {}

    def _bad(self, dice: random.Random) -> dict[str, Any]:
        reply = self._server.post(COMPLETIONS, **self._question(dice) | dice.choice(BAD))
        if not (400 <= reply.status < 500 and reply.message):
            raise WrongAnswerError(f"a bad request got {reply}")
        return {}

    def _same(self, _dice: random.Random) -> dict[str, Any]:
        question = {"prompt": "one two three", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        answer = self._ask(**question)
        _counted(answer, question)
        return {"text": answer["choices"][0]["text"]}


def _json(event: str) -> Any:
    return None if event == "[DONE]" else json.loads(event)


def _counted(answer: Any, question: Mapping[str, Any]) -> None:
    written = (answer.get("usage") or {}).get("completion_tokens")
    if written != question["max_tokens"]:
        raise WrongAnswerError(f"{written} tokens instead of {question['max_tokens']}")
