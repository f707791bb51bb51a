"""Synthetic results of benchmark runs, as analysis.py makes them, made of formulas: for what reads a result. Nothing was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.bench import rundata
from bundle.bench.rundata import Result

SETTINGS = {"ENGINE_QUANTIZATION": "fp8_per_tensor", "ENGINE_MAX_NUM_SEQS": "256", "ENGINE_MAX_NUM_BATCHED_TOKENS": "8192",
            "ENGINE_LOAD_FORMAT": "dummy"}
LOAD = {"dataset-name": "random", "random-input-len": "512", "random-output-len": "128", "max-concurrency": "64", "num-prompts": "256"}
SLO = {"ttft_ms_p99": 2000.0, "itl_ms_p99": 60.0, "success": 0.99, "start": 32, "most": 512}


@dataclass(frozen=True, kw_only=True)
class SyntheticResult:
    """A cell as its comparison with the control says it is; the control is the one named `control`."""

    name: str
    axis: str = "an axis"
    profile: str = "throughput"
    sets: tuple[str, ...] = ()
    ratio: float = 1.0
    verdict: str = ""
    """Of its output tokens/s; "": as the ratio says."""
    itl: float = 1.0
    itl_verdict: str = "no difference seen"
    check: str = "same"
    state: str = "measured"
    reason: str = ""
    remedy: str = ""

    @property
    def judged(self) -> str:
        return self.verdict or ("faster" if self.ratio > 1.02 else "slower" if self.ratio < 0.98 else "no difference seen")


CONTROL = SyntheticResult(name="control", axis="control")


def build(*cells: SyntheticResult, control: SyntheticResult = CONTROL, workloads: Sequence[str] = ("chat", "long-prompt"), gpu: bool = True,
          **changes: Any) -> Result:
    """A result of `control` and `cells`; `changes` replace what it holds at the top."""
    every = (control, *cells)
    about = {"runtime": "compose", "gpu": "synthetic GPU", "driver": "580.0", "gpu_memory_gib": 31.36, "card_gib": None,
             "engine": {"vllm": "0.0.0", "torch": "0.0.0"}, "image": {"engine": "sha256:" + "1" * 64}, "git_commit": "2" * 40, "git_dirty": False,
             "matrix_sha256": "3" * 64, "host": {"cpus": 16, "memory_gib": 128.0}, "python": "3.12.1"}
    if not gpu:
        about |= {"gpu": None, "driver": None, "gpu_memory_gib": None}
    return rundata.held_to(Result, {
        "schema": 1, "run": "2026-01-02-synthetic", "suite": "default", "started": 1_800_000_000.0, "finished": 1_800_003_600.0, "complete": True,
        "provenance": about, "control": control.name, "plan": [], "rounds": 2, "repeats": 3,
        "model": {"name": "synthetic/model-8B", "path": "model", "config": {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096},
                  "weights_bytes": 16_381_516_800},
        "ceilings": {"device": "synthetic GPU", "copy_gb_s": 1600.0, "matmul_tflops": {"bf16": 210.0, "fp8": 420.0}, "seconds": 4.0} if gpu
        else {"device": "cpu", "copy_gb_s": 20.0, "matmul_tflops": {"bf16": 0.4}, "seconds": 3.0},
        "workloads": {name: {"about": f"synthetic: {name}", "load": LOAD, "slo": SLO if at == 0 else None} for at, name in enumerate(workloads)},
        "cells": {cell.name: _cell(cell, workloads, gpu=gpu) for cell in every},
        "comparisons": [] if control.state != "measured" else
        [found for cell in cells if cell.state == "measured" for workload in workloads for found in _compared(cell, workload)],
        "starts": {"cold": {"seconds": 64.0, "of": 1, "phases": []}, "warm": {"seconds": 21.0, "of": 1, "phases": []},
                   "warm_to_cold": 0.328}} | changes)


def _cell(cell: SyntheticResult, workloads: Sequence[str], *, gpu: bool) -> dict[str, Any]:
    pairs = dict(line.split("=", 1) for line in cell.sets)
    found: dict[str, Any] = {
        "axis": cell.axis, "about": "synthetic", "profile": cell.profile, "sets": list(cell.sets), "outputs": "same",
        "settings": {key: value for key, value in {**SETTINGS, **pairs}.items() if value}, "state": cell.state, "reason": cell.reason,
        "remedy": cell.remedy, "starts": [], "metrics": {}, "quantiles": {}, "slo": {}, "memory": {"t_s": [], "gib": []}, "roofline": {},
        "roofline_unknown": "",
        "output_check": {"verdict": "not comparable", "equal": 0, "of": 0}}
    if cell.state != "measured":
        return found
    found["starts"] = [_start(cold=True), _start(cold=False)]
    found["output_check"] = {"verdict": cell.check, "equal": 6 if cell.check == "same" else 2, "of": 6}
    for number, workload in enumerate(workloads):
        speed, itl = 2600 * cell.ratio / (1 + number), 24 * cell.itl * (1 + number)
        middle = {"ttft_ms": 120 / cell.ratio, "itl_ms": itl / 1.6, "e2e_ms": 64 * itl}
        values = {"output_tokens_per_s": speed, "total_tokens_per_s": 5 * speed, "requests_per_s": speed / 128,
                  **{f"{what}_p{share}": base * factor for what, base in {**middle, "tpot_ms": itl / 1.7}.items()
                     for share, factor in ((50, 1.0), (95, 1.3), (99, 1.6))},
                  "queue_ms_mean": 12.0, "waiting_max": 3.0, "running_mean": 58.0, "running_max": 64.0, "preemptions": 0.0,
                  "prefix_hit_rate": 0.031, "kv_cache_use_max": 0.42}
        if gpu:
            values |= {"gpu_memory_gib_peak": 28.9, "watts_mean": 431.0, "joules": 21_000.0, "tokens_per_joule": speed / 431}
        found["metrics"][workload] = {key: {"median": value, "low": value * 0.985, "high": value * 1.015, "values": [value] * 6}
                                      for key, value in values.items()}
        found["quantiles"][workload] = {what: [base * (0.6 + share / 130 + (share / 100) ** 8) for share in range(101)]
                                        for what, base in middle.items()}
        found["roofline"][workload] = {"share_of_limit": 0.55 * cell.ratio, "bound": "decode", "prefill_s": 4.0 * cell.ratio,
                                       "decode_s": 12.5 * cell.ratio, "measured_s": 30.0, "limited_by": "memory bandwidth"}
    found["slo"] = {workloads[0]: {"most": [round(192 * cell.ratio), round(200 * cell.ratio)]}}
    if gpu:
        full = 28.9 * (0.9 + cell.ratio / 20)
        found["memory"] = {"t_s": [float(2 * at) for at in range(60)], "gib": [full * min(1.0, (at + 1) / 20) for at in range(60)]}
    return found


def _start(*, cold: bool) -> dict[str, Any]:
    phases = {"starting": 12.0, "loading weights": 9.5, "compiling": 34.0 if cold else 4.0, "capturing CUDA graphs": 7.0, "warming up": 1.5}
    return {"ok": True, "cold": cold, "seconds": sum(phases.values()), "phases": [[name, seconds] for name, seconds in phases.items()],
            "facts": {"weights_gib": 8.79, "kv_cache_gib": 17.1, "kv_cache_tokens": 124_512.0, "attention_backend": "FLASH_ATTN"}}


def _compared(cell: SyntheticResult, workload: str) -> list[Mapping[str, Any]]:
    def one(metric: str, ratio: float, verdict: str) -> Mapping[str, Any]:
        return {"cell": cell.name, "workload": workload, "metric": metric, "ratio": ratio, "low": ratio - 0.03, "high": ratio + 0.03,
                "smallest": 0.021, "verdict": "wrong output" if cell.check == "different" else verdict}

    slower_ttft = "faster" if cell.ratio > 1.02 else "slower" if cell.ratio < 0.98 else "no difference seen"
    return [one("output_tokens_per_s", cell.ratio, cell.judged), one("itl_ms_p99", cell.itl, cell.itl_verdict),
            one("ttft_ms_p99", 1 / cell.ratio, slower_ttft)]
