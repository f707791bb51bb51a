"""The live view: percentiles from two readings, what a restart does to them, and a picture that fits its terminal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bundle.observe import metrics, screen, top
from bundle.observe.top import WINDOW_S, Engine, View, Watch
from bundle.service import lifecycle, status
from bundle.service.deployment import Container, Deployment
from support.fakedeployment import World

TTFT = top.LATENCIES["ttft"]


def exposition(*, ttft: dict[str, int], generated: int = 0, running: int = 0, engine: str = "0") -> str:
    """An engine's /metrics with these cumulative counts by bound."""
    labels = f'engine="{engine}",model_name="m"'
    return "\n".join([
        "# TYPE vllm:generation_tokens_total counter", f"vllm:generation_tokens_total{{{labels}}} {generated}",
        "# TYPE vllm:num_requests_running gauge", f"vllm:num_requests_running{{{labels}}} {running}",
        f"# TYPE {TTFT} histogram", *(f'{TTFT}_bucket{{{labels},le="{bound}"}} {count}' for bound, count in ttft.items()),
        f"{TTFT}_count{{{labels}}} {max(ttft.values())}", f"{TTFT}_sum{{{labels}}} 1"]) + "\n"


def reading(at: float, **given: Any) -> metrics.Reading:
    return metrics.read(exposition(**given), at)


# --- percentiles

@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.1), (0.25, 0.05), (0.75, 0.55), (0.95, 0.91), (1.0, 1.0)])
def test_a_percentile_lies_between_its_bounds_in_proportion(share: float, expected: float) -> None:
    assert metrics.percentile(share, {0.1: 5.0, 1.0: 10.0, float("inf"): 10.0}) == pytest.approx(expected)


def test_a_percentile_beyond_the_last_bound_is_that_bound() -> None:
    assert metrics.percentile(0.99, {0.1: 5.0, 1.0: 6.0, float("inf"): 10.0}) == 1.0


def test_without_observations_there_is_no_percentile() -> None:
    assert metrics.percentile(0.5, {0.1: 0.0, float("inf"): 0.0}) is None
    assert metrics.percentile(0.5, {}) is None


def test_only_what_came_between_two_readings_counts_and_engines_add_up() -> None:
    slow_once = {"0.1": 0, "1.0": 1000, "+Inf": 1000}
    pairs = [(reading(0, ttft=slow_once), reading(60, ttft={"0.1": 10, "1.0": 1010, "+Inf": 1010})),
             (reading(0, ttft=slow_once), reading(60, ttft={"0.1": 0, "1.0": 1010, "+Inf": 1010}))]
    assert metrics.added(TTFT, pairs) == {0.1: 10, 1.0: 20, float("inf"): 20}
    assert metrics.percentile(0.5, metrics.added(TTFT, pairs)) == pytest.approx(0.1)


def test_label_sets_of_one_name_add_up() -> None:
    text = exposition(ttft={"0.1": 1, "+Inf": 2}, generated=3) + exposition(ttft={"0.1": 4, "+Inf": 5}, generated=6, engine="1")
    found = metrics.read(text.replace("# TYPE", "# HELP x\n# TYPE", 1), 0)
    assert found.values["vllm:generation_tokens_total"] == 9


# --- the window

def engine_of(*readings: metrics.Reading) -> Engine:
    engine = Engine(models="m")
    for each in readings:
        engine.add(each)
    return engine


def test_a_minute_is_kept_and_no_more() -> None:
    engine = engine_of(*(reading(at, ttft={"+Inf": at}, generated=at * 10) for at in range(0, 200, 2)))
    before, now = engine.pair(WINDOW_S) or pytest.fail("no pair")
    assert (before.at, now.at) == (138, 198)
    assert len(engine.readings) == 31
    assert engine.rate("vllm:generation_tokens_total") == 10


def test_an_engine_that_restarted_begins_anew() -> None:
    engine = engine_of(reading(0, ttft={"+Inf": 50}, generated=500), reading(2, ttft={"+Inf": 51}, generated=510),
                       reading(4, ttft={"+Inf": 0}, generated=0))
    assert engine.pair(WINDOW_S) is None
    assert engine.row()["tokens_out_per_s"] is None
    engine.add(reading(6, ttft={"+Inf": 1}, generated=20))
    assert engine.rate("vllm:generation_tokens_total") == 10


def test_a_metric_that_the_engine_lacks_is_unknown_and_no_zero() -> None:
    row = engine_of(reading(0, ttft={"+Inf": 0}), reading(2, ttft={"+Inf": 0})).row()
    assert row["kv_cache_use"] is row["preemptions"] is row["prefix_hits"] is None


