"""What an image build takes from this host besides the repository: trusted authorities, package indexes, wheels. Nothing of it ends in an image."""

import ast
import hashlib
import os
import re
import shlex
import ssl
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bundle import venv
from bundle.base import console, files, shell
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config.settings import Settings
from bundle.machine import daemon

LEAK_MARK = "vllm-bundle: authorities for the build only; an image layer that holds this line leaks them"
"""First line of the authorities that every build gets: the contract tests look for it in every layer."""

HOST_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")

_CERTIFICATE = re.compile(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----.*?-----END (?:TRUSTED )?CERTIFICATE-----", re.DOTALL)
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
_DIGEST = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def authorities(settings: Settings, environ: Mapping[str, str] = os.environ, host_files: Iterable[str] = HOST_AUTHORITIES) -> str:
    """The certificates to trust while building, as PEM; "" when this host has none of its own.

    BUILD_CA_BUNDLE, else what SSL_CERT_FILE, PIP_CERT or REQUESTS_CA_BUNDLE name, else the host's bundle: behind a proxy that
    re-signs TLS that is where its authority stands. Raises ConfigurationError when the file holds anything but certificates.
    """
    if path := settings.path("BUILD_CA_BUNDLE"):
        return read_authorities(path, f"{settings.origin['BUILD_CA_BUNDLE']}: BUILD_CA_BUNDLE")
    for name in CA_VARIABLES:
        if environ.get(name):
            return read_authorities(Path(environ[name]), f"environment: {name}")
    return next((read_authorities(Path(file), "this host's authorities") for file in host_files if Path(file).is_file()), "")


def read_authorities(path: Path, origin: str) -> str:
    """The text of a PEM file, each certificate of which can be read. Raises ConfigurationError that says what is there instead."""
    fix = f"{origin.rpartition(': ')[2]} takes a file of certificates in PEM form, such as {HOST_AUTHORITIES[0]}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{origin}={path}: {error.strerror}", fix=fix) from error
    text = content.decode(errors="replace")
    blocks = list(_CERTIFICATE.finditer(text))
    if not blocks:
        raise ConfigurationError(f"{origin}={path}: no certificate in it, found {_what_is(content)}", fix=fix)
    for number, block in enumerate(blocks, start=1):
        try:
            ssl.create_default_context(cadata=block[0])
        except (ssl.SSLError, ValueError) as error:
            line = text.count("\n", 0, block.start()) + 1
            raise ConfigurationError(f"{origin}={path}:{line}: certificate {number} of {len(blocks)} cannot be read: {error}", fix=fix) from error
    return text


def _what_is(content: bytes) -> str:
    if not content.strip():
        return "an empty file"
    if content[:1] == b"\x30":
        return "binary DER; `openssl x509 -inform der -in FILE -out FILE.pem` converts it"
    if label := re.search(rb"-----BEGIN ([A-Z0-9 ]+)-----", content):
        return f"a {label[1].decode().lower()}" + ("" if b"-----END" in content else " that is cut off")
    return f"text that begins with {content[:40].decode(errors='replace').splitlines()[0]!r}"


