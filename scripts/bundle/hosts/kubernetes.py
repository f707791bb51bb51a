"""A deployment as Kubernetes manifests: compose.yaml, as Compose resolves it, key by key in Kubernetes' words. docs/kubernetes.md has the reasons.

A key of a service that stands in none of the tables here is refused: nothing that compose.yaml says is dropped without a word.
Kubernetes API: https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.32/
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from bundle import ROOT
from bundle.base.errors import BundleError
from bundle.config.keys import size_bytes
from bundle.config.settings import Settings
from bundle.hosts import composed
from bundle.service.deployment import ENGINE, GATEWAY

Object = dict[str, Any]

CLUSTER_DOMAIN = "cluster.local"
"""HAProxy asks for whole names. A cluster of another domain: GATEWAY_TASKS_BEHIND in the ConfigMap of the gateway."""
GPU = "nvidia.com/gpu"
API_KEYS, TLS = "gateway-api-keys", "gateway-tls"
"""The Secrets that the operator makes, each with one key."""
_ROUTES = "gateway_models"
SECRET_KEYS = {API_KEYS: "gateway_api_keys", TLS: "gateway_tls"}
HTTP_PORT, WATCH_PORT, GATEWAY_PORT = 8000, 8001, 8005
UNROUTED_S = 5
"""Between the end of a gateway's pod and its stop: nodes learn within seconds that it is to get no connections any more."""
CACHE_GIB = 20
"""Compiled kernels and graphs are below 2 GiB a model and version. Judgement: ten times that."""
DOWNLOAD_GIB = 100
"""On top, where the engine downloads its model itself, which is not known here. Judgement."""
_READY = ["/opt/venv/bin/python", "-S", "/opt/bundle/healthchecks/ready.py"]
_DRAIN = ["/opt/venv/bin/python", "-S", "/opt/bundle/healthchecks/drain.py"]
_NO_MODEL = str(ROOT / "docker" / "engine" / "no-model")
_DRAIN_NOTICED_S = 5  # healthchecks/drain.py

_TRANSLATED = {"image", "environment", "healthcheck", "user", "read_only", "cap_drop", "security_opt", "mem_limit", "shm_size", "init", "restart",
               "stop_grace_period", "networks", "ports", "secrets", "tmpfs", "volumes", "deploy"}
