"""A deployment with monitoring on, and beside it who receives its alerts and its traces."""

import base64
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from support.gateway import IMAGE, docker
from support.project import Project

KEY, METRICS_KEY = f"sk-canary-{secrets.token_hex(16)}", f"sk-metrics-{secrets.token_hex(16)}"
PROMPT = f"canary prompt {secrets.token_hex(8)}"
# Everything that is watched for comes within seconds: what is promised is next to nothing, and nothing has to last.
TOUCHY = {"MONITORING_INTERVAL_S": "2", "MONITORING_HOLD_S": "4", "SLO_TTFT_P95_S": "0.001", "SLO_ITL_P95_S": "0.0001", "SLO_E2E_P99_S": "0.001",
          "SLO_QUEUE_P95_S": "0.001", "SLO_WAITING": "2", "SLO_REFUSED_PER_MINUTE": "3", "GATEWAY_MAX_RUNNING": "24"}
RECEIVER = """
import base64, http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(json.dumps({"path": self.path, "body": base64.b64encode(body).decode()}), flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 9000), Handler).serve_forever()
"""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The handles on it."""

    project: Project
    url: str
    receiver: str

    def prometheus(self, what: str, **parameters: str) -> Any:
        """The `data` of an answer of Prometheus' API, through the gateway."""
        reply = requests.get(f"{self.url}/monitoring/api/v1/{what}", params=parameters, timeout=60,
                             headers={"Authorization": f"Bearer {METRICS_KEY}"})
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def values(self, expression: str) -> Any:
        return self.prometheus("query", query=expression)["result"]

    def completion(self, *, key: str = KEY, tokens: int = 16, request: str = "") -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} | ({"X-Request-Id": request} if request else {})
        return requests.post(f"{self.url}/v1/completions", headers=headers, timeout=600, json={
            "model": "selftest", "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True})

    def received(self) -> list[tuple[str, bytes]]:
        """Path and body of everything that was posted to the receiver."""
        records = (json.loads(line) for line in docker("logs", self.receiver).splitlines())
        return [(record["path"], base64.b64decode(record["body"])) for record in records]

    def alerts(self) -> Mapping[str, Mapping[str, Any]]:
        """The firing alerts that were received, by name."""
        bodies = (json.loads(body) for path, body in self.received() if path == "/hook")
        return {alert["labels"]["alertname"]: alert for body in bodies for alert in body["alerts"] if alert["status"] == "firing"}


@contextmanager
def observed(project: Project, folder: Path) -> Iterator[Observed]:
    """`project` up on the CPU, with keys, alerts sent to a webhook and traces to a collector."""
    files = {"keys": f"{KEY} alice\n{METRICS_KEY} watcher metrics-only\n", "hook": "http://receiver:9000/hook"}
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o444)
    values = {**TOUCHY, "HOST_MONITORING": "on", "GATEWAY_API_KEYS_FILE": str(folder / "keys"), "MONITORING_WEBHOOK_FILE": str(folder / "hook"),
              "ENGINE_OTLP_TRACES_ENDPOINT": "http://receiver:9000/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    up = project.up(*(word for key, value in values.items() for word in ("--set", f"{key}={value}")))
    assert up.returncode == 0, up.stderr
    receiver = f"{project.name}-receiver"
    try:
        docker("run", "--detach", "--init", "--name", receiver, "--network", f"{project.name}_front", "--network-alias", "receiver",
               "--no-healthcheck", "--entrypoint", "python3", IMAGE, "-c", RECEIVER)
        docker("network", "connect", "--alias", "receiver", f"{project.name}_back", receiver)
        yield Observed(project=project, url=project.url, receiver=receiver)
    finally:
        docker("rm", "--force", receiver, check=False)
