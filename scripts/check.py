"""Show what a deployment would run, where each value came from, and what is wrong with it. Needs no Docker (but --deep), changes nothing.

usage: python scripts/check.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--gpu NAME]
                               [--deep] [--json | --flatten [FILE]]

What `auto` becomes is shown with its reason, where the model and the GPU are known, and stands in what --flatten writes.

--gpu rtx-5090 refuses what cannot start on that GPU, with the arithmetic. Where MODEL_DIR is set, the model's fit is shown: on the GPU that is
named, or on this host's as if nothing else ran there.

--deep asks the engine in the image too: its own parser, and its configuration of the model, in a container without network and GPU (about 20 s).

--flatten writes the whole deployment as one env file that stands alone:
    python scripts/check.py --profile cpu --flatten handoff.env && docker compose --env-file handoff.env up -d --wait

Exit codes: 0 nothing is wrong (warnings do not count), 2 something is.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import bundle.venv  # noqa: F401
from bundle import ROOT, cli

if TYPE_CHECKING:
    from bundle.config.settings import Settings


def _several(models: Sequence["Settings"], options: argparse.Namespace) -> int:
    """The same for each of several models: what is shown, one after the other; as JSON, a list."""
    from bundle.base import console
    from bundle.base.errors import ConfigurationError
    from bundle.config import settings
    from bundle.fit import assessment
    from bundle.service import preview

    if options.flatten or options.deep:
        raise ConfigurationError("--flatten and --deep take one model", fix="name one of the profiles; several are started by `make up`")
    fits = [assessment.assess(each, options.gpu) for each in models]
    held = [assessment.held_to(each, fit) if options.gpu else each for each, fit in zip(models, fits, strict=True)]
    if options.json:
        console.emit_json([preview.as_json(each, fit) for each, fit in zip(held, fits, strict=True)])
        return 2 if any(each.errors for each in held) else 0
    settings.require(held)
    for each, fit in zip(held, fits, strict=True):
        preview.show(each, fit)
    return 0


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import profile
    from bundle.doctor import accelerator
    from bundle.fit import assessment
    from bundle.service import preview

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_gpu(parser)
    cli.add_json(parser)
    parser.add_argument("--deep", action="store_true", help="ask the engine in the image, without network and GPU")
    parser.add_argument("--flatten", metavar="FILE", nargs="?", const="-", help="write the flattened env file (no FILE: to stdout)")
    options = parser.parse_args(argv)
    models = profile.load_all(cli.deployment(options))
    if not options.gpu:  # that one is another host's
        models = tuple(accelerator.settled(each) for each in models)
    if len(models) > 1:
        return _several(models, options)
    chosen = models[0]
    fit = assessment.assess(chosen, options.gpu)
    if options.gpu:
        chosen = assessment.held_to(chosen, fit)
    chosen = assessment.resolved(chosen, fit)
    if options.deep and not chosen.errors:
        from bundle.images import engineconfig  # it needs docker-py, which a host without Docker may lack

        with console.step(f"asking {chosen.image_engine}"):
            answer = engineconfig.ask(chosen, fit.device)
        chosen = engineconfig.held_to(chosen, answer)
        if not answer.error:
            console.note(f"the engine takes it: {answer.summary}")
    if options.json:
        console.emit_json(preview.as_json(chosen, fit))
        return 2 if chosen.errors else 0
    chosen.require()
    if options.flatten and (line := assessment.unresolved(chosen)):
        console.warn(line)
    if options.flatten == "-":
        sys.stdout.write(chosen.flatten("handoff.env"))
    elif options.flatten:
        # Compose reads the name from its project's folder, where compose.yaml is.
        Path(options.flatten).write_text(chosen.flatten(os.path.relpath(options.flatten, ROOT)), encoding="utf-8")
        console.note(f"written: {options.flatten}")
    else:
        preview.show(chosen, fit)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
