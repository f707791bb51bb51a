"""Verify a handoff, load its images, check this host and bring it up.

usage: python scripts/receive.py FILE_OR_DIR [--into DIR] [--set KEY=VALUE]... [--project NAME] [--accept-compose] [--no-start]
                                 [--json]

An archive is unpacked to DIR, by default to its own name beside it. --set says what is different on this host (MODEL_DIR=/data/model);
--no-start ends before the host is checked and prints the command that starts it. --accept-compose runs services that are not as this bundle
has them: those of another version of it, or changed ones; without it they are shown and refused.

Exit codes: 0 ready, 2 settings or options, 3 this host lacks something, 4 not ready, 5 the handoff is damaged or was changed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.handoff import unpack

    parser = cli.parser(__doc__)
    parser.add_argument("source", metavar="FILE_OR_DIR", type=Path, help="what `make handoff` wrote")
    parser.add_argument("--into", metavar="DIR", type=Path, help="where to unpack an archive: a new folder")
    cli.add_sets(parser, "a value that is different on this host")
    parser.add_argument("--no-start", action="store_true", help="verify and load only")
    parser.add_argument("--accept-compose", action="store_true", help="run its compose.yaml though it is not this bundle's own")
    cli.add_project(parser)
    cli.add_json(parser)
    options = parser.parse_args(argv)
    folder, verified = unpack.opened(options.source.expanduser(), options.into)
    answer: dict[str, object] = {"folder": str(folder), "verified": verified}
    sets = [*options.sets, *([f"HOST_PROJECT={options.project}"] if options.project else [])]
    chosen = unpack.deployment(folder, sets)
    if not options.accept_compose:
        unpack.require_own_services(folder)
    answer["loaded"] = unpack.install(folder, chosen)
    if options.no_start:
        answer["command"] = unpack.command(folder, sets)
    else:
        answer |= unpack.bring_up(folder, chosen)
    if options.json:
        console.emit_json(answer)
    elif options.no_start:
        console.result(str(answer["command"]))
    else:
        console.result(f"ready: {answer['model']} at {answer['base_url']}")
        console.result(str(answer["curl"]))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
