"""The process runtime: engines started by the entrypoint as processes of this host's vLLM, where Docker is not (a rented GPU pod, a cluster node).

Several engines can stay up side by side, each with its own share of a GPU that is much larger than the card which is measured for. vLLM takes
what it finds free on the GPU when it starts, and what it finds less after its profiling run, for its own doing. So only one engine at a time
may pass through that window: the next one is started early, since its imports take long, and held before the window until its turn comes.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import requests

from bundle import ROOT
from bundle.base import console, shell
from bundle.base.errors import BundleError, PrerequisiteError
from bundle.bench import proctree, runtimes
from bundle.bench.rundata import Ceilings, Provenance
from bundle.bench.runtimes import StartFailed
from bundle.bench.startphases import ENGINE_CORE_STARTS
from bundle.config.settings import MODEL_IN_CONTAINER, Settings
from bundle.fit import assessment, estimation
from bundle.machine import gpu
from bundle.machine.facts import Host
from bundle.machine.gpu import Gpu
from bundle.service import enginelog

ENGINE_FILES = ROOT / "docker" / "engine"
CACHES = {"XDG_CACHE_HOME": "", "HF_HOME": "/huggingface", "VLLM_CACHE_ROOT": "/vllm", "VLLM_CONFIG_ROOT": "/vllm-config",
          "TORCHINDUCTOR_CACHE_DIR": "/torchinductor", "TRITON_CACHE_DIR": "/triton", "CUDA_CACHE_PATH": "/cuda", "FLASHINFER_WORKSPACE_BASE": ""}
"""As docker/engine/Dockerfile has them under /cache, here under the run's own folder: a new run starts cold, a later start in it warm."""
POLL_S = 0.1
KILL_WAIT_S = 60
PROBE_LIMIT_S = 300
LINE_LIMIT = 65536


