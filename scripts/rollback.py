"""Go back to the version before the one that runs; after a change that was left unfinished, to the last one that answered.

usage: python scripts/rollback.py [--project NAME]

A version is the env files and the images of one `make up` that became ready. Again takes the rollback back. Exit codes: 0 ready, 3 no version
is kept, 4 not ready, 7 it did not start, and the one that ran serves again.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.service import lifecycle
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    since = lifecycle.rollback(deployment)
    console.result(f"{deployment.project} runs the version of {since} again")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
