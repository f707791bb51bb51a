"""Search every file of a built image, and libraries of this host, for names that stand there as words: `grep -w`, there and here."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bundle.base.errors import CheckFailedError, PrerequisiteError
from bundle.machine import daemon

ROOTS = ("/opt/venv", "/usr/lib", "/usr/local")
"""Where the image's programs and libraries are; a driver that the host adds to a container comes to the last two."""

DRIVER_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")

# Size and path of each file, an empty line, then path, NUL and name for each hit. Without bytecode: it repeats its source. grep exits 1 without a
# hit, 2 where a file cannot be read.
_SEARCH = r"""set -e
find -H "$@" -type f ! -name '*.pyc' -printf '%s %p\n'
echo
LC_ALL=C grep -raowFHZ --exclude='*.pyc' -f - "$@" || [ $? = 1 ]
"""


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
    """Search the image from within, without a network. Raises CheckFailedError when it takes longer than `limit_s`, or cannot be searched whole."""
    return _run(container(name, *_argv(limit_s, ROOTS)), names, name, limit_s)


def host(names: Sequence[str], paths: Sequence[str], limit_s: float) -> Search:
    """Search files of this host. Raises PrerequisiteError when one is not there, CheckFailedError as `image` does."""
    if missing := [path for path in paths if not Path(path).exists()]:
        raise PrerequisiteError(f"{', '.join(missing)}: no such file")
    return _run(_argv(limit_s, paths), names, "this host", limit_s)


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


def _argv(limit_s: float, roots: Sequence[str]) -> list[str]:
    return ["timeout", f"{limit_s:g}", "sh", "-c", _SEARCH, "search", *roots]


def _run(argv: Sequence[str], names: Sequence[str], where: str, limit_s: float) -> Search:
    done = subprocess.run(argv, input="\n".join(names).encode(), capture_output=True, check=False, env=daemon.client_environment())
    if done.returncode == 124:
        raise CheckFailedError(f"{where}: the search did not end in {limit_s:g} s", fix="allow more with --limit")
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise CheckFailedError(f"{where}: not all of it could be searched, so nothing can be said: {said.splitlines()[0]}", fix="look at that first")
    listed, _, matches = done.stdout.decode(errors="surrogateescape").partition("\n\n")
    files = [(int(size), path) for size, _, path in (line.partition(" ") for line in listed.splitlines())]
    hits: dict[str, dict[str, int]] = {name: {} for name in names}
    for path, _, name in (line.rpartition("\0") for line in matches.splitlines()):
        hits[name][path] = hits[name].get(path, 0) + 1
    return Search(files=len(files), bytes=sum(size for size, _ in files), hits=hits,
                  drivers=tuple(path for _, path in files if Path(path).name.startswith("libcuda.so.")))
