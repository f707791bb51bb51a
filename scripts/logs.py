"""Follow what the services print.

usage: python scripts/logs.py [--project NAME] [--lines N] [--no-follow] [SERVICE...]
"""

import subprocess
import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli
from bundle.base.errors import PrerequisiteError


def main(argv: Sequence[str]) -> int:
    from bundle.machine import daemon
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--lines", type=int, default=100, metavar="N", help="how many lines of the past (default 100)")
    parser.add_argument("--no-follow", action="store_true", help="end after the past")
    parser.add_argument("services", nargs="*", metavar="SERVICE")
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    there = deployment.containers()
    if not there:
        raise PrerequisiteError(f"project {deployment.project} is not up", fix="make up")
    if unknown := sorted(set(options.services) - set(there)):
        raise PrerequisiteError(f"no service {', '.join(unknown)} in project {deployment.project}", fix=f"it has: {', '.join(sorted(there))}")
    follow = [] if options.no_follow else ["--follow"]
    return subprocess.run([*deployment.command(), "logs", *follow, "--tail", str(options.lines), *options.services],
                          check=False, env=daemon.client_environment(), cwd=deployment.folder).returncode


if __name__ == "__main__":
    sys.exit(cli.run(main))
