"""One archive for a bug report: versions, doctor, check, fit, status, top, the env files, last logs and metrics. Keys and passwords are blanked.

usage: python scripts/report.py [--project NAME] [--out FILE.tar.gz]

Look into it before you send it: what your model or your paths are called stands in it. Prompts do not.
Exit codes: 0 written, 2 FILE does not end in .tar.gz, 3 it cannot be written.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.base.errors import ConfigurationError
    from bundle.observe import report
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--out", metavar="FILE", help="the archive (default: report-PROJECT-TIME.tar.gz here)")
    options = parser.parse_args(argv)
    deployment = Deployment(project=options.project or DEFAULT_PROJECT)
    out = Path(options.out or f"report-{deployment.project}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
    if not out.name.endswith(".tar.gz"):
        raise ConfigurationError(f"--out {out}: no name of an archive", fix="end it with .tar.gz")
    with console.step(f"report of project {deployment.project}"):
        names = report.write(deployment, out)
    console.note(f"{len(names)} files; look into it before you send it: tar xzf {out}")
    console.result(str(out))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
