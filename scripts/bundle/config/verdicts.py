"""What each optimization is worth: the records of env/optimizations.yaml, and which of them a deployment turns on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.config.catalogue import TARGETS, env_key
from bundle.config.envfile import Entry

VERDICTS = ("effective", "neutral", "inert", "harmful", "removed")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One optimization. `name` is an environment variable or a flag; `match` limits the record to some of its values."""

    name: str
    group: str
    verdict: str
    reason: str
    evidence: str
    read_by: str
    readers: Sequence[str] = ()
    """Files that hold the variable's name, as patterns of the end of their paths."""
    reference: str
    seed: str = ""
    value: str = ""
    match: str = ""
    scope: Mapping[str, Any]
    successor: str = ""
    risk: str = ""
    measured: str
    gone: str = ""
    valid: Mapping[str, Any] = field(default_factory=dict)
    expects: str = ""

    @property
    def key(self) -> str:
        """The env key that turns it on."""
        return env_key(self.name) if self.name.startswith("--") else self.name

    @property
    def targets(self) -> tuple[str, ...]:
        """The images where it means anything."""
        return tuple(self.scope.get("targets", TARGETS))

    def applies(self, value: str) -> bool:
        return re.search(self.match, value) is not None

    def fault(self, value: str) -> str:
        """What is wrong with `value`; "" when nothing is, or nothing is known."""
        if not self.valid:
            return ""
        if "pattern" in self.valid:
            right = re.fullmatch(self.valid["pattern"], value) is not None
        else:
            right = re.fullmatch(r"\d+", value, re.ASCII) is not None and self.valid["minimum"] <= int(value) <= self.valid["maximum"]
        return "" if right else f"{value!r} is not {self.expects}."

    def use(self, value: str) -> str:
        """What to write instead of this setting with `value`; "" where nothing is needed."""
        return self.successor.replace("{value}", value)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One optimization that a deployment turns on, and what it does there."""

    entry: Entry
    verdict: str
    reason: str
    successor: str


@cache
def load(root: Path = ROOT) -> tuple[Record, ...]:
    """All records, in the file's order. Raises ConfigurationError when the file is not what it should be."""
    import yaml

    path = root / "env" / "optimizations.yaml"
    # The C loader reads the file in a tenth of the time; a PyYAML built without libyaml has only the other.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        records = tuple(Record(**raw) for raw in yaml.load(path.read_text(encoding="utf-8"), Loader=loader))  # noqa: S506  (both are safe loaders)
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise ConfigurationError(f"{path}: cannot be used: {error}", fix="git checkout env/optimizations.yaml") from error
    if unknown := {record.verdict for record in records} - set(VERDICTS):
        raise ConfigurationError(f"{path}: verdict {', '.join(sorted(unknown))} is none of {', '.join(VERDICTS)}")
    return records


def removed(records: tuple[Record, ...]) -> dict[str, Record]:
    """The records of what the engine no longer knows, by env key."""
    return {record.key: record for record in records if record.verdict == "removed"}


def turned_on(entries: Mapping[str, Entry], records: tuple[Record, ...], target: str) -> list[Verdict]:
    """The optimizations that `entries` turn on in the image `target`, in the entries' order."""
    found = []
    for entry in entries.values():
        record = next((record for record in records if record.key == entry.key and record.applies(entry.value)), None)
        if record is None or record.verdict == "removed" or entry.value in ("", "false"):
            continue
        if target in record.targets:
            found.append(Verdict(entry=entry, verdict=record.verdict, reason=record.reason, successor=record.use(entry.value)))
        elif not record.name.startswith("--"):
            found.append(Verdict(entry=entry, verdict="inert", reason=f"nothing in the {target} image reads it", successor=""))
    return found
