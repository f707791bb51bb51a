"""Bring a deployment up, change it, take it down. Everything that only reads runs before anything changes; nothing stops without draining."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from bundle.base import console
from bundle.base.errors import BundleError, ConfigurationError, NotReadyError, PrerequisiteError, RolledBackError
from bundle.config.settings import Settings
from bundle.doctor import host
from bundle.doctor.fit import fit_check
from bundle.fit import assessment
from bundle.fit.estimation import Estimate
from bundle.images import build
from bundle.machine import ports, setup
from bundle.models import first
from bundle.service import address, credentials, kept, readiness, traffic
from bundle.service.deployment import ENGINE, GATEWAY, Container, Deployment, is_engine


def up(settings: Settings, deployment: Deployment | None = None, *, ensure_images: Callable[[Settings], object] = build.ensure,
       roll: bool = False) -> dict[str, object]:
    """Make the host, the images and the services what `settings` say, and wait until they answer.

    A handoff brings its own compose.yaml (`deployment`) and images that must not be built here (`ensure_images`). `roll` replaces every engine,
    changed or not, and refuses where that would interrupt the service. Returns what a client needs (base_url, model, curl) and whether anything
    was changed. Raises ConfigurationError, PrerequisiteError (both before any change of the service), NotReadyError or RolledBackError.
    """
    settings.require()
    if roll and settings.replicas < 2:
        raise ConfigurationError("a roll replaces one engine while another serves, and there is one only (HOST_REPLICAS=1)",
                                 fix="HOST_REPLICAS=2 where there is a GPU for each; or: make restart, which says how long nothing answers")
    deployment = deployment or Deployment.from_settings(settings)
    with deployment.locked("roll" if roll else "up"):
        setup.prepare(settings.value("HOST_SETUP"))
        settings = with_port(deployment, settings)
        _preflight(settings)
        ensure_images(settings)
        settings = first.provided(settings)
        expected = _expected(settings, running=bool(deployment.containers()))
        changed = apply(deployment, deployment.texts(settings), recreate=roll)
        if applied := credentials.apply(deployment):
            console.note(f"✓ the running gateway knows: {applied}")
        if expected and changed and (line := assessment.compared(expected, _engine_log(deployment))):
            console.note(f"fit: {line}")
        there = address.published(deployment)
        changed = changed or bool(applied)
    return {"base_url": there.base_url, "model": there.model, "curl": there.curl, "changed": changed}


def apply(deployment: Deployment, texts: tuple[str, str], *, recreate: bool = False) -> bool:
    """Make the running deployment what these env files say, one engine after another, and keep it as the good version; whether anything changed.

    Raises RolledBackError when it did not become ready and the version before it was brought back, NotReadyError, with what failed stopped,
    when there was none; PrerequisiteError when Docker refuses it.
    """
    good, before = kept.read(deployment, kept.GOOD), deployment.containers()
    served = any(container.is_engine and container.state == "running" for container in before.values())
    deployment.write(texts)
    wanted = kept.current(deployment)
    try:
        ready_s = _converge(deployment, before, recreate=recreate, last_ready_s=good.ready_s if good else 0)
    except (NotReadyError, PrerequisiteError) as error:
        if good is None or not served or (good.texts, good.images) == (wanted.texts, wanted.images):
            if isinstance(error, NotReadyError):
                _stop_failed(deployment)
            raise
        raise _taken_back(deployment, good, error) from error
    changed = _identities(deployment.containers()) != _identities(before)
    _keep(deployment, wanted, good, ready_s, changed=changed)
    return changed


def down(deployment: Deployment, *, volumes: bool) -> bool:
    """Stop and remove the project's containers and networks (and the cache volume, if asked); False when there was nothing."""
    with deployment.locked("down"):
        containers = deployment.containers()
        limit_s = deployment.stop_limit_s
        if GATEWAY in containers:
            traffic.drain(deployment, _in_order(containers))
            # Before the engines: it lets answers end that it still sends, and closes its port last of all that clients see.
            deployment.compose("stop", GATEWAY, timeout_s=limit_s)
        if containers or volumes:
            deployment.compose("--profile", "*", "down", "--remove-orphans", *(["--volumes"] if volumes else []), timeout_s=limit_s)
        kept.forget(deployment)
        for file in (deployment.env_file, deployment.engine_env_file):
            file.unlink(missing_ok=True)
    return bool(containers)


