"""Ask the running service everything that a client relies on: answers, streams, limits, refusals, metrics.

usage: python scripts/smoke.py [--project NAME] [--json] [--limit SECONDS]
       python scripts/smoke.py --url http://HOST:PORT [--model NAME] [--api-key-file FILE] [--ca-file FILE] ...

Exit codes: 0 all passed, 5 an expectation failed, 4 the server does not answer, 3 nothing is up, 2 a wrong option.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.base.errors import CheckFailedError
    from bundle.service.deployment import DEFAULT_PROJECT, Deployment
    from bundle.smoke import client, expectations

    parser = cli.parser(__doc__)
    cli.add_project(parser)
    parser.add_argument("--url", help="any OpenAI-compatible server, instead of this bundle's own")
    parser.add_argument("--model", default="", metavar="NAME",
                        help="the model to ask (default: each that the deployment serves; with --url the first that is listed)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file whose first line is the bearer key")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="PEM of the authority, or of a self-signed certificate (with --url)")
    parser.add_argument("--limit", type=cli.positive, default=300.0, metavar="SECONDS", help="for all expectations together (default 300)")
    cli.add_json(parser)
    options = parser.parse_args(argv)
    if options.url is not None and options.project:
        parser.error("--url and --project name two servers; give one")
    if options.ca_file and options.url is None:
        parser.error("--ca-file goes with --url; a deployment's own certificate is known")

    key = client.first_key(options.api_key_file) if options.api_key_file else ""
    if options.url is not None:
        server = client.Server.at_url(options.url, key=key, ca_file=options.ca_file)
    else:
        server = client.Server.from_deployment(Deployment(project=options.project or DEFAULT_PROJECT))
        server.key = key or server.key
    failed, found = False, []
    for name in [options.model] if options.model else server.models or ("",):
        each = replace(server)
        each.connect(name, limit_s=options.limit)
        results = expectations.run(each, report=lambda r: console.note(f"{'✗' if r.state == 'fail' else '✓'} {r.name} {r.seconds:.1f}s"))
        found.append({"url": each.url, "model": each.model, "checks": [r.as_json() for r in results]})
        if not options.json:
            console.table(("expectation", "state", "time", "detail"), [(r.name, r.state, f"{r.seconds:.1f} s", r.outcome) for r in results])
        console.note(f"{each.model} at {each.url}: {expectations.summary(results)}")
        failed = failed or any(r.state == "fail" for r in results)
    if options.json:
        console.emit_json(found[0] if len(found) == 1 else found)
    return CheckFailedError.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
