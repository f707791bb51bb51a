"""HAProxy's admin socket, inside the gateway's container: what can be changed of a gateway while it serves, and no stream notices.

Its management guide, 9.3: https://docs.haproxy.org/3.0/management.html#9.3. Commands go by stdin; arguments show in `docker top`.
"""

import json
import re
from collections.abc import Mapping, Sequence

from bundle.base.errors import BundleError
from bundle.service.deployment import GATEWAY, Deployment

TELL = """
import json, socket, sys
said = []
for command in json.load(sys.stdin):
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(10)
        admin.connect("/run/haproxy/admin.sock")
        admin.sendall(command.encode() + b"\\n")
        said.append(admin.makefile().read())
print(json.dumps(said))
"""


def tell(deployment: Deployment, *commands: str) -> Sequence[str]:
    """What the gateway's HAProxy answers to each command. Raises BundleError where it does not answer."""
    gateway = deployment.containers().get(GATEWAY)
    said = deployment.feed(gateway, json.dumps(commands), "python3", "-c", TELL) if gateway else None
    if said is None:
        raise BundleError("the gateway does not answer on its admin socket", fix="make logs")
    answers: list[str] = json.loads(said)
    return answers


def show_map(deployment: Deployment, name: str) -> Mapping[str, str]:
    """What the gateway's map `name` (the file that it was read from) holds now; "-" for what has nothing beside its key."""
    found: dict[str, str] = {}
    for line in tell(deployment, f"show map {name}")[0].splitlines():
        if len(words := line.split(maxsplit=2)) > 1:
            found[words[1]] = words[2] if len(words) > 2 else "-"
    return found


def replace_map(deployment: Deployment, name: str, wanted: Mapping[str, str]) -> None:
    """Make the map hold `wanted` and nothing else, in one step: at no moment it has the old and not the new, or none.

    Raises BundleError where the gateway does not take it.
    """
    version = re.search(r"New version created: (\d+)", tell(deployment, f"prepare map {name}")[0])
    if version is None:
        raise BundleError(f"the gateway takes no change of {name}", fix="make restart")
    lines = "".join(f"{key} {value}\n" for key, value in wanted.items())
    said = tell(deployment, *([f"add map @{version[1]} {name} <<\n{lines}"] if lines else []), f"commit map @{version[1]} {name}")
    if any(answer.strip() for answer in said):
        raise BundleError(f"the gateway did not take the change of {name}", fix="make logs says why")
