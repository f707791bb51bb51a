"""Where a deployment is reached, and the command line that asks it."""

import http.server
import json
import subprocess
import threading
from pathlib import Path

import pytest

from bundle.service.address import Address


@pytest.mark.parametrize(("bind", "url"), [
    ("127.0.0.1", "http://127.0.0.1:8005"), ("0.0.0.0", "http://127.0.0.1:8005"), ("192.0.2.7", "http://192.0.2.7:8005"),
    ("::1", "http://[::1]:8005"), ("::", "http://[::1]:8005"), ("2001:db8::1", "http://[2001:db8::1]:8005")])
def test_an_address_is_written_as_a_url_needs_it(bind: str, url: str) -> None:
    assert Address(bind=bind, port="8005", model="m").url == url


def test_a_certificate_makes_it_https() -> None:
    there = Address(bind="::1", port="8005", model="m", certificate=Path("/x.pem"))
    assert there.base_url == "https://[::1]:8005/v1"
    assert there.curl.startswith("curl -k -s 'https://[::1]:8005/v1/chat/completions' ")


class _Seen(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"key": self.headers["Authorization"], "type": self.headers["Content-Type"], "model": json.loads(body)["model"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_the_curl_line_takes_the_first_key_and_shows_it_to_nobody(tmp_path: Path) -> None:
    keys = tmp_path / "the keys"
    keys.write_text("# made by hand\n\nsk-canary-0 scraper metrics-only\nsk-canary-1 alice\nsk-canary-2\n")
    recorder = tmp_path / "curl"  # a `curl` that notes its arguments, as `ps` would show them
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/arguments\nPATH="${{PATH#*:}}" exec curl "$@"\n')
    recorder.chmod(0o755)
    with http.server.HTTPServer(("127.0.0.1", 0), _Seen) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            line = Address(bind="127.0.0.1", port=str(server.server_port), model="it's", key_file=keys).curl
            done = subprocess.run(["sh", "-c", f'PATH="{tmp_path}:$PATH"; {line}'], capture_output=True, text=True, check=True, timeout=60)
        finally:
            server.shutdown()
            thread.join()
    assert json.loads(done.stdout) == {"key": "Bearer sk-canary-1", "type": "application/json", "model": "it's"}
    assert "canary" not in line
    assert "canary" not in (tmp_path / "arguments").read_text()
