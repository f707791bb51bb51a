"""What each optimization is worth, and the proof of it from the built image.

usage: python scripts/optimizations.py list [--verdict VERDICT] [--json]
       python scripts/optimizations.py explain NAME [--json]
       python scripts/optimizations.py audit [--image NAME] [--library FILE]... [--limit SECONDS] [--json]

NAME: CUDA_CACHE_MAXSIZE, --swap-space and ENGINE_SWAP_SPACE are all understood.
audit searches every file of the image for each variable's name, asks the image's own parser about each flag, and compares both with the
records. It needs no GPU. --library adds the driver's library (libcuda.so.1) of another place than this host's usual folders.
Exit codes: 0 they agree, 5 they do not, 3 there is no such image, 2 no such record.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.choice import profile
    from bundle.config import verdicts
    from bundle.tuning import optimizations

    parser = cli.parser(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | explain | audit")
    listing = verbs.add_parser("list", help="one line for each record", allow_abbrev=False)
    listing.add_argument("--verdict", choices=verdicts.VERDICTS, help="only those")
    explain = verbs.add_parser("explain", help="all that is known of one setting", allow_abbrev=False)
    explain.add_argument("name", metavar="NAME", nargs="?", default="")
    proof = verbs.add_parser("audit", help="do the records say what is true of the built image?", allow_abbrev=False)
    proof.add_argument("--image", metavar="NAME", help="an engine image (default: the one of the profile for this host)")
    proof.add_argument("--library", metavar="FILE", action="append", default=[], help="the driver's library; repeatable")
    proof.add_argument("--limit", metavar="SECONDS", type=cli.positive, default=900.0, help="longest search (default: 900)")
    for verb in (listing, explain, proof):
        cli.add_json(verb)
    # A flag that is asked about starts with dashes, as an option does.
    options, rest = parser.parse_known_args(argv)
    names = [name for name in (getattr(options, "name", ""), *rest) if name]
    if len(names) != (options.verb == "explain"):
        parser.error(f"explain takes one NAME: {' '.join(names) or 'none is given'}" if options.verb == "explain" else f"what is {' '.join(rest)}?")
    records = verdicts.load()
    if options.verb == "audit":
        from bundle.tuning import audit  # it needs docker-py, which a host without Docker may lack

        found = audit.run(options.image or profile.load(profile.Wanted()).image_engine, options.library, records, options.limit)
        audit.show(found, as_json=options.json)
        audit.require(found)
    elif options.verb == "explain":
        optimizations.show(optimizations.find(names[0], records), as_json=options.json)
    else:
        optimizations.show_list([record for record in records if options.verdict in (None, record.verdict)], as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
