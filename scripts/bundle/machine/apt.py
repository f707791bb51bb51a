"""The distribution's packages on Debian and Ubuntu. Standard library only: venv.py may need one before there is a `.venv`."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive"}
UPDATE = ["apt-get", "update"]

_ONE_LINE = re.compile(r"deb\s+(?P<options>\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>\S.*)")


def install(*packages: str) -> list[str]:
    """The command that installs `packages` and nothing that they merely recommend.

    It waits for another apt (a fresh cloud machine runs one), and refuses to remove anything: Docker's own packages and the
    distribution's exclude each other, and which one stays is not ours to decide.
    """
    return ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "--yes", "--no-install-recommends", "--no-remove", *packages]


def os_release(text: str) -> dict[str, str]:
    """The fields of /etc/os-release."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key: value.strip().strip("\"'") for key, value in pairs}


def offers(root: Path, suite: str, *, besides: Collection[Path]) -> bool:
    """Whether an apt source in a file that is not one of `besides` has `suite`."""
    return any(suite in found.suites for found in _sources(root) if found.file not in besides)


def source_for(root: Path, suite: str, like: tuple[str, ...]) -> tuple[str, str] | None:
    """Suffix and text of an apt source for `suite`, from the mirror that this machine takes one of the suites `like` from.

    Mirror, keyring and other options are taken over. None where no source has one of the suites `like`, component main.
    """
    for found in _sources(root):
        if not found.suites.isdisjoint(like) and "main" in found.components and not found.uri.startswith("cdrom:"):
            return found.suffix, found.rewritten(suite)
    return None


def mirror(root: Path, like: tuple[str, ...]) -> str | None:
    """The address of the mirror that this machine takes one of the suites `like`, component main, from; None where it takes none."""
    uris = (found.uri.split()[0] for found in _sources(root) if not found.suites.isdisjoint(like) and "main" in found.components)
    return next((uri for uri in uris if not uri.startswith("cdrom:")), None)


class _Source:
    """One apt source, in either of the two formats."""

    def __init__(self, file: Path, suffix: str, fields: dict[str, str]) -> None:
        self.file, self.suffix, self.fields = file, suffix, fields
        self.suites = set(fields["suites"].split())
        self.components = set(fields.get("components", "").split())
        self.uri = fields["uris"].strip()

    def rewritten(self, suite: str) -> str:
        if self.suffix == "list":
            return f"deb {self.fields['options']}{self.uri} {suite} main\n"
        changed = {**self.fields, "types": " deb", "suites": f" {suite}", "components": " main"}
        return "".join(f"{key.title()}:{value}\n" for key, value in changed.items())


def _sources(root: Path) -> list[_Source]:
    folder = root / "etc/apt/sources.list.d"
    found = []
    for file in [root / "etc/apt/sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]:
        if not file.is_file():
            continue
        text = "\n".join(line for line in file.read_text(errors="replace").splitlines() if not line.lstrip().startswith("#"))
        found += _stanzas(file, text) if file.suffix == ".sources" else _lines(file, text)
    return found


def _lines(file: Path, text: str) -> list[_Source]:
    matches = (_ONE_LINE.fullmatch(line.split("#")[0].strip()) for line in text.splitlines())
    return [_Source(file, "list", {"options": m["options"] or "", "uris": m["uri"], "suites": m["suite"], "components": m["components"]})
            for m in matches if m]


def _stanzas(file: Path, text: str) -> list[_Source]:
    """The deb822 stanzas that are on; a value keeps its continuation lines (an inline key in Signed-By has many)."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and key:
                fields[key] += f"\n{line}"
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.rstrip()
        on = fields.get("enabled", "yes").strip().lower() not in ("no", "false", "0", "off")
        if on and "deb" in fields.get("types", "").split() and {"uris", "suites"} <= fields.keys():
            found.append(_Source(file, "sources", fields))
    return found
