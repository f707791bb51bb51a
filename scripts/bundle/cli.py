"""What every verb shares: options that choose a deployment, and how a failure becomes an exit code."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bundle.base import console
from bundle.base.errors import INTERRUPTED, BundleError, PrerequisiteError

if TYPE_CHECKING:
    from bundle.choice.profile import Wanted


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def add_json(to: argparse.ArgumentParser) -> None:
    to.add_argument("--json", action="store_true", help="the answer as JSON on stdout")


def add_gpu(to: argparse.ArgumentParser) -> None:
    to.add_argument("--gpu", metavar="NAME", default="", help="a GPU of env/gpus.yaml, such as rtx-5090 (default: this host's)")


def add_project(to: argparse.ArgumentParser) -> None:
    to.add_argument("--project", metavar="NAME", help="Compose project (default: HOST_PROJECT of the env files)")


def add_sets(to: argparse.ArgumentParser, about: str) -> None:
    """--set KEY=VALUE, repeatable; and --set-all with several in one text, as make has them in SET=: a value ends where the next KEY= starts."""
    to.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="sets", help=f"{about}; repeatable")
    to.add_argument("--set-all", metavar="KEY=VALUE …", action="extend", dest="sets", default=[], type=_assignments, help=argparse.SUPPRESS)


def _assignments(text: str) -> list[str]:
    return re.split(r"\s+(?=[A-Z][A-Z0-9_]*=)", text.strip())


def add_deployment(to: argparse.ArgumentParser) -> None:
    """--profile, --env-file, --set and --project: which deployment the verb is about."""
    to.add_argument("--profile", metavar="NAME", help="env/NAME.env (default: chosen for this host's hardware)")
    to.add_argument("--env-file", metavar="FILE", action="append", default=[], help="lay FILE over the profile; repeatable, last wins")
    add_sets(to, "one value over all files; an empty VALUE unsets")
    add_project(to)


def deployment(options: argparse.Namespace) -> "Wanted":
    """What `add_deployment` (and `add_gpu`, where the verb has it) parsed."""
    from bundle.choice.profile import Wanted  # here, so that a script's --help needs no packages

    project = (f"HOST_PROJECT={options.project}",) if options.project else ()
    return Wanted(profile=options.profile or "", env_files=tuple(options.env_file), sets=(*options.sets, *project), gpu=getattr(options, "gpu", ""))


def need(missing: Sequence[str]) -> None:
    """Raise PrerequisiteError where this Python lacks packages that the verb cannot do without."""
    if missing:
        raise PrerequisiteError(f"{sys.executable} lacks {', '.join(missing)}", fix=f"pip install {' '.join(missing)}")


def positive(text: str) -> float:
    """An option's value as a number above 0; for `type=`."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call `main` and turn what it raises into a message and an exit code."""
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except BundleError as error:
        console.error(error.message, error.fix)
        return error.exit_code
    except KeyboardInterrupt:
        console.note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # `make logs | head`: the reader has gone; stdout is closed so that the interpreter does not complain at exit.
        sys.stderr.close()
        return 0
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        console.error(named, "it belongs to another user, is gone, or its disk is full; `ls -ld` shows which" if error.filename else "")
        return PrerequisiteError.exit_code
