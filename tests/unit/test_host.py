"""Each check says ok, warn or fail from what the host is, names what it found, and what to do."""

import copy
import hashlib
import os
import pwd
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.base.errors import PrerequisiteError
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.doctor import accelerator, host
from bundle.doctor.check import Check, fail
from bundle.doctor.host import Needs, examine
from bundle.machine import ports, setup
from bundle.models import folder
from bundle.service import lifecycle
from bundle.service.deployment import Deployment
from support import modelfolder, verbs
from support.fakehost import INFO, PLUGINS, FakeHost

NEEDS = Needs(target="cpu", image="engine:1", project="mine", port=0, memory=8 * 2**30)
GPU_NEEDS = replace(NEEDS, target="cuda", gpu_share=0.9)
RTX_5090 = "0, NVIDIA GeForce RTX 5090, 12.0, 32607, 32100, 580.95.05, GPU-5f1c\n"
TOOLKIT = {"nvidia": {"path": "nvidia-container-runtime"}}


@pytest.fixture
def fake() -> Iterator[FakeHost]:
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        yield FakeHost(Path(folder))


def info(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(INFO), **changes}


def client(*plugins: Mapping[str, str]) -> dict[str, Any]:
    return {"Version": "20.10.24", "Plugins": list(plugins)}


def look(fake: FakeHost, needs: Needs = NEEDS, *, daemon: bool = True, **host: Any) -> dict[str, Check]:
    with fake.daemon() if daemon else nullcontext():
        found = examine(needs, fake.host(**host))
    assert all(check.found for check in found)
    assert all(bool(check.fix) == (check.state != "ok") for check in found), "a fix for everything that is not ok, and for nothing else"
    return {check.name: check for check in found}


def states(found: Mapping[str, Check], state: str) -> set[str]:
    return {name for name, check in found.items() if check.state == state}


# Docker


def test_a_complete_host_is_ok_throughout(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake)
    assert states(found, "ok") == set(found)
    assert list(found) == ["docker client", "docker engine", "compose", "buildx", "architecture", "kernel", "memory", "disk", "port", "gpu", "model"]


def test_without_docker_the_other_checks_go_on(fake: FakeHost) -> None:
    found = look(fake, daemon=False)
    assert states(found, "fail") == {"docker client", "docker engine", "compose", "buildx"}
    assert found["docker client"].found == "no `docker` on PATH"
    assert "`make up` installs it" in found["docker client"].fix
    assert {"memory", "disk", "port", "model"} <= states(found, "ok")


def test_a_daemon_that_does_not_run_is_named_with_its_address(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, daemon=False)
    assert states(found, "fail") == {"docker engine"}
    assert found["docker engine"].found == "no daemon at unix:///var/run/docker.sock: No such file or directory"
    assert "systemctl start docker" in found["docker engine"].fix


def test_a_socket_that_nobody_listens_on_is_a_daemon_that_does_not_run(fake: FakeHost) -> None:
    fake.docker()
    with fake.daemon():
        pass
    assert look(fake, daemon=False)["docker engine"].found.endswith("Connection refused")


def test_a_daemon_that_docker_host_names_is_never_this_machines_to_start(fake: FakeHost) -> None:
    fake.docker()
    engine = look(fake, environ={"DOCKER_HOST": "unix:///nonexistent"}, daemon=False)["docker engine"]
    assert (engine.state, engine.found) == ("fail", "no daemon at unix:///nonexistent: No such file or directory")
    assert "DOCKER_HOST" in engine.fix
    assert "systemctl" not in engine.fix


def test_the_daemon_of_the_docker_context_in_use_is_asked(fake: FakeHost) -> None:
    fake.docker()
    folder = f"/.docker/contexts/meta/{hashlib.sha256(b'rootless').hexdigest()}"
    fake.file("/.docker/config.json", '{"currentContext": "rootless"}')
    fake.file(f"{folder}/meta.json", '{"Endpoints": {"docker": {"Host": "unix:///run/user/1000/docker.sock"}}}')
    assert look(fake)["docker engine"].found.startswith("no daemon at unix:///run/user/1000/docker.sock")
    assert look(fake, environ={"DOCKER_CONTEXT": "default"})["docker engine"].state == "ok"


def test_a_remote_daemons_machine_is_not_judged_by_this_one(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, environ={"DOCKER_HOST": "tcp://192.0.2.1:2376"}, daemon=False)
    assert "disk" not in found
    assert found["memory, disk, port, gpu, files"].state == "warn"


def test_permission_denied_at_the_socket_says_how_to_get_it(fake: FakeHost) -> None:
    fake.docker()
    fake.root.chmod(0o755)
    root = os.geteuid() == 0
    with fake.daemon():
        (fake.root / "var/run/docker.sock").chmod(0)
        if root:
            os.seteuid(65534)  # every socket opens to root: only another user shows what a refusal looks like
        try:
            engine = look(fake, daemon=False)["docker engine"]
        finally:
            if root:
                os.seteuid(0)
    assert (engine.state, engine.found) == ("fail", "permission denied at unix:///var/run/docker.sock")
    assert "usermod -aG docker" in engine.fix


def test_the_client_that_is_used_is_named_with_those_that_it_hides(fake: FakeHost) -> None:
    fake.docker()
    hidden = fake.program("docker", "exit 1", folder="/opt/bin")
    found = look(fake, environ={"PATH": f"{fake.root}/bin:{fake.root}/opt/bin"})["docker client"]
    assert (found.state, found.found) == ("ok", f"20.10.24 at {fake.root}/bin/docker, which hides {hidden}")