def pip_configuration(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What pip would use on this host: its settings by name (index-url, find-links, …), wherever they are set."""
    listed = shell.run([str(venv.python()), "-m", "pip", "config", "list"], timeout_s=60, env=environ).stdout
    return parse_pip_configuration(listed)


def parse_pip_configuration(listed: str) -> dict[str, str]:
    """The answer of `pip config list` as a dictionary: the environment wins over [install], and that over [global]."""
    found: dict[str, str] = {}
    for wanted in ("global", "install", ":env:"):
        for line in listed.splitlines():
            section, _, rest = line.partition(".")
            key, _, value = rest.partition("=")
            if section == wanted and value:
                found[key] = str(ast.literal_eval(value))
    return found


def indexes(pip: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> str:
    """The package indexes that this host is set up for, as shell assignments for uv and pip; "" for the public index.

    uv's own variables win over pip's configuration. Indexes in local folders are left out: the build does not see them.
    """
    first = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL") or pip.get("index-url", "")
    further = environ.get("UV_INDEX") or environ.get("UV_EXTRA_INDEX_URL") or pip.get("extra-index-url", "")
    remote = [url for url in further.split() if not _local(url)]
    trusted = environ.get("UV_INSECURE_HOST") or pip.get("trusted-host", "")
    assignments: dict[str, str] = {}
    if first and not _local(first):
        assignments |= {"UV_DEFAULT_INDEX": first, "PIP_INDEX_URL": first.rpartition("=")[2] if _named(first) else first}
    if remote:
        # As pip does, take the best match of all indexes; the lock's hashes decide what is accepted.
        assignments |= {"UV_INDEX": " ".join(remote), "PIP_EXTRA_INDEX_URL": " ".join(u.partition("=")[2] if _named(u) else u for u in remote),
                        "UV_INDEX_STRATEGY": "unsafe-best-match"}
    if assignments and trusted:
        assignments |= {"UV_INSECURE_HOST": trusted, "PIP_TRUSTED_HOST": trusted}
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in assignments.items())


def _named(url: str) -> bool:
    """Whether it is uv's form NAME=URL."""
    return bool(re.match(r"[A-Za-z0-9._-]+=", url))


def _local(url: str) -> bool:
    bare = url.partition("=")[2] if _named(url) else url
    return bare.startswith(("file:", "/", "."))


def wheels(settings: Settings, pip: Mapping[str, str], lock: Path) -> dict[Path, str]:
    """Wheels on this host that `lock` names, each with its sha256: from WHEELHOUSE, else from pip's find-links folders.

    Raises ConfigurationError when WHEELHOUSE is not a folder, or holds no wheel, or one that differs from the lock's.
    """
    house = settings.path("WHEELHOUSE")
    if house is None:
        folders = (Path(place.removeprefix("file://")) for place in pip.get("find-links", "").split())
        candidates = (wheel for folder in folders if folder.is_dir() for wheel in folder.glob("*.whl"))
        return {wheel: digest for wheel, digest in _locked(candidates, lock) if digest}
    origin = f"{settings.origin['WHEELHOUSE']}: WHEELHOUSE={house}"
    if not house.is_dir():
        raise ConfigurationError(f"{origin}: {'not a folder' if house.exists() else 'no such folder'}", fix="name a folder with *.whl files in it")
    there = sorted(house.glob("*.whl"))
    if not there:
        raise ConfigurationError(f"{origin}: no wheel in it, found {len(list(house.iterdir()))} other entries",
                                 fix="name a folder with *.whl files in it")
    found = dict(_locked(there, lock))
    if wrong := [wheel.name for wheel, digest in found.items() if not digest]:
        raise ConfigurationError(f"{origin}: {', '.join(wrong)}: not the file that {lock.name} names (its sha256 differs)",
                                 fix="fetch the file again, or resolve the lock anew with this one: make lock")
    return found


def _locked(candidates: Iterable[Path], lock: Path) -> Iterable[tuple[Path, str]]:
    """The candidates whose name and version `lock` pins, with their sha256, "" when the lock has another one."""
    text = lock.read_text()
    pins = {(_normal(name), version) for name, version in _PINNED.findall(text)}
    digests = set(_DIGEST.findall(text))
    for wheel in candidates:
        name, version, *_ = wheel.name.split("-")
        if (_normal(name), version) in pins:
            digest = files.digest(wheel)
            yield wheel, digest if digest in digests else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def import_wheels(found: Mapping[Path, str]) -> str:
    """Make an image that holds the wheels, for builds to mount; its name. Old BuildKits know no other way in than an image."""
    # Another name for each build, which removes it when it ends. What is in it decides what BuildKit has cached, not its name.
    name = f"vllm-bundle/wheels:{hashlib.sha256(''.join(sorted(found.values())).encode()).hexdigest()[:12]}-{os.getpid()}"
    with console.step(f"wheels from this host: {', '.join(sorted(wheel.name for wheel in found))}"), TemporaryDirectory() as folder:
        archive = Path(folder) / "wheels.tar"
        with tarfile.open(archive, "w") as tar:
            for wheel in found:
                tar.add(wheel, arcname=wheel.name)
        shell.run(["docker", "import", str(archive), name], timeout_s=600, env=daemon.client_environment(), failure=PrerequisiteError)
    return name
