"""The NVIDIA GPUs of this machine as its driver describes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.machine.facts import Host, version

MIN_CAPABILITY = (7, 5)  # the oldest that vLLM's CUDA 13 kernels are compiled for

_QUERY = "index,name,compute_cap,memory.total,memory.free,driver_version,uuid"
_WSL = "/usr/lib/wsl/lib"  # where Windows puts nvidia-smi: on a login shell's PATH only


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; memory in MiB, compute capability such as (12, 0)."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_mib: int
    free_mib: int
    uuid: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.compute_capability[0]}.{self.compute_capability[1]})"


@dataclass(frozen=True, kw_only=True)
class Nvidia:
    """Driver version (empty: no driver is loaded), the GPUs it lists, and why it lists none."""

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    card: bool = False
    """Whether the PCI bus has an NVIDIA display device, driver or not."""


def read(host: Host) -> Nvidia:
    """Ask nvidia-smi, else the kernel module; never raises."""
    card = any(_is_nvidia_display(folder, host) for folder in host.path("/sys/bus/pci/devices").glob("*"))
    loaded = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", host.read("/proc/driver/nvidia/version"))
    driver = loaded[1] if loaded else ""
    tools = host.programs("nvidia-smi", _WSL)
    if not tools:
        return Nvidia(driver=driver, card=card, error="nvidia-smi is not installed")
    done = host.run(str(tools[0]), f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == _QUERY.count(",")]
    if done.returncode != 0 or not rows:
        said = " ".join((done.stdout + done.stderr).split())
        return Nvidia(driver=driver, card=card, error=said or f"nvidia-smi exits {done.returncode}")
    return Nvidia(driver=rows[0][5], gpus=tuple(_gpu(row) for row in rows), card=True)


def taken(gpus: Sequence[Gpu], named: Sequence[str], count: int) -> tuple[Gpu, ...]:
    """Those of `gpus` that a deployment takes, as Docker gives them to its containers: the ones that HOST_GPUS (`named`) names by index or UUID, else
    the first `count` in the driver's order. Of what only the driver knows (an instance of MIG) as many as are named stand for it."""
    if not all(name.isdigit() or name.startswith("GPU-") for name in named):
        named, count = (), len(named)
    if not named:
        return tuple(gpus[:count])
    return tuple(card for name in named for card in gpus if name == str(card.index) or (name.startswith("GPU-") and card.uuid.startswith(name)))


def _gpu(row: Sequence[str]) -> Gpu:
    return Gpu(index=_int(row[0]), name=row[1], compute_capability=version(row[2]), total_mib=_int(row[3]), free_mib=_int(row[4]), uuid=row[6])


def _is_nvidia_display(device: Path, host: Host) -> bool:
    folder = f"/sys/bus/pci/devices/{device.name}"
    return host.read(f"{folder}/vendor").strip() == "0x10de" and host.read(f"{folder}/class").startswith("0x03")


def _int(text: str) -> int:
    # A driver that cannot say (vGPU, a GPU in MIG mode) prints "[N/A]".
    return int(text) if text.isdigit() else 0
