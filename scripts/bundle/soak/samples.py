"""What a deployment takes, as its containers see it: memory and descriptors of every process, and the engines' own gauges."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bundle.service.deployment import Container, Deployment

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
# Runs inside each container: nobody else may look at what its processes have open. A process that is gone meanwhile is none.
_READ = f"""
import json, os, pathlib, urllib.request
processes, gauges = {{}}, {{}}
for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit() and int(folder.name) != os.getpid():
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            processes[f"{{status['Name'].strip()}} {{folder.name}}"] = [int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(folder / "fd"))]
        except (OSError, KeyError):
            pass
cgroup = next(path for path in map(pathlib.Path, ("/sys/fs/cgroup/memory/memory.stat", "/sys/fs/cgroup/memory.stat")) if path.exists())
used = dict(line.split() for line in cgroup.read_text().splitlines())
anonymous = int(used.get("anon") or used["total_rss"]) / 2**20
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open("http://127.0.0.1:8000/metrics", timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            name = line.removeprefix("vllm:").partition("{{")[0]
            if name in {GAUGES!r}:
                gauges[name] = gauges.get(name, 0) + float(line.split()[-1])
except OSError:
    pass
print(json.dumps({{"processes": processes, "anonymous_mib": anonymous, "gauges": gauges}}))
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at one container, `at` seconds after the start of the load. `processes`: by name and number, [resident MiB, open descriptors]."""

    at: float
    service: str
    processes: dict[str, list[float]]
    anonymous_mib: float
    """All of the container's memory that is no file's."""
    gauges: dict[str, float]
    """The engine's metrics of these names (GAUGES); empty for the gateway."""


def look(deployment: Deployment, at: float) -> list[Sample]:
    """One look at each container that runs; one that does not answer is left out."""
    containers = deployment.containers()

    def one(container: Container) -> Sample | None:
        python = "/opt/venv/bin/python" if container.is_engine else "python3"
        done = deployment.execute(container, python, "-S", "-c", _READ)
        if done is None or done[0] != 0:
            return None
        read: dict[str, Any] = json.loads(done[1])
        return Sample(at=at, service=container.service, **read)

    with ThreadPoolExecutor() as pool:
        return [sample for sample in pool.map(one, containers.values()) if sample]


def idle(samples: Sequence[Sample]) -> bool:
    """Whether every engine has nothing to do and its KV cache is empty."""
    engines = [sample.gauges for sample in samples if sample.gauges]
    return bool(engines) and not any(value for gauges in engines for value in gauges.values())
