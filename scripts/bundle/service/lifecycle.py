"""Bring a deployment up, change it, take it down. Everything that only reads runs before anything changes; nothing stops without draining."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TypedDict

from bundle.base import console
from bundle.base.errors import BundleError, ConfigurationError, NotReadyError, PrerequisiteError, RolledBackError
from bundle.config import settings as configured
from bundle.config.keys import MODELS
from bundle.config.settings import Settings
from bundle.doctor import accelerator, host
from bundle.doctor.fit import fit_check
from bundle.fit import assessment, found
from bundle.fit.assessment import Fit
from bundle.images import build
from bundle.machine import ports, setup
from bundle.models import first
from bundle.service import address, credentials, kept, numbers, readiness, routing, traffic
from bundle.service.deployment import GATEWAY, Container, Deployment, Texts, is_engine, model_of


class Answer(TypedDict):
    """What a client needs of a deployment that serves."""

    base_url: str
    model: str
    """The first model's name."""
    models: list[str]
    """All names, adapters too."""
    curl: str
    """A command line that gets an answer."""
    changed: bool
    """Whether anything was changed for it."""


def up(models: Sequence[Settings], deployment: Deployment | None = None, *, ensure_images: Callable[[Settings], object] = build.ensure,
       roll: bool = False) -> Answer:
    """Make the host, the images and the services what `models` say, and wait until they answer.

    A handoff brings its own compose.yaml (`deployment`) and images that must not be built here (`ensure_images`). `roll` replaces every engine,
    changed or not, and refuses where that would interrupt the service. Raises ConfigurationError, PrerequisiteError (both before any change of
    the service), NotReadyError or RolledBackError.
    """
    configured.require(models)
    if roll and (single := [each.profile for each in models if each.replicas < 2]):
        raise ConfigurationError(f"a roll replaces one engine while another serves, and of {', '.join(single)} there is one only (HOST_REPLICAS=1)",
                                 fix="HOST_REPLICAS=2 where there is a GPU for each; or: make restart, which says how long nothing answers")
    deployment = deployment or Deployment.from_settings(models[0])
    with deployment.locked("roll" if roll else "up"):
        setup.prepare(models[0].value("HOST_SETUP"))
        models = [accelerator.settled(each) for each in (with_port(deployment, models[0]), *models[1:])]
        _preflight(models)
        for each in models:
            ensure_images(each)
        models = [first.provided(models[0]), *models[1:]]
        models = [numbers.settled(deployment, each, service) for each, service in zip(models, MODELS, strict=False)]
        running = bool(deployment.containers())
        expected = [_expected(each, running=running) for each in models]
        changed = apply(deployment, deployment.texts(models), recreate=roll)
        if applied := credentials.apply(deployment):
            console.note(f"✓ the running gateway knows: {applied}")
        if changed:
            for each, fit, service in zip(models, expected, MODELS, strict=False):
                _compare(each, fit, _engine_log(deployment, service))
        there = address.published(deployment)
        changed = changed or bool(applied)
    return Answer(base_url=there.base_url, model=there.model, models=[name for each in models for name in each.model_names], curl=there.curl,
                  changed=changed)


def apply(deployment: Deployment, texts: Texts, *, recreate: bool = False) -> bool:
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
        deployment.unwrite()
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
        _announce(before, good.ready_s if good else 0, replaced=engines)
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
            _announce(before, last_ready_s, replaced=changed)
        for name in (*fresh, *changed):  # what is added serves before anything is taken away
            with _drained(deployment, name):
                deployment.start("--no-deps", *(["--force-recreate"] if recreate else []), name)
            # The gateway learns of a model that is new when it is replaced, below.
            ready_s = readiness.wait(deployment, [name], before, routed=plan.get(GATEWAY) == "Running")
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
        # One model after another: an engine measures what is free of its GPU while it starts, and one that loads onto the same GPU spoils that.
        *leading, _ = [model for model in MODELS if model in plan]
        for model in leading:
            names = [name for name in plan if model_of(name) == model]
            deployment.start("--no-deps", GATEWAY, *names)
            ready_s = max(ready_s, readiness.wait(deployment, names, before, routed=False))
        deployment.start("--remove-orphans")
    ready_s = max(ready_s, readiness.wait(deployment, list(plan), before))
    routing.apply(deployment)
    return ready_s


@contextmanager
def _drained(deployment: Deployment, name: str) -> Iterator[None]:
    """Around whatever stops one engine: it gets no requests from here on. Where that fails or is interrupted, it does again."""
    try:
        traffic.drain(deployment, [name])
        yield
    except BaseException:
        traffic.resume(deployment, [name])
        raise


def _announce(before: Mapping[str, Container], last_ready_s: float, *, replaced: Sequence[str]) -> None:
    """Say which models will not be answered for, and how long: those whose one engine in health is among `replaced`."""
    how_long = f"about {last_ready_s:.0f} s, as its last start took" if last_ready_s else "as long as the model takes to load"
    for model in dict.fromkeys(map(model_of, replaced)):
        if [container.healthy for name, container in before.items() if model_of(name) == model] == [True]:
            which = f" of {model}" if len(set(map(model_of, before)) - {""}) > 1 else ""
            console.warn(f"the only engine{which} is replaced: nothing is answered for {how_long}; until then clients get 503 with Retry-After "
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


def _preflight(models: Sequence[Settings]) -> None:
    failed = [check for check in host.host_checks(models) if check.state == "fail"]
    if failed:
        raise PrerequisiteError("this host cannot run it yet:\n" + "\n".join(f"  {c.name}: {c.found}" for c in failed),
                                fix="\n       ".join(c.fix for c in failed))


def _expected(settings: Settings, *, running: bool) -> Fit:
    """What the engine should find in memory, said before the start where it looks too small."""
    fit = assessment.assess(settings, idle=running)
    if fit.starts is False:
        line = fit_check(fit)
        console.warn(f"{line.name}: {line.found}; {line.fix}")
    return fit


def _compare(settings: Settings, expected: Fit, engine_log: str) -> None:
    """Say what the start has found beside what was expected, and keep it."""
    folder, differences = assessment.model_folder(settings), expected.differences(engine_log)
    if folder and expected.estimate and differences:
        console.note(f"fit: {assessment.described(differences)}")
        found.keep(settings, folder, expected.estimate, differences, engine_log)


def _engine_log(deployment: Deployment, service: str) -> str:
    return deployment.log(deployment.containers()[service], since_start=True)
