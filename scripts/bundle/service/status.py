"""What runs: one row per service, from the daemon and from the engine's own metrics."""

import json
import time
from collections.abc import Iterable
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from bundle.machine import daemon
from bundle.service.deployment import Container, Deployment

RATE_WINDOW_S = 1.0

# Runs inside the engine's container: the engine publishes no port.
_READ = """
import json, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not the proxy that Docker's client hands to every container
def get(path):
    with direct.open("http://127.0.0.1:8000" + path, timeout=5) as reply:
        return reply.read().decode()
print(json.dumps({"models": [m["id"] for m in json.loads(get("/v1/models"))["data"]], "metrics": get("/metrics")}))
"""


def read(deployment: Deployment) -> list[dict[str, Any]]:
    """One record per service: service, state, health, reason, restarts, image, and for an answering engine model, running,
    queued (requests), kv_cache_use (0-1), tokens_per_s (generated, over the last second). Unknown values are None."""
    return [_row(c) for c in sorted(deployment.containers().values(), key=lambda c: c.service != "gateway")]


def _row(container: Container) -> dict[str, Any]:
    row: dict[str, Any] = {"service": container.service, "state": container.state, "health": container.health, "restarts": container.restarts,
                           "reason": "" if container.healthy else container.probe, "image": container.image}
    if container.service.startswith("engine"):
        row |= {"model": None, "running": None, "queued": None, "kv_cache_use": None, "tokens_per_s": None} | _engine(container)
    return row


def _engine(container: Container) -> dict[str, Any]:
    first = _ask(container)
    if first is None:
        return {}
    started = time.monotonic()
    time.sleep(RATE_WINDOW_S)
    second = _ask(container)
    if second is None:
        return {}
    elapsed = time.monotonic() - started
    before, now = _values(first["metrics"]), _values(second["metrics"])
    generated = [m.get("vllm:generation_tokens_total") for m in (before, now)]
    return {
        "model": ", ".join(second["models"]),
        "running": now.get("vllm:num_requests_running"),
        "queued": now.get("vllm:num_requests_waiting"),
        "kv_cache_use": now.get("vllm:kv_cache_usage_perc"),
        "tokens_per_s": None if None in generated else round((generated[1] - generated[0]) / elapsed, 1),  # type: ignore[operator]
    }


def _ask(container: Container) -> dict[str, Any] | None:
    if container.state != "running":
        return None
    with daemon.reachable():
        reply = daemon.client().containers.get(container.id).exec_run(["/opt/venv/bin/python", "-c", _READ], stderr=False)
    if reply.exit_code != 0:
        return None  # still loading, or hung: the health column says which
    answer: dict[str, Any] = json.loads(cast(bytes, reply.output))
    return answer


def _values(text: str) -> dict[str, float]:
    """Sums over all label sets, by sample name."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def cells(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    """The table's cells; what does not apply or is not known is a dash."""
    forms = {"model": "{}", "running": "{:.0f}", "queued": "{:.0f}", "kv_cache_use": "{:.1%}", "tokens_per_s": "{:.1f}"}
    return [[r["service"], r["state"], r["health"], str(r["restarts"]), *(_text(r.get(key), form) for key, form in forms.items()), r["reason"]]
            for r in rows]


def _text(value: object, form: str) -> str:
    return "-" if value in (None, "") else form.format(value)


COLUMNS = ("service", "state", "health", "restarts", "model", "running", "queued", "KV cache", "tokens/s", "reason")