def restart(deployment: Deployment, ready_timeout_s: float | None = None) -> None:
    """Restart the engines (their caches stay warm), one after another, and wait until each answers: HOST_READY_TIMEOUT_S, or `ready_timeout_s`.

    Raises PrerequisiteError when `make up` has brought up none, NotReadyError when one does not come back, which is stopped then.
    """
    with deployment.locked("restart"):
        before = deployment.containers()
        engines = _in_order(before)
        if not engines or not deployment.is_written:
            raise PrerequisiteError(f"project {deployment.project} is not up", fix="make up")
        good = kept.read(deployment, kept.GOOD)
        _announce(before, good.ready_s if good else 0, replaced=len(engines))
        for name in engines:
            with console.step(f"{name} restarted"), _drained(deployment, name):
                deployment.compose("restart", name, timeout_s=deployment.stop_limit_s)
            try:
                readiness.wait(deployment, [name], before, ready_timeout_s)
            except NotReadyError:
                _stop_failed(deployment)
                raise
        readiness.wait(deployment, list(before), before, ready_timeout_s)


def rollback(deployment: Deployment) -> str:
    """Bring back the version before the one that runs, or, where a change was left unfinished, the last that answered; since when it had served.

    Raises PrerequisiteError when none is kept, else as `apply`.
    """
    with deployment.locked("rollback"):
        good = kept.read(deployment, kept.GOOD)
        unfinished = good is not None and deployment.is_written and kept.current(deployment).texts != good.texts
        target = good if unfinished else kept.read(deployment, kept.PREVIOUS)
        if target is None:
            raise PrerequisiteError(f"no earlier version of project {deployment.project} is kept",
                                    fix="one is kept after the first change that `make up` has made")
        kept.restore(deployment, target)
        apply(deployment, target.texts)
        return target.since


def with_port(deployment: Deployment, settings: Settings) -> Settings:
    """`settings` with the port that 0 stands for: the one that the deployment has already, else a free one."""
    if settings.gateway_port:
        return settings
    port = int(deployment.values().get("GATEWAY_PORT") or 0)
    if not port or (GATEWAY not in deployment.containers() and ports.refusal(settings.gateway_bind, port)):
        port = ports.unused(settings.gateway_bind)
    return settings.overridden({"GATEWAY_PORT": str(port)}, "chosen for GATEWAY_PORT=0 and kept until `make down`")


def _converge(deployment: Deployment, before: Mapping[str, Container], *, recreate: bool, last_ready_s: float) -> float:
    """Let Compose make what the env file says, so that what serves goes on serving where another engine can; how long an engine took."""
    deployment.remove_unstarted()
    plan = deployment.plan()
    serving = [name for name in _in_order(before) if before[name].state == "running"]
    fresh = [name for name in plan if is_engine(name) and name not in serving]
    changed = [name for name in serving if name in plan and (recreate or plan[name] != "Running")]
    ready_s = 0.0
    if serving and GATEWAY in before:
        if not fresh:
            _announce(before, last_ready_s, replaced=len(changed))
        for name in (*fresh, *changed):  # what is added serves before anything is taken away
            with _drained(deployment, name):
                deployment.start("--no-deps", *(["--force-recreate"] if recreate else []), name)
            ready_s = readiness.wait(deployment, [name], before)
        for name in set(serving) - set(plan):
            with console.step(f"{name} removed"), _drained(deployment, name):
                deployment.remove(before[name])
    for name in before.keys() - plan.keys():
        if not is_engine(name):  # monitoring that was turned off
            deployment.remove(before[name])
    if plan.get(GATEWAY) == "Recreate":
        console.note(f"· the gateway is replaced: its streams get up to {deployment.number('ENGINE_SHUTDOWN_TIMEOUT'):.0f} s to end, and until it "
                     "listens again clients cannot connect")
    if serving and GATEWAY in before:
        deployment.start("--no-deps", *(name for name in plan if not is_engine(name)))
        # What is left to start. No engine is replaced here, where none is drained: another verb may have built its image anew meanwhile.
        deployment.start("--no-recreate", "--remove-orphans")
    else:
        deployment.start("--remove-orphans")
    return max(ready_s, readiness.wait(deployment, list(plan), before))


