"""Restart the engine of the running deployment and wait until it answers again; its caches stay warm.

usage: python scripts/restart.py [--project NAME] [--ready-timeout-s SECONDS]
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
    parser.add_argument("--ready-timeout-s", type=float, default=900, metavar="SECONDS", help="how long it may take (default 900)")
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    lifecycle.restart(deployment, options.ready_timeout_s)
    console.result(f"{deployment.project} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
