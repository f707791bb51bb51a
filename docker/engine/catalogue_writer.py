"""Print the engine's own flags as JSON: what the host checks env files against, without Docker and without a GPU.

    python catalogue_writer.py cuda > /opt/bundle/catalogue/cuda.json

Runs inside an installed vLLM and asks its `vllm serve` parser; nothing in the answer is written by hand. For each flag:

  type       int, float, str, bool, json, or human_int (8K = 8192, 8k = 8000). For a list, the type of one item.
  nargs      null, or argparse's "?", "+", "*" or a number
  choices    what the parser accepts, as text, or null where it does not say
  known      values that vLLM names but its parser does not insist on (plugins and other cases of letters exist), or null
  words      text with a meaning of its own that a number accepts, such as "auto"
  default    as text; "None" mostly means that vLLM decides from the model and the hardware
  help       one paragraph
  negative   the spelling that turns a bool off, or null; negative_aliases: its other spellings
  aliases    other spellings of the flag
  deprecated true where the parser or the help says so
  minimum, maximum, exclusive_minimum, exclusive_maximum
             from the field of the config class that the flag is made from, null where that has no bound

`environment` has every variable that vLLM reads through vllm.envs, and what vLLM takes for it: int, float, a list of its values, or text.
The output depends on vLLM alone, not on the host.
"""

import argparse
import dataclasses
import enum
import importlib
import inspect
import json
import logging
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

WORDS = ("auto", "-1", "None")
"""What a parser of numbers may take instead of digits; each flag's own parser is asked about each."""

BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusive_minimum", "lt": "exclusive_maximum"}
"""pydantic's names for a bound, and the catalogue's."""


LISTS = {"--quantization": ("vllm.model_executor.layers.quantization", "QUANTIZATION_METHODS"),
         "--reasoning-parser": ("vllm.reasoning", "ReasoningParserManager.list_registered")}
"""Lists that vLLM checks a value against only when it loads the model: its type hints show them to type checkers alone."""


def serve_parser(target: str) -> Any:
    """vLLM's parser of `vllm serve`; each action made from a config class has `field` = (class, field name)."""
    # vLLM writes help texts only when it is asked for help; it looks at the command line while it is being imported.
    sys.argv = ["vllm", "serve", "--help=all"]
    platforms = importlib.import_module("vllm.platforms")
    if target == "cuda" and not platforms.current_platform.device_type:
        # Without a GPU vLLM sees no platform and refuses to build its parser. The build has no GPU; the parser does not need one.
        type(platforms.current_platform).device_type = "cuda"
    _remember_fields(importlib.import_module("vllm.engine.arg_utils"))
    # Importing the entry point first is what `vllm` itself does; it avoids an import cycle.
    importlib.import_module("vllm.entrypoints.cli.main")
    command = importlib.import_module("vllm.entrypoints.cli.serve").cmd_init()[0]
    flexible = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser
    return command.subparser_init(flexible().add_subparsers())


def _remember_fields(arg_utils: Any) -> None:
    """Carry (config class, field name) from where vLLM derives a flag's argparse arguments to the action made of them."""
    derive = arg_utils._compute_kwargs
    add_argument = argparse._ActionsContainer.add_argument

    def derive_and_tag(cls: type) -> dict[str, dict[str, Any]]:
        return {name: {**kwargs, "field": (cls, name)} for name, kwargs in derive(cls).items()}

    def add_and_tag(self: Any, *names: Any, field: tuple[type, str] | None = None, **kwargs: Any) -> Any:
        action = add_argument(self, *names, **kwargs)
        action.field = field  # type: ignore[attr-defined]
        return action

    arg_utils._compute_kwargs = derive_and_tag
    argparse._ActionsContainer.add_argument = add_and_tag  # type: ignore[method-assign]


def flags(parser: Any) -> dict[str, dict[str, Any]]:
    """Every option of `parser`, keyed by its primary long spelling."""
    # vLLM hides some spellings from its help; the parser's own table has them all.
    spellings: dict[int, list[str]] = {}
    for spelling, action in parser._option_string_actions.items():
        spellings.setdefault(id(action), []).append(spelling)
    found = {}
    for action in parser._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            primary = next(option for option in action.option_strings if option.startswith("--"))
            found[primary] = flag(action, primary, spellings[id(action)], deprecated=action in parser._deprecated)
    return found


def flag(action: Any, primary: str, spellings: Sequence[str], *, deprecated: bool) -> dict[str, Any]:
    """One flag's record; `spellings` are all that the parser knows for it."""
    kind = type_of(action)
    others = [spelling for spelling in spellings if spelling != primary]
    off = [spelling for spelling in others if _turns_off(action, spelling)]
    # --no-x where there is one: the form that the mapping rule of the env files promises.
    off.sort(key=lambda spelling: (spelling != "--no-" + primary.removeprefix("--"), spelling))
    text = " ".join((action.help or "").replace("%%", "%").split())
    limits = bounds(action.field)
    return {
        "type": kind,
        "nargs": None if isinstance(action, argparse._StoreTrueAction | argparse.BooleanOptionalAction) else action.nargs,
        "choices": [_text(choice) for choice in action.choices if choice is not None] if action.choices else None,
        "known": None if action.choices else known_values(action),
        "words": [word for word in WORDS if _accepts(action, word, limits["minimum"])] if kind in ("int", "float", "human_int") else [],
        "default": _text(action.default),
        "help": text,
        "negative": off[0] if off else None,
        "negative_aliases": off[1:],
        "aliases": sorted(spelling for spelling in others if spelling not in off),
        "deprecated": deprecated or bool(re.search(r"\bis deprecated\b|\bDeprecated[:.]", text)),
        **limits,
    }


