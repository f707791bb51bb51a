"""The gateway in front of several models: which request goes to which, and in which order. Real HAProxy, engines that stand in."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.gateway import KEY, Door, Site, docker, operational, request
from support.project import wait_until

ROUTES = "fake engine\nadapter engine\nother engine-b priority\n"
TWO = {"GATEWAY_BACKENDS": "engine engine-b"}
BATCH, PLAIN = "sk-batch-4f1d0c4f1d0c", "sk-plain-4f1d0c4f1d0c"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Engines of two models."""
    shared = Site(folder=tmp_path_factory.mktemp("models"))
    try:
        shared.start_engine()
        shared.start_engine(service="engine-b", model="other")
        yield shared
    finally:
        shared.close()


@pytest.fixture(scope="module")
def both(site: Site) -> Door:
    return ready(site.open(models=ROUTES, environment=TWO), "engine", "engine-b")


@pytest.fixture(scope="module")
def alone(site: Site) -> Door:
    return ready(site.open(models="fake engine\nadapter engine\n"), "engine")


@pytest.fixture(scope="module")
def classed(site: Site) -> Door:
    keys = f"{KEY} alice interactive\n{BATCH} nightly batch\n{PLAIN} nightbatch\n"
    return ready(site.open(models=ROUTES, environment=TWO, keys=keys), "engine", "engine-b")


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    mine = Site(folder=tmp_path_factory.mktemp("own"))
    try:
        yield mine
    finally:
        mine.close()


def ready(door: Door, *services: str) -> Door:
    wait_until(lambda: all(operational(door, each) for each in services), deadline_s=30, what="the gateway sees its engines")
    return door


def body(model: str | None, **more: Any) -> dict[str, Any]:
    return {**({"model": model} if model else {}), "prompt": "hello", "max_tokens": 2, **more}


def seen(site: Site, service: str) -> dict[str, dict[str, str]]:
    """The headers of the requests that an engine has told of until now, by request id."""
    return {event["headers"].get("x-request-id", ""): event["headers"] for event in site.events(service) if event["event"] == "request"}


def reached(site: Site, id_: str) -> list[str]:
    return [service for service in ("engine", "engine-b") if id_ in seen(site, service)]


def header(site: Site, service: str, id_: str, name: str) -> str | None:
    wait_until(lambda: id_ in seen(site, service), deadline_s=20, what="the request is in the engine's log")
    return seen(site, service)[id_].get(name)


@pytest.mark.parametrize(("model", "service"), [("fake", "engine"), ("other", "engine-b"), ("adapter", "engine")])
def test_a_request_goes_to_the_engines_of_its_model(site: Site, both: Door, model: str, service: str) -> None:
    both.ask("POST", "/v1/completions", headers={"X-Request-Id": f"route-{model}"}, json_body=body(model))
    wait_until(lambda: reached(site, f"route-{model}") == [service], deadline_s=20, what=f"{service} alone has seen it")


@pytest.mark.parametrize("model", ["nosuch", "FAKE", "other ", 'a"b\\c\n', "fake engine", 5, True, ["fake"], "x" * 5000])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/messages"])
def test_an_unknown_model_is_refused_in_form_and_reaches_no_engine(site: Site, both: Door, alone: Door, path: str, model: object) -> None:
    for number, door in enumerate((both, alone)):
        id_ = f"unknown-{number}"
        refused = door.ask("POST", path, headers={"X-Request-Id": id_}, json_body={"model": model, "prompt": "x", "max_tokens": 1})
        assert (refused.status, refused.code) == (404, "model_not_found"), refused
        assert json.loads(refused.body)["error"]["param"] == "model"
    both.ask("POST", "/v1/completions", headers={"X-Request-Id": "after-the-unknown"}, json_body=body("fake"))
    wait_until(lambda: reached(site, "after-the-unknown") == ["engine"], deadline_s=20, what="the one after it is seen")
    assert reached(site, "unknown-0") == reached(site, "unknown-1") == []


def test_a_request_without_a_model_works_where_there_is_one_and_is_asked_for_it_where_there_are_several(site: Site, both: Door, alone: Door) -> None:
    for model in (None, ""):
        for number, door in enumerate((alone, both)):
            reply = door.ask("POST", "/tokenize", headers={"X-Request-Id": f"nameless-{model}-{number}"}, json_body={"model": model, "prompt": "hi"})
            assert (reply.status, reply.code) == ((404, "404") if door is alone else (400, "model_required"))
    wait_until(lambda: reached(site, "nameless--0") == ["engine"], deadline_s=20, what="the only model's engine has seen it")
    assert reached(site, "nameless--1") == []
    assert both.ask("GET", "/version").status == 200


def test_without_a_list_of_models_every_name_goes_to_the_engine(site: Site) -> None:
    """As plain Compose runs it."""
    door = ready(site.open(), "engine")
    door.ask("POST", "/v1/completions", headers={"X-Request-Id": "any-name"}, json_body=body("nosuch"))
    wait_until(lambda: reached(site, "any-name") == ["engine"], deadline_s=20, what="the engine has seen it")


@pytest.mark.parametrize("kib", [1, 63, 100, 190])
def test_the_models_name_may_stand_behind_a_long_prompt(site: Site, both: Door, kib: int) -> None:
    """As OpenAI's Python client writes it."""
    reply = both.ask("POST", "/v1/chat/completions", headers={"X-Request-Id": f"behind-{kib}"},
                     json_body={"messages": [{"role": "user", "content": "x" * (kib * 1024)}], "model": "other", "max_tokens": 1})
    assert reply.status == 200
    wait_until(lambda: reached(site, f"behind-{kib}") == ["engine-b"], deadline_s=20, what="the second model's engine has seen it")


