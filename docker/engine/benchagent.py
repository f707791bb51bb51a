"""vLLM's own load generator (`vllm bench serve`), kept in one process beside the engine and asked for one load after another.

    python benchagent.py            JSON lines: a request on stdin, one answer on stdout; what vLLM prints goes to stderr

It says {"ready": true, "vllm": …, "torch": …} when all is imported, so that a load costs no start. Each request gets {"ok": …} or
{"error": text}, and the agent lives on:

  {"do": "load", "options": {"random-input-len": "512", …}, "base_url", "model", "served_model_name"}
        one load with the options of `vllm bench serve`; "true" stands for a flag without a value. The answer: `seconds`, `at` (epoch seconds
        of the first request), `requests`, `tokens`, `metrics` (percentiles over requests, or over all gaps between tokens; absent where
        not known), `quantiles` (101 points from minimum to maximum), `series` (the engine's gauges, seconds after `at`)
  {"do": "outputs", "base_url", "served_model_name", "prompts": […], "max_tokens": 32}
        {"texts": […]}: what the engine writes at temperature 0, one prompt after the other
  {"do": "post", "base_url", "path", "bodies": [{…}, …]}
        {"answers": […]}: the engine's own answer to each body, one after the other
  {"do": "model", "path"}
        {"config": config.json as it is, "weights_bytes": the size of its safetensors files}

When stdin ends, so does it, at once and in the middle of a load: nobody waits for the answer. Standard library and vLLM only.
"""

import gc
import http.client
import importlib
import itertools
import json
import math
import os
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

SAMPLE_S = 0.5
SCRAPE_LIMIT_S = 5.0
OUTPUT_LIMIT_S = 600.0
PERCENTILES = (50, 95, 99)
ERRORS_KEPT, ERROR_LENGTH = 5, 200

FIXED = {
    # Warming up is a load of its own, for who asks: only then does the measured load see an engine as the one before left it.
    "num-warmups": "0",
    "ready-check-timeout-sec": "0",
    "disable-tqdm": "true",
    "save-detailed": "true",  # keeps the lists in the result; no file is written
    "percentile-metrics": "ttft,tpot,itl,e2el",  # for the table that it prints
    "metric-percentiles": ",".join(map(str, PERCENTILES)),
}

RUNNING, WAITING, KV_CACHE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
QUEUE_SUM, QUEUE_COUNT = "vllm:request_queue_time_seconds_sum", "vllm:request_queue_time_seconds_count"
PREEMPTIONS, HITS, QUERIES = "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
READ = (RUNNING, WAITING, KV_CACHE, QUEUE_SUM, QUEUE_COUNT, PREEMPTIONS, HITS, QUERIES)
"""Of /metrics; the same names in vLLM 0.26, 0.32 and 0.33."""
LINE = re.compile(rf"^({'|'.join(READ)})(?:{{.*}})? ([\d.e+-]+)$", re.MULTILINE)


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # before any import: whatever prints, prints into the log
    sys.stdout = sys.stderr  # and at once: what waits in a buffer is lost when the process dies
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests, asked), daemon=True).start()
    generator = Generator()
    say(answers, {"ready": True, "vllm": generator.vllm, "torch": generator.torch})
    while True:
        say(answers, answer(asked.get(), generator))


def listen(requests: IO[str], asked: "queue.SimpleQueue[str]") -> None:
    """Pass on each line of `requests`. At the end of them the process ends, whatever it does: a load would go on for nobody."""
    for line in requests:
        asked.put(line)
    os._exit(0)


def say(answers: int, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(answers, data):]


def answer(line: str, generator: "Generator") -> dict[str, Any]:
    """What one request gets."""
    verbs: Mapping[str, Callable[..., dict[str, Any]]] = {"load": generator.load, "outputs": outputs, "post": post, "model": model}
    try:
        request = json.loads(line)
        return {"ok": verbs[request.pop("do")](**request)}
    except Exception as error:  # noqa: BLE001  (whatever vLLM raises is the answer to this request, not the end of the agent)
        return {"error": f"{type(error).__name__}: {error}"}


# --- a load