def test_a_client_without_plugins_that_hides_another_is_a_warning(fake: FakeHost) -> None:
    fake.docker(info=info(ClientInfo=client()))
    fake.program("docker", "exit 1", folder="/opt/bin")
    found = look(fake, environ={"PATH": f"{fake.root}/bin:{fake.root}/opt/bin"})
    assert states(found, "warn") == {"docker client"}
    assert f"move {fake.root}/bin/docker out of the way" in found["docker client"].fix
    assert states(found, "fail") == {"compose", "buildx"}


def test_a_client_that_does_not_say_its_version_among_the_rest_is_asked_for_it(fake: FakeHost) -> None:
    fake.docker(info=info(ClientInfo={"Debug": False, "Plugins": list(PLUGINS)}))  # as Docker 20.10 does
    found = look(fake)
    assert states(found, "ok") == set(found)
    assert found["docker client"].found.startswith("20.10.24+dfsg1 at ")


def test_two_names_of_one_client_hide_nothing(fake: FakeHost) -> None:
    fake.docker()
    (fake.root / "sbin").symlink_to(fake.root / "bin")
    assert "hides" not in look(fake, environ={"PATH": f"{fake.root}/bin:{fake.root}/sbin"})["docker client"].found


def test_podmans_command_of_the_same_name_is_recognized(fake: FakeHost) -> None:
    fake.docker(info={"host": {"arch": "amd64"}, "version": {"Version": "4.3.1"}})
    found = look(fake)
    assert states(found, "fail") == {"docker client", "compose", "buildx"}
    assert "not Docker's own client" in found["docker client"].found


def test_a_context_that_is_not_there_is_no_fault_of_the_client(fake: FakeHost) -> None:
    fake.docker()
    rest = (fake.root / "bin/docker").read_text().split("\n", 2)[2]
    unknown = 'case "$*" in info*) echo "context nosuch: context not found" >&2; exit 1 ;; esac'
    fake.program("docker", f'{unknown}\n[ "$1" = --context ] && shift 2\n{rest}')
    found = look(fake, environ={"DOCKER_CONTEXT": "nosuch"})
    assert states(found, "fail") == {"docker engine"}
    assert found["docker engine"].found.startswith("no daemon at context nosuch: ")


@pytest.mark.parametrize(("number", "state"), [("2.19.9", "fail"), ("1.29.2", "fail"), ("2.20.0", "ok"), ("v2.32.4-desktop.1", "ok"),
                                               ("5.0.1", "ok")])
def test_compose_must_be_2_20_or_newer(fake: FakeHost, number: str, state: str) -> None:
    fake.docker(info=info(ClientInfo=client({"Name": "compose", "Version": number}, PLUGINS[1])))
    found = look(fake)["compose"]
    assert found.state == state
    assert number in found.found


def test_a_plugin_that_docker_cannot_run_is_not_there(fake: FakeHost) -> None:
    fake.docker(info=info(ClientInfo=client({**PLUGINS[0], "Err": "exec format error"}, PLUGINS[1])))
    assert look(fake)["compose"].found == "not there; 2.20 or newer is needed"


def test_a_missing_buildx_fails(fake: FakeHost) -> None:
    fake.docker(info=info(ClientInfo=client(PLUGINS[0])))
    assert states(look(fake), "fail") == {"buildx"}


def test_an_old_engine_fails(fake: FakeHost) -> None:
    fake.docker(info=info(ServerVersion="19.03.15"))
    assert states(look(fake), "fail") == {"docker engine"}


@pytest.mark.parametrize("change", [{"Driver": "vfs"}, {"MemoryLimit": False}])
def test_an_engine_that_wastes_disk_or_cannot_limit_memory_is_a_warning(fake: FakeHost, change: dict[str, Any]) -> None:
    fake.docker(info=info(**change))
    assert states(look(fake), "warn") == {"docker engine"}


# Machine


def test_another_architecture_fails(fake: FakeHost) -> None:
    fake.docker(info=info(Architecture="aarch64"))
    assert states(look(fake), "fail") == {"architecture"}


def test_a_cpu_without_avx2_is_a_warning_for_a_cpu_profile(fake: FakeHost) -> None:
    fake.docker()
    fake.file("/proc/cpuinfo", "flags\t\t: fpu avx\n")
    assert states(look(fake), "warn") == {"architecture"}


def test_an_old_kernel_is_a_warning(fake: FakeHost) -> None:
    fake.docker()
    fake.file("/proc/sys/kernel/osrelease", "3.10.0-1160.el7\n")
    assert states(look(fake), "warn") == {"kernel"}


def test_more_memory_than_the_machine_has_fails_with_a_value_that_works(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, memory=64 * 2**30))["memory"]
    assert found.state == "fail"
    assert found.found == "16.0 GiB free of 24.0; HOST_ENGINE_MEMORY is 64.0 GiB"
    assert found.fix == "set HOST_ENGINE_MEMORY to 24g or less"


def test_every_replica_takes_its_own_memory(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, memory=14 * 2**30, replicas=2))["memory"]
    assert (found.state, found.fix) == ("fail", "set HOST_ENGINE_MEMORY to 12g or less")
    assert found.found.endswith("HOST_ENGINE_MEMORY is 14.0 GiB for each of 2 engines")


def test_memory_that_others_use_is_a_warning_unless_this_project_is_running(fake: FakeHost) -> None:
    needs = replace(NEEDS, memory=20 * 2**30)
    fake.docker()
    assert states(look(fake, needs), "warn") == {"memory"}
    fake.docker(project="mine")
    assert states(look(fake, needs), "warn") == set()


