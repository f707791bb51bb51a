"""The images of a handoff: what is recorded of them, saved into it, and found again on another host."""

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors

from bundle.base import console, shell
from bundle.base.errors import PrerequisiteError
from bundle.config.settings import Settings
from bundle.images import build
from bundle.machine import daemon

LOAD_TIMEOUT_S = 3600
_CHUNK = 2**20
_RUNS = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One image of a deployment, as images.json records it."""

    service: str
    name: str
    id: str
    """As this daemon numbers it; a daemon with another image store gives the same image another number."""
    digests: tuple[str, ...]
    """What a registry calls it; empty for an image that was built here."""
    content: str
    """sha256 over its layers and what it runs: the same in every image store."""
    bytes: int
    archive: str | None
    """Its `docker save` archive in the handoff, if there is one."""

    def __post_init__(self) -> None:
        """Raise TypeError where images.json, which comes from elsewhere, has something else here."""
        texts = (self.service, self.name, self.id, self.content, self.archive or "", *self.digests)
        if not (all(isinstance(text, str) for text in texts) and isinstance(self.bytes, int)):
            raise TypeError(f"not an image: {self.name!r:.80}")

    @property
    def pull_policy(self) -> str:
        """For compose.yaml: a name that no registry has must not be asked for in a public one, where it may be anybody's."""
        return "missing" if self.digests else "never"

    def fault(self) -> str:
        """Why this daemon cannot run it; "" when it has the very same image under this name."""
        there = _inspect(self.name)
        if there is None:
            return "not there"
        if there["Id"] == self.id or _content(there) == self.content:
            return ""
        return f"another image: {there['Id'][:19]}, {self.id[:19]} was handed over"


def shipped_images(settings: Settings, *, saved: bool) -> tuple[Shipped, ...]:
    """The images of the deployment as they are here; `saved`: their archives will be in the handoff.

    Raises PrerequisiteError naming every image that is not there. One that is older than its sources is only warned of.
    """
    found, missing = [], []
    for image in build.wanted_images(settings):
        there = _inspect(image.name)
        if there is None:
            missing.append(image.name)
            continue
        if reason := image.why_build():
            console.warn(f"{image.name} is handed over as it is, though {reason}; `make build PROFILE={settings.profile}` builds it anew")
        found.append(Shipped(service=image.service, name=image.name, id=there["Id"], digests=tuple(there.get("RepoDigests") or ()),
                             content=_content(there), bytes=there["Size"], archive=f"images/{image.service}.tar" if saved else None))
    if missing:
        raise PrerequisiteError(f"not on this host: {', '.join(missing)}", fix=f"make build PROFILE={settings.profile}")
    return tuple(found)


def save(image: Shipped, file: Path) -> None:
    """`docker save` into `file`, with its progress. Raises PrerequisiteError when it fails or the disk is full."""
    argv = ["docker", "save", image.name]
    with console.step(f"save {image.name}, {image.bytes / 1e9:.2f} GB"):
        try:
            with file.open("xb") as out, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                                          env=daemon.client_environment()) as saving:
                assert saving.stdout is not None  # noqa: S101  (both are pipes)
                assert saving.stderr is not None  # noqa: S101
                done = said = 0
                while chunk := saving.stdout.read(_CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    if done - said >= 10**9:
                        console.note(f"  {done / 1e9:.0f} GB")
                        said = done
                error = saving.stderr.read().decode(errors="replace").strip()
        except OSError as failed:
            raise PrerequisiteError(f"{file}: {failed.strerror}", fix="give --out a place with more free disk") from failed
    if saving.returncode != 0:
        raise PrerequisiteError(f"docker save {image.name} exited {saving.returncode}: {error}", fix="`docker system df` shows what Docker holds")


def load(folder: Path, shipped: Iterable[Shipped]) -> list[str]:
    """Load what the handoff in `folder` carries and the daemon lacks; the names loaded. Raises PrerequisiteError when a load fails."""
    loaded = []
    for image in shipped:
        if image.archive and (reason := image.fault()):
            with console.step(f"load {image.name}, {image.bytes / 1e9:.2f} GB ({reason})"):
                shell.run(["docker", "load", "--input", str(folder / image.archive)], timeout_s=LOAD_TIMEOUT_S, env=daemon.client_environment(),
                          failure=PrerequisiteError, fix="`docker system df` shows what Docker holds")
            loaded.append(image.name)
    return loaded


def require(shipped: Iterable[Shipped]) -> None:
    """Raise PrerequisiteError naming every image that this daemon lacks or has another of."""
    faults = [f"  {image.name}: {fault}" for image in shipped if (fault := image.fault())]
    if faults:
        raise PrerequisiteError("this host does not have the images that were handed over:\n" + "\n".join(faults),
                                fix="ask for a handoff with images (make handoff … WITH_IMAGES=1), or bring them with docker save and docker load")


def _inspect(name: str) -> dict[str, Any] | None:
    with daemon.reachable():
        try:
            return dict(daemon.client().images.get(name).attrs)
        except docker.errors.ImageNotFound:
            return None


def _content(inspected: dict[str, Any]) -> str:
    config = inspected.get("Config") or {}
    told = [inspected["RootFS"].get("Layers") or [], {key: config.get(key) or None for key in _RUNS}]
    return "sha256:" + hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