class Generator:
    """vLLM's load generator, imported once."""

    def __init__(self) -> None:
        self._serve = importlib.import_module("vllm.benchmarks.serve")
        self._parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(allow_abbrev=False)
        self._parser.error = refuse
        self._serve.add_cli_args(self._parser)
        self.vllm = str(importlib.import_module("vllm").__version__)
        self.torch = str(importlib.import_module("torch").__version__)

    def load(self, *, options: Mapping[str, str], base_url: str, model: str, served_model_name: str) -> dict[str, Any]:
        """Run one load to its end. Raises ValueError for options that vLLM does not take."""
        given = FIXED | {"base-url": base_url, "model": model, "served-model-name": served_model_name}
        if taken := sorted(given.keys() & options.keys()):
            raise ValueError(f"the agent sets --{taken[0]} itself")
        words = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in (given | dict(options)).items()]
        arguments = self._parser.parse_args(words)
        without_proxy(base_url)
        gc.unfreeze()  # vLLM freezes what is alive at the start of a load, the rests of the load before too
        gc.collect()
        before = scrape(base_url)
        with Sampler(base_url) as sampler:
            result = self._serve.main(arguments)
        return summary(result, samples=sampler.samples, before=before, after=scrape(base_url))


def refuse(message: str) -> None:
    """In the place of argparse's error(), which ends the process."""
    raise ValueError(message)