@pytest.mark.parametrize(("target", "free_gb", "state"), [("cpu", 8.9, "fail"), ("cpu", 9.1, "ok"), ("cuda", 23.9, "fail"), ("cuda", 24.1, "ok")])
def test_disk_must_hold_three_times_the_image_to_build_it(fake: FakeHost, target: str, free_gb: float, state: str) -> None:
    fake.docker(images=False)
    found = look(fake, replace(NEEDS, target=target), free_gb=free_gb)["disk"]
    assert found.state == state
    assert f"to build the {target} image" in found.found


@pytest.mark.parametrize(("free_gb", "state"), [(1.9, "fail"), (2.1, "ok")])
def test_an_image_that_is_built_needs_little_more(fake: FakeHost, free_gb: float, state: str) -> None:
    fake.docker(images=True)
    assert look(fake, free_gb=free_gb)["disk"].state == state


def test_the_disk_that_counts_is_where_docker_keeps_its_data(fake: FakeHost) -> None:
    asked: list[Path] = []

    def free(path: Path) -> int:
        asked.append(path)
        return 100 * 10**9

    fake.file("/etc/docker/daemon.json", '{"data-root": "/mnt/big/docker"}')
    (fake.root / "mnt/big").mkdir(parents=True)
    examine(NEEDS, replace(fake.host(), free_bytes=free))
    assert asked == [fake.root / "mnt/big"], "the nearest folder that exists, by the daemon's configuration while it is down"
    fake.docker(info=info(DockerRootDir="/srv/docker", DriverStatus=[["driver-type", "io.containerd.snapshotter.v1"]]))
    (fake.root / "srv/docker").mkdir(parents=True)
    (fake.root / "var/lib/containerd").mkdir(parents=True)
    with fake.daemon():
        examine(NEEDS, replace(fake.host(), free_bytes=free))
    assert asked[1:] == [fake.root / "srv/docker", fake.root / "var/lib/containerd"]


# Port


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET) as taken:
        taken.bind((request.param, 0))
        taken.listen()
        yield request.param, taken.getsockname()[1]


def test_the_process_that_holds_the_port_is_named(fake: FakeHost, listening: tuple[str, int]) -> None:
    fake.docker()
    (fake.root / "proc/net").symlink_to("/proc/net")
    (fake.root / f"proc/{os.getpid()}").symlink_to(f"/proc/{os.getpid()}")
    bind = "127.0.0.1" if listening[0] == "0.0.0.0" else listening[0]
    found = look(fake, replace(NEEDS, bind=bind, port=listening[1]))["port"]
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert (found.state, found.found) == ("fail", f"{bind}:{listening[1]} is taken by {name} (process {os.getpid()})")


def test_a_connection_over_the_port_is_not_mistaken_for_its_listener(fake: FakeHost) -> None:
    fake.file("/proc/net/tcp", "header\n" + "".join(
        f"  {n}: 0100007F:1F45 0100007F:9C40 {state} 00000000:00000000 00:00000000 00000000  1000  0 {inode} 1\n"
        for n, state, inode in ((0, "01", 111), (1, "0A", 222))))
    for pid, name, inode in ((10, "visitor", 111), (20, "server", 222)):
        fake.file(f"/proc/{pid}/comm", f"{name}\n")
        (fake.root / f"proc/{pid}/fd").mkdir()
        (fake.root / f"proc/{pid}/fd/3").symlink_to(f"socket:[{inode}]")
    assert ports.listener(fake.host(), "127.0.0.1", 8005) == "server (process 20)"


def test_another_users_process_is_named_by_its_user(fake: FakeHost, listening: tuple[str, int]) -> None:
    fake.docker()
    (fake.root / "proc/net").symlink_to("/proc/net")  # and no process folder: as it is for a user who may not look
    found = look(fake, replace(NEEDS, bind=listening[0], port=listening[1]))["port"]
    assert f"is taken by a process of user {pwd.getpwuid(os.getuid()).pw_name} (as root this names it)" in found.found


def test_the_container_that_publishes_the_port_is_named(fake: FakeHost) -> None:
    fake.docker(publishing="8005", project="other", container="other-gateway-1")
    found = look(fake, replace(NEEDS, port=8005))["port"]
    assert (found.state, found.found) == ("fail", "127.0.0.1:8005 is published by container other-gateway-1 of project other")
    fake.docker(publishing="8005", container="plain")
    assert look(fake, replace(NEEDS, project="", port=8005))["port"].found == "127.0.0.1:8005 is published by container plain"


def test_our_own_gateways_port_is_fine(fake: FakeHost) -> None:
    fake.docker(publishing="8005", project="mine", container="mine-gateway-1")
    found = look(fake, replace(NEEDS, port=8005))["port"]
    assert (found.state, found.found) == ("ok", "127.0.0.1:8005 in use by this project (mine-gateway-1)")


def test_the_same_port_on_another_address_is_free(fake: FakeHost) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fake.docker(publishing=str(port), project="other", address="192.0.2.7")
    assert look(fake, replace(NEEDS, port=port))["port"].found == f"127.0.0.1:{port} is free"
    fake.docker(publishing=str(port), project="other", address="0.0.0.0")
    assert look(fake, replace(NEEDS, port=port))["port"].state == "fail"


def test_an_address_of_another_machine_fails(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, bind="192.0.2.1", port=8005))["port"]
    assert (found.state, found.found) == ("fail", "192.0.2.1:8005: Cannot assign requested address")


# GPU


def gpu_host(fake: FakeHost, cards: str = RTX_5090, **changes: Any) -> None:
    fake.docker(info=info(**{"Runtimes": TOOLKIT, **changes}))
    fake.program("nvidia-smi", f"printf '{cards}'")


