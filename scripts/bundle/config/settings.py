"""Settings: what a deployment is, from its env files: the command line, the engine's environment, and where each value came from."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.base.text import near
from bundle.config import catalogue, contradictions, envfile, profiles, verdicts
from bundle.config.catalogue import Catalogue
from bundle.config.envfile import Entry, Problem
from bundle.config.keys import DERIVED, FOR_ENTRYPOINT, FROM_ENVIRONMENT, GATEWAY_WRITTEN, HOST_KEYS, MODELS, engines, is_shared
from bundle.config.rules import Rules
from bundle.config.words import AUTO

MODEL_IN_CONTAINER = "/model"
ADAPTERS_IN_CONTAINER = "/adapters"
SELFTEST_MODEL = "/opt/bundle/selftest-model"
WRITTEN = ("HOST_PROFILE", "HOST_ENV_FILE")
"""Keys that only a flattened file holds; having both makes it one."""
_DERIVED = "derived: "


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One deployment. `problems` may hold errors: `require` refuses them before anything is done."""

    root: Path
    profile: str
    entries: Mapping[str, Entry]
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    verdicts: tuple[verdicts.Verdict, ...]
    problems: tuple[Problem, ...]

    def value(self, key: str) -> str:
        """The value of `key`, "" when it is not set."""
        entry = self.entries.get(key)
        return entry.value if entry else ""

    def path(self, key: str) -> Path | None:
        """The absolute path that `key` names on the host, None when it is not set; relative ones start at the bundle's folder."""
        value = self.value(key)
        return self.root / Path(value).expanduser() if value else None

    @property
    def origin(self) -> dict[str, str]:
        """Where each value that is set came from."""
        return {key: entry.origin for key, entry in self.entries.items() if entry.value}

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def remarks(self) -> list[str]:
        """What the operator should know before a start: the warnings, and the optimizations that do nothing or harm."""
        lines = [str(problem) for problem in self.warnings]
        for verdict in self.verdicts:
            if verdict.verdict in ("inert", "harmful") and verdict.entry.key not in {problem.key for problem in self.warnings}:
                instead = f" Use {verdict.successor}." if verdict.successor else ""
                lines.append(f"{verdict.entry.origin}: {verdict.entry.key} is {verdict.verdict}: {verdict.reason}.{instead}")
        return lines

    def require(self) -> None:
        """Raise ConfigurationError with every error at once; return when there is none."""
        require([self])

    @property
    def project(self) -> str:
        return self.value("HOST_PROJECT")

    @property
    def image_target(self) -> str:
        return self.value("IMAGE_TARGET")

    @property
    def image_engine(self) -> str:
        return self.value("IMAGE_ENGINE")

    @property
    def image_gateway(self) -> str:
        return self.value("IMAGE_GATEWAY")

    @property
    def gateway_bind(self) -> str:
        return self.value("GATEWAY_BIND")

    @property
    def gateway_port(self) -> int:
        """The published port; 0 lets Docker choose one."""
        return int(self.value("GATEWAY_PORT"))

    @property
    def model_dir(self) -> Path | None:
        return self.path("MODEL_DIR")

    @property
    def api_keys_file(self) -> Path | None:
        return self.path("GATEWAY_API_KEYS_FILE")

    @property
    def tls_cert_file(self) -> Path | None:
        return self.path("GATEWAY_TLS_CERT_FILE")

    @property
    def replicas(self) -> int:
        """How many engines serve the model."""
        return int(self.value("HOST_REPLICAS"))

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that HOST_GPUS names, by index or UUID; empty for the first ones."""
        return tuple(filter(None, self.value("HOST_GPUS").split(",")))

    @property
    def gpu_count(self) -> int:
        """How many GPUs all engines take together; a value that is wrong counts as one."""
        values = {key: self.value(key) for key in ("HOST_REPLICAS", "HOST_GPU_COUNT")}
        return prod(int(value) for key, value in values.items() if value and not HOST_KEYS[key].fault(value))

    @property
    def ready_timeout_s(self) -> float:
        return float(self.value("HOST_READY_TIMEOUT_S"))

    @property
    def served_model_name(self) -> str:
        """The name that clients ask for (the first, where there are several)."""
        return self.value("ENGINE_SERVED_MODEL_NAME").split()[0]

    @property
    def adapters(self) -> Mapping[str, str]:
        """The LoRA adapters of ENGINE_LORA_MODULES: their paths in the container by the names that clients ask for."""
        return catalogue.adapters(self.value("ENGINE_LORA_MODULES"))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that clients may ask for: the model's own, then its LoRA adapters'."""
        return (*self.value("ENGINE_SERVED_MODEL_NAME").split(), *self.adapters)

    @property
    def gpu_share(self) -> float | None:
        """Part of a GPU's memory that an engine asks for; 0 where it is given a number of bytes instead, None for auto."""
        if self.value("ENGINE_KV_CACHE_MEMORY_BYTES"):
            return 0.0
        if self.value("ENGINE_GPU_MEMORY_UTILIZATION") == AUTO:
            return None
        flag = catalogue.load(_target(self.entries), root=self.root).find("ENGINE_GPU_MEMORY_UTILIZATION")
        return catalogue.parse_number(self.value("ENGINE_GPU_MEMORY_UTILIZATION") or (flag and flag.default) or "", "float") or 0.0

    @property
    def names_no_model(self) -> bool:
        """Whether neither a folder nor a model is named, so that the self-test model stands in."""
        return self.entries["ENGINE_MODEL"].file.startswith(_DERIVED) and not self.value("MODEL_DIR")

    def overridden(self, values: Mapping[str, str], why: str) -> "Settings":
        """These settings with `values`, which must be right, in place of their own; `why` becomes their origin."""
        entries = {**self.entries, **{key: Entry(key=key, value=value, file=why, line=0) for key, value in values.items()}}
        argv, environment = _for_engine(entries, {problem.key for problem in self.errors} - values.keys(),
                                        catalogue.load(_target(entries), root=self.root))
        return replace(self, entries=entries, argv=argv, environment=environment)

    def flatten(self, env_file_name: str) -> str:
        """The deployment as one env file that stands alone; `env_file_name` is its own path as compose.yaml sees it."""
        own = Entry(key="HOST_ENV_FILE", value=env_file_name, file="the file that the engine's container reads, as compose.yaml sees it", line=0)
        kept = [own]
        for key, entry in self.entries.items():
            if key in HOST_KEYS and key not in ("HOST_ENV_FILE", *FOR_ENTRYPOINT):
                path = self.path(key) if HOST_KEYS[key].path else None
                kept.append(replace(entry, value=str(path)) if path else entry)
        header = f"# The whole deployment of profile {self.profile}, flattened. Above each value: where it came from.\n"
        return header + envfile.render(kept) + self.flatten_engine()

    def flatten_engine(self) -> str:
        """The engine's own part of `flatten`: its flags and its environment, as one env file text."""
        return envfile.render(entry for key, entry in self.entries.items()
                               if (key not in HOST_KEYS or key in FOR_ENTRYPOINT) and entry.value)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One source of values: a file, an option or the environment."""

    name: str
    keys: dict[str, Entry]
    problems: list[Problem]


def require(models: Sequence[Settings]) -> None:
    """Raise ConfigurationError with every error of every model at once; return when there is none."""
    errors = list(dict.fromkeys(problem for each in models for problem in each.errors))
    if errors:
        count = f"{len(errors)} errors" if len(errors) > 1 else "an error"
        named = ", ".join(each.profile for each in models)
        raise ConfigurationError("\n".join([f"{count} in the settings (profile {named})", *(f"  {problem}" for problem in errors)]))


def load(profile: str | None, env_files: Sequence[str | Path] = (), sets: Sequence[str] = (), *, root: Path = ROOT,
         environ: Mapping[str, str] | None = None, chosen_by: str = "--profile") -> Settings:
    """The deployment of `profile` with `env_files` and `sets` (KEY=VALUE) laid over it; `chosen_by` is the origin of the profile's name.

    A flattened file among `env_files` stands alone: base, profile and site are not read then, and `profile` may be None.
    Everything wrong with a value is in `problems`; raises ConfigurationError only where there is nothing to look at: no such profile,
    no flag catalogue.
    """
    extra = [_file(Path(path), root) for path in env_files]
    whole = _whole(extra)
    problems = []
    if whole:
        layers, marker = extra, whole
        if profile not in (None, whole.value):
            problems.append(_problem(whole, f"this file is a whole deployment, and the profile {profile} was asked for. Leave one of the two out."))
    else:
        if profile is None:
            raise ConfigurationError("no profile is named, and no env file is a whole deployment", fix=f"profiles: {', '.join(profiles.names(root))}")
        marker = Entry(key="HOST_PROFILE", value=profile, file=chosen_by, line=0)
        layers = [*_own_layers(profile, root, os.environ if environ is None else environ), *extra]
    layers = [*layers, _assignments(sets, "--set")]
    entries: dict[str, Entry] = {}
    for layer in layers:
        problems += layer.problems
        if whole is None:
            problems += [_problem(layer.keys[key], "written by the bundle itself; delete the line.")
                         for key in (*WRITTEN, *DERIVED, *GATEWAY_WRITTEN) if key in layer.keys]
        entries |= layer.keys
    entries["HOST_PROFILE"] = marker
    return _settings(_derived(entries), problems, [layer.name for layer in layers], root)


def load_beside(first: Settings, profile: str, *, root: Path = ROOT) -> Settings:
    """A further model of the deployment whose first is `first`: base.env and its own env file, and what is the whole deployment's from `first`.

    What lies over the first one's profile (site.env, --env-file, --set) is of that model, and does not reach this one. Where its own file says
    something else of what is shared, that is among the `problems`. Raises ConfigurationError where there is no such profile.
    """
    base, own = (_file(root / "env" / f"{name}.env", root) for name in ("base", _known(profile, root)))
    shared = _Layer(name="", keys={key: entry for key, entry in first.entries.items() if is_shared(key)}, problems=[])
    problems = [*base.problems, *own.problems]
    for key, entry in own.keys.items():
        if key in (*WRITTEN, *DERIVED, *GATEWAY_WRITTEN):
            problems.append(_problem(entry, "written by the bundle itself; delete the line."))
        elif is_shared(key) and entry.value != first.value(key):
            problems.append(_problem(entry, f"is of the whole deployment, where the first model (profile {first.profile}) has "
                                     f"{first.value(key) or 'nothing'}. Delete the line, or set it for that one."))
    entries = base.keys | own.keys | shared.keys
    entries["HOST_PROFILE"] = Entry(key="HOST_PROFILE", value=profile, file="--profile", line=0)
    return _settings(_derived(entries), problems, [base.name, own.name], root)


def names_its_profile(env_files: Sequence[str | Path], *, root: Path = ROOT) -> bool:
    """Whether one of `env_files` is a whole deployment (flattened), which needs no profile."""
    return _whole([_file(Path(path), root) for path in env_files]) is not None


def declared() -> frozenset[str]:
    """The keys that are the bundle's own: all that compose.yaml may interpolate, but ENGINE_SHUTDOWN_TIMEOUT."""
    return frozenset(HOST_KEYS)


