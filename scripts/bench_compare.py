"""Hold one run of the benchmark against another: is the second slower beyond noise?

usage: python scripts/bench_compare.py REFERENCE RUN [--json]

Both are runs' names or folders, or result.json files. Exit codes: 0 not slower, 6 slower than the reference in throughput, P99 TTFT or P99 ITL,
2 no such run, or nothing in common.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import bundle.venv  # noqa: F401
from bundle import cli, venv

if TYPE_CHECKING:
    from bundle.bench.rundata import Row


def main(argv: Sequence[str]) -> int:
    from bundle.base import console

    parser = cli.parser(__doc__)
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("run", metavar="RUN")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    cli.need(venv.also(venv.BENCH_LOCK))
    from bundle.bench import campaign, compare

    reference, run = (compare.load(campaign.find(name)) for name in (options.reference, options.run))
    rows = compare.compare_results(reference, run)
    for warning in compare.warnings(reference, run):
        console.warn(warning)
    if options.json:
        console.emit_json({"reference": reference["run"], "run": run["run"], "rows": rows})
    else:
        console.table(("cell", "workload", "metric", "times the reference", "95 % interval", "verdict"), [
            (row["cell"], row["workload"], row["metric"], *_ratio_cells(row), row["verdict"]) for row in rows])
    compare.require_not_slower(rows)
    return 0


def _ratio_cells(row: "Row") -> tuple[str, str]:
    return ("", row["why"]) if row["ratio"] is None else (f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
