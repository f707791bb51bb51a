"""Use the running deployment for long and in every way at once: mixed lengths, streams, hang-ups, bad requests. Did anything grow or go wrong?

usage: python scripts/soak.py [--project NAME] [--minutes N] [--clients N] [--json]

Everything goes to reports/soak-…: soak.json, report.md, report.html. Exit codes: 0 nothing did, 5 a check failed, 4 it does not answer,
3 nothing is up, 2 a wrong option.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli, venv


def main(argv: Sequence[str]) -> int:
    from bundle import ROOT
    from bundle.base import console
    from bundle.base.errors import CheckFailedError
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--minutes", type=cli.positive, default=10.0, metavar="N", help="how long (default 10; up to a day)")
    parser.add_argument("--clients", type=int, choices=range(1, 257), default=8, metavar="N", help="how many ask at once, 1 to 256 (default 8)")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    if options.minutes > 24 * 60:
        parser.error("--minutes: a day has 1440")
    cli.need(venv.also(venv.BENCH_LOCK))
    from bundle.soak import campaign

    folder, found = campaign.soak(Deployment(project=options.project or DEFAULT_PROJECT), minutes=options.minutes, clients=options.clients)
    if options.json:
        console.emit_json({"folder": str(folder), "checks": [{"name": one.name, "ok": one.ok, "found": one.found} for one in found]})
    else:
        marks = {True: "✓", False: "✗", None: "·"}
        console.table(("", "found"), [(f"{marks[one.ok]} {one.name}", one.found) for one in found])
        console.note(f"the whole report: {(folder / 'report.html').relative_to(ROOT)}")
    return CheckFailedError.exit_code if any(one.ok is False for one in found) else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
