"""The images that a deployment runs from: build what is missing or stale, and say what is in them."""

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bundle import ROOT, STATE
from bundle.base import console, files, shell
from bundle.base.errors import PrerequisiteError
from bundle.config.settings import Settings
from bundle.images import baseimage, buildinputs
from bundle.images.progress import Progress
from bundle.machine import daemon

SOURCE = "io.vllm-bundle.source"
TAIL_LINES = 50

_FIXES = (
    (r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer|certificate verify failed|self-signed certificate",
     "a proxy re-signs TLS: BUILD_CA_BUNDLE=<PEM file with its authority>"),
    (r"(?i)no space left on device", "free some disk: `docker system df` shows what Docker holds, `docker builder prune` empties the build cache"),
    (r"(?i)hash mismatch", "the index serves another file than the lock names: check the index, or resolve the lock anew (make lock)"),
    (r"(?i)no solution found|no matching distribution|was not found in the package registry|has no wheels",
     "the package index lacks a locked version: WHEELHOUSE=<folder with its wheel>, or set pip's index-url to an index that has it"),
    (r"(?i)dns error|failed to lookup|could not resolve|temporary failure (?:in name resolution|resolving)|connection refused|network is unreachable",
     "the build cannot reach what it downloads: set HTTP_PROXY and HTTPS_PROXY, or pip's index-url for a mirror inside, "
     "or WHEELHOUSE=<folder with the wheel>"),
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image that compose.yaml can build."""

    service: str
    """Whose build section makes it."""
    name: str
    inputs: tuple[Path, ...]
    """Every file of the repository that ends in it or shapes it."""
    lock: Path | None
    salt: str
    """What else shapes it: the target and the chosen base."""

    @property
    def source(self) -> str:
        """sha256 over all inputs, as the image's label says it: the same files give the same value on any machine, with git or without."""
        digest = hashlib.sha256(self.salt.encode())
        for path in self.inputs:
            digest.update(f"\0{path.relative_to(ROOT)}\0{files.digest(path)}".encode())
        return digest.hexdigest()

    def why_build(self) -> str:
        """Why it has to be built; "" when it is there and current, or there and not ours to replace."""
        with daemon.reachable():
            there = daemon.client().images.list(name=self.name)
        if not there:
            return "not there"
        labels = there[0].labels or {}
        if SOURCE not in labels:
            console.note(f"· {self.name} was not built by `make build`: used as it is, and not kept up to date (`make build FORCE=1` replaces it)")
            return ""
        return "" if labels[SOURCE] == self.source else "its sources have changed"


@dataclass(frozen=True, kw_only=True)
class Built:
    """An image, and what its build took; `seconds` is 0 when there was nothing to do."""

    image: Image
    seconds: float


def wanted_images(settings: Settings) -> tuple[Image, ...]:
    """The images of a deployment, in the order in which they are built."""
    target, base = settings.image_target, settings.value("BASE_IMAGE")
    gateway = ROOT / "docker/gateway"
    lock = ROOT / f"docker/engine/{target}.lock"
    other_locks = {path for path in (ROOT / "docker/engine").glob("*.lock") if path.name not in (lock.name, "build.lock")}
    engine_files = [path for path in _context(ROOT) if path not in other_locks]
    monitoring = Image(service="prometheus", name=settings.value("IMAGE_MONITORING"), inputs=_files((ROOT / "docker/monitoring").rglob("*")),
                       lock=None, salt=f"monitoring {base}")
    return (
        Image(service="gateway", name=settings.image_gateway, inputs=_files(gateway.rglob("*")), lock=None, salt=f"gateway {base}"),
        Image(service="engine", name=settings.image_engine, inputs=_files(engine_files), lock=lock, salt=f"{target} {base}"),
        *([monitoring] if settings.value("HOST_MONITORING") == "on" else []),
    )


def ensure(settings: Settings, *, force: bool = False) -> list[Built]:
    """Build every image of the deployment that is missing or stale (all, with `force`).

    `force` also leaves the layers of earlier builds aside: that is how the distribution's security updates arrive.
    Raises ConfigurationError when a build knob is wrong, PrerequisiteError when there is no base image or a build fails.
    """
    images = wanted_images(settings)
    reasons = {image.service: "asked for" if force else image.why_build() for image in images}
    if not any(reasons.values()):
        return [Built(image=image, seconds=0) for image in images]
    done = []
    with _prepared(settings, next(image.lock for image in images if image.lock), wheels=bool(reasons["engine"])) as (env_file, knobs):
        for image in images:
            seconds = 0.0
            if reason := reasons[image.service]:
                console.note(f"· build {image.name}: {reason}")
                seconds = _build(settings, image, env_file, knobs, force=force)
                console.note(f"✓ build {image.name} {seconds:.1f}s, {size(image.name) / 1e9:.2f} GB")
            done.append(Built(image=image, seconds=seconds))
    return done


@contextmanager
def _prepared(settings: Settings, lock: Path, *, wheels: bool) -> Iterator[tuple[Path, dict[str, str]]]:
    """An env file of the deployment and the variables of compose.yaml's build sections; the files behind them last as long as the block."""
    authorities = buildinputs.authorities(settings)
    pip = buildinputs.pip_configuration()
    found = buildinputs.wheels(settings, pip, lock) if wheels else {}
    STATE.mkdir(exist_ok=True)
    knobs = {"BASE_IMAGE": baseimage.ensure(settings)}
    with TemporaryDirectory(prefix="build-", dir=STATE) as folder:
        marked = f"{buildinputs.LEAK_MARK}\n{authorities}" if authorities else ""
        for key, text in {"BUILD_CA_BUNDLE": marked, "BUILD_INDEX": buildinputs.indexes(pip)}.items():
            if text:
                file = Path(folder) / key.lower()
                file.touch(mode=0o600)
                file.write_text(text)
                knobs[key] = str(file)
        if found:
            knobs["BUILD_WHEELS"] = buildinputs.import_wheels(found)
        env_file = Path(folder) / "build.env"
        env_file.write_text(settings.flatten(str(env_file.relative_to(ROOT))))
        try:
            yield env_file, knobs
        finally:
            if found:
                shell.run(["docker", "image", "rm", knobs["BUILD_WHEELS"]], timeout_s=60, env=daemon.client_environment(), failure=None)


def _build(settings: Settings, image: Image, env_file: Path, knobs: Mapping[str, str], *, force: bool) -> float:
    """Run one build, show its steps, keep its log; the seconds it took. Raises PrerequisiteError with the log's end."""
    log = STATE / f"build-{settings.image_target if image.service == 'engine' else image.service}.log"
    # The daemon's own builder: another one that the operator may have chosen does not see the images that are on this host.
    builder = shell.run(["docker", "context", "show"], timeout_s=60, env=daemon.client_environment()).stdout.strip()
    environ = {**daemon.client_environment(), **knobs, "BUILDX_BUILDER": builder, "BUILD_SOURCE": image.source, "DOCKER_BUILDKIT": "1"}
    # Compose labels the image with the project, and every container of the image inherits that: it must not pass for one of a deployment.
    argv = ["docker", "compose", "--file", str(ROOT / "compose.yaml"), "--env-file", str(env_file), "--project-name", "vllm-bundle-images",
            "--progress", "plain", "build", *(["--no-cache"] if force else []), image.service]
    started = time.monotonic()
    progress = Progress()
    with log.open("w") as kept, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                                 env=environ, cwd=ROOT) as build:
        assert build.stdout is not None  # noqa: S101  (it is a pipe)
        for line in build.stdout:
            kept.write(line)
            if shown := progress.feed(line.rstrip("\n")):
                console.note(f"  {shown}")
    if build.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        raise PrerequisiteError(f"the build of {image.name} failed ({build.returncode}). The last {len(tail)} lines:\n" + "\n".join(tail),
                                fix=f"{remedy(tail)}; the whole log: {log.relative_to(ROOT)}")
    return time.monotonic() - started


