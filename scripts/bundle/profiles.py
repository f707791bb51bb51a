"""The profiles there are, and the one for this host."""

import subprocess
from pathlib import Path

from bundle import ROOT


def default_profile() -> tuple[str, str]:
    """The profile for this host's hardware, and why."""
    if Path("/dev/nvidia0").exists():
        return "throughput", "/dev/nvidia0 is there"
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu", "no NVIDIA GPU is visible (no /dev/nvidia0, and nvidia-smi does not run)"
    if found.returncode == 0 and "GPU" in found.stdout:
        return "throughput", f"nvidia-smi lists {found.stdout.splitlines()[0].split(' (')[0]}"
    return "cpu", "no NVIDIA GPU is visible (no /dev/nvidia0, and nvidia-smi lists none)"


def names(root: Path = ROOT) -> list[str]:
    """The profiles there are: every env file but base and site."""
    return sorted(path.stem for path in (root / "env").glob("*.env") if path.stem not in ("base", "site"))
