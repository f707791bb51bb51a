"""Start vLLM from env files and stay with it until it ends. Standard library only; works in the image and on any host that has vLLM.

    python3 docker/engine/entrypoint.py --env-file env/base.env --env-file env/throughput.env [--print]

The one mapping rule: ENGINE_X_Y=v becomes `--x-y v`, `true` becomes `--x-y`, `false` the flag's off-form, an empty value is "not set";
a flag that takes a list has its value split as a shell would; JSON passes as it is. ENGINE_MODEL comes first, the rest in the order of
the env files. `auto` becomes a value right before the start (words.py): ENGINE_GPU_MEMORY_UTILIZATION the most that starts, ENGINE_QUANTIZATION
what suits checkpoint and GPU; ENGINE_MAX_NUM_SEQS=auto is for the host to resolve, and refused here. --print measures nothing and leaves it.
A key that an --env-file names overrides the process environment, and a later file an earlier one, as in Compose.
All other variables reach the engine unchanged, without those that are the bundle's own and those that are empty.

--print writes the engine's environment and command as a shell would take them, and starts nothing.

Exit codes: 2 an env file is wrong, or leaves a word to the host · 3 no vLLM here, or no GPU to measure · 0 the engine ended cleanly after
SIGTERM, SIGINT or SIGHUP · 128+n signal n killed it · else the engine's own code, but 1 instead of 0 when nobody asked it to end: vLLM exits 0
when its core dies, which would look like a clean stop · 75 it hung, and was ended for that: what the watch (watch.py, beside this file) saw
stands in the last line.
HEALTH_STALL_S (60) is how long an engine may do nothing with what it was asked; HEALTH_PORT is where GET /ready tells whether it can serve.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import vitals
import watch
import words

OURS = ("ENGINE_", "GATEWAY_", "HEALTH_", "HOST_", "IMAGE_", "MODEL_", "BUILD_", "MONITORING_", "SLO_")
BUILD_KNOBS = ("BASE_IMAGE", "WHEELHOUSE")
ENGINE_READS = ("CUDA_", "CUBLAS", "CUDNN_", "DO_NOT_TRACK", "FLASHINFER_", "HF_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "NCCL_", "NVIDIA_",
                "OMP_", "OTEL_", "PYTORCH_", "TOKENIZERS_", "TORCH", "TRITON_", "VLLM_")
"""What --print shows of the environment; the engine gets everything that is not OURS."""

SECRET = re.compile(r"(^|[_-])(TOKEN|SECRET|PASSWORD|API[_-]KEY|ACCESS[_-]KEY)$", re.IGNORECASE)
_SHARES = (words.SHARE, "--device-memory-utilization")
CONTEXT_BYTES = 512 * 2**20
"""What vLLM's own CUDA context takes of a GPU before it looks at what is free."""
AUTO_MARGIN_BYTES = 512 * 2**20
"""Left free by ENGINE_GPU_MEMORY_UTILIZATION=auto, for buffers that vLLM takes after it has measured."""

LINE_LIMIT = 8192
KILL_WAIT_S = 10
DRIVER_FOLDERS = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"))
"""Where a container gets the driver's libraries; the loader looks there without its cache too."""
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HUNG = 0
"""Stands among the signals, of which none has this number: the watch wants the engine ended."""
HUNG_CODE = 75
LEAVE_S = 3.0
"""How long an engine that is asked to stop still takes requests while it tells a gateway, by GET /ready, to send no more: vLLM refuses new ones (500)
from its SIGTERM on. A gateway hears it within 1.5 s (docker/gateway/haproxy.cfg: inter, fastinter, fall)."""
LOADING_STOP_S = 3
"""How long an engine that is still loading may take to stop. It has nothing to drain, and vLLM loses a SIGTERM that comes while it loads."""


class Refused(Exception):  # noqa: N818  (it carries the messages for the operator and the exit code)
    """Nothing was started. `problems` are the lines to print."""

    def __init__(self, problems: Sequence[str], code: int = 2) -> None:
        super().__init__(*problems)
        self.problems, self.code = problems, code