def type_of(action: Any) -> str:
    """The catalogue's name for what one value of `action` must be."""
    if action.nargs == 0:
        return "bool"
    parse = action.type or str
    # optional_type(parse_type(int)) are closures around `int`; "None" and the empty text are asked for in `words`.
    while inspect.isfunction(parse) and "return_type" in inspect.getclosurevars(parse).nonlocals:
        parse = inspect.getclosurevars(parse).nonlocals["return_type"]
    if parse in (int, float, str, bool):
        return str(parse.__name__)
    name = getattr(parse, "__name__", "")
    if name.startswith("human_readable_int"):
        return "human_int"
    if parse is json.loads or name == "parse_dataclass":
        return "json"
    return "str"


def known_values(action: Any) -> list[str] | None:
    """The values that vLLM names for a flag whose parser takes any text: an enum's members, or the ones it shows in its help."""
    if action.field is not None:
        hint = {field.name: field.type for field in dataclasses.fields(action.field[0])}[action.field[1]]
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and issubclass(inner, enum.Enum):
                return [_text(member) for member in inner]
    for option in set(action.option_strings) & set(LISTS):
        module, name = LISTS[option]
        values = operator.attrgetter(name)(importlib.import_module(module))
        return sorted(values() if callable(values) else values)
    if isinstance(action.metavar, list | tuple):
        return [str(value) for value in action.metavar]
    shown = re.match(r"\{(.*?)\}", action.metavar or "")
    return shown[1].split(",") if shown else None


def bounds(field: tuple[type, str] | None) -> dict[str, float | None]:
    """The numeric bounds that the config class declares for its field."""
    found: dict[str, float | None] = dict.fromkeys(BOUNDS.values())
    if field is None:
        return found
    declared = getattr(field[0], "__pydantic_fields__", {}).get(field[1])
    if declared is None:
        return found
    for constraint in (*declared.metadata, *_annotated(declared.annotation)):
        for name, ours in BOUNDS.items():
            if isinstance(value := getattr(constraint, name, None), int | float):
                found[ours] = value
    return found


def _annotated(hint: Any) -> Iterator[Any]:
    """The constraints inside a type such as Optional[Annotated[int, Gt(0)]], but not those of a list's items."""
    yield from getattr(hint, "__metadata__", ())
    if hasattr(hint, "__metadata__") or type(None) in get_args(hint):
        for inner in get_args(hint):
            yield from _annotated(inner)


def _turns_off(action: Any, spelling: str) -> bool:
    """Ask the action itself: what does this spelling store?"""
    if not isinstance(action, argparse.BooleanOptionalAction):
        return False
    namespace = argparse.Namespace()
    action(argparse.ArgumentParser(), namespace, None, spelling)
    return getattr(namespace, action.dest) is False


def _accepts(action: Any, word: str, minimum: float | None) -> bool:
    if word == "-1" and minimum != -1:
        return False  # a number like any other; it is a word only where it stands just below what makes sense
    try:
        action.type(word)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


def _text(value: Any) -> str:
    """A default or a choice as text that is the same on every host."""
    if value == argparse.SUPPRESS:
        return "None"
    if isinstance(value, enum.Enum):
        return str(value.value) if isinstance(value, int) else value.name
    if isinstance(value, set):
        value = sorted(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=_text)
    if dataclasses.is_dataclass(value):
        return type(value).__name__ + "()"
    return str(value)


def environment(readers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What vLLM takes for each variable, by asking its own reader: a number, one of a few values, or any text."""
    return {name: _taken(name, readers[name]) for name in sorted(readers)}


def _taken(name: str, reader: Callable[[], Any]) -> Any:
    def refusal(value: str) -> str:
        os.environ[name] = value
        try:
            reader()
        except Exception as error:  # noqa: BLE001  (whatever a reader raises would end the engine)
            return str(error) or type(error).__name__
        finally:
            del os.environ[name]
        return ""

    if not (said := refusal("no such value")):
        return "text"
    if values := re.search(r" for \S+ Valid options: \[(.*)\]", said):
        return re.findall(r"'([^']*)'", values[1])
    if refusal("7") or not refusal("{}"):
        return "text"
    return "int" if refusal("0.25") else "float"


def catalogue(target: str) -> dict[str, Any]:
    """The whole answer for `target` (cuda or cpu)."""
    found = flags(serve_parser(target))
    variables = environment(importlib.import_module("vllm.envs").environment_variables)
    version = importlib.import_module("vllm").__version__.partition("+")[0]
    return {"engine": "vllm", "version": version, "target": target, "flags": found, "environment": variables}


def render(answer: Mapping[str, Any]) -> str:
    """JSON with one flag and one variable on a line, so that a new engine version reads as a diff."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in answer.items() if isinstance(value, str)]
    entries = [f"    {json.dumps(name)}: {json.dumps(answer['flags'][name], ensure_ascii=False)}" for name in sorted(answer["flags"])]
    variables = [f"    {json.dumps(name)}: {json.dumps(kind)}" for name, kind in answer["environment"].items()]
    return "\n".join(["{", *lines, '  "flags": {', ",\n".join(entries), "  },", '  "environment": {', ",\n".join(variables), "  }", "}", ""])


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0] not in ("cuda", "cpu"):
        print("usage: catalogue_writer.py cuda|cpu", file=sys.stderr)
        return 2
    # The operator's variables change defaults (VLLM_SERVER_DEV_MODE, HOME …): the catalogue is of the engine, not of this shell.
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        del os.environ[name]
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    logging.disable(logging.WARNING)
    sys.stdout, answer_to = sys.stderr, sys.stdout
    answer_to.write(render(catalogue(argv[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
