"""The model hub, through its own library: what a repository holds, and one file of it, resumed where an earlier run broke off.

Files come over plain HTTP with the library's `http_get`. Its `snapshot_download` and its Xet transfer give each attempt a fresh
temporary file and remove it on failure: a broken download of the next run would start at zero again.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self, cast
from urllib.parse import urlsplit

from bundle.base import console
from bundle.base.errors import BundleError, CheckFailedError, ConfigurationError, PrerequisiteError

_NAME = re.compile(r"(?!.*(\.\.|--))\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WRONG_RANGE = 416


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a repository. `checksum` is "sha256:…" of its content, or "git:…", the SHA-1 of its git blob."""

    path: str
    size: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model on the hub at one commit."""

    name: str
    commit: str
    files: tuple[File, ...]


class DifferentSizeError(Exception):
    """The hub answered with more or fewer bytes than it lists, or than a resumed download can follow."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A hub at `endpoint` (a URL), asked with `token` ("" asks as nobody)."""

    endpoint: str
    token: str = field(default="", repr=False)

    def repository(self, name: str, revision: str = "main") -> Repository:
        """What `name` holds at `revision` (a branch, tag or commit). Raises ConfigurationError or PrerequisiteError."""
        from huggingface_hub import HfApi, constants

        with self._explained(name, revision):
            info = HfApi(endpoint=self.endpoint, token=self.token or False).model_info(
                name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        if not info.sha or not info.siblings:
            raise PrerequisiteError(f"{self.endpoint}: {name} is empty at {revision}", fix="another name or REVISION")
        return Repository(name=name, commit=info.sha, files=tuple(self._file(name, sibling) for sibling in info.siblings))

    def fetch(self, repository: Repository, file: File, part: Path, progress: Callable[[int], None]) -> None:
        """Append to `part` what it lacks of `file`; `progress` is told the bytes as they come (negative: taken back).

        Raises DifferentSizeError, or what `repository` raises. What has arrived stays in `part` whatever is raised.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(repository.name, file.path, revision=repository.commit, endpoint=self.endpoint)
        headers = {"Accept-Encoding": "identity"}  # a compressed answer cannot be resumed
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        with self._explained(repository.name, repository.commit), part.open("ab") as target:
            try:
                http_get(url, target, resume_size=target.tell(), headers=headers, expected_size=file.size, displayed_filename=file.path,
                         tqdm_class=cast(Any, _meter(progress)))
            except HfHubHTTPError as error:
                if error.response.status_code == _WRONG_RANGE:
                    raise DifferentSizeError(str(error)) from error
                raise
            except OSError as error:
                if error.errno is None and "Consistency check" in str(error):
                    raise DifferentSizeError(str(error)) from error
                raise

    def _file(self, name: str, sibling: Any) -> File:
        path, lfs = PurePosixPath(sibling.rfilename), sibling.lfs
        if path.is_absolute() or ".." in path.parts or "\\" in sibling.rfilename:
            raise CheckFailedError(f"{self.endpoint}: {name} lists a file outside of its own folder: {sibling.rfilename!r}",
                                   fix="do not use this model")
        if sibling.size is None or not (lfs or sibling.blob_id):
            raise PrerequisiteError(f"{self.endpoint} tells neither size nor checksum of {name}/{path}", fix="use a hub, or a mirror, that does")
        return File(path=str(path), size=lfs.size if lfs else sibling.size, checksum=f"sha256:{lfs.sha256}" if lfs else f"git:{sibling.blob_id}")

    @contextmanager
    def _explained(self, name: str, revision: str) -> Iterator[None]:
        """Turn what the library raises into what an operator can act on."""
        try:
            yield
        except Exception as error:
            explained = self._explain(error, name, revision)
            if explained is None:
                raise
            raise explained from error

    def _explain(self, error: Exception, name: str, revision: str) -> BundleError | None:
        import httpx2
        from huggingface_hub import errors

        where = f"{self.endpoint}: {name}"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return PrerequisiteError("HF_HUB_OFFLINE is set: nothing can be fetched", fix="unset it, or OFFLINE=1 to check what is already here")
        if isinstance(error, errors.HFValidationError):
            return ConfigurationError(self._clean(error), fix="NAME=organization/model, as the hub's page shows it")
        if isinstance(error, errors.RevisionNotFoundError):
            return ConfigurationError(f"{where} has no revision {revision!r}", fix="REVISION= takes a branch, a tag or a full commit of this model")
        if isinstance(error, errors.GatedRepoError):
            why = "this token's account has no access to it" if self.token else "no token was given"
            return PrerequisiteError(f"{where} is gated, and {why}", fix=self._access(name))
        if isinstance(error, errors.HfHubHTTPError):
            return self._refused(error.response.status_code, where, name)
        if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
            return PrerequisiteError(f"{self.endpoint} cannot be reached: {self._clean(error)}",
                                     fix="check network, HTTPS_PROXY and HF_ENDPOINT, then run the same command again: it goes on where it stopped")
        if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
            return PrerequisiteError(f"{self.endpoint} does not answer as a model hub does", fix="check ENDPOINT, HF_ENDPOINT and the proxy")
        return None

    def _refused(self, status: int, where: str, name: str) -> BundleError:
        if status in (401, 403) and self.token:
            return PrerequisiteError(f"{where}: the hub refuses the token ({status})", fix=self._access(name))
        if status in (401, 403, 404):
            seen = "that this token may see" if self.token else "that can be seen without a token"
            return PrerequisiteError(f"{where}: no such model {seen} ({status})", fix=f"check the spelling; {self._access(name)}")
        return PrerequisiteError(f"{where}: the hub answers {status}", fix="run the same command again in a while: it goes on where it stopped")

    def _access(self, name: str) -> str:
        return (f"for a gated or private model: accept its terms at {self.endpoint}/{name}, make a read token there, "
                "put it alone into a file that only you can read (chmod 600), and TOKEN_FILE=that file")

    def _clean(self, error: Exception) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        return redacted(text, self.token)


def model_name(text: str) -> str:
    """`text` if a model on a hub can have it as its name: it becomes a path in the store. Raises ConfigurationError."""
    if not _NAME.fullmatch(text):
        raise ConfigurationError(f"{text!r} is not a model's name on the hub", fix="NAME=organization/model, as the hub's page shows it")
    return text


def connect(*, endpoint: str = "", token_file: Path | None = None) -> Hub:
    """The hub at `endpoint` (default: HF_ENDPOINT, else the public hub), with the token that stands in `token_file`.

    Raises ConfigurationError for a bad URL or token file, and for a token that would cross the network unencrypted.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the library is imported, so before that
    from huggingface_hub import constants

    url = (endpoint or constants.ENDPOINT).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{url!r} is not a hub's address", fix="ENDPOINT=https://hub.example")
    token = read_token(token_file) if token_file else ""
    if token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigurationError(f"{url}: a token over plain http can be read by everyone in between", fix="an https address")
    library = logging.getLogger("huggingface_hub")
    library.handlers = [_Forward(token)]
    return Hub(endpoint=url, token=token)


def read_token(path: Path) -> str:
    """The one word that `path` holds. Raises ConfigurationError; warns when others may read it. Never shows what it holds."""
    fix = "one line with the token alone, in a file that only you can read (chmod 600)"
    try:
        token = path.read_bytes().decode("ascii").strip()
        mode = path.stat().st_mode
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not a token: it holds more than ASCII characters", fix=fix) from error
    except OSError as error:
        raise ConfigurationError(f"{path}: the token file cannot be read: {error.strerror}", fix=fix) from error
    if len(token.split()) != 1:
        raise ConfigurationError(f"{path}: {'holds more than one word' if token else 'the token file is empty'}", fix=fix)
    if mode & 0o077:
        console.warn(f"{path}: other users of this host can read the token; chmod 600 {path}")
    return token


def redacted(text: str, token: str) -> str:
    return text.replace(token, "[REDACTED]") if token else text


class _Forward(logging.Handler):
    """The library's warnings (such as "Trying to resume download...") as ours, without the token."""

    def __init__(self, token: str) -> None:
        super().__init__(level=logging.WARNING)
        self._token = token

    def emit(self, record: logging.LogRecord) -> None:
        console.warn(redacted(" ".join(record.getMessage().split()), self._token))


def _meter(progress: Callable[[int], None]) -> type:
    """What the library takes for a progress bar: it only counts."""

    class Meter:
        def __init__(self, **_: object) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            progress(count)

    return Meter