def test_a_5090_with_its_driver_and_runtime_is_ok(fake: FakeHost) -> None:
    gpu_host(fake)
    found = look(fake, GPU_NEEDS)
    assert states(found, "ok") == set(found)
    assert found["gpu"].found == "NVIDIA GeForce RTX 5090 (12.0)"
    assert found["gpu driver"].found == "580.95.05"
    assert found["gpu memory"].found == "30.85 GiB of 31.36 for an engine on GPU 0"


def test_no_gpu_for_a_gpu_profile_fails_and_points_to_the_cpu(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, GPU_NEEDS)
    assert states(found, "fail") == {"gpu driver"}
    assert found["gpu driver"].found == "no NVIDIA GPU for a GPU profile (nvidia-smi is not installed)"
    assert "make up PROFILE=cpu" in found["gpu driver"].fix


def test_a_card_without_a_driver_is_told_apart_from_no_card(fake: FakeHost) -> None:
    fake.docker()
    fake.file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    fake.file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    assert look(fake, GPU_NEEDS)["gpu driver"].found.startswith("an NVIDIA card without a driver")


@pytest.mark.parametrize(("driver", "state"), [("570.211.01", "fail"), ("580.65.06", "ok"), ("590.1", "ok")])
def test_the_driver_must_be_580_or_newer(fake: FakeHost, driver: str, state: str) -> None:
    gpu_host(fake, RTX_5090.replace("580.95.05", driver))
    found = look(fake, GPU_NEEDS)["gpu driver"]
    assert found.state == state
    assert driver in found.found


@pytest.mark.parametrize("line", ["NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n",
                                  "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n"])
def test_the_kernel_module_names_the_driver_where_nvidia_smi_fails(fake: FakeHost, line: str) -> None:
    fake.docker(info=info(Runtimes=TOOLKIT))
    fake.file("/proc/driver/nvidia/version", line)
    fake.program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    found = look(fake, GPU_NEEDS)
    assert found["gpu driver"].found == "580.95.05"
    assert found["gpu"].found == "the driver lists none: Failed to initialize NVML: Driver/library version mismatch"
    assert "reboot" in found["gpu"].fix


def test_fewer_gpus_than_asked_for_fail(fake: FakeHost) -> None:
    gpu_host(fake)
    found = look(fake, replace(GPU_NEEDS, gpus=2))["gpu"]
    assert (found.state, found.fix) == ("fail", "set HOST_GPU_COUNT=1")


def test_only_the_gpus_that_are_named_are_looked_at(fake: FakeHost) -> None:
    gpu_host(fake)
    assert look(fake, replace(GPU_NEEDS, chosen=("0",)))["gpu"].state == look(fake, GPU_NEEDS)["gpu"].state
    found = look(fake, replace(GPU_NEEDS, chosen=("7",)))["gpu"]
    assert (found.state, found.found) == ("fail", "0 of 1: HOST_GPUS names none of this host")


@pytest.mark.parametrize(("name", "capability", "state"), [("Tesla V100", "7.0", "fail"), ("NVIDIA H200", "9.0", "warn"),
                                                          ("RTX PRO 6000", "12.0", "ok")])
def test_the_compute_capability_decides(fake: FakeHost, name: str, capability: str, state: str) -> None:
    gpu_host(fake, f"0, {name}, {capability}, 80000, 79000, 580.95.05, GPU-5f1c\n")
    found = look(fake, GPU_NEEDS)["gpu"]
    assert found.state == state
    assert f"{name} ({capability})" in found.found


def test_gpu_memory_that_others_hold_fails_unless_this_project_holds_it(fake: FakeHost) -> None:
    gpu_host(fake, RTX_5090.replace("32100", "20000"))
    found = look(fake, GPU_NEEDS)["gpu memory"]
    assert found.state == "fail"
    assert found.found.startswith("GPU 0: ENGINE_GPU_MEMORY_UTILIZATION=0.9: 28.22 GiB are wanted of 31.36, and 19.03 are free at start: vLLM raises")
    assert found.fix.endswith("set ENGINE_GPU_MEMORY_UTILIZATION=auto (now 0.59)")
    fake.docker(info=info(Runtimes=TOOLKIT), project="mine")
    assert look(fake, GPU_NEEDS)["gpu memory"].state == "ok"


def test_the_fullest_of_the_gpus_that_are_used_counts(fake: FakeHost) -> None:
    gpu_host(fake, RTX_5090 + RTX_5090.replace("0, NV", "1, NV").replace("32100", "1000"))
    assert look(fake, GPU_NEEDS)["gpu memory"].state == "ok"
    assert "GPU 1:" in look(fake, replace(GPU_NEEDS, gpus=2))["gpu memory"].found


def test_the_seeds_099_is_refused_before_the_start_with_its_arithmetic(fake: FakeHost) -> None:
    gpu_host(fake)
    found = look(fake, replace(GPU_NEEDS, gpu_share=0.99))["gpu memory"]
    assert found.state == "fail"
    assert "31.05 GiB are wanted of 31.36, and 30.85 are free at start" in found.found


def test_auto_takes_what_there_is_and_fails_where_nothing_is(fake: FakeHost) -> None:
    gpu_host(fake)
    assert look(fake, replace(GPU_NEEDS, gpu_share=None))["gpu memory"].found.endswith("; auto takes 0.967")
    gpu_host(fake, RTX_5090.replace("32100", "1000"))
    assert look(fake, replace(GPU_NEEDS, gpu_share=None))["gpu memory"].state == "fail"


