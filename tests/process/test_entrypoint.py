"""The entrypoint: env files to argv by one rule, and an engine that is never left alone, never outlived, and never ends unexplained.

The engine here is a stand-in of a few lines, started for real: what is tested are processes, signals and pipes.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from bundle import ROOT
from bundle.bench.proctree import Tree
from bundle.fit import estimation
from bundle.machine import devices
from support.entrypoint import load_entrypoint
from support.project import free_port, wait_until

ENTRYPOINT = ROOT / "docker" / "engine" / "entrypoint.py"
FLAGS = {
    "--max-num-seqs": {"nargs": None, "negative": None},
    "--enable-prefix-caching": {"nargs": None, "negative": "--no-enable-prefix-caching"},
    "--enable-auto-tool-choice": {"nargs": None, "negative": "--disable-auto-tool-choice"},
    "--enforce-eager": {"nargs": None, "negative": None},
    "--cudagraph-capture-sizes": {"nargs": "+", "negative": None},
    "--lora-modules": {"nargs": "*", "negative": None},
    "--compilation-config": {"nargs": None, "negative": None},
    "--grid": {"nargs": 2, "negative": None},
    "--api-key": {"nargs": "*", "negative": None},
}


@pytest.fixture(scope="module")
def entrypoint() -> ModuleType:
    return load_entrypoint()


# --- the mapping rule

@pytest.mark.parametrize(("key", "value", "words"), [
    ("ENGINE_MAX_NUM_SEQS", "256", ["--max-num-seqs", "256"]),
    ("ENGINE_MAX_NUM_SEQS", "", []),
    ("ENGINE_MAX_MODEL_LEN", "-1", ["--max-model-len", "-1"]),
    ("ENGINE_ENFORCE_EAGER", "true", ["--enforce-eager"]),
    ("ENGINE_ENABLE_PREFIX_CACHING", "true", ["--enable-prefix-caching"]),
    ("ENGINE_ENABLE_PREFIX_CACHING", "false", ["--no-enable-prefix-caching"]),
    ("ENGINE_ENABLE_AUTO_TOOL_CHOICE", "false", ["--disable-auto-tool-choice"]),
    ("ENGINE_COMPILATION_CONFIG", '{"mode": 3, "pass_config": {"x": true}}', ["--compilation-config", '{"mode": 3, "pass_config": {"x": true}}']),
    ("ENGINE_CUDAGRAPH_CAPTURE_SIZES", "1 2  4", ["--cudagraph-capture-sizes", "1", "2", "4"]),
    ("ENGINE_LORA_MODULES", r"a=/x\ y 'b=/z z'", ["--lora-modules", "a=/x y", "b=/z z"]),
    ("ENGINE_LORA_MODULES", '{"name": "a b", "path": "/x"}', ["--lora-modules", '{"name": "a b", "path": "/x"}']),
    ("ENGINE_LORA_MODULES", '{"name": "a b", "path": "/x"} {"name": "c", "path": "/y"}',
     ["--lora-modules", '{"name": "a b", "path": "/x"}', '{"name": "c", "path": "/y"}']),
    ("ENGINE_GRID", "2 3", ["--grid", "2", "3"]),
    ("ENGINE_CHAT_TEMPLATE", "/a b/c.jinja", ["--chat-template", "/a b/c.jinja"]),
    ("ENGINE_NEW_IN_TOMORROWS_VLLM", "false", ["--no-new-in-tomorrows-vllm"]),
    ("ENGINE_SERVED_MODEL_NAME", "größe; rm -rf $HOME", ["--served-model-name", "größe; rm -rf $HOME"]),
])
def test_a_key_becomes_these_words(entrypoint: ModuleType, key: str, value: str, words: list[str]) -> None:
    assert entrypoint.arguments({"ENGINE_MODEL": "/m", key: value}, FLAGS) == ["serve", "/m", *words]


def test_the_model_comes_first_and_the_rest_in_their_order(entrypoint: ModuleType) -> None:
    settings = {"ENGINE_B": "1", "VLLM_X": "y", "ENGINE_MODEL": "/m", "ENGINE_A": "2", "GATEWAY_PORT": "8005"}
    assert entrypoint.arguments(settings, FLAGS) == ["serve", "/m", "--b", "1", "--a", "2"]


def test_all_that_cannot_be_mapped_is_said_at_once(entrypoint: ModuleType) -> None:
    settings = {"ENGINE_ENFORCE_EAGER": "false", "ENGINE_MAX_NUM_SEQS": "false", "ENGINE_LORA_MODULES": "'a"}
    with pytest.raises(entrypoint.Refused) as refused:
        entrypoint.arguments(settings, FLAGS)
    assert refused.value.code == 2
    assert refused.value.problems == [
        "ENGINE_MODEL is not set. Give it a directory or a hub name (Qwen/Qwen3-8B), in an --env-file or the environment",
        "ENGINE_ENFORCE_EAGER=false: --enforce-eager has no form that turns it off. Delete the line: it is off when it is not set",
        "ENGINE_MAX_NUM_SEQS=false: --max-num-seqs has no form that turns it off. Delete the line: it is off when it is not set",
        "ENGINE_LORA_MODULES: its value is not a list: no closing quotation",
    ]


def test_the_engine_inherits_nothing_of_ours_and_nothing_empty(entrypoint: ModuleType) -> None:
    settings = {"PATH": "/bin", "VLLM_LOGGING_LEVEL": "DEBUG", "CUDA_VISIBLE_DEVICES": "", "VLLM_PORT": "", "ENGINE_MODEL": "/m", "GATEWAY_PORT": "1",
                "HOST_PROJECT": "p", "IMAGE_TARGET": "cpu", "MODEL_DIR": "/m", "BUILD_CA_BUNDLE": "x", "BASE_IMAGE": "y", "WHEELHOUSE": "z",
                "HOSTNAME": "h"}
    assert entrypoint.engine_environment(settings) == {"PATH": "/bin", "VLLM_LOGGING_LEVEL": "DEBUG", "HOSTNAME": "h"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_catalogue_gives_lists_and_off_forms_their_spelling(entrypoint: ModuleType, target: str) -> None:
    flags = entrypoint.load_catalogue(target, ROOT / "docker" / "engine" / "catalogue")
    settings = {"ENGINE_MODEL": "/m", "ENGINE_TP": "1", "ENGINE_CUDAGRAPH_CAPTURE_SIZES": "1 2", "ENGINE_ENABLE_PREFIX_CACHING": "false"}
    assert entrypoint.arguments(settings, flags)[2:] == ["--tp", "1", "--cudagraph-capture-sizes", "1", "2", "--no-enable-prefix-caching"]


def test_in_an_image_the_only_catalogue_is_the_one(entrypoint: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cpu.json").write_text('{"flags": {"--a": {"nargs": "+", "negative": null, "aliases": ["-a", "--aa"]}}}')
    assert entrypoint.load_catalogue("", tmp_path).keys() == {"--a", "-a", "--aa"}
    assert entrypoint.load_catalogue("cuda", tmp_path) == {}
    (tmp_path / "cuda.json").write_text('{"flags": {}}')
    assert entrypoint.load_catalogue("", tmp_path) == {}


# --- the error that it passes on: lines as vLLM 0.32.0 printed them

CORE = "(EngineCore pid=28) ERROR 11-23 14:44:22 [core.py:1512] "
API = "(APIServer pid=8) ERROR 11-23 14:44:22 [async_llm.py:906] "
DEAD = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."


@pytest.mark.parametrize(("lines", "error"), [
    (["INFO:     Application startup complete.", "(APIServer pid=8) INFO 11-23 14:42:58 [entry.py:136] error: none"], ""),
    (["(Worker pid=39) WARNING 11-23 14:42:54 [x.py:1] ValueError: only a warning"], ""),
    (["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    raise ValueError('no')", "ValueError: no"], "ValueError: no"),
    (["AssertionError"], "AssertionError"),
    (["torch.OutOfMemoryError: CUDA out of memory."], "torch.OutOfMemoryError: CUDA out of memory."),
    (["usage: vllm serve [model_tag] [options]", "vllm serve: error: unrecognized arguments: --swap-space 4"],
     "vllm serve: error: unrecognized arguments: --swap-space 4"),
    ([f"{CORE}EngineCore failed to start.", f"{CORE}Traceback (most recent call last):", f"{CORE}    raise ValueError(",
      f"{CORE}ValueError: No room.", "Process EngineCore:", "Traceback (most recent call last):", "ValueError: No room.",
      "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"], "ValueError: No room."),
    (["(EngineCore pid=28) ERROR 11-23 14:44:22 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: None).",
      "(EngineCore pid=28) ERROR 11-23 14:44:22 [dump_input.py:72] Dumping input data for V1 LLM engine (v0.32.0) with config: model='/m'",
      f"{CORE}EngineCore encountered a fatal error.", f"{CORE}Traceback (most recent call last):", f"{CORE}RuntimeError: cancelled",
      f"{API}AsyncLLM output_handler failed.", f"{API}{DEAD}", "INFO:     Finished server process [8]"],
     "Worker proc VllmWorker-0 died unexpectedly (exit code: None)."),
    ([f"{API}AsyncLLM output_handler failed.", f"{API}{DEAD}"], "AsyncLLM output_handler failed."),
    (["(APIServer pid=14) WARNING 11-23 15:24:36 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; starting cleanup",
      f"{API}AsyncLLM output_handler failed.", f"{API}Traceback (most recent call last):", f"{API}{DEAD}"],
     "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"),
    (["ValueError: the reason", "(A pid=1) WARNING 11-23 15:24:36 [x.py:1] engine core exited unexpectedly"], "ValueError: the reason"),
    (["(EngineCore pid=28) ERROR 11-23 14:44:22 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: -9).",
      f"{CORE}RuntimeError: Executor failed.", f"{API}{DEAD}"], "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)."),
    ([DEAD], DEAD),
    (["ValueError: bad", "asyncio.exceptions.CancelledError"], "ValueError: bad"),
    ([f"{CORE}ValueError: one", f"{CORE}Check your internet connection."], "ValueError: one"),
    (["pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", "  Value error, it is too large", "    For further"],
     "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, it is too large"),
    (["\x1b[1;31mValueError: in colour\x1b[0m"], "ValueError: in colour"),
    (["terminate called after throwing an instance of 'c10::Error'", "  what():  CUDA error: no kernel image"],
     "terminate called after throwing an instance of 'c10::Error' what():  CUDA error: no kernel image"),
    (["ValueError: \udcff\x07 odd"], "ValueError: ?? odd"),
    (["ValueError: " + "x" * 9000], "ValueError: " + "x" * 488 + "…"),
])
def test_the_error_that_says_most_is_remembered(entrypoint: ModuleType, lines: list[str], error: str) -> None:
    last = entrypoint.LastError()
    for line in lines:
        last.see(line.encode("utf-8", "surrogateescape"))
    assert str(last).replace("�", "?") == error


def test_a_request_that_failed_long_ago_is_not_blamed_for_a_death_now(entrypoint: ModuleType) -> None:
    last = entrypoint.LastError()
    last.see(b"ValueError: a bad request")
    last.cause_at -= 60
    last.see(b"Worker proc VllmWorker-0 died unexpectedly (exit code: -9)")
    assert str(last) == "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"


# --- a host without Docker, and the whole program

STAND_IN = """
import os, signal, subprocess, sys, time
def say(text, to=1):  # not print: a signal handler may come in between
    data = text.encode()
    while data:
        data = data[os.write(to, data):]
