"""The folder of manifests that `make k8s` writes: everything is checked first, and what stands there of somebody else is never touched."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from bundle.base.errors import ConfigurationError
from bundle.base.files import write_whole
from bundle.config.settings import Settings
from bundle.hosts import kubernetes, kubernetespage, productionstack

_KUSTOMIZATION, _TEMPLATES, _LOADER, _VALUES = "kustomization.yaml", "secrets.example.yaml", "model-loader.yaml", "production-stack-values.yaml"
_ENV, _PAGE = "deployment.env", "KUBERNETES.md"
_OURS = ("# Written by `make k8s` from deployment.env, which says where each value came from. Change the env files and write it anew; what is the\n"
         "# cluster's own (registry, storage class, node selectors) belongs into a kustomize overlay.\n")
NAMES = ("namespace.yaml", "config.yaml", "storage.yaml", "network.yaml", "engine.yaml", "gateway.yaml", _TEMPLATES, _LOADER, _VALUES, _ENV, _PAGE,
         _KUSTOMIZATION)
"""Every file that there can be, in the order in which they are written: what is applied comes last."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written."""

    out: Path
    profile: str
    namespace: str
    files: tuple[str, ...]
    images: tuple[str, ...]
    provide: tuple[str, ...]
    """What the cluster must have."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def write(settings: Settings, out: Path) -> Written:
    """Put the manifests of `settings`, in which every `auto` is resolved, into the folder `out`: a new one, an empty one, or one that this wrote.

    Raises ConfigurationError for settings that no cluster can run and for a place that is not free, PrerequisiteError without Docker Compose.
    """
    settings.require()
    _require(settings)
    folders = {claim: _bytes(settings, key) for key, claim in (("MODEL_DIR", "model"), ("MODEL_ADAPTERS_DIR", "adapters")) if settings.path(key)}
    out = _place(out)
    files = _files(settings, kubernetes.manifests(settings, folders))
    try:
        out.mkdir(exist_ok=True)
        for name in NAMES:
            if name in files:
                write_whole(out / name, files[name])
            else:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out {out}: {error.strerror}", fix="name a place that you may write to") from error
    return Written(out=out, profile=settings.profile, namespace=settings.project, files=tuple(files),
                   images=(settings.image_engine, settings.image_gateway), provide=tuple(kubernetespage.provided(settings)))


def _require(settings: Settings) -> None:
    """Raise ConfigurationError, with all that keeps these settings from a cluster, by name."""
    wrong = [f"{_origin(settings, key)}{key}{text}" for key, refused, text in (
        ("GATEWAY_API_KEYS_FILE", not settings.api_keys_file, " is not set, and in a cluster more than this host reaches the gateway. "
         "`make keys ADD=name` makes one; its file is not in the manifests."),
        ("HOST_PROJECT", "_" in settings.project or settings.project.endswith("-") or len(settings.project) > 63,
         f"={settings.project} becomes a namespace: lower-case letters, digits and -, at most 63 of them, a letter or digit at the end "
         "(PROJECT=name)."),
        ("HOST_MONITORING", settings.value("HOST_MONITORING") == "on",
         "=on is Prometheus and Alertmanager for one host. In a cluster let its own Prometheus read the engines' /metrics; MONITORING=off."),
        ("HOST_GPUS", bool(settings.gpus), f"={settings.value('HOST_GPUS')} names cards of one host; in a cluster the scheduler gives "
         "HOST_GPU_COUNT of them. SET=\"HOST_GPUS=\""),
        ("ENGINE_MAX_NUM_SEQS", settings.value("ENGINE_MAX_NUM_SEQS") == "auto",
         "=auto needs the model and the GPU of the nodes: MODEL_DIR= and GPU=rtx-5090 (--gpu). Or write a number."),
    ) if refused]
    if wrong:
        raise ConfigurationError("\n".join([f"profile {settings.profile} cannot go to Kubernetes so:", *(f"  {line}" for line in wrong)]))


def _origin(settings: Settings, key: str) -> str:
    entry = settings.entries.get(key)
    return f"{entry.origin}: " if entry and entry.value else ""


def _bytes(settings: Settings, key: str) -> int:
    """What a folder of this host holds, and so what its volume must. Raises ConfigurationError where it cannot be looked into."""
    folder, named = settings.path(key), f"{_origin(settings, key)}{key}={settings.path(key)}"
    try:
        found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder and folder.is_dir() else 0
    except OSError as error:
        raise ConfigurationError(f"{named}: {error.strerror}", fix="make it readable, to see how large its volume must be") from error
    if not found:
        raise ConfigurationError(f"{named} is not here, or empty: how large its volume must be cannot be seen",
                                 fix="make model NAME=org/model, or name a folder that is on this host")
    return found


def _place(out: Path) -> Path:
    out = out.expanduser().absolute()
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out {out}: there is no folder {out.parent}", fix=f"mkdir -p {out.parent}")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ConfigurationError(f"--out {out} is a file", fix="name a folder")
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if foreign := [name for name in there if name not in NAMES]:
        raise ConfigurationError(f"--out {out} holds what is not of `make k8s`: {', '.join(foreign[:5])}{' …' if foreign[5:] else ''}",
                                 fix="name a folder of its own; an overlay stands beside it")
    if there and _KUSTOMIZATION not in there:
        raise ConfigurationError(f"--out {out} holds {there[0]}, and no {_KUSTOMIZATION} as `make k8s` writes it last",
                                 fix="name another folder, or empty it")
    return out


def _files(settings: Settings, objects: Mapping[str, list[kubernetes.Object]]) -> dict[str, str]:
    """Every file by its name."""
    engine = next(one for one in objects["engine.yaml"] if one["kind"] == "Deployment")
    kustomization = kubernetes.kustomization(objects, settings.project)
    templates = ("# Not to be applied as it is: KUBERNETES.md has the commands that make these from files. No values are ever in here.\n"
                 + _yaml(kubernetes.secret_templates(settings)))
    values = ("# For production-stack's Helm chart, as the way beyond these manifests: docs/kubernetes.md of the bundle says what is lost there.\n"
              + _yaml([productionstack.values(settings, engine)]))
    loader = kubernetes.loader(objects)
    return {**{name: _OURS + _yaml(each) for name, each in objects.items()}, _TEMPLATES: templates,
            **({_LOADER: _OURS + _yaml(loader)} if loader else {}), _VALUES: values, _ENV: settings.flatten(_ENV),
            _PAGE: kubernetespage.text(settings, objects), _KUSTOMIZATION: _OURS + _yaml([kustomization])}


def _yaml(documents: list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_NoAliases, sort_keys=False, width=150, explicit_start=len(documents) > 1, allow_unicode=True)


class _NoAliases(yaml.SafeDumper):
    """Labels stand wherever they are used: `&id001` is for machines."""

    def ignore_aliases(self, _data: object) -> bool:
        return True
