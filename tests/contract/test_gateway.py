"""The gateway's promises, each tried on the real container: who gets in, to what, and what happens when the engine does not answer."""

import json
import re
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.config import settings
from bundle.smoke import closedroutes
from support import image
from support.gateway import CONFIG, IMAGE, KEY, Door, Reply, Site, docker, operational, parse, request
from support.project import wait_until

HERE = ROOT / "docker" / "gateway"
LISTED = [tuple(line.split()) for line in (HERE / "routes.lst").read_text().splitlines() if line and not line.startswith("#")]
OPEN_TO_ALL: tuple[tuple[str, ...], ...] = (("GET", "/health"), ("HEAD", "/health"))

SCRAPER = "sk-scraper-4f1d0c"

# The listed paths by another method.
WRONG_METHODS = [
    ("GET", "/v1/completions"), ("PUT", "/v1/completions"), ("DELETE", "/v1/models"), ("POST", "/v1/models"), ("OPTIONS", "/v1/chat/completions"),
    ("HEAD", "/v1/models"), ("PATCH", "/v1/chat/completions"), ("TRACE", "/health"), ("POST", "/metrics"), ("get", "/health"), ("BREW", "/health"),
    ("CONNECT", "engine:8000"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An engine that does not fail, for the tests that only ask."""
    shared = Site(folder=tmp_path_factory.mktemp("gateway"))
    try:
        shared.start_engine()
        yield shared
    finally:
        shared.close()


@pytest.fixture(scope="module")
def unlocked(site: Site) -> Door:
    return ready(site.open())


@pytest.fixture(scope="module")
def locked(site: Site) -> Door:
    return ready(site.open(keys=f"# team one\n{KEY}\n\nsk-second-4f1d0c bob\n{SCRAPER} prometheus metrics-only\nshort carol\n"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Site]:
    """A site that the test may break."""
    mine = Site(folder=tmp_path)
    try:
        yield mine
    finally:
        mine.close()


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key behind it."""
    folder = tmp_path_factory.mktemp("pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key"), "-out", str(folder / "crt")],
                   check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "crt").read_text() + (folder / "key").read_text())
    return both


def ready(door: Door) -> Door:
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway sees its engine")
    return door


