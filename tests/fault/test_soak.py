"""`make soak` on the real engine: one short minute. A longer one is for the operator."""

import json
from pathlib import Path

from support.deployed import Deployed


def test_a_minute_of_everything_at_once_leaves_the_deployment_as_it_was(served: Deployed) -> None:
    soak = served.project.script("soak", "--minutes", "1", "--json")
    said = json.loads(soak.stdout)
    assert soak.returncode == 0, said["checks"]
    judged = {check["name"]: check["ok"] for check in said["checks"]}
    assert {name for name, ok in judged.items() if ok} == {"requests", "restarts", "KV cache and queue", "memory", "descriptors"}
    folder = Path(said["folder"])
    kinds = {request["kind"] for request in json.loads((folder / "soak.json").read_text())["requests"]}
    assert kinds == {"whole", "stream", "cancelled", "bad", "same"}
    assert (folder / "report.html").read_text().count("<svg ") >= 6
    assert "kv_cache_usage_perc" in (folder / "report.md").read_text() + (folder / "report.html").read_text()
