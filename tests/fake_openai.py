"""A small OpenAI-compatible server that can be broken in named ways. Standard library only: it also runs in a bare container.

usage: python3 fake_openai.py PORT [FAULT]...

It writes the same words to the same prompt, counts what it does in vLLM's metrics, and prints one JSON line per request that
reaches it. A request body may hold {"fake": {"silence_s": 1, "pause_s": 0.5, "status": 503, "raw": [500, "text/plain", "oops"]}}: seconds
before the answer, seconds before each piece of a stream, an error to answer with, and a whole answer. Faults are the names in FAULTS.
"""

import hashlib
import json
import os
import posixpath
import select
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

MODEL = os.environ.get("FAKE_MODEL", "fake")
CONTEXT = 1024
BLOCK = 16
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima")

FAULTS = {
    "unhealthy": "answers 503 to /health, and serves all the same",
    "no-models": "lists no model",
    "no-metrics": "has no /metrics, as other servers than vLLM",
    "frozen-metrics": "its counters stand still",
    "empty-text": "answers without text",
    "zero-tokens": "writes token 0 only, as an engine whose numbers overflowed",
    "one-token": "writes the same token to every prompt",
    "ignores-max-tokens": "writes twice as much as asked",
    "ignores-stop": "writes past a stop string",
    "keeps-stop": "leaves the stop string in the answer",
    "wrong-finish": "says finish_reason null at the end",
    "random-text": "writes something else each time",
    "nan-logprobs": "gives NaN as logprob",
    "positive-logprobs": "gives a logprob above 0",
    "no-role": "starts a stream without the role",
    "no-done": "ends a stream without [DONE]",
    "no-stream-usage": "ignores stream_options",
    "usage-too-early": "sends the usage before the last word",
    "plain-stream": "answers a stream request with one JSON object",
    "wrong-usage": "counts no completion tokens",
    "one-at-a-time": "answers 503 to whoever comes while it works",
    "crossed-answers": "gives concurrent requests one id",
    "no-prefix-cache": "counts no prefix-cache hits",
    "prefix-cache-off": "says that prefix caching is switched off",
    "takes-too-long-prompts": "answers a prompt longer than its context",
    "silent-too-long": "refuses a too long prompt without a message",
    "serves-any-model": "answers for a model that it does not have",
    "crashes-on-bad-json": "answers 500 to malformed JSON",
    "open-routes": "serves what the gateway must refuse",
    "open-path-tricks": "normalizes paths before it looks at them",
    "no-key-needed": "answers without a key although it was given one",
    "any-key": "takes any key",
    "slow": "is silent for a minute",
    "trickles": "sends its answer one byte at a time",
    "html": "answers every request with a web page",
}

LISTED = {"/v1/completions", "/v1/chat/completions"}


class FakeOpenAI(ThreadingHTTPServer):
    """The server; `faults` may be changed while it runs. `key` is the bearer key it asks for ("" asks for none).

    `is_watch`: it is the watch beside the engine, which tells at /ready of its health.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], faults: set[str] | None = None, *, key: str = "", quiet: bool = True,
                 is_watch: bool = False) -> None:
        self.faults = faults or set()
        if unknown := self.faults - FAULTS.keys():
            raise ValueError(f"no such fault: {unknown}")
        self.key, self.quiet, self.is_watch = key, quiet, is_watch
        self.lock = threading.Lock()
        self.counters = {"prompt_tokens": 0, "generation_tokens": 0, "request_success": 0, "prefix_cache_queries": 0, "prefix_cache_hits": 0}
        self.cached: set[str] = set()
        self.running = self.number = 0
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def say(self, **event: Any) -> None:
        if not self.quiet:
            with self.lock:
                print(json.dumps(event), flush=True)  # noqa: T201  (its record of what it did)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no event here."""


