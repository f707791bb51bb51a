"""A proxy in the settings of Docker's client reaches every container. What asks whether we are well must never ask it.

The engine's own health is held to that in tests/process/test_watch.py and, on a real engine, in tests/fault.
"""

from collections.abc import Iterator

import pytest

from bundle.bench import composeruntime
from bundle.service import status
from support.gateway import Door, Site, docker, operational
from support.project import wait_until

NOWHERE = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fake engine, as Docker's client would start it for a user behind a proxy."""
    shared = Site(folder=tmp_path_factory.mktemp("proxies"))
    try:
        shared.start_engine(*(word for name, value in NOWHERE.items() for word in ("--env", f"{name}={value}")))
        yield shared
    finally:
        shared.close()


@pytest.fixture(scope="module")
def door(site: Site) -> Door:
    """A gateway, started likewise."""
    return site.open(environment=NOWHERE)


def test_the_gateways_health_asks_no_proxy(door: Door) -> None:
    assert NOWHERE.items() <= dict(line.partition("=")[::2] for line in docker("exec", door.name, "env").splitlines()).items()
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway has found its engine")
    assert docker("exec", door.name, "python3", "/opt/bundle/gateway_health.py") == ""


def test_what_status_and_the_benchmark_ask_the_engine_beside_it_goes_by_no_proxy(site: Site, door: Door) -> None:
    wait_until(lambda: operational(door), deadline_s=30, what="the fake engine is up")
    assert '"models"' in docker("exec", site.upstream, "python3", "-c", status.READ)
    assert float(docker("exec", site.upstream, "timeout", "20", "python3", "-c", composeruntime._FIRST_ANSWER, "8000", "fake")) > 1e9
