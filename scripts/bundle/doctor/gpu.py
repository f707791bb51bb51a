"""Can this host's NVIDIA GPUs carry an engine, and does a container get them?"""

import re
from collections.abc import Iterator, Sequence

from bundle.doctor.check import Check, fail, ok, warn
from bundle.machine.facts import Docker, Host, version
from bundle.machine.gpu import MIN_CAPABILITY, Gpu, Nvidia, taken

MIN_DRIVER = 580  # CUDA 13
TARGET_CAPABILITY = 12  # RTX 5090 is 12.0; Hopper's and datacenter Blackwell's own kernels are pruned from the image

_NO_GPU = "`make up PROFILE=cpu` serves on the CPU; a GPU needs NVIDIA driver 580 or newer (Ubuntu: apt-get install nvidia-driver-580-open)"
_TOOLKIT = "install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"

_IN_WINDOWS = "install or update NVIDIA's driver in Windows, to 580 or newer, then wsl --shutdown; inside WSL there must be none"
_NO_CGROUPS = "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place"
CDI = "cuda-cdi"
"""HOST_ACCELERATOR, where GPUs are asked for through CDI: all of them, for one engine."""
_BY_NAME = (29, 0)
"""Docker that answers a plain request for GPUs with a CDI specification; before, who asks has to name CDI."""


def gpu_checks(docker: Docker, host: Host, nvidia: Nvidia, *, named: Sequence[str] = (), count: int = 1, replicas: int = 1,
               cdi: bool = False) -> Iterator[Check]:
    """Can the GPUs that are taken (`named` and `count` as in `gpu.taken`) carry `replicas` engines, which get them by a CDI specification if `cdi`?
    All but their memory, which is fit's arithmetic."""
    if not nvidia.driver:
        found = "an NVIDIA card without a driver" if nvidia.card else "no NVIDIA GPU for a GPU profile"
        yield fail("gpu driver", f"{found} ({nvidia.error})", f"`make up PROFILE=cpu` serves on the CPU; {_IN_WINDOWS}" if host.wsl else _NO_GPU)
        return
    if version(nvidia.driver)[0] < MIN_DRIVER:
        yield fail("gpu driver", f"{nvidia.driver}; CUDA 13 needs {MIN_DRIVER} or newer",
                   _IN_WINDOWS if host.wsl else f"update it to {MIN_DRIVER} or newer, then reboot")
    else:
        yield ok("gpu driver", nvidia.driver)
    if not nvidia.gpus and nvidia.error:
        yield fail("gpu", f"the driver lists none: {nvidia.error}", "install nvidia-smi (it comes with the driver); after a driver update, reboot")
    else:
        yield _cards(nvidia.gpus, named, count, replicas)
    yield _in_containers(docker, host, cdi=cdi, divided=bool(named) or replicas > 1)


def by_cdi_alone(docker: Docker, host: Host) -> str:
    """The CDI specification by which this Docker gives GPUs, where it does so only to who asks for CDI devices by name; "" where it gives them to a
    plain request, or not at all."""
    off = not docker.server.get("CDISpecDirs")  # Docker 25 and later name the folders where the feature is on
    if off or docker.remote or _hook(docker, host) or version(docker.server.get("ServerVersion", "")) >= _BY_NAME:
        return ""
    return next(iter(_specifications(docker, host)), "")


def _cards(gpus: Sequence[Gpu], named: Sequence[str], count: int, replicas: int) -> Check:
    used = taken(gpus, named, count)
    found = ", ".join(card.label for card in used)
    if len(used) < count:
        return fail("gpu", f"{len(used)} of {count}: {found or 'HOST_GPUS names none of this host'}",
                    f"set HOST_GPU_COUNT={len(used)}" if replicas == 1 and used and not named else
                    f"HOST_REPLICAS x HOST_GPU_COUNT may be {len(gpus)} at most; `nvidia-smi -L` lists what HOST_GPUS may name")
    if min(card.compute_capability for card in used) < MIN_CAPABILITY:
        return fail("gpu", f"{found}: the engine has no code for a compute capability under 7.5", "`make up PROFILE=cpu`, or a newer card")
    if any(card.compute_capability[0] != TARGET_CAPABILITY for card in used):
        return warn("gpu", found, f"made for compute capability {TARGET_CAPABILITY}.x: kernels that only other cards use are not in the image")
    left = [card for card in gpus if card not in used]
    if not named and (other := max(left, key=lambda card: card.total_mib, default=None)) and other.name not in {card.name for card in used}:
        return warn("gpu", f"{found} is GPU {used[0].index}, and taken because it is the first; GPU {other.index} is a {other.label}",
                    f"HOST_GPUS={other.index} in env/site.env takes that one, HOST_GPUS={used[0].index} says that this one is meant")
    return ok("gpu", found)


def _hook(docker: Docker, host: Host) -> str:
    """By what of NVIDIA's a plain request for GPUs is answered; "" where nothing is."""
    if "nvidia" in (docker.server.get("Runtimes") or {}):
        return "Docker has the nvidia runtime"
    hooks = host.programs("nvidia-container-runtime-hook", "/usr/bin")
    return f"NVIDIA's hook at {hooks[0]}" if hooks else ""


def _specifications(docker: Docker, host: Host) -> list[str]:
    """The CDI specifications of NVIDIA GPUs where Docker looks for them, or would."""
    folders = docker.server.get("CDISpecDirs") or ["/etc/cdi", "/var/run/cdi"]
    files = [f"{folder}/{file.name}" for folder in folders for pattern in ("*.yaml", "*.json") for file in sorted(host.path(folder).glob(pattern))]
    return [file for file in files if "nvidia.com/gpu" in host.read(file)]


def _in_containers(docker: Docker, host: Host, *, cdi: bool, divided: bool) -> Check:
    """Whether a container that asks for a GPU gets one: Docker finds NVIDIA's hook by its name, newer ones a CDI specification."""
    name = "gpu in containers"
    if not cdi and not divided and (file := by_cdi_alone(docker, host)):
        return ok(name, f"CDI: {file}; HOST_ACCELERATOR={CDI} is chosen for it")
    if docker.rootless and not cdi and not re.search(r"^\s*no-cgroups\s*=\s*true", host.read("/etc/nvidia-container-runtime/config.toml"), re.M):
        return fail(name, "Docker runs rootless, and NVIDIA's hook would set device rules, which only root may", _NO_CGROUPS)
    if not cdi and (hook := _hook(docker, host)):
        return ok(name, hook)
    described = _specifications(docker, host)
    if not described:
        return fail(name, "neither the nvidia runtime nor a CDI specification", _TOOLKIT)
    if version(docker.server.get("ServerVersion", "")) < _BY_NAME and not (cdi and docker.server.get("CDISpecDirs")):
        if docker.server.get("CDISpecDirs"):
            return fail(name, f"CDI only ({described[0]}), and by that Docker before 29 gives all GPUs to one engine",
                        f"one engine with all GPUs (HOST_REPLICAS=1, no HOST_GPUS), Docker 29, or {_TOOLKIT}")
        return fail(name, f"CDI only ({described[0]}), and this Docker does not use it", _TOOLKIT)
    return ok(name, f"CDI: {described[0]}")