def test_what_is_longer_than_the_buffer_goes_to_the_first_model_unless_its_name_comes_early(site: Site, both: Door) -> None:
    long = [{"role": "user", "content": "x" * 600_000}]
    both.ask("POST", "/v1/chat/completions", headers={"X-Request-Id": "late"}, json_body={"messages": long, "model": "fake", "max_tokens": 1})
    both.ask("POST", "/v1/chat/completions", headers={"X-Request-Id": "early"}, json_body={"model": "other", "messages": long, "max_tokens": 1})
    wait_until(lambda: (reached(site, "late"), reached(site, "early")) == (["engine"], ["engine-b"]), deadline_s=20, what="both are seen")


def test_a_form_is_routed_by_its_field(site: Site, both: Door) -> None:
    form = (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n')
    head = request("POST", "/v1/audio/transcriptions", headers={"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(len(form)),
                                                                "X-Request-Id": "form"})
    both.exchange(head + form)
    wait_until(lambda: reached(site, "form") == ["engine-b"], deadline_s=20, what="the second model's engine has seen it")


def names(door: Door) -> list[str]:
    reply = door.ask("GET", "/v1/models")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    listed = json.loads(reply.body)
    assert listed["object"] == "list"
    return [model["id"] for model in listed["data"]]


def test_the_list_of_models_holds_all_of_them(both: Door, alone: Door) -> None:
    assert names(both) == ["fake", "other"]
    assert names(alone) == ["fake"]


@pytest.mark.parametrize(("path", "model"), [("/metrics", "fake"), ("/metrics/engine", "fake"), ("/metrics/engine-b", "other")])
def test_the_metrics_of_every_model_can_be_read(both: Door, path: str, model: str) -> None:
    reply = both.ask("GET", path)
    assert reply.status == 200
    assert f'model_name="{model}"'.encode() in reply.body


def test_a_model_that_is_down_leaves_the_list_and_the_other_serves(own: Site) -> None:
    own.start_engine(service="engine-b", model="other")
    door = ready(own.open(models=ROUTES, environment=TWO), "engine-b")
    assert names(door) == ["other"]
    assert door.ask("GET", "/health").status == 200
    down = door.ask("POST", "/v1/completions", json_body=body("fake"))
    assert (down.status, down.code, down.headers["retry-after"]) == (503, "engine_unavailable", "5")
    assert door.ask("POST", "/v1/completions", json_body=body("other")).status == 200
    docker("rm", "--force", f"{own.name}-engine-b")
    wait_until(lambda: not operational(door, "engine-b"), deadline_s=20, what="the gateway sees that it is gone")
    none = door.ask("GET", "/v1/models")
    assert (none.status, none.code, none.headers["retry-after"]) == (503, "engine_unavailable", "5")
    assert door.ask("GET", "/health").status == 503


def test_a_new_gateway_lists_every_model_from_its_first_answer_on(own: Site) -> None:
    engines = {"engine": own.upstream, "engine-b": f"{own.name}-engine-b"}
    own.start_engine()
    own.start_engine(service="engine-b", model="other")
    ready(own.open(models=ROUTES, environment=TWO), *engines)
    for container in engines.values():
        docker("network", "disconnect", own.name, container)
    door = own.open(models=ROUTES, environment=TWO)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(door.ask, "GET", "/v1/models")
        for service, container in engines.items():
            docker("network", "connect", "--alias", service, own.name, container)
        assert [model["id"] for model in json.loads(asked.result().body)["data"]] == ["fake", "other"]


def test_the_models_that_there_are_change_while_the_gateway_serves(own: Site) -> None:
    own.start_engine()
    door = ready(own.open(models="fake engine\n"), "engine")
    tell = ("import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/haproxy/admin.sock')\n"
            "s.sendall(sys.argv[1].encode() + b'\\n')\nprint(s.makefile().read())")
    assert door.ask("POST", "/v1/completions", json_body=body("new")).code == "model_not_found"
    docker("exec", door.name, "python3", "-c", tell, "add map /run/secrets/gateway_models new engine")
    door.ask("POST", "/v1/completions", headers={"X-Request-Id": "added"}, json_body=body("new"))
    assert header(own, "engine", "added", "host") is not None


@pytest.mark.parametrize(("key", "asked", "sent"), [
    (KEY, None, "0"), (KEY, 7, "7"), (KEY, -5, "0"), (PLAIN, None, "0"), (PLAIN, -9, "0"),
    (BATCH, None, "100"), (BATCH, 5, "100"), (BATCH, -5, "100"), (BATCH, 200, "200"), (BATCH, "x", "100"),
])
def test_the_class_of_a_key_bounds_the_priority(site: Site, classed: Door, key: str, asked: object, sent: str) -> None:
    """A name that ends like a class is none."""
    id_ = f"priority-{key[:8]}-{asked}"
    classed.ask("POST", "/v1/completions", key=key, headers={"X-Request-Id": id_, "X-Vllm-Priority": "-1000"},
                json_body=body("other", **({} if asked is None else {"priority": asked})))
    assert header(site, "engine-b", id_, "x-vllm-priority") == sent


def test_where_requests_have_no_priorities_none_is_sent(site: Site, classed: Door, both: Door) -> None:
    """vLLM refuses any but 0 there. And without keys the body alone says it."""
    classed.ask("POST", "/v1/completions", key=BATCH, headers={"X-Request-Id": "fcfs", "X-Vllm-Priority": "-1000"}, json_body=body("fake"))
    both.ask("POST", "/v1/completions", headers={"X-Request-Id": "keyless", "X-Vllm-Priority": "-1000"}, json_body=body("other"))
    assert header(site, "engine", "fcfs", "x-vllm-priority") is None
    assert header(site, "engine-b", "keyless", "x-vllm-priority") is None
