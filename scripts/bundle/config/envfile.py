"""Read and write env files: `KEY=VALUE` lines, with the file and line kept for every value.

Three programs read the same files: this one (python-dotenv), Compose, and the engine's entrypoint. Each knows quoting,
comments and interpolation that the others read differently, so only the part that all three read alike is accepted:

    # a comment line                    KEY=bare value                    KEY='literal, may hold $ and #'
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bundle import ROOT

_LINE = re.compile(r"(?P<key>[^=\s]+)=(?P<value>.*)")
_KEY = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One value and where it stands; `line` is 0 where the source has no lines (an option, the environment)."""

    key: str
    value: str
    file: str
    line: int

    @property
    def origin(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with a line; `severity` is "error" (refused) or "warning" (shown)."""

    file: str
    line: int
    key: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.key, self.message) if part)


def display_path(path: Path, root: Path = ROOT) -> str:
    """How messages name `path`: relative to the bundle where it lies inside."""
    absolute = path.absolute()
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(path)


def parse(path: Path, *, root: Path = ROOT) -> tuple[list[Entry], list[Problem]]:
    """Every good line of `path` as an Entry, every bad one as a Problem. Never raises for what the file holds or that it is not there."""
    file = display_path(path, root)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return [], [Problem(file=file, line=0, key="", message="no such file")]
    except OSError as error:
        return [], [Problem(file=file, line=0, key="", message=f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        line = path.read_bytes()[:error.start].count(b"\n") + 1
        return [], [Problem(file=file, line=line, key="", message="not UTF-8; save the file as UTF-8 without a byte-order mark")]
    return parse_text(text, file)


def parse_text(text: str, file: str) -> tuple[list[Entry], list[Problem]]:
    """`parse` for text that is already read; `file` is what messages call it."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    if "\r" in text:  # one message for the file, not one for every line
        problems.append(Problem(file=file, line=text[:text.index("\r")].count("\n") + 1, key="",
                                message=f"has carriage returns; save the file with Unix line ends (sed -i 's/\\r//' {file})"))
        text = text.replace("\r", "")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip(" \t") or line.startswith("#"):
            continue
        key, fault = _fault(line)
        if not fault and key in entries:
            fault = f"set twice in this file (first in line {entries[key].line}); delete one of the two lines"
        if fault:
            problems.append(Problem(file=file, line=number, key=key, message=fault))
        else:
            entries[key] = Entry(key=key, value=_value(line), file=file, line=number)
    return list(entries.values()), problems


def parse_assignment(text: str, file: str) -> tuple[Entry | None, Problem | None]:
    """KEY=VALUE from an option or the environment: the value is literal, nothing needs quoting."""
    key, equals, value = text.partition("=")
    fault = ""
    if not equals:
        fault = "not of the form KEY=VALUE"
    elif not _KEY.fullmatch(key):
        fault = _key_fault(key)
    elif any(ord(c) < 32 or ord(c) == 127 for c in value) or quote(value) is None:
        fault = "an env file cannot hold this value: it has a control character, or needs quotes and has a quote or \\\\ itself"
    if fault:
        return None, Problem(file=file, line=0, key=key, message=fault)
    return Entry(key=key, value=value.strip(), file=file, line=0), None


def render(entries: Iterable[Entry]) -> str:
    """Env file text that parses to the same keys and values, each line under a comment with its origin."""
    return "".join(f"# {entry.origin}\n{entry.key}={quote(entry.value) or ''}\n" for entry in entries)


def quote(value: str) -> str | None:
    """`value` as it stands after the `=`, in single quotes only where it needs them; None where no spelling is read alike by all."""
    if not _bare_fault(value):
        return value
    return None if _quoted_fault(f"'{value}'") else f"'{value}'"


def _value(line: str) -> str:
    # python-dotenv takes 40 ms to import: not needed to show a usage message.
    from dotenv.parser import parse_stream

    (binding,) = parse_stream(io.StringIO(line))
    return binding.value or ""


def _fault(line: str) -> tuple[str, str]:
    """The key of `line`, and what is wrong with the line ("" when nothing is)."""
    if "\ufeff" in line:
        return "", "holds a byte-order mark; save the file as UTF-8 without one"
    if control := next((c for c in line if (ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160), ""):
        return "", f"holds the control character U+{ord(control):04X}; delete it"
    if line[0] in " \t":
        return "", "starts with a blank; KEY=VALUE starts at the first column"
    if re.match(r"export\s", line):
        return "", "`export` is shell; write KEY=VALUE alone"
    match = _LINE.fullmatch(line)
    if not match:
        return "", f"not KEY=VALUE: {line[:40]!r}; no blank before the `=`, and every line that is no setting starts with `#`"
    key, value = match["key"], match["value"]
    if not _KEY.fullmatch(key):
        return key, _key_fault(key)
    if value[:1].isspace():
        return key, f"a blank after the `=`; write {key}={value.strip()}"
    value = value.rstrip()
    return key, _quoted_fault(value) if value.startswith("'") else _bare_fault(value)


def _key_fault(key: str) -> str:
    if _KEY.fullmatch(key.upper()):
        return f"keys are upper-case; write {key.upper()}"
    return "a key is upper-case letters, digits and underscores, and starts with a letter"


def _bare_fault(value: str) -> str:
    if value.startswith('"'):
        return "double quotes are read differently by Compose; use single quotes, or none"
    if value.startswith("'"):
        return "a bare value cannot start with a single quote"
    if value != value.strip():
        return "starts or ends with a blank"
    if "$" in value:
        return "`$` starts an interpolation in Compose; values are literal here. Put the value in single quotes"
    if re.search(r"(^|\s)#", value):
        return "a comment after a value is not allowed; put it in a line of its own, or the value in single quotes"
    return ""


def _quoted_fault(value: str) -> str:
    if len(value) < 2 or not value.endswith("'"):
        if value.count("'") > 1:
            return "text after the closing quote; a comment goes in a line of its own"
        return "the single quote does not end in this line; a value is one line"
    inner = value[1:-1]
    if "'" in inner:
        return "a single quote inside single quotes; no spelling of it is read alike by all readers"
    if "\\\\" in inner or inner.endswith("\\"):
        return "`\\\\`, or a backslash at the end, in single quotes is read differently by Compose; leave the quotes or the backslash out"
    return ""
