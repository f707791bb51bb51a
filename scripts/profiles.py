"""All profiles: what each is for, whether the model fits it on this host's GPU, and which one `make up` takes without being told.

usage: python scripts/profiles.py [--gpu NAME] [--env-file FILE]... [--set KEY=VALUE]... [--json]

The model is MODEL_DIR of env/site.env, an --env-file or a --set. A GPU of this host's is looked at as if nothing else ran on it.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import table as profiletable

    parser = cli.parser(__doc__)
    cli.add_gpu(parser)
    parser.add_argument("--env-file", metavar="FILE", action="append", default=[], help="lay FILE over each profile; repeatable, last wins")
    cli.add_sets(parser, "one value over all files")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    choice, rows = profiletable.profile_table(options.gpu, options.env_file, options.sets)
    if options.json:
        console.emit_json({"chosen": choice.profile, "why": choice.why, "profiles": [row.as_json() for row in rows]})
        return 0
    console.table(("profile", "for", "fit"), [(row.profile, row.description, row.summary) for row in rows])
    console.result(f"\nwithout PROFILE: {choice.profile} ({choice.why})")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
