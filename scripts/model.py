"""Fetch a model from the hub into a directory of its own, or check one that is already here, and say the MODEL_DIR line for it.

    python scripts/model.py --name ORG/MODEL [--revision R] [--into STORE] [--token-file FILE] [--endpoint URL] [--offline] [--write] [--json]
    python scripts/model.py --from DIR [--write] [--json]

--name puts the model into STORE/ORG/MODEL (STORE: models/ in the bundle): only the files that vLLM reads, each held against the
hub's checksum. The directory appears when it is complete; a run that was broken off goes on where it stopped; a further run
verifies and fetches only what is missing or damaged. --offline verifies what is here and asks nobody.
--from checks a directory that is already here: complete, whole, readable by the engine's user. It copies and changes nothing.
Exit 0 when the model is complete, 2 for a bad option, 3 for hub, network, disk or an incomplete model, 5 for wrong bytes, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import ROOT, cli
from bundle.base import console
from bundle.models import hub
from bundle.models import store as modelstore


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--name", metavar="ORG/MODEL", type=hub.model_name, help="the model's name on the hub")
    source.add_argument("--from", metavar="DIR", dest="directory", type=Path, help="a model that is already on this host")
    parser.add_argument("--revision", metavar="R", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument("--into", metavar="STORE", type=Path, default=ROOT / "models", help="where models lie (default: models/ in the bundle)")
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="a file with the hub's token, for gated and private models")
    parser.add_argument("--endpoint", metavar="URL", default="", help="another hub or a mirror (default: HF_ENDPOINT, else the public hub)")
    parser.add_argument("--offline", action="store_true", help="verify only, without any network")
    parser.add_argument("--write", action="store_true", help="put the MODEL_DIR line into env/site.env")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    if options.directory or options.offline:
        stored = modelstore.verify(options.directory or options.into / options.name)
    else:
        stored = modelstore.fetch(hub.connect(endpoint=options.endpoint, token_file=options.token_file), options.name,
                                  revision=options.revision, store=options.into)
    line = modelstore.line(stored.directory)
    if options.write:
        modelstore.point_to(stored.directory, ROOT / "env" / "site.env")
    if options.json:
        console.emit_json({**asdict(stored), "line": line})
        return 0
    console.result(line)
    console.note(f"env/site.env {'has' if options.write else 'wants'} this line; next: make check, then make up")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
