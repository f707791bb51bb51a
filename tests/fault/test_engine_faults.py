"""What happens to the real engine, on the CPU, when a part of it hangs, dies, is stopped or has too much to do.

One container serves the whole file; a test that ends it leaves it to the next one to start it again.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bundle.config import settings
from support.gateway import docker
from support.project import wait_until

START_S = 300
HARDENED = ("--user", "2000:2000", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "8g", "--memory-swap", "8g",
            "--pids-limit", "1024", "--shm-size", "1g", "--tmpfs", "/tmp:mode=1777,size=1g")
PYTHON = "/opt/venv/bin/python"
READY = f"{PYTHON} /opt/bundle/healthchecks/ready.py"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The container `name`."""

    name: str

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads(docker("inspect", "--format", "{{json .State}}", self.name)))

    @property
    def health(self) -> str:
        return str(self.state["Health"]["Status"])

    @property
    def url(self) -> str:
        return "http://" + docker("port", self.name, "8000").split()[0]

    @property
    def log(self) -> str:
        return docker("logs", "--tail", "200", self.name)

    def check(self, script: str, **environment: str) -> tuple[int, str]:
        """Exit code and line of a health script, run beside the engine."""
        options = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
        done = subprocess.run(["docker", "exec", *options, self.name, PYTHON, f"/opt/bundle/healthchecks/{script}.py"],
                              capture_output=True, text=True, check=False, timeout=120)
        return done.returncode, done.stdout.strip()

    def processes(self, title: str) -> list[int]:
        """The processes of that title, by their number on the host."""
        lines = docker("top", self.name, "-eo", "pid,args").splitlines()[1:]
        return [int(line.split()[0]) for line in lines if title in line]

    @contextmanager
    def stopped(self, title: str = "VLLM::EngineCore") -> Iterator[None]:
        """Hold the process of that title with SIGSTOP."""
        (process,) = self.processes(title)
        os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process, signal.SIGCONT)

    def events(self, **request: Any) -> Iterator[str]:
        """A completion as a stream: the data of its events, as they come."""
        body = json.dumps({"model": "selftest", "prompt": "1", "temperature": 0, "ignore_eos": True, "stream": True, **request}).encode()
        to = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(to, timeout=300) as answer:
            for line in answer:
                if line.strip():
                    yield line.decode().removeprefix("data: ").strip()

    def ask(self, **request: Any) -> list[str]:
        """All events of a completion."""
        return list(self.events(**request))

    @contextmanager
    def asked_by(self, clients: int, *, max_tokens: int) -> Iterator[None]:
        """While the block runs, so many clients ask, and again as soon as they are answered; every answer has to be whole."""
        over = threading.Event()

        def keep_asking(number: int) -> set[str]:
            ends = set()
            while not over.is_set():
                ends.add(self.ask(max_tokens=max_tokens, prompt=f"{number} of {clients}")[-1])
            return ends

        with ThreadPoolExecutor(max_workers=clients) as pool:
            asking = [pool.submit(keep_asking, number) for number in range(clients)]
            try:
                yield
            finally:
                over.set()
            assert set().union(*(one.result() for one in asking)) == {"[DONE]"}

    def metric(self, name: str) -> float:
        """The engine's metric `name`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            (line,) = (line for line in answer.read().decode().splitlines() if line.startswith(f"vllm:{name}{{"))
        return float(line.split()[-1])

    def running(self) -> int:
        """Requests that the engine computes now."""
        return int(self.metric("num_requests_running"))

    def ended(self, deadline_s: float) -> dict[str, Any]:
        """Its state after it has ended."""
        wait_until(lambda: not self.state["Running"], deadline_s=deadline_s, what="the engine ends")
        return self.state


@pytest.fixture(scope="module")
def container() -> Iterator[Engine]:
    """The CPU profile's engine with the self-test model, hardened as compose.yaml has it; not waited for."""
    # Prompts are read in many small steps, so that one can be watched while it is.
    cpu = settings.load("cpu", sets=["ENGINE_MAX_MODEL_LEN=32768", "ENGINE_MAX_NUM_BATCHED_TOKENS=256"])
    own = [f"{key}={entry.value}" for key, entry in cpu.entries.items() if entry.value and (key.startswith("ENGINE_") or key in cpu.environment)]
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}-engine"
    docker("volume", "create", name)
    docker("create", "--name", name, "--init", *HARDENED, "--volume", f"{name}:/cache", "--publish", "127.0.0.1::8000",
           "--health-cmd", READY, "--health-interval", "1s", "--health-timeout", "60s", "--health-start-period", f"{START_S}s",
           "--env", "HEALTH_TIMEOUT_S=10", *(word for line in own for word in ("--env", line)), cpu.image_engine)
    yield Engine(name=name)
    docker("rm", "--force", "--volumes", name)
    docker("volume", "rm", name)


@pytest.fixture
def engine(container: Engine) -> Engine:
    """`container`, running and healthy. Its first request is the health check's own."""
    if not container.state["Running"]:
        docker("start", container.name)

    def healthy() -> bool:
        assert container.state["Running"], f"the engine ended:\n{container.log}"
        return container.health == "healthy"

    wait_until(healthy, deadline_s=START_S, what="the engine is healthy")
    return container