_WITHOUT = {"memswap_limit", "pids_limit", "logging", "stop_signal"}
"""What is the node's or the image's: swap and the number of processes are settings of the kubelet, as are log files; the image names its signal."""
_COMPOSE_ONLY = {"build", "command", "entrypoint", "profiles"}
"""How an image is made, and what is null for every service here."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What the objects of one service are made from."""

    name: str
    namespace: str
    service: Mapping[str, Any]
    project: Mapping[str, Any]
    replicas: int
    claims: Mapping[str, int]
    """GiB of each volume on disk, by the name of its claim."""

    @property
    def labels(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": "vllm-bundle", "app.kubernetes.io/instance": self.namespace, "app.kubernetes.io/component": self.name}

    @property
    def env_map(self) -> Object:
        return _config_map(f"{self.name}-env", self.environment, self)

    @property
    def environment(self) -> dict[str, str]:
        """What Compose puts into the container; the gateway learns where the engines are."""
        own = {key: str(value) for key, value in self.service["environment"].items()}
        found_by = {"GATEWAY_TASKS": "on", "GATEWAY_TASKS_BEFORE": "", "GATEWAY_TASKS_BEHIND": f".{self.namespace}.svc.{CLUSTER_DOMAIN}"}
        return own | (found_by if self.name == GATEWAY else {})


def manifests(settings: Settings, folders: Mapping[str, int]) -> dict[str, list[Object]]:
    """The objects of the deployment by the names of their files, in the order to apply them. `folders` has the bytes in those of this host that
    become volumes, by the names of their claims: model, adapters.

    Raises BundleError for something in compose.yaml that has no translation, PrerequisiteError without Docker Compose.
    """
    project = composed.of([settings])
    claims = {"cache": CACHE_GIB + (DOWNLOAD_GIB if settings.value("HOST_ENGINE_OFFLINE") == "false" else 0)}
    claims |= {name: ceil(size * 1.1 / 2**30) for name, size in folders.items()}  # a file system takes its share
    engine, gateway = (_Made(name=name, namespace=settings.project, service=_known(name, project["services"][name]), project=project,
                             replicas=settings.replicas if name == ENGINE else 1, claims=claims) for name in (ENGINE, GATEWAY))
    gpus = int(settings.value("HOST_GPU_COUNT")) if settings.image_target == "cuda" else 0
    routes = _config_map("gateway-models", {_ROUTES: project["routes"]}, gateway)
    return {
        "namespace.yaml": [_namespace(settings.project)],
        "config.yaml": [engine.env_map, gateway.env_map, routes],
        "storage.yaml": [_claim(name, gib, engine) for name, gib in claims.items()],
        "network.yaml": list(_policies(engine, gateway)),
        "engine.yaml": [_engine_service(engine), _engine_deployment(engine, gpus, settings.ready_timeout_s), _budget(engine)],
        "gateway.yaml": [_gateway_service(gateway, settings.gateway_port or GATEWAY_PORT), _gateway_deployment(gateway, routes), _budget(gateway)],
    }


def secret_templates(settings: Settings) -> list[Object]:
    """The Secrets that have to be there, without their values."""
    wanted = {API_KEYS: "# a key of 16 characters or more per line, and behind a blank its name\n"}
    if settings.tls_cert_file:
        wanted[TLS] = "# PEM: certificate (with its chain) and private key\n"
    return [{"apiVersion": "v1", "kind": "Secret", "metadata": _metadata(name, settings.project), "type": "Opaque",
             "stringData": {SECRET_KEYS[name]: text}} for name, text in wanted.items()]


def loader(objects: Mapping[str, list[Object]]) -> list[Object]:
    """A pod that does nothing but mount the volumes of the model for writing, to copy it into them."""
    engine = next(one for one in objects["engine.yaml"] if one["kind"] == "Deployment")
    pod = engine["spec"]["template"]["spec"]
    container = pod["containers"][0]
    mounts = [{"name": one["name"], "mountPath": one["mountPath"]} for one in container["volumeMounts"] if one["name"] in ("model", "adapters")]
    if not mounts:
        return []
    names = {mount["name"] for mount in mounts}
    volumes = [{"name": one["name"], "persistentVolumeClaim": {"claimName": one["name"]}} for one in pod["volumes"] if one["name"] in names]
    kept = ("automountServiceAccountToken", "enableServiceLinks", "securityContext")
    limits = {"limits": {"memory": "512Mi"}, "requests": {"memory": "512Mi"}}
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": _metadata("model-loader", engine["metadata"]["namespace"]),
             "spec": {**{key: pod[key] for key in kept}, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "volumes": volumes,
                      "containers": [{"name": "loader", "image": container["image"], "command": ["sleep", "infinity"],
                                      "securityContext": container["securityContext"], "resources": limits, "volumeMounts": mounts}]}}]


def kustomization(files: Mapping[str, list[Object]], namespace: str) -> Object:
    """What `kubectl apply --kustomize` applies, in order."""
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": namespace, "resources": list(files)}


def _known(name: str, service: Mapping[str, Any]) -> Mapping[str, Any]:
    """`service`, every key of which has its place here. Raises BundleError for the first that has none."""
    for key, value in service.items():
        if key not in _TRANSLATED | _WITHOUT | _COMPOSE_ONLY or (key in ("command", "entrypoint") and value is not None):
            raise _untranslated(f"{name}: {key} has no translation")
    expected = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"], "restart": "unless-stopped", "read_only": True}
    for key, value in expected.items():
        if service.get(key) != value:
            raise _untranslated(f"{name}: {key} is {service.get(key)!r}, and only {value!r} has a translation")
    if unknown := {secret["source"] for secret in service.get("secrets", [])} - {*SECRET_KEYS.values(), _ROUTES}:
        raise _untranslated(f"{name}: the secret {min(unknown)} has no translation")
    return service


def _untranslated(what: str) -> BundleError:
    return BundleError(f"compose.yaml: {what}", fix="add it to scripts/bundle/hosts/kubernetes.py")


def _metadata(name: str, namespace: str, labels: Mapping[str, str] | None = None) -> Object:
    own = labels or {"app.kubernetes.io/name": "vllm-bundle", "app.kubernetes.io/instance": namespace}
    return {"name": name, "namespace": namespace, "labels": dict(own)}


def _namespace(name: str) -> Object:
    """With the strictest of Kubernetes' own rules for pods, which these keep."""
    rules = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "vllm-bundle", **rules}}}