def completion(words: str = "hello", *, stream: bool = False, **fake: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": words, "max_tokens": 2, "stream": stream, "fake": fake}


def edited(before: str, after: str) -> str:
    """The configuration with one figure made small, so that a test of a time limit does not take that time."""
    text = (HERE / "haproxy.cfg").read_text()
    assert before in text
    return text.replace(before, after)


# --- what gets through

def test_every_route_that_vllm_documents_is_listed_or_refused_on_purpose() -> None:
    """By the OpenAPI documents of the engine in the image, one for each kind of model. A new version's new routes have to be judged."""
    probe = ROOT / "tests" / "support" / "openapi_probe.py"
    said = image.run(settings.load("cpu").image_engine, "/opt/venv/bin/python", "/probe.py", mounts=[(probe, "/probe.py")]).stdout
    documented = {tuple(line.replace("{response_id}", "resp_1").split()) for line in json.loads(said.splitlines()[-1])}
    assert len(documented) > 40
    assert documented - set(LISTED) - set(closedroutes.ROUTES) == set()
    assert set(LISTED) - documented == {("HEAD", "/health")}


def test_the_image_carries_the_configuration_of_this_tree() -> None:
    for name in ("haproxy.cfg", "routes.lst", "bodylimit.lua", "models.lua", "start.lua", "monitoring.lst"):
        inside = docker("run", "--rm", "--entrypoint", "cat", IMAGE, f"{Path(CONFIG).parent}/{name}")
        assert inside == (HERE / name).read_text(), f"{name}: run `make build`"


def test_no_route_is_both_listed_and_known_to_be_refused() -> None:
    assert not set(LISTED) & {*closedroutes.ROUTES, *WRONG_METHODS}
    assert set(OPEN_TO_ALL) <= set(LISTED)


@pytest.mark.parametrize("route", LISTED, ids=" ".join)
def test_a_listed_route_reaches_the_engine_without_keys_configured(site: Site, unlocked: Door, route: tuple[str, str]) -> None:
    id_ = f"open-{LISTED.index(route)}"
    unlocked.ask(*route, headers={"X-Request-Id": id_})
    if route not in OPEN_TO_ALL:  # the gateway answers that itself
        assert site.seen(by_way_of=unlocked)[id_]["line"] == f"{route[0]} {route[1]} HTTP/1.1"


@pytest.mark.parametrize("route", [r for r in LISTED if r not in OPEN_TO_ALL], ids=" ".join)
def test_a_listed_route_needs_a_key_when_keys_are_configured(site: Site, locked: Door, route: tuple[str, str]) -> None:
    number = LISTED.index(route)
    for place, key in enumerate((None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper(), "# team one", f" {KEY}x")):
        refused = locked.ask(*route, key=key, headers={"X-Request-Id": f"wrong-{number}-{place}"})
        assert (refused.status, refused.code) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
    for place, key in enumerate((KEY, "sk-second-4f1d0c")):
        locked.ask(*route, key=key, headers={"X-Request-Id": f"right-{number}-{place}"})
    seen = set(site.seen(by_way_of=locked, key=KEY))
    assert {f"right-{number}-0", f"right-{number}-1"} <= seen
    assert not {id_ for id_ in seen if id_.startswith(f"wrong-{number}-")}


def test_a_key_is_taken_as_anthropics_clients_send_it(site: Site, locked: Door) -> None:
    assert locked.ask("GET", "/v1/models", headers={"X-Api-Key": KEY, "X-Request-Id": "x-api-key"}).status == 200
    assert locked.ask("GET", "/v1/models", headers={"X-Api-Key": f"{KEY}x"}).code == "invalid_api_key"
    assert KEY not in json.dumps(site.seen(by_way_of=locked, key=KEY)["x-api-key"])


def test_a_key_in_another_place_or_scheme_is_no_key(locked: Door) -> None:
    for headers in ({"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Token {KEY}"},
                    {"Cookie": f"key={KEY}"}, {"Proxy-Authorization": f"Bearer {KEY}"}):
        assert locked.ask("GET", "/v1/models", headers=headers).code == "invalid_api_key"
    assert locked.ask("GET", f"/v1/models?api_key={KEY}").code == "invalid_api_key"


def test_a_key_for_metrics_reads_them_and_spends_nothing(site: Site, locked: Door) -> None:
    assert locked.ask("GET", "/metrics", key=SCRAPER).status == 200
    assert locked.ask("GET", "/metrics/engine", key=SCRAPER).status == 200
    assert locked.ask("GET", "/metrics/engine").code == "invalid_api_key"
    for method, path in LISTED:
        if path not in ("/metrics", "/health"):
            refused = locked.ask(method, path, key=SCRAPER, headers={"X-Request-Id": f"scraper-{path}"})
            assert (refused.status, refused.code) == (403, "metrics_only")
    assert not [id_ for id_ in site.seen(by_way_of=locked, key=KEY) if id_.startswith("scraper")]


def test_a_weak_key_is_none_even_if_the_file_has_it(locked: Door) -> None:
    assert locked.ask("GET", "/v1/models", key="short").code == "invalid_api_key"
    assert locked.ask("GET", "/v1/models", headers={"X-Api-Key": "short"}).code == "invalid_api_key"


def test_every_refusal_for_want_of_a_key_reads_the_same(locked: Door) -> None:
    """Nobody learns how near a guess came."""
    refused = {locked.ask("GET", "/v1/models", key=key).body for key in (None, "", "short", KEY[:-1], f"{KEY}x", "sk-another-4f1d0c")}
    assert len(refused) == 1


def test_health_is_answered_without_a_key(locked: Door) -> None:
    assert locked.ask("GET", "/health").status == 200


def test_an_empty_key_file_lets_nobody_in(site: Site) -> None:
    door = site.open(keys="# no keys yet\n\n")
    for key in (None, "", "# no keys yet"):
        assert door.ask("GET", "/v1/models", key=key).code == "invalid_api_key"


def refused_everywhere(site: Site, door: Door, routes: Sequence[tuple[str, str]], prefix: str) -> None:
    """Every route, with and without a key, is answered by the gateway and seen by no engine."""
    for number, (method, target) in enumerate(routes):
        for place, key in enumerate((KEY, None)):
            reply = door.ask(method, target, key=key, headers={"X-Request-Id": f"{prefix}-{number}-{place}"})
            assert reply.status in (400, 404), f"{method} {target}: {reply}"
            assert reply.status == 400 or method == "HEAD" or reply.code == "unknown_url", f"{method} {target}: {reply}"
    assert not [id_ for id_ in site.seen(by_way_of=door, key=KEY) if id_.startswith(f"{prefix}-")]


def test_every_other_route_of_the_engine_is_refused_with_and_without_a_key(site: Site, unlocked: Door, locked: Door) -> None:
    refused_everywhere(site, locked, [*closedroutes.ROUTES, *WRONG_METHODS], "refused-locked")
    refused_everywhere(site, unlocked, [*closedroutes.ROUTES, *WRONG_METHODS], "refused-unlocked")


def test_no_spelling_of_a_path_gets_around_the_list(site: Site, unlocked: Door, locked: Door) -> None:
    tricks = [(method, target) for target in closedroutes.SPELLINGS for method in ("GET", "POST")]
    refused_everywhere(site, locked, tricks, "trick-locked")
    refused_everywhere(site, unlocked, tricks, "trick-unlocked")


def test_what_was_checked_is_what_is_sent(site: Site, unlocked: Door) -> None:
    unlocked.ask("GET", "http://engine:8000/v1/models?a=b", headers={"X-Request-Id": "absolute", "Host": "engine:8000"})
    assert site.seen(by_way_of=unlocked)["absolute"]["line"] == "GET /v1/models?a=b HTTP/1.1"


SMUGGLED = b"POST /invocations HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding: identity, chunked\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 0\r\n",
    b"Content-Length: 5, 0\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length : 5\r\n",
    b"Content-Length: 5 \x00\r\n",
    b" Content-Length: 5\r\n",
    b"X: y\rContent-Length: 5\r\n",
    b": empty name\r\nContent-Length: 5\r\n",
    b"",
], ids=repr)
def test_a_request_of_doubtful_length_is_refused_and_nothing_behind_it_is_served(site: Site, unlocked: Door, head: bytes) -> None:
    id_ = f"carrier-{secrets.token_hex(4)}"
    data = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id_}\r\n".encode() + head + b"\r\n0\r\n\r\n" + SMUGGLED
    answer = unlocked.exchange(data, timeout_s=5)
    assert parse(answer).status in (400, 411, 413, 422, 501), answer
    assert b"200 OK" not in answer
    assert not {id_, "smuggled"} & set(site.seen(by_way_of=unlocked))


@pytest.mark.parametrize("head", [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"], ids=repr)
def test_of_two_lengths_the_chunks_count_alone_and_nothing_behind_them_is_read(site: Site, unlocked: Door, head: bytes) -> None:
    """As RFC 9112 (6.3) wants it of a server that does not refuse: the engine sees one length, and the connection ends with the answer."""
    id_ = f"both-{secrets.token_hex(4)}"
    data = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id_}\r\n".encode() + head + b"\r\n0\r\n\r\n" + SMUGGLED
    answer = unlocked.exchange(data)
    assert answer.count(b"HTTP/1.1 ") == 1
    seen = site.seen(by_way_of=unlocked)
    assert "content-length" not in seen[id_]["headers"]
    assert "smuggled" not in seen


def chunked(body: bytes, *, headers: str = "") -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
    pieces = [body[at:at + 4096] for at in range(0, len(body), 4096)]
    return head.encode() + b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


def test_a_body_in_chunks_is_served_and_what_comes_behind_it_is_checked(site: Site, unlocked: Door) -> None:
    body = json.dumps(completion("word " * 200)).encode()
    answer = unlocked.exchange(chunked(body, headers="X-Request-Id: chunks\r\n") + SMUGGLED + request("GET", "/docs"))
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answer)] == [200, 404, 404]
    seen = site.seen(by_way_of=unlocked)
    assert seen["chunks"]["body_bytes"] == len(body)
    assert "smuggled" not in seen