def _settings(entries: dict[str, Entry], problems: list[Problem], layers: list[str], root: Path) -> Settings:
    """Check and translate `entries`; `layers` are the sources in their order."""
    wanted = entries["IMAGE_TARGET"].value if "IMAGE_TARGET" in entries else ""
    target = _target(entries)
    records = verdicts.load(root)
    rules = Rules(catalogue=catalogue.load(target, root=root), records=records)
    missing = [Problem(file="env/base.env", line=0, key=key, message=host_key.fault("")) for key, host_key in HOST_KEYS.items()
               if host_key.required and key not in entries]
    faults = {key: _problem(entry, fault) for key, entry in entries.items() if (fault := rules.fault(entry))}
    good = {key: entry for key, entry in entries.items() if key not in faults}
    doubts = [replace(_problem(entry, doubt), severity="warning") for entry in good.values() if entry.value and (doubt := rules.doubt(entry))]
    problems = [*problems, *missing, *faults.values(), *doubts, *(contradictions.find(good, rules.catalogue) if target == wanted else ())]
    problems.sort(key=lambda problem: (layers.index(problem.file) if problem.file in layers else len(layers), problem.file, problem.line))
    argv, environment = _for_engine(entries, faults.keys(), rules.catalogue)
    return Settings(root=root, profile=entries["HOST_PROFILE"].value, entries=entries, argv=argv, environment=environment,
                    verdicts=tuple(verdicts.turned_on(good, records, target)), problems=tuple(problems))


