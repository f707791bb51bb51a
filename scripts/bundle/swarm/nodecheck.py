"""What each node needs that a stack file cannot say, asked of every node by one task on each: same image, same mounts as the engine.

It ends well whatever it finds, and prints that: Swarm starts a job that fails again and again, without an end.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.config.settings import MODEL_IN_CONTAINER, Settings
from bundle.swarm.stack import VERSION

SERVICE = "node"
SCRIPT = f"""
import json, os
lacks = []
if "NoNewPrivs:\\t1" not in open("/proc/self/status").read():
    lacks.append('no-new-privileges: put "no-new-privileges": true into /etc/docker/daemon.json, and restart docker')
if len(open("/proc/swaps").readlines()) > 1:
    lacks.append("swap is on: an engine with too little memory would become slow instead of being ended. swapoff --all")
for name, size in json.loads(os.environ["EXPECTED"]).items():
    path = os.path.join("{MODEL_IN_CONTAINER}", name)
    found = os.path.getsize(path) if os.path.isfile(path) and os.access(path, os.R_OK) else "nothing that uid 2000 may read"
    if found != size:
        lacks.append(f"{{name}} of the model: {{found}}, expected {{size}} bytes")
print(os.environ["NODE"] + ": " + ("; ".join(lacks) or "ok"))
"""


def stack(made: Mapping[str, Any], models: Sequence[Settings]) -> dict[str, Any]:
    """A stack with a job for each model's nodes, from the stack that is to run there. Raises OSError where the model's folder cannot be read."""
    engines = [each for name, each in made["services"].items() if name != "gateway"]
    services = {f"{SERVICE}{number or ''}": _job(engine, settings) for number, (engine, settings) in enumerate(zip(engines, models, strict=True))}
    return {"version": VERSION, "services": services}


def expected(folder: Path | None) -> dict[str, int]:
    """The files of a model that are in its own folder, with their sizes in bytes; {} where no folder is known or it is not on this host."""
    if folder is None or not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def _job(engine: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    kept = {key: engine[key] for key in ("image", "user", "read_only", "cap_drop") if key in engine}
    return {**kept, "entrypoint": ["/opt/venv/bin/python", "-S", "-c", SCRIPT.replace("$", "$$")],
            "environment": {"EXPECTED": json.dumps(expected(settings.model_dir)).replace("$", "$$"), "NODE": "{{.Node.Hostname}}"},
            "volumes": [mount for mount in engine["volumes"] if mount["type"] == "bind"],
            "deploy": {"mode": "global-job", "restart_policy": {"condition": "none"}}}
