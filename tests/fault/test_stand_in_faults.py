"""The real container around a stand-in for vLLM: faults that the real one cannot be made to show on demand, in seconds."""

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.config import settings
from support.faultlog import record
from support.gateway import docker
from support.project import wait_until

HARDENED = ("--user", "2000:2000", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "1g", "--memory-swap", "1g",
            "--pids-limit", "1024", "--shm-size", "1g", "--tmpfs", "/tmp:mode=1777,size=1g")
FREEZES = """
import http.server, time
began = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        tokens = int(min(time.monotonic() - began, 8) * 100)  # and then no more, with /health green
        page = f'vllm:num_requests_running{{engine="0"}} 1.0\\nvllm:generation_tokens_total{{engine="0"}} {tokens}.0\\n'
        self.send_response(200); self.end_headers(); self.wfile.write(page.encode() if self.path == "/metrics" else b"")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
FREEZES_WHEN_TOLD = FREEZES.replace("min(time.monotonic() - began, 8)", "(0 if os.path.exists('/stand-in/freeze') else time.monotonic() - began)") \
    .replace("import http.server, time", "import http.server, os, time")
NO_PROXY_OF_OURS = [word for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY") for word in ("--env", f"{name}=http://127.0.0.1:9")]


@contextmanager
def stand_in(folder: Path, body: str, *options: str) -> Iterator[str]:
    """A container of the engine image in which `vllm` is `body`; its name."""
    package = folder / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for path in (package, package.parent, package.parent.parent):
        (path / "__init__.py").touch()
    (package / "main.py").write_text(body)
    folder.chmod(0o755)
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}-standin"
    docker("volume", "create", name)
    docker("run", "--detach", "--name", name, *HARDENED, "--volume", f"{folder}:/stand-in:ro", "--volume", f"{name}:/cache", "--env",
           "PYTHONPATH=/stand-in", "--env", "ENGINE_MODEL=/m", *options, settings.load("cpu").image_engine)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)
        docker("volume", "rm", name)


def restarts(name: str) -> int:
    return int(docker("inspect", "--format", "{{.RestartCount}}", name))


def test_frozen_tokens_with_a_green_health_end_the_engine_three_times_and_then_it_is_left_alone(tmp_path: Path) -> None:
    check = ("--health-cmd", "/opt/venv/bin/python -S /opt/bundle/healthchecks/ready.py", "--health-interval", "1s", "--init", "--restart",
             "unless-stopped")
    with (stand_in(tmp_path / "on", FREEZES, *check, *NO_PROXY_OF_OURS, "--env", "HEALTH_STALL_S=4") as name,
          stand_in(tmp_path / "off", FREEZES, *check, *NO_PROXY_OF_OURS, "--env", "HEALTH_STALL_S=86400") as unwatched):
        wait_until(lambda: docker("inspect", "--format", "{{.State.Health.Status}}", name).strip() == "healthy", deadline_s=60,
                   what="Docker finds it healthy, though a proxy is set that answers nothing")
        wait_until(lambda: restarts(name) == 3, deadline_s=120, what="it is ended and started anew three times")
        wait_until(lambda: "left alone" in docker("logs", name), deadline_s=60, what="it is left alone")
        log = docker("logs", name)
        assert restarts(name) == 3
        assert restarts(unwatched) == 0, "without the watch nobody ends it"
    assert len(re.findall(r"^entrypoint: the engine hung and was ended after \d+ s: no token for \d+ s with 1 running, 0 waiting$", log, re.M)) == 3
    assert re.search(r"^watch: the engine hangs: .*; it was ended 3 times within the last hour: it is left alone for 300 s more", log, re.M)
    record("tokens frozen, /health green (stand-in)", "ended with its reason, three times an hour, then at growing intervals")


def test_a_clock_that_jumps_by_days_ends_nothing_and_hides_no_hang(tmp_path: Path) -> None:
    # The host's clock is everybody's: libfaketime moves the container's alone, and as the kernel does, not the one that only counts up.
    package = tmp_path / "libfaketime"
    package.mkdir()
    package.chmod(0o777)  # apt fetches as nobody
    subprocess.run(["apt-get", "download", "--quiet", "libfaketime"], cwd=package, check=True, timeout=120)
    (archive,) = package.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(archive), str(tmp_path / "files")], check=True, timeout=60)
    (library,) = (tmp_path / "files").rglob("libfaketime.so.1")
    folder = tmp_path / "jumps"
    folder.mkdir()
    (folder / "libfaketime.so.1").write_bytes(library.read_bytes())
    clock = folder / "clock"
    clock.write_text("+0\n")
    faked = {"LD_PRELOAD": "/stand-in/libfaketime.so.1", "FAKETIME_TIMESTAMP_FILE": "/stand-in/clock", "FAKETIME_NO_CACHE": "1",
             "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1", "HEALTH_STALL_S": "4"}
    options = [word for name, value in faked.items() for word in ("--env", f"{name}={value}")]
    with stand_in(folder, FREEZES_WHEN_TOLD, *options, "--restart", "always") as name:
        def now() -> float:
            return float(docker("exec", name, "/opt/venv/bin/python", "-S", "-c", "import time; print(time.time())"))

        def verdict() -> str:
            return docker("exec", name, "/opt/venv/bin/python", "-S", "/opt/bundle/healthchecks/ready.py", check=False).strip()

        wait_until(lambda: verdict().startswith("ok"), deadline_s=60, what="the stand-in is ready")
        for days in (3, -3):
            clock.write_text(f"{days:+d}d\n")
            assert abs(now() - time.time() - days * 86400) < 60, "the case is a clock that jumps"
            end = time.monotonic() + 8  # twice as long as it takes to end one that stands still
            while time.monotonic() < end:
                assert verdict().startswith("ok")
                time.sleep(0.5)
        assert restarts(name) == 0
        (folder / "freeze").touch()
        wait_until(lambda: restarts(name) > 0, deadline_s=60, what="it is found that nothing moves")
        assert "the engine hung and was ended" in docker("logs", name)
    record("clock jumps by 3 days, and back (stand-in)", "in service all the time; who hangs then is ended all the same")


def test_without_an_init_the_entrypoint_is_a_proper_first_process(tmp_path: Path) -> None:
    # The kernel gives process 1 no default signal handling, and hands it every orphan.
    body = ("import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            "subprocess.Popen(['sleep', '600'])\nprint('up', flush=True)\nwhile True: time.sleep(0.02)\n")
    with stand_in(tmp_path, body) as name:
        wait_until(lambda: "\nup\n" in docker("logs", name), deadline_s=60, what="the stand-in is up")
        docker("stop", "--time", "60", name)
        state = json.loads(docker("inspect", "--format", "{{json .State}}", name))
        assert state["ExitCode"] == 0, docker("logs", name)
