"""Follow what the services print, or show what they all printed about one request.

usage: python scripts/logs.py [--project NAME] [--lines N] [--no-follow] [SERVICE...]
       python scripts/logs.py --request ID [--project NAME]

--request takes what the answer's header X-Request-Id says, and prints one JSON object for each line.
Exit codes: 0 shown, 2 that is no request id, 3 nothing is up, 5 no service has a line of that request (any more).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import bundle.venv  # noqa: F401
from bundle import cli
from bundle.base.errors import CheckFailedError, PrerequisiteError

if TYPE_CHECKING:
    from bundle.service.deployment import Deployment


def main(argv: Sequence[str]) -> int:
    from bundle.machine import daemon
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--lines", type=int, default=100, metavar="N", help="how many lines of the past (default 100)")
    parser.add_argument("--no-follow", action="store_true", help="end after the past")
    parser.add_argument("--request", metavar="ID", help="the lines of one request, from every service")
    parser.add_argument("services", nargs="*", metavar="SERVICE")
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    there = deployment.containers()
    if not there:
        raise PrerequisiteError(f"project {deployment.project} is not up", fix="make up")
    if options.request is not None:
        return of_request(deployment, options.request)
    if unknown := sorted(set(options.services) - set(there)):
        raise PrerequisiteError(f"no service {', '.join(unknown)} in project {deployment.project}", fix=f"it has: {', '.join(sorted(there))}")
    follow = [] if options.no_follow else ["--follow"]
    return subprocess.run([*deployment.command(), "logs", *follow, "--tail", str(options.lines), *options.services],
                          check=False, env=daemon.client_environment(), cwd=deployment.folder).returncode


def of_request(deployment: "Deployment", request: str) -> int:
    from bundle.observe import requestlog

    records = requestlog.find(deployment, request)
    for record in records:
        sys.stdout.write(json.dumps(record) + "\n")
    if not records:
        raise CheckFailedError(f"no service has a line of request {request}",
                               fix="a client that got an answer has the id in its header X-Request-Id; logs of a replaced container are gone, and of "
                                   "each the last 150 MB are kept")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
