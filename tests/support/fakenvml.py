"""An NVML with one RTX 5090 that runs at its power limit."""

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    value = 999


NVML_ERROR_TIMEOUT = 10
EVENTS: list[Any] = []


def _nothing(*_: object) -> None:
    return None


nvmlInit = nvmlEventSetCreate = nvmlDeviceRegisterEvents = _nothing  # noqa: N816


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetIndex(handle: int) -> int:  # noqa: N802
    return handle


def nvmlDeviceGetUtilizationRates(_: int) -> Any:  # noqa: N802
    return SimpleNamespace(gpu=97)


def nvmlDeviceGetMemoryInfo(_: int) -> Any:  # noqa: N802
    return SimpleNamespace(used=30 * 2**30, total=32 * 2**30)


def nvmlDeviceGetPowerUsage(_: int) -> int:  # noqa: N802
    return 574_000


def nvmlDeviceGetEnforcedPowerLimit(_: int) -> int:  # noqa: N802
    return 575_000


def nvmlDeviceGetTemperature(_: int, sensor: int) -> int:  # noqa: N802
    return 64


def nvmlDeviceGetClockInfo(_: int, clock: int) -> int:  # noqa: N802
    raise NVMLError  # a card that does not tell


def nvmlDeviceGetCurrentClocksThrottleReasons(_: int) -> int:  # noqa: N802
    return 0x4


def nvmlEventSetWait_v2(_: object, wait_ms: int) -> Any:  # noqa: N802
    if EVENTS:
        return EVENTS.pop()
    raise NVMLError  # ends the thread that waits for more
