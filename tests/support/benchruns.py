"""Synthetic benchmark runs: a folder with run.json and legs/ as the runner writes them, made of formulas and seeded noise. Nothing was measured."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.bench import slo
from bundle.bench.rundata import Held
from support import modelfolder

PROFILE = {"ENGINE_QUANTIZATION": "fp8_per_tensor", "ENGINE_GPU_MEMORY_UTILIZATION": "0.93", "ENGINE_MAX_MODEL_LEN": "16K",
           "ENGINE_MAX_NUM_SEQS": "256", "ENGINE_MAX_NUM_BATCHED_TOKENS": "8192", "CUDA_CACHE_MAXSIZE": "2147483648"}
GPU = "synthetic GPU"
CEILINGS = {"device": GPU, "copy_gb_s": 1600.0, "matmul_tflops": {"bf16": 210.0, "fp8": 420.0}, "seconds": 4.2}
WORKLOADS: dict[str, dict[str, Any]] = {
    "chat": {"about": "synthetic: short questions and answers, 64 at once",
             "load": {"dataset-name": "random", "random-input-len": "512", "random-output-len": "128", "max-concurrency": "64", "num-prompts": "256"},
             "slo": {"ttft_ms_p99": 2000.0, "itl_ms_p99": 60.0, "success": 0.99, "start": 32, "most": 512}},
    "open-loop": {"about": "synthetic: requests arrive by themselves, 10 a second",
                  "load": {"dataset-name": "random", "random-input-len": "1024", "random-output-len": "64", "request-rate": "10",
                           "num-prompts": "400"}, "slo": None}}
STARTED = 1_800_000_000.0
LEG_S = 300.0


@dataclass(frozen=True, kw_only=True)
class SyntheticCell:
    """A cell and how it behaves: `speed` is its tokens per second as a multiple of the control's."""

    name: str
    axis: str
    about: str = "synthetic"
    sets: tuple[str, ...] = ()
    outputs: str = "same"
    speed: float = 1.0
    texts: tuple[str, ...] = ("synthetic answer one", "synthetic answer two", "synthetic answer three")
    reason: str = ""
    """Why its engine does not start; "": it does."""
    remedy: str = ""
    settings: Mapping[str, str] = field(default_factory=lambda: PROFILE)

    @property
    def deployed(self) -> dict[str, str]:
        """The profile's settings with this cell's; "KEY=" takes one away."""
        pairs = dict(line.split("=", 1) for line in self.sets)
        return {key: value for key, value in {**self.settings, **pairs}.items() if value}


CONTROL = SyntheticCell(name="control", axis="control", about="synthetic: the profile as it is")
FASTER = SyntheticCell(name="kv-fp8", axis="kv cache", sets=("ENGINE_KV_CACHE_DTYPE=fp8",), outputs="may differ", speed=1.25,
                       texts=("synthetic answer one", "another synthetic answer", "synthetic answer three"))
