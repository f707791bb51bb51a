"""The gateway's two secrets, as files on the host: API keys and the TLS certificate. What they hold is never shown."""

import ssl
from pathlib import Path

from bundle.base.files import readable_by
from bundle.config import apikeys
from bundle.models.folder import Fault

_PARTS = {b"-----BEGIN CERTIFICATE-----": "certificate", b"PRIVATE KEY-----": "private key"}


def key_faults(path: Path, *, uid: int) -> list[Fault]:
    """What keeps the gateway, running as `uid`, from using `path` as its list of API keys (bundle.config.apikeys)."""
    found = _file_faults(path, uid)
    if found:
        return found
    text = path.read_bytes().decode(errors="replace")
    if "\r" in text:
        return [Fault(found=f"{path} has Windows line ends: they would be part of each key", fix=f"sed -i 's/\\r$//' {path}")]
    keys, wrong = apikeys.read(text)
    if not keys and not wrong:
        return [Fault(found=f"{path} holds no key: the gateway would refuse everyone", fix="make keys ADD=name")]
    return [Fault(found=f"{path}:{number}: {what}", fix=apikeys.FORM) for number, what in wrong]


def certificate_faults(path: Path, *, uid: int) -> list[Fault]:
    """What keeps the gateway, running as `uid`, from using `path` as its certificate: PEM, chain and private key in one file."""
    found = _file_faults(path, uid)
    if found:
        return found
    fix = f"cat fullchain.pem privkey.pem > {path}"
    content = path.read_bytes()
    absent = [part for mark, part in _PARTS.items() if mark not in content]
    if absent:
        return [Fault(found=f"{path} holds no {' and no '.join(absent)} in PEM form", fix=fix)]
    if b"ENCRYPTED" in content:
        return [Fault(found=f"{path}: its private key is encrypted; nobody is there to type the password", fix="openssl pkey -in KEY -out PLAIN")]
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password=_no_password)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "its private key does not belong to its certificate" if mismatch else "its private key or its certificate is damaged"
        return [Fault(found=f"{path}: {what}", fix=fix)]
    return []


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal.
    return ""


def _file_faults(path: Path, uid: int) -> list[Fault]:
    try:
        if not path.is_file():
            return [Fault(found=f"{path}: {'not a file' if path.exists() else 'no such file'}", fix="correct the path in the env file")]
        if not readable_by(path, uid):
            # Compose mounts a file secret with the owner and mode that it has on the host.
            return [Fault(found=f"{path}: not readable by the gateway's user {uid}",
                          fix=f"chmod o+r {path}; a folder that only you may enter (chmod 700) still keeps others out")]
        with path.open("rb"):
            return []
    except PermissionError:
        return [Fault(found=f"{path}: you may not read it", fix="run as its owner, or as root")]
