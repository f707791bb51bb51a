"""Can this host run the deployment? One check per thing that it takes, each with what was found and what to do. Changes nothing."""

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.config.keys import HOST_KEYS, size_bytes
from bundle.config.settings import Settings
from bundle.doctor import secretfiles
from bundle.doctor.check import Check, fail, ok, warn
from bundle.doctor.fit import memory_check
from bundle.doctor.gpu import gpu_checks
from bundle.fit import assessment
from bundle.machine import gpu, ports
from bundle.machine.facts import MIN_COMPOSE, MIN_ENGINE, Docker, Host, version
from bundle.models import first, folder
from bundle.models.folder import Fault

ENGINE_UID = 2000
GATEWAY_UID = 2001
IMAGE_GB = {"cuda": 8, "cpu": 3}  # unpacked, rounded up
BUILD_FACTOR = 3  # layers, build stages and the download cache stand beside the image until the build ends
CACHE_GB = 2  # what a start with all images built may write: compiled kernels, logs
MIN_KERNEL = (4, 18)

_SET_UP = "as root `make up` installs it on Debian and Ubuntu; elsewhere: https://docs.docker.com/engine/install/"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a deployment takes of its host. Values that are wrong in the env files stand at their defaults: `make check` names them."""

    target: str = "cpu"
    image: str = ""
    project: str = ""
    bind: str = "127.0.0.1"
    port: int = 0
    memory: int = 0
    """Of each engine, in bytes."""
    replicas: int = 1
    others: int = 0
    """Engines of other models in the same deployment."""
    others_memory: int = 0
    """Of all of those together, in bytes."""
    gpus: int = 1
    """Of all engines together."""
    chosen: tuple[str, ...] = ()
    """Which GPUs, by index or UUID; empty for the first ones."""
    cdi: bool = False
    """Whether its container asks for GPUs through a CDI specification."""
    gpu_share: float | None = 0.0
    """Part of a GPU's memory that the engine asks for; 0 where it is given a number of bytes instead, None for auto."""
    model_dir: Path | None = None
    model: str = ""
    weights: bool = True
    tokenizer: bool = True
    api_keys: Path | None = None
    certificate: Path | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Needs":
        def good(key: str) -> str:
            value = settings.value(key)
            return value if value and not HOST_KEYS[key].fault(value) else ""

        target, replicas = good("IMAGE_TARGET") or "cpu", int(good("HOST_REPLICAS") or 1)
        return cls(
            target=target,
            image=settings.image_engine,
            project=settings.project,
            bind=good("GATEWAY_BIND") or "127.0.0.1",
            port=int(good("GATEWAY_PORT") or 0),
            memory=size_bytes(good("HOST_ENGINE_MEMORY") or "0b"),
            replicas=replicas,
            gpus=settings.gpu_count,
            chosen=settings.gpus if good("HOST_GPUS") else (),
            cdi=good("HOST_ACCELERATOR") == "cuda-cdi",
            gpu_share=settings.gpu_share,
            model_dir=assessment.model_folder(settings),
            model="" if settings.names_no_model else settings.value("ENGINE_MODEL"),
            weights=settings.value("ENGINE_LOAD_FORMAT") != "dummy",
            tokenizer=not settings.value("ENGINE_TOKENIZER") and settings.value("ENGINE_SKIP_TOKENIZER_INIT") != "true",
            api_keys=settings.api_keys_file,
            certificate=settings.tls_cert_file,
        )


def host_checks(models: Sequence[Settings], host: Host | None = None) -> list[Check]:
    """Every check for the deployment of these models. A fail means that `make up` cannot work."""
    return examine_all([Needs.from_settings(each) for each in models], host or Host())


def examine_all(needs: Sequence[Needs], host: Host) -> list[Check]:
    """`examine` for several models: what concerns one alone is told for each, the rest once; the memory of all is asked for together."""
    engines = sum(each.replicas for each in needs)
    together = sum(each.memory * each.replicas for each in needs)
    found: dict[Check, None] = {}
    for each in needs:
        found |= dict.fromkeys(examine(replace(each, others=engines - each.replicas, others_memory=together - each.memory * each.replicas), host))
    return list(found)