SLOWER = SyntheticCell(name="batched-2k", axis="batched tokens", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=2048",), speed=0.8)
NEUTRAL = SyntheticCell(name="tensor-cores", axis="toggles", sets=("CUDA_TENSOR_CORES=1",))
WRONG = SyntheticCell(name="backend-flashinfer", axis="attention backend", sets=("ENGINE_ATTENTION_BACKEND=FLASHINFER",), speed=1.4,
                      texts=("synthetic answer one", "!!!!", "!!!!"))
BF16 = SyntheticCell(name="weights-bf16", axis="quantization", sets=("ENGINE_QUANTIZATION=",), outputs="may differ", speed=0.6,
                     texts=("one synthetic answer", "synthetic answer two", "synthetic answer three"))
FAILED = SyntheticCell(name="batched-64k", axis="batched tokens", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=65536",),
                       reason="synthetic: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 12.00 GiB.",
                       remedy="lower ENGINE_MAX_NUM_BATCHED_TOKENS")
CELLS = (CONTROL, FASTER, SLOWER, NEUTRAL, WRONG, BF16, FAILED)


def write(folder: Path, *, cells: Sequence[SyntheticCell] = CELLS, rounds: int = 2, repeats: int = 3, noise: float = 0.02, seed: int = 1,
          legs: int | None = None, speed: float = 1.0, gpu: bool = True, workloads: Mapping[str, Mapping[str, Any]] = WORKLOADS,
          provenance: Mapping[str, Any] | None = None) -> Path:
    """A synthetic run in `folder`, whose first cell is the control; returns `folder`.

    `noise` is the relative spread of a measured load. `legs` is how many of them were measured before the run was interrupted (None: all),
    `speed` multiplies every cell's. Without `gpu` nothing is sampled from one. `provenance` replaces what run.json says of it.
    """
    order = [(number, cell) for number in range(rounds) for cell in (cells if number % 2 == 0 else cells[::-1])]
    (folder / "legs").mkdir(parents=True, exist_ok=True)
    run = {
        "schema": 1, "run": folder.name, "suite": "synthetic", "started": STARTED, "provenance": {**_provenance(gpu), **(provenance or {})},
        "model": {"name": "synthetic/Qwen3-8B", "path": "/opt/vllm-bundle/model", "config": modelfolder.published("qwen3-8b"),
                  "weights_bytes": 16_381_516_800},
        "ceilings": CEILINGS if gpu else {"device": "cpu", "copy_gb_s": 20.0, "matmul_tflops": {"bf16": 0.4}, "seconds": 3.0},
        "control": cells[0].name, "plan": [{"order": at, "round": number, "cell": cell.name} for at, (number, cell) in enumerate(order)],
        "cells": {cell.name: {"axis": cell.axis, "about": cell.about, "profile": "throughput", "sets": list(cell.sets), "outputs": cell.outputs,
                              "settings": cell.deployed} for cell in cells},
        "workloads": dict(workloads), "rounds": rounds, "repeats": repeats}
    _dump(folder / "run.json", run)
    noisy, visited = random.Random(seed), set[str]()
    for at, (number, cell) in enumerate(order[:legs]):
        leg = _leg(cell, at, number, cold=cell.name not in visited, noisy=noisy, noise=noise, speed=speed, repeats=repeats, gpu=gpu,
                   workloads=workloads)
        visited.add(cell.name)
        _dump(folder / "legs" / f"{at:03}-{cell.name}.json", leg)
    return folder


def _dump(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))


def _provenance(gpu: bool) -> dict[str, Any]:
    return {"runtime": "compose", "gpu": GPU if gpu else None, "driver": "synthetic 1.0" if gpu else None, "gpu_memory_gib": 31.36 if gpu else None,
            "card_gib": None, "engine": {"vllm": "0.0.0+synthetic", "torch": "0.0.0+synthetic"},
            "image": {"engine": "sha256:" + "0" * 64}, "git_commit": "0" * 40, "git_dirty": False, "matrix_sha256": "0" * 64,
            "host": {"cpus": 16, "memory_gib": 128.0}, "python": "3.11.0"}


