"""What is wrong with one value alone: its key, and what the engine or the bundle takes for it."""

import re
from dataclasses import dataclass, replace

from bundle.base.text import near
from bundle.config import catalogue, verdicts, words
from bundle.config.catalogue import Catalogue
from bundle.config.envfile import Entry
from bundle.config.keys import HOST_KEYS, PREFIXES

ENVIRONMENT_PREFIXES = ("CUDA_", "CUBLAS_", "CUBLASLT_", "CUDNN_", "PYTORCH_", "TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "NCCL_", "TRITON_",
                        "VLLM_", "FLASHINFER_", "HF_", "OMP_", "MKL_", "KMP_", "NVIDIA_", "TOKENIZERS_", "MALLOC_", "GLOO_", "UCX_", "LMCACHE_",
                        "OTEL_")
ENVIRONMENT_NAMES = ("DO_NOT_TRACK", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "LD_PRELOAD", "HUGGING_FACE_HUB_TOKEN")
"""What the engine's process environment may hold: libraries' own names, passed through unchanged."""

_NOT_HERE = "a secret does not belong in an env file, whose values show in `docker inspect` and in handoffs."
_KEYS = f"{_NOT_HERE} The gateway asks for keys: write one per line into a file and set GATEWAY_API_KEYS_FILE to it."
_HUB = f"{_NOT_HERE} Download the model on the host and set MODEL_DIR, or set HF_TOKEN_PATH to a file that the engine can read."
_TLS = "TLS ends at the gateway, which reaches the engine without it. Set GATEWAY_TLS_CERT_FILE to a PEM file with certificate and key."
_REFUSED = {
    "ENGINE_API_KEY": _KEYS, "VLLM_API_KEY": _KEYS, "ENGINE_HF_TOKEN": _HUB, "HF_TOKEN": _HUB, "HUGGING_FACE_HUB_TOKEN": _HUB,
    "ENGINE_SSL_KEYFILE": _TLS, "ENGINE_SSL_CERTFILE": _TLS, "ENGINE_SSL_CA_CERTS": _TLS,
    "ENGINE_UDS": "the gateway reaches the engine by TCP, which a Unix socket would replace. Delete the line.",
    "ENGINE_CONFIG": "a second file would hide its values from every check. Write each of its lines as ENGINE_<NAME>=<value>.",
}
_OBJECTS = ("--hf-overrides", "--speculative-config")
"""Flags that take one JSON object. The engine's parser takes any text for the first, and ends later."""
_SECRET = re.compile(r"(_API_KEY|_TOKEN|_SECRET|_SECRET_ACCESS_KEY|_PASSWORD)$")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The checks for one target: its flags, and the records of what is known about settings."""

    catalogue: Catalogue
    records: tuple[verdicts.Record, ...]

    def fault(self, entry: Entry) -> str:
        """What is wrong with this one value, and what to do; "" when nothing is."""
        key, value = entry.key, entry.value
        if key in HOST_KEYS:
            return HOST_KEYS[key].fault(value)
        if key in _REFUSED:
            return _REFUSED[key] if value else ""
        if key.startswith("ENGINE_"):
            return self._engine_fault(key, value)
        if key.startswith(ENVIRONMENT_PREFIXES) or key in ENVIRONMENT_NAMES or key in self.catalogue.environment:
            return self._environment_fault(key, value)
        return self._unknown_fault(key)

    def _engine_fault(self, key: str, value: str) -> str:
        flag = self.catalogue.find(key)
        if key == "ENGINE_MODEL":
            return f"{value!r} starts with a dash: the engine would read it as a flag." if value.startswith("-") else ""
        if flag and flag.name == words.SHARE and self.catalogue.target == "cpu":
            if value == words.AUTO:
                return "auto measures a GPU, and the CPU engine uses none. Delete the line."
        elif flag and flag.name in words.WORDS:
            if value.lower() == words.AUTO != value:
                return f"{value!r} is not a value. Write {key}={words.AUTO}."
            flag = replace(flag, words=(*flag.words, words.AUTO))
        if flag and value and flag.name in _OBJECTS:
            return catalogue.object_fault(value)
        if flag:
            return flag.fault(value) if value else ""
        if negated := self.catalogue.negated(key):
            return f"this is how {negated.name} is turned off. Use {negated.key}={'false' if value != 'false' else 'true'}."
        if gone := self._gone(key):
            return f"vLLM {self.catalogue.version} has no {gone.name} ({gone.gone}). {_use(gone, value)}" if value else ""
        return f"vLLM {self.catalogue.version} has no such flag.{near(key, self.catalogue.keys)}"

    def _environment_fault(self, key: str, value: str) -> str:
        if not value:
            return ""
        if _SECRET.search(key):
            return _NOT_HERE
        if gone := self._gone(key):
            return f"vLLM {self.catalogue.version} does not read {key} ({gone.gone}). {_use(gone, value)}"
        if key.startswith("VLLM_") and key not in self.catalogue.environment:
            if flag := self.catalogue.find(key.replace("VLLM_", "ENGINE_", 1)):
                return f"vLLM has no such variable; VLLM_ is its own prefix. Use {flag.key}={value}."
            return f"vLLM {self.catalogue.version} knows no such variable (it would only warn).{near(key, self.catalogue.environment)}"
        if fault := self.catalogue.variable_fault(key, value):
            return fault
        return next((fault for record in self.records if record.key == key and (fault := record.fault(value))), "")

    def _unknown_fault(self, key: str) -> str:
        if key.startswith(PREFIXES):
            return f"no such setting of the bundle.{near(key, HOST_KEYS)}"
        if flag := self.catalogue.find(f"ENGINE_{key}"):
            return f"engine flags start with ENGINE_. Use {flag.key}=…"
        close = near(key, (*HOST_KEYS, *self.catalogue.keys))
        return f"unknown.{close or ' Engine flags start with ENGINE_, settings of the bundle with HOST_, GATEWAY_, IMAGE_ or MODEL_.'}"

    def doubt(self, entry: Entry) -> str:
        """What is probably wrong with an environment variable that no rule forbids: it is nearly one that a record tells of; "" when nothing is."""
        recorded = {record.key for record in self.records}
        if entry.key in (*HOST_KEYS, *self.catalogue.environment, *recorded) or entry.key.startswith("ENGINE_"):
            return ""
        meant = near(entry.key, recorded)
        return f"nothing is known to read this variable.{meant}" if meant else ""

    def _gone(self, key: str) -> verdicts.Record | None:
        return verdicts.removed(self.records).get(key)


def _use(record: verdicts.Record, value: str) -> str:
    instead = record.use(value)
    return f"Use {instead}." if instead else "Delete the line: nothing replaces it and nothing is needed."