@pytest.mark.parametrize("mib", [1, 3])
def test_a_body_without_a_length_is_served_up_to_the_limit_and_not_beyond(site: Site, mib: int) -> None:
    door = ready(site.open(environment={"GATEWAY_MAX_BODY_MIB": str(mib)}))
    for over in (False, True):
        words = "y" * (mib * 2**20 - len(json.dumps(completion(""))) + over)
        id_ = f"{mib}-{over}"
        answer = parse(door.exchange(chunked(json.dumps(completion(words)).encode(), headers=f"Connection: close\r\nX-Request-Id: {id_}\r\n")))
        assert answer.status == (413 if over else 200)
        assert over == (id_ not in site.seen(by_way_of=door))
        with_length = door.ask("POST", "/v1/completions", json_body=completion(words))
        assert with_length.status == answer.status
        if over:
            assert (answer.code, answer.body) == (with_length.code, with_length.body)


def test_http2_needs_no_content_length(site: Site, pem: Path) -> None:
    door = ready(site.open(certificate=pem.read_text()))
    body = json.dumps(completion()).encode()
    done = subprocess.run(["curl", "-sk", "--http2", "-X", "POST", "-T", "-", "-H", "Content-Type: application/json", "-o", "/dev/stderr",
                           "-w", "%{http_version} %{http_code}", f"https://127.0.0.1:{door.port}/v1/completions"],
                          input=body, capture_output=True, check=True, timeout=30)
    assert done.stdout == b"2 200", done.stderr


def test_head_of_health_answers_load_balancers(own: Site) -> None:
    own.start_engine()
    door = ready(own.open(keys=f"{KEY}\n"))
    with door.send(request("HEAD", "/health")) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    own.stop_engine()
    wait_until(lambda: not operational(door), deadline_s=30, what="the gateway sees that the engine is gone")
    with door.send(request("HEAD", "/health")) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")


def test_a_second_request_on_the_connection_is_checked_like_the_first(site: Site, unlocked: Door) -> None:
    answer = unlocked.exchange(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Request-Id: pipeline\r\n\r\n" + SMUGGLED + request("GET", "/docs"))
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answer)] == [200, 404, 404]
    seen = site.seen(by_way_of=unlocked)
    assert "pipeline" in seen
    assert "smuggled" not in seen


def test_the_engine_sees_no_key_no_cookie_and_no_protocol_switch(site: Site, locked: Door) -> None:
    headers = {"X-Request-Id": "headers", "X-Api-Key": KEY, "Cookie": f"a={KEY}", "Upgrade": "h2c", "Connection": "Upgrade, close",
               "HTTP2-Settings": "AAMAAABkAAQ"}
    data = request("GET", "/v1/models", headers=headers, key=KEY).replace(b"\r\n\r\n", f"\r\nAuthorization: Basic {KEY}\r\n\r\n".encode())
    assert parse(locked.exchange(data)).status == 200
    sent = site.seen(by_way_of=locked, key=KEY)["headers"]["headers"]
    assert KEY not in json.dumps(sent)
    assert not {"authorization", "x-api-key", "cookie", "upgrade", "http2-settings"} & set(sent)


def test_a_body_too_large_is_refused_before_it_is_sent(unlocked: Door) -> None:
    assert unlocked.ask("POST", "/v1/completions", headers={"Content-Length": str(32 * 2**20 + 1)}, timeout_s=3).code == "request_too_large"


def test_a_large_prompt_gets_through_whole(site: Site, unlocked: Door) -> None:
    words = "word " * 500_000
    reply = unlocked.ask("POST", "/v1/completions", headers={"X-Request-Id": "large"}, json_body=completion(words))
    assert reply.status == 400  # the engine's own answer: longer than its context
    assert b"maximum context length" in reply.body
    assert site.seen(by_way_of=unlocked)["large"]["body_bytes"] > len(words)


def test_a_client_may_wait_for_permission_to_send(unlocked: Door) -> None:
    whole = request("POST", "/v1/completions", json_body=completion(), headers={"Expect": "100-continue"})
    head, _, body = whole.partition(b"\r\n\r\n")
    with unlocked.send(head + b"\r\n\r\n") as connection:
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")


def test_a_sane_request_id_is_kept_and_any_other_replaced(site: Site, unlocked: Door) -> None:
    assert unlocked.ask("GET", "/v1/models", headers={"X-Request-Id": "my.id-1"}).headers["x-request-id"] == "my.id-1"
    for bad in ('","status":"200', "a" * 129, "", "ä", "a b"):
        given = unlocked.ask("GET", "/v1/models", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f-]{36}", given)
        assert given in site.seen(by_way_of=unlocked)
    assert unlocked.ask("GET", "/nowhere", headers={"X-Request-Id": "my.id-2"}).headers["x-request-id"] == "my.id-2"


def test_the_engine_does_not_name_its_software(unlocked: Door) -> None:
    assert "server" not in unlocked.ask("GET", "/v1/models").headers


# --- browsers

ORIGIN = "https://chat.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}


@pytest.fixture(scope="module")
def browsed(site: Site) -> Door:
    return ready(site.open(keys=KEY, environment={"GATEWAY_ALLOWED_ORIGINS": f"http://localhost:3000 {ORIGIN}"}))


