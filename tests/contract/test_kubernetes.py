"""Manifests for Kubernetes: valid by the cluster's own schemas, built by kustomize, and held against compose.yaml as Compose resolves it.

Never run on a cluster. The gateway is, in containers: with the environment of its manifest, and engines behind one name of Docker's DNS.
"""

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from bundle.config import settings
from bundle.config.keys import size_bytes
from bundle.config.settings import Settings
from bundle.hosts import composed, kubernetesfiles
from support import verbs
from support.gateway import KEY, Site, docker
from support.project import wait_until

VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
PROFILES: Mapping[str, tuple[str, ...]] = {
    "cpu": (),
    "throughput": ("HOST_REPLICAS=3", "HOST_GPU_COUNT=2", "ENGINE_MAX_NUM_SEQS=64", "GATEWAY_TLS_CERT_FILE={folder}/tls", "MODEL_DIR={folder}/model",
                   "GATEWAY_PORT=443", "OTEL_SERVICE_NAME=a$b $(c)"),
    "long-context": ("HOST_ENGINE_OFFLINE=false", "ENGINE_MODEL=Qwen/Qwen3-8B", "MODEL_ADAPTERS_DIR={folder}/model", "ENGINE_MAX_NUM_SEQS=4"),
}
"""What is asked for beside the profile, so that all of them together show every part."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder of manifests, and the deployment that it is of."""

    out: Path
    settings: Settings
    compose: Mapping[str, Any]

    def all(self, *names: str) -> list[dict[str, Any]]:
        """The objects in these files, or in all."""
        names = names or tuple(sorted(path.name for path in self.out.glob("*.yaml")))
        return [one for name in names for one in yaml.safe_load_all((self.out / name).read_text())]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        applied = (one for file in yaml.safe_load((self.out / "kustomization.yaml").read_text())["resources"] for one in self.all(file))
        found = [one for one in applied if (one["kind"], one["metadata"]["name"].removesuffix(f"-{_ending(one)}")) == (kind, name)]
        assert len(found) == 1, (kind, name)
        return found[0]

    def pod(self, name: str) -> dict[str, Any]:
        pod: dict[str, Any] = self.one("Deployment", name)["spec"]["template"]["spec"]
        return pod

    def container(self, name: str) -> dict[str, Any]:
        container: dict[str, Any] = self.pod(name)["containers"][0]
        return container


def _ending(one: Mapping[str, Any]) -> str:
    return str(one["metadata"]["name"].rpartition("-")[2]) if one["kind"] == "ConfigMap" else "\0"


def _bytes(size: str) -> int:
    """`8Gi` as `8g`."""
    return size_bytes(size.removesuffix("i").lower()) if size[-1].isalpha() else int(size)


