"""Take the deployment down: the gateway drains its streams first, then the engine ends.

usage: python scripts/down.py [--project NAME] [--volumes]

The cache volume (compiled kernels, hub downloads) stays unless --volumes is given. Nothing running is not an error.
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
    parser.add_argument("--volumes", action="store_true", help="remove the cache volume too; the next start compiles again")
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    there = lifecycle.down(deployment, volumes=options.volumes)
    console.result(f"{deployment.project} is down" if there else f"{deployment.project} was not up")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
