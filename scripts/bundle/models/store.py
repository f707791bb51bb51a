"""Model directories for MODEL_DIR: fetched from the hub into a store, or adopted where they lie; each file held against its checksum.

`STORE/organization/name` appears only when it is complete. Until then its files gather in `STORE/organization/name.incomplete`,
where the next run goes on. `.model.json` in either says what the hub lists, so that a directory can be verified without a network.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bundle.base import console
from bundle.base.errors import CheckFailedError, ConfigurationError, PrerequisiteError
from bundle.base.files import write_whole
from bundle.base.parallel import Progress, each, size
from bundle.config import envfile
from bundle.models import folder
from bundle.models.hub import DifferentSizeError, File, Hub, Repository
from bundle.models.selection import wanted_files

RECORD = ".model.json"
ENGINE_UID = 2000
_KEPT_FREE = 10**9
_BLOCK = 2**22
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A complete model directory. `fetched_bytes`: what it lacked before; `verified`: how many files matched the hub's checksum."""

    directory: Path
    name: str = ""
    commit: str = ""
    bytes: int = 0
    fetched_bytes: int = 0
    verified: int = 0


def fetch(hub: Hub, name: str, *, revision: str, store: Path) -> Stored:
    """Make `store`/`name` hold what vLLM needs of `name` at `revision`: verify what is there, fetch what is not.

    Raises PrerequisiteError (hub, network, disk, or a model that the engine cannot load), ConfigurationError (name, revision, place),
    CheckFailedError (the hub sends other bytes than it lists). Whatever is raised, the next call goes on from what has arrived.
    """
    target = store.absolute() / name
    line(target)
    if target.exists() and not target.is_dir():
        raise ConfigurationError(f"{target} is a file, and the model's directory would lie there", fix="INTO= another directory")
    with console.step(f"what {hub.endpoint} lists for {name} at {revision}"):
        repository = hub.repository(name, revision)
    files = wanted_files(repository)
    staging = _staging(target)
    with _disk_errors():
        here = _whole(files, target)
        staged = _whole([file for file in files if file not in here], staging)
        missing = [file for file in files if file not in here | staged]
        left = sum(file.size - _size(_part(staging, file)) for file in missing)
        if missing or staged:
            _check_room(target, left)
            with _locked(staging):
                _write_record(staging, repository, files)
                with console.step(f"fetch {len(missing)} of {len(files)} files, {size(left)}"):
                    _fetch_all(hub, repository, missing, staging)
                _publish(staging, target, repository, files)
        elif _record(target) != _trimmed(repository, files):
            _write_record(target, repository, files)
        _open_to_all(target, files)
    _refuse_faults(target)
    return Stored(directory=target, name=name, commit=repository.commit, bytes=sum(file.size for file in files),
                  fetched_bytes=left, verified=len(files))


def verify(directory: Path) -> Stored:
    """Hold a directory against its own record (checksums) and against what the engine needs. Changes nothing, needs no network.

    Raises PrerequisiteError for what is missing, CheckFailedError for a file whose bytes are not what the hub listed.
    """
    directory = directory.absolute()
    line(directory)
    if not directory.is_dir():
        _refuse_absent(directory)
    record = _record(directory)
    if record is None:
        _refuse_faults(directory)
        console.note(f"{directory} has no {RECORD}: sizes and headers are right; the checksums are not known")
        return Stored(directory=directory)
    if absent := [file.path for file in record.files if not (directory / file.path).is_file()]:
        raise PrerequisiteError(f"{directory} lacks {len(absent)} of {len(record.files)} files: {_some(absent)}", fix=_again(record.name, directory))
    with _disk_errors():
        whole = _whole(record.files, directory)
    if damaged := [file.path for file in record.files if file not in whole]:
        raise CheckFailedError(f"{directory}: not the bytes that the hub lists: {_some(damaged)}", fix=_again(record.name, directory))
    _refuse_faults(directory)
    return Stored(directory=directory, name=record.name, commit=record.commit, bytes=sum(file.size for file in record.files), verified=len(whole))


def line(directory: Path) -> str:
    """What to put into an env file for `directory`. Raises ConfigurationError where no env file can hold it."""
    value = envfile.quote(str(directory))
    if value is None:
        raise ConfigurationError(f"{directory}: an env file cannot hold this path", fix="a path without quotes and backslashes")
    return f"MODEL_DIR={value}"


def point_to(directory: Path, site: Path) -> None:
    """Set MODEL_DIR in the env file `site`: in its own line where there is one, else at the end."""
    text = site.read_text() if site.exists() else ""
    text, count = re.subn(r"^MODEL_DIR=.*$", lambda _: line(directory), text, flags=re.MULTILINE)
    if not count:
        text += ("" if not text or text.endswith("\n") else "\n") + line(directory) + "\n"
    write_whole(site, text)


def _fetch_all(hub: Hub, repository: Repository, files: Sequence[File], staging: Path) -> None:
    progress = Progress("fetched", total=sum(file.size for file in files), done=sum(_size(_part(staging, file)) for file in files))
    each(files, lambda file: _fetch_one(hub, repository, file, staging, progress), progress=progress)


def _fetch_one(hub: Hub, repository: Repository, file: File, staging: Path, progress: Progress) -> None:
    part, place = _part(staging, file), staging / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    found = ""
    for last in (False, True):  # a part of an earlier run may be damaged: from the start once more before the hub is blamed
        try:
            hub.fetch(repository, file, part, progress.add)
            found = _checksum(part, file.checksum)
        except DifferentSizeError as error:
            found = str(error).splitlines()[0]
        if found == file.checksum:
            part.replace(place)
            return
        progress.add(-_size(part))
        part.unlink()
        if not last:
            console.warn(f"{file.path}: not the bytes that the hub lists; fetching it again from the start")
    raise CheckFailedError(
        f"{hub.endpoint}: {repository.name}/{file.path} is listed with {file.size} bytes and {file.checksum}; what arrives: {found}",
        fix="a proxy or mirror on the way changes files, or this hub is damaged: another network, or another ENDPOINT")


