"""The benchmark matrix, env/matrix.yaml: cells (settings to compare), workloads (load to compare them under) and suites of both.

Everything that is wrong in the file comes at once, by file and line.
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.base.text import near
from bundle.config import envfile, profiles
from bundle.config.catalogue import parse_number
from bundle.config.envfile import Problem

OUTPUTS = ("same", "may differ")
TOGETHER = "together"
"""The cell that a run itself makes, of what was faster each for itself."""


class _Number(NamedTuple):
    """A number that a field takes, whole or not, from `least` to `most`."""

    whole: bool
    least: float
    most: float = math.inf

    def fault(self, text: str) -> str:
        """What is wrong with `text`; "" when nothing is."""
        number = parse_number(text, "int" if self.whole else "float")
        if number is not None and self.least <= number <= self.most:
            return ""
        bounds = f"from {self.least:g} to {self.most:g}" if self.most < math.inf else f"of at least {self.least:g}"
        return f"{text!r} is not a {'whole ' if self.whole else ''}number {bounds}."


_COUNT = _Number(whole=True, least=1)
_POSITIVE = _Number(whole=False, least=0.001)
_DATASETS: Mapping[str, Mapping[str, _Number]] = {
    "random": {"random-input-len": _COUNT, "random-output-len": _COUNT, "random-range-ratio": _Number(whole=False, least=0, most=0.99)},
    "prefix_repetition": {f"prefix-repetition-{what}": _COUNT for what in ("prefix-len", "suffix-len", "num-prefixes", "output-len")},
}
"""The datasets of `vllm bench serve` that it makes itself, without a file or a network, and the options of each."""
_OPTIONS: Mapping[str, _Number] = {"num-prompts": _COUNT, "max-concurrency": _COUNT, "request-rate": _POSITIVE, "burstiness": _POSITIVE}
_OPTIONAL = ("random-range-ratio", "max-concurrency", "request-rate", "burstiness")
_SWITCHES = ("ignore-eos",)
_OF_THE_BENCH = (
    "base-url", "host", "port", "endpoint", "backend", "model", "served-model-name", "tokenizer", "tokenizer-mode", "seed", "num-warmups",
    "percentile-metrics", "metric-percentiles", "goodput", "save-result", "save-detailed", "append-result", "result-dir", "result-filename",
    "metadata", "label", "profile", "ready-check-timeout-sec", "disable-tqdm")
"""Options that the bench gives itself: one in a workload would measure something else than the report says."""

_LIMITS: Mapping[str, _Number] = {"ttft_ms_p99": _POSITIVE, "itl_ms_p99": _POSITIVE, "success": _Number(whole=False, least=0.001, most=1),
                                  "start": _COUNT, "most": _COUNT}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True)
class Slo:
    """A limit that the P99 of every load must keep, in milliseconds, with the share of requests that must succeed.

    The most concurrent requests that keep it are searched from `start` to `most`.
    """

    ttft_ms_p99: float
    itl_ms_p99: float
    success: float
    start: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A load: `load` holds options of `vllm bench serve` without their dashes, values as text; a switch that is on is "true".

    Closed loop: max-concurrency requests are always under way. Open loop: request-rate arrive in a second, however long they take.
    """

    name: str
    about: str
    load: Mapping[str, str]
    slo: Slo | None

    @property
    def longest(self) -> int:
        """The most tokens that one of its requests has, prompt and answer together."""
        lengths = sum(parse_number(value, "int") or 0 for name, value in self.load.items() if name.endswith("-len"))
        return math.ceil(lengths * (1 + float(self.load.get("random-range-ratio", "0"))))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A deployment to measure: `sets` (KEY=VALUE; KEY= unsets) over a profile.

    `outputs`: "same" where its answers at temperature 0 must be the control's, "may differ" where it computes with other kernels or fewer bits.
    """

    name: str
    axis: str
    about: str
    profile: str
    sets: tuple[str, ...]
    outputs: str


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What one run measures: each cell against `control`. `rounds`: visits to each cell, forwards and backwards in turn;
    `repeats`: measured loads of each workload in a visit; `minutes`: it has ended by then, with what there is (0: whenever it is through)."""

    name: str
    about: str
    control: Cell
    cells: tuple[Cell, ...]
    workloads: tuple[Workload, ...]
    rounds: int
    repeats: int
    minutes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The whole file, in its order; `text_sha256` is of its bytes."""

    path: Path
    text_sha256: str
    suites: Mapping[str, Suite]
    cells: Mapping[str, Cell]
    workloads: Mapping[str, Workload]

    def suite(self, name: str, *, cells: Sequence[str] = (), workloads: Sequence[str] = ()) -> Suite:
        """The suite `name`, narrowed to its own `cells` and `workloads` where some are named; the control is always in it.

        Raises ConfigurationError for a name that is not known, or not in this suite.
        """
        if name not in self.suites:
            raise ConfigurationError(f"no suite {name!r} in {envfile.display_path(self.path)}.{near(name, self.suites)}",
                                     fix=f"suites: {', '.join(self.suites)}")
        found = self.suites[name]
        members = {cell.name: cell for cell in (found.control, *found.cells)}
        loads = {workload.name: workload for workload in found.workloads}
        self._refuse("cell", cells, members, self.cells, found)
        self._refuse("workload", workloads, loads, self.workloads, found)
        return replace(found, cells=tuple(cell for cell in found.cells if not cells or cell.name in cells),
                       workloads=tuple(workload for workload in found.workloads if not workloads or workload.name in workloads))

    def _refuse(self, kind: str, wanted: Sequence[str], members: Collection[str], known: Collection[str], suite: Suite) -> None:
        for name in wanted:
            if name not in members:
                why = f"is not in the suite {suite.name}" if name in known else f"is not known.{near(name, members)}"
                raise ConfigurationError(f"{kind} {name!r} {why}", fix=f"{kind}s of the suite {suite.name}: {', '.join(members)}")


_NO_CELL = Cell(name="", axis="", about="", profile="", sets=(), outputs="")
"""In the place of a control that is not there, until the file is refused for it."""


def load(path: Path = ROOT / "env" / "matrix.yaml") -> Matrix:
    """The matrix in `path`. Raises ConfigurationError with everything that is wrong in the file, by line; whether a cell's settings are
    right, `settings.load` says."""
    shown = envfile.display_path(path)
    try:
        raw = path.read_bytes()
        tree, problems = _parse(raw.decode("utf-8"), shown)
    except OSError as error:
        raise ConfigurationError(f"{shown}: cannot be read: {error.strerror}", fix="git checkout env/matrix.yaml") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{shown}: not UTF-8", fix="save the file as UTF-8") from error
    reader = _Reader(shown, problems)
    sections = reader.fields(tree, ("workloads", "cells", "suites"))
    workloads = {name: _workload(reader, name, at) for name, at in reader.named(sections, "workloads")}
    cells = {name: _cell(reader, name, at) for name, at in reader.named(sections, "cells")}
    suites = {name: _suite(reader, name, at, cells, workloads) for name, at in reader.named(sections, "suites")}
    reader.require()
    return Matrix(path=path, text_sha256=hashlib.sha256(raw).hexdigest(), suites=suites, cells=cells, workloads=workloads)


@dataclass(frozen=True, kw_only=True)
class _At:
    """A value of the file with its line (of its key, where it has one) and its path in the file, such as cells.seed.profile.

    Scalars are text as it stands there, so that 0.90 and true are what the operator wrote.
    """

    value: "str | list[_At] | dict[str, _At]"
    line: int
    where: str


def _parse(text: str, file: str) -> tuple[_At, list[Problem]]:
    """The file's tree, and the keys in it that stand twice: YAML itself would keep the last without a word."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigurationError(f"{file}:{mark.line + 1 if mark else 1}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: not YAML: {error}") from error
    problems: list[Problem] = []

    def tree(node: Any, line: int, where: str) -> _At:
        value: Any = "" if node is None or node.tag == "tag:yaml.org,2002:null" else node.value
        if isinstance(node, yaml.SequenceNode):
            value = [tree(item, item.start_mark.line + 1, where) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            value = {}
            for key, item in node.value:
                at, name = key.start_mark.line + 1, str(key.value)
                if name in value:
                    problems.append(Problem(file=file, line=at, key=_joined(where, name), message=f"stands twice (first in line {value[name].line})"))
                else:
                    value[name] = tree(item, at, _joined(where, name))
        return _At(value=value, line=line, where=where)

    return tree(root, 1, ""), problems


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


class _Reader:
    """Reads fields out of the tree and collects what is wrong with them; what is wrong reads as empty, or 0."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file, self.problems = file, problems

    def wrong(self, at: _At, message: str) -> None:
        self.problems.append(Problem(file=self.file, line=at.line, key=at.where, message=message))

    def require(self) -> None:
        """Raise ConfigurationError with every problem, in the order of lines; return when there is none."""
        if self.problems:
            found = sorted(self.problems, key=lambda problem: problem.line)
            count = f"{len(found)} errors" if len(found) > 1 else "an error"
            raise ConfigurationError("\n".join([f"{count} in {self.file}", *(f"  {problem}" for problem in found)]))

    def fields(self, at: _At, required: Collection[str], optional: Collection[str] = ()) -> dict[str, _At]:
        """The fields of a mapping that are known; missing and unknown ones are problems."""
        if not isinstance(at.value, dict):
            self.wrong(at, f"needs fields: {', '.join((*required, *optional))}")
            return {}
        known = (*required, *optional)
        for name, field in at.value.items():
            if name not in known:
                self.wrong(field, f"unknown.{near(name, known)} Known are: {', '.join(known)}")
        for name in required:
            if name not in at.value:
                self.wrong(at, f"has no {name}")
        return {name: field for name, field in at.value.items() if name in known}

    def named(self, sections: Mapping[str, _At], section: str) -> Iterator[tuple[str, _At]]:
        """The entries of a section by name."""
        if section not in sections:
            return
        at = sections[section]
        if not isinstance(at.value, dict) or not at.value:
            self.wrong(at, f"holds no {section}: write `name:` with its fields below")
            return
        for name, entry in at.value.items():
            if not _NAME.fullmatch(name):
                self.wrong(entry, "a name is lower-case letters, digits and dashes: files are named after it")
            if (section, name) == ("cells", TOGETHER):
                self.wrong(entry, "the bench itself makes a cell of this name, of what was faster each for itself. Give this one another")
            yield name, entry

    def text(self, fields: Mapping[str, _At], name: str) -> str:
        if name not in fields:
            return ""
        at = fields[name]
        if isinstance(at.value, str) and at.value.strip():
            return at.value.strip()
        self.wrong(at, "needs a text")
        return ""

    def texts(self, fields: Mapping[str, _At], name: str) -> list[tuple[str, _At]]:
        """The texts of a list, each with its place."""
        if name not in fields:
            return []
        at = fields[name]
        if at.value == [] and name == "cells":  # a suite of its control alone: its starts, cold and warm
            return []
        if not isinstance(at.value, list) or not at.value or not all(isinstance(item.value, str) and item.value for item in at.value):
            self.wrong(at, "needs a list of texts: [a, b]. A text with ` #`, `: `, a comma or braces stands in single quotes")
            return []
        return [(str(item.value), item) for item in at.value]

    def number(self, fields: Mapping[str, _At], name: str, kind: _Number) -> float:
        text = self.text(fields, name)
        if text and (fault := kind.fault(text)):
            self.wrong(fields[name], fault)
            return 0
        return float(text or 0)

    def picked(self, fields: Mapping[str, _At], name: str, known: Collection[str]) -> list[str]:
        """The names in a list of a suite, each known and there once."""
        found: list[str] = []
        for text, at in self.texts(fields, name):
            if text not in known:
                self.wrong(at, f"no {name.removesuffix('s')} {text!r}.{near(text, known)}")
            elif text in found:
                self.wrong(at, f"{text!r} stands twice in this list")
            else:
                found.append(text)
        return found


def _workload(reader: _Reader, name: str, at: _At) -> Workload:
    fields = reader.fields(at, ("about", "load"), ("slo",))
    about = reader.text(fields, "about")
    options = _load(reader, fields["load"]) if "load" in fields else {}
    slo = _slo(reader, fields["slo"]) if "slo" in fields else None
    if slo and "request-rate" in options:
        reader.wrong(fields["slo"], "the search decides how many requests are under way, and request-rate when they come. Delete one of the two.")
    return Workload(name=name, about=about, load=options, slo=slo)


def _load(reader: _Reader, at: _At) -> dict[str, str]:
    """The options of a load, each right alone and all of them together."""
    if not isinstance(at.value, dict):
        reader.wrong(at, "needs options of `vllm bench serve`, such as dataset-name: random")
        return {}
    dataset = reader.text(at.value, "dataset-name")
    if dataset not in _DATASETS:
        reader.wrong(at.value.get("dataset-name", at), f"dataset-name is one of {', '.join(_DATASETS)}.{near(dataset, _DATASETS)}")
        return {}
    numbers = {**_OPTIONS, **_DATASETS[dataset]}
    options = {"dataset-name": dataset}
    for name, field in at.value.items():
        if name in numbers:
            reader.number(at.value, name, numbers[name])
        elif name in _SWITCHES:
            if field.value != "true":
                reader.wrong(field, "is a switch: true, or no line")
        elif name != "dataset-name":
            reader.wrong(field, _option_fault(name, dataset, (*numbers, *_SWITCHES)))
        options[name] = field.value if isinstance(field.value, str) else ""
    for name in numbers:
        if name not in at.value and name not in _OPTIONAL:
            reader.wrong(at, f"has no {name}")
    for fault in _contradictions(options):
        reader.wrong(at, fault)
    return options


def _option_fault(name: str, dataset: str, usable: Collection[str]) -> str:
    if name.startswith("-"):
        return f"options stand without dashes. Use {name.lstrip('-')}."
    if name in _OF_THE_BENCH:
        return "the bench sets this option itself. Delete the line."
    if other := next((other for other, options in _DATASETS.items() if name in options), ""):
        return f"an option of the dataset {other}, and this load is of {dataset}. Delete the line."
    return f"not an option that a workload may set.{near(name, usable)} It may set: {', '.join(('dataset-name', *usable))}"


def _contradictions(options: Mapping[str, str]) -> Iterator[str]:
    def number(name: str) -> int | None:
        return int(options[name]) if re.fullmatch(r"\d+", options.get(name, ""), re.ASCII) else None

    prompts, together, prefixes = number("num-prompts"), number("max-concurrency"), number("prefix-repetition-num-prefixes")
    if ("max-concurrency" in options) == ("request-rate" in options):
        yield "needs one of max-concurrency (closed loop: so many requests always under way) and request-rate (open loop: so many come in a second)"
    if "burstiness" in options and "request-rate" not in options:
        yield "burstiness is about when requests come: it needs request-rate"
    if prompts and together and prompts < together:
        yield f"num-prompts={prompts} requests are never max-concurrency={together} at once. Use num-prompts={2 * together} or more."
    if prompts and prefixes and prompts % prefixes:
        yield f"num-prompts={prompts} is no multiple of prefix-repetition-num-prefixes={prefixes}, and vLLM would leave out the rest"


def _slo(reader: _Reader, at: _At) -> Slo:
    fields = reader.fields(at, tuple(_LIMITS))
    value = {name: reader.number(fields, name, kind) for name, kind in _LIMITS.items()}
    if 0 < value["most"] < value["start"]:
        reader.wrong(at, f"the search would start at {value['start']:g} and end at {value['most']:g}. Use a start that is not above `most`.")
    return Slo(ttft_ms_p99=value["ttft_ms_p99"], itl_ms_p99=value["itl_ms_p99"], success=value["success"],
               start=int(value["start"]), most=int(value["most"]))


def _cell(reader: _Reader, name: str, at: _At) -> Cell:
    fields = reader.fields(at, ("axis", "about", "profile"), ("set", "outputs"))
    axis, about, profile = (reader.text(fields, key) for key in ("axis", "about", "profile"))
    known = profiles.names()
    if profile and profile not in known:
        reader.wrong(fields["profile"], f"no profile {profile!r} (env/{profile}.env).{near(profile, known)}")
    sets = {}
    for text, place in reader.texts(fields, "set"):
        entry, problem = envfile.parse_assignment(text, reader.file)
        if problem:
            reader.wrong(place, f"{text!r}: {problem.message}")
        elif entry and entry.key in sets:
            reader.wrong(place, f"sets {entry.key} twice")
        elif entry:
            sets[entry.key] = text
    outputs = reader.text(fields, "outputs") or OUTPUTS[0]
    if outputs not in OUTPUTS:
        reader.wrong(fields["outputs"], f"{outputs!r} is none of: {', '.join(OUTPUTS)}.{near(outputs, OUTPUTS)}")
    return Cell(name=name, axis=axis, about=about, profile=profile, sets=tuple(sets.values()), outputs=outputs)


def _suite(reader: _Reader, name: str, at: _At, cells: Mapping[str, Cell], workloads: Mapping[str, Workload]) -> Suite:
    fields = reader.fields(at, ("about", "control", "cells", "workloads", "rounds", "repeats"), ("minutes",))
    about, control = reader.text(fields, "about"), reader.text(fields, "control")
    members, loads = reader.picked(fields, "cells", cells), reader.picked(fields, "workloads", workloads)
    if control and control not in cells:
        reader.wrong(fields["control"], f"no cell {control!r}.{near(control, cells)}")
    if control in members:
        reader.wrong(fields["cells"], f"{control!r} is the control: it is measured beside every cell, and stands in no list")
    rounds, repeats = (int(reader.number(fields, key, _COUNT)) for key in ("rounds", "repeats"))
    if rounds * repeats == 1:
        reader.wrong(fields["repeats"], "one load of each workload shows no spread, and nothing could be compared. Use 2 or more.")
    return Suite(name=name, about=about, control=cells.get(control, _NO_CELL), cells=tuple(cells[one] for one in members),
                 workloads=tuple(workloads[one] for one in loads), rounds=rounds, repeats=repeats,
                 minutes=reader.number(fields, "minutes", _POSITIVE))