def test_pages_of_a_listed_origin_may_ask_and_read(browsed: Door) -> None:
    allowed = browsed.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": ORIGIN, **PREFLIGHT})  # a browser sends no key with it
    assert allowed.status == 204
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "POST" in allowed.headers["access-control-allow-methods"]
    for key, status in ((KEY, 200), ("wrong", 401)):  # a page must be able to read why it was refused, too
        reply = browsed.ask("GET", "/v1/models", key=key, headers={"Origin": ORIGIN})
        assert (reply.status, reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (status, ORIGIN, "Origin")


def test_pages_of_no_other_origin_may(browsed: Door) -> None:
    for origin in ("https://chat.example.evil", "https://chat.exampl", "http://chat.example", "null", "*", f"{ORIGIN} http://localhost:3000"):
        assert browsed.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **PREFLIGHT}).status == 404
        assert "access-control-allow-origin" not in browsed.ask("GET", "/v1/models", key=KEY, headers={"Origin": origin}).headers


def test_without_origins_no_page_may_whatever_the_engine_says(unlocked: Door) -> None:
    assert unlocked.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": ORIGIN, **PREFLIGHT}).status == 404
    assert "access-control-allow-origin" not in unlocked.ask("GET", "/v1/models", headers={"Origin": ORIGIN}).headers  # the fake allows all


def test_an_asterisk_lets_every_page_in(site: Site) -> None:
    door = ready(site.open(environment={"GATEWAY_ALLOWED_ORIGINS": "*"}))
    assert door.ask("OPTIONS", "/v1/models", headers={"Origin": "https://any.example", **PREFLIGHT}).status == 204
    assert door.ask("GET", "/v1/models", headers={"Origin": "https://any.example"}).headers["access-control-allow-origin"] == "https://any.example"
    assert "access-control-allow-origin" not in door.ask("GET", "/v1/models").headers


# --- who may take how much

def test_one_key_has_no_more_requests_running_than_its_share_and_others_are_served(own: Site) -> None:
    own.start_engine()
    door = ready(own.open(keys=f"{KEY} alice\nsk-second-4f1d0c bob\n", environment={"GATEWAY_MAX_RUNNING": "2"}))
    with ExitStack() as connections:
        for _ in range(2):
            asked = request("POST", "/v1/completions", key=KEY, json_body=completion(stream=True, pause_s=30))
            first_of(connections.enter_context(door.send(asked)), b"200 OK")
        refused = door.ask("POST", "/v1/completions", key=KEY, json_body=completion())
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 0
        assert door.ask("GET", "/v1/models", key=KEY).status == 200  # costs nothing
        assert door.ask("POST", "/v1/completions", key="sk-second-4f1d0c", json_body=completion()).status == 200
    wait_until(lambda: door.ask("POST", "/v1/completions", key=KEY, json_body=completion()).status == 200, deadline_s=20,
               what="the share is free again")


def test_one_key_makes_no_more_requests_within_a_minute_than_its_rate(site: Site) -> None:
    door = ready(site.open(keys=f"{KEY} alice\nsk-second-4f1d0c bob\n", environment={"GATEWAY_MAX_PER_MINUTE": "3"}))
    asked = [door.ask("POST", "/v1/completions", key=KEY, json_body=completion()).status for _ in range(5)]
    assert asked == [200, 200, 200, 429, 429]
    assert door.ask("POST", "/v1/completions", key="sk-second-4f1d0c", json_body=completion()).status == 200


def test_without_keys_a_limit_holds_for_each_source(site: Site) -> None:
    door = ready(site.open(environment={"GATEWAY_MAX_PER_MINUTE": "1"}))
    assert [door.ask("POST", "/v1/completions", json_body=completion()).status for _ in range(2)] == [200, 429]


def test_one_request_asks_for_no_more_answers_than_the_bound(site: Site, unlocked: Door) -> None:
    chat = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
    for path, body in (("/v1/completions", completion() | {"n": 16_000, "max_tokens": 100}), ("/v1/completions", completion() | {"n": 200_000}),
                       ("/v1/chat/completions", chat | {"max_completion_tokens": 100, "n": 16_000})):
        refused = unlocked.ask("POST", path, headers={"X-Request-Id": "greedy"}, json_body=body)
        assert (refused.status, refused.code) == (400, "too_many_tokens")
    assert "greedy" not in site.seen(by_way_of=unlocked)
    assert unlocked.ask("POST", "/v1/completions", json_body=completion() | {"n": 16, "max_tokens": 100}).status == 200