def _whole(files: Sequence[File], directory: Path) -> set[File]:
    """Those of `files` that lie in `directory` with the right size and checksum."""
    candidates = [file for file in files if (directory / file.path).is_file() and _size(directory / file.path) == file.size]
    whole: set[File] = set()
    progress = Progress("read", total=sum(file.size for file in candidates))

    def verify(file: File) -> None:
        if _checksum(directory / file.path, file.checksum, progress.add) == file.checksum:
            whole.add(file)

    if candidates:
        with console.step(f"checksums of {len(candidates)} files in {directory}, {size(progress.total)}"):
            each(candidates, verify, progress=progress)
    return whole


def _checksum(path: Path, like: str, progress: Callable[[int], None] = lambda _: None) -> str:
    """The checksum of `path`, of the kind that `like` is."""
    kind = like.partition(":")[0]
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress(len(block))
    return f"{kind}:{digest.hexdigest()}"


def _publish(staging: Path, target: Path, repository: Repository, files: Sequence[File]) -> None:
    """Let the complete directory appear, or bring the one that is there up to what was fetched."""
    names = {file.path for file in files} | {RECORD}
    if not target.exists():
        for stray in [path for path in staging.rglob("*") if path.is_file() and str(path.relative_to(staging)) not in names]:
            stray.unlink()
        staging.rename(target)
        return
    before = _record(target)
    _write_record(target, repository, files)  # first: if this is interrupted, what is still old is noticed by its checksum
    for file in files:
        if (staging / file.path).is_file():
            (target / file.path).parent.mkdir(parents=True, exist_ok=True)
            (staging / file.path).replace(target / file.path)
    for file in before.files if before else ():
        if file.path not in names:
            (target / file.path).unlink(missing_ok=True)
    shutil.rmtree(staging)


def _open_to_all(directory: Path, files: Sequence[File]) -> None:
    """The engine runs as another user: whatever the umask was, it may read."""
    ours = [directory / RECORD, *(directory / file.path for file in files)]
    folders = {parent for path in ours for parent in path.parents if parent.is_relative_to(directory)}
    for path in (*folders, *ours):
        need = 0o055 if path.is_dir() else 0o044
        if path.stat().st_mode & need != need:
            with suppress(PermissionError):  # not ours to change; what the engine may not read is reported with the other faults
                path.chmod(path.stat().st_mode | need)


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """One run at a time on one directory."""
    staging.mkdir(parents=True, exist_ok=True)
    handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrerequisiteError(f"{staging}: another run is fetching into it", fix="wait until it has ended") from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A full disk or a place that may not be written, as something an operator can act on."""
    try:
        yield
    except OSError as error:
        fix = "free some disk" if error.errno in _DISK_FULL else "run as one who may read and write there"
        raise PrerequisiteError(f"{error.filename or 'the disk'}: {error.strerror or error}",
                                fix=f"{fix}; the same command then goes on where it stopped") from error


def _check_room(target: Path, needed: int) -> None:
    there = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed + _KEPT_FREE > free:
        raise PrerequisiteError(f"{there} has {size(free)} free; {size(needed)} are to come, and {size(_KEPT_FREE)} stay free",
                                fix="free some disk, or INTO= a directory on a larger one")


def _refuse_faults(directory: Path) -> None:
    if found := folder.faults(directory, uid=ENGINE_UID):
        raise PrerequisiteError("\n".join([f"{directory} is not a model that the engine can load:", *(f"  {fault.found}" for fault in found)]),
                                fix="\n       ".join(dict.fromkeys(fault.fix for fault in found)))


def _refuse_absent(directory: Path) -> None:
    staging = _staging(directory)
    record = _record(staging)
    if record is None:
        raise PrerequisiteError(f"{directory}: {'a file, not a directory' if directory.exists() else 'no such directory'}",
                                fix="make model NAME=organization/model fetches a model, FROM=DIR takes one that lies elsewhere")
    lacking = [file for file in record.files if not (staging / file.path).is_file()]
    arrived = [f"{file.path} ({size(_size(_part(staging, file)))} of {size(file.size)})" for file in lacking]
    raise PrerequisiteError(f"{directory} is incomplete, {len(lacking)} of {len(record.files)} files are missing: {_some(arrived)}",
                            fix=_again(record.name, directory))


def _again(name: str, directory: Path) -> str:
    store = str(directory).removesuffix(f"/{name}")
    return (f"make model NAME={name} INTO={store} fetches only what is missing or damaged" if store != str(directory)
            else f"make model NAME={name} fetches it anew")


def _staging(target: Path) -> Path:
    return target.with_name(f"{target.name}.incomplete")


def _part(staging: Path, file: File) -> Path:
    # Named by its content: what is left of another revision is not taken for a piece of this one.
    return staging / f"{file.path}.{file.checksum.partition(':')[2][:12]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _trimmed(repository: Repository, files: Sequence[File]) -> Repository:
    return Repository(name=repository.name, commit=repository.commit, files=tuple(files))


def _write_record(directory: Path, repository: Repository, files: Sequence[File]) -> None:
    write_whole(directory / RECORD, json.dumps(asdict(_trimmed(repository, files)), indent=1) + "\n")


def _record(directory: Path) -> Repository | None:
    """What `.model.json` says, None where there is none or it is not ours."""
    try:
        value = json.loads((directory / RECORD).read_bytes())
        return Repository(name=value["name"], commit=value["commit"], files=tuple(File(**file) for file in value["files"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
