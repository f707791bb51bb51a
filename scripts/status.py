"""One table of what runs: state, health, restarts, model, queue, KV-cache use, tokens/s; then, for each engine, how long its requests are and what
was computed twice, and what its start found beside the estimate.

usage: python scripts/status.py [--project NAME] [--json]
       python scripts/status.py --stack NAME [--json]        what `make swarm` made: a row for each task. Ask a manager

Exit codes: 0 all healthy, 5 something is not (or nothing is up), 3 with --stack: no manager answers.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.base.errors import CheckFailedError
    from bundle.fit import assessment, found
    from bundle.service import pressure, status
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--stack", metavar="NAME", help="a stack of Docker Swarm")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    if options.stack:
        return _of_stack(options.stack, as_json=options.json)
    project = options.project or DEFAULT_PROJECT
    deployment = Deployment(project=project)
    rows, base_url = status.read(deployment), status.base_url(deployment)
    start = found.last(project) if rows else None
    if options.json:
        console.emit_json({"project": project, "base_url": base_url, "services": rows, "fit": asdict(start) if start else None})
    elif rows:
        console.table(status.COLUMNS, status.cells(rows))
        console.note(f"{project} at {base_url}" if base_url else f"{project} is not published")
        for warns, line in pressure.remarks(rows):
            (console.warn if warns else console.note)(line)
        if start:
            console.note(f"fit, at the start of {start.since}: {assessment.described(start.differences)}")
    if not rows:
        raise CheckFailedError(f"nothing is up in project {project}", fix="make up")
    return 0 if all(r["state"] == "running" and r["health"] == "healthy" for r in rows) else CheckFailedError.exit_code


def _of_stack(name: str, *, as_json: bool) -> int:
    from bundle.base import console
    from bundle.base.errors import CheckFailedError
    from bundle.swarm import status

    rows, updates = status.read(name)
    if as_json:
        console.emit_json({"stack": name, "tasks": [asdict(row) for row in rows], "updates": updates})
    elif rows:
        console.table(status.COLUMNS, [row.cells for row in rows])
        for line in updates:
            console.warn(line)
    if not rows:
        raise CheckFailedError(f"there is no stack {name}", fix="make swarm OUT=dir; the README.md in it says how to deploy")
    return 0 if all(row.is_well for row in rows) else CheckFailedError.exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main))
