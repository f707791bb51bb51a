"""What an engine of this host has found at its start, beside what was estimated: kept, and the next estimate of the same deployment is corrected.

"The same" is the GPU, the image, the model, and every setting but those that the overhead does not depend on, or whose part in it is counted.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

from bundle import STATE
from bundle.base import files
from bundle.base.errors import BundleError
from bundle.config import catalogue
from bundle.config.settings import Settings
from bundle.fit.estimation import Difference, Estimate
from bundle.fit.request import Correction
from bundle.machine.devices import GIB, Device

FOLDER = STATE / "found"

_NO_PART = ("--gpu-memory-utilization", "--max-model-len", "--max-num-seqs", "--kv-cache-memory-bytes", "--served-model-name", "--host", "--port",
            "--shutdown-timeout")
_SHARE = re.compile(r"entrypoint: starting: .*--gpu-memory-utilization ([\d.]+)")


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start: what it was of, when, the quantities that were estimated and found, and by how many bytes the overhead was estimated too low."""

    gpu: str
    image: str
    """The image's id: a name may mean another one by now."""
    model: str
    settings: str
    project: str
    since: str
    compared: Sequence[Mapping[str, Any]]
    """The fields of each `Difference`."""
    correction: int | None
    """None where the log does not tell: on the CPU, and where the KV cache has a size of its own."""

    @property
    def differences(self) -> tuple[Difference, ...]:
        return tuple(Difference(**each) for each in self.compared)


def keep(settings: Settings, folder: Path, expected: Estimate, differences: Sequence[Difference], engine_log: str, *,
         state: Path | None = None) -> None:
    """Keep what `engine_log` says of the start of `settings` with the model in `folder`, in place of an earlier start of the same."""
    gpu, model, known = _identity(settings, folder, expected.device)
    one = Start(gpu=gpu, image=_image_id(settings), model=model, settings=known, project=settings.project,
                since=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}", compared=[asdict(each) for each in differences],
                correction=_correction(expected, differences, engine_log))
    place = (state or FOLDER) / _name(gpu, model, known)
    place.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(place, json.dumps(asdict(one), indent=1))


def correction(settings: Settings, folder: Path, device: Device | None, *, state: Path | None = None) -> Correction | None:
    """What a start of the same on `device` has found; None where none is kept, or its image is not the one that would start now."""
    try:
        gpu, model, known = _identity(settings, folder, device)
        one = _read((state or FOLDER) / _name(gpu, model, known))
        if one is None or one.correction is None or (one.gpu, one.model, one.settings) != (gpu, model, known):
            return None
        same = bool(one.image) and _image_id(settings) == one.image
    except (OSError, BundleError):  # without Docker it is not known which image it would be
        return None
    return Correction(since=one.since, bytes=one.correction) if same else None


def last(project: str, *, state: Path | None = None) -> Start | None:
    """The last start of a project that is kept."""
    starts = [one for path in (state or FOLDER).glob("*.json") if (one := _read(path)) and one.project == project]
    return max(starts, key=lambda one: one.since, default=None)


def _image_id(settings: Settings) -> str:
    """The id of the engine's image, "" where it or Docker's library is not there. Raises PrerequisiteError where the daemon does not answer."""
    try:
        from bundle.machine import daemon  # it needs docker-py, which a host without Docker may lack
    except ModuleNotFoundError:
        return ""
    return daemon.image_id(settings.image_engine)


def _correction(expected: Estimate, differences: Sequence[Difference], engine_log: str) -> int | None:
    memory = next((one.measured for one in differences if (one.what, one.unit) == ("KV cache", "GiB")), None)
    if memory is None or expected.device is None or expected.utilization is None or expected.request.kv_memory is not None:
        return None
    share = _SHARE.findall(engine_log)  # `auto` is measured: what was free then need not be what was expected
    budgets = [ceil(expected.device.total * part) for part in (float(share[-1]) if share else expected.utilization, expected.utilization)]
    before = expected.request.correction.bytes if expected.request.correction else 0
    return before + expected.kv_bytes + budgets[0] - budgets[1] - round(memory * GIB)


def _identity(settings: Settings, folder: Path, device: Device | None) -> tuple[str, str, str]:
    """The GPU, the model and the settings, as far as they matter."""
    flags = catalogue.load(settings.image_target, root=settings.root)
    values = {key: entry.value for key, entry in settings.entries.items()
              if entry.value and (flag := flags.find(key)) and flag.name not in _NO_PART}
    known = json.dumps([values, dict(settings.environment)], sort_keys=True)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    config = b"".join(path.read_bytes() for path in sorted(folder.glob("*config.json")))
    model = f"{folder.resolve()} ({hashlib.sha256(config).hexdigest()[:16]}, {weights} bytes)"
    return f"{device.name}, {device.total} bytes" if device else "the CPU engine", model, hashlib.sha256(known.encode()).hexdigest()


def _name(*identity: str) -> str:
    return f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> Start | None:
    try:
        return Start(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
