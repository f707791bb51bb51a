"""Replace every engine, one after another, each ready before the next: nothing is interrupted. Needs HOST_REPLICAS=2 or more.

usage: python scripts/roll.py [--profile NAME[,NAME]...] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--json]

As `up` with the same options, but replaces engines that no setting has changed too, and refuses where it would interrupt the service.
Exit codes: 0 ready, 2 settings or one engine only, 3 host, 4 not ready, 7 the version before serves again.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import profile
    from bundle.service import lifecycle

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_json(parser)
    options = parser.parse_args(argv)
    chosen = profile.load_all(cli.deployment(options))
    for line in dict.fromkeys(line for each in chosen for line in each.remarks()):
        console.warn(line)
    answer = lifecycle.up(chosen, roll=True)
    if options.json:
        console.emit_json(answer)
    else:
        console.result(f"rolled: {', '.join(answer['models'])} at {answer['base_url']}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
