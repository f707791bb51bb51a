"""A page in a real browser asks the gateway from another origin: what it may read, and what its user is spared."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.chromium import browser
from support.gateway import KEY, Site, operational
from support.project import free_port, wait_until

PAGE = """<!doctype html><script type="module">
const said = {};
const ask = (body, key) => fetch("URL/v1/completions", {method: "POST", body: JSON.stringify(body),
  headers: {"Content-Type": "application/json", Authorization: `Bearer ${key}`}});
const question = {model: "fake", prompt: "hello", max_tokens: 3};
try {
  const whole = await ask(question, "KEY");
  said.whole = [whole.status, (await whole.json()).choices[0].text];
  said.id = whole.headers.get("x-request-id");
  const stream = await ask({...question, stream: true}, "KEY");
  said.streamed = new TextDecoder().decode(await new Response(stream.body).arrayBuffer()).trim().endsWith("data: [DONE]");
  const refused = await ask(question, "sk-of-somebody-else");
  said.refused = [refused.status, (await refused.json()).error.code];
} catch (error) { said.error = error.name; }
await fetch("/said", {method: "POST", body: JSON.stringify(said)});
</script>"""


@contextmanager
def page(port: int, url: str) -> Iterator["queue.Queue[Any]"]:
    """A server of that page on `port`; what the page says."""
    said: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(PAGE.replace("URL", url).replace("KEY", KEY).encode())

        def do_POST(self) -> None:
            said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply(b"")

        def reply(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield said
        finally:
            server.shutdown()


def opened(tmp_path: Path, port: int, url: str) -> Any:
    """What the page on `port` says once a browser has it open."""
    with page(port, url) as said, browser(tmp_path / "browser") as tab:
        tab.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
        return said.get(timeout=120)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    mine = Site(folder=tmp_path)
    try:
        mine.start_engine()
        yield mine
    finally:
        mine.close()


def test_a_page_of_an_allowed_origin_reads_answers_streams_and_errors_and_one_of_another_reads_nothing(site: Site, tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    door = site.open(keys=f"{KEY} alice\n", environment={"GATEWAY_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"})
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway sees its engine")
    url = f"http://127.0.0.1:{door.port}"
    allowed = opened(tmp_path, port, url)
    assert allowed.pop("id")
    assert allowed == {"whole": [200, allowed["whole"][1]], "streamed": True, "refused": [401, "invalid_api_key"]}
    assert allowed["whole"][1]
    assert opened(tmp_path, other, url) == {"error": "TypeError"}  # the browser's word for: not allowed
