"""Monitoring on the real engine: what Prometheus reads, what wakes somebody and arrives, and what stands nowhere."""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

import exporter
from bundle import ROOT
from bundle.service import traffic
from support import fakenvml
from support.chromium import browser
from support.gateway import docker
from support.observed import KEY, METRICS_KEY, PROMPT, Observed, observed
from support.project import Project, wait_until
from support.promql import unknown

# In this order: the last ones break what the first ones look at.


@pytest.fixture(scope="module")
def watched(no_leftovers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    own = Project(name=f"test-{os.getpid()}-{secrets.token_hex(3)}")
    try:
        with observed(own, tmp_path_factory.mktemp("watched")) as there:
            yield there
    finally:
        own.remove()


@pytest.fixture(scope="module")
def loaded(watched: Observed) -> Observed:
    """After a load that fills the batch, the queue, and one key's share."""
    with ThreadPoolExecutor(max_workers=40) as pool:
        replies = list(pool.map(lambda _: watched.completion(), range(40)))
    assert {reply.status_code for reply in replies} == {200, 429}
    return watched


# --- one id, from the edge to the engine and back

def test_a_request_is_found_by_the_id_of_its_answer(watched: Observed) -> None:
    reply = watched.completion()
    request = reply.headers["x-request-id"]
    found = watched.project.script("logs", "--request", request)
    assert found.returncode == 0, found.stderr
    records = {(record := json.loads(line))["service"]: record for line in found.stdout.splitlines()}
    assert records.keys() == {"engine", "gateway"}
    assert records["gateway"]["key"] == "alice"
    assert {record["status"] for record in records.values()} == {200}
    assert watched.completion(request="of-the-client").headers["x-request-id"] == "of-the-client"
    assert watched.project.script("logs", "--request", "of-the-clien").returncode == 5


def test_traces_arrive_at_the_collector_with_the_same_id(watched: Observed) -> None:
    request = watched.completion().headers["x-request-id"]
    wait_until(lambda: any(path == "/v1/traces" and request.encode() in body for path, body in watched.received()), deadline_s=90,
               what="a span with the request's id")


# --- what Prometheus reads

def test_every_target_is_read(loaded: Observed) -> None:
    wait_until(lambda: all(one["value"][1] == "1" for one in loaded.values("up")), deadline_s=60, what="every target is up")
    assert {one["metric"]["job"] for one in loaded.values("up")} == {"engine", "watch", "gateway", "gatewaylog", "node", "prometheus", "alertmanager"}


def test_requests_are_counted_by_key_and_status(loaded: Observed) -> None:
    def counted() -> set[tuple[str, str]]:
        return {(one["metric"]["key"], one["metric"]["code"]) for one in loaded.values("gateway_requests_total > 0")}
    wait_until(lambda: {("alice", "200"), ("alice", "429")} <= counted(), deadline_s=60, what="alice's requests are counted")


@pytest.mark.parametrize(("key", "status"), [("", 401), (KEY, 403), (METRICS_KEY, 200), ("sk-another-0123456789", 401)])
def test_only_a_key_for_metrics_reads_prometheus(key: str, status: int, watched: Observed) -> None:
    reply = requests.get(f"{watched.url}/monitoring/api/v1/query", params={"query": "up"}, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    assert reply.status_code == status


@pytest.mark.parametrize("path", ["/monitoring/", "/monitoring/api/v1/admin/tsdb/delete_series", "/monitoring/-/reload", "/monitoring/-/quit",
                                  "/monitoring/api/v1/query/../admin", "/monitoring/config", "/monitoring/api/v1/status/config"])
def test_nothing_else_of_prometheus_is_reached(path: str, watched: Observed) -> None:
    for method in ("GET", "POST"):
        assert requests.request(method, watched.url + path, headers={"Authorization": f"Bearer {METRICS_KEY}"}, timeout=30).status_code == 404


def test_no_monitoring_service_publishes_a_port_or_has_a_privilege(watched: Observed) -> None:
    for service in ("prometheus", "alertmanager", "node", "gatewaylog"):
        container = watched.project.containers()[service]
        assert container.published is None
        form = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}}"
        user, read_only, caps, options, limit = docker("inspect", "--format", form, container.id).split()
        assert (user, read_only, caps, options) == ("2003:2003", "true", "[ALL]", "[no-new-privileges:true]")
        assert 0 < int(limit) <= 512 * 2**20


