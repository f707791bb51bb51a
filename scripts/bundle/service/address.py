"""Where a deployment is reached: the one place that makes its address and the command line that asks it."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle import ROOT
from bundle.base.errors import NotReadyError
from bundle.config.settings import Settings
from bundle.service.deployment import Deployment

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (what to ask for instead of it)
QUESTION = "Say in one sentence what the capital of France is."
# The key goes to curl by a pipe: argument lists show in `ps`. The first line that is neither empty nor a comment starts with a key.
_KEY_HEADER = "sed -n '/ metrics-only$/d;/^[^#]/{s/^\\([^ ]*\\).*/Authorization: Bearer \\1/p;q;}'"


@dataclass(frozen=True, kw_only=True)
class Address:
    """How a client on this host reaches a gateway."""

    bind: str
    """The address that it is published on; of 0.0.0.0 and :: the loopback one is asked."""
    port: str
    model: str
    """The model's name in requests."""
    certificate: Path | None = None
    key_file: Path | None = None

    @property
    def url(self) -> str:
        """Scheme, host and port, as in `http://[::1]:8005`."""
        host = _EVERYWHERE.get(self.bind, self.bind)
        return f"{'https' if self.certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What OpenAI clients take."""
        return f"{self.url}/v1"

    @property
    def curl(self) -> str:
        """A command line that gets an answer."""
        question = json.dumps({"model": self.model, "max_tokens": 32, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]})
        line = ["curl", *(["-k"] if self.certificate else []), "-s", f"{self.base_url}/chat/completions", "-H", "Content-Type: application/json",
                *(["-H", "@-"] if self.key_file else []), "-d", question]
        return (f"{_KEY_HEADER} {shlex.quote(str(self.key_file))} | " if self.key_file else "") + shlex.join(line)


def from_settings(settings: Settings) -> Address:
    """Where a deployment of `settings` would be; the port is `PORT` where Docker chooses it."""
    return _address(settings.value, settings.gateway_bind, str(settings.gateway_port or "PORT"))


def published(deployment: Deployment) -> Address:
    """Where the running deployment is. Raises NotReadyError when its gateway does not run."""
    gateway = deployment.containers().get("gateway")
    if gateway is None or gateway.published is None:
        raise NotReadyError(f"project {deployment.project} has no running gateway", fix="make up; `make status` shows what runs")
    bind, port = gateway.published
    values = deployment.values()
    return _address(lambda key: values.get(key, ""), bind, str(port))


def _address(value: Callable[[str], str], bind: str, port: str) -> Address:
    def path(key: str) -> Path | None:
        return ROOT / Path(value(key)).expanduser() if value(key) else None

    return Address(bind=bind, port=port, model=next(iter(value("ENGINE_SERVED_MODEL_NAME").split()), ""),
                   certificate=path("GATEWAY_TLS_CERT_FILE"), key_file=path("GATEWAY_API_KEYS_FILE"))
