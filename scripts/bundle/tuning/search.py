"""Search every file of a built image, and libraries of this host, for names that stand there as words."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bundle.base.errors import CheckFailedError, PrerequisiteError
from bundle.machine import daemon
from bundle.tuning import scanner

ROOTS = ("/opt/venv", "/usr/lib", "/usr/local")
"""Where the image's programs and libraries are; a driver that the host adds to a container comes to the last two."""

DRIVER_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What was looked at, and which of it holds which name: name → path → how often."""

    files: int
    bytes: int
    hits: Mapping[str, Mapping[str, int]]
    drivers: tuple[str, ...] = ()
    """The driver's libraries among the files."""

    def where(self, name: str, pattern: str = "*") -> list[str]:
        """The files that hold `name` and whose paths end as `pattern` says."""
        return sorted(path for path in self.hits.get(name, ()) if fnmatchcase(path, f"*/{pattern}"))


def image(name: str, names: Sequence[str], limit_s: float) -> Search:
    """Search the image from within, with its own Python and no network; progress goes to stderr."""
    # The scanner travels on stdin: a folder of this host need not exist where the daemon runs, nor be readable for the image's user.
    argv = container(name, "/opt/venv/bin/python", "-I", "-", json.dumps({"names": list(names), "roots": ROOTS, "limit_s": limit_s}))
    try:
        done = subprocess.run(argv, input=Path(scanner.__file__).read_text(encoding="utf-8"), stdout=subprocess.PIPE, text=True, check=False,
                              timeout=limit_s + 60, env=daemon.client_environment())
    except subprocess.TimeoutExpired as error:
        raise CheckFailedError(f"{name}: the search did not end in {limit_s:g} s", fix="allow more with --limit") from error
    if done.returncode != 0:
        raise CheckFailedError(f"{name}: the search exited {done.returncode}; the lines above say why", fix="is the time over? --limit allows more")
    return _search(json.loads(done.stdout), name)


def host(names: Sequence[str], paths: Sequence[str], limit_s: float) -> Search:
    """Search files of this host. Raises PrerequisiteError when one is not there, CheckFailedError when it takes too long."""
    if missing := [path for path in paths if not Path(path).exists()]:
        raise PrerequisiteError(f"{', '.join(missing)}: no such file")
    try:
        return _search(scanner.scan(names, paths, limit_s), "this host")
    except scanner.TooSlowError as error:
        raise CheckFailedError(str(error), fix="allow more with --limit") from error


def driver_libraries() -> list[str]:
    """The driver's library of this host, where it has one."""
    found = (Path(folder) / "libcuda.so.1" for folder in DRIVER_FOLDERS)
    return [str(path) for path in found if path.exists()][:1]


def merge(one: Search, other: Search) -> Search:
    """Both searches as one."""
    hits = {name: {**one.hits.get(name, {}), **other.hits.get(name, {})} for name in {*one.hits, *other.hits}}
    return Search(files=one.files + other.files, bytes=one.bytes + other.bytes, hits=hits, drivers=(*one.drivers, *other.drivers))


def container(image: str, program: str, *arguments: str) -> list[str]:
    """The command that runs `program` in a throwaway container of `image`, without network and rights."""
    return ["docker", "run", "--rm", "--interactive", "--pull=never", "--network=none", "--read-only", "--cap-drop=ALL",
            "--security-opt=no-new-privileges", f"--entrypoint={program}", image, *arguments]


def _search(raw: Mapping[str, Any], where: str) -> Search:
    if raw["unreadable"]:
        raise CheckFailedError(f"{len(raw['unreadable'])} files of {where} cannot be read, so nothing can be said: {raw['unreadable'][0]}")
    return Search(files=raw["files"], bytes=raw["bytes"], hits=raw["hits"], drivers=tuple(raw["drivers"]))