class ProcessRuntime:
    """Starts one engine, or several side by side, on free ports of the loopback address."""

    name = "process"

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir
        self.cards: tuple[Gpu, ...] = ()
        self._control: Settings | None = None
        self._engines: list[ProcessEngine] = []

    def prepare(self, settings: Sequence[Settings]) -> None:
        """As Runtime.prepare."""
        for each in settings:
            each.require()
        self._control = settings[0]
        if importlib.util.find_spec("vllm") is None:
            raise PrerequisiteError(f"{sys.executable} has no vLLM, which the process runtime starts",
                                    fix="run this with the Python that vLLM is installed in, or measure with the Compose runtime")
        for model in sorted({str(_model(each)) for each in settings}):
            if not Path(model).is_dir():
                raise PrerequisiteError(f"ENGINE_MODEL={model}: no such folder on this host",
                                        fix="name one that is there: --set ENGINE_MODEL=/path/to/model, or --set MODEL_DIR=…")
        if settings[0].image_target == "cuda":
            _gpu_is_free(settings[0])
        self.cards = runtimes.cards(settings, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        runtimes.warn_of_company(self.cards)

    def start(self, settings: Settings, label: str) -> "ProcessEngine":
        """As Runtime.start."""
        (outcome,) = self.start_together([(settings, label)])
        if isinstance(outcome, StartFailed):
            raise outcome
        return outcome

    def start_together(self, wanted: Sequence[tuple[Settings, str]]) -> "list[ProcessEngine | StartFailed]":
        """As Runtime.start_together. One engine at a time passes from its core's first line to its first answer; one more waits there, held."""
        outcomes: list[ProcessEngine | StartFailed] = []
        launched: list[ProcessEngine] = []
        try:
            for at in range(len(wanted)):
                if at == len(launched):
                    launched.append(self._launch(*wanted[at], hold=False))
                engine = launched[at]
                engine.let_go()

                def launch_next(at: int = at) -> None:
                    if len(launched) == at + 1 < len(wanted):
                        launched.append(self._launch(*wanted[at + 1], hold=True))

                try:
                    engine.wait_until_ready(in_window=launch_next)
                    outcomes.append(engine)
                except StartFailed as failed:
                    engine.stop()
                    outcomes.append(failed)
        except BaseException:
            for engine in launched:
                engine.stop()
            raise
        return outcomes

    def _launch(self, settings: Settings, label: str, *, hold: bool) -> "ProcessEngine":
        engine = ProcessEngine(settings, label, self.folder, hold=hold)
        self._engines.append(engine)
        return engine

    def probe(self) -> Ceilings:
        """As Runtime.probe, in the control's environment."""
        assert self._control is not None, "prepare comes first"  # noqa: S101
        environment = _environment(self.folder) | dict(self._control.environment)
        done = shell.run([sys.executable, str(ENGINE_FILES / "benchprobe.py")], timeout_s=PROBE_LIMIT_S, env=environment)
        return runtimes.probed(done.stdout)

    def provenance(self) -> Provenance:
        """As Runtime.provenance; there are no images."""
        return runtimes.provenance(self, runtimes.versions(), {})

    def close(self) -> None:
        """As Runtime.close."""
        for engine in self._engines:
            engine.stop()
        shutil.rmtree(self.folder / "cache", ignore_errors=True)


class ProcessEngine:
    """An engine and all the processes that it started; the constructor starts them. With `hold`, it stops at its core's first line."""

    def __init__(self, settings: Settings, label: str, folder: Path, *, hold: bool) -> None:
        port = _free_port()
        self.model = str(_model(settings))
        self.served_model_name = settings.served_model_name
        self.base_url = f"http://127.0.0.1:{port}"
        self.agent_argv = (sys.executable, str(ENGINE_FILES / "benchagent.py"))
        # vLLM's load generator heeds proxies, which are not for this host's own addresses.
        self.agent_environment = _environment(folder) | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        self.ready = self.held_s = 0.0
        self._limit_s, self._grace_s, self._label = settings.ready_timeout_s, float(settings.value("HOST_STOP_GRACE_S")), label
        self._lines: list[tuple[float, str]] = []
        self._client = requests.Session()
        self._client.trust_env = False  # no proxy either
        self._in_window, self._lock = threading.Event(), threading.Lock()
        self._hold, self._held_since, self._stopped = hold, 0.0, False

        where = {"ENGINE_HOST": "127.0.0.1", "ENGINE_PORT": str(port), "ENGINE_MODEL": self.model}
        own = settings.overridden(where, "set by the benchmark")
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        env_file = logs / f"{label}.env"
        env_file.write_text(own.flatten_engine(), encoding="utf-8")
        # IMAGE_TARGET: which flag catalogue of docker/engine/catalogue is this engine's.
        environment = _environment(folder) | {"IMAGE_TARGET": own.image_target}
        self.started = time.time()
        self._child = subprocess.Popen([sys.executable, str(ENGINE_FILES / "entrypoint.py"), "--env-file", str(env_file)], env=environment,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self._tree = proctree.Tree(self._child.pid)
        self._reader = threading.Thread(target=self._read, args=(logs / f"{label}.log",), daemon=True)
        self._reader.start()

    def log(self) -> list[tuple[float, str]]:
        return self._lines[:]

    def alive(self) -> bool:
        return self._child.poll() is None

    def let_go(self) -> None:
        """Let it pass through the window, and go on if it was held already."""
        with self._lock:
            self._hold = False
            if self._held_since:
                self.held_s += time.time() - self._held_since
                self._tree.signal(signal.SIGCONT)
                self._held_since = 0.0

    def wait_until_ready(self, *, in_window: Callable[[], None]) -> None:
        """Return when /health is 200 and a completion has been answered; `in_window` is called once, at the core's first line or the end.

        Raises StartFailed when the process ends before, or when HOST_READY_TIMEOUT_S have passed since its start, less what it was held.
        """
        shown, called = "", False
        while True:
            ended = not self.alive()
            if not called and (ended or self._in_window.is_set()):
                in_window()
                called = True
            waited = time.time() - self.started - self.held_s
            if ended:
                self.stop()  # what it left behind, and with that the log's last lines, which hold the error
                raise self._failed(enginelog.last_error(self._text()))
            if self._answers(self._limit_s - waited):
                self.ready = time.time()
                return
            now = enginelog.phase(self._text())
            if now != shown:
                console.note(f"  {self._label}: {now}, {waited:.0f} s of {self._limit_s:.0f} s")
                shown = now
                self._tree.running()  # what is seen now is found again should the entrypoint be killed
            if waited > self._limit_s:
                raise self._failed(f"not ready after {self._limit_s:.0f} s, last seen {now}",
                                   "a first start compiles kernels and may need longer: raise HOST_READY_TIMEOUT_S; else ")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """As Engine.stop. Raises BundleError when a process outlives SIGKILL: it would go on holding the GPU."""
        if self._stopped:
            return
        self._tree.running()  # what loses its parent while it ends can no longer be found by its parent
        if self.alive():
            self._child.terminate()  # the entrypoint passes it on, and kills an engine that is still loading, or held, after a moment
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(self._grace_s)
        left = self._tree.kill(KILL_WAIT_S)
        if left:
            raise BundleError(f"processes {', '.join(map(str, left))} of the engine {self._label} do not end", fix="nvidia-smi shows what they hold")
        self._child.wait()
        self._reader.join(KILL_WAIT_S)
        self._client.close()
        self._stopped = True

    def _failed(self, reason: str, advice: str = "") -> StartFailed:
        return StartFailed(reason=reason, remedy=advice + enginelog.remedy(self._text()), log=self.log())

    def _text(self) -> str:
        return "\n".join(line for _, line in self._lines)

    def _answers(self, patience_s: float) -> bool:
        question = {"model": self.served_model_name, "prompt": "ready?", "max_tokens": 1, "temperature": 0}
        try:
            if self._client.get(f"{self.base_url}/health", timeout=5).status_code != 200:
                return False
            reply = self._client.post(f"{self.base_url}/v1/completions", json=question, timeout=max(1.0, patience_s))
            return reply.status_code == 200 and bool(reply.json().get("choices"))
        except (requests.RequestException, ValueError):
            return False

    def _read(self, path: Path) -> None:
        """Note each line with the time of its arrival, until the last process has closed its output."""
        rest = b""
        assert self._child.stdout is not None  # noqa: S101  (it is a pipe)
        with path.open("w", encoding="utf-8") as kept, self._child.stdout as source:
            while chunk := os.read(source.fileno(), 65536):
                at = time.time()
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                rest = rest[:LINE_LIMIT]
                for line in lines:
                    self._note(at, line.decode(errors="replace"), kept.write)
                kept.flush()
            self._note(time.time(), rest.decode(errors="replace"), kept.write)

    def _note(self, at: float, line: str, keep: Callable[[str], object]) -> None:
        if not line.strip():
            return
        if ENGINE_CORE_STARTS in line:
            with self._lock:
                if self._hold and not self._held_since:
                    self._tree.signal(signal.SIGSTOP)
                    self._held_since = time.time()
            self._in_window.set()
        self._lines.append((at, line))
        keep(f"{at:.3f} {line}\n")


def _environment(folder: Path) -> dict[str, str]:
    """This process's, with the run's own caches, and without ENGINE_ keys: a cell is what its env files say."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("ENGINE_")}
    return own | {key: f"{folder.absolute()}/cache{place}" for key, place in CACHES.items()}


def _model(settings: Settings) -> Path:
    """The model's folder on this host: what Compose would mount, or what ENGINE_MODEL itself names."""
    named = settings.value("ENGINE_MODEL")
    mounted = assessment.model_folder(settings) if f"{named}/".startswith(f"{MODEL_IN_CONTAINER}/") else None
    return mounted or Path(named)


def _gpu_is_free(settings: Settings) -> None:
    """Raise PrerequisiteError where there is no GPU, or less of it free than the control asks for."""
    nvidia = gpu.read(Host())
    if not nvidia.gpus:
        raise PrerequisiteError(f"no GPU for profile {settings.profile}: {nvidia.error}", fix="measure the profile cpu, or install the NVIDIA driver")
    if refusal := assessment.share_refusal(settings, estimation.device_of(settings)):
        raise PrerequisiteError(f"ENGINE_GPU_MEMORY_UTILIZATION of the control: {refusal}", fix="end what uses the GPU (nvidia-smi lists it)")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
