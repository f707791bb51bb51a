"""Files: who may read them."""

import stat
from pathlib import Path


def readable_by(path: Path, uid: int) -> bool:
    """Whether a container's user `uid` (its group has the same number) may read the file, or list and enter the folder.

    By owner, group and mode: asking as root proves nothing, root may read everything. Raises OSError when it is not there.
    """
    found = path.stat()
    need = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == uid else 0
    return (found.st_mode >> shift) & need == need
