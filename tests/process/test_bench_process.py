"""The process runtime and the GPU sampler with real processes: starts, failures, engines side by side, and what is left afterwards: nothing.

vLLM is a fake of a few lines that prints like vLLM, has a core process as vLLM has one, and answers; nvidia-smi is a fake shell script.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from bundle import ROOT
from bundle.base.errors import BundleError, PrerequisiteError
from bundle.bench import gpusampler, processruntime, runtimes, startphases
from bundle.bench.processruntime import ProcessEngine, ProcessRuntime
from bundle.bench.runtimes import StartFailed
from bundle.config import settings
from bundle.config.settings import Settings

# `folder` holds <name>.json, what to do; `events` in the order in which it happened; <name>.pids, its processes.
FAKE_COMMON = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(FOLDER)
def option(name):
    return sys.argv[sys.argv.index(name) + 1]
def happened(what):
    with (folder / "events").open("a") as events:
        events.write(f"{what} {name}\\n")
def say(text):
    os.write(1, (text + "\\n").encode())
def wait_for(there):
    while not there():
        time.sleep(0.01)
"""

FAKE_VLLM = """
name, port = option("--served-model-name"), int(option("--port"))
plan = json.loads((folder / f"{name}.json").read_text())
happened("launch")
(folder / f"{name}.environment").write_text(json.dumps(dict(os.environ)))
say(f"(APIServer pid={os.getpid()}) INFO 11-24 10:00:00 [api_utils.py:286] non-default args: {sys.argv[1:]}")
if plan.get("fails"):
    raise ValueError("No available memory for the cache blocks. (fake)")
core = subprocess.Popen([sys.executable, str(folder / "fake_core.py"), name], start_new_session=plan.get("own_session", False))
(folder / f"{name}.pids").write_text(f"{os.getpid()} {core.pid}")
wait_for((folder / f"{name}.loaded").exists)
say("(APIServer pid=1) INFO:     Application startup complete.")

from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        happened("completion")
        plan["refuses"] = plan.get("refuses", 0) - 1
        self.answer(json.dumps({"choices": [{"text": "x"}] if asked["model"] == name else []}).encode(), 200 if plan["refuses"] < 0 else 503)
    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
def stop(*_):
    if not plan.get("deaf"):
        if not plan.get("orphans"):
            core.kill()
        os._exit(0)
signal.signal(signal.SIGTERM, stop)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

FAKE_CORE = """
name = sys.argv[1]
plan = json.loads((folder / f"{name}.json").read_text())
def noted(label):
    log = folder / "run" / "logs" / f"{label}.log"
    return log.exists() and "Initializing a V1 LLM engine" in log.read_text()
