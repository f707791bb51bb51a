"""An engine's /metrics, read once: totals by name, and histograms whose differences between two readings have percentiles."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One engine at one moment, all label sets of a name added up."""

    at: float
    """Seconds, by the deployment's clock."""
    values: Mapping[str, float]
    """Gauges and counters, by sample name."""
    buckets: Mapping[str, Mapping[float, float]]
    """Histograms: by name, the observations up to each bound (seconds)."""
    counters: frozenset[str]
    """Those names of `values` that only grow while the engine lives."""

    def restarted_since(self, before: "Reading") -> bool:
        """Whether a counter has fallen: another process answers now, and differences mean nothing."""
        return any(self.values[name] < before.values.get(name, 0) for name in self.counters)


def read(text: str, at: float) -> Reading:
    """`text` is Prometheus' exposition format. Raises ValueError where it is not."""
    values: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    counters = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if family.type == "histogram" and sample.name.endswith("_bucket"):
                bounds, bound = buckets.setdefault(family.name, {}), float(sample.labels["le"])
                bounds[bound] = bounds.get(bound, 0.0) + sample.value
            else:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
                if family.type == "counter" and not sample.name.endswith("_created"):
                    counters.add(sample.name)
    return Reading(at=at, values=values, buckets=buckets, counters=frozenset(counters))


def added(name: str, pairs: Iterable[tuple[Reading, Reading]]) -> dict[float, float]:
    """What the histogram `name` has gained between the two readings of each pair, all pairs together."""
    gained: dict[float, float] = {}
    for before, now in pairs:
        for bound, count in now.buckets.get(name, {}).items():
            gained[bound] = gained.get(bound, 0.0) + count - before.buckets.get(name, {}).get(bound, 0.0)
    return gained


def percentile(share: float, buckets: Mapping[float, float]) -> float | None:
    """The value below which `share` (0-1) of the observations lie, between two bounds in proportion, as PromQL's histogram_quantile has it.

    None without observations; beyond the last finite bound it is that bound, which is a floor then.
    https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    wanted, below, start = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted and buckets[bound] > below:
            return start if math.isinf(bound) else start + (bound - start) * (wanted - below) / (buckets[bound] - below)
        start, below = (start if math.isinf(bound) else bound), buckets[bound]
    return start
