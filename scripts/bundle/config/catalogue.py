"""The engine's own flags: what its parser in the built image accepts, read from docker/engine/catalogue/<target>.json.

The image build writes the catalogue with the engine's parser, so no list of flags is kept by hand.
"""

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.base.text import near

TARGETS = ("cpu", "cuda")
PREFIX = "ENGINE_"

EXTENSIBLE = {"--tool-call-parser": "--tool-parser-plugin", "--reasoning-parser": "--reasoning-parser-plugin"}
"""Flags whose known values a plugin file of the operator's own adds to, and the flag that names the file."""

_HUMAN = re.compile(r"\d+(\.\d+)?[kmgt]|\d+[KMGT]", re.ASCII)
_SUFFIX = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option of the engine, as docker/engine/catalogue_writer.py describes it: that file says what each field means."""

    name: str
    type: str
    nargs: str | None = None
    choices: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    default: str | None = None
    help: str = ""
    negative: str | None = None
    negative_aliases: tuple[str, ...] = ()
    deprecated: bool = False
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None

    @property
    def key(self) -> str:
        """The name of this flag in an env file."""
        return env_key(self.name)

    def fault(self, value: str) -> str:
        """What is wrong with `value` for this flag, and what to write instead; "" when the engine's parser takes it."""
        if self.type == "bool":
            return self._bool_fault(value)
        if not self._is_list:
            return self._one_fault(value)
        try:
            items = elements(value)
        except ValueError as error:
            return f"{value!r} is not a list: {error}. Write its elements with blanks between them: A B, or {{…}} {{…}}."
        return next((fault for item in items if (fault := self._one_fault(item))), "")

    def arguments(self, key: str, value: str) -> tuple[str, ...]:
        """What the entrypoint makes of `key`=`value`: the one mapping rule."""
        if value == "true":
            return (option(key),)
        if value == "false":
            return (self.negative,) if self.negative else ()
        return (option(key), *elements(value)) if self._is_list else (option(key), value)

    @property
    def _is_list(self) -> bool:
        return self.nargs not in (None, "?")

    def _bool_fault(self, value: str) -> str:
        if value not in ("true", "false"):
            guess = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}.get(value.lower(), value.lower())
            return f"{value!r} is not a boolean. Write true or false" + (f": {self.key}={guess}" if guess in ("true", "false") else ".")
        if value == "false" and not self.negative:
            return f"{self.name} has no form that turns it off. Delete the line: it is off when it is not set."
        return ""

    def _one_fault(self, value: str) -> str:
        if value in self.words:
            return ""
        if self.choices:
            return "" if value in self.choices else _choice_fault(value, self.choices)
        if self.known and not self._is_known(value):
            return _choice_fault(value, self.known)
        if self.type == "json":
            return _json_fault(value)
        if self.type == "str":
            if value in ("true", "false"):
                return f"{self.name} takes a text, and {value!r} is how a switch is set."
            return f"{value!r} starts with a dash: the engine would read it as a flag." if value.startswith("-") else ""
        number = parse_number(value, self.type)
        if number is None:
            words = [word for word in self.words if word != "None"]
            kind = {"int": "a whole number", "float": "a number", "human_int": "a whole number (8192, or 8K = 8192, 8k = 8000)"}[self.type]
            return f"{value!r} is not {kind}{' or ' + ', '.join(words) if words else ''}."
        return self._range_fault(value, number)

    def _is_known(self, value: str) -> bool:
        # The parser takes any text here, and the engine refuses it when it starts. It ignores case, and a dotted name is a class of the operator's.
        return self.name in EXTENSIBLE or "." in value or value.lower() in {"auto", "none", *(known.lower() for known in self.known)}

    def _range_fault(self, value: str, number: float) -> str:
        above = [f"≥ {self.minimum:g}"] if self.minimum is not None else []
        above += [f"> {self.exclusive_minimum:g}"] if self.exclusive_minimum is not None else []
        below = [f"≤ {self.maximum:g}"] if self.maximum is not None else []
        below += [f"< {self.exclusive_maximum:g}"] if self.exclusive_maximum is not None else []
        inside = ((self.minimum is None or number >= self.minimum) and (self.maximum is None or number <= self.maximum)
                  and (self.exclusive_minimum is None or number > self.exclusive_minimum)
                  and (self.exclusive_maximum is None or number < self.exclusive_maximum))
        return "" if inside else f"{value} is outside the engine's range ({' and '.join(above + below)})."


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All flags of one engine version, and the environment variables that it knows, each with what it takes: int, float, text, or its values."""

    version: str
    target: str
    flags: Mapping[str, Flag]
    environment: Mapping[str, str | tuple[str, ...]]

    def variable_fault(self, key: str, value: str) -> str:
        """What is wrong with `value` for the environment variable `key`; "" when its reader takes it, or it is not the engine's."""
        kind = self.environment.get(key, "text")
        if isinstance(kind, tuple):
            return "" if value.lower() in {choice.lower() for choice in kind} else _choice_fault(value, kind)
        if kind == "text" or parse_number(value, kind) is not None:
            return ""
        number = parse_number(value, "float")
        use = f" Use {key}={math.ceil(number)}." if number is not None else ""
        return f"{value!r} is not {'a whole number' if kind == 'int' else 'a number'}, and the engine ends at anything else.{use}"

    @cached_property
    def _spellings(self) -> dict[str, Flag]:
        return {name: flag for flag in self.flags.values() for name in (flag.name, *flag.aliases)}

    @cached_property
    def _negatives(self) -> dict[str, Flag]:
        return {name: flag for flag in self.flags.values() if flag.negative for name in (flag.negative, *flag.negative_aliases)}

    def find(self, key: str) -> Flag | None:
        """The flag that the env key `key` sets, by its name or an alias."""
        return self._spellings.get(option(key))

    def negated(self, key: str) -> Flag | None:
        """The flag that the env key `key` turns off, where it is the spelling of an off-form."""
        return self._negatives.get(option(key))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every ENGINE_ key there is."""
        return tuple(flag.key for flag in self.flags.values())


def load(target: str, *, root: Path = ROOT) -> Catalogue:
    """The catalogue of the image `target`. Raises ConfigurationError when there is none or it cannot be read."""
    path = root / "docker" / "engine" / "catalogue" / f"{target}.json"
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no flag catalogue for the {target} image", fix="git checkout it, or `make build` writes it") from error


def parse(text: str, where: str) -> Catalogue:
    """The catalogue in `text`, which came from `where`. Raises ConfigurationError when it is none."""
    try:
        raw = json.loads(text)
        flags = {name: _flag(name, fields) for name, fields in raw["flags"].items()}
        environment = {name: tuple(kind) if isinstance(kind, list) else str(kind) for name, kind in raw["environment"].items()}
        return Catalogue(version=raw["version"], target=raw["target"], flags=flags, environment=environment)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{where}: not a flag catalogue ({error})", fix="git checkout it, or `make build` writes it") from error


def env_key(name: str) -> str:
    """--max-num-seqs → ENGINE_MAX_NUM_SEQS."""
    return PREFIX + name.removeprefix("--").replace("-", "_").replace(".", "_").upper()


def option(key: str) -> str:
    """ENGINE_MAX_NUM_SEQS → --max-num-seqs."""
    return "--" + key.removeprefix(PREFIX).lower().replace("_", "-")


def elements(value: str) -> list[str]:
    """The elements of a list, as docker/engine/entrypoint.py splits it: words as in a shell, or JSON objects, with blanks between them.

    Raises ValueError for anything else: a quote or an object that does not end, both kinds in one list, a JSON list.
    """
    if value.startswith("["):
        raise ValueError("it is a JSON list")
    if not value.startswith("{"):
        if re.search(r"\s\{", value):
            raise ValueError("words and JSON objects do not mix")
        return shlex.split(value)
    found, at = [], 0
    while at < len(value):
        _, end = json.JSONDecoder().raw_decode(value, at)
        if value[end:end + 1].strip():
            raise ValueError(f"no blank after the object that ends at character {end}")
        found.append(value[at:end])
        at = end + len(value[end:]) - len(value[end:].lstrip())
    return found


def adapters(value: str) -> dict[str, str]:
    """ENGINE_LORA_MODULES as the engine reads it: path by name, from NAME=PATH or {"name": …, "path": …}. What is neither has the path ""."""
    found: dict[str, str] = {}
    try:
        for each in elements(value):
            one = json.loads(each) if each.startswith("{") else dict(zip(("name", "path"), each.split("=", 1), strict=False))
            found[str(one.get("name", each))] = str(one.get("path", ""))
    except ValueError:  # the flag's own fault says so
        return {}
    return found


def parse_number(value: str, kind: str) -> float | None:
    """`value` as the engine reads it, or None where it does not; kinds int, float and human_int (8K = 8192, 8k = 8000)."""
    if kind == "float":
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) and not value.startswith("_") else None
    if re.fullmatch(r"[+-]?\d+", value, re.ASCII):
        return int(value)
    if kind == "human_int" and _HUMAN.fullmatch(value):
        return int(float(value[:-1]) * _SUFFIX[value[-1]])
    return None


def _choice_fault(value: str, choices: tuple[str, ...]) -> str:
    usable = [choice for choice in choices if choice != "None"]
    return f"{value!r} is not one of its values.{near(value, usable)} It takes: {', '.join(usable)}."


def _json_fault(value: str) -> str:
    try:
        json.loads(value)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos + 1} of {value!r}."
    return ""


def object_fault(value: str) -> str:
    """What is wrong with `value` where one JSON object is due; "" when nothing is."""
    return _json_fault(value) or ("" if isinstance(json.loads(value), dict) else f'{value!r} is not one JSON object: {{"name": value, …}}.')


def _flag(name: str, raw: Mapping[str, Any]) -> Flag:
    fields: dict[str, Any] = {field: tuple(value) if isinstance(value, list) else value for field, value in raw.items()
                              if field in Flag.__dataclass_fields__ and value is not None}
    return Flag(name=name, **fields)