def examine(needs: Needs, host: Host) -> list[Check]:
    """As `host_checks`, from what is known of a deployment whose env files are wrong."""
    docker = host.docker()
    found = [_client(docker), _engine(docker), _compose(docker), _buildx(docker), _architecture(needs, docker, host), _kernel(host)]
    if docker.remote:
        elsewhere = f"not looked at: the daemon at {docker.address} has another machine's"
        return [*found, warn("memory, disk, port, gpu, files", elsewhere, "run `make doctor` there")]
    running = is_running(needs.project, docker, host)
    found += [_memory(needs, docker, host, running=running), _disk(needs, docker, host), _port(needs, host)]
    if needs.target == "cuda":
        nvidia = gpu.read(host)
        found += gpu_checks(docker, host, nvidia, named=needs.chosen, count=needs.gpus, replicas=needs.replicas, cdi=needs.cdi)
        if cards := gpu.taken(nvidia.gpus, needs.chosen, needs.gpus):
            found += [memory_check(cards, needs.gpu_share, running=running)]
    else:
        found += [ok("gpu", "not needed by a CPU profile")]
    return [*found, _model(needs, host), *_secrets(needs), *_labels(needs, docker, host)]


def _client(docker: Docker) -> Check:
    name = "docker client"
    if not docker.clients:
        return fail(name, "no `docker` on PATH", _SET_UP)
    first, *hidden = docker.clients
    if not docker.client_version:
        said = f" ({docker.shim.splitlines()[-1]})" if docker.shim else ""
        return fail(name, f"{first} is not Docker's own client{said}", f"put Docker's before it on PATH (podman-docker replaces it); {_SET_UP}")
    found = f"{docker.client_version} at {first}" + (f", which hides {', '.join(map(str, hidden))}" if hidden else "")
    if hidden and {"compose", "buildx"} & set(docker.missing):
        return warn(name, found, f"if the hidden one has Compose and buildx, move {first} out of the way")
    return ok(name, found)


def _engine(docker: Docker) -> Check:
    name = "docker engine"
    if docker.denied:
        return fail(name, f"permission denied at {docker.address}", 'sudo usermod -aG docker "$USER" and log in again; or: sudo make up')
    if docker.error:
        return fail(name, f"no daemon at {docker.address}: {docker.error}",
                    "correct DOCKER_HOST or the docker context, or start that daemon" if docker.elsewhere
                    else "as root `make up` starts it; or: systemctl start docker")
    server = docker.server
    number = str(server.get("ServerVersion", ""))
    found = f"{number} at {docker.address}, {server.get('Driver', '')} in {server.get('DockerRootDir', '')}"
    if str(server.get("DockerRootDir", "")).endswith("/containers/storage"):
        return fail(name, f"Podman {number} answers at {docker.address}", "unset DOCKER_HOST, or point it at Docker's own daemon: Podman gives "
                    "containers their GPUs, limits and restarts in other ways, and was not tried")
    if docker.client_version and version(number) < MIN_ENGINE:
        return fail(name, found, f"update Docker Engine to {_dotted(MIN_ENGINE)} or newer")
    if server.get("Driver") == "vfs":
        return warn(name, found, "vfs keeps every layer whole, so images take many times their size: use overlay2")
    if docker.rootless and (server.get("MemoryLimit") is False or server.get("CgroupDriver") == "none"):
        return warn(name, f"{found}; rootless, and its user may not limit memory", "HOST_ENGINE_MEMORY is not enforced: delegate the controllers "
                    "(systemctl edit user@.service: [Service] Delegate=cpu cpuset io memory pids), then log in again")
    if server.get("MemoryLimit") is False:
        return warn(name, f"{found}; the kernel cannot limit memory", "enable the memory cgroup, or HOST_ENGINE_MEMORY is not enforced")
    return ok(name, found)