def test_half_open_connections_of_one_source_leave_room_for_the_others(own: Site) -> None:
    """Without the limit the 1024 places of the gateway would be taken, and who comes would wait until their time is over."""
    own.start_engine()
    door = ready(own.open(keys=KEY))
    code = f"import urllib.request; urllib.request.urlopen('http://{address(door.name)}:8005/health', timeout=8)"
    with ExitStack() as connections:
        for _ in range(1040):
            with suppress(ConnectionError):  # beyond its share
                connections.enter_context(door.send(b"POST /v1/completions HTTP/1.1\r\n"))
        elsewhere = subprocess.run(["docker", "exec", own.upstream, "python3", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert elsewhere.returncode == 0, elsewhere.stderr


# --- TLS

def over_tls(door: Door, pem: Path, data: bytes, **options: Any) -> tuple[bytes, ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(pem))
    for name, value in options.items():
        setattr(context, name, value)
    context.set_alpn_protocols(["http/1.1"])
    with door.send(b"") as plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer, connection


def test_with_a_certificate_the_port_speaks_tls_and_nothing_else(site: Site, pem: Path) -> None:
    door = ready(site.open(keys=KEY, certificate=pem.read_text()))
    answer, _ = over_tls(door, pem, request("GET", "/v1/models", key=KEY))
    assert parse(answer).status == 200
    answer, _ = over_tls(door, pem, request("GET", "/v1/models"))
    assert parse(answer).code == "invalid_api_key"
    assert b"200 OK" not in door.exchange(request("GET", "/v1/models", key=KEY))

    old = ssl.create_default_context(cafile=str(pem))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with door.send(b"") as plain, pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
        old.wrap_socket(plain, server_hostname="localhost")

    weak = ssl.create_default_context(cafile=str(pem))
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES256-GCM-SHA384:ECDHE-RSA-AES128-SHA")  # without forward secrecy, or without authenticated encryption
    with door.send(b"") as plain, pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        weak.wrap_socket(plain, server_hostname="localhost")

    modern = ssl.create_default_context(cafile=str(pem))
    modern.set_alpn_protocols(["h2", "http/1.1"])
    with door.send(b"") as plain, modern.wrap_socket(plain, server_hostname="localhost") as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() == "TLSv1.3"


@pytest.mark.parametrize(("environment", "files", "said"), [
    ({"GATEWAY_AUTH": "yes"}, {}, "GATEWAY_AUTH must be on or empty"),
    ({"GATEWAY_TLS": "ssl crt /x"}, {}, "GATEWAY_TLS must be on or empty"),
    ({"GATEWAY_AUTH": "on"}, {}, "gateway_api_keys"),
    ({"GATEWAY_TLS": "on"}, {}, "gateway_tls"),
    ({}, {"certificate": "not a certificate\n"}, "gateway_tls"),
    ({"GATEWAY_TIMEOUT_S": "soon"}, {}, "timeout server"),
    ({"GATEWAY_DRAIN_S": ""}, {}, "hard-stop-after"),
])
def test_a_wrong_setting_stops_the_gateway_and_is_named(site: Site, environment: dict[str, str], files: dict[str, str], said: str) -> None:
    door = site.open(environment=environment, wait=False, **files)
    wait_until(lambda: "exited" in docker("inspect", "--format", "{{.State.Status}}", door.name), deadline_s=20, what="the gateway ends")
    assert docker("inspect", "--format", "{{.State.ExitCode}}", door.name).strip() == "1"
    assert said in door.log


# --- streams

def first_of(connection: Any, wanted: bytes) -> bytes:
    answer = b""
    while wanted not in answer:
        piece = connection.recv(65536)
        assert piece, f"closed before {wanted!r}: {answer!r}"
        answer += piece
    return bytes(answer)


def test_a_stream_is_passed_on_piece_by_piece(site: Site, unlocked: Door) -> None:
    before = [e for e in site.events() if e["event"] == "streamed"]
    with unlocked.send(request("POST", "/v1/completions", json_body=completion(stream=True, pause_s=2))) as connection:
        first_of(connection, b"data: {")
        assert [e for e in site.events() if e["event"] == "streamed"] == before  # the engine has not yet finished
        first_of(connection, b"data: [DONE]")


def test_a_token_does_not_wait_for_the_next_one(site: Site, unlocked: Door) -> None:
    """Events 50 ms apart. Held together, they come up to 250 ms late and in bursts: it is the gaps that a reader sees."""
    address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", site.upstream).strip()
    bare, through = (arrivals(host, port) for host, port in ((address, 8000), ("127.0.0.1", unlocked.port)))
    assert through[0] < bare[0] + 0.04, f"first event after {through[0]:.3f} s, without the gateway {bare[0]:.3f}"
    gaps = [after - before for before, after in pairwise(through)]
    assert sum(gap < 0.01 for gap in gaps) <= 2, f"events come in bursts: {gaps}"


def arrivals(host: str, port: int) -> list[float]:
    """Seconds from the request to each event of a stream of 20 events, 50 ms apart."""
    found: list[float] = []
    body = completion(stream=True, pause_s=0.05) | {"max_tokens": 20}
    with socket.create_connection((host, port), timeout=20) as connection:
        started = time.monotonic()
        connection.sendall(request("POST", "/v1/completions", json_body=body))
        while piece := connection.recv(65536):
            found += [time.monotonic() - started] * piece.count(b"data: {")
    assert len(found) >= 20
    return found


def test_a_client_that_hangs_up_stops_its_request_in_the_engine(own: Site) -> None:
    own.start_engine()
    door = ready(own.open())
    for body in (completion(silence_s=60), completion(stream=True, pause_s=60)):
        with door.send(request("POST", "/v1/completions", json_body=body)):
            wait_until(lambda: requests(own) == hangups(own) + 1, deadline_s=20, what="the engine works")
        wait_until(lambda: requests(own) == hangups(own), deadline_s=20, what="the engine sees the hang-up")


def test_a_silent_engine_is_not_cut_off_by_the_clients_time_limit(own: Site) -> None:
    own.start_engine()
    door = ready(own.open(config=edited("timeout client 60s", "timeout client 1s")))
    assert door.ask("POST", "/v1/completions", json_body=completion(silence_s=3)).status == 200
    streamed = door.ask("POST", "/v1/completions", json_body=completion(stream=True, pause_s=2))
    assert streamed.body.endswith(b"data: [DONE]\n\n")


def test_an_engine_silent_for_longer_than_the_setting_allows_gives_504(own: Site) -> None:
    own.start_engine()
    door = ready(own.open(environment={"GATEWAY_TIMEOUT_S": "1"}))
    reply = door.ask("POST", "/v1/completions", json_body=completion(silence_s=30))
    assert (reply.status, reply.code) == (504, "engine_timeout")


def test_a_sender_that_does_not_finish_is_dropped(own: Site) -> None:
    own.start_engine()
    text = edited("timeout http-request 10s", "timeout http-request 1s").replace("wait-for-body time 30s", "wait-for-body time 1s")
    door = ready(own.open(config=text))
    assert parse(door.exchange(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")).status == 408
    assert parse(door.exchange(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")).code == "request_timeout"
    assert len(own.seen(by_way_of=door)) == 1


@pytest.mark.parametrize("kind", ["alone", "beside an idle connection", "on a connection that is kept"])
def test_a_stop_finishes_the_running_stream_and_takes_no_new_request(own: Site, kind: str) -> None:
    own.start_engine()
    door = ready(own.open())
    with ExitStack() as connections:
        if kind == "beside an idle connection":
            first_of(connections.enter_context(door.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")), b'"data"')
        kept = {"Connection": "keep-alive"} if kind == "on a connection that is kept" else {}
        asked = request("POST", "/v1/completions", headers=kept, json_body=completion(stream=True, pause_s=2))
        stream = connections.enter_context(door.send(asked))
        first_of(stream, b"data: {")
        stopping = threading.Thread(target=docker, args=("stop", "--time", "40", door.name))
        stopping.start()
        wait_until(lambda: closed(door), deadline_s=10, what="the port is closed")
        first_of(stream, b"data: [DONE]")
        stopping.join(timeout=25)  # less than the 30 s of GATEWAY_DRAIN_S
        assert not stopping.is_alive(), "a connection without a request holds up the stop"
    assert docker("inspect", "--format", "{{.State.ExitCode}}", door.name).strip() == "0"


def requests(site: Site) -> int:
    """How many requests the engine tells of, those of lives before a restart included."""
    return sum(event["event"] == "request" for event in site.events())


def hangups(site: Site) -> int:
    """How many of its requests the engine has seen abandoned."""
    return sum(event["event"] == "hangup" for event in site.events())


def closed(door: Door) -> bool:
    """Whether a new client is turned away (Docker's own listener may accept it, and close at once)."""
    try:
        return not door.exchange(request("GET", "/v1/models"), timeout_s=5)
    except ConnectionRefusedError:
        return True


def test_a_stream_that_does_not_end_is_cut_after_the_drain_time(own: Site) -> None:
    own.start_engine()
    door = ready(own.open(environment={"GATEWAY_DRAIN_S": "1"}))
    with door.send(request("POST", "/v1/completions", json_body=completion(stream=True, pause_s=60))):
        wait_until(lambda: requests(own) == 1, deadline_s=20, what="the engine works")
        docker("kill", "--signal", "USR1", door.name)
        assert docker("wait", door.name).strip().isdigit()
        assert "hard-stop" in door.log


# --- engines that fail

def test_without_an_engine_the_answer_says_so_and_when_to_come_back(own: Site) -> None:
    door = own.open(keys=KEY)
    reply = door.ask("POST", "/v1/completions", key=KEY, json_body=completion())
    assert (reply.status, reply.code) == (503, "engine_unavailable")
    assert int(reply.headers["retry-after"]) > 0
    assert b"loading" in reply.body
    assert door.ask("GET", "/health").code == "engine_unavailable"
    # Neither the list nor the keys depend on the engine.
    assert door.ask("GET", "/v1/models").code == "invalid_api_key"
    assert door.ask("POST", "/invocations", key=KEY).code == "unknown_url"


def address(container: str) -> str:
    """Its address in the test's network."""
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container).strip()


def test_who_comes_before_a_new_gateway_knows_its_engine_waits_for_that_and_is_answered(own: Site) -> None:
    """As it was, clients got a 503 in the first second or so of every gateway, though an engine was there."""
    own.start_engine()
    ready(own.open())
    docker("network", "disconnect", own.name, own.upstream)
    door = own.open()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(door.ask, "GET", "/v1/models")
        docker("network", "connect", "--alias", "engine", own.name, own.upstream)
        assert asked.result().status == 200


def test_a_gateway_is_healthy_when_it_knows_its_engine_or_has_looked_for_it(own: Site) -> None:
    def healthy(door: Door) -> str:
        return docker("exec", door.name, "python3", "/opt/bundle/gateway_health.py", check=False)

    door = own.open(wait=False)
    wait_until(lambda: "503" in healthy(door), deadline_s=30, what="it says that it has just started")
    wait_until(lambda: healthy(door) == "", deadline_s=30, what="it has looked for its engines")


def test_an_engine_that_comes_late_or_back_with_another_address_is_found(own: Site) -> None:
    door = own.open()
    addresses = []
    for _ in range(2):
        assert door.ask("GET", "/v1/models").status == 503
        own.start_engine()
        addresses.append(address(own.upstream))
        ready(door)
        assert door.ask("GET", "/v1/models").status == 200
        own.stop_engine()
        wait_until(lambda: not operational(door), deadline_s=60, what="the gateway sees that the engine is gone")
        if len(addresses) == 1:  # keep the address taken, so that the next engine gets another
            own.containers.append(f"{own.name}-squatter")
            docker("run", "--detach", "--init", "--name", own.containers[-1], "--network", own.name, "--entrypoint", "sleep", IMAGE, "300")
    assert addresses[0] != addresses[1]


def test_an_engine_that_says_it_is_unhealthy_gets_no_request(own: Site) -> None:
    own.start_engine(faults=["unhealthy"])
    door = own.open()
    wait_until(lambda: "Layer7 wrong status" in door.log, deadline_s=30, what="the gateway takes the engine out")
    assert door.ask("GET", "/v1/models").code == "engine_unavailable"
    assert requests(own) == 0


def test_an_engine_killed_under_load_loses_no_request_while_a_replica_serves(own: Site) -> None:
    own.start_engine()
    own.start_engine(service="engine-2")
    door = ready(own.open())
    wait_until(lambda: operational(door, "engine-2"), deadline_s=30, what="the gateway sees the replica")

    def one(number: int) -> Reply:
        # 40 kB: more than a buffer of HAProxy's default size, and what does not fit in one is not sent again.
        return door.ask("POST", "/v1/completions", json_body=completion(f"request {number} {'x' * 40_000}", silence_s=2), timeout_s=60)

    def arrived(service: str) -> int:
        return sum(event["event"] == "request" for event in own.events(service))

    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(one, number) for number in range(16)]
        wait_until(lambda: arrived("engine") + arrived("engine-2") == 16, deadline_s=20, what="all 16 requests are in the engines")
        lost = arrived("engine")
        docker("kill", own.upstream)
        replies = [request_.result() for request_ in running]
    assert [reply.status for reply in replies] == [200] * 16
    assert lost > 0
    assert arrived("engine-2") == 16


def test_a_stream_that_has_begun_is_not_repeated(own: Site) -> None:
    own.start_engine("--restart", "always")
    door = ready(own.open())
    with door.send(request("POST", "/v1/completions", json_body=completion(stream=True, pause_s=1))) as connection:
        first_of(connection, b"data: {")
        docker("exec", own.upstream, "bash", "-c", "kill -9 $(< /proc/1/task/1/children)")
        rest = b""
        while piece := connection.recv(65536):
            rest += piece
    assert b"[DONE]" not in rest
    assert requests(own) == 1


def test_a_full_engine_tells_clients_when_to_come_back(unlocked: Door) -> None:
    reply = unlocked.ask("POST", "/v1/completions", json_body=completion(status=503))
    assert reply.status == 503
    assert b"as asked" in reply.body
    assert int(reply.headers["retry-after"]) > 0
    assert "retry-after" not in unlocked.ask("POST", "/v1/completions", json_body=completion(status=500)).headers


def test_errors_of_the_engines_framework_are_put_in_form(unlocked: Door) -> None:
    """A route that this kind of model lacks, and a fault that the engine itself did not expect."""
    for path, raw, status, code in (("/v1/embeddings", [404, "application/json", '{"detail":"Not Found"}'], 404, "not_of_this_model"),
                                    ("/v1/completions", [500, "text/plain", "Internal Server Error"], 500, "engine_failed")):
        reply = unlocked.ask("POST", path, json_body={"model": "fake", "fake": {"raw": raw}})
        assert (reply.status, reply.code) == (status, code)
    own = '{"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}}'
    assert unlocked.ask("POST", "/v1/completions", json_body={"fake": {"raw": [404, "application/json", own]}}).body == own.encode()


def test_anthropics_clients_get_errors_in_their_form(locked: Door) -> None:
    wrong = {"error": {"message": 'a "field" is missing', "type": "BadRequestError", "param": None, "code": 400}}
    for reply, type_ in ((locked.ask("POST", "/v1/messages", headers={"X-Api-Key": "wrong"}), "authentication_error"),
                         (locked.ask("POST", "/v1/messages/none", key=KEY), "not_found_error"),
                         (locked.ask("POST", "/v1/messages", key=KEY, headers={"Content-Length": str(2**30)}, timeout_s=3), "request_too_large"),
                         (locked.ask("POST", "/v1/messages", key=KEY, json_body={"fake": {"raw": [400, "application/json", json.dumps(wrong)]}}),
                          "invalid_request_error")):
        said = json.loads(reply.body)
        assert (said["type"], said["error"]["type"]) == ("error", type_)
        assert said["error"]["message"]
    assert said["error"]["message"] == 'a "field" is missing'


# --- replicas

CHAT = {"model": "fake", "max_tokens": 1}
LONG = "word " * 20_000
CONVERSATIONS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "a chat": ("/v1/chat/completions", [CHAT | {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "{who}"}, *more]}
                                        for more in ([], [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}])]),
    "a chat without a system prompt": ("/v1/chat/completions", [CHAT | {"messages": [{"role": "user", "content": "{who}"}, *more]} for more in (
        [], [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}])]),
    "content in parts": ("/v1/chat/completions", [CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "{who}"}]}, *more]}
                                                  for more in ([], [{"role": "assistant", "content": "a"}])]),
    "messages": ("/v1/messages", [CHAT | {"system": "be brief", "messages": [{"role": "user", "content": "{who}"}, *more]}
                                  for more in ([], [{"role": "assistant", "content": "a"}])]),
    "responses": ("/v1/responses", [{"model": "fake", "instructions": "be brief", "input": [{"role": "user", "content": "{who}"}, *more]}
                                    for more in ([], [{"role": "assistant", "content": "a"}])]),
    "a chat longer than a buffer": ("/v1/chat/completions", [CHAT | {"messages": [{"role": "user", "content": "{who}"}, *more]}
                                                             for more in ([], [{"role": "assistant", "content": LONG}])]),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Door]]:
    """Two engines behind one gateway."""
    shared = Site(folder=tmp_path_factory.mktemp("pair"))
    try:
        shared.start_engine()
        shared.start_engine(service="engine-2")
        door = ready(shared.open())
        wait_until(lambda: operational(door, "engine-2"), deadline_s=30, what="the gateway sees the replica")
        yield shared, door
    finally:
        shared.close()


