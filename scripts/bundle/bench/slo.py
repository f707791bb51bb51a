"""How many requests at once an engine holds under its limits: grow until it fails, then bisect. What "holds" means is the caller's."""

from collections.abc import Callable

from bundle.bench.rundata import Held, Step

TOLERANCE = 0.1
"""The search ends when the least that failed is at most this much above the most that held."""


def search(holds: Callable[[int], Held], *, start: int, most: int) -> tuple[int, list[Step]]:
    """The most requests at once, from 1 to `most`, that hold (0: not even one), and every step on the way there.

    `holds(concurrency)` makes one load; a step is its answer with "concurrency" before it. `start` is tried
    first; it doubles while it holds, or halves while it fails, and what lies between is bisected. Loads are noisy, so a higher concurrency may
    hold where a lower one failed: nothing above a failure is ever tried, which makes the answer the careful one. Passes on what `holds` raises.
    """
    steps: list[Step] = []

    def held(concurrency: int) -> bool:
        steps.append({"concurrency": concurrency, **holds(concurrency)})
        return steps[-1]["held"]

    low, high, concurrency = 0, most + 1, max(1, min(start, most))
    while low < concurrency < high and not (low and high <= most):
        if held(concurrency):
            low, concurrency = concurrency, min(concurrency * 2, most)
        else:
            high, concurrency = concurrency, concurrency // 2
    while low and high - low > max(1, low * TOLERANCE):
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle) else (low, middle)
    return low, steps
