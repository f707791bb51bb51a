"""What an engine's container can tell of itself for Prometheus: whether it is ready, its memory, and its GPUs. Standard library, and NVML.

Served by the watch on HEALTH_PORT, GET /metrics. NVML through nvidia-ml-py, which vLLM brings; without a GPU there are no gpu series.
NVML: https://docs.nvidia.com/deploy/nvml-api/
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")
_REASONS = {"power_cap": 0x4, "hw_slowdown": 0x8, "sw_thermal": 0x20, "hw_thermal": 0x40, "hw_power_brake": 0x80}
"""NVML's nvmlClocksEventReason bits, those that cost speed."""
_XID = 0x8
_WAIT_MS = 5000


def memory(root: Path = CGROUP) -> tuple[int, int] | None:
    """Bytes that the container uses, without the file cache that can be given back, and may use; None where the kernel does not tell, or no limit is
    set. https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files, and cgroup v1."""
    for used, limit, stat, cache in (("memory.current", "memory.max", "memory.stat", "inactive_file"),
                                     ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file")):
        with suppress(OSError, ValueError, KeyError):
            files = dict(line.split() for line in (root / stat).read_text().splitlines())
            most = int((root / limit).read_text())
            return (int((root / used).read_text()) - int(files[cache]), most) if most < 2**60 else None
    return None


class Gpus:
    """The GPUs that this process sees, by NVML's index, and the Xid errors since it began to look."""

    def __init__(self, nvml: Any = None) -> None:
        self.nvml = nvml or _nvml()
        self.handles: list[Any] = []
        self.xids: dict[tuple[int, int], int] = {}
        if self.nvml is None:
            return
        with suppress(self.nvml.NVMLError):
            self.nvml.nvmlInit()
            self.handles = [self.nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self.nvml.nvmlDeviceGetCount())]
        if self.handles:
            threading.Thread(target=self._note_xids, daemon=True, name="xids").start()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Metric name, labels, value. What a card does not tell is left out."""
        for index, handle in enumerate(self.handles):
            labels = {"gpu": str(index)}

            def ask(name: str, *arguments: Any, handle: Any = handle) -> Any:
                with suppress(self.nvml.NVMLError):
                    return getattr(self.nvml, name)(handle, *arguments)

            if (rates := ask("nvmlDeviceGetUtilizationRates")) is not None:
                yield "gpu_utilization", labels, rates.gpu / 100
            if (held := ask("nvmlDeviceGetMemoryInfo")) is not None:
                yield "gpu_memory_used_bytes", labels, held.used
                yield "gpu_memory_total_bytes", labels, held.total
            for metric, scale, name, arguments in (("power_watts", 1e-3, "nvmlDeviceGetPowerUsage", ()),
                                                   ("power_limit_watts", 1e-3, "nvmlDeviceGetEnforcedPowerLimit", ()),
                                                   ("temperature_celsius", 1, "nvmlDeviceGetTemperature", (0,)),
                                                   ("sm_clock_hertz", 1e6, "nvmlDeviceGetClockInfo", (1,))):
                if (value := ask(name, *arguments)) is not None:
                    yield f"gpu_{metric}", labels, value * scale
            if (bits := ask("nvmlDeviceGetCurrentClocksThrottleReasons")) is not None:
                for reason, bit in _REASONS.items():
                    yield "gpu_throttled", {**labels, "reason": reason}, float(bool(bits & bit))
        for (gpu, xid), count in list(self.xids.items()):
            yield "gpu_xid_errors_total", {"gpu": str(gpu), "xid": str(xid)}, count

    def _note_xids(self) -> None:
        nvml = self.nvml
        with suppress(nvml.NVMLError):  # a card that has no events
            events = nvml.nvmlEventSetCreate()
            for index, handle in enumerate(self.handles):
                self.xids[index, 0] = 0  # so that the first one is an increase
                nvml.nvmlDeviceRegisterEvents(handle, _XID, events)
            while True:
                try:
                    event = nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
                except nvml.NVMLError as error:
                    if error.value != nvml.NVML_ERROR_TIMEOUT:
                        return
                    continue
                at = nvml.nvmlDeviceGetIndex(event.device)
                index = next((n for n, handle in enumerate(self.handles) if nvml.nvmlDeviceGetIndex(handle) == at), 0)
                self.xids[index, int(event.eventData)] = self.xids.get((index, int(event.eventData)), 0) + 1


class Exporter:
    """The text of GET /metrics."""

    def __init__(self, make: Callable[[], Gpus] = Gpus) -> None:
        self._make, self._lock = make, threading.Lock()
        self._gpus: Gpus | None = None

    def text(self, *, ready: bool) -> str:
        with self._lock:  # NVML is loaded when the first one asks: without monitoring, never
            self._gpus = self._gpus or self._make()
            samples = [("watch_ready", {}, float(ready)), *self._gpus.samples()]
        if held := memory():
            samples += [("container_memory_bytes", {}, held[0]), ("container_memory_limit_bytes", {}, held[1])]
        out, typed = [], set()
        for name, labels, value in sorted(samples, key=lambda sample: sample[0]):
            if name not in typed:
                out.append(f"# TYPE bundle_{name} {'counter' if name.endswith('_total') else 'gauge'}")
                typed.add(name)
            shown = ",".join(f'{key}="{text}"' for key, text in labels.items())
            out.append(f"bundle_{name}{f'{{{shown}}}' if shown else ''} {value:.10g}")
        return "\n".join(out) + "\n"


def _nvml() -> Any:
    try:
        import pynvml  # type: ignore[import-not-found]  # in the image
    except ImportError:
        return None
    return pynvml
