"""An OpenAI-compatible server as its clients see it: requests with a time limit, server-sent events, and vLLM's metrics."""

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from prometheus_client.parser import text_string_to_metric_families
from requests.adapters import HTTPAdapter

from bundle.base.errors import ConfigurationError, NotReadyError, PrerequisiteError
from bundle.config.apikeys import METRICS_ONLY
from bundle.service import address
from bundle.service.deployment import Deployment

LARGEST_ANSWER = 64 * 2**20


class ServerError(Exception):
    """The server did not answer as HTTP, JSON or server-sent events ask it to; the text says how."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises ServerError when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ServerError(f"status {self.status} with a body that is not JSON: {excerpt(self.body)}") from error

    @property
    def message(self) -> str:
        """The `message` of an OpenAI-style error; "" when the body is none."""
        try:
            error = json.loads(self.body).get("error", {})
        except (ValueError, AttributeError):
            return ""
        return str(error.get("message") or "") if isinstance(error, dict) else ""

    def __str__(self) -> str:
        return f"status {self.status}: {excerpt(self.body)}"


def excerpt(data: bytes, limit: int = 200) -> str:
    """The beginning of `data` in one printable line."""
    text = data.decode(errors="replace")
    return repr(text if len(text) <= limit else text[:limit] + "…")


@dataclass(kw_only=True)
class Server:
    """A server at `url` (scheme, host, port; no path).

    `ours` is whether it is a deployment of this bundle, `bind` then its published address. `ca_file` is what its certificate is
    checked against instead of the system's authorities; `pinned` says that this is the server's own certificate, whatever its name.
    No request outlasts `deadline` (time.monotonic) or `request_limit_s` seconds.
    """

    url: str
    key: str = field(default="", repr=False)
    ca_file: Path | None = None
    pinned: bool = False
    ours: bool = False
    bind: str = ""
    model: str = ""
    models: tuple[str, ...] = ()
    """Of a deployment of this bundle: one name of each model that it serves."""
    request_limit_s: float = 60.0
    deadline: float = float("inf")

    @classmethod
    def at_url(cls, url: str, *, key: str = "", ca_file: Path | None = None) -> "Server":
        """The server at a base URL, with or without its `/v1`. Raises ConfigurationError when that is no URL."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        path = parts.path.rstrip("/").removesuffix("/v1")
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not path and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigurationError(f"--url {url}: not the base URL of a server", fix="for example: --url http://127.0.0.1:8000")
        return cls(url=f"{parts.scheme}://{parts.netloc}", key=key, ca_file=ca_file)

    @classmethod
    def from_deployment(cls, deployment: Deployment) -> "Server":
        """The gateway of a running deployment. Raises PrerequisiteError when none was made, NotReadyError when it does not run."""
        if not deployment.is_written:
            raise PrerequisiteError(f"project {deployment.project} is not up", fix="make up, or name a server: --url http://HOST:PORT")
        there = address.published(deployment)
        return cls(url=there.url, ours=True, bind=there.bind, key=first_key(there.key_file) if there.key_file else "",
                   ca_file=there.certificate, pinned=bool(there.certificate), models=deployment.models)

    def connect(self, model: str = "", *, limit_s: float = float("inf")) -> None:
        """See that it answers, and choose the model: `model`, or the first that it lists. From here on it has `limit_s` seconds for everything.

        Raises NotReadyError when it does not answer (yet), ConfigurationError when it refuses the key or lacks the model.
        """
        self.deadline = time.monotonic() + limit_s
        try:
            reply = self.request("GET", "/v1/models")
        except ServerError as error:
            fix = "--ca-file FILE names the authority, or the self-signed certificate, to trust" if " TLS: " in str(error) \
                else "is it up, and is the address right (https where it has a certificate)? `make status` shows this bundle's"
            raise NotReadyError(str(error), fix=fix) from error
        if reply.status in (401, 403):
            raise ConfigurationError(f"{self.url} {'refuses the key' if self.key else 'asks for a key'} ({reply.status})",
                                     fix="give the file that holds it: --api-key-file FILE")
        if reply.status in (502, 503, 504):
            raise NotReadyError(f"{self.url} is not ready: {reply.message or reply}", fix="wait for it; `make status` says how far it is")
        try:
            listed = [str(m["id"]) for m in reply.json()["data"]]
        except (ServerError, LookupError, TypeError) as error:
            raise NotReadyError(f"{self.url}/v1/models is no list of models: {reply}", fix="is this an OpenAI-compatible server?") from error
        if model and model not in listed:
            raise ConfigurationError(f"{self.url} does not serve the model {model}", fix=f"it serves: {', '.join(listed) or 'none'}")
        self.model = model or next(iter(listed), "")

    # --- requests

    def request(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, key: str | None = None) -> Reply:
        """One request and its whole answer. `raw` is a body sent as it is; `key` another key than the server's ("" sends none).

        Raises ServerError when no whole answer comes in time.
        """
        with self._open(method, path, body, raw, key) as response:
            collected = b"".join(self._pieces(response, f"{method} {path}"))
            return Reply(status=response.status_code, headers=response.headers, body=collected)

    def post(self, path: str, **body: Any) -> Reply:
        """POST a JSON body for the chosen model."""
        return self.request("POST", path, {"model": self.model, **body})

    def events(self, path: str, **body: Any) -> Iterator[str]:
        """POST with `stream` on; the data of each event as it comes. Raises ServerError when the answer is not an event stream."""
        with self._open("POST", path, {"model": self.model, "stream": True, **body}, None, None) as response:
            kind = response.headers.get("Content-Type", "")
            if response.status_code != 200 or not kind.startswith("text/event-stream"):
                first = next(self._pieces(response, path), b"")
                raise ServerError(f"status {response.status_code}, {kind or 'no content type'}: {excerpt(first)}")
            rest = b""
            for piece in self._pieces(response, path):
                *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
                for event in events:
                    yield "\n".join(line.removeprefix("data:").strip() for line in event.decode().split("\n") if line.startswith("data:"))

    def untouched(self, method: str, target: str) -> int:
        """The status that a request gets whose target is sent byte by byte as given, as no HTTP library would send it."""
        parts = urlsplit(self.url)
        limit = self._limit()
        host, port = parts.hostname or "", parts.port
        connection = http.client.HTTPSConnection(host, port, timeout=limit, context=self._tls) if parts.scheme == "https" \
            else http.client.HTTPConnection(host, port, timeout=limit)
        connection._validate_path = lambda _: None  # type: ignore[attr-defined]  # it would refuse the spellings that are the point
        try:
            connection.request(method, target, headers=self._headers(None))
            return connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{method} {target}: {error!r}") from error
        finally:
            connection.close()

    # --- what it says of itself

    def metrics(self) -> dict[str, float] | None:
        """vLLM's metrics, each summed over its label sets; None where there are none."""
        reply = self.request("GET", "/metrics")
        if reply.status != 200 or b"vllm:" not in reply.body:
            return None
        sums: dict[str, float] = {}
        self.cache_config: dict[str, str] = {}
        try:
            for family in text_string_to_metric_families(reply.body.decode()):
                for sample in family.samples:
                    sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                    if sample.name == "vllm:cache_config_info":
                        self.cache_config = dict(sample.labels)
        except ValueError as error:
            raise ServerError(f"/metrics is not in Prometheus' format: {error}") from error
        return sums

    @cached_property
    def is_vllm(self) -> bool:
        """Whether it shows vLLM's metrics; also: whether vLLM's additions to the API may be used."""
        return self.metrics() is not None

    @cached_property
    def writes(self) -> bool:
        """Whether the chosen model answers with text; taken for granted of any server but this bundle's own, whose engine does one or the other."""
        return not self.ours or self.post("/v1/embeddings", input="x").status != 200

    @cached_property
    def context(self) -> int | None:
        """Tokens of prompt and answer together that the model takes; None where the server does not say."""
        for model in self.request("GET", "/v1/models").json()["data"]:
            if model["id"] == self.model and model.get("max_model_len"):
                return int(model["max_model_len"])
        return None

    # --- below

    def _limit(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ServerError("the time limit of the whole run is over")
        return min(self.request_limit_s, left)

    def _headers(self, key: str | None) -> dict[str, str]:
        chosen = self.key if key is None else key
        return {"Authorization": f"Bearer {chosen}"} if chosen else {}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.ca_file}: not a readable PEM certificate ({error})") from error
        if self.pinned:
            # The very certificate of the deployment, which is usually reached by another name than it was issued for.
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    @cached_property
    def _session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = not self.ours  # no proxy stands between a host and its own port
        session.auth = lambda request: request  # or ~/.netrc would replace the key
        session.mount("https://", _Adapter(self._tls))
        return session

    def _open(self, method: str, path: str, body: Any, raw: bytes | None, key: str | None) -> requests.Response:
        limit = self._limit()
        headers = self._headers(key)
        if body is not None or raw is not None:
            headers["Content-Type"] = "application/json"
        try:
            return self._session.request(method, self.url + path, data=raw if raw is not None else json.dumps(body) if body is not None else None,
                                         headers=headers, timeout=(min(10.0, limit), limit), stream=True, allow_redirects=False)
        except requests.RequestException as error:
            raise ServerError(f"{self.url} {_reason(error)}") from error

    def _pieces(self, response: requests.Response, what: str) -> Iterator[bytes]:
        # requests' own limit is per read, and its reads wait for a whole body: a server that trickles would hold us for ever.
        end, size = time.monotonic() + self._limit(), 0
        try:
            while piece := response.raw.read1(65536, decode_content=True):
                size += len(piece)
                if time.monotonic() > end or size > LARGEST_ANSWER:
                    raise ServerError(f"{what}: the answer did not end within {self.request_limit_s:g} s and {LARGEST_ANSWER >> 20} MiB")
                yield piece
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerError(f"{what}: the answer broke off: {_reason(error)}") from error