def _target(entries: Mapping[str, Entry]) -> str:
    """Which image `entries` mean; cuda where that is not clear."""
    wanted = entries["IMAGE_TARGET"].value if "IMAGE_TARGET" in entries else ""
    return wanted if wanted in catalogue.TARGETS else "cuda"


def _for_engine(entries: Mapping[str, Entry], wrong: Collection[str], flags: Catalogue) -> tuple[tuple[str, ...], dict[str, str]]:
    """The engine's command line and environment, from all of `entries` but the `wrong` keys."""
    argv, environment = ["vllm", "serve", entries["ENGINE_MODEL"].value], {}
    for key, entry in entries.items():
        if key in wrong or not entry.value or key in HOST_KEYS or key == "ENGINE_MODEL":
            continue
        if flag := flags.find(key) if key.startswith(catalogue.PREFIX) else None:
            argv += flag.arguments(key, entry.value)
        else:
            environment[key] = entry.value
    return tuple(argv), environment


def _problem(entry: Entry, message: str) -> Problem:
    return Problem(file=entry.file, line=entry.line, key=entry.key, message=message)


def _whole(layers: Sequence[_Layer]) -> Entry | None:
    """The profile that the last flattened file among `layers` names."""
    found = [layer.keys["HOST_PROFILE"] for layer in layers if layer.keys.keys() >= set(WRITTEN)]
    return found[-1] if found else None


