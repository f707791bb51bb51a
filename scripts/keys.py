"""The API keys of the gateway: list them by name, add one, revoke one. A running gateway takes the change at once, and no stream notices.

usage: python scripts/keys.py [--add NAME [--metrics-only | --class interactive|batch] | --revoke NAME]
                              [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--json]

The file is GATEWAY_API_KEYS_FILE. --add prints the new key, once. A key with --metrics-only reads /metrics and nothing else.
Where ENGINE_SCHEDULING_POLICY=priority, requests with a key of --class batch wait until all others have been begun.
Exit codes: 0 done, 2 no key file is set, or it is broken, or the name does not do.
"""

import sys
from collections.abc import Sequence

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.base.errors import ConfigurationError
    from bundle.choice import profile
    from bundle.config import apikeys
    from bundle.service import credentials
    from bundle.service.deployment import Deployment

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_json(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--add", metavar="NAME", help="make a key under this name, and print it")
    what.add_argument("--revoke", metavar="NAME", help="take the key of this name away")
    parser.add_argument("--metrics-only", action="store_true", help="with --add: it reads /metrics and nothing else")
    parser.add_argument("--class", dest="class_", choices=apikeys.CLASSES, default="", help="with --add: whose requests come first")
    options = parser.parse_args(argv)
    if options.class_ and (options.add is None or options.metrics_only):
        parser.error("--class goes with --add, and not with --metrics-only")
    if options.metrics_only and options.add is None:
        parser.error("--metrics-only goes with --add")
    models = profile.load_all(cli.deployment(options))
    chosen = models[0]
    deployment = Deployment.from_settings(chosen)
    file = credentials.key_file(deployment, chosen)
    if file is None:
        raise ConfigurationError("no keys are asked for: GATEWAY_API_KEYS_FILE is not set",
                                 fix="set it in env/site.env to a file that lies outside of this folder; make keys ADD=name makes the file")
    if options.add is options.revoke is None:
        keys = credentials.listed(file)
        if options.json:
            console.emit_json({"file": str(file), "keys": [{"name": key.name, "metrics_only": key.metrics_only, "class": key.class_ or None}
                                                           for key in keys]})
        else:
            console.table(("key", "may", "class"), [(key.name or "(no name)", "read /metrics" if key.metrics_only else "all", key.class_ or "-")
                                                    for key in keys])
        return 0
    with deployment.locked("keys"):
        if options.add is not None:
            secret = credentials.add(file, options.add, metrics_only=options.metrics_only, class_=options.class_).secret
            # At once: whatever comes, the file has it now, and nothing else will show it.
            console.emit_json({"file": str(file), "name": options.add, "key": secret}) if options.json else console.result(secret)
        else:
            credentials.revoke(file, options.revoke)
            if options.json:
                console.emit_json({"file": str(file), "revoked": options.revoke})
        if options.class_ and not any(each.value("ENGINE_SCHEDULING_POLICY") == "priority" for each in models):
            console.warn("the class has no effect yet: no model has ENGINE_SCHEDULING_POLICY=priority")
        if applied := credentials.apply(deployment):
            console.note(f"✓ the running gateway knows: {applied}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