def admin(door: Door, command: str) -> None:
    """Tell it to the gateway's HAProxy."""
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); s.sendall(sys.argv[1].encode() + b'\\n')"
    docker("exec", door.name, "python3", "-c", f"{code}; s.recv(65536)", command)


def served_by(door: Door, ids: Sequence[str]) -> list[str]:
    """Which engine each request went to."""
    def known() -> dict[str, str]:
        return {record["id"]: record["server"] for record in door.records()}
    wait_until(lambda: set(ids) <= set(known()), deadline_s=20, what="the requests are in the log")
    return [known()[id_] for id_ in ids]


def test_metrics_are_those_of_the_engine_that_is_named_and_of_no_other(pair: tuple[Site, Door]) -> None:
    """Counters that came from another engine each time would be no counters. Also of one that gets no requests, which is when they are looked at."""
    _, door = pair
    asked = {f"{name or 'first'}-{number}": name for name in ("", "engine", "engine-2") for number in range(4)}
    for id_, name in asked.items():
        reply = door.ask("GET", f"/metrics/{name}".rstrip("/"), headers={"X-Request-Id": id_})
        assert b"vllm:prompt_tokens_total" in reply.body
    assert served_by(door, list(asked)) == [name or "engine" for name in asked.values()]
    admin(door, "set server engine/engine-2 state maint")
    try:
        assert door.ask("GET", "/metrics/engine-2", headers={"X-Request-Id": "taken-out"}).status == 200
        assert door.ask("GET", "/metrics/engine-3", headers={"X-Request-Id": "not-there"}).code == "engine_unavailable"
    finally:
        admin(door, "set server engine/engine-2 state ready")
    assert served_by(door, ["taken-out", "not-there"]) == ["engine-2", "engine-3"]
    for path in ("/metrics/engine-b", "/metrics/engine-9", "/metrics/gateway", "/metrics/", "/metrics/engine/", "/metrics/engine-2/x"):
        assert door.ask("GET", path).code == "unknown_url", path
    assert door.ask("POST", "/metrics/engine").code == "unknown_url"
    wait_until(lambda: operational(door, "engine-2"), deadline_s=20, what="it is back")


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_turns_of_a_conversation_go_to_one_engine_and_conversations_to_both(pair: tuple[Site, Door], kind: str) -> None:
    path, turns = CONVERSATIONS[kind]
    homes: list[str] = []
    for who in range(8):
        ids = [f"{kind.replace(' ', '_')}-{who}-{turn}" for turn in range(len(turns) + 1)]
        for id_, body in zip(ids, [*turns, turns[-1]], strict=True):
            pair[1].ask("POST", path, headers={"X-Request-Id": id_}, json_body=json.loads(json.dumps(body).replace("{who}", f"I am {who} of {kind}")))
        engines = set(served_by(pair[1], ids))
        assert len(engines) == 1, engines
        homes += engines
    assert set(homes) == {"engine", "engine-2"}


