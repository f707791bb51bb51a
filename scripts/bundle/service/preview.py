"""What `make check` shows of a deployment: for people and as JSON."""

import shlex
from dataclasses import asdict

from bundle.base import console
from bundle.config import words
from bundle.config.catalogue import env_key
from bundle.config.settings import Settings
from bundle.fit.assessment import Fit


def as_json(settings: Settings, fit: Fit) -> dict[str, object]:
    """The deployment, its problems and the fit of its model (null where none is computed) for machines; `resolved` is what `auto` became, and
    what is still "auto" there, the host or the container that runs it resolves."""
    return {"profile": settings.profile, "argv": list(settings.argv), "environment": dict(settings.environment), "origin": settings.origin,
            "problems": [asdict(problem) for problem in settings.problems], "resolved": {key: asdict(one) for key, one in fit.resolved.items()},
            "fit": fit.as_json()}


def show(settings: Settings, fit: Fit) -> None:
    """The command line, the environment, the origin of every value, the verdicts and the fit on stdout; warnings on stderr."""
    console.result(f"# profile {settings.profile}: the engine's command line")
    console.result(command(settings.argv))
    console.result("\n# the engine's environment")
    for key, value in settings.environment.items():
        console.result(f"{key}={shlex.quote(value)}")
    console.result("\n# where each value came from")
    console.table(("KEY", "VALUE", "FROM"), [(key, settings.value(key), origin) for key, origin in settings.origin.items()])
    if lines := autos(settings, fit):
        console.result("\n# auto: what it becomes, and why")
        for line in lines:
            console.result(line)
    if settings.verdicts:
        console.result("\n# the optimizations that are on, and what they do")
    for verdict in settings.verdicts:
        console.result(f"{verdict.verdict:9}  {verdict.entry.key}={verdict.entry.value}")
        instead = verdict.successor or ("nothing" if verdict.verdict == "inert" else "")
        console.result(f"{'':9}  {verdict.reason}" + (f". Use {instead}" if instead else ""))
    if fit.estimate:
        console.result("\n# will it fit?")
        fit.show()
    elif settings.model_dir and fit.unknown:
        console.warn(f"fit is not computed: {fit.unknown}" + (f"; {fit.fix}" if fit.fix else ""))
    for problem in settings.warnings:
        console.warn(str(problem))


def autos(settings: Settings, fit: Fit) -> list[str]:
    """A line for each `auto` of `settings`: what it has become, or who resolves it."""
    left = [(entry.key, words.WORDS[flag]) for flag in words.WORDS if (entry := settings.entries.get(env_key(flag))) and entry.value == words.AUTO]
    return [f"{key}=auto: {text}" for key, text in [*fit.resolved.items(), *left]]


def command(argv: tuple[str, ...]) -> str:
    """`argv` as typed in a shell, one flag on a line."""
    lines = [shlex.join(argv[:3])]
    for word in argv[3:]:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)
