"""What docker/engine/install.sh strips: every library with debug information, and none without. readelf and strip are stubs."""

import os
import subprocess
from pathlib import Path

from bundle import ROOT

READELF = r"""#!/bin/bash
case $3 in
*with*) echo '  [30] .debug_info PROGBITS'; for ((at = 0; at < 20000; at++)); do echo "  [$at] .a_section PROGBITS" || exit 141; done ;;
*broken*) exit 1 ;;
*) echo '  [1] .text PROGBITS' ;;
esac
"""


def test_a_library_is_stripped_however_long_the_list_of_its_sections_is(tmp_path: Path) -> None:
    script = (ROOT / "docker" / "engine" / "install.sh").read_text()
    stripping = script[script.index("find . -type f -name '*.so*'"):]
    for name, text in (("readelf", READELF), ("strip", f"#!/bin/sh\necho \"$2\" >> '{tmp_path}/stripped'\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    libraries = tmp_path / "site-packages"
    libraries.mkdir()
    for name in ("with.so", "with more.so.1", "plain.so", "broken.so", "with.txt"):
        (libraries / name).write_bytes(b"")
    subprocess.run(["bash", "-c", f"set -euo pipefail\n{stripping}"], cwd=libraries, check=True, timeout=60,
                   env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert sorted((tmp_path / "stripped").read_text().splitlines()) == ["./with more.so.1", "./with.so"]