class _Adapter(HTTPAdapter):
    """TLS by the given context, with as many connections as the concurrency expectation has threads."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__(pool_maxsize=32)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        # None: by the name in the URL. False: not at all, as the context says.
        named = None if self.context.check_hostname else False
        super().init_poolmanager(*arguments, ssl_context=self.context, assert_hostname=named, **options)

    def cert_verify(self, *_: Any) -> None:
        """The context verifies; requests would load the public authorities into it."""


def first_key(file: Path) -> str:
    """The first key of a key file that may ask for more than metrics. Raises ConfigurationError when there is none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read as a key file: {getattr(error, 'strerror', None) or 'not text'}") from error
    keys = [line for line in lines if line and not line.startswith("#") and not line.endswith(METRICS_ONLY)]
    if not keys:
        raise ConfigurationError(f"{file}: no key in it", fix="one per line, its name behind it")
    if not (keys[0].isascii() and keys[0].isprintable()):
        raise ConfigurationError(f"{file}: the first key has a character that no HTTP header can carry", fix="one per line, printable ASCII")
    return keys[0].split()[0]


def _reason(error: Exception) -> str:
    """What went wrong, without the layers of wrapping."""
    cause = _innermost(error)
    if isinstance(cause, TimeoutError):
        return "did not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"failed at TLS: {cause}"
    if isinstance(error, requests.ConnectionError):
        return f"cannot be reached: {cause}"
    return str(cause)


def _innermost(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
