"""One archive for a bug report: what every verb says of the deployment, the services' last lines and metrics, and no secret."""

import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from bundle import ROOT
from bundle.base import console
from bundle.service import status
from bundle.service.deployment import Deployment

LAST_LINES = 2000
OF_SETTINGS, OF_SERVICES = ("doctor", "check", "fit"), ("status", "top")
"""The verbs that are asked: of what the deployment was brought up with, and of what runs."""
_TIMEOUT_S = 120
# What looks like a secret wherever it stands: bearer tokens, keys of the usual services, values of variables that are called so.
_LOOKS_SECRET = re.compile(
    r"(?i)(?<=bearer )\S{8,}|\b(?:sk|hf|ghp|glpat|xox[abp])[-_][A-Za-z0-9_-]{8,}"
    r"|(?<=_token=)\S+|(?<=_key=)\S{8,}|(?<=password=)\S+|(?<=_secret=)\S+")


def write(deployment: Deployment, out: Path) -> list[str]:
    """Make the archive `out` (.tar.gz); the names of its files. What cannot be had is in it as the reason. Raises OSError."""
    hidden = secrets(deployment)
    folder = out.name.removesuffix(".tar.gz")
    names = []
    with tarfile.open(out, "w:gz") as archive:
        out.chmod(0o600)
        for name, text in _parts(deployment):
            data = redacted(text, hidden).encode()
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o644
            archive.addfile(entry, io.BytesIO(data))
            names.append(name)
    return names


def secrets(deployment: Deployment) -> list[str]:
    """What this deployment's own secret files hold, longest first."""
    found: set[str] = set()
    for key in ("GATEWAY_API_KEYS_FILE", "MONITORING_WEBHOOK_FILE"):
        if value := deployment.values().get(key):
            try:
                text = (deployment.home / Path(value).expanduser()).read_text(errors="replace")
            except OSError:
                continue
            found |= {line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")}
    return sorted(found, key=len, reverse=True)


def redacted(text: str, hidden: Iterable[str]) -> str:
    """`text` without the `hidden` words, passwords in addresses, and what looks like a secret."""
    for word in hidden:
        text = text.replace(word, "[REDACTED]")
    return _LOOKS_SECRET.sub("[REDACTED]", console.redacted(text))


def _parts(deployment: Deployment) -> Iterable[tuple[str, str]]:
    yield "versions.json", json.dumps({"python": sys.version, "bundle": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
                                       "docker": _said("docker", "version", "--format", "{{json .}}"),
                                       "compose": _said("docker", "compose", "version"), "kernel": _said("uname", "-a"),
                                       "nvidia-smi": _said("nvidia-smi")}, indent=1)
    brought_up = ("--env-file", str(deployment.env_file)) if deployment.is_written else ()
    for verb in (*OF_SETTINGS, *OF_SERVICES):
        of = brought_up if verb in OF_SETTINGS else ("--project", deployment.project)
        yield f"{verb}.txt", _said(sys.executable, str(ROOT / "scripts" / f"{verb}.py"), *of, "--json")
    for part, text in deployment.written().items():
        yield f"env/{deployment.project}.{part}", text
    for name, container in sorted(deployment.containers().items()):
        yield f"logs/{name}.log", deployment.log(container, lines=LAST_LINES)
        if container.is_engine:
            answer = status.ask(deployment, container)
            yield f"metrics/{name}.txt", answer["metrics"] if answer else "it does not answer\n"


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return f"{done.stdout}{done.stderr}exit {done.returncode}\n"


