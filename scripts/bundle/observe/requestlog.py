"""What every service printed about one request, by the id that the gateway gave it and its answer carries (X-Request-Id)."""

import json
import re
from collections.abc import Iterator
from typing import Any

from bundle.base.errors import ConfigurationError
from bundle.service.deployment import GATEWAY, Deployment

ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def find(deployment: Deployment, request: str) -> list[dict[str, Any]]:
    """One record per line, oldest first: at (when Docker got it), service, and either the fields of a JSON line or its text as `line`.

    Raises ConfigurationError where `request` is no id that the gateway would give or take.
    """
    if not ID.fullmatch(request):
        raise ConfigurationError(f"{request!r} is no request id", fix="it stands in the answer's header X-Request-Id: letters, digits, and . _ -")
    found = (record for name, container in deployment.containers().items() for record in _of(name, request, deployment.lines(container)))
    # Docker's clock has the order; of two lines at one moment the gateway's, which is written last, comes last.
    return sorted(found, key=lambda record: (record["at"], record["service"] == GATEWAY))


def _of(service: str, request: str, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    # vLLM's own lines have it inside of their own id: cmpl-ID-0-1a2b3c4d.
    own = re.compile(rf"(?<![A-Za-z0-9._]){re.escape(request)}(?![A-Za-z0-9._])")
    for line in lines:
        if request not in line:
            continue
        at, _, text = line.partition(" ")
        try:
            fields = json.loads(text)
        except ValueError:
            fields = None
        if isinstance(fields, dict):
            if fields.get("id") == request:
                yield {"at": at, "service": service, **fields}
        elif own.search(text):
            yield {"at": at, "service": service, "line": text}
