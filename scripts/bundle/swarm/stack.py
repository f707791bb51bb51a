"""A Compose project, as `docker compose config` resolves it, as a stack file of Docker Swarm. Pure data in and out.

`docker stack deploy` drops most of what it does not know without a word. So every key of a service is either turned into what Swarm has for it, or
the whole is refused: nothing goes away unseen. What Swarm has nothing for is in DROPPED, with what stands in for it.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.base.errors import ConfigurationError
from bundle.config.keys import MODELS

VERSION = "3.9"
"""The oldest form that has all of it: Docker 20.10 reads it."""
GPU = "GPU"
"""The kind of the nodes' generic resources. A task finds the ids that it was given in DOCKER_RESOURCE_GPU."""
GATEWAY_LABEL = "vllm.gateway"
"""The nodes that have it set to true run a gateway."""
DROPPED = {
    "security_opt": "no-new-privileges: a line of each node's daemon.json instead",
    "memswap_limit": "no swap for the engine: nodes without swap instead",
    "build": "images are carried to the nodes",
}
_KEPT = ("image", "environment", "healthcheck", "user", "read_only", "cap_drop", "init", "stop_signal", "stop_grace_period", "logging", "command",
         "entrypoint", "networks")
"""What Swarm does as Compose does (seen on tasks by inspection: tests/swarm)."""
_TASKS = re.compile(rf"(?P<model>{'|'.join(MODELS)})(-\d+)?")
_DELAY = "2s"


@dataclass(kw_only=True)
class _Service:
    """One service on its way: what is left of Compose's keys, and what Swarm gets for them."""

    name: str
    left: dict[str, Any]
    stack: dict[str, Any] = field(default_factory=dict)
    deploy: dict[str, Any] = field(default_factory=dict)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    volumes: dict[str, Any] = field(default_factory=dict)
    """Volumes that it needs at the top level, beside Compose's own."""

    def take(self, key: str) -> Any:
        return self.left.pop(key, None)

    def limit(self, kind: str, values: Mapping[str, Any]) -> None:
        self.deploy.setdefault("resources", {}).setdefault(kind, {}).update(values)


def stack(resolved: Mapping[str, Any], *, absent: Sequence[str] = ()) -> dict[str, Any]:
    """The stack file for `resolved`, the JSON of `docker compose config`; `absent` are host folders that stand for "none" and are not mounted.

    The engines of one model become the tasks of one service. Raises ConfigurationError naming every key that has no counterpart.
    """
    services: dict[str, Any] = {}
    volumes: dict[str, Any] = {name: _without_name(each) for name, each in resolved.get("volumes", {}).items()}
    unknown: list[str] = []
    names = sorted(resolved["services"], key=lambda name: (name != "gateway", name))
    for name in names:
        found = _TASKS.fullmatch(name)
        if found and found["model"] != name:
            continue
        replicas = [each for each in names if (other := _TASKS.fullmatch(each)) and other["model"] == name] if found else [name]
        one = _service(name, resolved["services"][name], len(replicas), resolved.get("secrets", {}), absent)
        unknown += [f"services.{name}.{key}" for key in one.left]
        services[name] = one.stack
        volumes |= one.volumes
    if unknown:
        raise ConfigurationError(f"compose.yaml has what this bundle does not know to say for Swarm: {', '.join(unknown)}",
                                 fix="scripts/bundle/swarm/stack.py turns each key of a service")
    if odd := [f"networks.{name}" for name, each in resolved["networks"].items() if each.keys() - {"name", "internal", "ipam"} or each.get("ipam")]:
        raise ConfigurationError(f"compose.yaml: {', '.join(odd)}: an overlay network gets nothing but `internal` from here")
    used = {mount["source"] for each in services.values() for mount in each["volumes"] if mount["type"] == "volume"}
    secrets = {each["source"]: {"file": file, "name": f"{resolved['name']}_{each['source']}_{fingerprint(Path(file))}"}
               for service in services.values() for each in service.get("secrets", ()) for file in [resolved["secrets"][each["source"]]["file"]]}
    return {"version": VERSION, "services": services,
            "networks": {name: {"driver": "overlay", **({"internal": True} if each.get("internal") else {})}
                         for name, each in resolved["networks"].items()},
            "volumes": {name: each for name, each in volumes.items() if name in used}, "secrets": secrets}


def fingerprint(secret: Path) -> str:
    """What tells one content of a file from another in a name: Swarm changes no secret, so each content needs a name of its own. It is slow to
    compute, so that the name is no help in guessing the content. Raises OSError."""
    return hashlib.scrypt(secret.read_bytes(), salt=b"vllm-bundle", n=2**14, r=8, p=1, dklen=6).hex()