def test_a_core_that_hangs_is_unhealthy_though_its_api_answers_200_and_healthy_once_it_goes_on(engine: Engine) -> None:
    with engine.stopped():
        wait_until(lambda: engine.health == "unhealthy", deadline_s=180, what="Docker finds the engine unhealthy")
        with urllib.request.urlopen(f"{engine.url}/health", timeout=60) as answer:
            assert answer.status == 200, "the case is that /health notices nothing"
        assert engine.check("live") == (0, "ok: alive")
        said = [probe["Output"].strip() for probe in engine.state["Health"]["Log"] if probe["ExitCode"] != 0]
        assert any(re.fullmatch(r"POST /v1/completions: no answer in \d+ s; no token meanwhile, 0 running, 0 waiting", line) for line in said), said
        assert any(line.endswith("s ago got no answer, and nothing moved since: the engine hangs") for line in said), "it is not asked again at once"
    wait_until(lambda: engine.health == "healthy", deadline_s=120, what="Docker finds the engine healthy again")
    assert engine.ask(max_tokens=2)[-1] == "[DONE]"


def test_a_core_that_hangs_with_requests_makes_no_progress_until_it_goes_on(engine: Engine) -> None:
    with engine.asked_by(4, max_tokens=2000):
        wait_until(lambda: engine.running() == 4, deadline_s=60, what="four requests run")
        with engine.stopped():
            # A limit of 5 s: what is told apart here is moving from not moving, on any machine.
            wait_until(lambda: engine.check("progress", HEALTH_STALL_S="5")[0] == 1, deadline_s=120, what="no progress is seen")
            code, line = engine.check("progress", HEALTH_STALL_S="5")
            assert code == 1
            assert re.fullmatch(r"no token for \d+ s with [34] running, 0 waiting: the engine hangs", line), line
        wait_until(lambda: engine.check("progress", HEALTH_STALL_S="5")[0] == 0, deadline_s=60, what="progress is seen again")


def test_a_saturated_engine_is_healthy_all_the_time(engine: Engine) -> None:
    answers: list[tuple[int, str]] = []
    health: set[str] = set()
    seen_full = 0

    def look() -> bool:
        nonlocal seen_full
        answers.extend([engine.check("ready", HEALTH_TIMEOUT_S="20"), engine.check("progress", HEALTH_STALL_S="20"), engine.check("live")])
        health.add(engine.health)
        seen_full += engine.running() == 16
        return seen_full >= 4 and any(re.search("16 running, [1-9]", line) for _, line in answers)

    with engine.asked_by(32, max_tokens=200):
        wait_until(look, deadline_s=300, what="the engine computes all 16 requests that it takes at once, and others wait, time and again")
    assert [answer for answer in answers if answer[0] != 0] == []
    assert health == {"healthy"}


def test_reading_one_long_prompt_is_progress_though_no_token_is_counted_before_its_end(engine: Engine) -> None:
    looks = []
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(engine.ask, max_tokens=1, prompt=[5 + (n * n) % 200 for n in range(12_000)])
        while not stream.done():
            looks.append((engine.metric("iteration_tokens_total_count"), *engine.check("progress")))
        assert stream.result()[-1] == "[DONE]"
    assert {code for _, code, _ in looks} == {0}
    seen_moving = [line for (before, _, _), (after, _, line) in pairwise(looks) if before == after and line == "ok: 1 running, 0 waiting"]
    assert len(seen_moving) > 1, looks


def test_a_core_that_is_killed_ends_the_container_with_an_error_and_says_which(engine: Engine) -> None:
    (core,) = engine.processes("VLLM::EngineCore")
    os.kill(core, signal.SIGKILL)
    state = engine.ended(60)
    assert state["ExitCode"] == 1, "vLLM itself exits 0 here, and would not be restarted on failure"
    last = engine.log.rstrip().rpartition("\n")[2]
    assert last.startswith("entrypoint: the engine ended unasked with code 0 after ")
    assert "; its last error: " in last
    assert "engine core exited unexpectedly" in last


def test_a_worker_that_is_killed_ends_the_container_with_an_error_and_says_which(engine: Engine) -> None:
    (worker,) = engine.processes("VLLM::Worker")
    os.kill(worker, signal.SIGKILL)
    assert engine.ended(60)["ExitCode"] == 1
    last = engine.log.rstrip().rpartition("\n")[2]
    assert "; its last error: Worker proc VllmWorker-0 died unexpectedly" in last


def test_a_running_stream_is_finished_after_sigterm_and_the_end_is_clean(engine: Engine) -> None:
    stream = engine.events(max_tokens=300)
    first = next(stream)
    os.kill(engine.state["Pid"], signal.SIGTERM)
    events = [first, *stream]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert engine.ended(60)["ExitCode"] == 0
    assert engine.log.rstrip().rpartition("\n")[2].startswith("entrypoint: the engine was asked to stop (SIGTERM) and ended with code 0 after ")


def test_without_an_init_the_entrypoint_is_a_proper_first_process(tmp_path: Path) -> None:
    # The kernel gives process 1 no default signal handling, and hands it every orphan. A stand-in for vLLM: it starts at once.
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text("import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
                                     "subprocess.Popen(['sleep', '600'])\nprint('up', flush=True)\nwhile True: time.sleep(0.02)\n")
    tmp_path.chmod(0o755)
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}-first"
    docker("run", "--detach", "--name", name, *HARDENED, "--volume", f"{tmp_path}:/stand-in:ro", "--env", "PYTHONPATH=/stand-in",
           "--env", "ENGINE_MODEL=/m", settings.load("cpu").image_engine)
    try:
        wait_until(lambda: "\nup\n" in docker("logs", name), deadline_s=60, what="the stand-in is up")
        docker("stop", "--time", "60", name)
        state = json.loads(docker("inspect", "--format", "{{json .State}}", name))
        assert state["ExitCode"] == 0, docker("logs", name)
    finally:
        docker("rm", "--force", "--volumes", name)