def test_every_expression_asks_for_what_there_is(loaded: Observed) -> None:
    # A card and a certificate are not here: what the exporters say of them (tests/unit/test_exporters.py) counts.
    known = {"bundle_certificate_expires_seconds": {"job"}}
    absent = exporter.Exporter(lambda: exporter.Gpus(fakenvml)).text(ready=True)
    for series in [*loaded.prometheus("series", **{"match[]": '{__name__=~".+"}'}),
                   *({"__name__": sample.name, "job": "", "replica": "", "instance": "", **sample.labels}
                     for family in text_string_to_metric_families(absent) for sample in family.samples)]:
        known.setdefault(series["__name__"], set()).update(series)
    panels = json.loads((ROOT / "docker/gateway/page/panels.json").read_text())
    shown = [one["expr"] for panel in panels["panels"] for one in panel["series"]]
    rules = [rule["expr"] for group in loaded.prometheus("rules")["groups"] for rule in ({"expr": each["query"]} for each in group["rules"])]
    assert len(rules) == 30
    for expression in [*shown, panels["marks"]["expr"], *rules]:
        assert not unknown(expression, known), expression
        loaded.values(expression)  # runs: an error would be another status than 200


# --- the page, in a real browser

SHOWN = """Object.fromEntries([...plots].map(([title, {plot}]) => [title, Object.fromEntries(plot.series.slice(1).map((line, n) =>
    [line.label, plot.data[n + 1].reduce((sum, value) => sum + (value || 0), 0) * (plot.data[0][1] - plot.data[0][0])]))]))"""
"""What is under each line of each plot of the page: of a rate, how much there was in all."""


def test_the_page_shows_the_load_that_was_sent(loaded: Observed, tmp_path: Path) -> None:
    """What the gateway's log and the engine itself counted, against what lies under the lines, read from the plots' own data."""
    records = [json.loads(line) for line in docker("logs", loaded.project.containers()["gateway"].id).splitlines() if line.startswith('{"time"')]
    sent = sum(record["key"] == "alice" for record in records)
    refused = sum(record["status"] == 429 for record in records)
    reached = sum(record["server"] == "engine" and record["path"] == "/v1/completions" for record in records)
    counted = requests.get(f"{loaded.url}/metrics/engine", headers={"Authorization": f"Bearer {METRICS_KEY}"}, timeout=60).text
    tokens = sum(float(line.split()[-1]) for line in counted.splitlines() if line.startswith("vllm:generation_tokens_total{"))
    assert sent > reached > refused > 0

    with browser(tmp_path) as tab:
        tab.open(f"{loaded.url}/status#key={METRICS_KEY}")

        def shows() -> bool:
            tab.value("at('span').value = '900', refresh()")
            shown = tab.value(SHOWN)
            found = [shown.get(panel, {}).get(line, 0) for panel, line in (
                ("Requests by key", "alice"), ("Requests by status", "429"), ("Requests by engine", "engine"), ("Tokens in and out", "out selftest"))]
            return found == pytest.approx([sent, refused, reached, tokens], rel=0.15)

        wait_until(shows, deadline_s=150, what="the plots show what was sent")  # a rate over a minute has all of it a minute later
        assert tab.value("at('said').textContent").startswith("as of ")
        assert tab.value("location.href") == f"{loaded.url}/status", "the key is not left in the address"
        assert tab.value("at('gpu').hidden"), "there is no GPU here"
        assert tab.said == []


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_asks_for_its_key_and_fits_its_window(width: int, watched: Observed, tmp_path: Path) -> None:
    needed = "A metrics-only key is needed: make keys ADD=name METRICS_ONLY=1"
    with browser(tmp_path) as tab:
        tab.open(f"{watched.url}/status", width)
        for key in ("", "sk-guessed-0123456789\r", f"{KEY}\r"):
            tab.value("at('key').value = '', at('said').textContent = '', at('key').focus()")
            if key:
                tab.type(key)
            else:
                tab.value("refresh()")
            wait_until(lambda: tab.value("at('said').textContent") == needed, deadline_s=30, what="it says which key it needs")
            assert tab.value("plots.size") == 0
        tab.value("at('key').value = '', at('key').focus()")
        tab.type(f"{METRICS_KEY}\r")
        wait_until(lambda: tab.value("plots.size") > 5 and tab.value("at('ask').hidden"), deadline_s=60, what="it shows its plots")
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("[...document.querySelectorAll('.u-wrap, .u-legend')].every(each => each.getBoundingClientRect().right <= innerWidth)")


