"""What a run recommends: the settings of its fastest cell, and a profile made of them with the measured reason above each line.

Nothing is recommended that was not measured as it stands. Settings that were faster each for itself need not be so together, so a run ends with a
cell of them all, TOGETHER, which is recommended where it was the fastest.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle import ROOT
from bundle.base import console, files
from bundle.base.errors import ConfigurationError
from bundle.bench.matrix import TOGETHER
from bundle.bench.rundata import (
    GUARD_METRIC,
    MAIN_METRIC,
    NOT_MEASURED,
    CellData,
    CellResult,
    Changed,
    Comparison,
    Kept,
    Recommendation,
    Result,
    Row,
)
from bundle.config import envfile, settings
from bundle.fit.assessment import SHARE_KEY
from bundle.fit.request import DEFAULT_UTILIZATION

WRITTEN_BY = "written by make bench-apply"

_AT_LATENCY = {"faster": "better", "slower": "worse"}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_RESERVED = ("base", "site")
_WIDTH = 150
_REASON = "# Measured: "
_CONTINUED = "#   "
_OWN_SECTION = "#### Measured: what the profile did not have"


def recommend(result: Result) -> Recommendation:
    """What `result` recommends on top of the control's profile."""
    picked = _pick(result)
    return {"base_profile": picked.control["profile"], "set": picked.changed_settings(), "kept": picked.kept(), "note": " ".join(picked.notes())}


def together(result: Result) -> tuple[list[str], dict[str, str]]:
    """What of `result` to measure at once: the cells that were faster, the best of each axis, and all that they have otherwise than the control.

    Nothing where fewer than two were, or where a cell of the run has just that. Of two that contradict each other the one that gained more counts.
    """
    picked = _pick(result)
    cells: dict[str, str] = {}
    values: dict[str, str] = {}
    for name in picked.faster:
        axis, changed = result["cells"][name]["axis"], picked.tried[name]
        if name != TOGETHER and axis not in cells and all(values.get(key, value) == value for key, value in changed.items()):
            cells[axis] = name
            values |= changed
    known = any(changed == values for name, changed in picked.tried.items() if name != TOGETHER)
    return ([], {}) if known else (list(cells.values()), values)


def apply(result: Result, name: str, root: Path = ROOT) -> Path | None:
    """Write the recommendation of `result` as env/`name`.env and return its path; None where nothing is to be changed, which is said.

    Raises ConfigurationError, with nothing changed, for a name that is no profile's or is taken by a file of somebody else's, and where the
    profile that it would become has errors.
    """
    wanted = recommend(result)
    if not wanted["set"]:
        console.result(f"nothing to write: {wanted['note']}")
        return None
    path = _place(name, root)
    base = root / "env" / f"{wanted['base_profile']}.env"
    if not base.is_file():
        raise ConfigurationError(f"run {result['run']} was measured on profile {wanted['base_profile']}, "
                                 f"and there is no {envfile.display_path(base, root)}",
                                 fix="git log --diff-filter=D -- env/ shows where it went")
    text = profile_text(base.read_text(encoding="utf-8"), result, wanted)
    before = path.read_bytes() if path.exists() else None
    files.write_whole(path, text)
    try:
        settings.load(name, root=root).require()  # as the verbs will read it: with base.env and site.env
    except ConfigurationError:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        raise
    return path


def profile_text(base: str, result: Result, wanted: Recommendation) -> str:
    """The env file `base` with what `wanted` sets in place, below the header by which `apply` knows its own files again.

    Raises ConfigurationError for a setting that no env file can hold.
    """
    lines = base.split("\n")
    if WRITTEN_BY in lines[0]:
        del lines[0]
    new: list[str] = []
    for setting in wanted["set"]:
        key, value = setting["key"], setting["value"]
        _, problem = envfile.parse_assignment(f"{key}={value}", f"run {result['run']}")
        if problem:
            raise ConfigurationError(f"{problem}")
        placed = [*_comment(setting["why"]), f"{key}={envfile.quote(value)}"]
        at = _line_of(key, lines)
        if at is None:
            new += ["", *placed]
        else:
            begin = _without_reason(lines, at)
            lines[begin:at + 1] = placed
    body = "\n".join(lines).rstrip("\n")
    heading = [] if not new or _OWN_SECTION in lines else ["", _OWN_SECTION]
    header = f"# {wanted['base_profile']} with what run {result['run']} measured on {measured_on(result)}; {WRITTEN_BY}."
    return "\n".join([" ".join(header.split()), body, *heading, *new]) + "\n"


def measured_on(result: Result) -> str:
    """The hardware in a few words, with the limit that it was held to."""
    provenance = result["provenance"]
    held = provenance.get("card_gib")
    return (provenance.get("gpu") or "a CPU") + (f" held to {held:g} GiB" if held else "")