def _service(name: str, compose: Mapping[str, Any], replicas: int, secrets: Mapping[str, Any], absent: Sequence[str]) -> _Service:
    one = _Service(name=name, left=dict(compose))
    for key in DROPPED:
        one.take(key)
    one.take("profiles")
    for key in _KEPT:
        if (value := one.take(key)) is not None:
            one.stack[key] = value
    for turn in _TURNS:
        turn(one)
    _mounts(one, absent)
    _secrets(one, secrets)
    if name == "gateway":
        one.stack["environment"] = {**one.stack["environment"], "GATEWAY_TASKS": "on"}
        placed: dict[str, Any] = {"mode": "global", "placement": {"constraints": [f"node.labels.{GATEWAY_LABEL} == true"]}}
    else:
        placed = {"mode": "replicated", "replicas": replicas}
    # Virtual addresses need IPVS and hide which task answers; the gateway asks for all of them. A failed update goes back by itself: a task counts
    # as started once its health check passes. Stop first: a second engine does not fit beside the first, nor a second gateway at its port.
    change = {"parallelism": 1, "order": "stop-first", "monitor": "20s"}
    one.stack["deploy"] = {**placed, "endpoint_mode": "dnsrr", **one.deploy, "update_config": {**change, "failure_action": "rollback"},
                           "rollback_config": change}
    one.stack["volumes"] = one.mounts
    return one


# --- one function for each thing that Swarm says otherwise

def _memory(one: _Service) -> None:
    if (size := one.take("mem_limit")) is not None:
        one.limit("limits", {"memory": str(size)})
        one.limit("reservations", {"memory": str(size)})  # or a node would get more tasks than it has memory for


def _processes(one: _Service) -> None:
    if (count := one.take("pids_limit")) is not None:
        one.limit("limits", {"pids": count})


def _restart(one: _Service) -> None:
    if (when := one.take("restart")) == "unless-stopped":
        one.deploy["restart_policy"] = {"condition": "any", "delay": _DELAY}
    else:
        one.left["restart"] = when


def _shared_memory(one: _Service) -> None:
    if (size := one.take("shm_size")) is not None:
        one.mounts.append({"type": "tmpfs", "target": "/dev/shm", "tmpfs": {"size": int(size)}})  # noqa: S108  (a path in the container)


def _tmpfs(one: _Service) -> None:
    """A tmpfs that anybody may write to is one for Swarm too; it drops any other mode, so those become volumes in memory."""
    for text in one.take("tmpfs") or ():
        target, _, options = text.partition(":")
        said = dict(option.partition("=")[::2] for option in options.split(","))
        if said.keys() <= {"mode", "size"} and said.get("mode", "1777") == "1777":
            one.mounts.append({"type": "tmpfs", "target": target, "tmpfs": {"size": _bytes(said["size"])}})
        else:
            volume = f"{one.name}{target.replace('/', '-')}"
            one.volumes[volume] = {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": options}}
            one.mounts.append({"type": "volume", "source": volume, "target": target})


def _devices(one: _Service) -> None:
    """GPUs: as many as the deployment gives to an engine, whichever the node has."""
    deploy = {key: value for key, value in (one.take("deploy") or {}).items() if value}
    devices = deploy.get("resources", {}).get("reservations", {}).get("devices", [])
    if deploy not in ({}, {"resources": {"reservations": {"devices": devices}}}) or any(device.get("driver") != "nvidia" for device in devices):
        one.left["deploy"] = deploy
    elif devices:
        count = sum(len(ids.split(",")) for device in devices for ids in device["device_ids"])
        one.limit("reservations", {"generic_resources": [{"discrete_resource_spec": {"kind": GPU, "value": count}}]})


def _ports(one: _Service) -> None:
    ports = one.take("ports") or ()
    if ports:  # the routing mesh needs IPVS and hides the client's address, by which the gateway limits
        one.stack["ports"] = [{"target": port["target"], "published": int(port["published"]), "protocol": port["protocol"], "mode": "host"}
                              for port in ports]


_TURNS: Sequence[Callable[[_Service], None]] = (_memory, _processes, _restart, _shared_memory, _tmpfs, _devices, _ports)


def _mounts(one: _Service, absent: Sequence[str]) -> None:
    for mount in one.take("volumes") or ():
        if mount["type"] == "bind" and mount["source"] in absent:
            continue
        kept = {key: value for key, value in mount.items() if key in ("type", "source", "target", "read_only")}
        one.mounts.append(kept)
        # Swarm makes no folder that is missing, as create_host_path: false asks for.
        if mount not in (kept, {**kept, "bind": {}}, {**kept, "bind": {"create_host_path": False}}):
            one.left[f"volumes.{mount['target']}"] = mount


def _secrets(one: _Service, secrets: Mapping[str, Any]) -> None:
    """Those that there are: /dev/null stands for "none", and Swarm refuses an empty secret."""
    there = [each for each in one.take("secrets") or () if secrets[each["source"]]["file"] != "/dev/null"]
    if there:
        user = one.stack["user"].partition(":")[0]
        one.stack["secrets"] = [{"source": each["source"], "target": each["source"], "uid": user, "gid": user, "mode": 0o400} for each in there]


def _bytes(size: str) -> int:
    return int(size[:-1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[size[-1]]


def _without_name(volume: Mapping[str, Any]) -> dict[str, Any]:
    """A stack names its volumes by itself."""
    return {key: value for key, value in (volume or {}).items() if key != "name"}
