"""Measure a suite of env/matrix.yaml: each cell against the control in the same run, interleaved, repeated, with a verdict.

usage: python scripts/bench.py [--suite NAME] [--cell NAME]... [--workload NAME]... [--run NAME] [--rounds N] [--repeats N]
           [--env-file FILE]... [--set KEY=VALUE]... [--runtime compose|process] [--side-by-side N] [--card-gib GIB] [--json]
       python scripts/bench.py --list
       python scripts/bench.py --report RUN

Everything goes to reports/RUN: run.json, legs/ (one file for every engine start), result.json, report.md, report.html. What broke off goes
on where it stopped: the same call with --run RUN. --env-file and --set lie under every cell's own settings. Exit codes: 0 measured,
2 a wrong option, setting or matrix, 3 something is missing here, 4 the control did not start, 130 interrupted.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import bundle.venv  # noqa: F401
from bundle import cli, venv

if TYPE_CHECKING:
    from bundle.bench.campaign import Order

LIST_COLUMNS = 100


def main(argv: Sequence[str]) -> int:
    from bundle import ROOT
    from bundle.base import console

    options = _options(argv)
    missing = venv.also(venv.BENCH_LOCK)
    from bundle.bench import campaign

    if options.list:
        _list()
        return 0
    folder = campaign.existing_run(options.report) if options.report else campaign.measure(_order(options), analysed=not missing)
    if missing:  # a GPU pod without a network: what was measured there becomes a report elsewhere
        console.warn(f"no report is written here, and what was faster each for itself is not measured at once: {sys.executable} "
                     f"lacks {', '.join(missing)}. Copy {folder} to reports/ of another host, "
                     f"and there: make bench REPORT={folder.name}")
        return 0
    from bundle.bench import analysis, report

    result = analysis.analyse(folder)
    report.write(folder, result)
    if options.json:
        console.emit_json(result)
    else:
        console.result((folder / "report.md").read_text(encoding="utf-8").split("\n## ")[0])
        console.note(f"the whole report: {(folder / 'report.html').relative_to(ROOT)}")
    return campaign.exit_code(result)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", metavar="NAME", help="what to measure (default: cpu without an NVIDIA GPU, else default)")
    parser.add_argument("--cell", metavar="NAME", action="append", default=[], dest="cells", help="only this cell of the suite; repeatable")
    parser.add_argument("--workload", metavar="NAME", action="append", default=[], dest="workloads", help="only this workload; repeatable")
    parser.add_argument("--rounds", type=_count, metavar="N", help="visits to each cell (default: the suite's)")
    parser.add_argument("--repeats", type=_count, metavar="N", help="measured loads of each workload in a visit (default: the suite's)")
    parser.add_argument("--run", metavar="NAME", help="folder under reports/; one that was broken off goes on (default: date and suite)")
    parser.add_argument("--env-file", metavar="FILE", action="append", default=[], dest="env_files", type=Path,
                        help="lay FILE under every cell; repeatable")
    cli.add_sets(parser, "one value under every cell")
    parser.add_argument("--runtime", choices=("compose", "process"), default="compose", help="process: vLLM is installed here and Docker is not")
    parser.add_argument("--side-by-side", type=_count, metavar="N", default=1,
                        help="process only, with --card-gib: keep N engines up at once on a GPU that has the room, and visit them in turn")
    parser.add_argument("--card-gib", type=cli.positive, metavar="GIB", help="give engines the memory of a card of GIB on this larger GPU")
    parser.add_argument("--list", action="store_true", help="show suites, cells and workloads")
    parser.add_argument("--report", metavar="RUN", help="only write the report of reports/RUN anew")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    if options.side_by_side > 1 and (options.runtime != "process" or not options.card_gib):
        parser.error("--side-by-side needs --runtime process and --card-gib: each engine must know its share of the GPU")
    return options


def _order(options: argparse.Namespace) -> "Order":
    from bundle.bench.campaign import Order

    given = {key: value for key, value in vars(options).items() if key in Order.__dataclass_fields__ and value is not None}
    return Order(**given)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _list() -> None:
    from bundle.base import console
    from bundle.bench import matrix

    found = matrix.load()
    entries = [
        *(("suite", suite.name, suite.about, f"{len(suite.cells) + 1} cells, {(len(suite.cells) + 1) * suite.rounds} starts; workloads: "
           + ", ".join(load.name for load in suite.workloads)) for suite in found.suites.values()),
        *(("cell", cell.name, f"{cell.axis}: {cell.about}", " ".join((cell.profile, *cell.sets))) for cell in found.cells.values()),
        *(("workload", load.name, load.about, " ".join(f"{key}={value}" for key, value in load.load.items())) for load in found.workloads.values())]
    for kind, name, *texts in entries:
        console.result(f"{kind} {name}")
        for text in texts:
            console.result(textwrap.fill(text, LIST_COLUMNS, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False))


if __name__ == "__main__":
    sys.exit(cli.run(main))
