"""The page /status in a real browser before a stand-in for Prometheus that says what no running one says on demand.

What it shows of real load, through the real gateway and with keys: tests/e2e/test_monitoring.py.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bundle import ROOT
from support.chromium import browser
from support.project import wait_until

PAGE = ROOT / "docker" / "gateway" / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
PANELS = json.loads((PAGE / "panels.json").read_text())
MARK = PANELS["marks"]["expr"]
BY_KEY = next(panel["series"][0]["expr"] for panel in PANELS["panels"] if panel["title"] == "Requests by key")
ALERT = {"state": "firing", "labels": {"alertname": "EngineDown", "severity": "page"}, "annotations": {"means": "engine does <i>not</i> answer"}}


@contextmanager
def served(answers: dict[str, Any], alerts: list[Any]) -> Iterator[str]:
    """The page and a Prometheus: `answers` are the series by expression, and with "down" it refuses all. The address."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path)
            file = PAGE / ("status.html" if path.path == "/status" else path.path.lstrip("/"))
            if path.path.startswith("/monitoring/"):
                query = parse_qs(path.query).get("query", [""])[0]
                data = {"alerts": alerts} if path.path.endswith("/alerts") else {"result": answers.get(query, [])}
                self.reply(503 if answers.get("down") else 200, json.dumps({"data": data}).encode(), ".json")
            else:
                self.reply(200, file.read_bytes(), file.suffix) if file.is_file() else self.reply(404, b"", ".html")

        def reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", KINDS[kind])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/status"
        finally:
            server.shutdown()


def test_a_start_is_a_mark_on_every_plot_an_alert_is_told_and_no_name_is_taken_for_html(tmp_path: Path) -> None:
    now = int(time.time()) // 15 * 15
    name = "<b>bold</b>"
    answers = {BY_KEY: [{"metric": {"key": name}, "values": [[now - 60 + 15 * n, str(n)] for n in range(5)]}],
               MARK: [{"metric": {"replica": "engine-2"}, "values": [[now - 45, "1"], [now - 30, "1"]]}]}
    with served(answers, [ALERT]) as url, browser(tmp_path) as tab:
        tab.open(url)
        wait_until(lambda: tab.value("at('said').textContent").startswith("as of "), deadline_s=30, what="it has asked for everything")
        assert tab.value("plots.size") == 1, "of the others there is nothing"
        assert tab.value("plots.get('Requests by key').marks") == [now - 45]
        assert tab.value("at('alerts').textContent") == "EngineDown: engine does <i>not</i> answer"
        legend = tab.value("document.querySelector('.u-legend').textContent")
        assert name in legend
        assert "4.00" in legend, "the newest value stands there without a pointer"
        hidden = tab.value("[...document.querySelectorAll('section')].map(each => each.hidden)")
        assert hidden == [False, False, True, False], "only the GPU's part may be missing"
        assert tab.said == []


def test_a_prometheus_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with served({"down": True}, []) as url, browser(tmp_path) as tab:
        tab.open(url)
        wait_until(lambda: tab.value("at('said').textContent") == "Prometheus answers 503 to alerts", deadline_s=30, what="it says so")
        assert tab.value("at('ask').hidden"), "no key would help"