def remedy(tail: Sequence[str]) -> str:
    """What to do about a build that ended with these lines."""
    text = "\n".join(tail)
    return next((fix for pattern, fix in _FIXES if re.search(pattern, text)), "the lines above say why")


def size(name: str) -> int:
    """Bytes of an image, unpacked."""
    with daemon.reachable():
        return int(daemon.client().images.get(name).attrs["Size"])


def layers(name: str) -> list[dict[str, Any]]:
    """The layers of an image that hold anything, largest first: bytes and what made them."""
    with daemon.reachable():
        history = daemon.client().images.get(name).history()
    found = [{"bytes": entry["Size"], "made_by": _made_by(entry)} for entry in history if entry["Size"]]
    return sorted(found, key=lambda layer: -layer["bytes"])


def packages(name: str) -> dict[str, int]:
    """Bytes of each entry of an engine image's site-packages, largest first."""
    listed = shell.run(["docker", "run", "--rm", "--network=none", "--entrypoint=sh", name, "-c", "du -s -B1 /opt/venv/lib/python3*/site-packages/*"],
                       timeout_s=300, env=daemon.client_environment()).stdout
    found = ((line.split("\t")[1].rpartition("/")[2], int(line.split("\t")[0])) for line in listed.splitlines())
    return dict(sorted(found, key=lambda pair: -pair[1]))


def _made_by(entry: Mapping[str, Any]) -> str:
    command = re.sub(r"^(RUN )?\|\d+( \w+=\S+)* ", "RUN ", entry["CreatedBy"]).replace("/bin/bash -euo pipefail -c ", "").replace(" # buildkit", "")
    return " ".join(command.split()) or "base image"


def _context(root: Path) -> Iterator[Path]:
    """The files that .dockerignore lets into the engine's build: everything is left out but its `!` lines."""
    for line in (root / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            for path in root.glob(line[1:]):
                yield from path.rglob("*") if path.is_dir() else (path,)


def _files(paths: Iterator[Path] | Sequence[Path]) -> tuple[Path, ...]:
    return tuple(sorted(path for path in set(paths) if path.is_file() and "__pycache__" not in path.parts))