class Handler(BaseHTTPRequestHandler):
    """One connection. `fault(name)` asks whether the server is broken in that way."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeOpenAI

    def fault(self, name: str) -> bool:
        return name in self.server.faults

    def log_message(self, *_: object) -> None:
        """Requests are told by `say`."""

    def do_GET(self) -> None:
        if self.admitted(b""):
            self.get()

    def do_POST(self) -> None:
        body = self.chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.admitted(body):
            self.post(body)

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_POST  # noqa: N815

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def admitted(self, body: bytes) -> bool:
        """Tell the request; False when it was refused here."""
        self.path = self.requestline.split()[1]  # as it was sent: http.server tidies a leading //
        if self.path != "/health":
            self.server.say(event="request", line=self.requestline, headers={k.lower(): v for k, v in self.headers.items()}, body_bytes=len(body))
        if self.fault("html"):
            self.reply(200, "<html>It works!</html>", kind="text/html")
            return False
        if self.fault("slow"):
            time.sleep(60)
        wanted = self.server.key
        sent = self.headers.get("Authorization", "")
        known = sent == f"Bearer {wanted}" or self.fault("no-key-needed") or (self.fault("any-key") and sent.startswith("Bearer "))
        if wanted and not known and self.path != "/health":
            self.error(401, "No valid API key.")
            return False
        return True

    # --- answers

    def reply(self, status: int, text: str, *, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.headers.get("Origin"):
            self.send_header("Access-Control-Allow-Origin", "*")  # as vLLM's default is
        self.end_headers()
        if self.fault("trickles"):
            for byte in data:
                time.sleep(0.05)
                self.wfile.write(bytes([byte]))
            return
        self.wfile.write(data)

    def error(self, status: int, message: str) -> None:
        self.reply(status, json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}))

    def get(self) -> None:
        if self.path == "/v1/models":
            models = [] if self.fault("no-models") else [{"id": MODEL, "object": "model", "max_model_len": CONTEXT}]
            self.reply(200, json.dumps({"object": "list", "data": models}))
        elif self.path == ("/ready" if self.server.is_watch else "/health"):
            self.reply(503 if self.fault("unhealthy") else 200, "")
        elif self.path == "/version":
            self.reply(200, json.dumps({"version": "0.0.0"}))
        elif self.path == "/metrics" and not self.fault("no-metrics"):
            self.reply(200, self.metrics(), kind="text/plain; version=0.0.4")
        elif self.fault("open-routes") or (self.fault("open-path-tricks") and posixpath.normpath(unquote(self.path)) in ("/v1/models", "/docs")):
            self.reply(200, "{}")
        else:
            self.error(404, "Not Found")

    def metrics(self) -> str:
        lines = [f"# TYPE vllm:{name} counter\nvllm:{name}_total{{model_name=\"{MODEL}\"}} {value}.0" for name, value in self.server.counters.items()]
        caching = not self.fault("prefix-cache-off")
        lines.append(f'# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{block_size="{BLOCK}",enable_prefix_caching="{caching}"}} 1.0')
        return "\n".join(lines) + "\n"

    def count(self, **by: int) -> None:
        if self.fault("frozen-metrics"):
            return
        with self.server.lock:
            for name, amount in by.items():
                self.server.counters[name] += amount

    # --- completions

    def post(self, raw: bytes) -> None:
        path = self.path.split("?")[0]
        if b'"raw"' in raw:
            status, kind, text = json.loads(raw)["fake"]["raw"]
            self.reply(status, text, kind=kind)
            return
        if path not in LISTED:
            self.reply(200, "{}") if self.fault("open-routes") else self.error(404, "Not Found")
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self.error(500 if self.fault("crashes-on-bad-json") else 400, "JSON decode error")
            return
        with self.server.lock:
            self.server.running += 1
            self.server.number += 1
            busy, number = self.server.running > 1, self.server.number
        if self.fault("one-at-a-time"):
            time.sleep(0.1)  # long enough that requests sent at once do meet, on a slow machine too
        with self.server.lock:
            self.server.running -= 1  # before it answers: who has the answer may ask the next
        if busy and self.fault("one-at-a-time"):
            self.error(503, "busy")
        else:
            self.generate(path, body, "one" if self.fault("crossed-answers") else str(number))

    def generate(self, path: str, body: dict[str, Any], number: str) -> None:
        if body.get("model") != MODEL and not self.fault("serves-any-model"):
            self.error(404, f"The model `{body.get('model')}` does not exist.")
            return
        chat = path.endswith("chat/completions")
        prompt = "".join(str(m["content"]) for m in body["messages"]) if chat else body["prompt"]
        asked = prompt.split()
        if len(asked) + body.get("max_tokens", 16) > CONTEXT and not self.fault("takes-too-long-prompts"):
            self.error(400, "" if self.fault("silent-too-long") else f"maximum context length is {CONTEXT} tokens")
            return
        if self.hung_up(body.get("fake", {}).get("silence_s", 0)):
            self.server.say(event="hangup", id=number)
            return
        if status := body.get("fake", {}).get("status"):
            self.error(status, "as asked")
            return
        hits = self.hits(asked)
        words, finish = self.write(prompt, body)
        self.count(prompt_tokens=len(asked), generation_tokens=len(words), request_success=1, prefix_cache_queries=len(asked), prefix_cache_hits=hits)
        usage = {"prompt_tokens": len(asked), "completion_tokens": 0 if self.fault("wrong-usage") else len(words),
                 "total_tokens": len(asked) + len(words)}
        if body.get("stream") and not self.fault("plain-stream"):
            self.stream(chat, body, number, words, finish, usage)
            return
        text = "".join(words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": self.logprobs(words, chat) if body.get("logprobs") else None}
        if body.get("return_token_ids"):
            choice["token_ids"] = [self.token(word) for word in words]
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        self.reply(200, json.dumps({"id": f"cmpl-{number}", "object": "chat.completion" if chat else "text_completion", "model": MODEL,
                                    "choices": [choice], "usage": usage}))

    def write(self, prompt: str, body: dict[str, Any]) -> tuple[list[str], str | None]:
        """The answer's words and its finish_reason."""
        amount = body.get("max_tokens", 16) * (2 if self.fault("ignores-max-tokens") else 1)
        salt = os.urandom(4).hex() if self.fault("random-text") else ""
        words = [" " + WORDS[hashlib.sha256(f"{salt}{prompt}{i}".encode()).digest()[0] % len(WORDS)] for i in range(amount)]
        if self.fault("empty-text"):
            words = []
        if self.fault("zero-tokens"):
            words = ["!"] * amount
        if self.fault("one-token"):
            words = [" same"] * amount
        finish: str | None = "length"
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        text = "".join(words)
        for stop in stops:
            if stop in text and not self.fault("ignores-stop"):
                words, finish = [text[:text.index(stop) + (len(stop) if self.fault("keeps-stop") else 0)]], "stop"
        return words, None if self.fault("wrong-finish") else finish

    def hits(self, asked: list[str]) -> int:
        """Words of the prompt that an earlier prompt began with, in whole blocks."""
        found = 0
        for end in range(BLOCK, len(asked) + 1, BLOCK):
            block = hashlib.sha256(" ".join(asked[:end]).encode()).hexdigest()
            with self.server.lock:
                found = end if block in self.server.cached else found
                self.server.cached.add(block)
        return 0 if self.fault("no-prefix-cache") or self.fault("prefix-cache-off") else found

    @staticmethod
    def token(word: str) -> int:
        return 0 if word == "!" else 1 + hash(word) % 1000

    def logprobs(self, words: list[str], chat: bool) -> dict[str, Any]:
        value = float("nan") if self.fault("nan-logprobs") else 0.5 if self.fault("positive-logprobs") else -0.5
        if chat:
            return {"content": [{"token": w, "logprob": value, "top_logprobs": [{"token": w, "logprob": value}]} for w in words]}
        return {"tokens": words, "token_logprobs": [value] * len(words), "top_logprobs": [{w: value} for w in words]}

    def stream(self, chat: bool, body: dict[str, Any], number: str, words: list[str], finish: str | None, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = {"id": f"cmpl-{number}", "object": "chat.completion.chunk" if chat else "text_completion", "model": MODEL}
        events: list[dict[str, Any]] = []
        if chat and not self.fault("no-role"):
            events.append(head | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for place, word in enumerate(words):
            piece: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
            events.append(head | {"choices": [{"index": 0, **piece, "finish_reason": finish if place == len(words) - 1 else None}]})
        if (body.get("stream_options") or {}).get("include_usage") and not self.fault("no-stream-usage"):
            events.insert(-1 if self.fault("usage-too-early") else len(events), head | {"choices": [], "usage": usage})
        lines = [json.dumps(event) for event in events] + ([] if self.fault("no-done") else ["[DONE]"])
        for line in lines:
            if self.hung_up(body.get("fake", {}).get("pause_s", 0)):
                self.server.say(event="hangup", id=number)
                return
            self.chunk(f"data: {line}\n\n".encode())
        self.chunk(b"")
        self.server.say(event="streamed", id=number)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def hung_up(self, within_s: float) -> bool:
        """Wait so long; True as soon as the client has closed its connection."""
        if not within_s:
            return False
        readable, _, _ = select.select([self.connection], [], [], within_s)
        try:
            gone = bool(readable) and not self.connection.recv(1)
        except ConnectionResetError:
            gone = True
        self.close_connection = self.close_connection or gone
        return gone


if __name__ == "__main__":
    port, broken = int(sys.argv[1]), set(sys.argv[2:])
    # As the watch beside the real engine answers on the next port: is it in health?
    threading.Thread(target=FakeOpenAI(("0.0.0.0", port + 1), broken, is_watch=True).serve_forever, daemon=True).start()
    FakeOpenAI(("0.0.0.0", port), broken, quiet=False).serve_forever()
