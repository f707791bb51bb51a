"""A deployment for several hosts: a folder with a Swarm stack, a check of the nodes, and the page of commands."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bundle import ROOT
from bundle.base import files
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config.envfile import Entry, Problem
from bundle.config.settings import Settings
from bundle.service import credentials
from bundle.service.deployment import resolved
from bundle.swarm import nodecheck, page
from bundle.swarm.stack import stack

STACK, CHECK, PAGE, MODELS = "stack.yaml", "check.yaml", "README.md", "models"
WRITTEN = (STACK, CHECK, PAGE, MODELS)
"""Every file of the folder."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104
_NO_MODEL = "docker/engine/no-model"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and what is to be done with it."""

    out: Path
    project: str
    files: tuple[str, ...]
    services: tuple[str, ...]
    commands: tuple[str, ...]
    """From an empty Swarm to one that serves; typed in `out`."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def write(models: Sequence[Settings], out: Path) -> Written:
    """Put the stack of `models` into the folder `out`, which is new or holds an earlier one.

    Raises ConfigurationError with file:line of every setting that Swarm cannot keep, or where `out` holds other things; PrerequisiteError where the
    keys or the certificate cannot be read, or Compose is missing. Nothing is written then.
    """
    refuse(models)
    _require_readable(models[0])
    out = _place(out)
    with resolved(models) as (project, routes):
        made = stack(project, absent=[str(ROOT / _NO_MODEL)])  # looks into the secrets' files
    made["secrets"]["gateway_models"]["file"] = f"./{MODELS}"
    commands = page.commands(models[0], made)
    profiles = ", ".join(each.profile for each in models)
    written = {STACK: _yaml(made, f"Made by `make swarm` of profile {profiles}: change the env files, and make it anew."),
               CHECK: _yaml(nodecheck.stack(made, models), "One task on every node, which says what that node lacks."),
               PAGE: page.text(models, made, commands), MODELS: routes}
    out.mkdir(exist_ok=True)
    for name, text in written.items():
        files.write_whole(out / name, text)
    return Written(out=out, project=models[0].project, files=tuple(written), services=tuple(made["services"]), commands=tuple(commands))


def refuse(models: Sequence[Settings]) -> None:
    """Raise ConfigurationError with every setting, by file:line, that means something on one host which Swarm cannot keep."""
    problems = list(dict.fromkeys(problem for each in models for problem in _problems(each)))
    if problems:
        lines = [f"{len(problems)} settings" if len(problems) > 1 else "a setting", *(f"  {problem}" for problem in problems)]
        raise ConfigurationError("\n".join([f"{lines[0]} that Swarm cannot keep", *lines[1:]]))


def _problems(settings: Settings) -> Iterator[Problem]:
    for key, wrong, message in (
        ("GATEWAY_API_KEYS_FILE", not settings.value("GATEWAY_API_KEYS_FILE"),
         "on Swarm the gateway's port is open on every address of its node, so keys are needed. `make keys ADD=name` makes a file with one."),
        ("GATEWAY_BIND", settings.gateway_bind not in _EVERYWHERE,
         f"{settings.gateway_bind} cannot be kept: Swarm publishes on every address of a node. Set 0.0.0.0; a firewall closes what is too much."),
        ("GATEWAY_PORT", not settings.gateway_port, "0 lets Docker choose a port, another on each node. Name one."),
        ("HOST_GPUS", bool(settings.value("HOST_GPUS")),
         "names GPUs of one host. On Swarm each node lists its own (the written README.md says how), and a task gets HOST_GPU_COUNT of them. "
         "Delete the line."),
        ("HOST_ACCELERATOR", bool(settings.value("HOST_ACCELERATOR")),
         "gives all GPUs of one host; Swarm hands GPUs out one by one. Delete the line."),
        ("HOST_MONITORING", settings.value("HOST_MONITORING") == "on",
         "on watches the containers of one host. Set off; an own Prometheus reads GET /metrics of each gateway with a metrics-only key."),
    ):
        if wrong:
            entry = settings.entries.get(key) or Entry(key=key, value="", file=f"env/{settings.profile}.env", line=0)
            yield Problem(file=entry.file, line=entry.line, key=key, message=message)


def _require_readable(settings: Settings) -> None:
    """The secrets' content goes into the stack's names, and to the nodes."""
    for key in ("GATEWAY_API_KEYS_FILE", "GATEWAY_TLS_CERT_FILE"):
        path, entry = settings.path(key), settings.entries.get(key)
        if path is None or entry is None:
            continue
        try:
            path.read_bytes()
        except OSError as error:
            raise PrerequisiteError(f"{entry.origin}: {key}={path}: {error.strerror}",
                                    fix="make keys ADD=name" if key == "GATEWAY_API_KEYS_FILE" else "name a PEM file that is there") from error
        if key == "GATEWAY_API_KEYS_FILE" and not credentials.listed(path):
            raise ConfigurationError(f"{entry.origin}: {key}={path} holds no key", fix="make keys ADD=name")


def _place(out: Path) -> Path:
    out = out.expanduser().absolute()
    if not out.exists():
        if not out.parent.is_dir():
            raise ConfigurationError(f"--out {out}: there is no folder {out.parent}", fix=f"mkdir -p {out.parent}")
        return out
    others = [path.name for path in out.iterdir() if path.name not in WRITTEN] if out.is_dir() else [out.name]
    if others:
        raise ConfigurationError(f"--out {out} holds something else than a stack: {', '.join(sorted(others)[:3])}", fix="name a new folder")
    return out


def _yaml(data: object, about: str) -> str:
    import yaml  # here: only this verb writes YAML

    return f"# {about}\n" + yaml.safe_dump(data, sort_keys=False, width=140, allow_unicode=True)
