"""What a soak has shown: did anything grow, slow down, go wrong?

Growth is judged between the middle of the run and its end (medians of a fifth each): the first minutes fill caches and pools.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bundle.soak.load import Request
from bundle.soak.samples import Sample

GROWTH = 0.05
GROWTH_MIB = 32.0
GROWTH_DESCRIPTORS = 16
DRIFT = 1.5
LONG_S = 300.0
"""A shorter run says nothing about drift: noise alone would be more."""

Series = Mapping[str, list[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """`ok` None: not judged."""

    name: str
    promise: str
    found: str
    ok: bool | None


def memory(samples: Sequence[Sample]) -> Series:
    """MiB over time, of each process, and of each container as a whole."""
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        found.setdefault(f"{sample.service}, all", []).append((sample.at, sample.anonymous_mib))
        for name, (mib, _) in sample.processes.items():
            found.setdefault(f"{sample.service}: {name}", []).append((sample.at, mib))
    return _lasting(found)


def descriptors(samples: Sequence[Sample]) -> Series:
    """Open descriptors over time, of each process."""
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for name, (_, count) in sample.processes.items():
            found.setdefault(f"{sample.service}: {name}", []).append((sample.at, count))
    return _lasting(found)


def _lasting(series: Series) -> Series:
    """Without what was there for less than half of the time: health checks come and go."""
    most = max(map(len, series.values()), default=0)
    return {name: points for name, points in series.items() if 2 * len(points) > most}


def latencies(requests: Sequence[Request]) -> Series:
    """Milliseconds to the first token and between tokens, of each stream that ended well."""
    streams = [one for one in requests if one.outcome == "right" and one.first_s is not None and one.token_s is not None]
    return {"time to first token": [(one.at, 1000 * one.first_s) for one in streams if one.first_s is not None],
            "time between tokens": [(one.at, 1000 * one.token_s) for one in streams if one.token_s is not None]}


def middle_and_end(points: Sequence[tuple[float, float]], whole_s: float) -> tuple[float, float] | None:
    """Medians of the third and of the last fifth of the run; None where one of them has no point."""
    parts = [[value for at, value in points if lowest * whole_s <= at <= (lowest + 0.2) * whole_s] for lowest in (0.4, 0.8)]
    return (statistics.median(parts[0]), statistics.median(parts[1])) if all(parts) else None


def checks(requests: Sequence[Request], samples: Sequence[Sample], after: Sequence[Sample], restarted: Sequence[str],
           whole_s: float) -> Iterator[Check]:
    """Each promise and what was found. `after`: the last look, some time after the load; `restarted`: services that did."""
    count = Counter(one.outcome for one in requests)
    bad = Counter(one.note for one in requests if one.outcome in ("wrong", "failed"))
    said = ", ".join(f"{number} {outcome}" for outcome, number in count.most_common())
    yield Check(name="requests", promise="each gets what it has to", found=said + "".join(f"; {n} x {note}" for note, n in bad.most_common(3)),
                ok=bool(count["right"]) and not bad)
    yield Check(name="restarts", promise="none", found=", ".join(restarted) or "none", ok=not restarted)
    gauges = {f"{sample.service} {name}": value for sample in after for name, value in sample.gauges.items()}
    yield Check(name="KV cache and queue", promise="empty after the load", found=", ".join(f"{name} {value:g}" for name, value in gauges.items()),
                ok=bool(gauges) and not any(gauges.values()))
    yield _growth("memory", "MiB", memory(samples), whole_s, GROWTH_MIB,
                  f"no more than {GROWTH:.0%} or {GROWTH_MIB:g} MiB from the middle to the end")
    yield _growth("descriptors", "open", descriptors(samples), whole_s, GROWTH_DESCRIPTORS,
                  f"no more than {GROWTH:.0%} or {GROWTH_DESCRIPTORS} from the middle to the end")
    for name, points in latencies(requests).items():
        found = middle_and_end(points, whole_s)
        yield Check(name=name, promise=f"no more than {DRIFT:g} times from the middle to the end", ok=found and found[1] <= DRIFT * found[0]
                    if whole_s >= LONG_S else None, found="not measured" if found is None else f"{found[0]:.1f} to {found[1]:.1f} ms")
    answers = Counter(one.text for one in requests if one.kind == "same" and one.outcome == "right")
    yield Check(name="the same question again and again", promise="not judged: how requests are batched may change a last bit", ok=None,
                found=f"{answers.total()} times, {len(answers)} different answers")


def _growth(name: str, unit: str, series: Series, whole_s: float, least: float, promise: str) -> Check:
    ends = {each: found for each, points in series.items() if (found := middle_and_end(points, whole_s))}
    grown = {each: (middle, end) for each, (middle, end) in ends.items() if end - middle > max(GROWTH * middle, least)}
    most = max(ends, key=lambda each: ends[each][1] - ends[each][0], default="")
    told = grown or ({most: ends[most]} if most else {})
    return Check(name=name, promise=promise, ok=bool(ends) and not grown,
                 found="; ".join(f"{each} {middle:.0f} to {end:.0f} {unit}" for each, (middle, end) in told.items()) or "not measured")
