"""What `make status` makes of an engine's counters: how long requests are, and what was computed twice. Metrics in the engine's own names."""

from pathlib import Path

import pytest

from bundle.service import pressure
from bundle.service.pressure import Pressure

LABELS = 'engine="0",model_name="m"'


def histogram(name: str, total: float, buckets: dict[str, int]) -> str:
    lines = [f"# TYPE {name} histogram", *(f'{name}_bucket{{{LABELS},le="{edge}"}} {count}.0' for edge, count in buckets.items())]
    return "\n".join([*lines, f"{name}_count{{{LABELS}}} {buckets['+Inf']}.0", f"{name}_sum{{{LABELS}}} {total}", ""])


def metrics(preemptions: int, *, requests: int = 1152, prompt: int = 512, answer: int = 256, cached: int = 0) -> str:
    """As after `requests` requests of one length."""
    counters = {"vllm:num_preemptions": preemptions, "vllm:prompt_tokens": requests * prompt, "vllm:prompt_tokens_cached": cached,
                "vllm:generation_tokens": requests * answer}
    text = "".join(f"# TYPE {name} counter\n{name}_total{{{LABELS}}} {value}.0\n" for name, value in counters.items())
    edges = {edge: requests if float(edge) >= prompt else 0 for edge in ("100", "500", "1000", "+Inf")}
    answers = {edge: requests if float(edge) >= answer else 0 for edge in ("100", "500", "1000", "+Inf")}
    return (text + histogram("vllm:request_prompt_tokens", requests * prompt, edges)
            + histogram("vllm:request_generation_tokens", requests * answer, answers))


def test_what_was_computed_twice_is_what_a_run_on_an_h100_has_counted() -> None:
    """352 preemptions of 1,152 requests of 512 + 256 tokens: 38 % more prompt tokens were computed there."""
    found = pressure.read(metrics(352))
    assert found
    assert (found.preemptions, found.requests, found.mean_tokens) == (352, 1152, 768)
    again = found.recomputed * 1152 * 768
    assert again / (1152 * 512) == pytest.approx(0.38, abs=0.005)


def test_what_the_prefix_cache_gave_was_not_computed() -> None:
    found = [pressure.read(metrics(352, cached=cached)) for cached in (0, 1152 * 256)]
    assert found[0]
    assert found[1]
    assert found[1].recomputed == pytest.approx(found[0].recomputed * 768 / 512)


def test_the_p90_is_prometheus_own_estimate_from_the_buckets() -> None:
    text = metrics(0, requests=100).replace("request_prompt_tokens", "other")
    text += histogram("vllm:request_prompt_tokens", 30_000, {"100": 50, "500": 80, "1000": 100, "+Inf": 100})
    found = pressure.read(text)
    assert found
    assert found.p90_tokens == 750 + 460, "halfway from 500 to 1,000; and nine tenths of the way from 100 to 500"


@pytest.mark.parametrize("text", ["", metrics(0, requests=0), "# TYPE vllm:num_preemptions counter\nvllm:num_preemptions_total 3.0\n"])
def test_an_engine_that_has_answered_nothing_says_nothing(text: str) -> None:
    assert pressure.read(text) is None


def test_a_real_engines_metrics_are_read() -> None:
    """vLLM 0.32.0 on the CPU after the request of `make up` and two of 7 and 20 tokens; a fourth is being computed, which the counters have too."""
    found = pressure.read((Path(__file__).parent / "data" / "metrics-cpu-vllm-0.32.0.txt").read_text())
    assert found
    assert (found.preemptions, found.requests, found.mean_tokens) == (0, 3, 19)


def test_a_few_requests_are_no_reason_to_set_anything() -> None:
    few = {"service": "engine", "pressure": {"preemptions": 0, "requests": 99, "recomputed": 0.0, "mean_tokens": 19, "p90_tokens": 28}}
    assert "HOST_REQUEST_TOKENS" not in pressure.remarks([few])[0][1]


def row(preemptions: int, recomputed: float) -> dict[str, object]:
    return {"service": "engine", "pressure": {"preemptions": preemptions, "requests": 1152, "recomputed": recomputed, "mean_tokens": 768,
                                              "p90_tokens": 1300}}


@pytest.mark.parametrize(("preemptions", "recomputed", "warns", "said"), [
    (0, 0.0, False, "engine: its 1,152 requests had 768 tokens on average, P90 about 1,300 (HOST_REQUEST_TOKENS=768 to 1300 fits them); "
     "none was computed twice"),
    (10, 0.01, False, "10 preemptions: about 1.0% of all tokens were computed twice"),
    (352, 0.25, True, "engine: 352 preemptions: about 25.0% of all tokens were computed twice; its 1,152 requests had 768 tokens on average"),
])
def test_more_than_a_few_percent_is_a_warning_with_what_to_set(preemptions: int, recomputed: float, warns: bool, said: str) -> None:
    [(warned, line)] = pressure.remarks([row(preemptions, recomputed), {"service": "gateway"}, {"service": "engine-2", "pressure": None}])
    assert warned == warns
    assert said in line
    assert ("ENGINE_MAX_NUM_SEQS=auto with that HOST_REQUEST_TOKENS" in line) == warns


def test_a_row_is_a_pressure_again() -> None:
    assert pressure.of_row(row(1, 0.5)) == Pressure(preemptions=1, requests=1152, recomputed=0.5, mean_tokens=768, p90_tokens=1300)
