"""Hold one run of the benchmark against another: is the second slower beyond noise?

usage: python scripts/bench_compare.py REFERENCE RUN [--json]

Both are runs' names or folders, or result.json files. Exit codes: 0 not slower, 6 slower than the reference in throughput, P99 TTFT or P99 ITL,
2 no such run, or nothing in common.
"""

import sys
from collections.abc import Sequence

from bundle import cli, venv


def main(argv: Sequence[str]) -> int:
    from bundle import console

    parser = cli.parser(__doc__)
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("run", metavar="RUN")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    cli.need(venv.also(venv.BENCH_LOCK))
    from bundle.bench import campaign, compare

    compared = compare.compare_results(campaign.load_result(options.reference), campaign.load_result(options.run))
    if options.json:
        console.emit_json(compared.as_json())
    else:
        for warning in compared.warnings:
            console.warn(warning)
        console.table(compared.columns, compared.rows_shown())
    compared.require()
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
