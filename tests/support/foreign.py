"""Clients that are not Python's, or need an environment of their own: installed from tests/clients by its locks, once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bundle import ROOT

CLIENTS = ROOT / "tests" / "clients"
INSTALLED = ROOT / ".venv" / "clients"


def installed(lock: str, *commands: list[str]) -> Path:
    """A folder with the files of tests/clients in which `commands` have installed what `lock` says."""
    folder = INSTALLED / Path(lock).stem
    files = {file.name: file.read_text() for file in CLIENTS.iterdir() if file.is_file()}
    mark = folder / "installed.json"
    if not mark.exists() or json.loads(mark.read_text()) != files[lock]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / lock).write_text(files[lock])
        (folder / "package.json").write_text(files["package.json"])
        for command in commands:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
            assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        mark.write_text(json.dumps(files[lock]))
    for name in ("talk.mjs", "talk_litellm.py"):
        (folder / name).write_text(files[name])
    return folder


def node(url: str, key: str) -> Any:
    """What talk.mjs says of the server at `url`."""
    return _said(installed("package-lock.json", ["npm", "ci", "--no-audit", "--no-fund"]), "node", "talk.mjs", url, key=key)


def litellm(url: str, key: str) -> Any:
    """What talk_litellm.py says of it."""
    folder = installed("requirements.lock", [sys.executable, "-m", "venv", "venv"],
                       ["venv/bin/python", "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", "requirements.lock"])
    return _said(folder, str(folder / "venv/bin/python"), "talk_litellm.py", url, key=key)


def _said(folder: Path, *command: str, key: str) -> Any:
    done = subprocess.run(command, cwd=folder, input=key, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