def test_a_session_that_the_client_names_stays_at_one_engine(pair: tuple[Site, Door]) -> None:
    ids = [f"session-{turn}" for turn in range(6)]
    for id_ in ids:
        pair[1].ask("POST", "/v1/completions", headers={"X-Request-Id": id_, "X-Session-Id": "mine"}, json_body=completion(id_))
    assert len(set(served_by(pair[1], ids))) == 1


# --- with monitoring

def test_the_page_and_what_is_behind_it_exist_with_monitoring_alone(own: Site, unlocked: Door) -> None:
    paths = ("/status", "/status.js", "/panels.json", "/uplot.js", "/uplot.css")
    for path in (*paths, "/monitoring/api/v1/query"):
        assert unlocked.ask("GET", path).code == "unknown_url"
    door = own.open(environment={"GATEWAY_MONITORING": "on"})
    for path in paths:
        reply = door.ask("GET", path)
        assert (reply.status, reply.headers["x-content-type-options"]) == (200, "nosniff")
        assert reply.headers["content-security-policy"].startswith("default-src 'self';"), "nothing of another host is loaded"
        assert door.ask("POST", path, json_body={}).code == "unknown_url"
    assert door.ask("GET", "/monitoring/api/v1/query").code == "engine_unavailable"
    assert door.ask("GET", "/monitoring/-/reload").code == "unknown_url"


