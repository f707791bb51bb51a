"""What runs: one row per service, from the daemon and from the engine's own metrics."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bundle.base.errors import NotReadyError
from bundle.service import address, pressure, traffic
from bundle.service.deployment import GATEWAY, Container, Deployment
from bundle.service.traffic import Server

RATE_WINDOW_S = 1.0

# Runs inside the engine's container: the engine publishes no port.
READ = """
import json, urllib.request
ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
def get(path):
    with ask("http://127.0.0.1:8000" + path, timeout=5) as reply:
        return reply.read().decode()
print(json.dumps({"models": [m["id"] for m in json.loads(get("/v1/models"))["data"]], "metrics": get("/metrics")}))
"""


def base_url(deployment: Deployment) -> str | None:
    """Where clients reach it; None while its gateway does not run."""
    try:
        return address.published(deployment).base_url
    except NotReadyError:
        return None


def read(deployment: Deployment) -> list[dict[str, Any]]:
    """One record per service: service, state, health, reason, restarts, image, and for an answering engine model, running,
    queued (requests), kv_cache_use (0-1), tokens_per_s (generated, over the last second), pressure (a Pressure). Unknown values are None."""
    containers, routed = deployment.containers(), traffic.servers(deployment)
    in_order = sorted(containers.values(), key=lambda container: (container.service != GATEWAY, container.service))
    with ThreadPoolExecutor() as pool:  # each engine is looked at twice, a second apart
        return list(pool.map(lambda container: _row(deployment, container, routed.get(container.service)), in_order))


def _row(deployment: Deployment, container: Container, routed: Server | None) -> dict[str, Any]:
    reason = "" if container.healthy else container.probe
    if container.healthy and routed and not routed.is_up:
        reason = "gets no requests: " + ("taken out at the gateway; `make up` puts it back" if routed.is_out else f"{routed.status} at the gateway")
    row: dict[str, Any] = {"service": container.service, "state": container.state, "health": container.health, "restarts": container.restarts,
                           "reason": reason, "image": container.image}
    if container.is_engine:
        row |= {"model": None, "running": None, "queued": None, "kv_cache_use": None, "tokens_per_s": None, "pressure": None} \
            | _engine(deployment, container)
    return row


def _engine(deployment: Deployment, container: Container) -> dict[str, Any]:
    first = ask(deployment, container)
    if first is None:
        return {}
    started = deployment.clock.now()
    deployment.clock.sleep(RATE_WINDOW_S)
    second = ask(deployment, container)
    if second is None:
        return {}
    elapsed = deployment.clock.now() - started
    before, now = _values(first["metrics"]), _values(second["metrics"])
    generated = [m.get("vllm:generation_tokens_total") for m in (before, now)]
    return {
        "model": ", ".join(second["models"]),
        "running": now.get("vllm:num_requests_running"),
        "queued": now.get("vllm:num_requests_waiting"),
        "kv_cache_use": now.get("vllm:kv_cache_usage_perc"),
        "pressure": asdict(one) if (one := pressure.read(second["metrics"])) else None,
        "tokens_per_s": None if None in generated else round((generated[1] - generated[0]) / elapsed, 1),  # type: ignore[operator]
    }


def ask(deployment: Deployment, container: Container) -> dict[str, Any] | None:
    """An engine's model names (models) and the text of its /metrics (metrics); None while it loads or hangs."""
    done = deployment.execute(container, "/opt/venv/bin/python", "-c", READ)
    if done is None or done[0] != 0:
        return None
    answer: dict[str, Any] = json.loads(done[1])
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