def _own_layers(profile: str, root: Path, environ: Mapping[str, str]) -> list[_Layer]:
    profile = _known(profile, root)
    given = _assignments([f"{key}={environ[key]}" for key in FROM_ENVIRONMENT if environ.get(key)], "environment")
    layers = [_file(root / "env" / "base.env", root), given, _file(root / "env" / f"{profile}.env", root)]
    site = root / "env" / "site.env"
    return [*layers, _file(site, root)] if site.exists() else layers


def _known(profile: str, root: Path) -> str:
    known = profiles.names(root)
    if profile not in known:
        raise ConfigurationError(f"no profile {profile!r} (env/{profile}.env).{near(profile, known)}", fix=f"profiles: {', '.join(known)}")
    return profile


def _file(path: Path, root: Path) -> _Layer:
    entries, problems = envfile.parse(path, root=root)
    return _Layer(name=envfile.display_path(path, root), keys={entry.key: entry for entry in entries}, problems=problems)


def _assignments(texts: Sequence[str], source: str) -> _Layer:
    parsed = [envfile.parse_assignment(text, source) for text in texts]
    return _Layer(name=source, keys={entry.key: entry for entry, _ in parsed if entry}, problems=[problem for _, problem in parsed if problem])


def _derived(entries: dict[str, Entry]) -> dict[str, Entry]:
    """`entries` with the model and its name filled in where no file sets them."""
    def value(key: str) -> str:
        return entries[key].value if key in entries else ""

    def derive(key: str, derived: str, origin: str) -> None:
        entries[key] = Entry(key=key, value=derived, file=f"{_DERIVED}{origin}", line=0)

    directory = f"MODEL_DIR is set ({entries['MODEL_DIR'].origin})" if value("MODEL_DIR") else ""
    if not value("ENGINE_MODEL"):
        derive("ENGINE_MODEL", MODEL_IN_CONTAINER if directory else SELFTEST_MODEL, directory or "MODEL_DIR is not set")
    if not value("ENGINE_SERVED_MODEL_NAME"):
        model = value("ENGINE_MODEL")
        if model == MODEL_IN_CONTAINER and directory:
            derive("ENGINE_SERVED_MODEL_NAME", _name(Path(value("MODEL_DIR")).name), directory)
        elif model == SELFTEST_MODEL:
            derive("ENGINE_SERVED_MODEL_NAME", "selftest", "the self-test model is served")
        else:
            derive("ENGINE_SERVED_MODEL_NAME", _name(Path(model).name if model.startswith("/") else model), "the name of ENGINE_MODEL")
    for key, derived in _replicas(value).items():
        derive(key, derived, "HOST_REPLICAS, HOST_GPU_COUNT, HOST_GPUS and HOST_MONITORING")
    return entries


def _replicas(value: Callable[[str], str]) -> dict[str, str]:
    """What compose.yaml needs to run the further replicas, and to give each its own GPUs; {} where the values it comes from are wrong."""
    if any(HOST_KEYS[key].fault(value(key)) for key in ("HOST_REPLICAS", "HOST_GPU_COUNT", "HOST_GPUS", "HOST_MONITORING")):
        return {}
    replicas, count = int(value("HOST_REPLICAS")), int(value("HOST_GPU_COUNT"))
    monitoring = ["monitoring"] if value("HOST_MONITORING") == "on" else []
    derived = {"COMPOSE_PROFILES": ",".join([*(f"replica-{number}" for number in range(2, replicas + 1)), *monitoring]),
               "GATEWAY_MONITORING": "on" if monitoring else "", "MONITORING_ENGINES": " ".join(engines(MODELS[0], replicas)) if monitoring else ""}
    if value("IMAGE_TARGET") == "cuda":
        gpus = value("HOST_GPUS").split(",") if value("HOST_GPUS") else [str(index) for index in range(replicas * count)]
        derived |= {f"HOST_GPUS_{number}": ",".join(gpus[(number - 1) * count:number * count]) for number in range(1, replicas + 1)}
    return derived


def _name(text: str) -> str:
    """A model name that needs no quoting anywhere."""
    return re.sub(r"[^\w.:/@+-]", "-", text, flags=re.ASCII).lstrip("-") or "model"