def parse_env_file(path: Path) -> dict[str, str]:
    """The keys and values of an env file. Raises Refused with file:line for every line that Compose or python-dotenv could read differently."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused([f"{path}:{path.read_bytes()[:error.start].count(10) + 1}: not UTF-8"]) from error
    except OSError as error:
        raise Refused([f"{path}: cannot be read: {error.strerror}"]) from error
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems = []
    if "\r" in text:  # one message for the file, not one for every line
        problems.append(f"{path}:{text[:text.index(chr(13))].count(chr(10)) + 1}: has carriage returns; save the file with Unix line ends")
    for number, line in enumerate(text.replace("\r", "").split("\n"), start=1):
        if not line.strip(" \t") or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        fault = _fault(key, equals, value, line)
        value = value.rstrip()
        if not fault and key in found:
            fault = f"{key} is set twice in this file (first in line {lines[key]}); delete one of the two lines"
        if fault:
            problems.append(f"{path}:{number}: {fault}")
        found[key], lines[key] = value[1:-1] if value.startswith("'") else value, number
    if problems:
        raise Refused(problems)
    return found


def _fault(key: str, equals: str, value: str, line: str) -> str:
    if "\ufeff" in line:
        return "holds a byte-order mark; save the file as UTF-8 without one"
    if control := next((c for c in line if (ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160), ""):
        return f"holds the control character U+{ord(control):04X}; delete it"
    if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", key):
        return f"not KEY=VALUE with an upper-case key at the start of the line: {key[:40]!r}"  # the key alone: the value may be a secret
    if value.startswith("'"):
        value = value.rstrip()
        if len(value) < 2 or not value.endswith("'") or "'" in value[1:-1]:
            return f"{key}: a quoted value is one pair of single quotes in one line, with nothing behind it"
        return f"{key}: a backslash before a backslash or the closing quote is read differently by Compose" if re.search(r"\\[\\']", value) else ""
    if value.startswith('"') or value[:1].isspace():
        return f"{key}: a value starts right after the `=`, bare or in single quotes"
    if "$" in value or re.search(r"(^|\s)#", value.rstrip()):
        return f"{key}: `$` and `#` mean something to Compose; put the value in single quotes, and a comment in a line of its own"
    return ""


def load_catalogue(target: str, folder: Path) -> dict[str, Any]:
    """The engine's flags by every spelling of theirs; empty when there is no catalogue for `target` ("" in an image: it holds only its own)."""
    found = sorted(path for path in folder.glob("*.json") if path.stem == target or not target)
    if len(found) != 1:
        return {}
    flags = json.loads(found[0].read_text(encoding="utf-8"))["flags"]
    return {spelling: flag for name, flag in flags.items() for spelling in (name, *flag.get("aliases", ()))}


def arguments(settings: Mapping[str, str], flags: Mapping[str, Any]) -> list[str]:
    """`serve MODEL --x-y v …` by the mapping rule. Raises Refused for a missing model, an off-form that does not exist, or an open quote."""
    argv, problems = ["serve", settings.get("ENGINE_MODEL", "")], []
    if not argv[1]:
        hint = f" (MODEL_DIR={settings['MODEL_DIR']} is what Compose mounts: name that directory)" if settings.get("MODEL_DIR") else ""
        problems.append(f"ENGINE_MODEL is not set. Give it a directory or a hub name (Qwen/Qwen3-8B), in an --env-file or the environment{hint}")
    for key, value in settings.items():
        if not key.startswith("ENGINE_") or key == "ENGINE_MODEL" or not value:
            continue
        option = "--" + key.removeprefix("ENGINE_").lower().replace("_", "-")
        flag = flags.get(option, {"negative": "--no-" + option[2:]})
        if value == "true":
            argv.append(option)
        elif value == "false" and flag["negative"]:
            argv.append(flag["negative"])
        elif value == "false":
            problems.append(f"{key}=false: {option} has no form that turns it off. Delete the line: it is off when it is not set")
        elif flag.get("nargs") in (None, "?"):
            argv += [option, value]
        else:
            try:
                argv += [option, *elements(value)]
            except ValueError as error:
                problems.append(f"{key}: its value is not a list: {str(error)[:1].lower()}{str(error)[1:]}")
    if problems:
        raise Refused(problems)
    return argv


