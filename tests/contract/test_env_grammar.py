"""Compose reads an env file as the scripts do: what `make check` shows is what the container gets."""

import json
import subprocess
from pathlib import Path

from support.env_lines import GOOD

COMPOSE = """
services:
  reader:
    image: none
    env_file: ["${HOST_ENV_FILE:?}"]
    environment:
"""


def test_compose_reads_every_accepted_line_alike(tmp_path: Path) -> None:
    # Each value twice: as `env_file` hands it to the container, and as compose.yaml interpolates it.
    expected = {f"K{number}": value for number, value in enumerate(GOOD.values())}
    lines = [f"K{number}={line.partition('=')[2]}" for number, line in enumerate(GOOD)]
    (tmp_path / "x.env").write_text("\n".join(["# comment", "", "HOST_ENV_FILE=x.env", *lines, ""]), encoding="utf-8")
    (tmp_path / "compose.yaml").write_text(COMPOSE + "".join(f"      I{key}: ${{{key}}}\n" for key in expected), encoding="utf-8")
    done = subprocess.run(["docker", "compose", "--env-file", "x.env", "config", "--format", "json"], capture_output=True, text=True, check=True,
                          timeout=60, cwd=tmp_path, env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)})
    environment = json.loads(done.stdout)["services"]["reader"]["environment"]
    # `config` prints a dollar as two.
    got = {key: (value or "").replace("$$", "$") for key, value in environment.items() if key.startswith(("K", "IK"))}
    assert got == {**expected, **{f"I{key}": value for key, value in expected.items()}}
