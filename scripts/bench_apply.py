"""Write what a run of the benchmark recommends as a profile of its own, with the measured reason beside each line.

usage: python scripts/bench_apply.py RUN [--name NAME] [--json]

RUN is a run's name or folder, or a result.json. The profile is env/NAME.env (default: the control's profile with `-measured`); a profile that
this verb did not write is never overwritten. Exit codes: 0 written, or nothing to change; 2 no such run, or the name is taken.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli, venv


def main(argv: Sequence[str]) -> int:
    from bundle import ROOT
    from bundle.base import console

    parser = cli.parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's name under reports/, or its result.json")
    parser.add_argument("--name", metavar="NAME", default="", help="the profile to write: env/NAME.env")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    cli.need(venv.also(venv.BENCH_LOCK))
    from bundle.bench import campaign, compare, recommend

    result = compare.load(campaign.find(options.run))
    found = recommend.recommend(result)
    path = recommend.apply(result, options.name or f"{found['base_profile']}-measured", ROOT) if found["set"] else None
    if options.json:
        console.emit_json({"written": path and str(path.relative_to(ROOT)), "recommendation": found})
        return 0
    console.table(("setting", "value", "why"), [(line["key"], line["value"] or "(not set)", line["why"]) for line in found["set"]])
    console.result(found["note"])
    if path is None:
        console.result(f"nothing to change: no setting that was measured beat {found['base_profile']}.env; no file was written")
    else:
        console.result(f"written: {path.relative_to(ROOT)}; start it with `make up PROFILE={path.stem}`")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
