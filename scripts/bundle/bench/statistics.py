"""What repeated measurements allow to say: a median with its interval, and whether a cell is faster or slower than its control.

Two questions stand behind a verdict, and both must say yes, since each alone is easily fooled by few repeats:

- The bootstrap interval of the ratio of medians: does it leave out 1? It assumes nothing about how the noise is distributed. But resamples of
  2 to 4 values know nothing beyond their own range, so with so few the interval is too narrow: between equal cells it leaves out 1 far more often
  than in one case of twenty.
- The smallest effect: is the change larger than what a t-test of this size finds in 80 of 100 runs? That takes the few degrees of freedom into
  account, and it does not forget noise that two repeats happened not to show in their medians. It asks for more than significance at 5 %.

Where several comparisons are read together, and the best of them is acted on, two things more: the 5 % are shared out among them (Bonferroni), and
the noise is taken from all that were measured in the same way, which knows it far better than two or three values do. Simulated with tables of 8
and 38 equal cells of 2 to 6 values: a false verdict stands in 0 to 2 % of the tables, and in 8 to 40 % where each cell is judged for itself; of
effects of 8 % where values vary by 2 %, 26 to 74 % are seen, instead of 33 to 86 %.

Repeats after one engine start share that start. Where it is known which start each value came from, starts that differ by more than their repeats
do count as noise of their own; with one start on each side that noise cannot be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bundle.bench.rundata import Comparison, Metric

RESAMPLES = 10_000
SMALLEST = 0.01
"""No verdict on less than 1 %, however well repeats agree: whoever runs it again, on another day, sees that much."""
CLEARLY_MORE = 2.0
"""From this ratio of variances on, the starts and not the repeats are what is repeated. Simulated with equal cells, 2 starts of 3 repeats and
starts that differ by 0 to 3 times as much as repeats: this makes 2 to 6 % false verdicts, 3.0 more, and 1.0 misses more real effects."""

FASTER, SLOWER, SAME = "faster", "slower", "no difference seen"

_Values = NDArray[np.float64]
_INTERVAL = (2.5, 97.5)
_SIGNIFICANCE, _POWER = 0.05, 0.80


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much one value varies where nothing was changed, relative to its mean, and on how many degrees of freedom that is known."""

    variance: float
    freedom: int


def summary(values: Sequence[float], starts: Sequence[int]) -> Metric:
    """The median of `values` (at least one) with its 95 % bootstrap interval, and the values as they were measured, with their `starts`."""
    low, high = np.percentile(_medians(np.asarray(values, dtype=float), side=0), _INTERVAL)
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "values": list(values), "starts": list(starts)}


def compare(cell: Sequence[float], control: Sequence[float], *, higher_is_better: bool, cell_starts: Sequence[int] = (),
            control_starts: Sequence[int] = (), otherwise: float = 0.0, among: int = 1, pooled: Noise | None = None) -> Comparison:
    """Is `cell` faster or slower than `control`? Each value is one measured load; `…_starts` names the engine start of each, where that is known.

    `otherwise` is a relative difference that may come from something else than the cell's settings; no smaller effect is believed. `among` is how
    many comparisons are read together: the chance that noise alone makes any of them faster or slower stays that of one. `pooled` is the noise of
    all that were measured in the same way: two values on a side know little of their own, and only where they vary more does that count.

    "not measured" with fewer than two values on a side, or where the control's median is not above zero: there is no ratio to it.
    """
    if min(len(cell), len(control)) < 2 or not np.median(control) > 0:
        return Comparison()
    ours, theirs = np.asarray(cell, dtype=float), np.asarray(control, dtype=float)
    ratio = float(np.median(ours) / np.median(theirs))
    below = _medians(theirs, side=1)
    # A resample of the control that is all zeros would make any ratio: it counts as its smallest measurement above zero.
    low, high = np.percentile(_medians(ours, side=0) / np.maximum(below, theirs[theirs > 0].min()), _INTERVAL)
    own = noise([(cell, cell_starts), (control, control_starts)])
    known = pooled or own
    error = (max(own.variance, known.variance) * (1 / len(cell) + 1 / len(control))) ** 0.5
    detectable = error * (stdtrit(known.freedom, 1 - _SIGNIFICANCE / among / 2) + stdtrit(known.freedom, _POWER))
    smallest = float(max(SMALLEST, otherwise, detectable))
    # A tenth is as far from 1 as ten times: the noise is relative on both sides.
    effect = max(ratio, 1 / ratio) - 1 if ratio else np.inf
    seen = not low <= 1 <= high and effect > smallest
    verdict = SAME if not seen else FASTER if (ratio > 1) == higher_is_better else SLOWER
    return Comparison(ratio=ratio, low=float(low), high=float(high), smallest=smallest, verdict=verdict)


def _medians(values: _Values, *, side: int) -> _Values:
    """The medians of all resamples of `values`, by the same draws in every run; the two sides of a comparison draw each for itself."""
    below, above = _middles(len(values), side)
    ordered = np.sort(values)
    medians: _Values = (ordered[below] + ordered[above]) / 2
    return medians


@cache
def _middles(size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ranks of the one or two values in the middle of each resample: they are the same whatever the values."""
    ranks = np.sort(np.random.default_rng((size, side)).integers(size, size=(RESAMPLES, size)), axis=1)
    return ranks[:, (size - 1) // 2].copy(), ranks[:, size // 2].copy()


def _starts(values: _Values, starts: Sequence[int]) -> list[_Values]:
    """`values` relative to their mean, one array for each engine start; all in one where the starts are not known."""
    relative = values / values.mean() if values.mean() else values
    if not starts:
        return [relative]
    pairs = sorted(zip(starts, relative, strict=True), key=lambda pair: pair[0])
    return [np.array([value for _, value in group]) for _, group in groupby(pairs, key=lambda pair: pair[0])]


def pooled(sides: Sequence[tuple[Sequence[float], Sequence[int]]]) -> Noise | None:
    """The noise of all that were measured in the same way, as `noise` takes them; None where no side has two values to tell it."""
    return noise(sides) if any(len(values) > 1 for values, _ in sides) else None


def noise(sides: Sequence[tuple[Sequence[float], Sequence[int]]]) -> Noise:
    """The noise on `sides`, each a cell's values with the engine start of each (nothing where that is not known); at least two values in all.

    The variance is that of all values around the mean of their side, or that of the starts where they differ clearly more than repeats do.
    """
    known = [_starts(np.asarray(values, dtype=float), starts) for values, starts in sides if values]
    starts = [start for side in known for start in side]
    within = sum(float(((start - start.mean()) ** 2).sum()) for start in starts)
    between = sum(len(start) * float((start.mean() - np.concatenate(side).mean()) ** 2) for side in known for start in side)
    free_within, free_between = sum(map(len, starts)) - len(starts), len(starts) - len(known)
    if free_between and free_within and between / free_between > CLEARLY_MORE * within / free_within:
        return Noise(variance=between / free_between, freedom=free_between)
    return Noise(variance=(within + between) / (free_within + free_between), freedom=free_within + free_between)