def _compose(docker: Docker) -> Check:
    found = docker.plugins.get("compose", "")
    if "compose" in docker.missing:
        return fail("compose", f"{found or 'not there'}; {_dotted(MIN_COMPOSE)} or newer is needed", _SET_UP)
    return ok("compose", found)


def _buildx(docker: Docker) -> Check:
    if "buildx" in docker.missing:
        return fail("buildx", "not there: the images are built with BuildKit", _SET_UP)
    return ok("buildx", docker.plugins["buildx"])


def _architecture(needs: Needs, docker: Docker, host: Host) -> Check:
    name = "architecture"
    machine = docker.server.get("Architecture") or os.uname().machine
    if machine not in ("x86_64", "amd64"):
        return fail(name, machine, "the images are locked to x86_64 wheels: use an x86_64 machine")
    flags = host.read("/proc/cpuinfo")
    if needs.target == "cpu" and flags and not docker.remote and " avx2" not in flags:
        return warn(name, f"{machine} without AVX2", "vLLM's CPU kernels need it: use a newer CPU, or give the VM its host's CPU model")
    return ok(name, machine)


def _kernel(host: Host) -> Check:
    release = host.read("/proc/sys/kernel/osrelease").strip()
    if version(release) < MIN_KERNEL:
        return warn("kernel", release or "not Linux", f"use Linux {_dotted(MIN_KERNEL)} or newer: nothing older was tried")
    return ok("kernel", release)


def _memory(needs: Needs, docker: Docker, host: Host, *, running: bool) -> Check:
    total = docker.server.get("MemTotal") or host.memory("MemTotal")
    free = host.memory("MemAvailable")
    found = f"{_gib(free)} GiB free of {_gib(total)}; HOST_ENGINE_MEMORY is {_gib(needs.memory)} GiB"
    found += f" for each of {needs.replicas} engines" if needs.replicas > 1 else ""
    found += f", and {_gib(needs.others_memory)} GiB for {needs.others} of other models" if needs.others else ""
    wanted = needs.memory * needs.replicas + needs.others_memory
    if wanted > total:
        more = ", or give Linux more of Windows' memory: [wsl2] memory= in .wslconfig, then wsl --shutdown" if host.wsl else ""
        left = max(int((total - needs.others_memory) / needs.replicas / 2**30), 0)
        return fail("memory", found, (f"set HOST_ENGINE_MEMORY to {left}g or less" if left else "lower HOST_ENGINE_MEMORY of each model") + more)
    if wanted > free and not running:
        return warn("memory", found, "end other programs or lower HOST_ENGINE_MEMORY, or the kernel may have to kill something")
    return ok("memory", found)


def _disk(needs: Needs, docker: Docker, host: Host) -> Check:
    built = bool(needs.image) and host.run("docker", "image", "inspect", "--format", "{{.Id}}", needs.image).returncode == 0
    need, purpose = (CACHE_GB, "run") if built else (IMAGE_GB[needs.target] * BUILD_FACTOR, f"build the {needs.target} image")
    free, root = min((host.free_bytes(_existing(host.path(root))) / 1e9, root) for root in _data_roots(docker, host))
    found = f"{free:.0f} GB free for {root}, {need} needed to {purpose}"
    if free < need:
        return fail("disk", found, "free some (`docker system df` shows what Docker holds), or move Docker's data-root to a larger disk")
    return ok("disk", found)


def _data_roots(docker: Docker, host: Host) -> list[str]:
    """Where the daemon keeps images and build cache; while it does not run, where its configuration file says."""
    try:
        configured = json.loads(host.read("/etc/docker/daemon.json") or "{}").get("data-root")
    except (ValueError, AttributeError):
        configured = None
    roots = [str(docker.server.get("DockerRootDir") or configured or "/var/lib/docker")]
    if any("io.containerd.snapshotter" in str(pair) for pair in docker.server.get("DriverStatus") or []):
        roots.append("/var/lib/containerd")
    return roots


