"""Bring a deployment up, watch it become ready, take it down. Everything that only reads runs before anything changes."""

import json
import shlex
import time
from collections.abc import Callable, Mapping

from bundle.base import console
from bundle.base.errors import NotReadyError, PrerequisiteError
from bundle.config.settings import Settings
from bundle.doctor import host
from bundle.doctor.fit import fit_check
from bundle.fit import assessment
from bundle.fit.estimation import Estimate
from bundle.images import build
from bundle.machine import daemon, setup
from bundle.service import enginelog
from bundle.service.deployment import Container, Deployment

TAIL_LINES = 30
POLL_S = 0.5
# Not urllib: it would ask the proxy that Docker's client hands to every container.
_ASK_FOR_ENGINE = ("import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8404, timeout=5); c.request('GET', '/engine'); "
                   "sys.exit(c.getresponse().status != 200)")


def up(settings: Settings, deployment: Deployment | None = None, *,
       ensure_images: Callable[[Settings], object] = build.ensure) -> dict[str, object]:
    """Make the host, the images and the services what `settings` say, and wait until they answer.

    A handoff brings its own compose.yaml (`deployment`) and images that must not be built here (`ensure_images`).
    Returns what a client needs: base_url, model, and whether anything was changed. Raises ConfigurationError,
    PrerequisiteError (both before any change of the service) or NotReadyError.
    """
    settings.require()
    deployment = deployment or Deployment.from_settings(settings)
    with deployment.locked():
        setup.prepare(settings.value("HOST_SETUP"))
        _preflight(settings)
        ensure_images(settings)
        before = deployment.containers()
        expected = _expected(settings, running=bool(before))
        deployment.write(settings)
        deployment.compose("up", "--detach", "--no-build", "--remove-orphans", failure=PrerequisiteError)
        changed = _ids(deployment.containers()) != _ids(before)
        _wait_until_ready(deployment, before, settings.ready_timeout_s)
        if expected and changed and (line := assessment.compared(expected, _engine_log(deployment))):
            console.note(f"fit: {line}")
    return answer(deployment, settings) | {"changed": changed}


def down(deployment: Deployment, *, volumes: bool) -> bool:
    """Stop and remove the project's containers and networks (and the cache volume, if asked); False when there was nothing."""
    with deployment.locked():
        containers = deployment.containers()
        there = bool(containers)
        if "gateway" in containers:
            # First and alone: it takes no new requests and lets running ones end, while the engine behind it still answers them.
            deployment.compose("stop", "gateway", timeout_s=600)
        if there or volumes:
            deployment.compose("down", "--remove-orphans", *(["--volumes"] if volumes else []), timeout_s=600)
        for file in (deployment.env_file, deployment.engine_env_file):
            file.unlink(missing_ok=True)
    return there


def restart(deployment: Deployment, ready_timeout_s: float) -> None:
    """Restart the engine (its caches stay warm) and wait until it answers. Raises PrerequisiteError when nothing is up."""
    with deployment.locked():
        before = deployment.containers()
        if "engine" not in before:
            raise PrerequisiteError(f"project {deployment.project} is not up", fix="make up")
        with console.step("engine restarted"):
            deployment.compose("restart", "engine", timeout_s=600)
        _wait_until_ready(deployment, before, ready_timeout_s)


def answer(deployment: Deployment, settings: Settings) -> dict[str, object]:
    """How a client on this host reaches the deployment. Raises NotReadyError when the gateway is not published."""
    gateway = deployment.containers().get("gateway")
    if gateway is None or gateway.published is None:
        raise NotReadyError("the gateway publishes no port", fix="make logs")
    address, port = gateway.published
    scheme = "https" if settings.value("GATEWAY_TLS_CERT_FILE") else "http"
    return {"base_url": f"{scheme}://{'127.0.0.1' if address == '0.0.0.0' else address}:{port}/v1", "model": settings.served_model_name}  # noqa: S104


