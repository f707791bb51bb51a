"""The gateway's secrets while it runs: keys and certificate are changed over HAProxy's admin socket, and no stream notices.

The files on the host stay what counts: a gateway that starts reads them.
"""

import hashlib
import re
import secrets
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.base import files
from bundle.base.errors import BundleError, ConfigurationError
from bundle.config import apikeys
from bundle.config.apikeys import Key
from bundle.config.settings import Settings
from bundle.service import admin
from bundle.service.deployment import GATEWAY, Deployment

KEYS = "/run/secrets/gateway_api_keys"
CERTIFICATE = "/run/secrets/gateway_tls"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What a running gateway was told; names only."""

    added: Sequence[str] = ()
    revoked: Sequence[str] = ()
    certificate: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.revoked or self.certificate)

    def __str__(self) -> str:
        parts = [f"{len(names)} key{'s' * (len(names) > 1)} {what} ({', '.join(names)})"
                 for names, what in ((self.added, "added"), (self.revoked, "revoked")) if names]
        return ", ".join([*parts, *(["the certificate renewed"] if self.certificate else [])])


def key_file(deployment: Deployment, settings: Settings) -> Path | None:
    """Where the keys stand: of what runs, else of what would be started."""
    return _path(deployment, "GATEWAY_API_KEYS_FILE") if deployment.is_written else settings.api_keys_file


def listed(file: Path) -> Sequence[Key]:
    """The keys of a file. Raises ConfigurationError, with file:line, where it is no key file, and OSError."""
    keys, faults = apikeys.read(file.read_text(encoding="utf-8", errors="replace"))
    if faults:
        raise ConfigurationError("\n".join(f"{file}:{number}: {what}" for number, what in faults), fix=apikeys.FORM)
    return keys


def add(file: Path, name: str, *, metrics_only: bool = False, class_: str = "") -> Key:
    """A new key under `name` at the end of the file, which is made where there is none. Raises ConfigurationError where the name does not do."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if fault := apikeys.name_fault(name, listed(file) if text else ()):
        raise ConfigurationError(fault, fix="choose another name; `make keys` lists those that are taken")
    key = Key(secret=f"sk-{secrets.token_hex(24)}", name=name, metrics_only=metrics_only, class_=class_)
    new = not file.exists()
    files.write_whole(file, text + ("" if text.endswith("\n") or not text else "\n") + key.line)
    if new:
        # Compose mounts it as it is, and the gateway is another user. The folder decides who on this host gets to it.
        file.chmod(0o444)
    return key


def revoke(file: Path, name: str) -> None:
    """Take the key of `name` out of the file. Raises ConfigurationError where there is none."""
    keys = listed(file)
    gone = next((key for key in keys if name and key.name == name), None)
    if gone is None:
        named = ", ".join(key.name for key in keys if key.name)
        raise ConfigurationError(f"{file} has no key of the name {name}", fix=f"it has: {named or 'no key with a name'}")
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    files.write_whole(file, "".join(line for line in lines if line.split()[:1] != [gone.secret]))


def apply(deployment: Deployment) -> Applied:
    """Tell the running gateway what its secret files hold now, where that differs. Nothing happens where none runs, or it has no such files.

    Raises ConfigurationError where the key file is broken, BundleError where the gateway refuses what it is told.
    """
    gateway = deployment.containers().get(GATEWAY) if deployment.is_written else None
    if gateway is None or gateway.state != "running":
        return Applied()
    keys, certificate = (_path(deployment, name) for name in ("GATEWAY_API_KEYS_FILE", "GATEWAY_TLS_CERT_FILE"))
    added, revoked = _apply_keys(deployment, listed(keys)) if keys else ((), ())
    renewed = certificate is not None and _apply_certificate(deployment, certificate.read_text(encoding="ascii"))
    return Applied(added=added, revoked=revoked, certificate=renewed)


def _path(deployment: Deployment, key: str) -> Path | None:
    value = deployment.values().get(key)
    return deployment.home / Path(value).expanduser() if value else None


def _apply_keys(deployment: Deployment, keys: Sequence[Key]) -> tuple[Sequence[str], Sequence[str]]:
    there, wanted = admin.show_map(deployment, KEYS), {key.secret: key.note for key in keys}
    if there == wanted:
        return (), ()
    admin.replace_map(deployment, KEYS, wanted)
    return _difference(wanted, there), _difference(there, wanted)


def _difference(some: Mapping[str, str], others: Mapping[str, str]) -> Sequence[str]:
    """What is said of the keys that the others lack, or know otherwise."""
    return sorted(note for secret, note in some.items() if others.get(secret) != note)


def _apply_certificate(deployment: Deployment, pem: str) -> bool:
    first = _PEM.search(pem)
    if first is None:
        raise ConfigurationError("the certificate file holds no certificate", fix="make doctor says what is wrong with it")
    wanted = hashlib.sha1(ssl.PEM_cert_to_DER_cert(first[0]), usedforsecurity=False).hexdigest()
    if wanted in admin.tell(deployment, f"show ssl cert {CERTIFICATE}")[0].lower():
        return False
    # An empty line would end it.
    lines = "".join(f"{line}\n" for line in pem.splitlines() if line.strip())
    said = admin.tell(deployment, f"set ssl cert {CERTIFICATE} <<\n{lines}", f"commit ssl cert {CERTIFICATE}")
    if "Success!" not in said[1]:
        admin.tell(deployment, f"abort ssl cert {CERTIFICATE}")
        raise BundleError("the gateway refuses the renewed certificate, and goes on with the old one", fix="make doctor says what is wrong with it")
    return True
