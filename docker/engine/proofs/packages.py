"""Did any two installed packages bring the same file with different contents? Then one of them is broken, and which one is chance.

    python packages.py        exits 5 and lists the files and their packages. Standard library only.
"""

import csv
import sys
from collections import defaultdict
from importlib.metadata import distributions

HARMLESS = {"build_backend.py"}
"""FlashInfer and torch_c_dlpack_ext install what built them; nothing imports it."""


def clashes() -> list[str]:
    """One line for each file that packages disagree about."""
    claims: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for package in distributions():
        name = package.name
        for file, digest, _size in csv.reader((package.read_text("RECORD") or "").splitlines()):
            if digest:
                claims[file][digest].add(name)
    torn = {file: set().union(*versions.values()) for file, versions in claims.items() if len(versions) > 1}
    return [f"{file}: {' and '.join(sorted(owners))}" for file, owners in sorted(torn.items()) if file not in HARMLESS]


if __name__ == "__main__":
    found = clashes()
    print("\n".join(found) or "ok   every file belongs to one package")
    sys.exit(5 if found else 0)
