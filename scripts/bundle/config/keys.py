"""The keys that are the bundle's own (HOST_, GATEWAY_, HEALTH_, IMAGE_, MODEL_, build knobs), and what each may hold; env/base.env has the values."""

import ipaddress
import re
from dataclasses import dataclass

from bundle.base.text import near
from bundle.config.catalogue import TARGETS

PREFIXES = ("HOST_", "GATEWAY_", "HEALTH_", "IMAGE_", "MODEL_", "BUILD_", "MONITORING_", "SLO_")

_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_SIZE = re.compile(r"\d+(\.\d+)?[bkmgBKMG]")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]*(@sha256:[0-9a-f]{64})?")
_GPUS = re.compile(r"[\w./:=-]+(,[\w./:=-]+)*", re.ASCII)
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ORIGINS = re.compile(r"\*|https?://[\w.:\[\]-]+( https?://[\w.:\[\]-]+)*", re.ASCII)
_SIZES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """One key of the bundle. `kind` is int, number, size, gpus, address, image, project, origins or text; empty is allowed unless `required`."""

    kind: str = "text"
    required: bool = False
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 2**31
    path: bool = False

    def fault(self, value: str) -> str:
        """What is wrong with `value`, and what to write instead; "" when nothing is."""
        if not value:
            return "needs a value; env/base.env holds the default." if self.required else ""
        if self.choices and value not in self.choices:
            return f"{value!r} is not one of its values.{near(value, self.choices)} It takes: {', '.join(self.choices)}."
        if self.kind == "int":
            if not re.fullmatch(r"\d+", value, re.ASCII):
                return f"{value!r} is not a whole number."
            if not self.minimum <= int(value) <= self.maximum:
                return f"{value} is outside {self.minimum} to {self.maximum}."
        if self.kind == "number" and not _NUMBER.fullmatch(value):
            return f"{value!r} is not a number, such as 0.5 or 30."
        if self.kind == "address" and not _is_address(value):
            return f"{value!r} is not an IP address. 127.0.0.1 serves this host only, 0.0.0.0 every network."
        pattern, example = {"gpus": (_GPUS, "a list of GPUs, by index or UUID: 0,1"),
                            "size": (_SIZE, "a number and a unit (b, k, m, g): 8g"), "image": (_IMAGE, "an image name: name:tag"),
                            "origins": (_ORIGINS, "a list of origins with blanks between them, or *: https://chat.example http://localhost:3000"),
                            "project": (_PROJECT, "a project name: lower-case letters, digits, - and _")}.get(self.kind, (None, ""))
        return f"{value!r} is not {example}." if pattern and not pattern.fullmatch(value) else ""


def _int(minimum: int, maximum: int) -> HostKey:
    return HostKey(kind="int", required=True, minimum=minimum, maximum=maximum)


MOST_REPLICAS = 8
"""compose.yaml has as many engines."""
MODELS = ("engine", "engine-b", "engine-c", "engine-d")
"""The services of the models of one deployment, of which each has its replicas behind it (engine-b-2 …), and their backends in the gateway."""


def engines(model: str, replicas: int) -> tuple[str, ...]:
    """The services of a model's engines; `model` is one of MODELS."""
    return (model, *(f"{model}-{number}" for number in range(2, replicas + 1)))


_NUMBER_KEY = HostKey(kind="number", required=True)
_FILE = HostKey(path=True)
_SIZE_KEY = HostKey(kind="size", required=True)
_IMAGE_KEY = HostKey(kind="image", required=True)

