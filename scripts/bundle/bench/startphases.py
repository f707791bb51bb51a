"""From an engine's stamped log to where its start spent the time, and to what it said of its memory and its compiling."""

import re
from collections.abc import Callable, Sequence

from bundle.bench.rundata import Facts, Phases, StartTimes
from bundle.service import enginelog

ENGINE_CORE_STARTS = "Initializing a V1 LLM engine"
"""The engine core's first line. It has not touched the GPU yet: here an engine can be held until another one has measured its memory."""

_COMPILES = re.compile(r"torch\.compile (?:took|and initial profiling)|Compiling a graph|Dynamo bytecode transform|Directly load")


def phases(log: Sequence[tuple[float, str]], started: float, ready: float, held_s: float = 0.0) -> Phases:
    """The phases of a start with the seconds that each took, in order; they sum to `ready` - `started` - `held_s`.

    `log` is lines with the epoch seconds of their arrival. `held_s` is how long the engine was held at ENGINE_CORE_STARTS.
    """
    seconds = {enginelog.FIRST_PHASE: 0.0}
    name, since = enginelog.FIRST_PHASE, started
    for at, line in log:
        new = enginelog.phase_of(line)
        if new in ("", name) or not since <= at <= ready:
            continue
        seconds[name] += at - since
        seconds.setdefault(new, 0.0)
        name, since = new, at
    seconds[name] += ready - since
    if held_s:
        seconds[enginelog.phase_of(ENGINE_CORE_STARTS)] -= held_s
    compiles = any(_COMPILES.search(line) for _, line in log)
    return [("profiling memory" if each == "compiling" and not compiles else each, took) for each, took in seconds.items()]


def facts(log: Sequence[tuple[float, str]]) -> Facts:
    """What the engine said of itself while it started, under these keys; one that its log does not tell is absent.

    *_gib are GiB, *_s seconds, *_tokens tokens, requested_share a part of 1; attention_backend is a name; compiled_from_cache is 1.0 where
    a compiled model of an earlier start was used.
    """
    text = "\n".join(line for _, line in log)
    found: Facts = {}
    for key, pattern, read in _FACTS:
        if said := re.findall(pattern, text):
            found[key] = read(said)
    return found


def cold(start: StartTimes) -> bool:
    """Whether a leg's `start` was the first of its kind: all caches were empty, or it compiled what a later one finds compiled.

    Such a start takes longer, and vLLM gives its engine another KV cache: right after compiling it measures more activations than when it loads
    compiled code, and what it measures less goes to the cache (seen on an H200, 0.26.0: 1.32 and 0.66 GiB, 136,464 and 141,488 tokens, with the
    same settings).
    """
    return bool(start["cold"] or (start["facts"].get("compile_s") and not start["facts"].get("compiled_from_cache")))


def _last(said: Sequence[str]) -> float:
    return float(said[-1].replace(",", ""))


def _sum(said: Sequence[str]) -> float:
    return sum(map(float, said))


def _there(_said: Sequence[str]) -> float:
    return 1.0


def _text(said: Sequence[str]) -> str:
    return said[-1]


# As vLLM 0.26.0 and 0.32.0 print them.
_FACTS: tuple[tuple[str, str, Callable[[Sequence[str]], float | str]], ...] = (
    ("weights_gib", r"Model loading took (-?[\d.]+) GiB", _last),
    ("load_s", r"Model loading took -?[\d.]+ GiB(?: memory)? and ([\d.]+) seconds", _last),
    ("free_gib", r"Free memory on device (?:\S+ )?\(([\d.]+)/[\d.]+ GiB\)", _last),
    ("requested_share", r"[Dd]esired GPU memory utilization (?:is )?\(([\d.]+),", _last),
    ("requested_gib", r"[Dd]esired GPU memory utilization (?:is )?\([\d.]+, ([\d.]+) GiB\)", _last),
    ("activation_gib", r"([\d.]+) GiB for peak activation", _last),
    ("non_torch_gib", r"([\d.]+) GiB for non-torch memory", _last),
    ("cuda_graphs_gib", r"Graph capturing finished in \d+ secs, took (-?[\d.]+) GiB", _last),
    ("capture_s", r"Graph capturing finished in (\d+) secs", _last),
    ("kv_cache_gib", r"(?:Available KV cache memory: |Explicitly set \()(-?[\d.]+)", _last),
    ("kv_cache_tokens", r"KV cache size: ([\d,]+) tokens", _last),
    ("full_length_sequences", r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", _last),
    ("max_model_len_tokens", r"Using max model len (\d+)", _last),
    ("attention_backend", r"Using (\w+) attention backend", _text),
    ("dynamo_s", r"Dynamo bytecode transform time: ([\d.]+) s", _sum),
    ("inductor_s", r"Compiling a graph for compile range .* takes ([\d.]+) s", _sum),
    ("compile_s", r"torch\.compile (?:and initial profiling/warmup run together )?took ([\d.]+) s in total", _sum),
    ("compiled_from_cache", r"Directly load", _there),
    ("engine_init_s", r"init engine \(.*\) took ([\d.]+) s", _last),
)
