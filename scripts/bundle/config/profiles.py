"""The profiles there are: every env file but base and site."""

from pathlib import Path

from bundle import ROOT


def names(root: Path = ROOT) -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in (root / "env").glob("*.env") if path.stem not in ("base", "site"))


def description(name: str, root: Path = ROOT) -> str:
    """What a profile is for: the comment that its file starts with."""
    first = (root / "env" / f"{name}.env").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
