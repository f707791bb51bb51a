"""Values for the Helm chart of vLLM's production-stack: the same engine behind that project's router, for what these manifests do not have.

The chart starts `vllm serve` itself (helm/templates/deployment-vllm-multi.yaml), so the engine's flags stand in its `extraArgs`; the keys are those
of helm/values.yaml and helm/values.schema.json (https://github.com/vllm-project/production-stack, read in November 2026 at 00c38d1 and 01eaf92).
What that costs: no watch and no drain, as the entrypoint does not run; the chart's probes ask /health, which is 200 while the core hangs.
"""

from typing import Any

from bundle.config import words
from bundle.config.settings import Settings

CPUS = 4
"""The chart wants a number, and no setting has one. Judgement: the API server, the core, and two to spare."""
_NOT_PASSED = ("--host", "--port", "--middleware", "--enable-prefix-caching", "--no-enable-prefix-caching")


def values(settings: Settings, deployment: dict[str, Any]) -> dict[str, Any]:
    """The values file, with volumes, limits and rights of `deployment`, the engine's own (bundle.hosts.kubernetes)."""
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    repository, _, tag = settings.image_engine.rpartition(":")  # a digest too: name@sha256:…
    memory = container["resources"]["limits"]["memory"]
    extra = {volume["name"]: volume for volume in pod["volumes"]}
    startup = container["startupProbe"]
    model = {
        "name": settings.project,
        "repository": repository,
        "tag": tag,
        "modelURL": settings.value("ENGINE_MODEL"),
        "replicaCount": settings.replicas,
        "requestCPU": CPUS,
        "requestMemory": memory,
        "limitMemory": memory,
        "requestGPU": int(container["resources"]["limits"].get("nvidia.com/gpu", 0)),
        # The chart switches prefix caching off where this is not said.
        "vllmConfig": {"enablePrefixCaching": "--no-enable-prefix-caching" not in settings.argv, "extraArgs": _arguments(settings.argv)},
        "env": [{"name": key, "value": value.replace("$(", "$$(")} for key, value in settings.environment.items()],
        "extraVolumes": list(extra.values()),
        "extraVolumeMounts": container["volumeMounts"],
    }
    return {"servingEngineSpec": {
        "enableEngine": True,
        "vllmApiKey": {"secretName": "engine-api-key", "secretKey": "key"},
        "runtimeClassName": "",
        "imagePullPolicy": container["imagePullPolicy"],
        "securityContext": pod["securityContext"],
        "containerSecurityContext": container["securityContext"],
        "startupProbe": {"initialDelaySeconds": 15, "periodSeconds": startup["periodSeconds"], "failureThreshold": startup["failureThreshold"],
                         "httpGet": {"path": "/health", "port": 8000}},
        "strategy": deployment["spec"]["strategy"],
        "modelSpec": [model],
    }}


def _arguments(argv: tuple[str, ...]) -> list[str]:
    """The engine's flags, but those that the chart gives itself and what only the image's entrypoint can start."""
    found: list[str] = []
    left = list(argv[3:])
    while left:
        flag, values = left.pop(0), []
        while left and not left[0].startswith("--"):
            values.append(left.pop(0))
        if flag not in _NOT_PASSED and not (flag in words.WORDS and values == [words.AUTO]):
            found += [flag, *values]
    return [word.replace("$(", "$$(") for word in found]
