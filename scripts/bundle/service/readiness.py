"""Watch services become ready, and tell why when they do not."""

from collections.abc import Collection, Mapping

from bundle.base import console
from bundle.base.errors import NotReadyError
from bundle.service import enginelog, traffic
from bundle.service.deployment import Container, Deployment

TAIL_LINES = 30
POLL_S = 0.5


def wait(deployment: Deployment, services: Collection[str], before: Mapping[str, Container],
         limit_s: float | None = None, *, routed: bool = True) -> float:
    """Show each phase as it is reached; return, after how many seconds, when every one of `services` is healthy and the gateway sends
    requests to each engine among them (not `routed`: to each that it knows of).

    `before` is what was there before they were started. Raises NotReadyError when one has ended since, or after `limit_s` (default:
    HOST_READY_TIMEOUT_S); nothing is stopped then.
    """
    clock = deployment.clock
    limit_s = deployment.number("HOST_READY_TIMEOUT_S") if limit_s is None else limit_s
    started, shown, resumed = clock.now(), "", False
    while True:
        containers = deployment.containers()
        mine = {name: containers[name] for name in services if name in containers}
        waited = clock.now() - started
        if len(mine) == len(services) and all(container.healthy for container in mine.values()):
            engines = [name for name, container in mine.items() if container.is_engine]
            if not resumed:
                traffic.resume(deployment, engines)
                resumed = True
            known = traffic.servers(deployment)
            if all(known[name].is_up if name in known else not routed for name in engines):
                if shown:
                    console.note(f"✓ {', '.join(sorted(mine))} ready {waited:.1f}s")
                return waited
        for name, container in mine.items():
            if container.ended_since(before.get(name)):
                raise _ended(deployment, container, waited)
        now = _phase(deployment, mine)
        if now != shown:
            console.note(f"· {now}, {waited:.0f} s of {limit_s:.0f} s")
            shown = now
        if waited > limit_s:
            raise _too_slow(deployment, mine, shown, limit_s)
        clock.sleep(POLL_S)


def _phase(deployment: Deployment, containers: Mapping[str, Container]) -> str:
    late = [container for name, container in sorted(containers.items()) if container.is_engine and not container.healthy]
    if not late:
        return "waiting for the gateway"
    phase = enginelog.phase(deployment.log(late[0], since_start=True))
    return phase if len(containers) <= 2 else f"{late[0].service}: {phase}"


def _ended(deployment: Deployment, container: Container, waited_s: float) -> NotReadyError:
    log = deployment.log(container, lines=400)
    tail = "\n".join(log.splitlines()[-TAIL_LINES:])
    if container.out_of_memory:
        limit = container.memory_bytes / 2**30
        message = f"{container.service} ran out of memory: it was killed at its limit of {limit:.1f} GiB"
        fix = f"raise HOST_ENGINE_MEMORY above {limit:.1f}g, or lower what the engine keeps (VLLM_CPU_KVCACHE_SPACE, ENGINE_MAX_MODEL_LEN)"
    else:
        message = (f"{container.service} ended after {waited_s:.0f} s (exit code {container.exit_code}), waiting longer will not help: "
                   f"{enginelog.last_error(log)}")
        fix = enginelog.remedy(log)
    return NotReadyError(f"{message}\nthe last {TAIL_LINES} lines of its log:\n{tail}", fix=fix)


def _too_slow(deployment: Deployment, containers: Mapping[str, Container], phase: str, limit_s: float) -> NotReadyError:
    late = [c for c in containers.values() if not c.healthy] or list(containers.values())
    said = "".join(f"\n{c.service}'s health check says: {c.probe}" for c in late if c.probe)
    log = deployment.log(late[0], lines=TAIL_LINES) if late else ""
    return NotReadyError(f"{', '.join(c.service for c in late)} not ready after {limit_s:.0f} s, last seen {phase}{said}\n"
                         f"the last {TAIL_LINES} lines of its log:\n{log}",
                         fix="a first start compiles kernels and may need longer: raise HOST_READY_TIMEOUT_S; else " + enginelog.remedy(log))
