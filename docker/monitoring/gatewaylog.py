"""Counts what the gateway's access log says, for Prometheus: requests, waits and bytes by key, path, status and engine. Standard library alone.

The gateway sends each line to a datagram socket (docker/gateway/haproxy.cfg); where nobody listens it is lost, and no request waits for it.
A key is its name here, never itself. At most MOST_SERIES label sets are kept; what is beyond counts under key="(others)".
"""

import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SOCKET = Path(os.environ.get("GATEWAY_LOG_SOCKET", "/run/gateway/access.sock"))
PORT = int(os.environ.get("GATEWAY_LOG_PORT", "9105"))
BOUNDS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
MOST_SERIES = 2000
CERTIFICATE_S = 600
"""Between two looks at the gateway's certificate."""
_WATCHING = re.compile(r"/(monitoring/.*|metrics(/.*)?|health|status(\.js)?|panels\.json|uplot\.(js|css))")
"""What only looks is no traffic: the page asks Prometheus twice a second, and would hide the share of errors. Who has no key for it counts."""
_TIME = re.compile(rb"\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z")


class Counts:
    """What was seen since the start."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: dict[tuple[str, ...], list[int]] = {}
        self.seconds: dict[tuple[str, ...], list[float]] = {}
        self.shown: set[tuple[str, ...]] = set()
        """What has been read as 0: a series that begins with all of a burst would show no increase."""
        self.unread = 0
        self.expires = 0.0
        """When the gateway's certificate ends; 0 where it has none, or that is not known."""

    def add(self, line: bytes) -> None:
        """One line of the log."""
        try:
            record: dict[str, Any] = json.loads(line)
            status, total, size = int(record["status"]), float(record["total_ms"]) / 1000, int(record["bytes"])
            key = str(record["key"]).partition(" ")[0] or "(none)"
            path = record["path"] if status != 404 else "(unknown)"
            if _WATCHING.fullmatch(path) and status not in (401, 403):
                return
            labels = (key, path, str(status), record["server"].strip("<>") or "NOSRV", record["end"])
        except (ValueError, KeyError, TypeError, AttributeError):
            with self.lock:
                self.unread += 1
            return
        with self.lock:
            if labels not in self.requests and len(self.requests) >= MOST_SERIES:
                labels = ("(others)", *labels[1:])
            counts = self.requests.setdefault(labels, [0, 0])
            counts[0] += 1
            counts[1] += size
            if 200 <= status < 300:
                buckets = self.seconds.setdefault((path,), [0.0] * (len(BOUNDS_S) + 2))
                for number, bound in enumerate((*BOUNDS_S, float("inf"))):
                    buckets[number] += total <= bound
                buckets[-1] += total

    def text(self) -> str:
        """Prometheus' exposition format."""
        names = ("key", "path", "code", "server", "end")
        out = ["# HELP gateway_requests_total Requests that the gateway has answered.", "# TYPE gateway_requests_total counter"]
        with self.lock:
            found = {_labels(names, values): counts if values in self.shown else [0, 0] for values, counts in self.requests.items()}
            out += [f"gateway_requests_total{labels} {counts[0]}" for labels, counts in found.items()]
            out += ["# HELP gateway_answered_bytes_total Bytes sent to clients.", "# TYPE gateway_answered_bytes_total counter"]
            out += [f"gateway_answered_bytes_total{labels} {counts[1]}" for labels, counts in found.items()]
            out += ["# HELP gateway_request_seconds From the first byte of a request to the last of its answer, of those with status 2xx.",
                    "# TYPE gateway_request_seconds histogram"]
            for values, seen in self.seconds.items():
                buckets = seen if values in self.shown else [0.0] * len(seen)
                for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=False):
                    out.append(f"gateway_request_seconds_bucket{_labels(('path', 'le'), (*values, bound))} {count:.0f}")
                out += [f"gateway_request_seconds_sum{_labels(('path',), values)} {buckets[-1]:.6f}",
                        f"gateway_request_seconds_count{_labels(('path',), values)} {buckets[-2]:.0f}"]
            self.shown.update(self.requests, self.seconds)
            out += ["# HELP gateway_log_unread_total Lines that were no record.", "# TYPE gateway_log_unread_total counter",
                    f"gateway_log_unread_total {self.unread}"]
        if self.expires:
            out += ["# HELP bundle_certificate_expires_seconds When the gateway's certificate ends (epoch).",
                    "# TYPE bundle_certificate_expires_seconds gauge", f"bundle_certificate_expires_seconds {self.expires:.0f}"]
        return "\n".join(out) + "\n"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    quoted = (f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(quoted) + "}"


def expiry(certificate: bytes) -> float:
    """When a certificate (DER) ends, as epoch seconds. The second time in it: RFC 5280, 4.1.2.5. 0 where there are no two."""
    times = [short or long for short, long in _TIME.findall(certificate)]
    if len(times) < 2:
        return 0.0
    return datetime.strptime(times[1].decode(), "%y%m%d%H%M%S" if len(times[1]) == 12 else "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def watch_certificate(counts: Counts) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who it is for is not asked here, only how long
    while True:
        with suppress(OSError), socket.create_connection(("gateway", 8005), timeout=5) as connection, context.wrap_socket(connection) as secured:
            counts.expires = expiry(secured.getpeercert(binary_form=True) or b"")
        time.sleep(CERTIFICATE_S)


def serve(counts: Counts) -> None:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            body = counts.text().encode() if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
            pass

    threading.Thread(target=ThreadingHTTPServer(("", PORT), Handler).serve_forever, daemon=True).start()


def main() -> int:
    counts = Counts()
    SOCKET.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(SOCKET))
        SOCKET.chmod(0o666)  # the gateway is another user; nothing else sees the folder
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        serve(counts)
        if os.environ.get("GATEWAY_TLS"):
            threading.Thread(target=watch_certificate, args=(counts,), daemon=True).start()
        print(f"counting {SOCKET} on :{PORT} since {time.strftime('%FT%TZ', time.gmtime())}", flush=True)  # noqa: T201
        while True:
            counts.add(listening.recv(65536))


if __name__ == "__main__":
    sys.exit(main())
