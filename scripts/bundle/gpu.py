"""The NVIDIA GPUs of this machine as its driver describes them, and whether they can carry an engine."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.checklist import Check, fail, ok, warn
from bundle.hostfacts import Docker, Host, version

MIN_DRIVER = 580  # CUDA 13
MIN_CAPABILITY = (7, 5)  # the oldest that vLLM's CUDA 13 kernels are compiled for
TARGET_CAPABILITY = 12  # RTX 5090 is 12.0; Hopper's and datacenter Blackwell's own kernels are pruned from the image

_QUERY = "index,name,compute_cap,memory.total,memory.free,driver_version"
_WSL = "/usr/lib/wsl/lib"  # where Windows puts nvidia-smi: on a login shell's PATH only
_NO_GPU = "`make up PROFILE=cpu` serves on the CPU; a GPU needs NVIDIA driver 580 or newer (Ubuntu: apt-get install nvidia-driver-580-open)"
_TOOLKIT = "install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; memory in MiB, compute capability such as (12, 0)."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_mib: int
    free_mib: int

    @property
    def shown(self) -> str:
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


def checks(docker: Docker, host: Host, nvidia: Nvidia, *, count: int) -> Iterator[Check]:
    """Can `count` GPUs carry an engine? All but their memory, which is fit's arithmetic."""
    if not nvidia.driver:
        found = "an NVIDIA card without a driver" if nvidia.card else "no NVIDIA GPU for a GPU profile"
        yield fail("gpu driver", f"{found} ({nvidia.error})", _NO_GPU)
        return
    if version(nvidia.driver)[0] < MIN_DRIVER:
        yield fail("gpu driver", f"{nvidia.driver}; CUDA 13 needs {MIN_DRIVER} or newer", f"update it to {MIN_DRIVER} or newer, then reboot")
    else:
        yield ok("gpu driver", nvidia.driver)
    if not nvidia.gpus:
        yield fail("gpu", f"the driver lists none: {nvidia.error}", "install nvidia-smi (it comes with the driver); after a driver update, reboot")
    else:
        yield _cards(nvidia.gpus, count)
    yield _in_containers(docker, host)


def _cards(gpus: Sequence[Gpu], count: int) -> Check:
    used, found = gpus[:count], ", ".join(card.shown for card in gpus)
    if len(used) < count:
        return fail("gpu", f"{len(gpus)} of {count}: {found}", f"set HOST_GPU_COUNT={len(gpus)}")
    if min(card.compute_capability for card in used) < MIN_CAPABILITY:
        return fail("gpu", f"{found}: the engine has no code for a compute capability under 7.5", "`make up PROFILE=cpu`, or a newer card")
    if any(card.compute_capability[0] != TARGET_CAPABILITY for card in used):
        return warn("gpu", found, f"made for compute capability {TARGET_CAPABILITY}.x: kernels that only other cards use are not in the image")
    return ok("gpu", found)


def _in_containers(docker: Docker, host: Host) -> Check:
    """Whether a container that asks for a GPU gets one: Docker finds NVIDIA's hook by its name, newer ones a CDI specification."""
    name = "gpu in containers"
    if "nvidia" in (docker.server.get("Runtimes") or {}):
        return ok(name, "Docker has the nvidia runtime")
    if hooks := host.programs("nvidia-container-runtime-hook", "/usr/bin"):
        return ok(name, f"NVIDIA's hook at {hooks[0]}")
    folders = docker.server.get("CDISpecDirs") or ["/etc/cdi", "/var/run/cdi"]
    files = [f"{folder}/{file.name}" for folder in folders for pattern in ("*.yaml", "*.json") for file in sorted(host.path(folder).glob(pattern))]
    described = [file for file in files if "nvidia.com/gpu" in host.read(file)]
    if not described:
        return fail(name, "neither the nvidia runtime nor a CDI specification", _TOOLKIT)
    if version(docker.server.get("ServerVersion", "")) < (29, 0):
        return fail(name, f"CDI only ({described[0]}), and Docker before 29 answers no GPU request with it", _TOOLKIT)
    return ok(name, f"CDI: {described[0]}")


def _gpu(row: Sequence[str]) -> Gpu:
    return Gpu(index=_int(row[0]), name=row[1], compute_capability=version(row[2]), total_mib=_int(row[3]), free_mib=_int(row[4]))


def _is_nvidia_display(device: Path, host: Host) -> bool:
    folder = f"/sys/bus/pci/devices/{device.name}"
    return host.read(f"{folder}/vendor").strip() == "0x10de" and host.read(f"{folder}/class").startswith("0x03")


def _int(text: str) -> int:
    # A driver that cannot say (vGPU, a GPU in MIG mode) prints "[N/A]".
    return int(text) if text.isdigit() else 0