# --- what wakes somebody

def arrives(watched: Observed, *names: str, deadline_s: float = 120) -> None:
    """Wait for these alerts at the webhook, and keep in reports/alerts.json what provoked each and how long after that it came."""
    missing, since = set(names), time.monotonic()
    after: dict[str, float] = {}

    def came() -> bool:
        after.update(dict.fromkeys(missing & watched.alerts().keys(), round(time.monotonic() - since, 1)))
        missing.difference_update(after)
        return not missing
    try:
        wait_until(came, deadline_s=deadline_s, what=f"{', '.join(names)} at the webhook")
    except AssertionError as error:
        raise AssertionError(f"{error}; missing: {', '.join(sorted(missing))}") from None
    for name in names:
        assert watched.alerts()[name]["annotations"].keys() == {"means", "look", "do"}
    file, fired_by = ROOT / "reports" / "alerts.json", os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].partition(" ")[0]
    kept = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(kept | {name: {"fired_by": fired_by, "received_after_s": after[name]} for name in names}, indent=1) + "\n")


def test_slow_answers_a_queue_and_refusals_arrive(loaded: Observed) -> None:
    # The load lasts until they came: refused requests end at once, and a quick machine is done with any fixed number before a rule looks.
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            if loaded.completion(tokens=64).status_code == 429:
                done.wait(0.5)
    with ThreadPoolExecutor(max_workers=40) as pool:
        for _ in range(40):
            pool.submit(client)
        try:
            arrives(loaded, "TimeToFirstTokenSlow", "InterTokenLatencySlow", "RequestsSlow", "QueueTimeLong", "QueueLong", "TooManyRequestsBurst")
        finally:
            done.set()


def test_somebody_who_guesses_keys_arrives(watched: Observed) -> None:
    for number in range(40):
        assert watched.completion(key=f"sk-guessed-{number:020}").status_code == 401
    arrives(watched, "UnauthorizedBurst")


def test_a_dead_part_of_monitoring_arrives(watched: Observed) -> None:
    node = watched.project.containers()["node"].id
    docker("stop", node)
    arrives(watched, "MonitoringTargetDown")
    docker("start", node)


def test_an_engine_that_was_taken_out_and_the_errors_of_it_arrive(watched: Observed) -> None:
    traffic.drain(watched.project.deployment, ["engine"])
    for _ in range(300):  # more than a seventh of the hour's requests, as the rule wants
        assert watched.completion().status_code == 503
    arrives(watched, "ReplicaOutOfRotation", "ErrorBudgetBurnsFast")


def test_a_dead_engine_arrives(watched: Observed) -> None:
    docker("stop", "--time", "1", watched.project.containers()["engine"].id)
    arrives(watched, "EngineDown")


# --- what stands nowhere: looked for when everything above has happened

def test_no_prompt_and_no_key_is_in_a_log_a_trace_an_alert_or_a_metric(watched: Observed) -> None:
    said = {name: docker("logs", container.id) for name, container in watched.project.containers().items()}
    said["receiver"] = b"".join(body for _, body in watched.received()).decode(errors="replace")
    said["metrics"] = str(watched.prometheus("series", **{"match[]": '{__name__=~".+"}'}))
    assert all(len(said[name]) > 100 for name in ("engine", "gateway", "receiver", "metrics")), "there is something to look at"
    for name, text in said.items():
        for canary in (KEY, METRICS_KEY, PROMPT, "sk-guessed"):
            assert canary not in text, f"{canary} in {name}"
