"""What compose.yaml makes of a deployment, as Compose itself resolves it: the one source that files for other orchestrators are written from."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bundle.config.keys import size_bytes
from bundle.config.settings import Settings
from bundle.service.deployment import resolved

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}


def of(models: Sequence[Settings]) -> Mapping[str, Any]:
    """The project as `docker compose config` prints it for `models`: every variable resolved, env files and anchors put in, durations and sizes as
    texts. `routes` is what the file of the gateway's routes holds. No daemon is asked. Raises PrerequisiteError without Docker Compose."""
    with resolved(models) as (found, routes):
        plain: dict[str, Any] = json.loads(json.dumps(found), object_hook=_plain)
    return plain | {"routes": routes}


def seconds(duration: str) -> float:
    """`1m30s` → 90."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))


def options(text: str) -> Mapping[str, str]:
    """`mode=1777,size=1g` → both, by their names."""
    return dict(word.split("=", 1) for word in text.split(",") if "=" in word)


def memory_volume_bytes(volume: Mapping[str, Any]) -> int | None:
    """The size of a named volume that lives in memory; None of one on disk."""
    given = volume.get("driver_opts") or {}
    return size_bytes(options(given["o"])["size"]) if given.get("type") == "tmpfs" else None


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Compose prints every `$` twice, so that it could read its own output."""
    return {key: value.replace("$$", "$") if isinstance(value, str) else value for key, value in found.items()}
