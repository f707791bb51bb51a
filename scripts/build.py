"""Build the images of a deployment that are missing or stale, and say how large they are and where the bytes are.

usage: python scripts/build.py [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]... [--force] [--json]

The whole output of a build is kept in .state/build-<target>.log. Exit codes: 0 built or up to date, 2 settings, 3 a build failed.
"""

import sys
from collections.abc import Sequence
from typing import Any

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.choice import profile
    from bundle.config import settings
    from bundle.images import build

    parser = cli.parser(__doc__)
    cli.add_deployment(parser)
    cli.add_json(parser)
    parser.add_argument("--force", action="store_true", help="build everything anew, also to get the distribution's updates")
    options = parser.parse_args(argv)
    chosen = profile.load_all(cli.deployment(options))
    settings.require(chosen)
    answer: list[dict[str, Any]] = []
    images = {built.image.name: built for each in chosen for built in build.ensure(each, force=options.force)}
    for built in images.values():
        name = built.image.name
        answer.append({"service": built.image.service, "image": name, "seconds": round(built.seconds, 1), "bytes": build.size(name),
                       "layers": build.layers(name), "packages": build.packages(name) if built.image.lock else {}})
    if options.json:
        console.emit_json({"images": answer})
        return 0
    took = [f"{image['seconds']:.0f} s" if image["seconds"] else "up to date" for image in answer]
    console.table(("image", "GB", "built in"), [(image["image"], _gb(image["bytes"]), time) for image, time in zip(answer, took, strict=True)])
    for image in answer:
        console.result(f"\nwhere the bytes of {image['image']} are")
        rows = [(_gb(layer["bytes"]), "layer", str(layer["made_by"])[:110]) for layer in image["layers"][:5]]
        rows += [(_gb(size), "package", name) for name, size in list(image["packages"].items())[:12]]
        console.table(("GB", "", ""), rows)
    return 0


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


if __name__ == "__main__":
    sys.exit(cli.run(main))
