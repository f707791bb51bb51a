"""The client of docker/engine/benchagent.py, which runs beside the engine: one child process, one request and one answer at a time."""

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from bundle.base.errors import BundleError
from bundle.bench import rundata
from bundle.bench.rundata import Answer, Data, ModelData

TAIL_LINES = 20
CLOSE_S = 10.0


class _Outputs(TypedDict):
    texts: list[str]


class _Posted(TypedDict):
    answers: list[dict[str, Any]]


class AgentError(BundleError):
    """The agent refused a request, did not answer it in time, or died."""


class Agent:
    """The agent that `argv` starts. Use it as a context manager, or close it.

    All that it and vLLM print goes to the end of the file `log`. Raises AgentError when it is not ready within `ready_limit_s` seconds.
    After a limit has passed the agent has been killed, and every further request raises AgentError.
    """

    versions: Mapping[str, str]
    """Of the engine that the load generator came with: "vllm" and "torch"."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, log: Path, ready_limit_s: float = 300.0) -> None:
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._ended = ""
        with log.open("ab") as stderr:
            try:
                # A session of its own: Ctrl-C ends a load by closing the agent's input, not by a signal in the middle of an answer.
                self._child = subprocess.Popen(list(argv), env=dict(env) if env is not None else None, start_new_session=True,
                                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
            except OSError as error:
                raise AgentError(f"{argv[0]}: {error.strerror}") from error
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            ready = self._answer("its start", ready_limit_s)
            self.versions = {"vllm": str(ready["vllm"]), "torch": str(ready["torch"])}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def load(self, options: Mapping[str, str], *, base_url: str, model: str, served_model_name: str, limit_s: float) -> Answer:
        """Run one load to its end and return what was measured.

        `options` are those of `vllm bench serve` without the dashes; `model` is the path that the engine loaded, for its tokenizer.
        """
        request = {"options": dict(options), "base_url": base_url, "model": model, "served_model_name": served_model_name}
        return self._ask(Answer, "load", request, f"the load {' '.join(f'{name}={value}' for name, value in options.items())}", limit_s)

    def outputs(self, prompts: Sequence[str], *, base_url: str, served_model_name: str, max_tokens: int = 32, limit_s: float) -> list[str]:
        """What the engine writes for each prompt at temperature 0, one after the other."""
        request = {"base_url": base_url, "served_model_name": served_model_name, "prompts": list(prompts), "max_tokens": max_tokens}
        return self._ask(_Outputs, "outputs", request, f"{len(prompts)} outputs", limit_s)["texts"]

    def post(self, path: str, bodies: Sequence[Mapping[str, object]], *, base_url: str, limit_s: float) -> list[dict[str, Any]]:
        """What the engine answers to each body at `path`, one after the other."""
        request = {"base_url": base_url, "path": path, "bodies": list(bodies)}
        return self._ask(_Posted, "post", request, f"{len(bodies)} answers of {path}", limit_s)["answers"]

    def model(self, path: str, *, limit_s: float = 60.0) -> ModelData:
        """`config` (config.json as it is) and `weights_bytes` of the model at `path`, as the engine sees it."""
        return self._ask(ModelData, "model", {"path": path}, f"the model {path}", limit_s)

    def alive(self) -> bool:
        """Whether it can be asked for anything."""
        return not self._ended and self._child.poll() is None

    def close(self) -> None:
        """End the agent, whatever it does; no error when it has ended before."""
        self._ended = self._ended or "it was closed"
        assert self._child.stdin is not None  # noqa: S101  (a pipe was asked for)
        with contextlib.suppress(OSError):  # it ended with a request unread
            self._child.stdin.close()
        try:
            self._child.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    # --- below

    def _ask(self, kind: type[Data], verb: str, request: Mapping[str, object], what: str, limit_s: float) -> Data:
        if self._ended:
            raise AgentError(f"the load generator was asked for {what}, but {self._ended}")
        assert self._child.stdin is not None  # noqa: S101
        with contextlib.suppress(OSError):  # it is dead: the missing answer says so, and why
            self._child.stdin.write(json.dumps({"do": verb, **request}).encode() + b"\n")
            self._child.stdin.flush()
        answer = self._answer(what, limit_s)
        if "error" in answer:
            raise AgentError(f"the load generator, asked for {what}: {answer['error']}")
        try:
            return rundata.held_to(kind, answer["ok"])
        except ValueError as error:
            raise AgentError(f"the load generator, asked for {what}, answers what is none: {error}") from error

    def _answer(self, what: str, limit_s: float) -> dict[str, object]:
        """The next line that it prints. Raises AgentError, and leaves no agent behind, when it prints none in time or one that is no answer."""
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            self._child.kill()
            raise self._failure(f"the load generator did not end {what} within {limit_s:g} s and was killed") from None
        if not line:
            code = self._wait_for_code()
            raise self._failure(f"the load generator ended during {what} ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
        try:
            answer: dict[str, object] = json.loads(line)
            if not answer.keys() & {"ok", "error", "ready"}:
                raise ValueError
        except (ValueError, AttributeError) as error:
            self._child.kill()
            raise self._failure(f"the load generator printed what is no answer to {what}: {line[:200]!r}") from error
        return answer

    def _wait_for_code(self) -> int:
        try:
            return self._child.wait(CLOSE_S)
        except subprocess.TimeoutExpired:  # it closed its output, and lives
            self._child.kill()
            return self._child.wait()

    def _failure(self, message: str) -> AgentError:
        self._ended = "it has ended before"
        tail = self._said()
        return AgentError(message + (f"; the last that it said (all of it: {self._log}):\n{tail}" if tail else f", without a word in {self._log}"))

    def _said(self) -> str:
        """The last lines that this agent, not one before it, wrote to the log."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, 2) - 65536))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def _listen(self) -> None:
        """Pass on each line that it prints, and an empty one at the end."""
        assert self._child.stdout is not None  # noqa: S101
        with self._child.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(b"")
