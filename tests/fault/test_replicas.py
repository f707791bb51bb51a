"""Two engines: what one of them does, or is done to it, while clients ask.

What was found stands in reports/faults.json (support/faultlog.py).
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from support.deployed import START_S, Deployed
from support.faultlog import record
from support.gateway import docker
from support.project import wait_until

REST_S = 2.0
"""A start needs the processors that the clients' answers are computed on."""


@pytest.fixture(scope="module")
def two(deployed: Deployed) -> Iterator[Deployed]:
    """`deployed` with a second engine, and a gateway that was replaced for it, while clients ask; one engine again at the end."""
    wait_until(lambda: deployed.verdict()[0] == 200, deadline_s=START_S, what="the engine is ready")
    before = deployed.project.containers()
    larger = Deployed(project=deployed.project, url=deployed.url, lines=(*deployed.lines, "HOST_REPLICAS=2", "GATEWAY_TIMEOUT_S=1800"))
    with deployed.asked_by(8, rest_s=REST_S) as tally:
        up = larger.change("up")
        assert up.returncode == 0, up.stderr
    after = deployed.project.containers()
    assert set(after) == {"gateway", "engine", "engine-2"}
    assert after["engine"].id == before["engine"].id
    assert after["gateway"].id != before["gateway"].id
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    assert tally.statuses.keys() <= {200, 0}, tally.notes  # nobody is refused by a new gateway that has not found its engines yet
    assert [note for note in tally.notes if "first byte" in note] == [], "a stream was broken"
    record("a replica added and the gateway replaced under load", "running streams end whole; for seconds nobody can connect", tally)
    yield larger
    back = deployed.change("up")
    assert back.returncode == 0, back.stderr
    assert set(deployed.project.containers()) == {"gateway", "engine"}


def both_ready(two: Deployed) -> None:
    wait_until(lambda: all(each.health == "healthy" for each in two.project.containers().values()), deadline_s=START_S, what="both are ready")


def test_a_replica_that_is_lost_under_32_streams_costs_only_streams_that_have_begun_on_it(two: Deployed) -> None:
    both_ready(two)
    lost = two.project.containers()["engine-2"]
    with two.asked_by(64, tokens=32) as tally:  # every other one streams
        since = time.monotonic()
        os.kill(two.process("vllm.entrypoints.cli.main", lost.id), signal.SIGKILL)
        wait_until(lambda: sum(at > since for at in tally.right_at) >= 64, deadline_s=120, what="the other one answers")
        recovery_s = min(at for at in tally.right_at if at > since) - since
        wait_until(lambda: two.project.containers()["engine-2"].restarts > lost.restarts, deadline_s=60, what="it is started anew")
    assert re.search(r"^entrypoint: the engine died of SIGKILL after \d+ s", docker("logs", "--since", lost.started, lost.id), re.MULTILINE)
    both_ready(two)
    assert tally.outcomes.keys() <= {"right", "failed in form"}, tally.notes
    assert tally.statuses.keys() == {200}, "who has no answer yet gets it from the other one"
    record("API process killed: replica lost under 32 streams",
           "a request without an answer gets it from the other one; begun streams break visibly; it comes back", tally, recovery_s)


def test_a_broken_image_that_is_rolled_leaves_the_old_version_serving(two: Deployed) -> None:
    both_ready(two)
    before = two.project.containers()
    image = before["engine"].image
    broken = f"vllm-bundle/{two.project.name}:broken"
    recipe = f'FROM {image}\nENTRYPOINT ["sh", "-c", "echo I am broken; exit 1"]'
    subprocess.run(["docker", "build", "--quiet", "--tag", broken, "-"], input=recipe, text=True, check=True, timeout=120)
    try:
        with two.asked_by(16, rest_s=REST_S) as tally:
            roll = two.change("roll", f"IMAGE_ENGINE={broken}")
        assert roll.returncode == 7, roll.stderr
        assert "I am broken" in roll.stderr
        assert {name: each.image for name, each in two.project.containers().items()} == {name: each.image for name, each in before.items()}
    finally:
        subprocess.run(["docker", "image", "rm", "--force", broken], check=True, timeout=60)
    assert tally.outcomes.keys() == {"right"}, tally.notes
    record("broken image rolled under load", "taken back by itself with its reason, nobody notices", tally)


def test_a_roll_under_load_interrupts_nothing(two: Deployed) -> None:
    both_ready(two)
    before = two.project.containers()
    with two.asked_by(16, rest_s=REST_S) as tally:  # every other one streams
        roll = two.change("roll")
        assert roll.returncode == 0, roll.stderr
    after = two.project.containers()
    assert {name for name in before if after[name].id != before[name].id} == {"engine", "engine-2"}
    assert tally.outcomes.keys() == {"right"}, tally.notes
    record("roll under load", "one engine after another, no request notices", tally)
