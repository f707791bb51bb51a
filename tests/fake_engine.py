"""A fake OpenAI-compatible engine on a loopback port, for faults that a real one cannot be made to show on demand.

    with FakeEngine() as engine:
        engine.completions = "hang"        # and /health stays 200
        ... engine.url ...

It proves how our side reacts, and nothing about vLLM; the real engine's behaviour is tested in tests/e2e and tests/fault.
Standard library only.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

REFUSED = 400, '{"error":{"message":"Cannot find suitable handler for request. Expected one of: []","type":"BadRequestError","code":400}}'
"""vLLM 0.32.0's answer on /invocations to what its model cannot do."""


@dataclass(kw_only=True)
class FakeEngine:
    """Every field may be changed while it serves; `asked` lists the requests so far as `POST /invocations`."""

    health: int = 200
    """0: it takes the request and does not answer."""
    models: tuple[str, ...] = ("fake",)
    completions: str = "answer"
    """answer, hang (until the server stops), error (500), full (503), garbage (200, no JSON), empty (200, no choice), drip (a byte at a time)"""
    kind: str = "prompt"
    """What a request to /invocations must hold: prompt, messages, input, text_1 or documents, by the kind of the model."""
    metrics: str = "vllm"
    """vllm, off (as with --disable-log-stats: only the server's own series), garbage, hang, error (500)"""
    delay_s: float = 0
    """How long a completion takes."""
    running: int = 0
    waiting: int = 0
    tokens: int = 0
    succeeded: int = 0
    aborted: int = 0
    cache_use: float = 0.0
    moving: bool = False
    """Whether tokens come while nobody looks: each look at /metrics shows more."""
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._serve(self, f"GET {self.path}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake._serve(self, f"POST {self.path}", body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
                pass

        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, request: str) -> int:
        """How often `request` was made."""
        return self.asked.count(request)

    def _serve(self, to: BaseHTTPRequestHandler, request: str, sent: bytes = b"") -> None:
        self.asked.append(request)
        routes: dict[str, Callable[[], tuple[int, str] | None]] = {
            "GET /health": lambda: (self.health, "") if self.health else None,
            "GET /v1/models": lambda: (200, json.dumps({"object": "list", "data": [{"id": name} for name in self.models]})),
            "GET /metrics": self._metrics,
            "POST /v1/completions": self._completion,
            "POST /invocations": lambda: self._completion() if self.kind in json.loads(sent) else REFUSED,
        }
        answer = routes.get(request, lambda: (404, '{"detail":"Not Found"}'))()
        try:
            if answer is None:  # hang: the connection is taken, and nothing comes
                self._stopped.wait()
                return
            status, body = answer
            data = body.encode()
            to.send_response(status)
            to.send_header("Content-Length", str(len(data)))
            to.end_headers()
            if request.startswith("POST") and self.completions == "drip":
                while not self._stopped.wait(0.1):
                    to.wfile.write(b" ")
                return
            to.wfile.write(data)
        except OSError:
            pass  # the client gave up

    def _completion(self) -> tuple[int, str] | None:
        answers = {
            "error": (500, '{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","code":500}}'),
            "full": (503, '{"error":{"message":"The request queue is full.","code":503}}'),
            "garbage": (200, "<html>not the engine</html>"),
            "empty": (200, '{"choices":[]}'),
            "drip": (200, " " * 10_000_000),
        }
        if self.completions == "hang":
            return None
        if self.completions in answers:
            return answers[self.completions]
        self._stopped.wait(self.delay_s)
        self.tokens += 2
        self.succeeded += 1
        if self.kind in ("input", "text_1", "documents"):
            return 200, json.dumps({"object": "list", "results" if self.kind == "documents" else "data": [{"index": 0}]})
        return 200, json.dumps({"object": "text_completion", "choices": [{"index": 0, "text": "x", "finish_reason": "length"}],
                                "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    def _metrics(self) -> tuple[int, str] | None:
        other = "# HELP python_info x\npython_info{version=\"3.11\"} 1.0\n"
        garbage = "vllm:num_requests_running{ NaN\n\x00\xff vllm:}{ 1 2 3\n"
        if self.metrics != "vllm":
            return {"off": (200, other), "garbage": (200, garbage), "error": (500, "no"), "hang": None}[self.metrics]
        if self.moving:
            self.tokens += 7
        core = {"num_requests_running": self.running, "num_requests_waiting": self.waiting, "iteration_tokens_total_count": self.tokens,
                "prompt_tokens_total": self.tokens, "generation_tokens_total": self.tokens, "kv_cache_usage_perc": self.cache_use}
        finished = {"stop": self.succeeded, "length": 0, "abort": self.aborted, "error": 0}
        lines = [f'vllm:{name}{{engine="0",model_name="fake"}} {float(value)}\n' for name, value in core.items()]
        lines += [f'vllm:request_success_total{{engine="0",finished_reason="{why}",model_name="fake"}} {float(n)}\n' for why, n in finished.items()]
        return 200, other + "".join(lines)
