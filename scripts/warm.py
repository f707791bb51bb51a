"""Fill the caches of a deployment's engine before it serves: one start of it that no request reaches, and that ends when it is ready.

usage: python scripts/warm.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--json]

What is compiled stays in the volume that `make up` uses too, so that its start finds it. Whatever serves meanwhile is not touched; where it has the
card, or too little memory is left, this refuses. Exit codes: 0 filled (or nothing to fill), 2 settings, 3 host or card in use, 4 not ready.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import profile
    from bundle.service import warm

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_json(parser)
    options = parser.parse_args(argv)
    chosen = profile.load(cli.deployment(options))
    for line in chosen.remarks():
        console.warn(line)
    warmed = warm.warm(chosen)
    if options.json:
        console.emit_json(warmed.as_json())
    elif warmed.why_not:
        console.result(f"nothing to warm: {warmed.why_not}")
    else:
        console.result(f"warm: {warmed.model} was ready after {warmed.seconds:.0f} s, and is stopped; the next start finds what it compiled")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