def state(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
happened("core")
say(f"(EngineCore pid={os.getpid()}) INFO 11-24 10:00:01 [core.py:133] Initializing a V1 LLM engine (v0.0.0) with config: fake")
wait_for(lambda: noted(name))  # whoever holds it has done so by now
happened("enter")
if other := plan.get("watches"):
    wait_for(lambda: noted(other))
    pids = (folder / f"{other}.pids").read_text().split()
    end = time.monotonic() + 5
    while time.monotonic() < end and not all(state(pid) == "T" for pid in pids):
        time.sleep(0.01)
    time.sleep(0.3)  # an engine that is not held would enter now
    (folder / f"{name}.saw").write_text(" ".join(state(pid) for pid in pids))
say(f"(EngineCore pid={os.getpid()}) INFO 11-24 10:00:02 [model_runner.py:425] Model loading took 1.25 GiB and 2.5 seconds")
happened("leave")
if not plan.get("hangs"):
    (folder / f"{name}.loaded").touch()
time.sleep(600)
"""


@dataclass(kw_only=True)
class Pod:
    """A host on which `vllm` is the fake, and a run on it."""

    folder: Path
    runtime: ProcessRuntime

    def engine(self, name: str, *sets: str, **plan: object) -> tuple[Settings, str]:
        """What start_together takes: an engine that does what `plan` says."""
        (self.folder / f"{name}.json").write_text(json.dumps(plan))
        wanted = [f"ENGINE_MODEL={self.folder}", f"ENGINE_SERVED_MODEL_NAME={name}", "HOST_READY_TIMEOUT_S=60", *sets]
        return settings.load("cpu", sets=wanted, environ={}), name

    def running(self, name: str) -> list[int]:
        """Those of the engine's own processes that run."""
        return [pid for pid in map(int, (self.folder / f"{name}.pids").read_text().split()) if exists(pid)]

    @property
    def events(self) -> list[str]:
        return (self.folder / "events").read_text().splitlines()


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    common = FAKE_COMMON.replace("FOLDER", repr(str(tmp_path)))
    (package / "main.py").write_text(common + FAKE_VLLM)
    (tmp_path / "fake_core.py").write_text(common + FAKE_CORE)
    for path in (package, package.parent, package.parent.parent):
        (path / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    host = Pod(folder=tmp_path, runtime=ProcessRuntime(tmp_path / "run"))
    yield host
    host.runtime.close()
    for pids in tmp_path.glob("*.pids"):  # whatever a broken runtime left
        for pid in map(int, pids.read_text().split()):
            if exists(pid):
                os.kill(pid, signal.SIGKILL)


def exists(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that nobody has collected does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def eventually(reached: Callable[[], bool], what: str, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def came_up(outcome: ProcessEngine | StartFailed) -> ProcessEngine:
    assert isinstance(outcome, ProcessEngine), f"{outcome.reason}: {outcome.log}"
    return outcome


# --- one engine

def test_an_engine_is_ready_when_it_answers_a_completion(pod: Pod) -> None:
    before = time.time()
    engine = pod.runtime.start(*pod.engine("one", refuses=2))
    assert pod.events.count("completion one") == 3
    assert engine.alive()
    assert before <= engine.started < engine.ready <= time.time()
    assert engine.held_s == 0
    reply = requests.post(f"{engine.base_url}/v1/completions", json={"model": engine.served_model_name}, timeout=10)
    assert reply.json()["choices"]


def test_every_line_of_an_engine_is_stamped_and_kept(pod: Pod) -> None:
    engine = pod.runtime.start(*pod.engine("one"))
    log = engine.log()
    assert [at for at, _ in log] == sorted(at for at, _ in log)
    assert all(engine.started <= at <= time.time() for at, _ in log)
    assert "Model loading took 1.25 GiB and 2.5 seconds" in "\n".join(line for _, line in log)
    kept = (pod.folder / "run" / "logs" / "one.log").read_text().splitlines()
    assert kept == [f"{at:.3f} {line}" for at, line in log]
    found = startphases.phases(log, engine.started, engine.ready)
    assert [name for name, _ in found][1:3] == ["configuring", "starting the engine process"]


def test_an_engine_gets_its_settings_the_runs_own_caches_and_no_setting_from_outside(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("ENGINE_KV_CACHE_DTYPE", "fp8")
    engine = pod.runtime.start(*pod.engine("one", "ENGINE_MAX_NUM_SEQS=9"))
    (said,) = [line for _, line in engine.log() if "non-default args" in line]
    assert f"['serve', '{pod.folder}'" in said
    assert "'--max-num-seqs', '9'" in said
    assert "'--host', '127.0.0.1'" in said
    assert "fp8" not in said
    environment = json.loads((pod.folder / "one.environment").read_text())
    caches = {key: environment[key] for key in processruntime.CACHES}
    assert set(caches.values()) >= {f"{pod.folder}/run/cache/vllm", f"{pod.folder}/run/cache/triton", f"{pod.folder}/run/cache"}
    assert all(value.startswith(f"{pod.folder}/run/cache") for value in caches.values())
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_the_caches_are_those_that_the_image_keeps() -> None:
    dockerfile = (ROOT / "docker" / "engine" / "Dockerfile").read_text()
    assert dict(re.findall(r"^ {4}(\w+)=/cache(\S*)", dockerfile, re.MULTILINE)) == processruntime.CACHES | {"HOME": ""}


def test_the_model_is_the_folder_that_compose_would_mount(pod: Pod) -> None:
    wanted, _ = pod.engine("one", "ENGINE_MODEL=", f"MODEL_DIR={pod.folder}")
    assert pod.runtime.start(wanted, "one").model == str(pod.folder)


@pytest.mark.parametrize("plan", [{}, {"own_session": True}, {"orphans": True}, {"own_session": True, "orphans": True}, {"deaf": True}])
def test_stop_ends_every_process_of_the_engine(pod: Pod, plan: dict[str, object]) -> None:
    engine = pod.runtime.start(*pod.engine("one", "HOST_STOP_GRACE_S=2", "ENGINE_SHUTDOWN_TIMEOUT=1", **plan))
    assert len(pod.running("one")) == 2
    engine.stop()
    assert pod.running("one") == []
    assert not engine.alive()


def test_an_engine_that_has_died_is_not_alive(pod: Pod) -> None:
    engine = pod.runtime.start(*pod.engine("one"))
    os.kill(pod.running("one")[0], signal.SIGKILL)
    eventually(lambda: not engine.alive(), "the engine died and counts as alive")


def test_a_start_that_fails_gives_the_engines_own_error_and_what_to_do(pod: Pod) -> None:
    with pytest.raises(StartFailed) as failed:
        pod.runtime.start(*pod.engine("one", fails=True))
    assert failed.value.reason == "ValueError: No available memory for the cache blocks. (fake)"
    assert "ENGINE_MAX_MODEL_LEN" in failed.value.remedy
    assert failed.value.log[-1][1].startswith("entrypoint: the engine ended unasked with code 1")


def test_a_start_that_takes_too_long_says_how_far_it_came_and_leaves_nothing(pod: Pod) -> None:
    with pytest.raises(StartFailed) as failed:
        pod.runtime.start(*pod.engine("one", "HOST_READY_TIMEOUT_S=3", hangs=True))
    assert failed.value.reason.startswith("not ready after 3 s, last seen ")
    assert "HOST_READY_TIMEOUT_S" in failed.value.remedy
    assert pod.running("one") == []


def test_an_interrupted_start_leaves_nothing(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(engine: ProcessEngine, patience_s: float) -> bool:
        if (pod.folder / "one.pids").exists():
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(ProcessEngine, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pod.runtime.start(*pod.engine("one"))
    assert pod.running("one") == []


def test_close_leaves_no_process_and_no_cache(pod: Pod) -> None:
    pod.runtime.start(*pod.engine("one"))
    (pod.folder / "run" / "cache" / "vllm").mkdir(parents=True)
    pod.runtime.close()
    assert pod.running("one") == []
    assert not (pod.folder / "run" / "cache").exists()
    assert (pod.folder / "run" / "logs" / "one.log").exists()


# --- side by side

def test_one_engine_at_a_time_passes_through_the_window_and_all_stay_up(pod: Pod) -> None:
    first, second, third = pod.runtime.start_together([
        pod.engine("first", watches="second"), pod.engine("second", own_session=True, watches="third"), pod.engine("third")])
    assert (came_up(first).held_s, came_up(second).held_s > 0, came_up(third).held_s > 0) == (0, True, True)
    assert [event for event in pod.events if event.startswith(("enter", "leave"))] == [
        "enter first", "leave first", "enter second", "leave second", "enter third", "leave third"]
    assert [(pod.folder / f"{name}.saw").read_text() for name in ("first", "second")] == ["T T", "T T"], "all of it is held, not the core alone"
    assert pod.events.index("core first") < pod.events.index("launch second") < pod.events.index("leave first"), "it is started early"
    assert pod.events.index("leave first") < pod.events.index("launch third"), "only one waits"
    assert all(came_up(engine).alive() for engine in (first, second, third))
    for engine in (first, second, third):
        assert requests.get(f"{came_up(engine).base_url}/health", timeout=10).status_code == 200


def test_the_phases_of_an_engine_that_was_held_are_its_own_time(pod: Pod) -> None:
    _, second = pod.runtime.start_together([pod.engine("first", watches="second"), pod.engine("second")])
    engine = came_up(second)
    found = startphases.phases(engine.log(), engine.started, engine.ready, engine.held_s)
    assert sum(seconds for _, seconds in found) == pytest.approx(engine.ready - engine.started - engine.held_s)
    assert min(seconds for _, seconds in found) >= 0


def test_the_time_limit_of_a_start_leaves_out_what_it_was_held(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pod.engine("first", watches="second"), pod.engine("second")
    let_go = ProcessEngine.let_go

    def long_held(engine: ProcessEngine) -> None:
        if engine._held_since:
            engine._held_since -= 1000
            engine.started -= 1000
        let_go(engine)

    monkeypatch.setattr(ProcessEngine, "let_go", long_held)
    _, held = pod.runtime.start_together([first, second])
    assert came_up(held).held_s > 1000


def test_one_that_fails_does_not_keep_the_next_from_starting(pod: Pod) -> None:
    failed, good, failed_too = pod.runtime.start_together([pod.engine("bad", fails=True), pod.engine("good"), pod.engine("worse", fails=True)])
    assert isinstance(failed, StartFailed)
    assert isinstance(failed_too, StartFailed)
    assert came_up(good).alive()


def test_an_engine_that_is_held_can_be_stopped(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, interrupt = [pod.engine("first", watches="second", hangs=True), pod.engine("second")], KeyboardInterrupt

    def interrupted(engine: ProcessEngine, patience_s: float) -> bool:
        if (pod.folder / "first.saw").exists():
            raise interrupt
        return False

    monkeypatch.setattr(ProcessEngine, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pod.runtime.start_together(wanted)
    assert (pod.folder / "first.saw").read_text() == "T T"
    assert pod.running("first") + pod.running("second") == []


# --- before anything starts

def test_a_python_without_vllm_is_refused(pod: Pod) -> None:
    with pytest.raises(PrerequisiteError, match=rf"{re.escape(sys.executable)} has no vLLM"):
        pod.runtime.prepare([pod.engine("one")[0]])


def test_a_model_that_is_no_folder_is_refused(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(pod.folder))
    pod.runtime.prepare([pod.engine("one")[0]])
    with pytest.raises(PrerequisiteError, match=r"ENGINE_MODEL=/no/such/model: no such folder"):
        pod.runtime.prepare([pod.engine("one")[0], pod.engine("one", "ENGINE_MODEL=/no/such/model")[0]])


def test_a_gpu_profile_without_a_gpu_is_refused(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(pod.folder))
    nvidia_smi(pod.folder, monkeypatch, "echo 'No devices were found'; exit 6")
    wanted = settings.load("throughput", sets=[f"ENGINE_MODEL={pod.folder}"], environ={})
    with pytest.raises(PrerequisiteError, match=r"no GPU for profile throughput: No devices were found"):
        pod.runtime.prepare([wanted])


def test_a_gpu_with_less_free_than_the_control_asks_for_is_refused(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(pod.folder))
    nvidia_smi(pod.folder, monkeypatch, "echo '0, NVIDIA Fake, 12.0, 32607, 8000, 580.95, GPU-1'")
    wanted = settings.load("throughput", sets=[f"ENGINE_MODEL={pod.folder}", "ENGINE_GPU_MEMORY_UTILIZATION=0.9"], environ={})
    with pytest.raises(PrerequisiteError, match=r"ENGINE_GPU_MEMORY_UTILIZATION of the control: "):
        pod.runtime.prepare([wanted])


# --- what is measured on

def test_the_probes_last_line_is_its_answer(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(pod.folder))
    monkeypatch.setattr(processruntime, "ENGINE_FILES", pod.folder)
    (pod.folder / "benchprobe.py").write_text("import os; print('noise'); print('{\"device\": \"' + os.environ['VLLM_LOGGING_LEVEL'] + '\"}')")
    pod.runtime.prepare([pod.engine("one", "VLLM_LOGGING_LEVEL=DEBUG")[0]])
    assert pod.runtime.probe() == {"device": "DEBUG"}
    (pod.folder / "benchprobe.py").write_text("print('no JSON')")
    with pytest.raises(BundleError, match=r"benchprobe\.py did not end with its line of JSON \(.*\): 'no JSON'"):
        pod.runtime.probe()


def test_the_figures_name_what_they_come_from(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(pod.folder, monkeypatch, "echo '0, NVIDIA Fake, 12.0, 32768, 32000, 580.95, GPU-1'")
    monkeypatch.setattr(runtimes, "PACKAGES", ("requests", "nosuch"))
    pod.runtime.cards = runtimes.cards([settings.load("throughput", environ={})])
    found = pod.runtime.provenance()
    assert found["runtime"] == "process"
    assert (found["gpu"], found["driver"], found["gpu_memory_gib"]) == ("NVIDIA Fake", "580.95", 32)
    assert found["engine"] == {"requests": requests.__version__}
    assert found["image"] == {}
    assert re.fullmatch(r"[0-9a-f]{40}|", found["git_commit"])
    assert found["host"]["cpus"] >= 1
    assert found["host"]["memory_gib"] > 0
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


# --- the GPU sampler

def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a fake nvidia-smi of this shell script on PATH."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def sampled(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> dict[str, list[float]]:
    """What the sampler makes of these lines of nvidia-smi, all of them in its window."""
    done = folder / "done"
    nvidia_smi(folder, monkeypatch, "\n".join(f"echo '{line}'" for line in lines) + f"\ntouch {done}\nexec sleep 600")
    start = time.time()
    with gpusampler.Sampler([0]) as sampler:
        eventually(done.exists, "the fake does not run")
        eventually(lambda: len(sampler._rows) == sum(line[:1].isdigit() for line in lines), "not all lines arrived")
        return sampler.window(start, time.time())


def test_memory_power_and_utilization_are_sampled_until_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; echo \"$*\" > {tmp_path}/asked\n"
                                      "while :; do echo '0, 2048, 300.5, 97'; sleep 0.02; done")
    start = time.time()
    with gpusampler.Sampler([0]) as sampler:
        eventually(lambda: len(sampler.window(start, time.time())["t_s"]) >= 3, "no samples")
        found = sampler.window(start, time.time())
    assert set(found["memory_gib"]) == {2.0}
    assert set(found["watts"]) == {300.5}
    assert set(found["utilization"]) == {97.0}
    assert found["t_s"] == sorted(found["t_s"])
    assert found["t_s"][0] >= 0
    assert sampler.window(start - 20, start - 10) == {"t_s": [], "memory_gib": [], "watts": [], "utilization": []}
    assert "--loop-ms=500" in (tmp_path / "asked").read_text()
    assert not exists(int((tmp_path / "pid").read_text()))


def test_several_gpus_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sampled(tmp_path, monkeypatch, ["0, 1024, 100, 50", "1, 2048, 150, 100", "0, 1024, 110, 60", "1, 2048, 160, 80", "0, 1024, 120, 70"])
    assert found["memory_gib"] == [3, 3], "the third moment is not whole yet"
    assert found["watts"] == [250, 270]
    assert found["utilization"] == [75, 70]


def test_what_the_driver_does_not_tell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sampled(tmp_path, monkeypatch, ["0, 1024, [N/A], 50", "some warning", "0, [Unknown Error], [N/A], 50", "0, 3072, [N/A], 60"])
    assert found["watts"] == []
    assert found["memory_gib"] == [1, 3]
    assert found["utilization"] == [50, 60]
    assert len(found["t_s"]) == 2


def test_without_nvidia_smi_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with gpusampler.Sampler([0]) as sampler:
        assert sampler.window(0, time.time()) == {"t_s": [], "memory_gib": [], "watts": [], "utilization": []}


def test_the_sampler_looks_at_the_gpus_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"echo \"$*\" > {tmp_path}/asked.part; mv {tmp_path}/asked.part {tmp_path}/asked")
    with gpusampler.Sampler([1, 3]):
        eventually((tmp_path / "asked").exists, "not started")
    assert (tmp_path / "asked").read_text().split()[-1] == "--id=1,3"
