"""Make the host, the images and the services what the env files say; wait until the engine answers.

usage: python scripts/up.py [--profile NAME[,NAME]...] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--json]

Checks the settings and the host first and changes nothing if either fails. A change reaches one engine after another, each without new
requests first; what does not become ready is taken back. Exit codes: 0 ready, 2 settings, 3 host, 4 not ready, 7 the version before serves again.
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
    answer = lifecycle.up(chosen)
    if options.json:
        console.emit_json(answer)
        return 0
    console.result(f"{'ready' if answer['changed'] else 'already up'}: {', '.join(answer['models'])} at {answer['base_url']}")
    console.result(str(answer["curl"]))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