def _leg(cell: SyntheticCell, at: int, number: int, *, cold: bool, noisy: random.Random, noise: float, speed: float, repeats: int, gpu: bool,
         workloads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    begun = STARTED + at * LEG_S
    settings = {"argv": ["vllm", "serve", "/opt/vllm-bundle/model"], "environment": {}, "sha256": f"{at:064}"}
    leg: dict[str, Any] = {"cell": cell.name, "order": at, "round": number, "visits": 1, "settings": settings, "error": "", "outputs": [],
                           "samples": [], "slo": [], "memory": {"t_s": [], "gib": []}}
    if cell.reason:
        start = {"ok": False, "cold": cold, "seconds": 21.5, "phases": [["process and imports", 12.0], ["load weights", 9.5]], "facts": {},
                 "reason": cell.reason, "remedy": cell.remedy, "log_tail": ["synthetic log", cell.reason]}
        return {**leg, "start": start}
    usual = {"process and imports": 12.0, "load weights": 9.5, "compile": 34.0 if cold else 4.0, "capture graphs": 7.0, "ready": 1.0}
    phases = {phase: round(seconds * noisy.uniform(0.95, 1.05), 2) for phase, seconds in usual.items()}
    start = {"ok": True, "cold": cold, "seconds": round(sum(phases.values()), 2), "phases": list(phases.items()), "reason": "", "remedy": "",
             "facts": {"weights_gib": 8.79, "kv_cache_gib": 17.1, "kv_cache_tokens": 124_512, "cuda_graphs_gib": 0.55}, "log_tail": []}
    times = [2.0 * step for step in range(40)]
    memory = {"t_s": times, "gib": [round(28.9 * min(1.0, (step + 1) / 12), 2) for step in range(40)]} if gpu else {"t_s": [], "gib": []}
    # One start shifts all its loads alike: repeats within it know nothing of that.
    pace = speed * cell.speed * noisy.gauss(1, noise / 4)
    samples = [_sample(name, workload, repeat, begun + 90 + repeat * 30, noisy, pace * noisy.gauss(1, noise), gpu)
               for repeat in range(repeats) for name, workload in workloads.items()]
    searches = [_search(name, workload["slo"], pace) for name, workload in workloads.items() if workload["slo"]]
    return {**leg, "start": start, "outputs": list(cell.texts), "samples": samples, "slo": searches, "memory": memory}


def _sample(name: str, workload: Mapping[str, Any], repeat: int, at: float, noisy: random.Random, pace: float, gpu: bool) -> dict[str, Any]:
    load = {key: float(value) for key, value in workload["load"].items() if key != "dataset-name"}
    asked, answer = load["num-prompts"], load["random-output-len"]
    batch = load.get("max-concurrency", 40.0) * 0.92
    rate = 2600.0 * pace  # output tokens a second
    if "request-rate" in load:
        rate = min(rate, load["request-rate"] * answer)
    seconds = asked * answer / rate
    itl, ttft = 1000 * batch / (2600 * pace), 150 / pace
    quantiles = {"ttft_ms": _quantiles(ttft, 0.5), "itl_ms": _quantiles(itl, 0.25), "e2e_ms": _quantiles(ttft + answer * itl, 0.15)}
    metrics: dict[str, float] = {
        "output_tokens_per_s": rate, "total_tokens_per_s": rate * (1 + load["random-input-len"] / answer), "requests_per_s": rate / answer,
        **{f"{what.removesuffix('_ms')}_ms_p{share}": values[share] for what, values in quantiles.items() for share in (50, 95, 99)},
        **{f"tpot_ms_p{share}": quantiles["itl_ms"][share] * 0.98 for share in (50, 95, 99)},
        "queue_ms_mean": 12 / pace, "waiting_max": float(noisy.randrange(8)), "running_mean": batch, "running_max": load.get("max-concurrency", 52.0),
        "preemptions": 0.0, "prefix_hit_rate": 0.0, "kv_cache_use_max": min(1.0, batch * (load["random-input-len"] + answer) / 124_512)}
    steps = [round(seconds * step / 20, 2) for step in range(20)]
    watts = [round(420 + 40 * noisy.random(), 1) for _ in steps]
    sampled: dict[str, list[float]] = {"t_s": [], "memory_gib": [], "watts": [], "utilization": []}
    if gpu:
        sampled = {"t_s": steps, "memory_gib": [28.9] * 20, "watts": watts, "utilization": [97.0] * 20}
        joules = sum(watts) / len(watts) * seconds
        metrics |= {"gpu_memory_gib_peak": 28.9, "watts_mean": sum(watts) / len(watts), "joules": joules, "tokens_per_joule": asked * answer / joules}
    series = {"t_s": steps, "running": [round(batch)] * 20, "waiting": [0] * 20, "kv_cache_use": [round(metrics["kv_cache_use_max"], 4)] * 20}
    return {"workload": name, "repeat": repeat, "seed": noisy.randrange(1 << 30), "seconds": round(seconds, 3), "at": at,
            "requests": {"asked": int(asked), "completed": int(asked), "failed": 0, "errors": []},
            "tokens": {"input": int(asked * load["random-input-len"]), "output": int(asked * answer)},
            "metrics": {key: round(value, 4) for key, value in metrics.items()}, "quantiles": quantiles, "series": series, "gpu": sampled}


def _quantiles(median: float, spread: float) -> list[float]:
    """101 values that rise, the 51st is `median`: the tail above it is the longer one."""
    return [round(median * (1 + spread * (share - 50) / 50 * (1 + 2 * (share > 50) * (share - 50) / 50)), 4) for share in range(101)]


def _search(name: str, limit: Mapping[str, Any], pace: float) -> dict[str, Any]:
    def holds(concurrency: int) -> Held:
        itl, ttft = 0.3 * concurrency / pace, 10.0 * concurrency / pace
        return {"held": itl <= limit["itl_ms_p99"] and ttft <= limit["ttft_ms_p99"], "ttft_ms_p99": round(ttft, 2), "itl_ms_p99": round(itl, 2),
                "success": 1.0}

    most, steps = slo.search(holds, start=limit["start"], most=limit["most"])
    return {"workload": name, "most": most, "ended_by": "limit" if most == limit["most"] else "slo" if most else "failed at start", "steps": steps}
