"""A few threads over a list of work, with lines that say how far it is."""

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from bundle.base import console

Item = TypeVar("Item")

_WORKERS = 4  # one connection rarely fills a fast line; more than a few, and hubs start to refuse


class StoppedError(Exception):
    """Raised inside a worker after another one failed: nobody waits for its result any more."""


class Progress:
    """Bytes done of `total`, counted by many threads; `add` ends a worker's work once `stop` was called."""

    def __init__(self, label: str, *, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._shown_at, self._shown = time.monotonic(), done

    def add(self, count: int) -> None:
        """Count bytes; a negative count takes back what has to be done again. Raises StoppedError after `stop`."""
        if self._stopped.is_set():
            raise StoppedError
        with self._lock:
            self.done += count

    def stop(self) -> None:
        self._stopped.set()

    def report(self) -> None:
        """A line every five seconds, or every half a minute while next to nothing moves."""
        now, done = time.monotonic(), self.done
        silent_s = now - self._shown_at
        if silent_s < 5 or (silent_s < 30 and done - self._shown < self.total / 100):
            return
        rate = max(done - self._shown, 0) / silent_s
        console.note(f"  {self.label} {size(done)} of {size(self.total)}, {rate / 1e6:.1f} MB/s")
        self._shown_at, self._shown = now, done


def each(items: Sequence[Item], work: Callable[[Item], None], *, progress: Progress) -> None:
    """Do `work` on every item, a few at once, and raise the first failure.

    Daemon threads and no executor: Ctrl-C must not wait for a thread that itself waits for the network.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def worker() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001  (raised again below, in the thread that waits)
                ended.put(error)
                return
            ended.put(None)

    for _ in range(min(_WORKERS, len(items))):
        threading.Thread(target=worker, daemon=True).start()
    try:
        for _ in items:
            if failure := _next(ended, progress):
                raise failure
    finally:
        progress.stop()


def size(count: int) -> str:
    """Such as "16.4 GB"."""
    unit, divisor = next(((u, d) for u, d in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= d), ("bytes", 1.0))
    return f"{count / divisor:.1f} {unit}" if divisor > 1 else f"{count} {unit}"


def _next(ended: "SimpleQueue[BaseException | None]", progress: Progress) -> BaseException | None:
    while True:
        try:
            return ended.get(timeout=1)
        except Empty:
            progress.report()
