"""The file of API keys: a line `KEY NAME`, or `KEY NAME WORD` with one of RIGHTS; a key alone has no name. Empty lines and lines that start with #
do not count.

HAProxy reads the same file (docker/gateway/haproxy.cfg): up to the first blank is the key, what follows is what it knows of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

SHORTEST = 16
"""Characters of a key; the gateway takes no shorter one, whatever the file says."""
METRICS_ONLY = "metrics-only"
CLASSES = ("interactive", "batch")
"""Whose requests come first, where a model schedules by priority (ENGINE_SCHEDULING_POLICY); a key without a class counts as interactive."""
RIGHTS = (METRICS_ONLY, *CLASSES)
FORM = f"one per line: KEY NAME, the key one word of at least {SHORTEST} ASCII characters (`make keys ADD=name` writes one)"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,59}")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key. What may be shown of it is its name."""

    secret: str = field(repr=False)
    name: str = ""
    metrics_only: bool = False
    class_: str = ""
    """One of CLASSES, or "" for none."""

    @property
    def note(self) -> str:
        """What the gateway keeps beside the key, and writes into its log."""
        return " ".join(filter(None, (self.name or "-", METRICS_ONLY if self.metrics_only else self.class_)))

    @property
    def line(self) -> str:
        """Its line of the file."""
        return f"{self.secret} {self.note}\n"


def read(text: str) -> tuple[Sequence[Key], Sequence[tuple[int, str]]]:
    """The keys of a file, and what is wrong with it: line number and reason, in which no key is shown."""
    keys: list[Key] = []
    faults: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("#") or not line.strip():
            continue
        found = _key(line, keys)
        if isinstance(found, Key):
            keys.append(found)
        else:
            faults.append((number, found))
    return keys, faults


def name_fault(name: str, keys: Sequence[Key]) -> str:
    """Why no new key may have this name; "" when one may."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name: letters, digits and . _ @ -, at most 60"
    if name.endswith(METRICS_ONLY):
        return f"{name} is no name: {METRICS_ONLY} stands behind one"
    return f"there is a key of the name {name} already" if any(key.name == name for key in keys) else ""


def _key(line: str, keys: Sequence[Key]) -> Key | str:
    secret, *rest = line.split()
    name = rest[0] if rest and rest[0] != "-" else ""
    if line[0].isspace() or not (line.isascii() and line.strip("\t").isprintable()):
        return "a key is one word of ASCII characters, at the start of its line"
    if len(secret) < SHORTEST:
        return f"this key has {len(secret)} characters; less than {SHORTEST} can be guessed, and the gateway takes none of those"
    if len(rest) > 2 or not set(rest[1:]) <= set(RIGHTS):
        return f"behind the key stands its name, one word, and then at most one of {', '.join(RIGHTS)}"
    if name and (fault := name_fault(name, keys)):
        return fault
    if any(key.secret == secret for key in keys):
        return "this key stands in the file twice"
    right = rest[1] if len(rest) > 1 else ""
    return Key(secret=secret, name=name, metrics_only=right == METRICS_ONLY, class_=right if right in CLASSES else "")