def _config_map(name: str, data: Mapping[str, str], made: _Made) -> Object:
    """Its name ends with what it holds: a change is another one, for which new pods are rolled out, and to which an older rollout goes back."""
    ending = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(f"{name}-{ending}", made.namespace, made.labels), "immutable": True,
            "data": dict(data)}


def _claim(name: str, gib: int, engine: _Made) -> Object:
    # Replicas may run on several nodes.
    mode = "ReadWriteOnce" if engine.replicas == 1 else "ReadWriteMany"
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _metadata(name, engine.namespace, engine.labels),
            "spec": {"accessModes": [mode], "resources": {"requests": {"storage": f"{gib}Gi"}}}}


def _policies(engine: _Made, gateway: _Made) -> Iterator[Object]:
    """compose.yaml's networks: the engine hears the gateway alone, and has no way out where `back` is internal."""
    def policy(name: str, selector: Object, ingress: list[Object], egress: list[Object]) -> Object:
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _metadata(name, engine.namespace),
                "spec": {"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}}

    def ports(*numbers: int, protocols: tuple[str, ...] = ("TCP",)) -> list[Object]:
        return [{"protocol": protocol, "port": number} for number in numbers for protocol in protocols]

    to_engine, of_gateway = ({"matchLabels": made.labels} for made in (engine, gateway))
    offline = engine.project["networks"]["back"].get("internal", False)
    yield policy("nothing-else", {}, [], [])
    yield policy(ENGINE, to_engine, [{"from": [{"podSelector": of_gateway}], "ports": ports(HTTP_PORT, WATCH_PORT)}], [] if offline else [{}])
    yield policy(GATEWAY, of_gateway, [{"ports": ports(GATEWAY_PORT)}],
                 [{"to": [{"podSelector": to_engine}], "ports": ports(HTTP_PORT, WATCH_PORT)}, {"ports": ports(53, protocols=("UDP", "TCP"))}])


def _engine_service(made: _Made) -> Object:
    """Headless, and with the pods that are not ready: the gateway's own checks decide, every second, and not the kubelet's."""
    ports = [{"name": "http", "port": HTTP_PORT, "targetPort": "http"}, {"name": "watch", "port": WATCH_PORT, "targetPort": "watch"}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(made.name, made.namespace, made.labels),
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": made.labels, "ports": ports}}


def _gateway_service(made: _Made, port: int) -> Object:
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(made.name, made.namespace, made.labels),
            "spec": {"type": "ClusterIP", "selector": made.labels, "ports": [{"name": "api", "port": port, "targetPort": "api"}]}}


def _budget(made: _Made) -> Object:
    """A node that is emptied takes one pod at a time."""
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": _metadata(made.name, made.namespace, made.labels),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": made.labels}}}


def _engine_deployment(made: _Made, gpus: int, ready_timeout_s: float) -> Object:
    check = made.service["healthcheck"]
    period = int(composed.seconds(check["interval"]))
    drain_s = max(_DRAIN_NOTICED_S, int(made.environment.get("ENGINE_SHUTDOWN_TIMEOUT") or 0))
    stop_s = drain_s + int(composed.seconds(made.service["stop_grace_period"]))
    probes = {
        # As long as a start may take; until then no other probe runs.
        "startupProbe": _probe(check["test"], check, failures=ceil(ready_timeout_s / period)),
        "readinessProbe": _probe(check["test"], check),
        # The watch inside ends an engine that hangs, and knows a saturated one from it. This ends what has no watch any more.
        "livenessProbe": _probe([*check["test"], "live"], check),
        "lifecycle": {"preStop": {"exec": {"command": _DRAIN}}},
    }
    if check["test"][1:] != _READY:
        raise _untranslated(f"engine: healthcheck {check['test']} has no translation")
    container = _container(made, ports={"http": HTTP_PORT, "watch": WATCH_PORT}, limits={GPU: str(gpus)} if gpus else {}, more=probes)
    return _deployment(made, container, stop_s=stop_s, ready_s=ready_timeout_s, surge=0)  # a GPU is given to one pod: the old one goes first


