"""What a stack does: one row for each task that Swarm wants to run, from a manager."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bundle.base.errors import PrerequisiteError
from bundle.machine import daemon

_STACK = "com.docker.stack.namespace"
_NO_NODE = "no node for it: none has the label, or memory and GPUs enough"
COLUMNS = ("service", "task", "node", "state", "image", "reason")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task. Swarm calls it running once its health check passes, and replaces it when that fails."""

    service: str
    task: str
    """Its number, "" for the one of a node."""
    node: str
    state: str
    image: str
    reason: str
    """Why it does not run: Swarm's own words, or how the one before it ended."""

    @property
    def is_well(self) -> bool:
        return self.state == "running" and not self.reason

    @property
    def cells(self) -> list[str]:
        return [value or "-" for value in asdict(self).values()]


def read(stack: str) -> tuple[list[Row], list[str]]:
    """The rows of a stack, and a line for each update that did not go as it was asked for; both empty where there is no such stack.

    Raises PrerequisiteError where the daemon does not answer or is no manager.
    """
    client = daemon.client()
    with daemon.reachable():
        if not client.info()["Swarm"].get("ControlAvailable"):
            raise PrerequisiteError(f"the daemon at {daemon.address()} is no manager of a Swarm", fix="ask one that is: DOCKER_HOST=ssh://MANAGER")
        own = {"label": f"{_STACK}={stack}"}
        found = client.services.list(filters=own)
        services = [each.attrs for each in found]
        tasks: list[Mapping[str, Any]] = [task for each in found for task in each.tasks()]  # type: ignore[no-untyped-call]
        nodes = {str(each.id): each.attrs for each in client.nodes.list()}
    return rows(stack, services, tasks, nodes), updates(stack, services)


def rows(stack: str, services: Iterable[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]], nodes: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """What Docker's API says of services, tasks and nodes, as rows; a task that is wanted and not there is one too."""
    found: list[Row] = []
    for service in sorted(services, key=lambda each: str(each["Spec"]["Name"])):
        name, image = _short(stack, service), service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        own = [task for task in tasks if task["ServiceID"] == service["ID"]]
        wanted = [task for task in own if task["DesiredState"] in ("ready", "running")]
        found += [_row(name, task, [other for other in own if _place(other) == _place(task)], nodes) for task in sorted(wanted, key=_place)]
        replicas = service["Spec"]["Mode"].get("Replicated", {}).get("Replicas")
        missing = max(0, (1 if replicas is None else replicas) - len(wanted))
        found += [Row(service=name, task="", node="", state="missing", image=image, reason=_NO_NODE)] * missing
    return found


def updates(stack: str, services: Iterable[Mapping[str, Any]]) -> list[str]:
    """Updates that were taken back or stand still."""
    return [f"{_short(stack, each)}: {state['State'].replace('_', ' ')}: {state.get('Message', '')}" for each in services
            if (state := each.get("UpdateStatus") or {}).get("State", "").startswith(("rollback", "paused"))]


def _row(service: str, task: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]], nodes: Mapping[str, Mapping[str, Any]]) -> Row:
    status, node = task["Status"], nodes.get(task.get("NodeID", ""), {})
    reason = status.get("Err", "")
    if status["State"] != "running" and not reason:
        ended = sorted((other for other in siblings if other["Status"].get("Err")), key=lambda other: str(other["Status"]["Timestamp"]))
        reason = f"the one before it: {ended[-1]['Status']['Err']}" if ended else ""
    if node and node["Status"]["State"] != "ready":
        reason = f"its node is {node['Status']['State']}"
    return Row(service=service, task=str(task.get("Slot") or ""), node=node.get("Description", {}).get("Hostname", ""), state=status["State"],
               image=task["Spec"]["ContainerSpec"]["Image"], reason=reason)


def _place(task: Mapping[str, Any]) -> tuple[int, str]:
    """Tasks with the same place come after each other: a number, or of a service that runs on every node, the node."""
    return (slot, "") if (slot := task.get("Slot") or 0) else (0, task.get("NodeID", ""))


def _short(stack: str, service: Mapping[str, Any]) -> str:
    return str(service["Spec"]["Name"]).removeprefix(f"{stack}_")
