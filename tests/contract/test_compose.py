"""compose.yaml held against its promises: rendered by Compose and, since Compose ignores keys it does not know, as the daemon sees it.

Containers are created, not started. The CUDA service is created from another image: what is looked at is its request for a GPU.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle import ROOT
from bundle.choice import profile
from bundle.config import settings
from bundle.machine.daemon import client_environment
from bundle.service.deployment import Deployment
from support.project import Project

COMPOSE = (ROOT / "compose.yaml").read_text()


def compose(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", "compose", "--env-file", str(env_file), *arguments], capture_output=True, text=True, check=False,
                          timeout=120, cwd=ROOT, env=client_environment())


def handed_over(folder: Path, project: Project, profile: str, *sets: str) -> Path:
    """The env file that an operator without Python gets: one file, which names itself."""
    file = folder / "handoff.env"
    chosen = settings.load(profile, [], [f"HOST_PROJECT={project.name}", "GATEWAY_PORT=0", *sets])
    chosen.require()
    file.write_text(chosen.flatten(str(file)))
    return file


def rendered(env_file: Path) -> dict[str, Any]:
    done = compose(env_file, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    project: dict[str, Any] = json.loads(done.stdout)
    return project


def created(env_file: Path, service: str, project: Project) -> dict[str, Any]:
    done = compose(env_file, "create", "--no-build", "--no-recreate")
    assert done.returncode == 0, done.stderr
    inspected = subprocess.run(["docker", "inspect", f"{project.name}-{service}-1"], capture_output=True, text=True, check=True)
    container: dict[str, Any] = json.loads(inspected.stdout)[0]
    return container


@pytest.fixture
def cpu(tmp_path: Path, project: Project) -> Path:
    return handed_over(tmp_path, project, "cpu")


@pytest.mark.parametrize("profile", ["cpu", "throughput", "latency"])
def test_every_profile_renders_from_one_env_file_without_python(tmp_path: Path, project: Project, profile: str) -> None:
    services = rendered(handed_over(tmp_path, project, profile))["services"]
    assert set(services) == {"gateway", "engine"}
    engine = services["engine"]["environment"]
    expected = settings.load(profile, [], [])
    assert engine["ENGINE_MODEL"] == expected.value("ENGINE_MODEL")
    for key, value in expected.environment.items():
        assert engine[key] == value


def test_without_an_env_file_compose_says_how_to_get_one() -> None:
    done = subprocess.run(["docker", "compose", "config"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
                          env=client_environment())
    assert done.returncode != 0
    assert "make check FLATTEN" in done.stderr


def test_every_variable_that_compose_reads_is_a_declared_setting() -> None:
    read = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", COMPOSE + (ROOT / "docker/engine/accelerator.yaml").read_text()))
    # The engine's own flag, from which the gateway takes its drain time; and what scripts/build.py finds out for a build.
    assert {name for name in read - settings.declared() if not name.startswith("BUILD_")} == {"ENGINE_SHUTDOWN_TIMEOUT"}


def test_every_service_has_a_healthcheck_a_restart_policy_and_limits() -> None:
    for name, service in yaml.safe_load(COMPOSE)["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"] == service["memswap_limit"], name
        assert service["pids_limit"], name
        assert service["logging"]["options"]["max-size"], name


def test_only_the_gateway_publishes_and_only_on_loopback(cpu: Path, project: Project) -> None:
    services = rendered(cpu)["services"]
    assert [name for name, service in services.items() if service.get("ports")] == ["gateway"]
    assert created(cpu, "engine", project)["HostConfig"]["PortBindings"] in (None, {})
    bindings = created(cpu, "gateway", project)["HostConfig"]["PortBindings"]
    assert {b["HostIp"] for bound in bindings.values() for b in bound} == {"127.0.0.1"}


def test_gateway_bind_opens_the_address_that_it_names(tmp_path: Path, project: Project) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-test-4f1d0c-4f1d0c\n")
    keys.chmod(0o444)
    file = handed_over(tmp_path, project, "cpu", "GATEWAY_BIND=0.0.0.0", f"GATEWAY_API_KEYS_FILE={keys}")
    bindings = created(file, "gateway", project)["HostConfig"]["PortBindings"]
    assert bindings["8005/tcp"][0]["HostIp"] == "0.0.0.0"


@pytest.mark.parametrize("service", ["gateway", "engine"])
def test_each_container_has_the_least_privilege(cpu: Path, project: Project, service: str) -> None:
    container = created(cpu, service, project)
    host = container["HostConfig"]
    user = container["Config"]["User"].split(":")[0]
    assert user.isdigit()
    assert int(user) >= 2000
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert not host["Privileged"]
    assert host["IpcMode"] != "host"
    assert host["NetworkMode"] != "host"
    assert not any("docker.sock" in mount["Source"] for mount in container["Mounts"])
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] == "unless-stopped"


def test_the_engine_has_init_shared_memory_and_a_cache_and_reads_its_model_only(cpu: Path, project: Project) -> None:
    container = created(cpu, "engine", project)
    assert container["HostConfig"]["Init"] is True
    assert container["HostConfig"]["ShmSize"] >= 400 * 2**20  # two segments of 240 + 160 MiB were seen
    mounts = {m["Destination"]: m for m in container["Mounts"]}
    assert mounts["/cache"]["Type"] == "volume"
    assert mounts["/model"]["RW"] is False


def test_the_cpu_engine_asks_for_no_gpu(cpu: Path, project: Project) -> None:
    assert not created(cpu, "engine", project)["HostConfig"]["DeviceRequests"]


def test_the_cuda_engine_asks_the_daemon_for_its_gpus(tmp_path: Path, project: Project) -> None:
    stand_in = settings.load("cpu", [], []).image_gateway
    file = handed_over(tmp_path, project, "throughput", f"IMAGE_ENGINE={stand_in}", "HOST_GPU_COUNT=2", "HOST_REPLICAS=2", "HOST_GPUS=5,GPU-aa,1,0")
    for service, gpus in (("engine", "5,GPU-aa"), ("engine-2", "1,0")):
        requests = created(file, service, project)["HostConfig"]["DeviceRequests"]
        assert [(r["Driver"], r["DeviceIDs"], r["Capabilities"]) for r in requests] == [("nvidia", [gpus], [["gpu"]])]


def test_a_replica_is_an_engine_like_the_first(tmp_path: Path, project: Project) -> None:
    services = rendered(handed_over(tmp_path, project, "cpu", "HOST_REPLICAS=3"))["services"]
    assert set(services) == {"gateway", "engine", "engine-2", "engine-3"}
    for name in ("engine-2", "engine-3"):
        apart = {"build", "profiles"}
        assert {key: value for key, value in services[name].items() if key not in apart} == {
            key: value for key, value in services["engine"].items() if key not in apart}


def test_the_cuda_engine_can_take_its_gpus_through_cdi(tmp_path: Path, project: Project) -> None:
    services = rendered(handed_over(tmp_path, project, "throughput", "HOST_ACCELERATOR=cuda-cdi"))["services"]
    assert services["engine"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "cdi", "capabilities": ["gpu"], "device_ids": ["nvidia.com/gpu=all"]}]


@pytest.mark.parametrize("profile", ["cpu", "throughput", "latency"])
def test_the_grace_period_is_longer_than_the_engines_own_shutdown(tmp_path: Path, project: Project, profile: str) -> None:
    file = handed_over(tmp_path, project, profile)
    grace = rendered(file)["services"]["engine"]["stop_grace_period"]
    shutdown = float(settings.load(profile, [], []).value("ENGINE_SHUTDOWN_TIMEOUT"))
    assert _seconds(grace) > shutdown >= 1


def _seconds(duration: str) -> float:
    return sum(float(n) * {"h": 3600, "m": 60, "s": 1}[unit] for n, unit in re.findall(r"([\d.]+)([hms])", duration))


def test_the_engine_has_no_way_out_and_the_gateway_has_both_networks(cpu: Path) -> None:
    project = rendered(cpu)
    assert set(project["services"]["engine"]["networks"]) == {"back"}
    assert set(project["services"]["gateway"]["networks"]) == {"front", "back"}
    assert project["networks"]["back"]["internal"] is True


def test_api_keys_reach_the_gateway_as_a_file_and_nothing_else(tmp_path: Path, project: Project) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-canary-91f3-91f3\n")
    keys.chmod(0o444)
    file = handed_over(tmp_path, project, "cpu", f"GATEWAY_API_KEYS_FILE={keys}")
    gateway, engine = created(file, "gateway", project), created(file, "engine", project)
    assert "sk-canary-91f3-91f3" not in json.dumps([gateway, engine, rendered(file)]) + file.read_text()
    assert "GATEWAY_AUTH=on" in gateway["Config"]["Env"]
    assert not any(str(keys) in mount["Source"] for mount in engine["Mounts"])


def test_a_missing_model_directory_is_not_made_by_docker(tmp_path: Path, project: Project) -> None:
    missing = tmp_path / "models" / "not-there"
    file = handed_over(tmp_path, project, "cpu", f"MODEL_DIR={missing}")
    done = compose(file, "up", "--no-build", "--detach", "--no-deps", "engine")
    assert done.returncode != 0
    assert not missing.exists()


def test_a_container_that_only_runs_from_the_projects_image_is_not_taken_for_its_service(cpu: Path, project: Project) -> None:
    created(cpu, "engine", project)
    mine = project.containers()
    stranger = subprocess.run(["docker", "create", "--label", f"com.docker.compose.project={project.name}", "--label",
                               "com.docker.compose.service=engine", settings.load("cpu", [], []).image_gateway],
                              capture_output=True, text=True, check=True).stdout.strip()
    try:
        assert project.containers() == mine
    finally:
        subprocess.run(["docker", "rm", stranger], capture_output=True, check=True)


def test_a_further_model_has_engines_of_its_own_beside_the_first_and_one_gateway(tmp_path: Path, project: Project) -> None:
    models = profile.load_all(profile.Wanted(profile="cpu,cpu-embed", sets=(
        "ENGINE_MODEL=/opt/bundle/selftest-model", "GATEWAY_PORT=0", f"HOST_PROJECT={project.name}", "HOST_REPLICAS=2")))
    deployment = Deployment(project=project.name, state=tmp_path)
    deployment.write(deployment.texts(models))
    assert set(deployment.plan()) == {"gateway", "engine", "engine-2", "engine-b"}
    deployment.compose("create", "--no-build")
    inspected = {name: json.loads(subprocess.run(["docker", "inspect", each.id], capture_output=True, text=True, check=True).stdout)[0]
                 for name, each in deployment.containers().items()}
    environment = {name: dict(line.split("=", 1) for line in each["Config"]["Env"]) for name, each in inspected.items()}
    assert environment["engine-b"]["ENGINE_SERVED_MODEL_NAME"] == "selftest-embed"
    assert environment["engine"]["ENGINE_SERVED_MODEL_NAME"] == environment["engine-2"]["ENGINE_SERVED_MODEL_NAME"] == "selftest"
    assert (environment["gateway"]["GATEWAY_MODELS"], environment["gateway"]["GATEWAY_BACKENDS"]) == ("on", "engine engine-b")
    first, second = (inspected[name]["HostConfig"] for name in ("engine", "engine-b"))
    assert (first["Memory"], second["Memory"]) == (8 * 2**30, 6 * 2**30)
    for key in ("ReadonlyRootfs", "CapDrop", "SecurityOpt", "Init", "ShmSize", "RestartPolicy", "PidsLimit", "Tmpfs"):
        assert first[key] == second[key], key
    assert {mount["Destination"]: mount["RW"] for mount in inspected["engine-b"]["Mounts"]} == {"/cache": True, "/model": False, "/adapters": False}
    assert set(inspected["engine-b"]["NetworkSettings"]["Networks"]) == {f"{project.name}_back"}
    routes = next(mount for mount in inspected["gateway"]["Mounts"] if mount["Destination"] == "/run/secrets/gateway_models")
    assert Path(routes["Source"]).read_text() == "selftest engine\nselftest-embed engine-b\n"
    assert Path(routes["Source"]).stat().st_mode & 0o004, "the gateway's user can read it"
    assert deployment.plan() == dict.fromkeys(inspected, "Start"), "nothing is made anew for what has not changed"