def _gateway_deployment(made: _Made, routes: Object) -> Object:
    check = made.service["healthcheck"]
    in_start = ceil(composed.seconds(check["start_period"]) / composed.seconds(check["interval"]))
    probes = {
        "startupProbe": _probe(check["test"], check, failures=in_start + int(check["retries"])),
        "readinessProbe": _probe(check["test"], check),
        "livenessProbe": _probe(check["test"], check),  # of the gateway itself: it answers from memory, whatever the engines do
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(UNROUTED_S)]}}},
    }
    sources = [{"secret": {"name": API_KEYS, "items": [{"key": SECRET_KEYS[API_KEYS], "path": SECRET_KEYS[API_KEYS]}]}},
               {"configMap": {"name": routes["metadata"]["name"]}}]
    if made.environment["GATEWAY_TLS"]:
        sources.append({"secret": {"name": TLS, "items": [{"key": SECRET_KEYS[TLS], "path": SECRET_KEYS[TLS]}]}})
    secrets = {"name": "secrets", "projected": {"defaultMode": 0o440, "sources": sources}}
    container = _container(made, ports={"api": GATEWAY_PORT}, limits={}, more=probes)
    container["volumeMounts"].append({"name": "secrets", "mountPath": "/run/secrets", "readOnly": True})
    stop_s = UNROUTED_S + int(composed.seconds(made.service["stop_grace_period"]))
    return _deployment(made, container, stop_s=stop_s, ready_s=60, surge=1, volumes=[secrets])


def _deployment(made: _Made, container: Object, *, stop_s: int, ready_s: float, surge: int, volumes: list[Object] | None = None) -> Object:
    user, group = (int(number) for number in made.service["user"].split(":"))
    pod = {
        "automountServiceAccountToken": False,
        # Or the cluster sets GATEWAY_PORT=tcp://… and the like, for each Service: names that are settings here.
        "enableServiceLinks": False,
        # Docker's `init`: the pod's first process collects what has ended.
        "shareProcessNamespace": bool(made.service.get("init")),
        "terminationGracePeriodSeconds": stop_s,
        "securityContext": {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": group, "fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch",
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [volume for volume, _ in _volumes(made)] + (volumes or []),
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(made.name, made.namespace, made.labels),
            "spec": {"replicas": made.replicas, "selector": {"matchLabels": made.labels},
                     "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge}},
                     "progressDeadlineSeconds": int(ready_s) + stop_s + 60,
                     "template": {"metadata": {"labels": made.labels}, "spec": pod}}}


def _container(made: _Made, *, ports: Mapping[str, int], limits: Mapping[str, str], more: Mapping[str, Any]) -> Object:
    memory = {"memory": _quantity(int(made.service["mem_limit"]))}
    return {
        "name": made.name,
        "image": made.service["image"],
        "imagePullPolicy": "IfNotPresent",
        "envFrom": [{"configMapRef": {"name": made.env_map["metadata"]["name"]}}],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": {"requests": memory | dict(limits), "limits": memory | dict(limits)},
        "securityContext": {"allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [mount for _, mount in _volumes(made)],
        **more,
    }


def _probe(test: list[str], check: Mapping[str, Any], *, failures: int | None = None) -> Object:
    """A health check of Docker's as a probe."""
    return {"exec": {"command": test[1:]}, "periodSeconds": int(composed.seconds(check["interval"])),
            "timeoutSeconds": int(composed.seconds(check["timeout"])), "failureThreshold": failures or int(check["retries"])}


def _volumes(made: _Made) -> Iterator[tuple[Object, Object]]:
    """Each volume of the pod and its place in the container: what is in memory, and what is claimed."""
    def in_memory(name: str, path: str, size: int) -> tuple[Object, Object]:
        return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(size)}}, {"name": name, "mountPath": path}

    for text in made.service.get("tmpfs", []):
        path, _, given = text.partition(":")
        yield in_memory(path.strip("/").replace("/", "-"), path, size_bytes(composed.options(given)["size"]))
    if size := made.service.get("shm_size"):
        yield in_memory("shm", "/dev/shm", int(size))  # noqa: S108  (a mount in the container)
    for volume in made.service.get("volumes", []):
        source, target = volume["source"], volume["target"]
        if volume["type"] == "bind" and source == _NO_MODEL:
            continue
        if volume["type"] == "volume" and (size := composed.memory_volume_bytes(made.project["volumes"][source])):
            yield in_memory(source, target, size)
            continue
        name = source if volume["type"] == "volume" else target.strip("/")
        if name not in made.claims:
            raise _untranslated(f"{made.name}: the volume at {target} has no translation")
        read_only = {"readOnly": True} if volume.get("read_only") else {}
        yield {"name": name, "persistentVolumeClaim": {"claimName": name, **read_only}}, {"name": name, "mountPath": target, **read_only}


def _quantity(number: int) -> str:
    """Bytes as Kubernetes writes them."""
    return next((f"{number // size}{unit}" for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)) if number % size == 0), str(number))
