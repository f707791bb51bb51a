"""`make swarm`: Compose's own words turned into Swarm's, or refused; and what a manager's API says, as rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.swarm import nodecheck, page, status, write
from bundle.swarm.stack import fingerprint, stack

KEYS_OK = "sk-0123456789abcdef0123 tester\n"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.txt"
    file.write_text(KEYS_OK)
    return file


def engine(**changed: Any) -> dict[str, Any]:
    """An engine as `docker compose config --format json` gives it (2.26)."""
    return {"image": "engine:1", "build": {"context": "."}, "cap_drop": ["ALL"], "environment": {"ENGINE_PORT": "8000"}, "init": True,
            "healthcheck": {"test": ["CMD", "ready"], "timeout": "1m0s"}, "mem_limit": "8589934592", "memswap_limit": "8589934592",
            "pids_limit": 1024, "read_only": True, "restart": "unless-stopped", "security_opt": ["no-new-privileges:true"], "command": None,
            "entrypoint": None, "shm_size": "1073741824", "stop_grace_period": "45s", "tmpfs": ["/tmp:mode=1777,size=1g"], "user": "2000:2000",
            "networks": {"back": None}, "logging": {"driver": "json-file"},
            "volumes": [{"type": "volume", "source": "cache", "target": "/cache"},
                        {"type": "bind", "source": "/srv/model", "target": "/model", "read_only": True, "bind": {}},
                        {"type": "bind", "source": "/none", "target": "/adapters", "read_only": True, "bind": {}}], **changed}


def resolved(keys: Path, **services: Any) -> dict[str, Any]:
    gateway = {"image": "gateway:1", "environment": {"GATEWAY_AUTH": "on"}, "mem_limit": "1073741824", "user": "2001:2001",
               "restart": "unless-stopped", "stop_signal": "SIGUSR1",
               "networks": {"back": None, "front": None}, "tmpfs": ["/run/haproxy:uid=2001,gid=2001,mode=0700,size=1m"],
               "ports": [{"mode": "ingress", "host_ip": "0.0.0.0", "target": 8005, "published": "8005", "protocol": "tcp"}],
               "secrets": [{"source": name, "target": f"/run/secrets/{name}"} for name in ("gateway_api_keys", "gateway_tls")]}
    return {"name": "site", "services": {"engine": engine(), "gateway": gateway, **services}, "networks": {"back": {"internal": True}, "front": {}},
            "volumes": {"cache": {"name": "site_cache"}, "prometheus": {"name": "site_prometheus"}},
            "secrets": {"gateway_api_keys": {"file": str(keys)}, "gateway_tls": {"file": "/dev/null"}, "ca": {"file": "/dev/null"}}}


def nvidia(ids: str) -> dict[str, Any]:
    return {"resources": {"reservations": {"devices": [{"driver": "nvidia", "device_ids": [ids], "capabilities": ["gpu"]}]}}, "placement": {}}


def test_an_engine_keeps_its_limits_and_its_hardening_in_swarms_words(keys: Path) -> None:
    made = stack(resolved(keys), absent=["/none"])["services"]["engine"]
    assert made["deploy"]["resources"] == {"limits": {"memory": "8589934592", "pids": 1024}, "reservations": {"memory": "8589934592"}}
    assert made["deploy"]["restart_policy"]["condition"] == "any"
    assert made["deploy"]["update_config"] == {"parallelism": 1, "order": "stop-first", "monitor": "20s", "failure_action": "rollback"}
    assert made["volumes"] == [{"type": "tmpfs", "target": "/dev/shm", "tmpfs": {"size": 2**30}},
                               {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": 2**30}},
                               {"type": "volume", "source": "cache", "target": "/cache"},
                               {"type": "bind", "source": "/srv/model", "target": "/model", "read_only": True}]
    same = ("image", "cap_drop", "environment", "init", "healthcheck", "read_only", "stop_grace_period", "user", "networks", "logging")
    assert {key: made[key] for key in same} == {key: engine()[key] for key in same}
    assert set(made) == {*same, "deploy", "volumes"}, "nothing that Swarm would drop"


def test_replicas_become_the_tasks_of_one_service_and_models_stay_apart(keys: Path) -> None:
    made = stack(resolved(keys, **{"engine-2": engine(), "engine-b": engine(), "engine-b-2": engine(), "engine-b-3": engine()}))["services"]
    assert {name: each["deploy"].get("replicas") for name, each in made.items()} == {"gateway": None, "engine": 2, "engine-b": 3}


def test_the_gateway_is_one_on_each_labelled_node_with_a_port_of_the_host_and_a_run_that_is_its_own(keys: Path) -> None:
    made = stack(resolved(keys))
    gateway = made["services"]["gateway"]
    assert (gateway["deploy"]["mode"], gateway["deploy"]["endpoint_mode"]) == ("global", "dnsrr")
    assert gateway["deploy"]["placement"] == {"constraints": ["node.labels.vllm.gateway == true"]}
    assert gateway["environment"] == {"GATEWAY_AUTH": "on", "GATEWAY_TASKS": "on"}
    assert gateway["ports"] == [{"target": 8005, "published": 8005, "protocol": "tcp", "mode": "host"}]
    assert gateway["volumes"] == [{"type": "volume", "source": "gateway-run-haproxy", "target": "/run/haproxy"}]
    assert made["volumes"] == {"cache": {}, "gateway-run-haproxy":
                               {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "uid=2001,gid=2001,mode=0700,size=1m"}}}
    assert made["networks"] == {"back": {"driver": "overlay", "internal": True}, "front": {"driver": "overlay"}}


def test_secrets_carry_their_content_in_the_name_and_empty_ones_are_none(keys: Path) -> None:
    made = stack(resolved(keys))
    assert made["services"]["gateway"]["secrets"] == [{"source": "gateway_api_keys", "target": "gateway_api_keys", "uid": "2001", "gid": "2001",
                                                       "mode": 0o400}]
    before = made["secrets"]
    assert before == {"gateway_api_keys": {"file": str(keys), "name": f"site_gateway_api_keys_{fingerprint(keys)}"}}
    keys.write_text(KEYS_OK + "sk-another-0123456789 other\n")
    after = stack(resolved(keys))["secrets"]
    assert after["gateway_api_keys"]["name"] != before["gateway_api_keys"]["name"]


def test_gpus_become_a_number_of_what_the_node_lists(keys: Path) -> None:
    both = {"engine": engine(deploy=nvidia("0,1")), "engine-2": engine(deploy=nvidia("2,3"))}
    made = stack(resolved(keys, **both))["services"]["engine"]["deploy"]
    assert made["resources"]["reservations"]["generic_resources"] == [{"discrete_resource_spec": {"kind": "GPU", "value": 2}}]
    assert made["replicas"] == 2


@pytest.mark.parametrize(("changed", "named"), [
    ({"privileged": True}, "services.engine.privileged"),
    ({"devices": ["/dev/nvidia0"]}, "services.engine.devices"),
    ({"ipc": "host", "sysctls": {}}, "services.engine.ipc, services.engine.sysctls"),
    ({"deploy": {"resources": {"reservations": {"devices": [{"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}]}}}},
     "services.engine.deploy"),
    ({"deploy": {"labels": {"a": "b"}}}, "services.engine.deploy"),
    ({"restart": "no"}, "services.engine.restart"),
    ({"volumes": [{"type": "bind", "source": "/a", "target": "/a", "bind": {"propagation": "rshared"}}]}, "services.engine.volumes./a"),
])
def test_what_swarm_would_drop_is_refused_by_name(keys: Path, changed: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        stack(resolved(keys, engine=engine(**changed)))
    assert refused.value.message == f"compose.yaml has what this bundle does not know to say for Swarm: {named}"


def loaded(*sets: str, profile: str = "cpu") -> Settings:
    return settings.load(profile, sets=sets, environ={})


SWARM = ("GATEWAY_BIND=0.0.0.0", "GATEWAY_API_KEYS_FILE=/keys")


@pytest.mark.parametrize(("line", "where", "says"), [
    ("GATEWAY_API_KEYS_FILE=", "--set: GATEWAY_API_KEYS_FILE", "keys are needed"),
    ("GATEWAY_BIND=127.0.0.1", "--set: GATEWAY_BIND", "127.0.0.1 cannot be kept"),
    ("GATEWAY_BIND=10.0.0.7", "--set: GATEWAY_BIND", "10.0.0.7 cannot be kept"),
    ("GATEWAY_PORT=0", "--set: GATEWAY_PORT", "Name one"),
    ("HOST_GPUS=1", "--set: HOST_GPUS", "Delete the line"),
    ("HOST_ACCELERATOR=cuda-cdi", "--set: HOST_ACCELERATOR", "Delete the line"),
    ("HOST_MONITORING=on", "--set: HOST_MONITORING", "Set off"),
])
def test_a_setting_that_means_one_host_is_refused_where_it_stands(line: str, where: str, says: str) -> None:
    write.refuse([loaded(*SWARM)])
    with pytest.raises(ConfigurationError) as refused:
        write.refuse([loaded(*SWARM, line)])
    first, problem = refused.value.message.splitlines()
    assert first == "a setting that Swarm cannot keep"
    assert problem.strip().startswith(where)
    assert says in problem


def test_every_refusal_is_told_at_once_with_file_and_line() -> None:
    with pytest.raises(ConfigurationError) as refused:
        write.refuse([loaded()])
    first, *problems = refused.value.message.splitlines()
    assert first == "2 settings that Swarm cannot keep"
    lines = (ROOT / "env" / "base.env").read_text().splitlines()
    for key, problem in zip(("GATEWAY_API_KEYS_FILE", "GATEWAY_BIND"), problems, strict=True):
        number = next(number for number, line in enumerate(lines, start=1) if line.startswith(f"{key}="))
        assert problem.startswith(f"  env/base.env:{number}: {key}: ")


def test_a_key_file_that_is_not_there_is_named_with_the_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"--set: GATEWAY_API_KEYS_FILE=/keys: No such file"):
        write.write([loaded(*SWARM)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_key_file_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ConfigurationError, match="holds no key"):
        write.write([loaded("GATEWAY_BIND=0.0.0.0", f"GATEWAY_API_KEYS_FILE={tmp_path}/keys")], tmp_path / "out")


@pytest.mark.parametrize(("name", "says"), [("full", "holds something else than a stack: mine"), ("file", "holds something else than a stack: file"),
                                            ("gone/out", "there is no folder")])
def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, keys: Path, name: str, says: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match=says):
        write.write([loaded("GATEWAY_BIND=0.0.0.0", f"GATEWAY_API_KEYS_FILE={keys}")], tmp_path / name)
    assert [path.read_text() for path in (tmp_path / "full" / "mine", tmp_path / "file")] == ["mine", "mine"]


def test_the_check_of_the_nodes_knows_the_models_files_and_mounts_what_the_engine_does(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = stack(resolved(keys), absent=["/none"])
    job = nodecheck.stack(made, [loaded(*SWARM, f"MODEL_DIR={tmp_path}")])["services"]["node"]
    assert job["deploy"]["mode"] == "global-job"
    assert job["volumes"] == [{"type": "bind", "source": "/srv/model", "target": "/model", "read_only": True}]
    assert json.loads(job["environment"]["EXPECTED"]) == {"keys.txt": len(KEYS_OK), "config.json": 2}
    compile(nodecheck.SCRIPT, "node", "exec")


def test_the_page_names_the_stack_the_port_and_each_secret(keys: Path) -> None:
    one = loaded("GATEWAY_BIND=0.0.0.0", f"GATEWAY_API_KEYS_FILE={keys}", "GATEWAY_PORT=9005", "HOST_PROJECT=site")
    made = stack(resolved(keys), absent=["/none"])
    text = page.text([one], made, page.commands(one, made))
    for part in ("docker save gateway:1 engine:1 | ssh NODE docker load", "-c stack.yaml site\n", "make status STACK=site", "http://ADDRESS:9005",
                 "Every node has `/srv/model`", f"| `site_gateway_api_keys_{fingerprint(keys)}` | `{keys}` |", "no-new-privileges"):
        assert part in text
    assert "sk-0123456789" not in text
    assert "nvidia" not in text


# --- status

NODES = {"n1": {"Description": {"Hostname": "one"}, "Status": {"State": "ready"}},
         "n2": {"Description": {"Hostname": "two"}, "Status": {"State": "down"}}}


def service(name: str = "site_engine", replicas: int | None = 2, update: Mapping[str, str] | None = None) -> dict[str, Any]:
    mode = {"Global": {}} if replicas is None else {"Replicated": {"Replicas": replicas}}
    return {"ID": "s", "Spec": {"Name": name, "Mode": mode, "TaskTemplate": {"ContainerSpec": {"Image": "e:1"}}}, "UpdateStatus": update}


def task(slot: int, state: str = "running", *, node: str = "n1", desired: str = "running", error: str = "", at: str = "1") -> dict[str, Any]:
    return {"ServiceID": "s", "Slot": slot, "NodeID": node, "DesiredState": desired, "Spec": {"ContainerSpec": {"Image": "e:1"}},
            "Status": {"State": state, "Err": error, "Timestamp": at}}


def seen(tasks: list[dict[str, Any]], replicas: int | None = 2) -> list[tuple[str, str, str, str]]:
    return [(row.task, row.node, row.state, row.reason) for row in status.rows("site", [service(replicas=replicas)], tasks, NODES)]


def test_a_stack_that_is_well_has_a_row_for_each_task() -> None:
    tasks = [task(2), task(1), task(1, "shutdown", desired="shutdown", error="old")]
    assert seen(tasks) == [("1", "one", "running", ""), ("2", "one", "running", "")]
    assert all(row.is_well for row in status.rows("site", [service()], [task(1), task(2)], NODES))


@pytest.mark.parametrize(("tasks", "row"), [
    ([task(1), task(2, "starting"), task(2, "failed", desired="shutdown", error="task: non-zero exit (1)")],
     ("2", "one", "starting", "the one before it: task: non-zero exit (1)")),
    ([task(1), task(2, "pending", node="", error="no suitable node (insufficient resources on 2 nodes)")],
     ("2", "", "pending", "no suitable node (insufficient resources on 2 nodes)")),
    ([task(1), task(2, node="n2")], ("2", "two", "running", "its node is down")),
    ([task(1)], ("", "", "missing", "no node for it: none has the label, or memory and GPUs enough")),
])
def test_a_task_that_is_not_well_says_why(tasks: list[dict[str, Any]], row: tuple[str, str, str, str]) -> None:
    assert seen(tasks)[1] == row
    assert not status.rows("site", [service()], tasks, NODES)[1].is_well


def test_a_gateway_without_a_labelled_node_is_missing() -> None:
    assert [row[2] for row in seen([], replicas=None)] == ["missing"]


def test_an_update_that_went_back_is_told() -> None:
    back = {"State": "rollback_completed", "Message": "rollback completed"}
    assert status.updates("site", [service(update=back), service(update={"State": "completed"}), service()]) == \
        ["engine: rollback completed: rollback completed"]