def _port(needs: Needs, host: Host) -> Check:
    where = f"{needs.bind}:{needs.port}"
    if needs.port == 0:
        return ok("port", f"any free one on {needs.bind}")
    another = "set GATEWAY_PORT to another (0 takes any free one), or stop that"
    if holder := ports.publisher(host, needs.bind, needs.port):
        container, project = holder
        if project and project == needs.project:
            return ok("port", f"{where} in use by this project ({container})")
        return fail("port", f"{where} is published by container {container}" + (f" of project {project}" if project else ""), another)
    refused = ports.refusal(needs.bind, needs.port)
    if refused is None:
        return ok("port", f"{where} is free")
    if refused.errno == errno.EADDRINUSE:
        return fail("port", f"{where} is taken by {ports.listener(host, needs.bind, needs.port)}", another)
    if refused.errno == errno.EACCES:
        return ok("port", f"{where} cannot be tried without root; the daemon may use it")
    return fail("port", f"{where}: {refused.strerror}", "set GATEWAY_BIND to an address of this host (`ip address` lists them)")


def _model(needs: Needs, host: Host) -> Check:
    if needs.model_dir is None:
        return ok("model", needs.model or f"none is named: `make up` fetches {first.NAME}, or serves the self-test model in the image")
    faults = folder.faults(needs.model_dir, uid=ENGINE_UID, weights=needs.weights, tokenizer=needs.tokenizer)
    found = f"{needs.model_dir}: {folder.summary(needs.model_dir)}"
    if host.wsl and re.match(r"/mnt/[a-z]/", str(needs.model_dir)) and not faults:
        return warn("model", f"{found}; on a disk of Windows, which WSL reads many times slower", "copy it to a folder of Linux's own (~/models)")
    return _fault("model", faults) or ok("model", found)


def _secrets(needs: Needs) -> Iterator[Check]:
    if needs.api_keys:
        faults = secretfiles.key_faults(needs.api_keys, uid=GATEWAY_UID)
        yield _fault("api keys", faults) or ok("api keys", str(needs.api_keys))
    if needs.certificate:
        faults = secretfiles.certificate_faults(needs.certificate, uid=GATEWAY_UID)
        yield _fault("tls certificate", faults) or ok("tls certificate", str(needs.certificate))


def _labels(needs: Needs, docker: Docker, host: Host) -> Iterator[Check]:
    """Where SELinux confines containers, they may read what is labelled for them and nothing else."""
    if host.read("/sys/fs/selinux/enforce").strip() != "1" or "name=selinux" not in (docker.server.get("SecurityOptions") or []):
        return
    mounted = [path for path in (needs.model_dir or (None if needs.model else first.STORE), needs.api_keys, needs.certificate) if path]
    shown = {path: host.run("ls", "-dZ", str(path)).stdout.split(" ")[0] for path in mounted}
    refused = [path for path, label in shown.items() if not re.search(r":(container_file_t|container_share_t|svirt_sandbox_file_t):", label)]
    if refused:
        first_label = shown[refused[0]] or "not there yet"
        fix = "; ".join(f"chcon -R -t container_file_t {path}" for path in refused)
        yield fail("selinux", f"enforcing, and containers may not read {', '.join(map(str, refused))} ({first_label})",
                   f"{f'mkdir -p {first.STORE}; ' if first.STORE in refused else ''}{fix} (semanage fcontext makes it last)")
    else:
        yield ok("selinux", "enforcing; what is mounted is labelled for containers")


def _fault(name: str, faults: list[Fault]) -> Check | None:
    if not faults:
        return None
    return fail(name, "; ".join(fault.found for fault in faults), "; ".join(dict.fromkeys(fault.fix for fault in faults)))


def is_running(project: str, docker: Docker, host: Host) -> bool:
    """Whether a container of `project` runs: what it holds of the host is its own."""
    if docker.error or not project:
        return False
    return bool(host.run("docker", "ps", "--quiet", "--filter", f"label={ports.PROJECT_LABEL}={project}").stdout.strip())


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _dotted(number: tuple[int, int]) -> str:
    return f"{number[0]}.{number[1]}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