def main_workload(result: Result) -> str:
    """The workload that decides: the suite's first."""
    return str(next(iter(result["workloads"])))


def comparison(result: Result, cell: str, workload: str, metric: str) -> Row:
    """How `cell` compares with the control in one metric."""
    found = (one for one in result["comparisons"] if (one["cell"], one["workload"], one["metric"]) == (cell, workload, metric))
    return next(found, Comparison().row(cell, workload, metric))


def success(result: Result, cell: str, workload: str) -> float:
    """The share of the requests of `workload` that `cell` answered; 1 where nobody asked."""
    found = result["cells"][cell]["metrics"].get(workload, {}).get("success")
    return found["median"] if found else 1.0


def times(compared: Row) -> str:
    """A ratio in words: 1.42 times (95 % interval 1.38 to 1.46)."""
    low, high = compared["low"], compared["high"]
    if compared["ratio"] is None:
        return NOT_MEASURED
    return f"{compared['ratio']:.2f} times" + (f" (95 % interval {low:.2f} to {high:.2f})" if low is not None and high is not None else "")


def changes(cell: CellData, control: CellData) -> dict[str, str]:
    """What `cell` has otherwise than `control`, of all that either sets; "" is "not set"."""
    keys = dict.fromkeys([*_assigned(cell), *_assigned(control)])
    return {key: _value(cell, key) for key in keys if _value(cell, key) != _value(control, key)}


def objection(result: Result, name: str) -> str:
    """Why the cell `name` is not to be recommended, judged on the main workload; "" where it is."""
    cell, workload = result["cells"][name], main_workload(result)
    compared, guard = (comparison(result, name, workload, metric) for metric in (MAIN_METRIC, GUARD_METRIC))
    check = cell["output_check"]
    if cell["state"] == "failed":
        return f"failed: {_first_line(cell['reason']) or 'no reason is known'}"
    if check["verdict"] == "different" or compared["verdict"] == "wrong output":
        return f"its answers at temperature 0 are not the control's ({check['equal']} of {check['of']} are equal)"
    if (answered := success(result, name, workload)) < 1:
        return f"only {100 * answered:.1f} % of its requests were answered"
    verdict = compared["verdict"]
    if verdict == "no difference seen":
        smallest = compared["smallest"]
        return f"{times(compared)}: no difference seen" + (f"; one under {100 * smallest:.1f} % would not have shown" if smallest is not None else "")
    if verdict != "faster":
        return NOT_MEASURED if verdict == NOT_MEASURED else f"{times(compared)}: {verdict}"
    if guard["verdict"] == "slower":
        return f"{times(compared)}: faster, but its P99 ITL is {times(guard)} the control's"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Picked:
    """Which cell is recommended, and what became of the others."""

    result: Result
    tried: Mapping[str, Mapping[str, str]]
    """What each cell on the control's profile has otherwise than the control."""
    faster: tuple[str, ...]
    """Those of them that could be recommended, the one that gained most first: it is."""
    refused: Mapping[str, str]
    """Why the others are not."""

    @property
    def control(self) -> CellResult:
        return _control(self.result)

    @property
    def values(self) -> Mapping[str, str]:
        """Each key to set, with its value."""
        return self.tried[self.faster[0]] if self.faster else {}

    def before(self, key: str) -> str:
        """What the control has for `key`, as its profile would say it."""
        value, about = _value(self.control, key), self.result["provenance"]
        if key == SHARE_KEY and key not in _assigned(self.control) and (card := about.get("card_gib")) and (gpu := about.get("gpu_memory_gib")):
            # It was measured with a share of the larger GPU that is as much memory.
            return f"{float(value or DEFAULT_UTILIZATION) * gpu / card:.2f}"
        return value

    def changed_settings(self) -> list[Changed]:
        return [{"key": key, "value": value, "cell": self.faster[0], "why": self._why(self.faster[0], key)} for key, value in self.values.items()]

    def kept(self) -> list[Kept]:
        """The keys that stay as they are although a cell tried them otherwise, with what became of that."""
        outcomes: dict[str, list[str]] = {}
        for name, changed in self.tried.items():
            for key, value in changed.items():
                why = self._less(name) if name in self.faster else self.refused[name]
                if key not in self.values and why != NOT_MEASURED:
                    others = len(changed) - 1
                    beside = f", with {others} other change{'s' if others > 1 else ''}" if others else ""
                    outcomes.setdefault(key, []).append(f"{value or 'not set'} (cell {name}{beside}): {why}")
        return [{"key": key, "value": self.before(key), "why": "; ".join(found) + "."} for key, found in outcomes.items()]

    def notes(self) -> Iterator[str]:
        """What belongs beside the recommendation, a sentence or two each."""
        control, profile = self.result["control"], self.control["profile"]
        if not self.result["complete"]:
            yield "The run is not complete."
        if self.control["state"] != "measured":
            yield f"Nothing can be recommended: the control {control} was not measured."
        elif not self.faster:
            yield f"No setting was faster than {control} beyond noise on {main_workload(self.result)}: keep the profile {profile} as it is."
        cells, _ = together(self.result)
        if TOGETHER in self.result["cells"] and self.result["cells"][TOGETHER]["state"] == "measured":
            found = self.refused.get(TOGETHER) or f"{self._gained(TOGETHER)}: faster"
            yield f"What was faster each for itself was measured at once, too (cell {TOGETHER}): {found}."
        elif len(cells) > 1:
            yield (f"{_listed(cells)} were faster each for itself; all of them at once was not measured, and may be slower than "
                   f"{self.faster[0]} alone.")
        for name, cell in self.result["cells"].items():
            if name != control and name not in self.tried and not objection(self.result, name):
                sets = f" with {' '.join(cell['sets'])}" if cell["sets"] else ""
                yield f"The whole profile {cell['profile']}{sets} (cell {name}) gave {self._gained(name)} the control's output tokens/s."
        if own := [f"{key}={value}" for key, value in _assigned(self.control).items() if key not in self.values]:
            yield f"The control ran with {' '.join(own)} over the profile, and a profile made of this does not hold that."

    def _gained(self, name: str) -> str:
        return times(comparison(self.result, name, main_workload(self.result), MAIN_METRIC))

    def _less(self, name: str) -> str:
        """Why a faster cell is not the one that is recommended."""
        return f"{self._gained(name)}: faster, but less so than {self.faster[0]}"

    def _why(self, name: str, key: str) -> str:
        workload = main_workload(self.result)
        guard = comparison(self.result, name, workload, GUARD_METRIC)
        others = [f"{other}={value}" for other, value in self.tried[name].items() if other != key]
        parts = [f"{self._gained(name)} the output tokens/s with "
                 f"{self.before(key) or 'it not set'}{' (together with ' + ', '.join(others) + ')' if others else ''}, "
                 f"on {workload}, run {self.result['run']}",
                 f"P99 ITL {NOT_MEASURED}" if guard["verdict"] == NOT_MEASURED else
                 f"P99 ITL {_AT_LATENCY.get(guard['verdict'], guard['verdict'])}, {times(guard)} the control's"]
        if self.result["cells"][name]["output_check"]["verdict"] != "same":
            parts.append("answers may differ from the control's, and their quality was not measured")
        return "; ".join(parts) + "."


