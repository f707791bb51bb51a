"""Runs inside an engine image: does the engine's own parser agree with the catalogue, flag by flag? Prints a JSON list of disagreements.

    python catalogue_probe.py cuda|cpu CATALOGUE FOLDER_OF_CATALOGUE_WRITER

Each flag is given what the catalogue calls valid, which the parser must take, and what it calls invalid, which the parser must refuse.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

VALID = {"int": ("1",), "float": ("0.5",), "human_int": ("8K", "1"), "json": ("{}",), "str": ("name=text",)}
INVALID = {"int": ("1.5", "8K", "word"), "float": ("word",), "human_int": ("8X", "word"), "json": ("{", "word")}


def verdict(parser: Any, argv: Sequence[str]) -> argparse.Namespace | None:
    """What vLLM's parser makes of `argv`; None when it refuses. Its own preparation of the command line (--config files) is left out."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return argparse.ArgumentParser.parse_args(parser, [*argv])
        except SystemExit:
            return None


def disagreements(parser: Any, flags: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, flag in flags.items():
        for spelling in (name, *flag["aliases"]):
            yield from bool_disagreements(parser, spelling, flag) if flag["type"] == "bool" else value_disagreements(parser, spelling, flag)


def bool_disagreements(parser: Any, spelling: str, flag: Mapping[str, Any]) -> Iterator[str]:
    on = verdict(parser, [spelling])
    if on is None:
        yield f"{spelling} is refused"
    for off in filter(None, (flag["negative"], *flag["negative_aliases"])):
        if verdict(parser, [off]) is None:
            yield f"{off} is refused"
        elif verdict(parser, [off]) == on:
            yield f"{off} does the same as {spelling}"
    if verdict(parser, [f"{spelling}=true"]) is not None:
        yield f"{spelling} takes a value"


def value_disagreements(parser: Any, spelling: str, flag: Mapping[str, Any]) -> Iterator[str]:
    kind = flag["type"]
    for value in (*(flag["choices"] or VALID[kind]), *flag["words"], *(flag["known"] or ())):
        if verdict(parser, [spelling, value]) is None:
            yield f"{spelling} {value} is refused"
    for value in ("no such choice",) if flag["choices"] else INVALID.get(kind, ()):
        if verdict(parser, [spelling, value]) is not None:
            yield f"{spelling} {value} is accepted"
    several = (flag["choices"] or VALID[kind])[:1] * 2
    # With the model in front: further values must not be taken for it.
    if (verdict(parser, ["model", spelling, *several]) is not None) != (flag["nargs"] in ("+", "*")):
        yield f"{spelling} {' '.join(several)} does not match nargs {flag['nargs']}"


if __name__ == "__main__":
    target, catalogue, folder = sys.argv[1:]
    sys.path.insert(0, folder)
    import catalogue_writer

    answer_to, sys.stdout = sys.stdout, sys.stderr
    found = list(disagreements(catalogue_writer.serve_parser(target), json.loads(Path(catalogue).read_text())["flags"]))
    answer_to.write(json.dumps(found))
