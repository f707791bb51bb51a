"""Write a deployment for several hosts: a Docker Swarm stack from the same env files, a check of the nodes, and a page of the exact commands.

usage: python scripts/swarm.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--gpu NAME] --out DIR [--json]

DIR is new, or holds an earlier one, which is replaced. Needs GATEWAY_API_KEYS_FILE and GATEWAY_BIND=0.0.0.0, and no daemon. No secrets are in it.
README.md in it says how to deploy, scale, change and roll back. --gpu rtx-5090 computes `auto` for the GPU of the nodes.

Exit codes: 0 written, 2 a setting that Swarm cannot keep or DIR, 3 the key file or Compose is missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import profile
    from bundle.config import settings
    from bundle.fit import assessment
    from bundle.swarm import write

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_gpu(parser)
    cli.add_json(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder, or an earlier one")
    options = parser.parse_args(argv)
    models = profile.load_all(cli.deployment(options))
    settings.require(models)
    models = tuple(assessment.resolved(each, assessment.assess(each, options.gpu)) for each in models)
    for line in (line for each in models for line in (*each.remarks(), *filter(None, [assessment.unresolved(each)]))):
        console.warn(line)
    written = write.write(models, options.out)
    if options.json:
        console.emit_json(written.as_json())
        return 0
    console.result(f"{written.out}: {', '.join(written.files)}; README.md says how to run it")
    for line in written.commands:
        console.result(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