def curl(base_url: str, model: str, settings: Settings) -> str:
    """A command line that gets an answer from the deployment."""
    line = ["curl", "-s", f"{base_url}/chat/completions", "-H", "Content-Type: application/json"]
    if settings.value("GATEWAY_TLS_CERT_FILE"):
        line.insert(1, "-k")
    if keys := settings.api_keys_file:
        return shlex.join([*line, "-d", _question(model)]) + f' -H "Authorization: Bearer $(head -n 1 {shlex.quote(str(keys))})"'
    return shlex.join([*line, "-d", _question(model)])


def _question(model: str) -> str:
    return json.dumps({"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]})


def _ids(containers: Mapping[str, Container]) -> set[tuple[str, str]]:
    return {(c.id, c.started) for c in containers.values()}


def _preflight(settings: Settings) -> None:
    failed = [check for check in host.host_checks(settings) if check.state == "fail"]
    if failed:
        raise PrerequisiteError("this host cannot run it yet:\n" + "\n".join(f"  {c.name}: {c.found}" for c in failed),
                                fix="\n       ".join(c.fix for c in failed))


def _expected(settings: Settings, *, running: bool) -> Estimate | None:
    """What the engine should find in memory, said before the start where it looks too small; None where no model is known."""
    found = assessment.assess(settings, idle=running)
    if found.estimate and not found.estimate.starts:
        line = fit_check(found)
        console.warn(f"{line.name}: {line.found}; {line.fix}")
    return found.estimate


def _engine_log(deployment: Deployment) -> str:
    return deployment.log(deployment.containers()["engine"], since_start=True)


def _wait_until_ready(deployment: Deployment, before: Mapping[str, Container], limit_s: float) -> None:
    """Show each phase as it is reached; return when every service is healthy and a request finds its way. Raises NotReadyError,
    with the services stopped."""
    started, shown = time.monotonic(), ""
    while True:
        containers = deployment.containers()
        waited = time.monotonic() - started
        if containers and all(c.healthy for c in containers.values()) and _routed(containers.get("gateway")):
            if shown:
                console.note(f"✓ ready {waited:.1f}s")
            return
        for name, container in containers.items():
            if container.ended_since(before.get(name)):
                raise _ended(deployment, container, waited)
        now = _phase(deployment, containers)
        if now != shown:
            console.note(f"· {now}, {waited:.0f} s of {limit_s:.0f} s")
            shown = now
        if waited > limit_s:
            raise _too_slow(deployment, containers, shown, limit_s)
        time.sleep(POLL_S)


def _routed(gateway: Container | None) -> bool:
    """Whether the gateway has found the engine: it looks every second or two, and until then answers 503."""
    if gateway is None:
        return False
    with daemon.reachable():
        asked = daemon.client().containers.get(gateway.id).exec_run(["python3", "-c", _ASK_FOR_ENGINE])
    return asked.exit_code == 0


def _phase(deployment: Deployment, containers: Mapping[str, Container]) -> str:
    engine = containers.get("engine")
    return "waiting for the gateway" if engine is None or engine.healthy else enginelog.phase(deployment.log(engine, since_start=True))


def _stop(deployment: Deployment) -> None:
    # Left alone, `restart: unless-stopped` would load and crash for ever; the container stays for its log.
    deployment.compose("stop", timeout_s=600, failure=None)


def _ended(deployment: Deployment, container: Container, waited_s: float) -> NotReadyError:
    log = deployment.log(container, lines=400)  # before the stop, which would be the last thing in it
    _stop(deployment)
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
    log = deployment.log(late[0], lines=TAIL_LINES)
    _stop(deployment)
    return NotReadyError(f"{', '.join(c.service for c in late)} not ready after {limit_s:.0f} s, last seen {phase}{said}\n"
                         f"the last {TAIL_LINES} lines of its log:\n{log}",
                         fix="a first start compiles kernels and may need longer: raise HOST_READY_TIMEOUT_S; else " + enginelog.remedy(log))
