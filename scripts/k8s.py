"""Write Kubernetes manifests of a deployment into a folder, from the same settings as Compose. No secrets are in them, and no cluster is asked.

usage: python scripts/k8s.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--project NAME] [--gpu NAME] --out DIR [--json]

DIR is a new folder, or one that this has written before. --gpu rtx-5090 resolves `auto` for the GPU of the cluster's nodes.

KUBERNETES.md in it has the commands. Exit codes: 0 written, 2 settings or DIR, 3 Docker Compose is missing (its daemon is not asked).
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
    from bundle.hosts import kubernetesfiles

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_gpu(parser)
    cli.add_json(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder, or one that this has written before")
    options = parser.parse_args(argv)
    chosen = profile.load(cli.deployment(options))
    fit = assessment.assess(chosen, options.gpu)
    if options.gpu:
        chosen = assessment.held_to(chosen, fit)
    chosen = assessment.resolved(chosen, fit)
    chosen.require()
    for line in chosen.remarks():
        console.warn(line)
    written = kubernetesfiles.write(chosen, options.out)
    if options.json:
        console.emit_json(written.as_json())
        return 0
    console.result(f"{written.out}: profile {written.profile}, namespace {written.namespace}, {len(written.files)} files. KUBERNETES.md: how")
    console.result("checked against Kubernetes' schemas, never run on a cluster. It must have:")
    for line in written.provide:
        console.result(f"  - {line}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