def summary(result: Mapping[str, Any], *, samples: Sequence[tuple[float, Mapping[str, float]]],
            before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """The answer to a load, from what vLLM's generator returns with its detailed lists, and what the engine said meanwhile.

    A request that failed counts as failed and in nothing else. `asked` are the requests sent: some datasets round num-prompts down.
    """
    seconds = float(result["duration"])
    # vLLM's times are of the clock that only this process knows.
    at = min(result["start_times"]) + time.time() - time.perf_counter()
    asked = len(result["errors"])
    rows = zip(result["ttfts"], result["itls"], result["output_lens"], result["errors"], strict=True)
    completed = [(ttft, gaps, tokens) for ttft, gaps, tokens, error in rows if ttft and not error]
    times = {
        "ttft_ms": [ttft for ttft, _, _ in completed],
        "itl_ms": list(itertools.chain.from_iterable(gaps for _, gaps, _ in completed)),
        "tpot_ms": [sum(gaps) / (tokens - 1) for _, gaps, tokens in completed if tokens > 1],
        "e2e_ms": [ttft + sum(gaps) for ttft, gaps, _ in completed],
    }
    points = {name: quantiles(1e3 * value for value in values) for name, values in times.items()}
    tokens = {"input": int(result["total_input_tokens"]), "output": int(result["total_output_tokens"])}
    rates = {"output_tokens_per_s": tokens["output"], "total_tokens_per_s": sum(tokens.values()), "requests_per_s": len(completed)}
    series = Series.within(samples, at, seconds)
    return {
        "seconds": seconds,
        "at": at,
        "requests": {"asked": asked, "completed": len(completed), "failed": asked - len(completed), "errors": reasons(result["errors"])},
        "tokens": tokens,
        "metrics": {name: count / seconds for name, count in rates.items()}
        | {f"{name}_p{p}": values[p] for name, values in points.items() if values for p in PERCENTILES}
        | queue_metrics(before, after) | series.metrics(),
        "quantiles": {name: points[name] for name in ("ttft_ms", "itl_ms", "e2e_ms")},
        "series": series.lists,
    }


def quantiles(values: Iterable[float]) -> list[float]:
    """Minimum, the 99 percentiles and maximum, interpolated as numpy does; empty for no values."""
    ordered = sorted(values)
    places = [percent * (len(ordered) - 1) / 100 for percent in range(101)] if ordered else []
    return [ordered[math.floor(at)] + (ordered[math.ceil(at)] - ordered[math.floor(at)]) * (at % 1) for at in places]


def reasons(errors: Iterable[str]) -> list[str]:
    """The first distinct reasons for which requests failed, shortened, with how often each was given. vLLM gives whole tracebacks."""
    counted = Counter((error.strip().splitlines() or [""])[-1][:ERROR_LENGTH] for error in errors if error)
    return [f"{count} × {text}" for text, count in itertools.islice(counted.items(), ERRORS_KEPT)]


# --- what the engine says of itself


def scrape(base_url: str) -> dict[str, float]:
    """The engine's metrics that are READ, summed over its cores; cache use is the fullest one's. Empty where it does not answer."""
    try:
        with urllib.request.urlopen(f"{base_url}/metrics", timeout=SCRAPE_LIMIT_S) as reply:
            text = reply.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return {}
    found: dict[str, float] = {}
    for name, value in LINE.findall(text):
        found[name] = max(found.get(name, 0.0), float(value)) if name == KV_CACHE else found.get(name, 0.0) + float(value)
    return found


class Sampler:
    """Reads the engine's metrics every SAMPLE_S seconds while it is entered: `samples` are (epoch seconds, metrics)."""

    def __init__(self, base_url: str) -> None:
        self.samples: list[tuple[float, Mapping[str, float]]] = []
        self._base_url = base_url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            if found := scrape(self._base_url):
                self.samples.append((time.time(), found))
            due = max(due + SAMPLE_S, time.monotonic())


class Series:
    """The engine's gauges during a load."""

    def __init__(self, lists: dict[str, list[float]]) -> None:
        self.lists = lists

    @classmethod
    def within(cls, samples: Sequence[tuple[float, Mapping[str, float]]], at: float, seconds: float) -> Self:
        """Those of `samples` that were taken in the `seconds` after `at`: vLLM prepares a load before its first request."""
        within = [(when - at, found) for when, found in samples if at <= when <= at + seconds and RUNNING in found]
        return cls({"t_s": [round(when, 3) for when, _ in within]} | {
            name: [found.get(metric, 0.0) for _, found in within]
            for name, metric in (("running", RUNNING), ("waiting", WAITING), ("kv_cache_use", KV_CACHE))})

    def metrics(self) -> dict[str, float]:
        """What they come to; nothing where the load was too short to see any."""
        running, waiting, use = (self.lists[name] for name in ("running", "waiting", "kv_cache_use"))
        if not running:
            return {}
        return {"running_mean": sum(running) / len(running), "running_max": max(running), "waiting_max": max(waiting), "kv_cache_use_max": max(use)}


def queue_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What the engine's counters say of the load between two looks at them."""
    grown = {name: after[name] - before[name] for name in READ if name in before and name in after}
    found = {}
    if PREEMPTIONS in grown:
        found["preemptions"] = grown[PREEMPTIONS]
    if grown.get(QUEUE_COUNT) and QUEUE_SUM in grown:
        found["queue_ms_mean"] = 1e3 * grown[QUEUE_SUM] / grown[QUEUE_COUNT]
    if grown.get(QUERIES) and HITS in grown:
        found["prefix_hit_rate"] = grown[HITS] / grown[QUERIES]
    return found


def without_proxy(base_url: str) -> None:
    """Reach the engine directly. vLLM's generator obeys the proxies of the environment, even to 127.0.0.1."""
    host = urlsplit(base_url).hostname or ""
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if host not in exempt.split(","):
        os.environ["no_proxy"] = f"{exempt},{host}".lstrip(",")


# --- the other requests


def outputs(*, base_url: str, served_model_name: str, prompts: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """What the engine writes for each prompt at temperature 0. Raises ValueError with what it says instead."""
    bodies = [{"model": served_model_name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True} for prompt in prompts]
    return {"texts": [reply["choices"][0]["text"] for reply in post(base_url=base_url, path="/v1/completions", bodies=bodies)["answers"]]}


def post(*, base_url: str, path: str, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The engine's answer to each body. Raises ValueError with what it says instead."""
    without_proxy(base_url)
    answers = []
    for number, body in enumerate(bodies, start=1):
        request = urllib.request.Request(f"{base_url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=OUTPUT_LIMIT_S) as reply:
                answers.append(json.load(reply))
        except urllib.error.HTTPError as error:
            raise ValueError(f"prompt {number}: HTTP {error.code}: {error.read(500).decode('utf-8', 'replace')}") from error
    return {"answers": answers}


def model(*, path: str) -> dict[str, Any]:
    """The configuration and the size of the model at `path`: a directory, or a hub name that the engine has in its cache."""
    folder = Path(path)
    if not folder.is_dir():
        folder = Path(importlib.import_module("huggingface_hub").snapshot_download(path, local_files_only=True))
    return {"config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
            "weights_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}


if __name__ == "__main__":
    main()
