"""The bundle's stack on two nodes of a Swarm: what each Compose promise became, and what clients see while tasks come, go and break.

What was found stands in reports/swarm.json (support/faultlog.py), and in docs/swarm.md. In the order of this file: each test leaves the stack as the
next one takes it.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from bundle import ROOT
from support.clients import Tally
from support.cluster import wait_for
from support.faultlog import record
from support.stack import FILE, KEY, NAME, STAND_IN, START_S, Stack

pytestmark = pytest.mark.timeout(1800)
BEGUN = "after the first byte"


def only_right(tally: Tally) -> None:
    assert tally.sent > 0
    assert tally.outcomes.keys() == {"right"}, (tally.outcomes, tally.notes)


def only_begun_streams_broke(tally: Tally) -> None:
    """Whoever had no answer yet got one."""
    assert tally.outcomes.keys() <= {"right", "failed in form"}, (tally.outcomes, tally.notes)
    assert tally.statuses.keys() == {200}, (tally.statuses, tally.notes)
    assert all(BEGUN in note for note in tally.notes), tally.notes


def longest_gap(tally: Tally, since: float) -> float:
    """Seconds in which nobody got an answer, at the worst."""
    at = [since, *sorted(one for one in tally.right_at if one > since)]
    return max(later - earlier for earlier, later in pairwise(at))


def test_each_node_is_told_what_it_lacks_before_anything_is_deployed(written: Stack) -> None:
    written.deploy("check.yaml", "check")
    try:
        def said() -> list[str]:
            return sorted(written.manager.docker("service", "logs", "--raw", "check_node", check=False).stdout.splitlines())
        wait_for("both nodes have said what they lack", lambda: len(said()) == 2, 120, 1)
        first, second = said()
        assert first == "node1: ok"
        assert second.startswith('node2: no-new-privileges: put "no-new-privileges": true into /etc/docker/daemon.json')
    finally:
        written.manager.docker("stack", "rm", "check")


def test_running_tasks_keep_what_compose_promises(stack: Stack) -> None:
    node = next(node for node in stack.cluster.nodes if node.name == stack.tasks("engine")[0]["node"])
    for where, service, user in ((node, "engine", "2000:2000"), (stack.manager, "gateway", "2001:2001")):
        container = stack.container(where, service)
        (seen,) = json.loads(where.docker("inspect", container).stdout)
        host, config = seen["HostConfig"], seen["Config"]
        assert (host["ReadonlyRootfs"], host["CapDrop"], config["User"], host["Privileged"]) == (True, ["ALL"], user, False)
        assert (host["Memory"], host["PidsLimit"]) == ((4 * 2**30, 1024) if service == "engine" else (2**30, 64))
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "50m"}}
        spec = json.loads(stack.manager.docker("service", "inspect", f"{NAME}_{service}").stdout)[0]["Spec"]["TaskTemplate"]["ContainerSpec"]
        assert spec["StopGracePeriod"] == 60 * 10**9
        assert config["Healthcheck"]["Interval"] == 5 * 10**9
        inside = where.docker("exec", container, "cat", "/proc/1/status").stdout
        assert re.search(r"^CapEff:\t0+$", inside, re.MULTILINE)
        assert f"NoNewPrivs:\t{int(where is stack.manager)}" in inside, "by the node's daemon.json, which the second node lacks"
        assert where.docker("exec", container, "touch", "/usr/x", check=False).returncode != 0
    engine, gateway = stack.container(node, "engine"), stack.container(stack.manager, "gateway")
    assert json.loads(node.docker("inspect", engine).stdout)[0]["HostConfig"]["Init"] is True
    assert node.docker("exec", engine, "stat", "-c", "%a", "/tmp", "/dev/shm").stdout.split() == ["1777", "1777"]
    shared = node.docker("exec", engine, "df", "-B1", "--output=size", "/dev/shm", "/tmp").stdout.split()[1:]
    assert shared == [str(2**30), str(2**30)]
    kept = stack.manager.docker("exec", gateway, "stat", "-c", "%a %u", "/run/haproxy", "/run/secrets/gateway_api_keys").stdout.splitlines()
    assert kept == ["700 2001", "400 2001"]
    assert not node.docker("port", engine).stdout, "the gateway is the only door"
    assert node.docker("exec", engine, "python3", "-c", "import socket; socket.create_connection(('10.99.0.254', 1), 3)", check=False).returncode != 0


@pytest.mark.skipif(STAND_IN, reason="the stand-in is no engine")
def test_smoke_works_over_a_stack(stack: Stack) -> None:
    with stack.cluster.on_wire():
        smoke = subprocess.run([sys.executable, str(ROOT / "scripts" / "smoke.py"), "--url", stack.url, "--api-key-file", str(stack.keys)],
                               capture_output=True, text=True, check=False, timeout=600)
    assert smoke.returncode == 0, smoke.stdout + smoke.stderr


def test_status_tells_the_tasks_and_no_key_is_no_answer(stack: Stack) -> None:
    status = stack.script("status", "--stack", NAME)
    assert status.returncode == 0, status.stdout + status.stderr
    assert {line.split()[0]: line.split()[-3] for line in status.stdout.splitlines()[1:]} == {"engine": "running", "gateway": "running"}
    with stack.cluster.on_wire():
        keyless = subprocess.run(["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", f"{stack.url}/v1/models"],
                                 capture_output=True, text=True, check=False, timeout=60)
    assert keyless.stdout == "401"


def test_a_scaled_up_service_gets_requests_and_loses_none(stack: Stack) -> None:
    with stack.asked() as tally:
        stack.manager.docker("service", "scale", "--detach", f"{NAME}_engine=2")
        seconds = stack.wait_for_engines(2)
        wait_for("both get requests", lambda: len(stack.reached()) == 2, 60, 1)
    only_right(tally)
    assert {row["node"] for row in stack.tasks("engine")} == {"node1", "node2"}
    record("scaled from one engine to two", "no request is lost", tally, seconds, file=FILE)


def test_an_update_drains_through_the_gateway_and_loses_none(stack: Stack) -> None:
    """Another setting, by the documented way: the env files, make swarm, deploy."""
    stack.two_apart()
    stack.write("HOST_REPLICAS=2", "ENGINE_MAX_NUM_SEQS=12")
    before = {stack.container(node, "engine") for node in stack.cluster.nodes}
    with stack.asked() as tally:
        stack.deploy()
        seconds = stack.wait_for_update("completed")
    only_right(tally)
    assert before.isdisjoint(stack.container(node, "engine") for node in stack.cluster.nodes)
    assert stack.logs("engine").count("entrypoint: asked to stop (SIGTERM): the gateway is told") >= 2
    record("both engines replaced (a setting changed)", "no request is lost", tally, seconds, file=FILE)


def test_an_engine_that_is_killed_costs_only_streams_that_have_begun_on_it(stack: Stack) -> None:
    stack.two_apart()
    node = stack.cluster.nodes[1]
    killed = stack.container(node, "engine")
    with stack.asked() as tally:
        since = time.monotonic()
        node.kill_process(killed, "vllm.entrypoints.cli.main")
        wait_for("it is replaced", lambda: node.docker("ps", "--quiet", "--filter", f"id={killed}").stdout == "", 60)
        recovery = wait_for("the other one answers", lambda: sum(at > since for at in tally.right_at) >= 8, 120)
    only_begun_streams_broke(tally)
    record("an engine killed (SIGKILL)", "who has no answer yet gets it from the other one; begun streams break visibly", tally, recovery, file=FILE)


@pytest.mark.long
def test_a_broken_image_goes_back_by_itself(stack: Stack) -> None:
    stack.two_apart()
    image = stack.tasks("engine")[0]["image"]
    for node in stack.cluster.nodes:
        made = node.docker("create", "--network", "none", image).stdout.strip()
        node.docker("commit", "--change", 'ENTRYPOINT ["/bin/false"]', made, "vllm-bundle/engine:broken")
        node.docker("rm", made)
    with stack.asked() as tally:
        stack.manager.docker("service", "update", "--detach", "--no-resolve-image", "--image", "vllm-bundle/engine:broken", f"{NAME}_engine")
        seconds = stack.wait_for_update("rollback_completed")
        stack.wait_for_engines(2)
    only_right(tally)
    assert {row["image"] for row in stack.tasks("engine")} == {image}
    told = stack.script("status", "--stack", NAME)
    assert "engine: rollback completed" in told.stderr
    record("a broken image", "it goes back by itself, and no request is lost", tally, seconds, file=FILE)


@pytest.mark.long
def test_a_link_that_is_lost_and_healed_costs_only_streams_that_have_begun(stack: Stack) -> None:
    stack.two_apart()
    other = stack.cluster.nodes[1]
    with stack.asked() as tally:
        time.sleep(5)
        since = time.monotonic()
        other.link(up=False)
        wait_for("everybody has an answer of the node that is left", lambda: sum(at > since + 25 for at in tally.right_at) >= 16, 120)
        other.link(up=True)
        healed = datetime.now(UTC).isoformat()
        stack.wait_for_engines(2)
        wait_for("the second engine gets requests again", lambda: len(stack.reached(healed)) == 2, START_S, 1)
    only_begun_streams_broke(tally)
    assert longest_gap(tally, since) < 30, "the other node's engine goes on answering"
    record("the link to a node lost, and healed", "who has no answer yet gets it from another; begun streams break visibly", tally,
           longest_gap(tally, since), file=FILE)


@pytest.mark.long
def test_a_node_that_is_lost_costs_only_streams_that_have_begun_on_it(stack: Stack) -> None:
    stack.two_apart()
    other = stack.cluster.nodes[1]
    with stack.asked() as tally:
        time.sleep(5)
        since = time.monotonic()
        other.kill()
        wait_for("Swarm starts its engine elsewhere", lambda: [row["node"] for row in stack.tasks("engine")] == ["node1"] * 2, START_S, 1)
        stack.wait_for_engines(2)
    only_begun_streams_broke(tally)
    assert longest_gap(tally, since) < 30, "the other node's engine goes on answering"
    record("a node lost (daemon and containers killed)", "who has no answer yet gets it within 30 s; its engine starts on another node", tally,
           longest_gap(tally, since), file=FILE)
    other.start()
    wait_for("it is back", lambda: "Ready" in stack.manager.docker("node", "inspect", other.name, "--format", "{{.Status.State}}").stdout.title(), 60)


@pytest.mark.long
def test_a_gateway_that_moves_loses_none_of_who_moves_with_it(stack: Stack) -> None:
    first, second = stack.cluster.nodes
    with stack.asked(clients=4) as early:
        stack.manager.docker("node", "update", "--label-add", "vllm.gateway=true", second.name)
        seconds = wait_for("the second gateway answers", lambda: stack.answers(second), 120, 1)
    with stack.asked(clients=4, node=second) as late:
        stack.manager.docker("node", "update", "--label-rm", "vllm.gateway", first.name)
        wait_for("the first is gone", lambda: [row["node"] for row in stack.tasks("gateway")] == [second.name], 120, 1)
        time.sleep(10)
    only_right(early)
    only_right(late)
    early.outcomes += late.outcomes
    record("the gateway moved to another node", "no request is lost of clients that move while both run", early, seconds, file=FILE)
    stack.manager.docker("node", "update", "--label-add", "vllm.gateway=true", first.name)
    wait_for("the first answers again", lambda: stack.answers(first), 120, 1)


def test_a_scaled_down_service_loses_none(stack: Stack) -> None:
    stack.two_apart()
    with stack.asked() as tally:
        stack.manager.docker("service", "scale", "--detach", f"{NAME}_engine=1")
        seconds = stack.wait_for_engines(1)
        time.sleep(10)  # what is asked of the one that ends, ends
    only_right(tally)
    record("scaled from two engines to one", "no request is lost", tally, seconds, file=FILE)


@pytest.mark.parametrize(("profile", "sets", "services"), [
    ("throughput", ("HOST_GPU_COUNT=2", "ENGINE_TENSOR_PARALLEL_SIZE=2", "HOST_REPLICAS=3", "ENGINE_MAX_NUM_SEQS=64"), {"engine": 3}),
    ("cpu,cpu-embed", ("ENGINE_MODEL=/opt/bundle/selftest-model",), {"engine": 1, "engine-b": 1}),
])
def test_every_stack_that_is_written_is_one_that_swarm_takes(stack: Stack, tmp_path: Path, profile: str, sets: Sequence[str],
                                                             services: Mapping[str, int]) -> None:
    own = Stack(cluster=stack.cluster, folder=tmp_path / "stack", keys=stack.keys)
    absent = f"IMAGE_ENGINE=vllm-bundle/engine:{'cuda' if 'HOST_GPU_COUNT=2' in sets else 'cpu'}-absent"  # nothing of it is to start
    own.write("GATEWAY_BIND=0.0.0.0", "HOST_PROJECT=other", absent, *sets, profile=profile)
    own.deploy(name="other")
    try:
        listed = stack.manager.docker("stack", "services", "other", "--format", "{{.Name}} {{.Replicas}}").stdout.split("\n")
        found = {line.split()[0].removeprefix("other_"): line.split()[1].partition("/")[2] for line in filter(None, listed)}
        assert {name: count for name, count in found.items() if name != "gateway"} == {name: str(count) for name, count in services.items()}
        spec = json.loads(stack.manager.docker("service", "inspect", "other_engine").stdout)[0]["Spec"]["TaskTemplate"]
        wanted = [{"DiscreteResourceSpec": {"Kind": "GPU", "Value": 2}}] if profile == "throughput" else None
        assert spec["Resources"]["Reservations"].get("GenericResources") == wanted
    finally:
        stack.manager.docker("stack", "rm", "other")


def test_gpus_are_handed_out_by_what_each_node_lists(stack: Stack) -> None:
    """No GPU is here: that a task is placed by them, and told which it has."""
    manager, image = stack.manager, stack.tasks("gateway")[0]["image"]
    manager.docker("service", "create", "--detach", "--no-resolve-image", "--name", "takes", "--generic-resource", "GPU=1", "--replicas", "3",
                   "--no-healthcheck", "--entrypoint", "sleep", image, "600")
    try:
        def tasks() -> list[str]:
            return manager.docker("service", "ps", "takes", "--format", "{{.Node}} {{.CurrentState}}").stdout.splitlines()
        wait_for("two run and one waits", lambda: sorted(line.split()[0] for line in tasks() if "Running" in line) == ["node1"] * 2, 60)
        assert [line for line in tasks() if "Running" not in line and not line.startswith("node")], tasks()
        found = [manager.docker("exec", each, "printenv", "DOCKER_RESOURCE_GPU").stdout.strip()
                 for each in manager.docker("ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=takes").stdout.split()]
        assert sorted(found) == ["GPU-first", "GPU-other"]
    finally:
        manager.docker("service", "rm", "takes")
    assert KEY not in stack.logs("gateway")
