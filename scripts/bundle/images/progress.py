"""What BuildKit says while it builds (`--progress plain`), as one line per step: the current one named, each finished one with its time."""

import re

_LINE = re.compile(r"#(\d+) (.*)")
_NAMED = re.compile(r"\[(?P<stage>[^\]]+)\](?: (?P<command>.*))?")
_DONE = re.compile(r"DONE ([\d.]+)s")
_MOUNT = re.compile(r"--mount=\S+\s*")
_WIDTH = 100
_WORTH_SAYING_S = 1.0


class Progress:
    """Feed it every line of the output; it answers with the line to show, or with nothing."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._begun: set[str] = set()

    def feed(self, line: str) -> str | None:
        """`line` as BuildKit printed it, without its end. None for what needs no saying: output, cached and instant steps."""
        match = _LINE.match(line)
        if match is None:
            return None
        step, said = match.groups()
        if named := _NAMED.fullmatch(said):
            self._names.setdefault(step, _name(named["stage"], named["command"] or ""))
            return None
        name = self._names.get(step, "")
        if not name or said == "CACHED":
            return None
        if done := _DONE.fullmatch(said):
            return f"✓ {name} {done[1]}s" if step in self._begun or float(done[1]) >= _WORTH_SAYING_S else None
        if said.startswith("ERROR"):
            return f"✗ {name}"
        if step not in self._begun:
            self._begun.add(step)
            return f"· {name}"
        return None


def _name(stage: str, command: str) -> str:
    """`[engine cpu-build 2/2] RUN --mount=… /build/install.sh …` → `cpu-build 2/2: RUN /build/install.sh …`; "" for BuildKit's own steps."""
    where = stage.split(" ", 1)[-1]
    if where.startswith("internal"):
        return ""
    what = " ".join(_MOUNT.sub("", command).split())
    if where == stage:
        return what
    name = f"{where}: {what}"
    return name if len(name) <= _WIDTH else name[: _WIDTH - 1] + "…"