@contextmanager
def _drained(deployment: Deployment, name: str) -> Iterator[None]:
    """Around whatever stops one engine: it gets no requests from here on. Where that fails or is interrupted, it does again."""
    try:
        traffic.drain(deployment, [name])
        yield
    except BaseException:
        traffic.resume(deployment, [name])
        raise


def _announce(before: Mapping[str, Container], last_ready_s: float, *, replaced: int) -> None:
    if replaced and [before[name].healthy for name in _in_order(before)] == [True]:
        how_long = f"about {last_ready_s:.0f} s, as its last start took" if last_ready_s else "as long as the model takes to load"
        console.warn(f"the only engine is replaced: nothing is answered for {how_long}; until then clients get 503 with Retry-After "
                     "(HOST_REPLICAS=2 has no such gap)")


def _taken_back(deployment: Deployment, good: kept.Version, cause: BundleError) -> BundleError:
    """Bring `good` back after `cause`: the error that says so, or what came in the way."""
    console.error(cause.message, cause.fix)
    console.note("· going back to the version that answered before")
    try:
        kept.restore(deployment, good)
        _converge(deployment, deployment.containers(), recreate=False, last_ready_s=good.ready_s)
    except BundleError as again:
        return NotReadyError(f"the new version did not start, and the one before it does not either now: {again.message}", fix=again.fix)
    first = cause.message.splitlines()[0]
    return RolledBackError(f"the new version did not become ready: {first}\nthe version of {good.since or 'before'} serves again",
                           fix=cause.fix)


def _keep(deployment: Deployment, wanted: kept.Version, good: kept.Version | None, ready_s: float, *, changed: bool) -> None:
    if good is None or (changed and (good.texts, good.images) != (wanted.texts, wanted.images)):
        if good:
            kept.keep(deployment, good, kept.PREVIOUS)
        now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
        kept.keep(deployment, replace(wanted, ready_s=ready_s if changed else 0.0, since=now), kept.GOOD)
    else:  # nothing runs otherwise than before: a comment, or where a value came from
        kept.keep(deployment, replace(wanted, ready_s=ready_s if changed else good.ready_s, since=good.since), kept.GOOD)


def _stop_failed(deployment: Deployment) -> None:
    """Left alone, `restart: unless-stopped` would load and crash for ever; the container stays for its log. Engines in health go on."""
    containers = deployment.containers()
    failed = [name for name, container in containers.items() if container.is_engine and not container.healthy]
    if any(container.is_engine and container.healthy for container in containers.values()):
        for name in failed:
            deployment.compose("stop", name, timeout_s=deployment.stop_limit_s, failure=None)
    else:
        deployment.compose("stop", timeout_s=deployment.stop_limit_s, failure=None)


def _in_order(containers: Mapping[str, Container]) -> list[str]:
    """The engines, in the order in which to touch them: those that do not serve first."""
    return sorted((name for name in containers if is_engine(name)), key=lambda name: (containers[name].healthy, name))


def _identities(containers: Mapping[str, Container]) -> set[tuple[str, str]]:
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
    return deployment.log(deployment.containers()[ENGINE], since_start=True)