# --- the container itself

def test_the_log_has_one_record_per_request_and_no_secret_prompt_or_query(site: Site) -> None:
    door = ready(site.open(keys=f"{KEY} alice\n"))
    door.ask("POST", "/v1/completions", key=KEY, headers={"X-Request-Id": "logged-1", "X-Api-Key": KEY}, json_body=completion("canary-prompt"))
    door.ask("GET", "/v1/models?api_key=canary-query", headers={"X-Request-Id": "logged-2"}, key="canary-wrong-key")
    door.ask("GET", '/"},{"x":"\\', headers={"X-Request-Id": "logged-3"})
    door.exchange(b"not http at all\r\n\r\n")
    wait_until(lambda: len(door.records()) == 4, deadline_s=10, what="four records")
    records = {record["id"]: record for record in door.records()}
    first = records["logged-1"]
    assert (first["method"], first["path"], first["status"], first["server"]) == ("POST", "/v1/completions", 200, "engine")
    assert first["bytes"] > 0
    assert first["total_ms"] >= first["wait_ms"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["time"])
    assert first["key"] == "alice"
    assert (records["logged-2"]["path"], records["logged-2"]["status"]) == ("/v1/models", 401)
    assert records["logged-3"]["path"] == '/"},{"x":"\\'
    assert records["-"]["status"] == 400
    everything = door.log + docker("inspect", door.name) + docker("top", door.name) + docker("history", "--no-trunc", IMAGE)
    assert KEY not in everything
    assert "canary" not in everything


def test_the_gateway_is_healthy_while_no_engine_is(own: Site) -> None:
    door = own.open()
    wait_until(lambda: "healthy" in docker("inspect", "--format", "{{.State.Health.Status}}", door.name).split(), deadline_s=60,
               what="Docker finds it healthy")
    assert docker("exec", door.name, "python3", "/opt/bundle/gateway_health.py") == ""


def test_a_gateway_that_does_not_answer_is_unhealthy(own: Site) -> None:
    door = own.open(config=edited("bind 127.0.0.1:8404", "bind 127.0.0.1:8405"))
    done = subprocess.run(["docker", "exec", door.name, "python3", "/opt/bundle/gateway_health.py"],
                          capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert "refused" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_its_own_health_page_is_not_reachable_from_the_network(unlocked: Door) -> None:
    code = f"import urllib.request; urllib.request.urlopen('http://{address(unlocked.name)}:8404/health', timeout=5)"
    done = subprocess.run(["docker", "exec", unlocked.name, "python3", "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert "Connection refused" in done.stderr


def test_it_runs_without_any_privilege(unlocked: Door) -> None:
    status = docker("exec", unlocked.name, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+2001\s+2001\s+2001\s+2001$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert "Read-only file system" in docker("exec", unlocked.name, "touch", "/usr/local/etc/haproxy/x", check=False)
    image = json.loads(docker("image", "inspect", IMAGE))[0]["Config"]
    assert (image["User"], image["StopSignal"]) == ("2001:2001", "SIGUSR1")
    assert image["Healthcheck"]["Test"] == ["CMD", "python3", "/opt/bundle/gateway_health.py"]