def test_of_two_kinds_of_gpu_the_first_is_taken_and_the_other_is_named(fake: FakeHost) -> None:
    gpu_host(fake, "0, NVIDIA GeForce RTX 3060, 8.6, 12288, 11900, 580.95.05, GPU-77aa\n" + RTX_5090.replace("0, NV", "1, NV"))
    found = look(fake, GPU_NEEDS)
    assert found["gpu"].state == "warn"
    assert found["gpu memory"].found.endswith("on GPU 0")
    gpu_host(fake, RTX_5090 + "1, NVIDIA GeForce RTX 3060, 8.6, 12288, 11900, 580.95.05, GPU-77aa\n")
    found = look(fake, GPU_NEEDS)
    assert found["gpu"].found == ("NVIDIA GeForce RTX 5090 (12.0) is GPU 0, and taken because it is the first; "
                                  "GPU 1 is a NVIDIA GeForce RTX 3060 (8.6)")
    assert "HOST_GPUS=1 in env/site.env" in found["gpu"].fix
    assert look(fake, replace(GPU_NEEDS, chosen=("0",)))["gpu"].state == "ok"
    for named in ("1", "GPU-77aa"):
        found = look(fake, replace(GPU_NEEDS, chosen=(named,)))
        assert found["gpu"].found == "NVIDIA GeForce RTX 3060 (8.6)"
        assert found["gpu memory"].found.endswith("on GPU 1")


def test_without_nvidias_runtime_containers_get_no_gpu(fake: FakeHost) -> None:
    gpu_host(fake, Runtimes={"runc": {}})
    found = look(fake, GPU_NEEDS)
    assert states(found, "fail") == {"gpu in containers"}
    assert "nvidia-container-toolkit" in found["gpu in containers"].fix


def test_nvidias_hook_on_path_is_enough(fake: FakeHost) -> None:
    gpu_host(fake, Runtimes={"runc": {}})
    fake.program("nvidia-container-runtime-hook", "exit 0")
    assert look(fake, GPU_NEEDS)["gpu in containers"].state == "ok"


CDI_FOLDERS = ["/etc/cdi", "/var/run/cdi"]


def cdi_host(fake: FakeHost, cards: str = RTX_5090, **changes: Any) -> None:
    """As the H100 host of reports/published/2026-11-26-h100-image: Docker 26.1.5 with CDI on, one specification, nothing else of NVIDIA's."""
    gpu_host(fake, cards, **{"Runtimes": {"io.containerd.runc.v2": {}, "runc": {}}, "ServerVersion": "26.1.5", "CDISpecDirs": CDI_FOLDERS, **changes})
    fake.file("/etc/cdi/nvidia.yaml", "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n  - name: all\n")


