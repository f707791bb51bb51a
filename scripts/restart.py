"""Restart the engines of the running deployment, one after another, each without new requests first; their caches stay warm.

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
    parser.add_argument("--ready-timeout-s", type=cli.positive, metavar="SECONDS",
                        help="how long one may take (default: HOST_READY_TIMEOUT_S of the deployment)")
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    lifecycle.restart(deployment, options.ready_timeout_s)
    console.result(f"{deployment.project} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