def elements(value: str) -> list[str]:
    """Words as in a shell, or JSON objects, with blanks between them. Raises ValueError for anything else, as scripts/bundle/config/catalogue.py."""
    if value.startswith("["):
        raise ValueError("it is a JSON list; write its elements with blanks between them")
    if not value.startswith("{"):
        if re.search(r"\s\{", value):
            raise ValueError("words and JSON objects do not mix")
        return shlex.split(value)
    found, at = [], 0
    while at < len(value):
        _, end = json.JSONDecoder().raw_decode(value, at)
        if value[end:end + 1].strip():
            raise ValueError(f"no blank after the object that ends at character {end}")
        found.append(value[at:end])
        at = end + len(value[end:]) - len(value[end:].lstrip())
    return found


def resolved(argv: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    """`argv` with values in the place of `auto`, each told with its reason. Raises Refused where a GPU cannot be asked, or only the host knows."""
    given, on_cpu = list(argv), runs_on_cpu()
    pairs = [at for at, word in enumerate(given) if word == words.AUTO and at > 1]
    for at in reversed(pairs):  # from the end: a flag that goes away moves what is behind it
        flag = given[at - 1]
        if flag in _SHARES:
            given[at] = most_that_starts(settings)
        elif flag == words.QUANTIZATION:
            found = quantization(settings, on_cpu=on_cpu)
            say(f"ENGINE_QUANTIZATION=auto: {found}")
            given[at - 1:at + 1] = [flag, found.value] if found.value else []
        elif flag == words.SEQUENCES:
            raise Refused(["ENGINE_MAX_NUM_SEQS=auto: the host resolves it, from the KV cache that it expects, and this start has no such number. "
                           "Start with `make up`, or take the env file that `make check GPU=NAME FLATTEN=FILE` writes; or write a number: 256"])
    return given


def quantization(settings: Mapping[str, str], *, on_cpu: bool) -> words.Resolved:
    """What ENGINE_QUANTIZATION=auto becomes for this model, on the weakest GPU in sight."""
    model = settings.get("ENGINE_MODEL", "")
    folder = Path(model) if model.startswith("/") or Path(model).is_dir() else None
    return words.by_checkpoint(model, folder, settings.get("ENGINE_DTYPE", "")) or words.by_gpu(*((None,) if on_cpu else weakest_gpu(settings)))


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed computes on the CPU, as it tells itself."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False


def weakest_gpu(settings: Mapping[str, str]) -> tuple[tuple[int, int], str]:
    """Compute capability and name of the GPU in sight that can least."""
    rows = gpus(settings, "compute_cap,name", r"(\d+)\.(\d+), (.+)", about="its compute capability cannot be read",
                instead="Write a method (ENGINE_QUANTIZATION=fp8_per_tensor), or leave it empty")
    return min(((int(major), int(minor)), name) for major, minor, name in rows)


def gpus(settings: Mapping[str, str], query: str, row: str, *, about: str, instead: str) -> list[tuple[str, ...]]:
    """What nvidia-smi answers to `query`, for each GPU in sight the groups of `row`. Raises Refused where it does not."""
    chosen = settings.get("CUDA_VISIBLE_DEVICES", "")
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", *([f"--id={chosen}"] if chosen else [])]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused([f"auto: {about}: {error}. {instead}"], code=3) from error
    found = re.findall(f"^{row}$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not found or len(found) != len(done.stdout.splitlines()):
        raise Refused([f"auto: {about}: nvidia-smi says: {' '.join(done.stdout.split())}. {instead}"], code=3)
    return found


def most_that_starts(settings: Mapping[str, str]) -> str:
    """The largest share of memory that every GPU in sight can give, rounded down to a thousandth, with AUTO_MARGIN_BYTES left free."""
    instead = "Write a number instead: 0.9"
    rows = gpus(settings, "index,memory.total,memory.reserved,memory.free", r"(\d+), (\d+), (\d+|\[.*\]), (\d+)",
                about="the GPU's memory cannot be measured", instead=instead)
    shares = []
    for index, *sizes in rows:
        # CUDA does not show what the driver keeps for itself; an old driver does not say how much that is, which makes the share smaller.
        total, reserved, free = (int(size) * 2**20 if size.isdigit() else 0 for size in sizes)
        shares.append(max(0, (free - CONTEXT_BYTES - AUTO_MARGIN_BYTES) * 1000 // (total - reserved)))
        say(f"auto: GPU {index} has {free / 2**30:.2f} of {(total - reserved) / 2**30:.2f} GiB free, less {CONTEXT_BYTES / 2**30:g} for the engine's "
            f"context and {AUTO_MARGIN_BYTES / 2**30:g} left free: {shares[-1] / 1000:g}")
    if not min(shares):
        raise Refused([f"auto: no memory is left on a GPU. End what uses it (nvidia-smi lists it). {instead}"], code=3)
    return f"{min(shares) / 1000:g}"


def engine_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """What the engine inherits: an empty value is "not set" for it too (int("") would stop vLLM)."""
    return {key: value for key, value in settings.items() if value and not key.startswith(OURS) and key not in BUILD_KNOBS}


def finds_the_middleware(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment`, in which Python finds what ENGINE_MIDDLEWARE may name: docker/engine/middleware."""
    folders = [str(Path(__file__).resolve().parent / "middleware"), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def triton_finds_the_driver(environment: Mapping[str, str], folders: Sequence[Path] = DRIVER_FOLDERS) -> dict[str, str]:
    """`environment`, with TRITON_LIBCUDA_PATH where Triton would miss the driver: it asks the loader's cache alone ("libcuda.so cannot
    found!"), and a GPU that a CDI specification gives without NVIDIA's ld-cache hook is in the container's folders, but not in its cache."""
    there = next((folder for folder in folders if (folder / "libcuda.so.1").exists()), None)
    if there is None or environment.get("TRITON_LIBCUDA_PATH") or "libcuda.so.1" in _loader_cache():
        return dict(environment)
    say(f"the driver is not in the loader's cache: TRITON_LIBCUDA_PATH={there}")
    return {**environment, "TRITON_LIBCUDA_PATH": str(there)}


def _loader_cache() -> str:
    try:
        return subprocess.run(["/sbin/ldconfig", "-p"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
                              timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def shown(argv: Sequence[str]) -> str:
    """The command as typed in a shell, with secrets blanked."""
    typed, secret = ["vllm"], False
    for word in argv:
        secret = bool(SECRET.search(word)) if word.startswith("--") else secret
        typed.append("[REDACTED]" if secret and not word.startswith("--") else word)
    return shlex.join(typed)


class LastError:
    """Remembers, of all that the engine prints, the error that says most: the last exception, or the death of a process that came before it.

    When vLLM's core fails, each process above it reports that too; those reports come last and say least.
    """

    # vLLM marks each line of a log record, the later ones of a traceback too: "(EngineCore pid=77) ERROR 11-23 14:49:03 [core.py:1234] ".
    PREFIX = re.compile(r"(?:\([^)]*pid=\d+\) ?)?(?:([A-Z]+) \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?")
    COLOUR = re.compile(r"\x1b\[[\d;]*m")
    CAUSE = re.compile(r"(?i)[a-z_][\w.]*(?:error|exception|expired)\w*(?:: |$)|(?:.{0,80}\s)?error: |terminate called")
    DEATH = re.compile(r"(?i).*\b(?:died|exited) unexpectedly")
    REPORT = re.compile(r"(?i).*(?:(?:root cause|stack ?trace)\b.*\babove|\babove\b.*(?:root cause|stack ?trace)|\b(?:CancelledError|SystemExit)\b)"
                        r"|RuntimeError: cancelled")
    FRESH_S = 10

    def __init__(self) -> None:
        self.cause = self.other = self.report = ""
        self.answering = False
        """Whether the engine has said that its API is up."""
        self.cause_at = 0.0
        self._is_death = self._goes_on = False
        self._lock = threading.Lock()

    def see(self, raw: bytes) -> None:
        """Take note of one line."""
        text = self.COLOUR.sub("", raw[:LINE_LIMIT].decode("utf-8", "replace")).rstrip()
        prefix = self.PREFIX.match(text)
        self.answering = self.answering or "Application startup complete" in text
        if text and prefix:
            with self._lock:
                self._note(text[prefix.end():], prefix[1])

    def _note(self, message: str, level: str | None) -> None:
        goes_on, self._goes_on = self._goes_on, False
        fresh = bool(self.cause) and time.monotonic() - self.cause_at < self.FRESH_S
        if self.DEATH.match(message):  # a warning, for vLLM
            if not fresh:
                self.cause, self.cause_at, self._is_death = message, time.monotonic(), True
        elif level not in (None, "ERROR", "CRITICAL"):
            return
        elif message.startswith((" ", "Traceback")):
            if goes_on:  # pydantic says what is wrong in an indented second line
                self.cause += " " + message.strip()
        elif self.REPORT.match(message):
            self.report = message
        elif self.CAUSE.match(message):
            if not (fresh and self._is_death):
                self.cause, self.cause_at, self._is_death, self._goes_on = message, time.monotonic(), False, True
        elif level:
            self.other = message

    def __str__(self) -> str:
        text = "".join(c if c.isprintable() else "?" for c in self.cause or self.other or self.report)
        return text if len(text) <= 500 else text[:500] + "…"


def pass_on(source: IO[bytes], target: int, error: LastError) -> None:
    """Copy `source` to the file descriptor `target` as it comes, until every process that writes it has gone."""
    line, writable = b"", True
    while chunk := os.read(source.fileno(), 65536):
        *ended, line = re.split(rb"[\r\n]", line + chunk)
        for each in ended:  # before it is passed on: who reads that the engine answers may ask it to stop
            error.see(each)
        line = line[:LINE_LIMIT]
        # A reader of ours that has gone must not stop the engine: read on, or its next print would block for ever.
        writable = writable and _write(target, chunk)
    if line:
        error.see(line)
        _write(target, b"\n")  # what comes next stands in a line of its own


def _write(target: int, data: bytes) -> bool:
    while data:
        try:
            data = data[os.write(target, data):]
        except BlockingIOError:
            select.select([], [target], [])
        except OSError:
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the engine is watched: where its API is, how long it may stand still (seconds), and the port that answers GET /ready (None: none does)."""

    engine: vitals.Engine
    stall_s: float
    port: int | None

    @classmethod
    def from_settings(cls, settings: Mapping[str, str]) -> Self:
        """Raises Refused for a time or a port that is none."""
        problems, numbers = [], {}
        for key, default, form in (("HEALTH_STALL_S", "60", r"\d+(\.\d+)?"), ("HEALTH_PORT", "", r"\d*"), ("ENGINE_PORT", "8000", r"\d+")):
            value = settings.get(key) or default
            if not re.fullmatch(form, value, re.ASCII) or value.strip("0.") == "" != value:
                problems.append(f"{key}={value!r} is not a positive number")
            numbers[key] = value
        if problems:
            raise Refused(problems)
        host = settings.get("ENGINE_HOST", "")
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return cls(engine=vitals.Engine(host=host, port=int(numbers["ENGINE_PORT"])), stall_s=float(numbers["HEALTH_STALL_S"]),
                   port=int(numbers["HEALTH_PORT"]) if numbers["HEALTH_PORT"] else None)

    def watch(self, session: int, end: Callable[[str], None]) -> watch.Watchdog:
        """Begin to watch the engine whose processes are in that session; `end` is called once, with the reason, when it is to be ended."""
        looks = watch.Watch(self.engine, lambda: vitals.processes(session), leader=session, cpu_counts=runs_on_cpu(), stall_s=self.stall_s)
        budget = watch.Budget(watch.state_file(), f"{socket.gethostname()}-{self.engine.port}")
        return watch.Watchdog(looks, budget, end=end, say=lambda text: say(text, "watch"), port=self.port)


def supervise(command: Sequence[str], environment: Mapping[str, str], health: Health) -> int:
    """Run the engine to its end, and return the exit code that says how it ended."""
    asked: list[signal.Signals] = []
    hung: list[str] = []
    stop_at: float | None = None
    kill_at: float | None = None
    started, error = time.monotonic(), LastError()
    # Every signal stands in this pipe until it is dealt with. A handler that acts by itself would lose the one that comes right before a wait.
    signals, noted = os.pipe()
    os.set_blocking(noted, False)
    signal.set_wakeup_fd(noted, warn_on_full_buffer=False)
    for number in (*STOPS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # A session of its own: Ctrl-C reaches the engine once, through here, and one kill reaches all that it started.
    engine = subprocess.Popen(command, env=environment, start_new_session=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    tees = [threading.Thread(target=pass_on, args=(source, target, error), daemon=True)
            for source, target in ((engine.stdout, 1), (engine.stderr, 2)) if source]
    for tee in tees:
        tee.start()

    def end(reason: str) -> None:
        hung.append(reason)
        os.write(noted, bytes([HUNG]))

    watchdog = health.watch(engine.pid, end)
    while (code := engine.poll()) is None:
        due = min(filter(None, (stop_at, kill_at)), default=None)
        if not select.select([signals], [], [], None if due is None else max(0.0, due - time.monotonic()))[0]:
            if due == stop_at:
                engine.send_signal(signal.SIGTERM)
                stop_at = None
            else:
                engine.kill()
                kill_at = None
            continue
        told = os.read(signals, 4096)
        if HUNG in told and not asked:
            os.killpg(engine.pid, signal.SIGKILL)  # what is stopped or stuck hears no other
        for stop in (signal.Signals(byte) for byte in told if byte in STOPS):
            asked.append(stop)
            watchdog.stop()
            if kill_at is None and not error.answering:
                kill_at = time.monotonic() + LOADING_STOP_S
            if error.answering and len(asked) == 1 and watchdog.is_asked():  # who asks twice does not want to wait
                say(f"asked to stop ({stop.name}): the gateway is told, and requests are still taken for {LEAVE_S:g} s")
                stop_at = time.monotonic() + LEAVE_S
                continue
            stop_at = None
            # vLLM knows no SIGHUP and would leave its core behind: a terminal that closes is a request to stop like any other.
            engine.send_signal(signal.SIGTERM if stop == signal.SIGHUP else stop)
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # who asks again must not change how the end is told
    took = f"after {time.monotonic() - started:.0f} s"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(engine.pid, signal.SIGKILL)  # a core that outlives its API server would hold the GPU
    for tee in tees:  # they end when the last process of the group has closed its output
        tee.join(KILL_WAIT_S)

    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}" if asked else f"ended unasked with code {code}"
    if hung and code == -signal.SIGKILL and not asked:
        say(f"the engine hung and was ended {took}: {hung[0]}")
        return HUNG_CODE
    if asked:
        say(f"the engine was asked to stop ({asked[0].name}) and {how} {took}")
    else:
        say(f"the engine {how} {took}; " + (f"its last error: {error}" if str(error) else "it printed no error"))
    return 128 - code if code < 0 else code or (0 if asked else 1)


def say(text: str, who: str = "entrypoint") -> None:
    """One line on stderr, past Python's buffers: the log must end with it, and a log that nobody reads any more must not stop the engine."""
    _write(2, f"{who}: {text}\n".encode(errors="backslashreplace"))


def show(settings: Mapping[str, str], argv: Sequence[str], named: Iterable[str]) -> None:
    """The engine's environment and command on stdout, as a shell would take them."""
    for key, value in engine_environment(settings).items():
        if key in named or key.startswith(ENGINE_READS):
            print(f"export {key}={'[REDACTED]' if SECRET.search(key) else shlex.quote(value)}")
    print(shown(argv))


def start(settings: Mapping[str, str], argv: Sequence[str]) -> int:
    """Start and supervise `vllm` with `argv`."""
    if importlib.util.find_spec("vllm") is None:
        raise Refused([f"{sys.executable} has no vLLM. Run this file with the Python of the environment that vLLM is installed in"], code=3)
    health = Health.from_settings(settings)
    argv = resolved(argv, settings)
    say(f"starting: {shown(argv)}")
    environment = finds_the_middleware(triton_finds_the_driver(engine_environment(settings)))
    return supervise([sys.executable, "-m", "vllm.entrypoints.cli.main", *argv], environment, health)


def main(arguments_given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--env-file", metavar="FILE", type=Path, action="append", default=[], help="repeatable, the last one wins")
    parser.add_argument("--print", action="store_true", help="show what would be started")
    options = parser.parse_args(arguments_given)
    try:
        named: dict[str, str] = {}
        problems: list[str] = []
        for path in options.env_file:
            try:
                named |= parse_env_file(path)
            except Refused as refused:
                problems += refused.problems
        if problems:
            raise Refused(problems)
        settings = dict(os.environ) | named
        flags = load_catalogue(settings.get("IMAGE_TARGET", ""), Path(__file__).resolve().parent / "catalogue")
        if not flags:
            say(f"no flag catalogue for IMAGE_TARGET={settings.get('IMAGE_TARGET', '')}: `false` becomes --no-…, and every value is one argument")
        argv = arguments(settings, flags)
        if options.print:
            show(settings, argv, named)
            return 0
        return start(settings, argv)
    except Refused as refused:
        for problem in refused.problems:
            say(problem)
        return refused.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
