"""Write a handoff: one folder, or archive, with everything that runs a deployment elsewhere with Docker alone. No secrets are in it."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bundle import ROOT
from bundle.base import console
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.base.files import digest
from bundle.config.settings import Settings
from bundle.fit.assessment import Fit
from bundle.handoff import imageset, readme
from bundle.handoff.imageset import Shipped
from bundle.service import preview

ARCHIVE = ".tar.gz"
ENV_FILE = "handoff.env"
IMAGES = "images.json"
SUMS = "SHA256SUMS"
COMPOSE = "compose.yaml"
_ACCELERATOR = "docker/engine/accelerator.yaml"
_PLACE_OF_NO_MODEL = "docker/engine/no-model/README"
WRITTEN = (ENV_FILE, COMPOSE, _ACCELERATOR, _PLACE_OF_NO_MODEL, IMAGES, "check.json", "check.txt", "fit.json", "HANDOFF.md", SUMS)
"""Every file of a handoff but the images' archives."""
_BUILD_KEYS = ("BASE_IMAGE", "BUILD_CA_BUNDLE", "WHEELHOUSE")  # of this host, and nothing is built there
_GZIP_LEVEL = 1  # image layers are gigabytes: the higher levels take many times as long for a few percent


@dataclass(frozen=True, kw_only=True)
class Handoff:
    """What was written."""

    out: Path
    profile: str
    project: str
    files: tuple[str, ...]
    images: tuple[Shipped, ...]
    provide: tuple[str, ...]
    """What the receiving host must have."""
    fingerprint: str
    """sha256 of SHA256SUMS, and so of everything."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def write(settings: Settings, fit: Fit, out: Path, *, with_images: bool) -> Handoff:
    """Put the handoff of `settings` at `out`: a folder, or an archive where the name ends in .tar.gz. It appears whole or not at all.

    Raises ConfigurationError when the settings are wrong or `out` exists or cannot be made, PrerequisiteError when an image
    or the disk space for the archives is missing.
    """
    out = _place(out)
    settings.require()
    settings = replace(settings, entries={key: entry for key, entry in settings.entries.items() if key not in _BUILD_KEYS})
    shipped = imageset.shipped_images(settings, saved=with_images)
    if with_images:
        _require_space(out, sum(image.bytes for image in shipped))
    try:
        temporary = TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise ConfigurationError(f"--out {out}: {error.strerror}", fix="name a place that you may write to") from error
    with temporary as beside:
        folder = Path(beside) / readme.folder_of(out)
        folder.mkdir()
        for name, text in _texts(settings, fit, shipped):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for image in shipped:
            if image.archive:
                (folder / image.archive).parent.mkdir(exist_ok=True)
                imageset.save(image, folder / image.archive)
        with console.step("checksums"):
            sums = "".join(f"{digest(path)}  {name}\n" for name, path in files(folder))
        (folder / SUMS).write_text(sums, encoding="utf-8")
        names = tuple(name for name, _ in files(folder))
        (_packed(folder, Path(beside) / out.name) if out.name.endswith(ARCHIVE) else folder).rename(out)
    return Handoff(out=out, profile=settings.profile, project=settings.project, files=names, images=shipped,
                   provide=tuple(readme.provided(settings, shipped)), fingerprint=hashlib.sha256(sums.encode()).hexdigest())


def files(folder: Path) -> list[tuple[str, Path]]:
    """Everything in `folder` that is no folder, links too, with its name there; sorted."""
    return sorted((str(path.relative_to(folder)), path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def services(shipped: Sequence[Shipped]) -> dict[str, str]:
    """The files that say what runs, with what rights, as this bundle hands them over with these images: by name."""
    policies = {image.service: image.pull_policy for image in shipped}
    own = {name: (ROOT / name).read_text(encoding="utf-8") for name in (COMPOSE, _ACCELERATOR)}
    return own | {COMPOSE: runnable(own[COMPOSE], policies)}


def runnable(compose: str, policies: Mapping[str, str]) -> str:
    """compose.yaml without its build sections, for which the receiver has no Dockerfiles; each becomes the pull policy of its service."""
    def without_build(match: re.Match[str]) -> str:
        return f"{match['before']}    pull_policy: {policies.get(match['service'], 'never')}\n"

    compose = re.sub(r"^  engine-\d+: \{", lambda replica: f"{replica[0]}pull_policy: {policies['engine']}, ", compose, flags=re.MULTILINE)
    # A service's name, its keys up to `build:`, and the deeper lines that belong to it.
    return re.sub(r"(?P<before>^  (?P<service>[\w-]+):\n(?:    .*\n|\n)*?)    build:\n(?:      .*\n)+", without_build, compose, flags=re.MULTILINE)


def _place(out: Path) -> Path:
    out = out.expanduser().absolute()
    if out.exists() or out.is_symlink():
        raise ConfigurationError(f"--out {out} is there already; a handoff is never written over", fix="name another place, or delete it first")
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out {out}: there is no folder {out.parent}", fix=f"mkdir -p {out.parent}")
    if not readme.folder_of(out):
        raise ConfigurationError(f"--out {out}: no name before {ARCHIVE}", fix=f"--out handoff{ARCHIVE}")
    return out


def _require_space(out: Path, images_bytes: int) -> None:
    need = images_bytes * (2 if out.name.endswith(ARCHIVE) else 1)  # the archive is made beside the folder that it holds
    free = shutil.disk_usage(out.parent).free
    if free < need:
        raise PrerequisiteError(f"{free / 1e9:.1f} GB free for {out}, {need / 1e9:.1f} needed with images",
                                fix=f"name another disk, or a folder instead of a {ARCHIVE} archive (half of it), or leave the images out")


def _texts(settings: Settings, fit: Fit, shipped: Sequence[Shipped]) -> Iterator[tuple[str, str]]:
    """Every file that is text: its name and what it holds."""
    yield ENV_FILE, settings.flatten(ENV_FILE)
    yield from services(shipped).items()
    yield _PLACE_OF_NO_MODEL, (ROOT / _PLACE_OF_NO_MODEL).read_text(encoding="utf-8")
    yield IMAGES, _json([asdict(image) for image in shipped])
    yield "check.json", _json(preview.as_json(settings, fit))
    yield "check.txt", _report(settings, fit)
    yield "fit.json", _json(fit.as_json())
    yield "HANDOFF.md", readme.text(settings, shipped, fit)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def _report(settings: Settings, fit: Fit) -> str:
    """What `make check` prints, and below it what it warns of."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        preview.show(settings, fit)
    lines = [f"warning: {line}" for line in settings.remarks()]
    if not fit.estimate:
        lines.append(f"fit: not computed: {fit.unknown}")
    return shown.getvalue() + "".join(f"\n{line}" for line in lines) + "\n"


def _packed(folder: Path, archive: Path) -> Path:
    with console.step(f"pack {archive.name}"), tarfile.open(archive, "x:gz", compresslevel=_GZIP_LEVEL) as tar:
        tar.add(folder, folder.name, filter=_anonymous)
    return archive


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names of this host's users."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
