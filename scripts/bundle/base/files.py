"""Files: written whole or not at all, told apart by their sha256, and who may read them."""

import hashlib
import stat
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """`text` as the file `path`, in one step: a reader, and whoever goes on after an interruption, never finds half of it. What was there keeps its
    mode. Raises OSError."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    if path.exists():
        draft.chmod(stat.S_IMODE(path.stat().st_mode))
    draft.replace(path)


def digest(path: Path) -> str:
    """The sha256 of a file. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()  # not hashlib.file_digest: bundle.venv runs in an older Python too


def readable_by(path: Path, uid: int) -> bool:
    """Whether a container's user `uid` (its group has the same number) may read the file, or list and enter the folder.

    By owner, group and mode: asking as root proves nothing, root may read everything. Raises OSError when it is not there.
    """
    found = path.stat()
    need = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == uid else 0
    return (found.st_mode >> shift) & need == need
