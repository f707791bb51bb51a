"""Check whether this host can run the bundle, without changing anything: Docker, disk, memory, port, GPU, model and secret files.

    python scripts/doctor.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--gpu NAME] [--json]

One line per check: ok, warn or fail, what was found, what to do; below, where a model is known, its fit. Exit 0 when nothing fails, 3 otherwise.
Settings that are wrong are a failed check too (`make check` names each); the others go on with the rest.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import bundle.venv  # noqa: F401
from bundle import cli
from bundle.base import console
from bundle.base.errors import ConfigurationError
from bundle.choice import profile
from bundle.config import settings as configured
from bundle.doctor import host
from bundle.doctor.check import Check
from bundle.doctor.fit import fit_check
from bundle.doctor.host import Needs
from bundle.fit import assessment
from bundle.machine.facts import Host

_FAILED = 3


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_gpu(parser)
    cli.add_json(parser)
    options = parser.parse_args(argv)
    needs, settings, fits = [Needs()], Check(name="settings", state="ok", found=""), [assessment.Fit(unknown="the settings are wrong")]
    here = Host()
    try:
        loaded = profile.load_all(cli.deployment(options))
        needs = [Needs.from_settings(each) for each in loaded]
        settings = replace(settings, found=f"profile {', '.join(each.profile for each in loaded)}")
        configured.require(loaded)
        running = host.is_running(loaded[0].project, here.docker(), here)
        fits = [assessment.assess(each, options.gpu, host=here, idle=running) for each in loaded]
    except ConfigurationError as error:
        settings = replace(settings, state="fail", found=" ".join(error.message.split()), fix=error.fix or "`make check` shows each with its line")
    if options.project:
        needs = [replace(each, project=options.project) for each in needs]
    found = [settings, *host.examine_all(needs, here), *dict.fromkeys(map(fit_check, fits))]
    if options.json:
        console.emit_json([asdict(check) for check in found])
    else:
        console.table(("check", "state", "found", "what to do"), [(c.name, c.state, c.found, c.fix) for c in found])
        for fit in fits:
            if fit.estimate:
                console.result("\n# will it fit?")
                fit.show()
    return _FAILED if any(check.state == "fail" for check in found) else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
