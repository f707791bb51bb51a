"""Up, change, restart, roll, roll back and down, on a simulated Docker and a clock that only moves when somebody waits."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from bundle.base.errors import NotReadyError, PrerequisiteError, RolledBackError
from bundle.service import kept, lifecycle, status, traffic
from bundle.service.deployment import Deployment
from support import verbs
from support.fakedeployment import Behaviour, World

NEVER = Behaviour(ready_s=None)
CRASHES = Behaviour(ends_s=5)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def serving(world: World, *, beside: Mapping[str, str] | None = None, **values: str) -> World:
    """A deployment that answers, with clients that ask it all the time."""
    lifecycle.apply(world.deployment(), world.env(beside=beside, **values))
    world.clients.seconds = 3
    world.passes(10)
    return world


def settled(world: World) -> World:
    """The clients have stopped, and what they asked for has ended."""
    world.clients.seconds = 0
    world.passes(60)
    assert world.clients.sent == world.clients.answered + world.clients.refused + world.clients.lost
    return world


# --- start

def test_up_starts_everything_and_returns_when_the_engine_answers(world: World) -> None:
    assert lifecycle.apply(world.deployment(), world.env()) is True
    assert world.time == pytest.approx(30, abs=2)
    assert {container.state for container in world.containers.values()} == {"running"}


def test_up_again_changes_nothing(world: World) -> None:
    before = {name: each.id for name, each in serving(world).containers.items()}
    assert lifecycle.apply(world.deployment(), world.env()) is False
    assert {name: each.id for name, each in world.containers.items()} == before
    assert settled(world).clients.refused == world.clients.lost == 0


def test_an_engine_that_ends_while_it_starts_is_told_at_once_and_stopped(world: World) -> None:
    world.behaviour = lambda _: CRASHES
    with pytest.raises(NotReadyError, match="waiting longer will not help"):
        lifecycle.apply(world.deployment(), world.env())
    assert world.time < 20
    assert {container.state for container in world.containers.values()} == {"exited"}


def test_an_engine_that_ran_out_of_memory_is_told_as_such(world: World) -> None:
    world.behaviour = lambda _: Behaviour(ends_s=5, out_of_memory=True)
    with pytest.raises(NotReadyError, match=r"killed at its limit of 8\.0 GiB"):
        lifecycle.apply(world.deployment(), world.env())


def test_a_start_ends_at_its_limit(world: World) -> None:
    world.behaviour = lambda _: NEVER
    with pytest.raises(NotReadyError, match="not ready after 600 s"):
        lifecycle.apply(world.deployment(), world.env())
    assert 600 < world.time < 660


def test_what_an_interrupted_run_has_left_is_cleared_away(world: World) -> None:
    deployment = world.deployment()
    deployment.write(world.env())
    world.make(deployment, "engine", world.wanted(deployment)["engine"], state="created")
    world.conflicts = 2  # the daemon is still at it
    lifecycle.apply(deployment, world.env())
    assert world.containers["engine"].state == "running"
    assert world.time >= 30, "and it is waited for"


def test_a_name_that_stays_taken_is_told(world: World) -> None:
    world.conflicts = 100
    with pytest.raises(PrerequisiteError, match="already in use"):
        lifecycle.apply(world.deployment(), world.env())


def test_what_was_stopped_is_started_and_waited_for(world: World) -> None:
    serving(world)
    for container in world.containers.values():
        container.state = "exited"
    before = world.time
    assert lifecycle.apply(world.deployment(), world.env()) is True
    assert world.time - before >= 30


# --- change with one engine

def test_a_changed_engine_loses_no_request_and_says_how_long_nothing_answers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    serving(world)
    assert lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS="4")) is True
    assert "nothing is answered for about 30 s" in capsys.readouterr().err
    clients = settled(world).clients
    assert clients.lost == 0
    assert 30 <= clients.refused <= 40, "clients get a 503 with Retry-After from the drain to the first answer"


def test_a_restart_loses_no_request_and_says_how_long_nothing_answers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    serving(world)
    lifecycle.restart(world.deployment())
    assert "nothing is answered for about 30 s" in capsys.readouterr().err
    assert settled(world).clients.lost == 0


def test_a_request_that_outlasts_the_drain_is_told_of(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    serving(world)
    world.ask(500)
    before = world.time
    lifecycle.restart(world.deployment())
    assert "1 requests are unfinished after 30 s" in capsys.readouterr().err
    assert world.time - before < 30 + 30 + 10


def test_a_compose_that_tells_its_plan_in_other_words_loses_nothing(world: World) -> None:
    serving(world)
    world.dry_run_says_nothing = True
    engine = world.containers["engine"].id
    lifecycle.apply(world.deployment(), world.env())
    assert world.containers["engine"].id == engine
    lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS="4"))
    assert world.containers["engine"].id != engine
    assert settled(world).clients.lost == 0


def test_an_image_that_is_built_anew_meanwhile_replaces_no_engine_undrained(world: World) -> None:
    serving(world)

    def started(_: object) -> Behaviour:
        world.images["engine:1"] = f"sha256:{world.count}"
        return Behaviour()

    world.behaviour, made = started, world.count
    lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS="4"))
    assert world.count == made + 1, "the engine was replaced a second time, with nobody draining it"
    assert settled(world).clients.lost == 0


def test_a_changed_gateway_leaves_the_engine_alone(world: World) -> None:
    engine = serving(world).containers["engine"].id
    lifecycle.apply(world.deployment(), world.env(GATEWAY_TIMEOUT_S="60"))
    assert world.containers["engine"].id == engine
    assert settled(world).clients.lost == 0


@pytest.mark.parametrize("bad", [NEVER, CRASHES])
def test_what_does_not_become_ready_is_taken_back_by_itself(world: World, bad: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    serving(world)
    good = world.deployment().env_file.read_text()
    world.behaviour = lambda values: bad if values.get("ENGINE_MAX_MODEL_LEN") else Behaviour()
    with pytest.raises(RolledBackError, match="serves again") as raised:
        lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_MODEL_LEN="999999"))
    assert raised.value.exit_code == 7
    assert "the last 30 lines of its log" in capsys.readouterr().err, "the cause is printed"
    assert world.deployment().env_file.read_text() == good
    clients = settled(world).clients
    assert clients.lost == 0
    asked = clients.answered
    world.clients.seconds = 3
    world.passes(20)
    assert settled(world).clients.answered > asked, "the old version answers"


def test_a_rebuilt_image_that_does_not_start_goes_back_to_the_one_before(world: World) -> None:
    serving(world)
    world.images["engine:1"] = "sha256:broken"
    world.behaviour = lambda _: CRASHES if world.images["engine:1"] == "sha256:broken" else Behaviour()
    with pytest.raises(RolledBackError):
        lifecycle.apply(world.deployment(), world.env())
    assert world.images["engine:1"] == world.containers["engine"].image == "sha256:e1"


def test_where_the_version_before_does_not_start_either_that_is_said(world: World) -> None:
    serving(world)
    world.behaviour = lambda _: CRASHES
    with pytest.raises(NotReadyError, match="the one before it does not either"):
        lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS="4"))


def test_rollback_goes_to_the_version_before_and_back(world: World) -> None:
    serving(world)
    first = world.deployment().env_file.read_text()
    lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS="4"))
    second = world.deployment().env_file.read_text()
    lifecycle.rollback(world.deployment())
    assert world.deployment().env_file.read_text() == first
    lifecycle.rollback(world.deployment())
    assert world.deployment().env_file.read_text() == second
    assert settled(world).clients.lost == 0


def test_rollback_after_an_interrupted_change_goes_to_what_answered_last(world: World) -> None:
    serving(world)
    first = world.deployment().env_file.read_text()
    world.interrupt_at = len(world.calls) + 2
    with pytest.raises(KeyboardInterrupt):
        lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS="4"))
    assert not world.taken_out, "the engine that still runs gets requests again"
    lifecycle.rollback(world.deployment())
    assert world.deployment().env_file.read_text() == first


def test_rollback_with_nothing_to_go_to_changes_nothing(world: World) -> None:
    serving(world)
    with pytest.raises(PrerequisiteError, match="no earlier version"):
        lifecycle.rollback(world.deployment())
    assert settled(world).clients.refused == 0


def test_after_any_interruption_up_works(world: World) -> None:
    for moment in range(1, 12):
        serving(world)
        world.interrupt_at = len(world.calls) + moment
        with contextlib.suppress(KeyboardInterrupt):
            lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS=str(moment)))
        world.interrupt_at = None
        lifecycle.apply(world.deployment(), world.env(ENGINE_MAX_NUM_SEQS=str(moment)))
        assert not world.taken_out
    assert settled(world).clients.lost == 0


def test_images_of_versions_that_are_kept_have_a_name_and_lose_it_with_them(world: World) -> None:
    serving(world)
    for number in (2, 3):
        world.images["engine:1"] = f"sha256:e{number}"
        lifecycle.apply(world.deployment(), world.env())
    assert {image for name, image in world.images.items() if "/kept:" in name} == {"sha256:e2", "sha256:e3", "sha256:g1"}
    lifecycle.down(world.deployment(), volumes=False)
    assert not [name for name in world.images if "/kept:" in name]
    assert kept.read(world.deployment(), kept.GOOD) is None


# --- two engines

def test_a_change_with_two_engines_interrupts_nothing(world: World) -> None:
    serving(world, HOST_REPLICAS="2")
    before = {name: each.id for name, each in world.containers.items()}
    lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="2", ENGINE_MAX_NUM_SEQS="4"))
    assert {name for name, each in world.containers.items() if each.id != before[name]} == {"engine", "engine-2"}
    clients = settled(world).clients
    assert (clients.lost, clients.refused) == (0, 0)


@pytest.mark.parametrize("recreate", [True, False])
def test_a_roll_and_a_restart_with_two_engines_interrupt_nothing(world: World, recreate: bool) -> None:
    serving(world, HOST_REPLICAS="2")
    before = {name: (each.id, each.started) for name, each in world.containers.items()}
    if recreate:
        lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="2"), recreate=True)
    else:
        lifecycle.restart(world.deployment())
    assert {name for name, each in world.containers.items() if (each.id, each.started) != before[name]} == {"engine", "engine-2"}
    clients = settled(world).clients
    assert (clients.lost, clients.refused) == (0, 0)


def test_an_engine_that_does_not_serve_is_replaced_first(world: World) -> None:
    serving(world, HOST_REPLICAS="2")
    world.containers["engine-2"].behaviour = NEVER
    lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="2", ENGINE_MAX_NUM_SEQS="4"))
    assert settled(world).clients.refused == 0


def test_an_engine_that_still_loads_is_replaced_without_talk_of_a_gap(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.behaviour = lambda values: Behaviour() if values.get("ENGINE_MAX_NUM_SEQS") else NEVER
    deployment = world.deployment()
    deployment.write(world.env())
    deployment.start()
    lifecycle.apply(deployment, world.env(ENGINE_MAX_NUM_SEQS="4"))
    assert "nothing is answered" not in capsys.readouterr().err


def test_a_bad_change_with_two_engines_takes_none_of_the_service(world: World) -> None:
    serving(world, HOST_REPLICAS="2")
    second = world.containers["engine-2"].id
    world.behaviour = lambda values: CRASHES if values.get("ENGINE_MAX_MODEL_LEN") else Behaviour()
    with pytest.raises(RolledBackError):
        lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="2", ENGINE_MAX_MODEL_LEN="999999"))
    assert world.containers["engine-2"].id == second, "the other engine was never touched"
    clients = settled(world).clients
    assert (clients.lost, clients.refused) == (0, 0)


def test_replicas_are_added_and_taken_away_without_a_gap(world: World) -> None:
    serving(world)
    lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="3"))
    assert set(world.containers) == {"gateway", "engine", "engine-2", "engine-3"}
    lifecycle.apply(world.deployment(), world.env())
    assert set(world.containers) == {"gateway", "engine"}
    clients = settled(world).clients
    assert (clients.lost, clients.refused) == (0, 0)


def test_a_replica_that_is_added_serves_before_the_first_one_is_changed(world: World) -> None:
    serving(world)
    lifecycle.apply(world.deployment(), world.env(HOST_REPLICAS="2", ENGINE_MAX_NUM_SEQS="4"))
    clients = settled(world).clients
    assert (clients.lost, clients.refused) == (0, 0)


def test_an_engine_that_does_not_come_back_from_a_restart_leaves_the_other_serving(world: World) -> None:
    serving(world, HOST_REPLICAS="2")
    world.behaviour = lambda _: CRASHES
    with pytest.raises(NotReadyError, match="engine ended"):
        lifecycle.restart(world.deployment())
    assert world.containers["engine-2"].state == "running"
    assert settled(world).clients.lost == 0


# --- down

def test_down_lets_what_runs_end_and_leaves_nothing(world: World) -> None:
    serving(world)
    assert lifecycle.down(world.deployment(), volumes=False) is True
    assert world.containers == {}
    assert settled(world).clients.lost == 0
    assert sorted(path.name for path in world.folder.iterdir()) == ["fake.lock"]
    assert lifecycle.down(world.deployment(), volumes=False) is False


def test_down_stops_the_gateway_before_the_engine_that_still_answers_through_it(world: World) -> None:
    serving(world)
    world.ask(50)  # longer than the drain: the gateway's own soft stop waits for it
    lifecycle.down(world.deployment(), volumes=False)
    assert settled(world).clients.lost == 0


@pytest.mark.parametrize("verb", ["down", "restart", "change"])
def test_compose_gets_the_time_that_the_settings_give_a_stop(world: World, verb: str) -> None:
    serving(world, HOST_STOP_GRACE_S="3600")
    world.clients.seconds, world.stop_takes_s = 0, 3000
    if verb == "down":
        lifecycle.down(world.deployment(), volumes=False)
    elif verb == "restart":
        lifecycle.restart(world.deployment(), 7200)
    else:
        lifecycle.apply(world.deployment(), world.env(HOST_STOP_GRACE_S="3600", ENGINE_MAX_NUM_SEQS="4"))


def test_compose_does_not_wait_for_ever(world: World) -> None:
    serving(world)
    world.stop_takes_s = 3000
    with pytest.raises(Exception, match="no end after"):
        lifecycle.down(world.deployment(), volumes=False)


# --- who may

def test_a_second_verb_is_told_who_holds_the_deployment_since_when_and_for_what(world: World) -> None:
    with world.deployment().locked("restart"), pytest.raises(PrerequisiteError) as refused:
        lifecycle.down(world.deployment(), volumes=False)
    assert f"(process {os.getpid()})" in refused.value.message
    assert "being changed by `make restart` of " in refused.value.message
    assert " since 20" in refused.value.message


def test_compose_sees_nothing_of_the_callers_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for key in ("GATEWAY_PORT", "HOST_PROJECT", "MODEL_DIR", "IMAGE_ENGINE", "COMPOSE_FILE", "COMPOSE_PROFILES", "BUILDX_BUILDER"):
        monkeypatch.setenv(key, "the-callers")
    seen = Deployment(project="fake", state=tmp_path).compose("config").stdout
    assert "PATH=" in seen
    assert "the-callers" not in seen


# --- what is seen

def test_status_tells_of_an_engine_that_gets_no_requests(world: World) -> None:
    serving(world, HOST_REPLICAS="2")
    assert [row["service"] for row in status.read(world.deployment())] == ["gateway", "engine", "engine-2"]
    traffic.drain(world.deployment(), ["engine-2"])
    rows = {row["service"]: row for row in status.read(world.deployment())}
    assert rows["engine"]["reason"] == ""
    assert "taken out at the gateway" in rows["engine-2"]["reason"]
    assert status.base_url(world.deployment()) == "http://127.0.0.1:8005/v1"
    assert "prometheus" not in traffic.servers(world.deployment()), "it gets none of theirs"


# --- several models

def test_up_starts_each_model_after_the_other_and_the_gateway_knows_of_both(world: World) -> None:
    lifecycle.apply(world.deployment(), world.env(beside={"HOST_REPLICAS": "2"}))
    assert set(world.containers) == {"gateway", "engine", "engine-b", "engine-b-2"}
    assert (world.backends, world.routes) == (["engine", "engine-b"], {"m": "engine", "second": "engine-b"})
    assert world.containers["engine-b"].started >= world.containers["engine"].started + 30, "it starts when the first is ready"
    assert world.deployment().models == ("m", "second")


def test_a_model_that_is_added_or_taken_away_interrupts_no_other(world: World) -> None:
    serving(world)
    first = world.containers["engine"].id
    lifecycle.apply(world.deployment(), world.env(beside={}))
    assert world.routes == {"m": "engine", "second": "engine-b"}
    world.passes(10)
    lifecycle.apply(world.deployment(), world.env())
    assert set(world.containers) == {"gateway", "engine"}
    assert (world.backends, world.routes) == (["engine"], {"m": "engine"})
    assert world.containers["engine"].id == first
    assert settled(world).clients.lost == 0
    assert not list(world.folder.glob("fake.b.*"))


def test_a_change_of_one_model_leaves_the_other_alone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    serving(world, beside={})
    before = {name: each.id for name, each in world.containers.items()}
    lifecycle.apply(world.deployment(), world.env(beside={"ENGINE_MAX_NUM_SEQS": "4"}))
    after = {name: each.id for name, each in world.containers.items()}
    assert {name for name in before if before[name] != after[name]} == {"engine-b"}
    assert "the only engine of engine-b is replaced" in capsys.readouterr().err
    assert settled(world).clients.refused == 0


def test_a_model_that_is_renamed_is_known_by_its_new_name_without_a_new_gateway(world: World) -> None:
    serving(world, beside={})
    gateway = world.containers["gateway"].id
    lifecycle.apply(world.deployment(), world.env(beside={"ENGINE_SERVED_MODEL_NAME": "other"}))
    assert world.routes == {"m": "engine", "other": "engine-b"}
    assert world.containers["gateway"].id == gateway


def test_an_added_model_that_does_not_start_is_taken_back_with_its_route(world: World) -> None:
    serving(world)
    world.behaviour = lambda values: CRASHES if values.get("ENGINE_MAX_MODEL_LEN") == "999999" else Behaviour()
    with pytest.raises(RolledBackError):
        lifecycle.apply(world.deployment(), world.env(beside={"ENGINE_MAX_MODEL_LEN": "999999"}))
    assert set(world.containers) == {"gateway", "engine"}
    assert world.routes == {"m": "engine"}
    assert settled(world).clients.lost == 0


def test_rollback_brings_a_second_model_back(world: World) -> None:
    serving(world, beside={})
    lifecycle.apply(world.deployment(), world.env())
    lifecycle.rollback(world.deployment())
    assert set(world.containers) == {"gateway", "engine", "engine-b"}
    assert world.routes == {"m": "engine", "second": "engine-b"}


def test_a_restart_takes_every_engine_of_every_model_and_down_leaves_nothing(world: World) -> None:
    serving(world, beside={}, HOST_REPLICAS="2")
    started = {name: each.started for name, each in world.containers.items() if name != "gateway"}
    lifecycle.restart(world.deployment())
    assert all(world.containers[name].started > before for name, before in started.items())
    lifecycle.down(world.deployment(), volumes=False)
    assert world.containers == {}
    assert {path.name for path in world.folder.iterdir()} <= {"fake.lock"}
    assert settled(world).clients.lost == 0


def test_waits_last_as_long_as_the_slowest_model_may_take(world: World) -> None:
    world.behaviour = lambda values: Behaviour(ready_s=900 if values.get("HOST_READY_TIMEOUT_S") == "1800" else 30)
    lifecycle.apply(world.deployment(), world.env(beside={"HOST_READY_TIMEOUT_S": "1800"}))
    assert world.deployment().number("HOST_READY_TIMEOUT_S") == 1800


@pytest.mark.parametrize(("verb", "line"), [("up", "ready: fetched-model at http://127.0.0.1:1/v1"),
                                              ("roll", "rolled: fetched-model at http://127.0.0.1:1/v1")])
def test_the_name_that_is_told_is_the_one_that_answers(monkeypatch: pytest.MonkeyPatch, verb: str, line: str) -> None:
    """The settings that were asked for name no model yet where the first one is fetched on the way."""
    answer = lifecycle.Answer(base_url="http://127.0.0.1:1/v1", model="fetched-model", models=["fetched-model"], curl="curl …", changed=True)
    monkeypatch.setattr(lifecycle, "up", lambda *_, **__: answer)
    assert verbs.call(verb, "--profile", "cpu").stdout.splitlines()[0] == line
