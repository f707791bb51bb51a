"""What the bundle's own exporters say, and that what shows it asks for nothing else."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import exporter
import gatewaylog
import serve
from bundle import ROOT
from serve import DEFAULTS
from support import fakenvml
from support.promql import unknown


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in text_string_to_metric_families(text)
            for sample in family.samples}


# --- beside the engine

def test_a_card_tells_what_it_does_and_its_errors_are_counted() -> None:
    fakenvml.EVENTS[:] = [SimpleNamespace(device=0, eventData=79)]
    gpus = exporter.Gpus(fakenvml)
    end = time.monotonic() + 10
    while fakenvml.EVENTS and time.monotonic() < end:
        time.sleep(0.01)
    found = samples(exporter.Exporter(lambda: gpus).text(ready=True))
    gpu = (("gpu", "0"),)
    assert found["bundle_watch_ready", ()] == 1
    assert found["bundle_gpu_utilization", gpu] == 0.97
    assert found["bundle_gpu_memory_used_bytes", gpu] == 30 * 2**30
    assert found["bundle_gpu_power_watts", gpu] == 574
    assert found["bundle_gpu_throttled", (*gpu, ("reason", "power_cap"))] == 1
    assert found["bundle_gpu_throttled", (*gpu, ("reason", "hw_thermal"))] == 0
    assert found["bundle_gpu_xid_errors_total", (*gpu, ("xid", "79"))] == 1
    assert not any(name == "bundle_gpu_sm_clock_hertz" for name, _ in found), "what a card does not tell is left out"


def test_without_nvml_there_are_no_gpu_series() -> None:
    found = samples(exporter.Exporter(lambda: exporter.Gpus(SimpleNamespace(NVMLError=fakenvml.NVMLError, nvmlInit=lambda: 1,
                                                                            nvmlDeviceGetCount=lambda: 0))).text(ready=False))
    assert found["bundle_watch_ready", ()] == 0
    assert not any("gpu" in name for name, _ in found)


@pytest.mark.parametrize(("files", "expected"), [
    ({"memory.current": "900", "memory.max": "1000", "memory.stat": "anon 1\ninactive_file 200\n"}, (700, 1000)),
    ({"memory.current": "900", "memory.max": "max", "memory.stat": "inactive_file 200\n"}, None),
    ({"memory/memory.usage_in_bytes": "900", "memory/memory.limit_in_bytes": "1000", "memory/memory.stat": "total_inactive_file 100\n"}, (800, 1000)),
    ({}, None)])
def test_memory_is_what_cannot_be_given_back(files: dict[str, str], expected: tuple[int, int] | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert exporter.memory(tmp_path) == expected


# --- the gateway's log

def line(**other: object) -> bytes:
    return json.dumps({"key": "alice", "path": "/v1/completions", "status": 200, "server": "engine", "end": "--", "total_ms": 700, "bytes": 10,
                       **other}).encode()


def test_requests_count_by_key_status_and_engine_from_zero_on() -> None:
    counts = gatewaylog.Counts()
    for _ in range(3):
        counts.add(line())
    labels = (("code", "200"), ("end", "--"), ("key", "alice"), ("path", "/v1/completions"), ("server", "engine"))
    assert samples(counts.text())["gateway_requests_total", labels] == 0, "or a burst would be no increase"
    found = samples(counts.text())
    assert found["gateway_requests_total", labels] == 3
    assert found["gateway_request_seconds_bucket", (("le", "0.5"), ("path", "/v1/completions"))] == 0
    assert found["gateway_request_seconds_bucket", (("le", "1"), ("path", "/v1/completions"))] == 3


@pytest.mark.parametrize("bad", [b"", b"\xff", b"[]", b'"x"', b"{}", line(total_ms="x"), line(status=None), line(bytes=[]), line(server=3)])
def test_what_is_no_record_is_counted_and_does_no_harm(bad: bytes) -> None:
    counts = gatewaylog.Counts()
    counts.add(bad)
    assert samples(counts.text())["gateway_log_unread_total", ()] == 1


def test_who_only_watches_is_no_traffic_unless_it_is_refused() -> None:
    counts = gatewaylog.Counts()
    for path in ("/monitoring/api/v1/query_range", "/metrics", "/metrics/engine-b-2", "/health", "/status", "/status.js", "/uplot.js"):
        for status in (200, 503):
            counts.add(line(path=path, status=status))
    assert not counts.requests
    counts.add(line(path="/monitoring/api/v1/query", status=401))
    counts.add(line(path="/v1/statuses", status=200))
    assert len(counts.requests) == 2


def test_unknown_paths_and_too_many_labels_make_no_series_without_end() -> None:
    counts = gatewaylog.Counts()
    for number in range(3 * gatewaylog.MOST_SERIES):
        counts.add(line(path=f"/{number}", status=404))
        counts.add(line(key=f"k{number} metrics-only"))
    assert len(counts.requests) <= gatewaylog.MOST_SERIES + 2


# --- what shows it

KNOWN = {"a_total": {"key", "code"}, "b_seconds_bucket": {"le", "path"}}


@pytest.mark.parametrize(("expression", "said"), [
    ('sum by (key) (rate(a_total{code=~"5.."}[5m]))', []),
    ("histogram_quantile(0.95, sum by (path, le) (rate(b_seconds_bucket[5m]))) > 1 and on (key) a_total", []),
    ("sum by (key) (rate(a_totals[5m]))", ["a_totals"]),
    ("sum by (model) (rate(a_total[5m]))", ["a_total{model}"]),
    ('(100 * a_total{status="200"})', ["a_total{status}"]),
])
def test_a_changed_name_or_label_is_named(expression: str, said: list[str]) -> None:
    assert unknown(expression, KNOWN) == said


def test_the_images_defaults_are_those_of_the_env_files() -> None:
    base = dict(line.split("=", 1) for line in (ROOT / "env/base.env").read_text().splitlines() if line[:1].isupper())
    assert {name: base[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("there", [["engine"], ["engine", "engine-2", "engine-b", "engine-b-2"]])
def test_every_engine_and_the_watch_beside_it_are_targets(there: list[str], tmp_path: Path) -> None:
    serve.render(tmp_path, {"MONITORING_ENGINES": " ".join(there)})
    scraped = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped}
    assert jobs["engine"] == [f"{name}:8000" for name in there]
    assert jobs["watch"] == [f"{name}:8001" for name in there]
