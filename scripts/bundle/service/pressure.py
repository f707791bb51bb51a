"""Does the KV cache hold the requests that are computed at once? From the engine's own counters: what was computed twice, and how long requests are.

vLLM takes blocks away from a running request when there are none left (a preemption), and computes it again from its start later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

WARN_SHARE = 0.03
"""Of all computed tokens, those computed again that are worth a warning."""

ENOUGH = 100
"""Requests whose lengths are worth an advice."""

_LENGTHS = ("vllm:request_prompt_tokens", "vllm:request_generation_tokens")


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """Since the engine's start; lengths are tokens of prompt and answer together."""

    preemptions: int
    requests: int
    """How many have finished."""
    recomputed: float
    """About which share of all tokens was computed again for them, 0 to 1: of each preempted request its prompt and half of its answer."""
    mean_tokens: int
    p90_tokens: int
    """The P90 of prompts and the P90 of answers, together: the engine counts the two apart, each in coarse steps."""


def read(metrics: str) -> Pressure | None:
    """What the engine's /metrics say; None while no request has finished."""
    totals: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {name: {} for name in _LENGTHS}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            if family.name in buckets and sample.name.endswith("_bucket"):
                edge = float(sample.labels["le"])
                buckets[family.name][edge] = buckets[family.name].get(edge, 0.0) + sample.value
    requests = totals.get(f"{_LENGTHS[0]}_count", 0.0)
    if not requests:
        return None
    prompt, answer = (totals.get(f"{name}_sum", 0.0) / requests for name in _LENGTHS)
    preemptions = totals.get("vllm:num_preemptions_total", 0.0)
    computed = (totals.get("vllm:prompt_tokens_total", 0.0) - totals.get("vllm:prompt_tokens_cached_total", 0.0)
                + totals.get("vllm:generation_tokens_total", 0.0))
    again = preemptions * (prompt + answer / 2)
    return Pressure(preemptions=int(preemptions), requests=int(requests), recomputed=min(1.0, again / computed) if computed > 0 else 0.0,
                    mean_tokens=ceil(prompt + answer), p90_tokens=ceil(sum(_quantile(0.9, each) for each in buckets.values())))


def _quantile(share: float, counts: Mapping[float, float]) -> float:
    """As Prometheus estimates it from the buckets of a histogram (upper edge: how many are not above): evenly spread inside of one."""
    wanted, below, edge_below = share * max(counts.values(), default=0.0), 0.0, 0.0
    for edge, count in sorted(counts.items()):
        if count >= wanted and count > below:
            return edge_below if edge == float("inf") else edge_below + (edge - edge_below) * (wanted - below) / (count - below)
        below, edge_below = count, edge
    return edge_below


def of_row(row: Mapping[str, Any]) -> Pressure | None:
    """What is in a row of `status.read`."""
    return Pressure(**row["pressure"]) if row.get("pressure") else None


def remarks(rows: Iterable[Mapping[str, Any]]) -> list[tuple[bool, str]]:
    """A line for each engine that has answered, and whether it is a warning."""
    return [_remark(row["service"], one) for row in rows if (one := of_row(row))]


def _remark(service: str, one: Pressure) -> tuple[bool, str]:
    fits = f" (HOST_REQUEST_TOKENS={one.mean_tokens} to {one.p90_tokens} fits them)" if one.requests >= ENOUGH else ""
    lengths = f"its {one.requests:,} requests had {one.mean_tokens:,} tokens on average, P90 about {one.p90_tokens:,}{fits}"
    if not one.preemptions:
        return False, f"{service}: {lengths}; none was computed twice"
    twice = f"{one.preemptions:,} preemptions: about {one.recomputed:.1%} of all tokens were computed twice"
    if one.recomputed <= WARN_SHARE:
        return False, f"{service}: {lengths}; {twice}"
    return True, (f"{service}: {twice}; {lengths}. The KV cache does not hold what is computed at once: ENGINE_MAX_NUM_SEQS=auto with that "
                  "HOST_REQUEST_TOKENS, or a smaller number")
