"""The versions of a deployment that have answered: the one that does now, and the one before it, kept to go back to."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bundle.base.errors import PrerequisiteError
from bundle.config.keys import MODELS
from bundle.service.deployment import Deployment, Texts

GOOD, PREVIOUS = "good", "previous"
_IMAGES = ("IMAGE_ENGINE", "IMAGE_GATEWAY")


@dataclass(frozen=True, kw_only=True)
class Version:
    """What `make up` deployed once."""

    texts: Texts
    """What the deployment's files held."""
    images: Mapping[str, str]
    """Ids by name: a build gives the name to another image."""
    ready_s: float = 0.0
    """How long its engine took to be ready; 0 where that was not seen."""
    since: str = ""
    """When it first answered."""

def current(deployment: Deployment) -> Version:
    """The version that the env files and the images of this host make now."""
    names = [name for service in MODELS for key in _IMAGES if (name := deployment.values(service).get(key))]
    return Version(texts=deployment.written(), images={name: deployment.image_id(name) for name in names})


def read(deployment: Deployment, which: str) -> Version | None:
    """The version that is kept as `good` or `previous`; None where there is none, or its file cannot be read as one."""
    try:
        return Version(**json.loads(_file(deployment, which).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def keep(deployment: Deployment, version: Version, which: str) -> None:
    """Keep a version, in place of the one that was kept so, and its images from being pruned."""
    before = read(deployment, which)
    fresh = _file(deployment, which).with_suffix(".new")
    fresh.write_text(json.dumps(asdict(version), indent=1))
    fresh.replace(_file(deployment, which))
    for image in version.images.values():
        if image:
            deployment.tag(image, _name(deployment, image))
    if before:
        _release(deployment, before)


def restore(deployment: Deployment, version: Version) -> None:
    """Put its env files in place, and its images under their names. Raises PrerequisiteError where an image is gone."""
    for name, image in version.images.items():
        if deployment.image_id(name) != image:
            if not deployment.image_id(image):
                raise PrerequisiteError(f"the earlier image {image[:19]} of {name} is no longer on this host", fix="make up with settings that work")
            deployment.tag(image, name)
    deployment.write(version.texts)


def forget(deployment: Deployment) -> None:
    """Keep nothing of this deployment any more."""
    versions = [version for which in (GOOD, PREVIOUS) if (version := read(deployment, which))]
    for which in (GOOD, PREVIOUS):
        _file(deployment, which).unlink(missing_ok=True)
    for version in versions:
        _release(deployment, version)


def _release(deployment: Deployment, version: Version) -> None:
    held = {image for which in (GOOD, PREVIOUS) if (kept := read(deployment, which)) for image in kept.images.values()}
    for image in set(version.images.values()) - held:
        deployment.untag(_name(deployment, image))


def _name(deployment: Deployment, image: str) -> str:
    return f"vllm-bundle/kept:{deployment.project}-{image.removeprefix('sha256:')[:12]}"


def _file(deployment: Deployment, which: str) -> Path:
    return deployment.state / f"{deployment.project}.{which}.json"