@pytest.fixture(scope="module", params=PROFILES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("k8s")
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(bytes(1000))
    (folder / "model" / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    for name in ("keys", "tls"):
        (folder / name).write_text("sk-canary-91f3-91f3\n")
    sets = [text.format(folder=folder) if "{folder}" in text else text
            for text in ("GATEWAY_API_KEYS_FILE={folder}/keys", "HOST_PROJECT=kube-test", *PROFILES[request.param])]
    chosen = settings.load(request.param, [], sets, environ={})
    chosen.require()
    kubernetesfiles.write(chosen, folder / "out")
    return Case(out=folder / "out", settings=chosen, compose=composed.of([chosen]))


# --- valid

@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_by_the_schemas_of_each_version_with_no_key_that_it_does_not_know(case: Case, version: str) -> None:
    objects = [one for one in case.all() if one.get("apiVersion", "").partition("/")[0] not in ("", "kustomize.config.k8s.io")]
    assert len(objects) >= 15
    for one in objects:
        assert kubernetes_validate.validate(one, version, strict=True) == version, one


def test_the_schemas_notice_a_misspelt_key(case: Case) -> None:
    broken = case.one("Deployment", "engine")
    container = broken["spec"]["template"]["spec"]["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    for version in VERSIONS:
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, version, strict=True)


def test_kustomize_builds_what_was_written(case: Case) -> None:
    program = shutil.which("kustomize") or shutil.which("kubectl")
    assert program, "neither kustomize nor kubectl is on PATH: apt-get install kustomize"
    done = subprocess.run([program, *(["build"] if program.endswith("kustomize") else ["kustomize"]), str(case.out)], capture_output=True, text=True,
                          check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    built = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    files = yaml.safe_load((case.out / "kustomization.yaml").read_text())["resources"]
    assert built == {(one["kind"], one["metadata"]["name"]): one for one in case.all(*files)}


# --- the same as Compose

@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_the_container_is_the_one_that_compose_describes(case: Case, name: str) -> None:
    service, pod, container = case.compose["services"][name], case.pod(name), case.container(name)
    assert container["image"] == service["image"]
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert _bytes(container["resources"]["limits"]["memory"]) == int(service["mem_limit"])
    user, group = map(int, service["user"].split(":"))
    assert pod["securityContext"]["runAsUser"] == user
    assert pod["securityContext"]["runAsGroup"] == pod["securityContext"]["fsGroup"] == group
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}  # as Docker's default
    assert container["securityContext"] == {"allowPrivilegeEscalation": "no-new-privileges:true" not in service["security_opt"], "privileged": False,
                                            "readOnlyRootFilesystem": service["read_only"], "capabilities": {"drop": service["cap_drop"]}}
    assert pod["shareProcessNamespace"] == service.get("init", False)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["automountServiceAccountToken"] is False
    grace = composed.seconds(service["stop_grace_period"])
    assert pod["terminationGracePeriodSeconds"] - grace == (max(5, int(case.settings.value("ENGINE_SHUTDOWN_TIMEOUT"))) if name == "engine" else 5)


@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_the_environment_is_composes_and_no_service_of_the_cluster_gets_into_it(case: Case, name: str) -> None:
    found_by = {"GATEWAY_TASKS": "on", "GATEWAY_TASKS_BEFORE": "", "GATEWAY_TASKS_BEHIND": ".kube-test.svc.cluster.local"}
    told = found_by if name == "gateway" else {}
    found = case.one("ConfigMap", f"{name}-env")
    assert found["data"] == {key: str(value) for key, value in case.compose["services"][name]["environment"].items()} | told
    assert found["immutable"] is True
    container = case.container(name)
    assert container["envFrom"] == [{"configMapRef": {"name": found["metadata"]["name"]}}]
    assert "env" not in container
    assert case.pod(name)["enableServiceLinks"] is False  # or GATEWAY_PORT would be tcp://…
    if name == "engine":
        assert {key: found["data"][key] for key in case.settings.environment} == case.settings.environment
        assert found["data"]["ENGINE_MODEL"] == case.settings.value("ENGINE_MODEL")
        own = {key for key, value in case.settings.entries.items() if key.startswith("ENGINE_") and value.value}
        assert own <= set(found["data"])


@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_the_probes_are_composes_health_check(case: Case, name: str) -> None:
    check, container = case.compose["services"][name]["healthcheck"], case.container(name)
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == check["test"][1:]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["periodSeconds"] == composed.seconds(check["interval"])
        assert container[probe]["timeoutSeconds"] == composed.seconds(check["timeout"])
    assert container["readinessProbe"]["failureThreshold"] == container["livenessProbe"]["failureThreshold"] == check["retries"]
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= composed.seconds(check["start_period"])
    # What is full or loading is never killed for it: the engine's watch is asked whether it looks, the gateway for itself.
    assert container["livenessProbe"]["exec"]["command"] == check["test"][1:] + (["live"] if name == "engine" else [])
    assert container["lifecycle"]["preStop"]["exec"]["command"] == (
        ["/opt/venv/bin/python", "-S", "/opt/bundle/healthchecks/drain.py"] if name == "engine" else ["sleep", "5"])


@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_the_volumes_are_composes(case: Case, name: str) -> None:
    service, pod, container = case.compose["services"][name], case.pod(name), case.container(name)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: (volumes[mount["name"]], mount) for mount in container["volumeMounts"]}
    expected: dict[str, Any] = {text.partition(":")[0]: composed.options(text.partition(":")[2])["size"] for text in service["tmpfs"]}
    expected |= {"/dev/shm": service["shm_size"]} if "shm_size" in service else {}
    for volume in service["volumes"]:
        if not volume["source"].endswith("docker/engine/no-model"):
            expected[volume["target"]] = volume
    assert set(mounts) == set(expected) | ({"/run/secrets"} if name == "gateway" else set())
    for path, wanted in expected.items():
        volume, mount = mounts[path]
        if isinstance(wanted, str) or path == "/run/gateway":
            assert volume["emptyDir"]["medium"] == "Memory"
            assert _bytes(volume["emptyDir"]["sizeLimit"]) == _bytes(wanted if isinstance(wanted, str) else "64k")
        else:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert mount.get("readOnly", False) == wanted.get("read_only", False)
            shared = case.settings.replicas > 1
            assert case.one("PersistentVolumeClaim", claim)["spec"]["accessModes"] == ["ReadWriteMany" if shared else "ReadWriteOnce"]
    assert not any("hostPath" in volume for volume in volumes.values())


def test_gpus_and_replicas_are_those_of_the_settings(case: Case) -> None:
    deployment, limits = case.one("Deployment", "engine"), case.container("engine")["resources"]["limits"]
    assert deployment["spec"]["replicas"] == len([name for name in case.compose["services"] if name.startswith("engine")]) == case.settings.replicas
    devices = case.compose["services"]["engine"].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert limits.get("nvidia.com/gpu") == (str(len(devices[0]["device_ids"][0].split(","))) if devices else None)
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert case.one("Deployment", "gateway")["spec"]["replicas"] == 1
    for name in ("engine", "gateway"):
        budget = case.one("PodDisruptionBudget", name)["spec"]
        assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": case.one("Deployment", name)["spec"]["selector"]["matchLabels"]}}


def test_the_network_lets_through_what_composes_networks_do(case: Case) -> None:
    nothing, engine, gateway = (case.one("NetworkPolicy", name)["spec"] for name in ("nothing-else", "engine", "gateway"))
    assert (nothing["podSelector"], nothing["ingress"], nothing["egress"]) == ({}, [], [])
    labels = {name: case.one("Deployment", name)["spec"]["template"]["metadata"]["labels"] for name in ("engine", "gateway")}
    assert engine["podSelector"]["matchLabels"] == labels["engine"]
    assert [rule["from"] for rule in engine["ingress"]] == [[{"podSelector": {"matchLabels": labels["gateway"]}}]]
    assert {port["port"] for port in engine["ingress"][0]["ports"]} == {8000, 8001}
    internal = case.compose["networks"]["back"].get("internal", False)
    assert engine["egress"] == ([] if internal else [{}])
    assert internal == (case.settings.value("HOST_ENGINE_OFFLINE") == "true")
    assert gateway["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8005}]}]
    assert gateway["egress"][0]["to"] == [{"podSelector": {"matchLabels": labels["engine"]}}]
    service = case.one("Service", "engine")["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"], service["selector"]) == ("None", True, labels["engine"])
    ports = case.one("Service", "gateway")["spec"]["ports"]
    assert [port["port"] for port in ports] == [int(case.compose["services"]["gateway"]["ports"][0]["published"])]
    named = {port["name"]: port["containerPort"] for name in labels for port in case.container(name)["ports"]}
    assert named == {"http": 8000, "watch": 8001, "api": 8005}


# --- secrets

def test_no_value_of_a_secret_is_in_any_file_and_the_gateway_finds_them_where_compose_has_them(case: Case) -> None:
    assert not [path.name for path in case.out.iterdir() if "sk-canary" in path.read_text()]
    templates = {one["metadata"]["name"]: one["stringData"] for one in case.all("secrets.example.yaml")}
    tls = case.settings.tls_cert_file is not None
    assert set(templates) == {"gateway-api-keys", *(["gateway-tls"] if tls else [])}
    for name, data in templates.items():
        for key, text in data.items():
            assert all(line.startswith("#") for line in text.splitlines()), "applied as it is, it lets nobody in"
            assert f"create secret generic {name} --from-file={key}=" in (case.out / "KUBERNETES.md").read_text()
    assert "secrets.example.yaml" not in yaml.safe_load((case.out / "kustomization.yaml").read_text())["resources"]
    sources = next(volume for volume in case.pod("gateway")["volumes"] if volume["name"] == "secrets")["projected"]["sources"]
    paths = {item["path"] for source in sources for item in source.get("secret", {}).get("items", [])} | {
        key for source in sources if "configMap" in source for key in case.one("ConfigMap", "gateway-models")["data"]}
    wanted = {secret["target"].rpartition("/")[2] for secret in case.compose["services"]["gateway"]["secrets"]}
    assert paths == wanted - (set() if tls else {"gateway_tls"})
    assert case.one("ConfigMap", "gateway-models")["data"] == {"gateway_models": f"{case.settings.served_model_name} engine\n"}


# --- the folder

def test_a_change_has_config_maps_of_new_names_and_the_same_settings_the_same_files(case: Case, tmp_path: Path) -> None:
    again = kubernetesfiles.write(case.settings, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_text() for name in again.files} == {path.name: path.read_text() for path in case.out.iterdir()}
    kubernetesfiles.write(case.settings.overridden({"HEALTH_STALL_S": "77"}, "a test"), tmp_path / "out")
    changed = Case(out=tmp_path / "out", settings=case.settings, compose=case.compose)
    for name, moved in (("engine-env", True), ("gateway-env", False), ("gateway-models", False)):
        before, after = (each.one("ConfigMap", name)["metadata"]["name"] for each in (case, changed))
        assert (before != after) == moved, name


def test_the_verb_says_what_the_cluster_must_have_and_a_file_of_an_older_run_goes_away(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(10))
    sets = ["--set", f"GATEWAY_API_KEYS_FILE={tmp_path}/keys", "--set", "ENGINE_LOAD_FORMAT=dummy"]
    first = verbs.call("k8s", "--profile", "cpu", *sets, "--set", f"MODEL_DIR={tmp_path}/model", "--out", str(tmp_path / "out"))
    assert first.returncode == 0, first.stderr
    assert "never run on a cluster" in first.stdout
    assert "model-loader.yaml" in {path.name for path in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "KUBERNETES.md").read_text()
    assert f"tar -C {tmp_path}/model -c . | kubectl -n vllm exec -i model-loader -- tar -C /model -x" in page
    sets += ["--set", "ENGINE_MODEL=/opt/bundle/selftest-model"]
    second = verbs.call("k8s", "--profile", "cpu", *sets, "--out", str(tmp_path / "out"), "--json")
    assert second.returncode == 0, second.stderr
    told = json.loads(second.stdout)
    assert set(told["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert "model-loader.yaml" not in told["files"]
    assert (told["namespace"], told["profile"]) == ("vllm", "cpu")


# --- production-stack's chart

CHART_ENGINE = {"enableEngine", "vllmApiKey", "runtimeClassName", "imagePullPolicy", "securityContext", "containerSecurityContext", "startupProbe",
                "strategy", "modelSpec"}
CHART_MODEL = {"name", "repository", "tag", "modelURL", "replicaCount", "requestCPU", "requestMemory", "limitMemory", "requestGPU", "vllmConfig",
               "env", "extraVolumes", "extraVolumeMounts"}
"""Keys of the chart's values.schema.json that are used here, read in November 2026 (01eaf92)."""


def test_the_values_for_production_stack_start_the_same_engine(case: Case) -> None:
    values = yaml.safe_load((case.out / "production-stack-values.yaml").read_text())
    assert set(values) == {"servingEngineSpec"}
    assert set(values["servingEngineSpec"]) == CHART_ENGINE
    model = values["servingEngineSpec"]["modelSpec"][0]
    assert set(model) == CHART_MODEL
    assert f"{model['repository']}:{model['tag']}" == case.settings.image_engine
    assert model["replicaCount"] == case.settings.replicas
    assert model["requestGPU"] == (int(case.settings.value("HOST_GPU_COUNT")) if case.settings.image_target == "cuda" else 0)
    wanted = list(case.settings.argv[3:])
    for left_out in (["--host", "0.0.0.0"], ["--port", "8000"], ["--middleware", "requestlog.RequestLog"], ["--quantization", "auto"]):
        at = wanted.index(left_out[0])
        assert wanted[at:at + 2] == left_out
        del wanted[at:at + 2]
    assert [word.replace("$$(", "$(") for word in model["vllmConfig"]["extraArgs"]] == wanted
    assert {entry["name"]: entry["value"].replace("$$(", "$(") for entry in model["env"]} == case.settings.environment
    assert {mount["mountPath"] for mount in model["extraVolumeMounts"]} == {mount["mountPath"] for mount in case.container("engine")["volumeMounts"]}


# --- the gateway as its manifest has it, in containers

@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    mine = Site(folder=tmp_path)
    try:
        yield mine
    finally:
        mine.close()


def test_the_gateway_finds_engines_behind_one_name_as_they_come_and_go(site: Site, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    chosen = settings.load("cpu", [], [f"GATEWAY_API_KEYS_FILE={tmp_path}/keys", "ENGINE_MODEL=/opt/bundle/selftest-model"], environ={})
    kubernetesfiles.write(chosen, tmp_path / "out")
    data = Case(out=tmp_path / "out", settings=chosen, compose={}).one("ConfigMap", "gateway-env")["data"]
    name = "engine.vllm.svc.cluster.local"
    for number in (1, 2):
        site.start_engine("--network-alias", name, service=f"pod-{number}")
    door = site.open(keys=f"{KEY}\n", models="fake engine\n", environment=data)

    def answered() -> set[str]:
        """The engines that have answered a few requests."""
        before = {number: len(site.events(f"pod-{number}")) for number in pods}
        asked = [door.ask("POST", "/v1/completions", key=KEY, json_body={"model": "fake", "prompt": secrets.token_hex(8), "max_tokens": 1}).status
                 for _ in range(12)]  # of new conversations: an old one stays where it was
        assert asked == [200] * 12
        return {number for number in pods if len(site.events(f"pod-{number}")) > before[number]}

    pods = {"1", "2"}
    wait_until(lambda: door.ask("GET", "/health").status == 200, deadline_s=30, what="an engine is found")
    wait_until(lambda: answered() == {"1", "2"}, deadline_s=30, what="both get requests")
    site.start_engine("--network-alias", name, service="pod-3")
    pods.add("3")
    wait_until(lambda: answered() == {"1", "2", "3"}, deadline_s=30, what="a third is found")
    docker("rm", "--force", f"{site.name}-pod-1")
    pods.remove("1")
    wait_until(lambda: answered() == {"2", "3"}, deadline_s=30, what="the others get all")