def test_a_look_tells_of_every_service_and_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="2"))

    def ask(deployment: Deployment, container: Container) -> dict[str, Any] | None:
        if container.service == "engine-2":
            return None  # it hangs
        asked = int(world.time)
        return {"models": ["m"], "metrics": exposition(ttft={"0.1": asked, "+Inf": asked}, generated=5 * asked, running=3)}

    monkeypatch.setattr(status, "ask", ask)
    monkeypatch.setattr(top, "read_gpus", list)
    watch = Watch(world.deployment())
    watch.look()
    world.passes(4)
    view = watch.look()
    assert [row["service"] for row in view.services] == ["gateway", "engine", "engine-2"]
    assert (view.services[1]["running"], view.services[1]["tokens_out_per_s"], view.services[1]["at_gateway"]) == (3, 5, "UP")
    assert "running" not in view.services[2]
    (model,) = view.as_json()["models"]
    assert (model["model"], model["ttft"]["p50"], model["itl"]["p50"]) == ("m", pytest.approx(0.05), None)
    assert (view.window_s, view.running) == (4, [3, 3])


# --- GPUs

def test_gpus_are_what_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 5090, 97, 30000, 32607, 510.22, 575.00, 64'\n"
                   "echo 'Odd, [N/A], 1, 2, [Not Supported], [N/A], 3'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = top.read_gpus()
    assert first == {"gpu": 0, "name": "NVIDIA GeForce RTX 5090", "utilization": 97, "memory_mib": 30000, "memory_total_mib": 32607, "watts": 510.22,
                     "watts_limit": 575, "celsius": 64}
    assert second["utilization"] is second["watts"] is None
    smi.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert top.read_gpus() == []


# --- the picture

def busy_view() -> View:
    engine = {"state": "running", "health": "healthy", "restarts": 3, "reason": "", "at_gateway": "UP", "model": "deepseek-r1-0528-qwen3-8b",
              "running": 256.0, "waiting": 1024.0, "kv_cache_use": 0.987, "tokens_in_per_s": 123456.7, "tokens_out_per_s": 12345.6,
              "preemptions": 4321.0, "prefix_hits": 0.712}
    rows = [{"service": "gateway", "state": "running", "health": "healthy", "restarts": 0, "reason": ""},
            *({**engine, "service": f"engine-{n}"} for n in range(2, 9)),
            {"service": "engine", "state": "running", "health": "unhealthy", "restarts": 1,
             "reason": "http://u:pa55@x 8 requests run and no counter has moved", "at_gateway": "DOWN"}]
    latency = {"p50": 0.0123, "p95": 12.3, "p99": 123.4}
    gpu = {"gpu": 7, "name": "NVIDIA GeForce RTX 5090", "utilization": 97.0, "memory_mib": 30000.0, "memory_total_mib": 32607.0, "watts": 510.2,
           "watts_limit": 575.0, "celsius": 64.0}
    return View(project="vllm", base_url="https://127.0.0.1:8005/v1", window_s=60, services=rows, gpus=[gpu],
                models=[{"model": "deepseek-r1-0528-qwen3-8b", "requests": 12345.0, **dict.fromkeys(top.LATENCIES, latency)}],
                tokens_per_s=[float(n % 17) for n in range(60)], running=[256.0] * 60)


def picture(width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(screen.drawn(busy_view(), width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_picture_fits_its_terminal_and_loses_nothing_that_it_shows(width: int) -> None:
    shown = picture(width)
    assert max(map(len, shown.splitlines())) <= width
    for part in ("engine-8", "unhealthy", "DOWN", "256", "1024", "123457", "12346", "99%", "71%", "4321", "12 ms", "12.3 s", "123.4 s", "12345",
                 "█", "29.3 of 31.8 GiB", "510 W of 575", "64", "▁", "no counter has moved"):
        assert part in shown, part
    assert "…" not in shown
    assert ("NVIDIA" in shown) == (width == 200)
    assert "pa55" not in shown


def test_a_narrower_terminal_is_cut_and_not_wrapped() -> None:
    assert max(map(len, picture(40).splitlines())) <= 40


def test_the_json_says_what_the_picture_shows() -> None:
    told = json.loads(json.dumps(busy_view().as_json()))
    assert told["models"][0]["ttft"]["p95"] == 12.3
    assert {row["service"] for row in told["services"]} == {"gateway", "engine", *(f"engine-{n}" for n in range(2, 9))}

