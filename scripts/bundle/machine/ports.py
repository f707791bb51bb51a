"""Who holds a TCP port on this machine."""

import ipaddress
import json
import pwd
import socket
from pathlib import Path

from bundle.machine.facts import Host

_LISTEN = "0A"
PROJECT_LABEL = "com.docker.compose.project"


def refusal(bind: str, port: int) -> OSError | None:
    """What binding `port` on the address `bind` fails with now, or None when it works."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        # As Docker's own proxy does: a connection in TIME_WAIT does not hold a port, a listener does.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((bind, port))
        except OSError as error:
            return error
    return None


def unused(bind: str) -> int:
    """A port on the address `bind` that nothing holds now. Raises OSError where the address is none of this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.bind((bind, 0))
        return int(trial.getsockname()[1])


def publisher(host: Host, bind: str, port: int) -> tuple[str, str] | None:
    """Name and Compose project ("" without one) of the running container that publishes `port` where `bind` would; None without one."""
    ids = host.run("docker", "ps", "--quiet", "--filter", f"publish={port}").stdout.split()
    if not ids:
        return None
    for container in json.loads(host.run("docker", "inspect", *ids).stdout or "[]"):
        bindings = (binding for published in container["NetworkSettings"]["Ports"].values() for binding in published or [])
        if any(binding["HostPort"] == str(port) and _overlap(binding["HostIp"] or "0.0.0.0", bind) for binding in bindings):  # noqa: S104
            return container["Name"].lstrip("/"), (container["Config"]["Labels"] or {}).get(PROJECT_LABEL, "")
    return None


def listener(host: Host, bind: str, port: int) -> str:
    """Such as "python3 (process 1234)"; for another user's process only the user is visible without root."""
    for name in ("tcp", "tcp6"):
        for line in host.read(f"/proc/net/{name}").splitlines()[1:]:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == _LISTEN and int(number, 16) == port and _overlap(_address(address), bind):
                return _process(host, inode=fields[9]) or f"a process of user {_user(int(fields[7]))} (as root this names it)"
    return "a process that cannot be seen from here"


def _process(host: Host, *, inode: str) -> str:
    for folder in sorted(host.path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if any(_target(link) == f"socket:[{inode}]" for link in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()} (process {folder.name})"
        except OSError:
            continue  # ended meanwhile, or another user's
    return ""


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _address(hexadecimal: str) -> str:
    """The kernel prints an address as 32-bit words in the machine's byte order (little-endian here)."""
    words = bytes.fromhex(hexadecimal)
    return str(ipaddress.ip_address(b"".join(words[i:i + 4][::-1] for i in range(0, len(words), 4))))


def _overlap(one: str, other: str) -> bool:
    """Whether listeners on both addresses, same port, exclude each other."""
    first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped:
        first = first.ipv4_mapped
    # A listener on :: takes IPv4 connections too, unless it asked not to.
    return first == second or first.is_unspecified or second.is_unspecified


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