@pytest.mark.parametrize("engine", ["25.0.0", "26.1.5", "28.3.2"])
def test_where_docker_gives_gpus_through_cdi_alone_that_is_chosen_and_said(fake: FakeHost, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    cdi_host(fake, ServerVersion=engine)
    with fake.daemon():
        chosen = accelerator.settled(settings.load("throughput", [], [], environ={}), fake.host())
    why = "Docker here has no NVIDIA runtime, and gives GPUs by /etc/cdi/nvidia.yaml to who asks for CDI devices alone"
    assert (chosen.value("HOST_ACCELERATOR"), chosen.origin["HOST_ACCELERATOR"]) == ("cuda-cdi", f"chosen: {why}")
    assert f"HOST_ACCELERATOR: cuda-cdi: {why}" in " ".join(capsys.readouterr().err.split())
    found = look(fake, GPU_NEEDS)["gpu in containers"]
    assert (found.state, found.found) == ("ok", "CDI: /etc/cdi/nvidia.yaml; HOST_ACCELERATOR=cuda-cdi is chosen for it")
    assert look(fake, replace(GPU_NEEDS, cdi=True))["gpu in containers"].found == "CDI: /etc/cdi/nvidia.yaml"


@pytest.mark.parametrize(("changes", "sets", "value"), [
    ({"Runtimes": TOOLKIT}, (), ""),
    ({"ServerVersion": "29.0.0"}, (), ""),
    ({"CDISpecDirs": []}, (), ""),
    ({"CDISpecDirs": ["/var/run/cdi"]}, (), ""),
    ({"OperatingSystem": "Docker Desktop"}, (), ""),
    ({}, ("HOST_ACCELERATOR=cuda",), "cuda"),
    ({"Runtimes": TOOLKIT}, ("HOST_ACCELERATOR=cuda-cdi",), "cuda-cdi"),
    ({}, ("HOST_REPLICAS=2",), ""),
    ({}, ("HOST_GPUS=0",), ""),
    ({}, ("IMAGE_TARGET=cpu",), ""),
])
def test_cdi_is_not_chosen_where_it_is_not_needed_cannot_do_it_or_something_else_was_said(
        changes: dict[str, Any], sets: tuple[str, ...], value: str, fake: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    cdi_host(fake, **changes)
    before = settings.load("throughput", [], sets, environ={})
    with fake.daemon():
        after = accelerator.settled(before, fake.host())
    assert after is before
    assert after.value("HOST_ACCELERATOR") == value
    assert capsys.readouterr().err == ""


def test_nvidias_hook_goes_before_cdi(fake: FakeHost) -> None:
    cdi_host(fake)
    fake.program("nvidia-container-runtime-hook", "exit 0")
    before = settings.load("throughput", [], [], environ={})
    with fake.daemon():
        assert accelerator.settled(before, fake.host()) is before


@pytest.mark.parametrize("needs", [{"replicas": 2, "gpus": 2}, {"chosen": ("0",)}])
def test_who_divides_the_gpus_of_such_a_host_is_told_what_can_be_done(needs: dict[str, Any], fake: FakeHost) -> None:
    cdi_host(fake, RTX_5090 + RTX_5090.replace("0, NV", "1, NV"))
    found = look(fake, replace(GPU_NEEDS, **needs))["gpu in containers"]
    assert found.state == "fail"
    assert found.found == "CDI only (/etc/cdi/nvidia.yaml), and by that Docker before 29 gives all GPUs to one engine"
    assert found.fix.startswith("one engine with all GPUs (HOST_REPLICAS=1, no HOST_GPUS), Docker 29, or install nvidia-container-toolkit")


def test_a_newer_docker_answers_plain_requests_with_cdi(fake: FakeHost) -> None:
    cdi_host(fake, ServerVersion="29.0.0")
    assert look(fake, GPU_NEEDS)["gpu in containers"].found == "CDI: /etc/cdi/nvidia.yaml"


@pytest.mark.parametrize(("folders", "state"), [(["/etc/cdi"], "ok"), ([], "fail")])
def test_a_deployment_that_asks_through_cdi_needs_a_docker_that_has_it_on(fake: FakeHost, folders: list[str], state: str) -> None:
    cdi_host(fake, CDISpecDirs=folders)
    assert look(fake, replace(GPU_NEEDS, cdi=True))["gpu in containers"].state == state


@pytest.mark.parametrize("roll", [False, True])
def test_a_start_goes_by_what_was_chosen(roll: bool, fake: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the checks of the host, which is where this start ends."""
    cdi_host(fake)
    monkeypatch.setattr(accelerator, "Host", fake.host)
    monkeypatch.setattr(setup, "prepare", lambda _: None)
    asked: list[Settings] = []

    def checked(models: Sequence[Settings]) -> list[Check]:
        asked.extend(models)
        return [fail("x", "y", "z")]

    monkeypatch.setattr(host, "host_checks", checked)
    chosen = settings.load("throughput", [], ["HOST_ACCELERATOR=" + ("cuda" if roll else ""), *(["HOST_REPLICAS=2"] if roll else [])], environ={})
    with fake.daemon(), pytest.raises(PrerequisiteError, match="x: y"):
        lifecycle.up([chosen], Deployment(project="cdi-test", state=tmp_path), roll=roll)
    assert [each.value("HOST_ACCELERATOR") for each in asked] == ["cuda" if roll else "cuda-cdi"]


def test_check_shows_it_and_writes_it_for_plain_compose_but_not_for_a_named_gpu(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    cdi_host(fake)
    monkeypatch.setattr(accelerator, "Host", fake.host)
    sets = ("--profile", "throughput", "--set", "ENGINE_MODEL=/opt/bundle/selftest-model", "--set", "ENGINE_MAX_NUM_SEQS=8")
    with fake.daemon():
        done = verbs.call("check", *sets, "--flatten")
        named = verbs.call("check", *sets, "--gpu", "rtx-5090", "--flatten")
    assert "\nHOST_ACCELERATOR=cuda-cdi\n" in done.stdout, done.stderr
    assert "# chosen: Docker here has no NVIDIA runtime" in done.stdout
    assert "\nHOST_ACCELERATOR=\n" in named.stdout


# Files


def test_a_model_directory_that_is_not_there_fails(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, model_dir=Path("/nowhere/model")))["model"]
    assert (found.state, found.found) == ("fail", "/nowhere/model: no such directory")


def secret(folder: Path, content: bytes, mode: int = 0o644) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_good_key_file_is_ok_and_no_key_is_shown(fake: FakeHost) -> None:
    fake.docker()
    path = secret(fake.root, b"# who has which key\nsk-canary-1-4f1d0c\nsk-canary-2-4f1d0c bob\nsk-canary-3-4f1d0c prometheus metrics-only\n")
    found = look(fake, replace(NEEDS, api_keys=path))["api keys"]
    assert found.state == "ok"
    assert "canary" not in str(found)


@pytest.mark.parametrize(("content", "mode", "text"), [
    (b"", 0o644, "holds no key: the gateway would refuse everyone"),
    (b"\n# only a comment\n\n", 0o644, "holds no key"),
    (b"sk-canary\r\n", 0o644, "Windows line ends"),
    (b"sk-good-4f1d0c-4f1d0c\nsk canary two words\n", 0o644, "secret:2: this key has 2 characters; less than 16 can be guessed"),
    (b"sk-canary-4f1d0c\xc3\xa9\n", 0o644, "secret:1: a key is one word of ASCII"),
    (b" sk-canary-4f1d0c\n", 0o644, "secret:1: a key is one word of ASCII characters, at the start of its line"),
    (b"sk-canary-4f1d0c a b\n", 0o644, "secret:1: behind the key stands its name, one word, and then at most one of metrics-only"),
    (b"sk-canary-4f1d0c metrics-only\n", 0o644, "secret:1: metrics-only is no name"),
    (b"sk-canary-4f1d0c a/b\n", 0o644, "secret:1: 'a/b' is no name"),
    (b"sk-canary-4f1d0c a\nsk-canary-4f1d0c b\n", 0o644, "secret:2: this key stands in the file twice"),
    (b"sk-canary-4f1d0c a\nsk-canary-4f1d0d a\n", 0o644, "secret:2: there is a key of the name a already"),
    (b"sk-canary-4f1d0c\n", 0o600, "not readable by the gateway's user 2001"),
])
def test_a_bad_key_file_fails_without_showing_a_key(fake: FakeHost, content: bytes, mode: int, text: str) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, api_keys=secret(fake.root, content, mode)))["api keys"]
    assert found.state == "fail"
    assert text in found.found
    assert "canary" not in str(found)


def test_a_secret_file_that_is_not_there_or_no_file_is_named(fake: FakeHost) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, api_keys=Path("/nowhere/keys"), certificate=fake.root))
    assert found["api keys"].found == "/nowhere/keys: no such file"
    assert found["tls certificate"].found == f"{fake.root}: not a file"


@pytest.fixture(scope="module")
def pem() -> dict[str, bytes]:
    """Two certificates with their keys."""
    parts: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a", "b"):
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                            "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.crt"], check=True, capture_output=True)
            parts |= {f"{name}.{kind}": Path(folder, f"{name}.{kind}").read_bytes() for kind in ("key", "crt")}
        subprocess.run(["openssl", "pkey", "-in", f"{folder}/a.key", "-aes256", "-passout", "pass:x", "-out", f"{folder}/locked"], check=True)
        parts["damaged.key"] = parts["a.key"].replace(b"M", b"!", 1)
        parts["locked.key"] = Path(folder, "locked").read_bytes()
    return parts


@pytest.mark.parametrize(("parts", "text"), [
    (["a.crt", "a.key"], ""),
    (["a.key", "a.crt"], ""),
    (["a.crt"], "holds no private key in PEM form"),
    (["a.key"], "holds no certificate in PEM form"),
    ([], "holds no certificate and no private key in PEM form"),
    (["a.crt", "damaged.key"], "its private key or its certificate is damaged"),
    (["a.crt", "b.key"], "its private key does not belong to its certificate"),
    (["a.crt", "locked.key"], "its private key is encrypted"),
])
def test_a_certificate_file_must_hold_a_certificate_and_its_own_open_key(fake: FakeHost, pem: dict[str, bytes], parts: list[str], text: str) -> None:
    fake.docker()
    found = look(fake, replace(NEEDS, certificate=secret(fake.root, b"".join(pem[part] for part in parts))))["tls certificate"]
    assert found.state == ("fail" if text else "ok")
    assert text in found.found


# From the env files


def test_a_deployments_needs_are_read_from_its_settings() -> None:
    needs = Needs.from_settings(settings.load("cpu", sets=["GATEWAY_PORT=8123", "HOST_ENGINE_MEMORY=6g", "MODEL_DIR=/models/x", "HOST_PROJECT=mine",
                                                "GATEWAY_API_KEYS_FILE=/etc/keys", "ENGINE_LOAD_FORMAT=dummy"], environ={}))
    assert (needs.target, needs.port, needs.memory, needs.project) == ("cpu", 8123, 6 * 2**30, "mine")
    assert (needs.model_dir, needs.api_keys, needs.weights, needs.tokenizer) == (Path("/models/x"), Path("/etc/keys"), False, True)


def test_values_that_are_wrong_do_not_stop_the_other_checks() -> None:
    sets = ["GATEWAY_PORT=http", "HOST_ENGINE_MEMORY=much", "GATEWAY_BIND=here", "IMAGE_TARGET=tpu"]
    needs = Needs.from_settings(settings.load("cpu", sets=sets, environ={}))
    assert (needs.port, needs.memory, needs.bind, needs.target) == (0, 0, "127.0.0.1", "cpu")


def test_a_model_in_a_folder_of_models_is_the_one_that_is_looked_at() -> None:
    needs = Needs.from_settings(settings.load("cpu", sets=["MODEL_DIR=/models", "ENGINE_MODEL=/model/qwen/8b"], environ={}))
    assert needs.model_dir == Path("/models/qwen/8b")


def test_the_engines_own_default_share_of_gpu_memory_counts_where_none_is_set() -> None:
    assert Needs.from_settings(settings.load("cpu", sets=["IMAGE_TARGET=cuda", "ENGINE_GPU_MEMORY_UTILIZATION="], environ={})).gpu_share == 0.92
    assert Needs.from_settings(settings.load("cpu", sets=["IMAGE_TARGET=cuda", "ENGINE_GPU_MEMORY_UTILIZATION=0.5"], environ={})).gpu_share == 0.5
    assert Needs.from_settings(settings.load("cpu", sets=["IMAGE_TARGET=cuda", "ENGINE_GPU_MEMORY_UTILIZATION=auto"], environ={})).gpu_share is None
    assert Needs.from_settings(settings.load("cpu", sets=["IMAGE_TARGET=cuda", "ENGINE_KV_CACHE_MEMORY_BYTES=4G"], environ={})).gpu_share == 0


# Hosts of other kinds, by what they print

ROOTLESS: dict[str, Any] = {
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"], "CgroupVersion": "2", "CgroupDriver": "systemd",
    "DockerRootDir": "/home/ops/.local/share/docker", "ServerVersion": "28.5.1", "Runtimes": {"io.containerd.runc.v2": {}, **TOOLKIT}}
FEDORA: dict[str, Any] = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=selinux", "name=cgroupns"], "ServerVersion": "28.5.1"}
# As Docker's client passes it on: it knows no field of Podman's own.
PODMAN: dict[str, Any] = {
    "CgroupVersion": "2", "CgroupDriver": "systemd", "ServerVersion": "5.2.5", "Driver": "overlay", "MemTotal": 24 * 2**30, "Architecture": "amd64",
    "Runtimes": {"crun": {"path": "/usr/bin/crun"}}, "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"], "MemoryLimit": True,
    "DockerRootDir": "/home/ops/.local/share/containers/storage"}
WSL = "6.6.87.2-microsoft-standard-WSL2\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = modelfolder.folder(tmp_path / "m", {"architectures": ["X"]}, {"a": ("BF16", [8])})
    (folder / "tokenizer.json").write_text("{}")
    folder.chmod(0o755)
    return folder


def test_podmans_own_docker_command_is_named(fake: FakeHost) -> None:
    fake.program("docker", """case "$1" in
      --version) echo 'podman version 5.2.5' ;;
      info) echo '{"host": {"arch": "amd64"}, "version": {"Version": "5.2.5"}}' ;;
      *) echo 'Error: unknown flag: --context' >&2; exit 125 ;;
    esac\n""")
    found = look(fake, daemon=False)["docker client"]
    assert (found.state, found.found) == ("fail", f"{fake.root}/bin/docker is not Docker's own client (podman version 5.2.5)")
    assert "podman-docker" in found.fix


def test_podmans_daemon_behind_dockers_client_is_named(fake: FakeHost) -> None:
    fake.docker(info={**PODMAN, "ClientInfo": INFO["ClientInfo"]})
    found = look(fake)["docker engine"]
    assert (found.state, found.found) == ("fail", "Podman 5.2.5 answers at unix:///var/run/docker.sock")
    assert "DOCKER_HOST" in found.fix


@pytest.mark.parametrize("lacks", [{"MemoryLimit": False}, {"CgroupDriver": "none"}])
def test_rootless_docker_without_delegation_cannot_limit_memory(lacks: dict[str, Any], fake: FakeHost) -> None:
    fake.docker(info=info(**ROOTLESS))
    assert look(fake)["docker engine"].state == "ok"
    fake.docker(info=info(**{**ROOTLESS, **lacks}))
    found = look(fake)["docker engine"]
    assert found.state == "warn"
    assert "Delegate=cpu cpuset io memory pids" in found.fix


def test_rootless_docker_gives_gpus_only_where_nvidias_hook_leaves_the_cgroups_alone(fake: FakeHost) -> None:
    gpu_host(fake, **ROOTLESS)
    found = look(fake, GPU_NEEDS)["gpu in containers"]
    assert (found.state, found.fix) == ("fail", "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place")
    config = "[nvidia-container-cli]\nenvironment = []\n#no-cgroups = false\nload-kmods = true\n"  # as the package brings it
    fake.file("/etc/nvidia-container-runtime/config.toml", config)
    assert look(fake, GPU_NEEDS)["gpu in containers"].state == "fail"
    fake.file("/etc/nvidia-container-runtime/config.toml", config.replace("#no-cgroups = false", "no-cgroups = true"))
    assert look(fake, GPU_NEEDS)["gpu in containers"].state == "ok"


@pytest.mark.parametrize(("label", "state"), [("unconfined_u:object_r:user_home_t:s0", "fail"), ("system_u:object_r:default_t:s0", "fail"),
                                              ("system_u:object_r:container_file_t:s0", "ok"), ("system_u:object_r:svirt_sandbox_file_t:s0", "ok")])
def test_under_selinux_what_is_mounted_needs_a_label(label: str, state: str, model: Path, fake: FakeHost) -> None:
    fake.docker(info=info(**FEDORA))
    fake.file("/sys/fs/selinux/enforce", "1")
    fake.program("ls", f"echo '{label} {model}'")
    found = look(fake, replace(NEEDS, model_dir=model))["selinux"]
    assert found.state == state
    if state == "fail":
        assert found.found == f"enforcing, and containers may not read {model} ({label})"
        assert found.fix == f"chcon -R -t container_file_t {model} (semanage fcontext makes it last)"


def test_under_selinux_the_first_models_folder_is_looked_at_too(fake: FakeHost) -> None:
    fake.docker(info=info(**FEDORA))
    fake.file("/sys/fs/selinux/enforce", "1")
    fake.program("ls", "echo 'ls: cannot access' >&2; exit 2")
    found = look(fake)["selinux"]
    assert found.state == "fail"
    assert found.fix.startswith("mkdir -p ")


@pytest.mark.parametrize(("enforce", "options"), [("0", FEDORA["SecurityOptions"]), ("1", ["name=seccomp,profile=builtin"]), ("", [])])
def test_selinux_that_does_not_confine_containers_is_no_matter(enforce: str, options: list[str], model: Path, fake: FakeHost) -> None:
    fake.docker(info=info(SecurityOptions=options))
    fake.file("/sys/fs/selinux/enforce", enforce)
    assert "selinux" not in look(fake, replace(NEEDS, model_dir=model))


def test_in_wsl_the_driver_is_windows_own(fake: FakeHost) -> None:
    fake.file("/proc/sys/kernel/osrelease", WSL)
    gpu_host(fake, RTX_5090.replace("580.95.05", "572.83"))
    found = look(fake, GPU_NEEDS)["gpu driver"]
    assert found.state == "fail"
    assert found.fix.startswith("install or update NVIDIA's driver in Windows")
    (fake.root / "bin" / "nvidia-smi").unlink()
    assert "in Windows" in look(fake, GPU_NEEDS)["gpu driver"].fix


def test_in_wsl_too_little_memory_may_be_windows_share(fake: FakeHost) -> None:
    fake.docker(info=info(MemTotal=6 * 2**30))
    assert ".wslconfig" not in look(fake)["memory"].fix
    fake.file("/proc/sys/kernel/osrelease", WSL)
    assert ".wslconfig" in look(fake)["memory"].fix


def test_in_wsl_a_model_on_windows_disk_is_warned_of(monkeypatch: pytest.MonkeyPatch, fake: FakeHost) -> None:
    fake.docker()
    monkeypatch.setattr(folder, "faults", lambda *_of, **_more: [])
    needs = replace(NEEDS, model_dir=Path("/mnt/c/Users/ops/models/Qwen3-8B"))
    assert look(fake, needs)["model"].state == "ok"
    fake.file("/proc/sys/kernel/osrelease", WSL)
    found = look(fake, needs)["model"]
    assert (found.state, found.fix) == ("warn", "copy it to a folder of Linux's own (~/models)")
