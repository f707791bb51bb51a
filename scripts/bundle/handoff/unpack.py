"""Take in a handoff: unpack it, hold it against its checksums, load its images, and bring it up on this host."""

import difflib
import json
import os
import re
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from bundle import ROOT
from bundle.base import console
from bundle.base.errors import CheckFailedError, ConfigurationError, PrerequisiteError
from bundle.base.files import digest
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.handoff import imageset, pack, readme
from bundle.handoff.imageset import Shipped
from bundle.handoff.pack import ARCHIVE, ENV_FILE, IMAGES, SUMS, files
from bundle.machine import setup
from bundle.service import lifecycle
from bundle.service.deployment import Deployment

_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>\S.*)")
_NEEDED = (ENV_FILE, IMAGES, "compose.yaml")
_ASK_AGAIN = "ask for it again, or copy it anew"
_SHOWN = 20
_ROOM = "free some disk, or --into another place"


def opened(source: Path, into: Path | None) -> tuple[Path, int]:
    """The handoff's folder, verified, and how many files it has: `source` itself, or what the archive `source` unpacks to.

    That is `into`, by default the archive's own name beside it; what does not hold its checksums never appears there.
    Raises ConfigurationError when there is no such source or the target exists, CheckFailedError for what is damaged or unsafe.
    """
    if source.is_dir():
        if into:
            raise ConfigurationError(f"--into is for an archive, and {source} is a folder, which is used where it is", fix="leave --into out")
        return source.absolute(), verify(source)
    if not source.is_file():
        raise ConfigurationError(f"no handoff at {source}", fix="name the folder or the archive that `make handoff` wrote")
    target = (into or source.parent / readme.folder_of(source)).absolute()
    if target.exists() or target.is_symlink():
        raise ConfigurationError(f"{target} is there already; nothing is unpacked over it", fix="receive that folder, or --into another")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {target.parent}", fix=f"mkdir -p {shlex.quote(str(target.parent))}")
    try:
        with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            with console.step(f"unpack {source.name}"):
                folder = _unpack(source, Path(beside))
            verified = verify(folder, shown=source)
            folder.rename(target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise CheckFailedError(f"{source} is no whole {ARCHIVE} archive: {error}", fix=_ASK_AGAIN) from error
    except OSError as error:
        raise PrerequisiteError(f"{source} cannot be unpacked to {target}: {error.strerror or error}", fix=_ROOM) from error
    return target, verified


def verify(folder: Path, *, shown: Path | None = None) -> int:
    """Hold every file against SHA256SUMS; how many there are. Raises CheckFailedError naming each that is wrong, missing or not listed.

    `shown` is what messages call the folder.
    """
    shown = shown or folder
    if not (folder / SUMS).is_file() or (folder / SUMS).is_symlink():
        raise CheckFailedError(f"{shown} has no {SUMS}: not a handoff, or part of it is missing", fix=_ASK_AGAIN)
    listed: dict[str, str] = {}
    faults = []
    for number, line in enumerate((folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match and _inside(match["name"]) and match["name"] not in listed:
            listed[match["name"]] = match["digest"]
        else:
            faults.append(f"{SUMS}:{number}: not a checksum of a file in this folder: {line[:80]!r}")
    there = dict(files(folder))
    del there[SUMS]
    faults += [f"{name}: not listed in {SUMS}, and every handoff has it" for name in _NEEDED if name not in listed]
    faults += [f"{name}: missing" for name in listed if name not in there]
    with console.step(f"checksums of {len(listed)} files"):
        for name, path in there.items():
            if name not in listed:
                faults.append(f"{name}: not listed in {SUMS}")
            elif path.is_symlink() or not path.is_file():
                faults.append(f"{name}: not a plain file")
            elif digest(path) != listed[name]:
                faults.append(f"{name}: changed: its checksum is not the one in {SUMS}")
        if faults:
            raise CheckFailedError(f"{shown} is not what was handed over:\n" + "\n".join(f"  {fault}" for fault in faults),
                                   fix=f"{_ASK_AGAIN}; say what is different on this host with --set KEY=VALUE instead of changing {ENV_FILE}")
    return len(listed)


def require_own_services(folder: Path) -> None:
    """Raise CheckFailedError where the handoff would not run as this bundle runs it: another compose.yaml or accelerator.yaml, or a file more, such
    as one that Compose lays over them. Checksums do not notice that: whoever repacks an archive makes new ones."""
    shipped = _recorded(folder)
    changed: list[str] = []
    for name, own in pack.services(shipped).items():
        theirs = (folder / name).read_text(encoding="utf-8", errors="replace") if (folder / name).is_file() else ""
        changed += [line for line in difflib.unified_diff(own.splitlines(), theirs.splitlines(), f"this bundle's {name}", name, n=0, lineterm="")
                    if not line.startswith("@@")]
    known = {*pack.WRITTEN, *(image.archive for image in shipped)}
    changed += [f"{name}: no file of a handoff" for name, _ in files(folder) if name not in known]
    if changed:
        more = [f"  … and {len(changed) - _SHOWN} lines more"] if len(changed) > _SHOWN else []
        raise CheckFailedError("\n".join([f"{folder} would not run as this bundle does:", *(f"  {line[:150]}" for line in changed[:_SHOWN]), *more]),
                               fix="is it of another version of the bundle? read the lines; if they are right, say so: --accept-compose")


def deployment(folder: Path, sets: Sequence[str]) -> Settings:
    """The handoff in `folder` as settings, with `sets` (KEY=VALUE) laid over it. Raises ConfigurationError when something is wrong in it."""
    found = settings.load(None, [folder / ENV_FILE], sets)
    found.require()
    return found


def install(folder: Path, chosen: Settings) -> list[str]:
    """Load the images that the handoff carries and this host lacks; their names. Raises PrerequisiteError when one is still lacking."""
    setup.prepare(chosen.value("HOST_SETUP"))
    shipped = bundled_images(folder, chosen)
    loaded = imageset.load(folder, shipped)
    imageset.require(shipped)
    return loaded


def bring_up(folder: Path, chosen: Settings) -> lifecycle.Answer:
    """Check this host and start the deployment from the compose.yaml in `folder`; as `lifecycle.up`."""
    shipped = bundled_images(folder, chosen)
    return lifecycle.up([chosen], Deployment(project=chosen.project, home=folder), ensure_images=lambda _: imageset.require(shipped))


def command(folder: Path, sets: Sequence[str]) -> str:
    """What starts the handoff: without the scripts where it runs as it was handed over, with them where `sets` are laid over it."""
    if not sets:
        return f"cd {shlex.quote(str(folder))} && docker compose --env-file {ENV_FILE} up --detach --wait"
    return shlex.join(["python3", str(ROOT / "scripts" / "receive.py"), str(folder), *(word for one in sets for word in ("--set", one))])


def bundled_images(folder: Path, chosen: Settings) -> list[Shipped]:
    """The images that images.json records, less those that --set has replaced with the receiver's own."""
    return [image for image in _recorded(folder) if image.name in (chosen.image_engine, chosen.image_gateway)]


def _recorded(folder: Path) -> list[Shipped]:
    try:
        found = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
        shipped = [Shipped(**one) for one in found]
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckFailedError(f"{folder / IMAGES} is not a list of images: {error}", fix=_ASK_AGAIN) from error
    if lacking := {"engine", "gateway"} - {image.service for image in shipped}:
        raise CheckFailedError(f"{folder / IMAGES}: no image of {', '.join(sorted(lacking))}", fix=_ASK_AGAIN)
    for image in shipped:
        if image.archive and not (_inside(image.archive) and (folder / image.archive).is_file()):
            raise CheckFailedError(f"{folder / IMAGES}: {image.archive} is not in this handoff", fix=_ASK_AGAIN)
    return shipped


def _inside(name: str) -> bool:
    """Whether `name` is a plain relative path that stays below its folder."""
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and "\0" not in name and name != "."


def _unpack(archive: Path, into: Path) -> Path:
    """The one folder in `archive`, unpacked below `into`; each member is looked at before it is written."""
    top = ""
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            name = member.name
            if not _inside(name) or not (member.isfile() or member.isdir()):
                raise CheckFailedError(f"{archive} is not safe to unpack: {name!r} is {_kind(member)}", fix=_ASK_AGAIN)
            top = top or PurePosixPath(name).parts[0]
            if PurePosixPath(name).parts[0] != top or (name == top and not member.isdir()):
                raise CheckFailedError(f"{archive} is not a handoff: {name!r} is outside its folder {top!r}", fix=_ASK_AGAIN)
            if member.isdir():
                (into / name).mkdir(parents=True, exist_ok=True)
                continue
            if member.size > (free := shutil.disk_usage(into).free):
                raise PrerequisiteError(f"{free / 1e9:.1f} GB free for {name}, {member.size / 1e9:.1f} needed", fix=_ROOM)
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            if content is not None:
                _write(content, into / name, archive)
    if not top:
        raise CheckFailedError(f"{archive} is empty", fix=_ASK_AGAIN)
    return into / top


def _write(content: IO[bytes], file: Path, archive: Path) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError as error:
        raise CheckFailedError(f"{archive} is not safe to unpack: {file.name} is in it twice", fix=_ASK_AGAIN) from error
    with os.fdopen(descriptor, "wb") as out:
        shutil.copyfileobj(content, out, 2**20)


def _kind(member: tarfile.TarInfo) -> str:
    if not _inside(member.name):
        return "outside its folder"
    return "a link" if member.issym() or member.islnk() else "neither file nor folder"
