"""Words for people: near misses."""

import difflib
from collections.abc import Iterable


def near(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` for the nearest of `known`, or "" when none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f" Did you mean {close[0]}?" if close else ""
