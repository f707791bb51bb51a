"""What the clients that people use make of the gateway: OpenAI's and Anthropic's own libraries, before an engine that can be broken.

That they work with the real engine is shown in tests/fault/test_clients.py, where one runs.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from support.gateway import KEY, Door, Site, docker, operational
from support.project import wait_until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    mine = Site(folder=tmp_path)
    try:
        yield mine
    finally:
        mine.close()


def client(door: Door, *, retries: int = 0, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{door.port}/v1", api_key=key, max_retries=retries, timeout=60)


def opened(site: Site, **environment: str) -> Door:
    door = site.open(keys=f"{KEY} alice\n", environment=environment)
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway sees its engine")
    return door


def test_a_client_that_is_told_to_wait_waits_out_a_load(site: Site) -> None:
    door = site.open(keys=f"{KEY} alice\n")
    with client(door) as impatient, pytest.raises(openai.InternalServerError) as refused:
        impatient.completions.create(model="fake", prompt="hello")
    assert refused.value.status_code == 503
    assert refused.value.code == "engine_unavailable"
    loading = threading.Timer(4, site.start_engine)
    loading.start()
    with client(door, retries=10) as patient:
        assert patient.completions.create(model="fake", prompt="hello", max_tokens=2).choices[0].text
    loading.join()


def test_a_stream_that_breaks_is_an_error_and_never_a_clean_end(site: Site) -> None:
    site.start_engine()
    with client(opened(site)) as asking:
        stream = asking.completions.create(model="fake", prompt="hello", max_tokens=20, stream=True, extra_body={"fake": {"pause_s": 0.5}})
        assert next(iter(stream)).choices[0].text
        docker("kill", site.upstream)
        with pytest.raises((openai.APIError, OSError, *_broken())):
            for _ in stream:
                pass


def _broken() -> tuple[type[Exception], ...]:
    """What the client's HTTP library raises for an answer that is not whole."""
    import httpx2

    return (httpx2.HTTPError,)


def test_refusals_are_the_exceptions_that_clients_know(site: Site) -> None:
    site.start_engine()
    door = opened(site, GATEWAY_MAX_PER_MINUTE="1")
    with client(door, key="sk-of-somebody-else") as stranger, pytest.raises(openai.AuthenticationError, match="No valid API key") as no_key:
        stranger.models.list()
    assert no_key.value.code == "invalid_api_key"
    with client(door) as asking:
        with pytest.raises(openai.BadRequestError, match="max_tokens is more than") as greedy:
            asking.completions.create(model="fake", prompt="hello", n=128, max_tokens=10_000)
        assert greedy.value.code == "too_many_tokens"
        with pytest.raises(openai.RateLimitError) as often:
            asking.completions.create(model="fake", prompt="hello")
        assert often.value.response.headers["retry-after"] == "5"
        with pytest.raises(openai.NotFoundError) as nowhere:
            asking.files.list()
        assert nowhere.value.code == "unknown_url"
    with (anthropic.Anthropic(base_url=f"http://127.0.0.1:{door.port}", api_key="sk-of-somebody-else", max_retries=0) as stranger_too,
          pytest.raises(anthropic.AuthenticationError, match="No valid API key")):
        stranger_too.messages.create(model="fake", max_tokens=1, messages=[{"role": "user", "content": "hello"}])
