"""Find which files hold given names as whole words. Standard library only: the audit runs it inside an image, on stdin of its Python.

    python - '{"names": ["CUDA_CACHE_PATH"], "roots": ["/opt/venv"], "limit_s": 600}' < scanner.py

Prints JSON: `files` and `bytes` looked at, which of them are `drivers`' libraries, which are `unreadable`, and `hits`: name → path → count.
Progress goes to stderr.
Exits 1 where a root is not there, or the time is over. Bytecode is left out: it repeats its source.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

CHUNK_BYTES = 8 << 20
PROGRESS_S = 10.0
HEAD = 5
"""Names are looked for by their first letters, which many share: a pass per head, not per name."""


class Readable(Protocol):
    """What `count` needs of an open file."""

    def read(self, size: int, /) -> bytes | None: ...


class TooSlowError(Exception):
    """The files take longer than they may."""


def count(stream: Readable, names: Collection[str], tick: Callable[[int], object] = int, *, chunk: int = CHUNK_BYTES) -> Counter[str]:
    """How often each of `names` stands in `stream` as a word of its own: no letter, digit or underscore beside it.

    The file is read in pieces of `chunk` bytes; `tick` gets the size of each.
    """
    heads = {name[:HEAD].encode() for name in names}
    word = re.compile(rb"(?<!\w)(?:%s)(?!\w)" % b"|".join(re.escape(name.encode()) for name in names))
    longest = max((len(name) for name in names), default=0)
    found: Counter[str] = Counter()
    held = b"\0"  # the byte before what comes next, and the last names' worth of bytes: they may go on in the next piece
    while piece := stream.read(chunk):
        tick(len(piece))
        data = held + piece
        end = max(len(data) - longest - 1, 1)
        found.update(_words(data, heads, word, end))
        held = data[end - 1:]
    found.update(_words(held, heads, word, len(held)))
    return found


def _words(data: bytes, heads: Collection[bytes], word: re.Pattern[bytes], end: int) -> Iterator[str]:
    """The names in `data` that begin behind its first byte and before `end`."""
    for head in heads:
        at = data.find(head, 1)
        while 0 <= at < end:
            if match := word.match(data, at):
                yield match[0].decode()
            at = data.find(head, at + 1)


def files(roots: Sequence[str]) -> Iterator[Path]:
    """Every regular file under `roots` (a root may be a file itself), each once; below a root, links are not followed."""
    seen = set()
    for root in roots:
        real = Path(root).resolve(strict=True)
        for path in (real,) if real.is_file() else real.rglob("*"):
            if path not in seen and path.suffix != ".pyc" and path.is_file() and not path.is_symlink():
                seen.add(path)
                yield path


def scan(names: Collection[str], roots: Sequence[str], limit_s: float) -> dict[str, Any]:
    """What the files of `roots` hold. Raises FileNotFoundError for a root that is not there, TooSlowError after `limit_s` seconds."""
    paths = sorted(files(roots))
    total = sum(path.stat().st_size for path in paths)
    started = shown = time.monotonic()
    read = 0

    def tick(size: int) -> None:
        nonlocal read, shown
        read += size
        now = time.monotonic()
        if now - started > limit_s:
            raise TooSlowError(f"{read / 1e9:.1f} of {total / 1e9:.1f} GB read after {limit_s:g} s")
        if now - shown > PROGRESS_S:
            shown = now
            sys.stderr.write(f"  {read / 1e9:.1f} of {total / 1e9:.1f} GB, {now - started:.0f} s\n")
            sys.stderr.flush()

    hits: dict[str, dict[str, int]] = {name: {} for name in names}
    unreadable = []
    for path in paths:
        try:
            with path.open("rb", buffering=0) as stream:
                for name, times in count(stream, names, tick).items():
                    hits[name][str(path)] = times
        except OSError as error:
            unreadable.append(f"{path}: {error.strerror}")
    drivers = [str(path) for path in paths if path.name.startswith("libcuda.so.")]
    return {"files": len(paths), "bytes": read, "drivers": drivers, "unreadable": unreadable, "hits": hits}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(scan(**json.loads(sys.argv[1]))))
    except (OSError, TooSlowError) as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
