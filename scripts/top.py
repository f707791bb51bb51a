"""What the deployment does now, live: requests, tokens/s, latencies of the last minute, KV cache, GPU. Ctrl-C ends it. Needs no Prometheus.

usage: python scripts/top.py [--project NAME] [--once] [--json]

--once looks twice, two seconds apart, and prints one picture, as do --json and a stdout that is no terminal.
Exit codes: 0 shown, 3 nothing is up.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.base.errors import PrerequisiteError
    from bundle.observe import screen, top
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--once", action="store_true", help="one picture")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    watch = top.Watch(deployment)
    view = watch.look()
    if not view.services:
        raise PrerequisiteError(f"nothing is up in project {deployment.project}", fix="make up")
    if not (options.once or options.json) and sys.stdout.isatty():
        screen.show(watch.look, deployment.clock)
        return 0
    deployment.clock.sleep(screen.LOOK_S)
    view = watch.look()
    console.emit_json(view.as_json()) if options.json else screen.show_once(view)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
