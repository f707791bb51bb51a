"""What the NVIDIA driver says of the GPUs while a benchmark runs: memory, power and utilization twice a second."""

import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bundle.bench.rundata import Series

INTERVAL_MS = 500
_COLUMNS = ("memory_gib", "watts", "utilization")
_QUERY = "index,memory.used,power.draw,utilization.gpu"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One GPU at one moment; None for what its driver does not tell."""

    at: float
    index: int
    values: tuple[float | None, ...]
    """MiB, watts, percent."""


class Sampler:
    """Samples the GPUs of these indices while its block runs; without any, or without nvidia-smi, it does nothing and knows nothing."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._indices = indices
        self._rows: list[_Row] = []
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._indices and (program := shutil.which("nvidia-smi")):
            command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}",
                       f"--id={','.join(map(str, self._indices))}"]
            # A session of its own: Ctrl-C is for the run, which may still have to note what it measured.
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                           errors="replace", start_new_session=True)
            self._reader = threading.Thread(target=self._read, args=(self._child,), daemon=True)
            self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._child and self._reader:
            self._child.kill()
            self._child.wait()
            self._reader.join()

    def _read(self, child: subprocess.Popen[str]) -> None:
        with child:
            for line in child.stdout or ():
                index, *cells = [cell.strip() for cell in line.split(",")]
                if index.isdigit() and len(cells) == len(_COLUMNS):
                    self._rows.append(_Row(at=time.time(), index=int(index), values=tuple(_number(cell) for cell in cells)))

    def window(self, t0: float, t1: float) -> Series:
        """The samples that arrived from `t0` to `t1` (epoch seconds): t_s (seconds since `t0`), memory_gib and watts (its GPUs together),
        utilization (percent, their mean). A column that the driver does not tell is empty, all are where there is no nvidia-smi."""
        samples = [sample for sample in _samples(self._rows[:]) if t0 <= sample[0] <= t1]
        told = [at for at in range(1, 1 + len(_COLUMNS)) if any(sample[at] is not None for sample in samples)]
        whole = [sample for sample in samples if all(sample[at] is not None for at in told)]
        series: Series = {"t_s": [sample[0] - t0 for sample in whole] if told else []}
        for at, name in enumerate(_COLUMNS, start=1):
            series[name] = [value for sample in whole if at in told and (value := sample[at]) is not None]
        return series


def _samples(rows: Sequence[_Row]) -> list[tuple[float, float | None, float | None, float | None]]:
    """(epoch, GiB, watts, percent) of each moment: nvidia-smi prints a line for each GPU, in their order, then begins anew."""
    moments: list[list[_Row]] = []
    for row in rows:
        if moments and row.index > moments[-1][-1].index:
            moments[-1].append(row)
        else:
            moments.append([row])
    gpus = max(map(len, moments), default=0)
    found = []
    for moment in moments:
        if len(moment) == gpus:  # else its other lines are still to come
            mib, watts, percent = (_sum([row.values[at] for row in moment]) for at in range(len(_COLUMNS)))
            found.append((moment[0].at, None if mib is None else mib / 1024, watts, None if percent is None else percent / gpus))
    return found


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _number(cell: str) -> float | None:
    # "[N/A]", "[Not Supported]", "[Unknown Error]"
    try:
        return float(cell)
    except ValueError:
        return None