def _pick(result: Result) -> _Picked:
    cells, control = result["cells"], _control(result)
    tried = {name: changed for name, cell in cells.items() if cell["profile"] == control["profile"] and (changed := changes(cell, control))}
    refused = {name: why for name in tried if (why := objection(result, name))}
    faster = sorted((name for name in tried if name not in refused), key=lambda name: -_ratio(result, name))
    return _Picked(result=result, tried=tried, faster=tuple(faster), refused=refused)


def _control(result: Result) -> CellResult:
    return result["cells"][result["control"]]


def _ratio(result: Result, name: str) -> float:
    return comparison(result, name, main_workload(result), MAIN_METRIC)["ratio"] or 0.0


def _assigned(cell: CellData) -> dict[str, str]:
    return {text.partition("=")[0]: text.partition("=")[2] for text in cell["sets"]}


def _value(cell: CellData, key: str) -> str:
    """What `cell` was measured with; "" is "not set"."""
    return _assigned(cell).get(key, cell["settings"].get(key, ""))


def _place(name: str, root: Path) -> Path:
    path = root / "env" / f"{name}.env"
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigurationError(f"{name!r} cannot be the name of a profile", fix="lower-case letters, digits, - and _, not base or site: NAME=tuned")
    if path.exists() and WRITTEN_BY not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        raise ConfigurationError(f"{envfile.display_path(path, root)} is there already, and make bench-apply did not write it", fix="another NAME=")
    return path


def _line_of(key: str, lines: list[str]) -> int | None:
    """The line that sets `key`, or else the one that has it commented out."""
    for pattern in (f"{re.escape(key)}=.*", f"# ?{re.escape(key)}=.*"):
        if found := [number for number, line in enumerate(lines) if re.fullmatch(pattern, line)]:
            return found[0]
    return None


def _without_reason(lines: list[str], at: int) -> int:
    """Where the reason of an earlier run begins that stands right above line `at`; `at` where there is none."""
    begin = at
    while begin and lines[begin - 1].startswith(_CONTINUED):
        begin -= 1
    return begin - 1 if begin and lines[begin - 1].startswith(_REASON) else at


def _comment(why: str) -> list[str]:
    return textwrap.wrap(why, _WIDTH, initial_indent=_REASON, subsequent_indent=_CONTINUED, break_long_words=False, break_on_hyphens=False)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(".")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
