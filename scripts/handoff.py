"""Write everything that runs a deployment elsewhere, with Docker alone, into one folder or archive. No secrets are in it.

usage: python scripts/handoff.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--gpu NAME]
                                 --out PATH [--with-images] [--json]

PATH is a new folder, or an archive where it ends in .tar.gz. --with-images adds `docker save` archives, for hosts that cannot get the images.
--gpu rtx-5090 computes the fit for the GPU of the receiving host, and refuses what cannot start there.

HANDOFF.md in it says how to run it. Exit codes: 0 written, 2 settings or PATH, 3 images or disk space are missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import profile
    from bundle.fit import assessment
    from bundle.handoff import pack

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_gpu(parser)
    cli.add_json(parser)
    parser.add_argument("--out", metavar="PATH", type=Path, required=True, help="a new folder, or a new file that ends in .tar.gz")
    parser.add_argument("--with-images", action="store_true", help="add the images themselves (gigabytes)")
    options = parser.parse_args(argv)
    chosen = profile.load(cli.deployment(options))
    fit = assessment.assess(chosen, options.gpu)
    if options.gpu:
        chosen = assessment.held_to(chosen, fit)
    chosen = assessment.resolved(chosen, fit)
    chosen.require()
    for line in (*chosen.remarks(), *filter(None, [assessment.unresolved(chosen)])):
        console.warn(line)
    written = pack.write(chosen, fit, options.out, with_images=options.with_images)
    if options.json:
        console.emit_json(written.as_json())
        return 0
    console.result(f"{written.out}: profile {written.profile}, {len(written.files)} files; HANDOFF.md says how to run it")
    console.result(f"sha256 of its SHA256SUMS: {written.fingerprint}")
    console.result("the receiving host must provide:")
    for line in written.provide:
        console.result(f"  - {line}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