"""


@dataclass(kw_only=True)
class Pod:
    """A host on which `vllm` is a stand-in: what it does is given as Python."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def install(self, body: str) -> None:
        package = self.folder / "vllm" / "entrypoints" / "cli"
        package.mkdir(parents=True)
        (package / "main.py").write_text(STAND_IN + body)
        for path in (package, package.parent, package.parent.parent):
            (path / "__init__.py").touch()

    def env_file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, str(ENTRYPOINT), *map(str, words)]

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": f"{self.folder}:{ENTRYPOINT.parent}", "ENGINE_MODEL": "/m",
                "IMAGE_TARGET": "cpu", **extra}

    def run(self, *words: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), env=self.environment(extra), capture_output=True, text=True, timeout=60, check=False)

    def start(self, *words: str | Path, **extra: str) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(self.command(*words), env=self.environment(extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.running.append(started)
        return started


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    host = Pod(folder=tmp_path)
    yield host
    for process in host.running:
        assert not Tree(process.pid).kill(30), "the engine goes with its entrypoint, which passes no SIGKILL on"
        process.communicate()


def read_until(process: subprocess.Popen[bytes], text: bytes, deadline_s: float = 30) -> bytes:
    """What `process` prints on stdout up to `text`."""
    assert process.stdout
    got, end = b"", time.monotonic() + deadline_s
    while text not in got:
        assert select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0], f"no {text!r} in {got!r}"
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, f"it ended without {text!r}: {got!r}"
        got += chunk
    return got


def last_line(text: str | bytes) -> str:
    return (text.decode(errors="replace") if isinstance(text, bytes) else text).rstrip("\n").rpartition("\n")[2]


def eventually(reached: Callable[[], bool], what: str, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def exists(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that nobody has collected does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("there", "set_already", "expected"), [
    (True, "", "found"),
    (True, "/elsewhere", "/elsewhere"),
    (False, "", ""),
])
def test_triton_is_told_where_the_driver_is_when_the_loaders_cache_does_not_know(entrypoint: ModuleType, tmp_path: Path, there: bool,
                                                                              set_already: str, expected: str) -> None:
    if there:
        (tmp_path / "libcuda.so.1").touch()
    given = {"PATH": "/bin"} | ({"TRITON_LIBCUDA_PATH": set_already} if set_already else {})
    found = entrypoint.triton_finds_the_driver(given, [tmp_path / "absent", tmp_path])
    assert found.get("TRITON_LIBCUDA_PATH", "") == (str(tmp_path) if expected == "found" else expected)
    assert found["PATH"] == "/bin"


def test_print_shows_environment_and_command_and_starts_nothing(pod: Pod) -> None:
    pod.install("say('started')")
    base = pod.env_file("base.env", "ENGINE_PORT=8000\nENGINE_MAX_NUM_SEQS=16\nVLLM_LOGGING_LEVEL=INFO\nHF_TOKEN=hf_secret\nOMP_NUM_THREADS=\n")
    site = pod.env_file("site.env", "ENGINE_MAX_NUM_SEQS=32\nENGINE_API_KEY=sk-1 sk-2\nENGINE_COMPILATION_CONFIG={\"mode\": 3}\nENGINE_PORT=\n")
    done = pod.run("--env-file", base, "--env-file", site, "--print", VLLM_LOGGING_LEVEL="DEBUG", ENGINE_DTYPE="bfloat16", ENGINE_MAX_NUM_SEQS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "export VLLM_LOGGING_LEVEL=INFO",
        "export HF_TOKEN=[REDACTED]",
        "vllm serve /m --dtype bfloat16 --max-num-seqs 32 --api-key '[REDACTED]' '[REDACTED]' --compilation-config '{\"mode\": 3}'",
    ]


def test_the_bundles_own_env_files_give_a_command(pod: Pod) -> None:
    for profile in ("cpu", "throughput", "latency"):
        done = pod.run("--env-file", ROOT / "env" / "base.env", "--env-file", ROOT / "env" / f"{profile}.env", "--print")
        assert done.returncode == 0, done.stderr
        assert "\nvllm serve /m --" in f"\n{done.stdout}"


def test_without_a_catalogue_it_says_how_it_goes_on(pod: Pod) -> None:
    done = pod.run("--print", IMAGE_TARGET="rocm", ENGINE_ASYNC_SCHEDULING="false", ENGINE_CUDAGRAPH_CAPTURE_SIZES="1 2")
    assert done.stdout == "vllm serve /m --no-async-scheduling --cudagraph-capture-sizes '1 2'\n"
    assert done.stderr == "entrypoint: no flag catalogue for IMAGE_TARGET=rocm: `false` becomes --no-…, and every value is one argument\n"


def test_wrong_env_files_are_refused_with_every_line_that_is_wrong(pod: Pod) -> None:
    pod.install("say('started')")
    first = pod.env_file("a.env", "ENGINE_A=1\nENGINE_A=2\nexport B=1\n")
    second = pod.env_file("b.env", "C=$X\n")
    done = pod.run("--env-file", first, "--env-file", second, "--env-file", pod.folder / "none.env")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"entrypoint: {first}:2: ENGINE_A is set twice in this file (first in line 1); delete one of the two lines",
        f"entrypoint: {first}:3: not KEY=VALUE with an upper-case key at the start of the line: 'export B'",
        f"entrypoint: {second}:1: C: `$` and `#` mean something to Compose; put the value in single quotes, and a comment in a line of its own",
        f"entrypoint: {pod.folder}/none.env: cannot be read: No such file or directory",
    ]


def test_no_model_is_refused_with_what_to_do(pod: Pod) -> None:
    done = pod.run("--print", ENGINE_MODEL="", MODEL_DIR="/models/x")
    assert done.returncode == 2
    assert done.stderr.startswith("entrypoint: ENGINE_MODEL is not set. Give it a directory or a hub name")
    assert done.stderr.endswith(" (MODEL_DIR=/models/x is what Compose mounts: name that directory)\n")


def test_a_python_without_vllm_is_named(pod: Pod) -> None:
    done = pod.run()
    assert done.returncode == 3
    assert last_line(done.stderr).startswith(f"entrypoint: {sys.executable} has no vLLM. Run this file with the Python of the environment")


def test_an_unknown_option_is_refused(pod: Pod) -> None:
    assert pod.run("--model", "x").returncode == 2


def test_the_engine_gets_its_words_and_its_environment(pod: Pod) -> None:
    pod.install("say(repr(sys.argv[1:]) + repr({k: v for k, v in os.environ.items() if k[:5] in ('VLLM_', 'ENGIN', 'MODEL', 'IMAGE')}))")
    done = pod.run(ENGINE_MAX_NUM_SEQS="16", VLLM_X="y", VLLM_EMPTY="", MODEL_DIR="/m")
    assert done.stdout == "['serve', '/m', '--max-num-seqs', '16']{'VLLM_X': 'y'}\n"
    assert done.stderr.startswith("entrypoint: starting: vllm serve /m --max-num-seqs 16\n")


# --- how the engine ends

@pytest.mark.parametrize(("body", "code", "line"), [
    ("sys.exit(0)", 1, "the engine ended unasked with code 0 after N s; it printed no error"),
    ("sys.exit(7)", 7, "the engine ended unasked with code 7 after N s; it printed no error"),
    ("raise ValueError('no room')", 1, "the engine ended unasked with code 1 after N s; its last error: ValueError: no room"),
    ("say('RuntimeError: on stdout\\n'); sys.exit(0)", 1, "the engine ended unasked with code 0 after N s; its last error: RuntimeError: on stdout"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "the engine died of SIGKILL after N s; it printed no error"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "the engine died of SIGSEGV after N s; it printed no error"),
])
def test_an_engine_that_ends_unasked_is_a_failure_with_its_error(pod: Pod, body: str, code: int, line: str) -> None:
    pod.install(body)
    done = pod.run()
    assert done.returncode == code
    said = last_line(done.stderr)
    seconds = said.partition(" after ")[2].partition(" s")[0]
    assert seconds.isdigit()
    assert said.replace(f"after {seconds} s", "after N s") == f"entrypoint: {line}"


WAITS = """
def stop(number, frame):
    say(f'got {signal.Signals(number).name}\\n')
    EXIT
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
say('up\\n')
while True:  # not signal.pause(): a signal between Python's last look and that call would wait for the next one
    time.sleep(0.02)
"""


@pytest.mark.parametrize(("sent", "received"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGTERM")])
def test_a_stop_that_was_asked_for_reaches_the_engine_and_is_a_clean_end(pod: Pod, sent: signal.Signals, received: str) -> None:
    pod.install(WAITS.replace("EXIT", "sys.exit(0)"))
    process = pod.start()
    read_until(process, b"up\n")
    process.send_signal(sent)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output == f"got {received}\n".encode()
    assert last_line(errors).startswith(f"entrypoint: the engine was asked to stop ({sent.name}) and ended with code 0 after ")


def own_address() -> str:
    """An address of this host that is none of the loopback's; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def ask_ready(address: str, port: int) -> str:
    with socket.create_connection((address, port), 10) as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


@pytest.mark.parametrize("asked", [True, False])
def test_a_gateway_that_asks_is_told_before_the_engine_stops_to_take_requests(pod: Pod, asked: bool) -> None:
    pod.install(WAITS.replace("EXIT", "sys.exit(0)").replace("up\\n", "INFO: Application startup complete.\\nup\\n"))
    port = free_port()
    process = pod.start(HEALTH_PORT=str(port))
    read_until(process, b"up\n")
    ask_ready(own_address() if asked else "127.0.0.1", port)  # Docker's own check asks from inside
    began = time.monotonic()
    process.terminate()
    if asked:
        wait_until(lambda: "the engine is stopping" in ask_ready(own_address(), port), deadline_s=2, what="the gateway is told")
        assert process.stdout
        assert not select.select([process.stdout], [], [], 0)[0], "the engine knows nothing of it yet"
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, b"got SIGTERM\n")
    assert (time.monotonic() - began >= 3) == asked
    assert (b"asked to stop (SIGTERM): the gateway is told, and requests are still taken for 3 s" in errors) == asked


def test_who_asks_twice_to_stop_does_not_wait_for_the_gateway(pod: Pod) -> None:
    pod.install(WAITS.replace("EXIT", "sys.exit(0)").replace("up\\n", "INFO: Application startup complete.\\nup\\n"))
    port = free_port()
    process = pod.start(HEALTH_PORT=str(port))
    read_until(process, b"up\n")
    ask_ready(own_address(), port)
    process.terminate()
    wait_until(lambda: "the engine is stopping" in ask_ready(own_address(), port), deadline_s=10, what="the gateway is told")
    began = time.monotonic()
    process.terminate()
    process.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert process.returncode == 0


def test_an_engine_that_fails_while_it_stops_is_no_clean_end(pod: Pod) -> None:
    pod.install(WAITS.replace("EXIT", "sys.exit(3)"))
    process = pod.start()
    read_until(process, b"up\n")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 3


def test_an_engine_that_dies_of_the_signal_it_was_sent_says_so(pod: Pod) -> None:
    pod.install("say('up\\n'); time.sleep(600)")
    process = pod.start()
    read_until(process, b"up\n")
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert last_line(errors).startswith("entrypoint: the engine was asked to stop (SIGTERM) and died of SIGTERM after ")


IGNORES = "signal.signal(signal.SIGTERM, lambda *_: say('ignored\\n'))\nsay('PHASE\\n')\nwhile True: time.sleep(600)"


def changed(pod: Pod, line: str, other: str) -> list[str]:
    """The entrypoint with `other` in the place of one text."""
    text = ENTRYPOINT.read_text()
    assert text.count(line) == 1
    own = pod.folder / "changed.py"
    own.write_text(text.replace(line, other))
    return [sys.executable, str(own)]


def impatient(pod: Pod) -> list[str]:
    """The entrypoint with a short patience, for tests that would wait for it."""
    return changed(pod, "\nLOADING_STOP_S = 3\n", "\nLOADING_STOP_S = 0.3\n")


def test_a_stop_right_before_the_engine_starts_reaches_it(pod: Pod) -> None:
    pod.install("time.sleep(600)")
    start = "    engine = subprocess.Popen("
    command = changed(pod, start, f"    os.kill(os.getpid(), signal.SIGTERM)\n{start}")
    done = subprocess.run(command, env=pod.environment({}), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "the engine was asked to stop (SIGTERM) and died of SIGTERM" in last_line(done.stderr)


def test_an_engine_that_loses_a_stop_while_it_loads_is_killed(pod: Pod) -> None:
    pod.install(IGNORES.replace("PHASE", "loading"))
    process = subprocess.Popen(impatient(pod), env=pod.environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pod.running.append(process)
    read_until(process, b"loading\n")

    def over() -> bool:
        process.terminate()  # who asks again and again must not put off what the first one asked for
        return process.poll() is not None

    eventually(over, "the engine is not killed")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert "was asked to stop (SIGTERM) and died of SIGKILL" in last_line(errors)


def test_an_engine_that_answers_is_left_to_drain(pod: Pod) -> None:
    pod.install(IGNORES.replace("PHASE", "INFO:     Application startup complete."))
    process = subprocess.Popen(impatient(pod), env=pod.environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pod.running.append(process)
    read_until(process, b"complete.\n")
    process.terminate()
    read_until(process, b"ignored\n")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)


def test_every_further_signal_is_passed_on_once(pod: Pod) -> None:
    # An entrypoint that acts in a handler and waits beside it loses a signal that comes between the two: every moment of 20 µs is tried.
    pairs = 2000
    pod.install(f"""
both = signal.SIGTERM, signal.SIGINT
signal.pthread_sigmask(signal.SIG_BLOCK, both)
say('INFO:     Application startup complete.\\nup\\n')
for _ in range({2 * pairs}):
    say(signal.Signals(signal.sigwait(both)).name + '\\n')
""")
    process = pod.start()
    read_until(process, b"up\n")
    for pair in range(pairs):
        process.terminate()
        moment = time.perf_counter_ns() + pair % 20 * 1000
        while time.perf_counter_ns() < moment:
            pass
        process.send_signal(signal.SIGINT)
        got = read_until(process, b"SIGINT\n")
        assert sorted((got if b"TERM" in got else got + read_until(process, b"TERM\n")).split()) == [b"SIGINT", b"SIGTERM"]
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, b"")


def test_a_signal_to_the_group_as_from_a_terminal_reaches_the_engine_once(pod: Pod) -> None:
    pod.install("count = 0\n" + WAITS.replace("EXIT", "global count; count += 1; time.sleep(0.5); say(f'{count} in all\\n'); sys.exit(0)"))
    process = subprocess.Popen(pod.command(), env=pod.environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    pod.running.append(process)
    read_until(process, b"up\n")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output == b"got SIGINT\n1 in all\n"


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_core_that_outlives_its_engine_is_killed(pod: Pod, end: str) -> None:
    pod.install(f"child = subprocess.Popen(['sleep', '600']); say(f'core {{child.pid}}\\n'); {end}")
    process = pod.start()
    output, _ = process.communicate(timeout=30)
    core = int(output.split()[1])
    eventually(lambda: not exists(core), f"process {core} is still there")


# --- an engine that hangs

SERVES = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'vllm:num_requests_running{engine="0"} 1.0\\n' if self.path == '/metrics' else b'')
    def log_message(self, *_): pass
core = subprocess.Popen(['sleep', '600'])
server = http.server.ThreadingHTTPServer(('127.0.0.1', PORT), Handler)
say(f'core {core.pid}\\n')
server.serve_forever()
"""


def serving(pod: Pod, **extra: str) -> tuple[subprocess.Popen[bytes], int]:
    """An entrypoint whose engine has answered with one request running, and the number of that engine's core."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pod.install(SERVES.replace("PORT", str(port)))
    process = pod.start(**{"ENGINE_PORT": str(port), "HEALTH_STALL_S": "2", **extra})
    return process, int(read_until(process, b"\n").split()[1])


def test_an_engine_that_stands_still_is_ended_with_its_reason_and_a_code_of_its_own(pod: Pod) -> None:
    process, core = serving(pod)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert re.fullmatch(r"entrypoint: the engine hung and was ended after \d+ s: no token for \d+ s with 1 running, 0 waiting", last_line(errors))
    eventually(lambda: not exists(core), f"process {core} is still there")
    assert (pod.folder / ".cache" / "vllm-bundle" / "ends.json").read_text().count(",") == 1


def test_an_engine_with_a_process_that_was_stopped_is_ended(pod: Pod) -> None:
    process, core = serving(pod, HEALTH_STALL_S="3")
    os.kill(core, signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert last_line(errors).endswith(f"sleep (process {core}) is stopped (SIGSTOP)")
    eventually(lambda: not exists(core), f"process {core} is still there")


def test_an_engine_that_was_asked_to_stop_is_not_ended_for_standing_still_meanwhile(pod: Pod) -> None:
    process, _ = serving(pod, HEALTH_STALL_S="600")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"hung" not in errors


@pytest.mark.parametrize(("name", "value"), [("HEALTH_STALL_S", "soon"), ("HEALTH_STALL_S", "0"), ("HEALTH_PORT", "x"), ("ENGINE_PORT", "-1")])
def test_a_time_or_port_that_is_none_is_refused(pod: Pod, name: str, value: str) -> None:
    pod.install("say('started')")
    done = pod.run(**{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert last_line(done.stderr) == f"entrypoint: {name}={value!r} is not a positive number"


# --- what the engine prints

def test_output_passes_unchanged_on_the_stream_it_came_from(pod: Pod) -> None:
    pod.install("os.write(1, bytes(range(256)) + b'\\r 10%\\r 20%\\r\\n'); os.write(2, b'\\xff\\x00 no newline'); sys.exit(3)")
    process = pod.start()
    output, errors = process.communicate(timeout=30)
    assert output == bytes(range(256)) + b"\r 10%\r 20%\r\n"
    assert errors.splitlines()[1] == b"\xff\x00 no newline"
    assert last_line(errors).startswith("entrypoint: the engine ended unasked with code 3"), "its own line starts a line"


def test_output_appears_at_once_and_half_lines_too(pod: Pod) -> None:
    pod.install("say('loading  10%'); time.sleep(600)")
    process = pod.start()
    assert read_until(process, b"10%") == b"loading  10%"


def test_a_line_without_end_is_passed_on_and_not_kept(pod: Pod) -> None:
    pod.install("say('x' * 20_000_000 + '\\nValueError: behind it\\n'); sys.exit(1)")
    done = pod.run()
    assert done.stdout == "x" * 20_000_000 + "\nValueError: behind it\n"
    assert done.stderr.endswith("its last error: ValueError: behind it\n")


def test_only_the_start_of_a_long_line_is_held_in_memory(entrypoint: ModuleType) -> None:
    class Longest:
        length = 0

        def see(self, raw: bytes) -> None:
            self.length = max(self.length, len(raw))

    printer = subprocess.Popen([sys.executable, "-c", "print('x' * 2_000_000)"], stdout=subprocess.PIPE)
    longest = Longest()
    with Path(os.devnull).open("wb") as nowhere:
        entrypoint.pass_on(printer.stdout, nowhere.fileno(), longest)
    printer.communicate()
    assert 0 < longest.length <= entrypoint.LINE_LIMIT + 65536


def test_progress_bars_do_not_hide_an_error(pod: Pod) -> None:
    pod.install("say('\\r 10%|#' * 3 + '\\rValueError: on the bar\\r', 2); sys.exit(1)")
    assert pod.run().stderr.endswith("its last error: ValueError: on the bar\n")


def test_the_engine_serves_on_when_nobody_reads_its_output(pod: Pod) -> None:
    # `entrypoint.py … | head -1`: the reader goes, the engine prints on, more than a pipe holds.
    mark = pod.folder / "mark"
    pod.install(f"say('up\\n')\nwhile not os.path.exists({str(mark)!r} + '.closed'): time.sleep(0.02)\nsay('x' * 1_000_000)\n"
                f"open({str(mark)!r}, 'w').close()\n" + WAITS.replace("EXIT", "sys.exit(0)"))
    process = pod.start()
    read_until(process, b"up\n")
    assert process.stdout
    process.stdout.close()
    Path(f"{mark}.closed").touch()
    eventually(mark.exists, "the engine does not get past its output")
    process.terminate()
    assert process.wait(timeout=30) == 0


# --- auto: the most memory that starts

AUTO = {"ENGINE_GPU_MEMORY_UTILIZATION": "auto"}


def nvidia_smi(pod: Pod, script: str) -> dict[str, str]:
    """A PATH with an nvidia-smi of this script."""
    program = pod.folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("rows", "share"), [
    (["0, 32607, 494, 32112"], "0.968"), (["0, 32607, 494, 20480"], "0.605"),
    (["0, 32607, 494, 32112", "1, 32607, 494, 10240"], "0.286"), (["0, 32607, [N/A], 32112"], "0.953"),
])
def test_auto_becomes_the_most_that_starts_on_the_fullest_gpu(pod: Pod, rows: list[str], share: str) -> None:
    pod.install("say(repr(sys.argv[1:]))")
    path = nvidia_smi(pod, "\n".join(f"echo '{row}'" for row in rows))
    done = pod.run(**AUTO, **path)
    assert done.stdout == f"['serve', '/m', '--gpu-memory-utilization', '{share}']\n"
    assert f"entrypoint: starting: vllm serve /m --gpu-memory-utilization {share}\n" in done.stderr
    assert done.stderr.count("entrypoint: auto: GPU ") == len(rows)
    assert pod.run("--print", **AUTO, **path).stdout.endswith("vllm serve /m --gpu-memory-utilization auto\n")


def test_auto_measures_the_gpus_that_the_engine_may_use(pod: Pod) -> None:
    pod.install("say(repr(sys.argv[-1]))")
    path = nvidia_smi(pod, "case $* in *--id=1) echo '1, 32607, 494, 10240' ;; *) echo '0, 32607, 494, 32112' ;; esac")
    assert pod.run(CUDA_VISIBLE_DEVICES="1", **AUTO, **path).stdout == "'0.286'\n"


@pytest.mark.parametrize(("script", "said"), [
    ("echo 'No devices were found'; exit 6", "the GPU's memory cannot be measured: nvidia-smi says: No devices were found"),
    ("echo '0, 32607, [N/A], [N/A]'", "the GPU's memory cannot be measured: nvidia-smi says: 0, 32607, [N/A], [N/A]"),
    ("echo '0, 32607, 494, 900'", "no memory is left on a GPU. End what uses it (nvidia-smi lists it)"),
])
def test_a_gpu_that_cannot_be_measured_is_refused_with_what_was_said(pod: Pod, script: str, said: str) -> None:
    pod.install("say('started')")
    done = pod.run(**AUTO, **nvidia_smi(pod, script))
    assert (done.returncode, done.stdout) == (3, "")
    assert last_line(done.stderr) == f"entrypoint: auto: {said}. Write a number instead: 0.9"


def test_auto_without_nvidia_smi_is_refused(pod: Pod) -> None:
    pod.install("say('started')")
    done = pod.run(PATH="/nonexistent", **AUTO)
    assert done.returncode == 3
    assert "auto: the GPU's memory cannot be measured: [Errno 2] No such file or directory: 'nvidia-smi'" in last_line(done.stderr)


# --- auto: what suits the checkpoint and the GPU (tests/unit/test_words.py holds it to what the host says)

QUANTIZATION = {"ENGINE_QUANTIZATION": "auto", "ENGINE_SEED": "7"}


def checkpoint(pod: Pod, **more: object) -> dict[str, str]:
    (pod.folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **more}))
    return {"ENGINE_MODEL": str(pod.folder)}


def test_16_bit_weights_become_8_bit_ones_on_a_gpu_that_can_and_one_line_says_why(pod: Pod) -> None:
    pod.install("say(repr(sys.argv[3:]))")
    path, model = nvidia_smi(pod, "echo '12.0, NVIDIA GeForce RTX 5090'"), checkpoint(pod)
    done = pod.run(**QUANTIZATION, **path, **model)
    assert done.stdout == "['--quantization', 'fp8_per_tensor', '--seed', '7']\n"
    assert done.stderr.count("entrypoint: ENGINE_QUANTIZATION=auto: fp8_per_tensor: 16-bit weights, and NVIDIA GeForce RTX 5090 (12.0) computes in "
                             "8-bit floating point\n") == 1
    assert pod.run("--print", **QUANTIZATION, **path, **model).stdout.endswith("--quantization auto --seed 7\n"), "--print asks no GPU"


def test_a_quantized_checkpoint_needs_no_gpu_to_look_at_and_loses_the_flag(pod: Pod) -> None:
    pod.install("say(repr(sys.argv[3:]))")
    done = pod.run(**QUANTIZATION, **checkpoint(pod, quantization_config={"quant_method": "awq"}), PATH="/nonexistent")
    assert done.stdout == "['--seed', '7']\n"
    assert "entrypoint: ENGINE_QUANTIZATION=auto: not set: the checkpoint brings its own method (awq)\n" in done.stderr


def test_a_gpu_that_cannot_be_asked_is_refused_with_what_to_write(pod: Pod) -> None:
    pod.install("say('started')")
    done = pod.run(**QUANTIZATION, **checkpoint(pod), **nvidia_smi(pod, "echo 'No devices were found'; exit 6"))
    assert (done.returncode, done.stdout) == (3, "")
    assert last_line(done.stderr) == ("entrypoint: auto: its compute capability cannot be read: nvidia-smi says: No devices were found. "
                                      "Write a method (ENGINE_QUANTIZATION=fp8_per_tensor), or leave it empty")


def test_the_cpu_engine_asks_no_gpu(pod: Pod) -> None:
    pod.install("say(repr(sys.argv[3:]))")
    metadata = pod.folder / "vllm-0.32.0+cpu.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    done = pod.run(**QUANTIZATION, **checkpoint(pod), PATH="/nonexistent")
    assert done.stdout == "['--seed', '7']\n", done.stderr
    assert "not set: the CPU engine computes with weights as they are stored" in done.stderr


def test_both_words_together_become_their_values(pod: Pod) -> None:
    pod.install("say(repr(sys.argv[3:]))")
    path = nvidia_smi(pod, "case $* in *compute_cap*) echo '8.6, A' ;; *) echo '0, 32607, 494, 32112' ;; esac")
    done = pod.run(**QUANTIZATION, **AUTO, **checkpoint(pod), **path)
    assert done.stdout == "['--seed', '7', '--gpu-memory-utilization', '0.968']\n"


def test_a_number_of_requests_that_only_the_host_knows_is_refused(pod: Pod) -> None:
    pod.install("say('started')")
    done = pod.run(ENGINE_MAX_NUM_SEQS="auto")
    assert (done.returncode, done.stdout) == (2, "")
    assert "ENGINE_MAX_NUM_SEQS=auto: the host resolves it" in last_line(done.stderr)
    assert "make check GPU=NAME FLATTEN=FILE" in last_line(done.stderr)


def test_the_entrypoint_and_fit_measure_with_the_same_margins(entrypoint: ModuleType) -> None:
    assert (entrypoint.AUTO_MARGIN_BYTES, entrypoint.CONTEXT_BYTES) == (estimation.AUTO_MARGIN_BYTES, devices.CONTEXT_BYTES)
    assert estimation.most_that_starts(devices.find("rtx-5090")) == 0.968, "as with the first of the GPUs above"