HOST_KEYS: dict[str, HostKey] = {
    "HOST_PROJECT": HostKey(kind="project", required=True),
    "HOST_PROFILE": HostKey(),
    "HOST_ENV_FILE": HostKey(),
    "HOST_SETUP": HostKey(required=True, choices=("auto", "never")),
    "HOST_ENGINE_MEMORY": _SIZE_KEY,
    "HOST_ENGINE_OFFLINE": HostKey(required=True, choices=("true", "false")),
    "HOST_ENGINE_PIDS": _int(64, 4_194_304),
    "HOST_SHM_SIZE": _SIZE_KEY,
    "HOST_STOP_GRACE_S": _int(1, 3600),
    "HOST_READY_TIMEOUT_S": _int(1, 86_400),
    "HOST_ACCELERATOR": HostKey(choices=("cuda", "cuda-cdi")),
    "HOST_GPU_COUNT": _int(1, 64),
    "HEALTH_STALL_S": _int(10, 86_400),
    "HOST_GPUS": HostKey(kind="gpus"),
    "HOST_REPLICAS": _int(1, MOST_REPLICAS),
    "HOST_REQUEST_TOKENS": _int(1, 16_777_216),
    "GATEWAY_BIND": HostKey(kind="address", required=True),
    "GATEWAY_PORT": _int(0, 65_535),
    "GATEWAY_API_KEYS_FILE": _FILE,
    "GATEWAY_TLS_CERT_FILE": _FILE,
    "GATEWAY_TIMEOUT_S": _int(1, 86_400),
    "GATEWAY_MAX_BODY_MIB": _int(1, 1024),
    "GATEWAY_MAX_TOKENS": _int(1, 2**31),
    "GATEWAY_MAX_RUNNING": _int(0, 1024),
    "GATEWAY_MAX_PER_MINUTE": _int(0, 1_000_000),
    "GATEWAY_MAX_CONNECTIONS": _int(1, 1024),
    "GATEWAY_ALLOWED_ORIGINS": HostKey(kind="origins"),
    "IMAGE_TARGET": HostKey(required=True, choices=TARGETS),
    "IMAGE_ENGINE": _IMAGE_KEY,
    "IMAGE_GATEWAY": _IMAGE_KEY,
    "IMAGE_MONITORING": _IMAGE_KEY,
    "HOST_MONITORING": HostKey(required=True, choices=("on", "off")),
    "MONITORING_INTERVAL_S": _int(1, 3600),
    "MONITORING_HOLD_S": _int(0, 86_400),
    "MONITORING_RETENTION_DAYS": _int(1, 3650),
    "MONITORING_DISK_MIB": _int(256, 10_000_000),
    "MONITORING_WEBHOOK_FILE": _FILE,
    "SLO_TTFT_P95_S": _NUMBER_KEY,
    "SLO_ITL_P95_S": _NUMBER_KEY,
    "SLO_E2E_P99_S": _NUMBER_KEY,
    "SLO_QUEUE_P95_S": _NUMBER_KEY,
    "SLO_ERRORS": _NUMBER_KEY,
    "SLO_WAITING": _int(0, 1_000_000),
    "SLO_REFUSED_PER_MINUTE": _int(0, 1_000_000),
    "MODEL_DIR": _FILE,
    "MODEL_ADAPTERS_DIR": _FILE,
    "BASE_IMAGE": HostKey(kind="image"),
    "BUILD_CA_BUNDLE": _FILE,
    "WHEELHOUSE": _FILE,
}

FOR_ENTRYPOINT = ("HEALTH_STALL_S",)
"""Keys that docker/engine/entrypoint.py reads, beside the engine: they are handed over with the engine's own settings."""

DERIVED: tuple[str, ...] = ("COMPOSE_PROFILES", "GATEWAY_MONITORING", "MONITORING_ENGINES",
                            *(f"HOST_GPUS_{number}" for number in range(1, MOST_REPLICAS + 1)))
"""What compose.yaml takes from HOST_REPLICAS, HOST_GPU_COUNT, HOST_GPUS and HOST_MONITORING: the services that run, those that Prometheus asks, and
each replica's GPUs."""

GATEWAY_WRITTEN = ("GATEWAY_BACKENDS", "GATEWAY_MODELS_FILE")
"""What `make up` tells the gateway of the models: the backends that it needs, and the file that says which model's name leads to which."""

HOST_KEYS |= dict.fromkeys((*DERIVED, "GATEWAY_BACKENDS"), HostKey()) | {"GATEWAY_MODELS_FILE": _FILE}

_SHARED = ("HOST_PROJECT", "HOST_SETUP", "HOST_ENGINE_OFFLINE", "HOST_ACCELERATOR", "HOST_STOP_GRACE_S", "ENGINE_SHUTDOWN_TIMEOUT", "IMAGE_GATEWAY",
           "BASE_IMAGE", "BUILD_CA_BUNDLE", "WHEELHOUSE")

FROM_ENVIRONMENT = ("BASE_IMAGE", "BUILD_CA_BUNDLE", "WHEELHOUSE", "HOST_SETUP")
"""Keys that may also come from the process environment (`make build BASE_IMAGE=…`), over base.env and under every other file."""


def is_shared(key: str) -> bool:
    """Whether `key` is of a whole deployment, however many models it serves: what concerns the gateway, the network, stopping and building."""
    return key.startswith("GATEWAY_") or key in _SHARED


def size_bytes(value: str) -> int:
    """`8g` → 8589934592, as Compose reads it."""
    return int(float(value[:-1]) * _SIZES[value[-1].lower()])


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
