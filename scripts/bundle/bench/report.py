"""The report of a run: one self-contained HTML page and Markdown with the same content, for an operator who has two minutes."""

import re
import shlex
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bundle.bench import analysis, plots, published, recommend
from bundle.bench.recommend import comparison
from bundle.bench.rundata import GUARD_METRIC, MAIN_METRIC, NOT_MEASURED, AnswersFound, CellResult, Facts, Metric, Result, Row

_LATENCIES = {"ttft_ms": "TTFT", "itl_ms": "ITL", "tpot_ms": "TPOT", "e2e_ms": "whole request"}
_FACTS = {"kv_cache_tokens": "KV cache, tokens", "kv_cache_gib": "KV cache, GiB", "weights_gib": "weights, GiB", "activation_gib": "activations, GiB",
          "cuda_graphs_gib": "CUDA graphs, GiB", "non_torch_gib": "outside torch, GiB", "full_length_sequences": "requests of full length",
          "attention_backend": "attention", "load_s": "load, s", "compile_s": "compile, s", "capture_s": "capture, s"}
_QUEUE = {"success": "requests answered, %", "queue_ms_mean": "time in queue, ms", "waiting_max": "most waiting", "running_mean": "running, mean",
          "running_max": "running, most", "preemptions": "preemptions", "prefix_hit_rate": "prefix cache hits, %",
          "kv_cache_use_max": "KV cache in use, most, %"}
_ENERGY = {"gpu_memory_gib_peak": "GPU memory at peak, GiB", "watts_mean": "watts, mean", "joules": "joules",
           "tokens_per_joule": "output tokens per joule"}
_SHARES = ("success", "prefix_hit_rate", "kv_cache_use_max")
_WORSE = {"slower": " (worse)", "faster": " (better)"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns; the first column names the row. `control` is the row that the others are compared with."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    control: int | None = None
    numbers: bool = True


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Plots that stand beside each other, with what they show; in Markdown the table near them says the same."""

    about: str
    figures: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A heading and what stands below it: paragraphs (text), tables, plots, commands (tuples of lines). `level` is that of its heading."""

    title: str
    blocks: Sequence[str | Table | Plots | tuple[str, ...]]
    level: int = 2

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def write(folder: Path, result: Result) -> None:
    """Write report.md and report.html of `result` (analysis.analyse) into `folder`."""
    pages(folder, title=f"Benchmark {result['run']}", suite=result["suite"], answer=answer(result), parts=list(_parts(result)))


def pages(folder: Path, *, title: str, suite: str, answer: Sequence[str], parts: Sequence[Part]) -> None:
    """Write report.md and report.html into `folder`: what it says in a paragraph or two, and the parts below it."""
    for name in ("report.md", "report.html"):
        text = _environment(name).get_template(f"{name}.j2").render(title=title, suite=suite, answer=answer, parts=parts)
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")


def answer(result: Result) -> list[str]:
    """What the run says, in a paragraph or two: what is fastest, by how much, and what to do."""
    cells, control, workload = result["cells"], result["control"], recommend.main_workload(result)
    said = []
    if not result["complete"]:
        said.append("**This run is not complete**: what follows holds for the engine starts that are done.")
    if cells[control]["state"] != "measured":
        why = _sentence(cells[control]["reason"]) + _sentence(cells[control]["remedy"])
        return [*said, f"**Nothing can be compared**: the control `{control}` was not measured. {why}".strip()]
    compared = [comparison(result, name, workload, MAIN_METRIC) for name in cells]
    ranked = sorted((one for one in compared if one["verdict"] == "faster"), key=lambda one: -(one["ratio"] or 0.0))
    if not ranked:
        smallest = [one["smallest"] for one in compared if one["smallest"] is not None]
        seen = f" An effect of {_percent(max(smallest))} would have shown in each." if smallest else ""
        others = "No cell was" if len(cells) > 1 else "The run has no other cell that could be"
        said.append(f"**{others} faster than `{control}`** beyond noise on {workload} ({_metric(cells[control], workload, MAIN_METRIC)} output "
                    f"tokens/s).{seen} Keep the profile `{cells[control]['profile']}` as it is.")
    else:
        best = ranked[0]["cell"]
        said.append(f"**`{best}` is fastest on {workload}**: {recommend.times(ranked[0])} the output tokens/s of the control `{control}`, "
                    f"{_metric(cells[best], workload, MAIN_METRIC)} against {_metric(cells[control], workload, MAIN_METRIC)}; P99 ITL "
                    f"{_metric(cells[best], workload, GUARD_METRIC)} against {_metric(cells[control], workload, GUARD_METRIC)} ms"
                    f"{_WORSE.get(comparison(result, best, workload, GUARD_METRIC)['verdict'], '')}.")
        found = recommend.recommend(result)
        if why := recommend.objection(result, best):
            said.append(f"It is not recommended: {why}.")
        if found["set"]:
            settings = ", ".join(f"`{setting['key']}={setting['value']}`" for setting in found["set"])
            said.append(f"What to do: `make bench-apply RUN={result['run']}` writes a profile of `{found['base_profile']}` with {settings}.")
        elif cells[best]["profile"] != cells[control]["profile"]:
            said.append(f"It is a whole profile: `make up PROFILE={cells[best]['profile']}`.")
    if wrong := [name for name, cell in cells.items() if cell["output_check"]["verdict"] == "different"]:
        said.append(f"**Wrong output**: {_names(wrong)} did not give the control's answers at temperature 0, and must not be used however fast.")
    if lost := [f"`{name}` on {load} ({100 * answered:.1f} % answered)" for name in cells for load in result["workloads"]
                if (answered := recommend.success(result, name, load)) < 1]:
        said.append(f"**Requests failed**: {', '.join(lost)}. What was left undone took no time, so no figure of these is one to go by.")
    if failed := [name for name, cell in cells.items() if cell["state"] == "failed"]:
        said.append(f"Failed: {_names(failed)}; the reasons are below.")
    return [" ".join(said)]


def _parts(result: Result) -> Iterator[Part]:
    yield Part(title="What it was measured on", blocks=[_hardware(result)])
    yield Part(title="Cells", blocks=[
        "Medians with their 95 % bootstrap intervals. A cell is faster or slower only where the interval of its ratio to the control excludes 1 and "
        "the effect is larger than the smallest that this run could have seen (\"would show from\"). The cells of a table are judged together: noise "
        "alone puts a wrong verdict into at most one table of twenty. Better and worse: beyond noise too."])
    for workload in result["workloads"]:
        yield Part(title=_title(result, workload), level=3, blocks=[_load(result, workload), _speeds(result, workload)])
    yield Part(title="This host beside the published runs", blocks=list(_published(result)))
    yield Part(title="What did not run", blocks=[_failures(result)])
    yield Part(title="Are the answers the same?", blocks=[
        "Each cell answered the same prompts at temperature 0. Where a setting must not change what is computed, answers other than the control's "
        "are an error." + (" The weights are random ones of vLLM's, so small that each answer hangs on its prompt's last token alone: equal answers "
                           "say nothing here." if analysis.dummy_weights(result) else ""),
        _outputs(result)])
    yield Part(title="How good are the answers?", blocks=list(_answers(result)))
    yield from _latencies(result)
    yield from _memory_and_starts(result)
    yield from _limits(result)
    yield Part(title="What the engine said", blocks=[_engine(result)])
    yield Part(title="Queue and caches", blocks=_by_workload(result, _QUEUE))
    yield Part(title="GPU memory and energy", blocks=_by_workload(result, _ENERGY))
    yield Part(title="Recommended settings", blocks=list(_recommended(result)))
    yield Part(title="Where it comes from", blocks=[_provenance(result)])
    yield Part(title="Repeat it", blocks=list(_repeat(result)))


def _hardware(result: Result) -> Table:
    about, model = result["provenance"], result["model"]
    total, held, together = about.get("gpu_memory_gib"), about.get("card_gib"), result.get("side_by_side", 1)
    weights = "**random weights**, so its text is noise" if analysis.dummy_weights(result) else ""
    size = f"{model['weights_bytes'] / 2**30:.2f} GiB on disk" if model.get("weights_bytes") else ""
    engine = about.get("engine", {})
    ceilings = result["ceilings"]
    rates = ", ".join(f"{rate:,.0f} TFLOPS {kind}" for kind, rate in ceilings.get("matmul_tflops", {}).items())
    copy = f"{ceilings['copy_gb_s']:,.0f} GB/s copied" if ceilings.get("copy_gb_s") else ""
    gpu = about.get("gpu") or ("none: a CPU" if ceilings.get("device") == "cpu" else "")
    budget = f"**{about.get('gpu')} held to {held:g} GiB; no claim about another GPU**" if held else f"{total:.2f} GiB" if total else ""
    commit, changed = about.get("git_commit"), " with changes that are not committed" if about.get("git_dirty") else ""
    images = ", ".join(f"{name} `{image}`" for name, image in about.get("image", {}).items())
    return _facts({
        "GPU": gpu, "driver": about.get("driver"), "GPU memory": budget, "engine": ", ".join(f"{name} {version}" for name, version in engine.items()),
        "model": "; ".join(part for part in (model.get("name"), size, weights) if part), "runtime": about.get("runtime"),
        "engines at once": f"{together} side by side on one GPU, its memory shared out; one is measured at a time" if together > 1 else "1",
        "measured limits": ", ".join(part for part in (copy, rates) if part),
        "git commit": f"`{commit}`{changed}" if commit else "", "images": images,
        "matrix": f"sha256 `{about['matrix_sha256']}`" if about.get("matrix_sha256") else ""})


def _speeds(result: Result, workload: str) -> Table:
    """The fastest cell first, wrong output last."""
    cells, control = result["cells"], result["control"]
    order = sorted((name for name, cell in cells.items() if cell["state"] != "failed"), key=lambda name: (
        comparison(result, name, workload, MAIN_METRIC)["verdict"] == "wrong output", -(_number(cells[name], workload, MAIN_METRIC) or 0.0)))
    rows = []
    for name in order:
        compared = comparison(result, name, workload, MAIN_METRIC)
        smallest = compared["smallest"]
        latencies = [_metric(cells[name], workload, metric) + _WORSE.get(comparison(result, name, workload, metric)["verdict"], "")
                     for metric in ("ttft_ms_p99", GUARD_METRIC)]
        rows.append([_named(result, name), _metric(cells[name], workload, MAIN_METRIC, interval=True),
                     "1" if name == control else _ratio(compared), "" if name == control else compared["verdict"], *latencies,
                     "" if name == control else NOT_MEASURED if smallest is None else _percent(smallest)])
    return Table(columns=("cell", "output tokens/s", "to control", "verdict", "P99 TTFT, ms", "P99 ITL, ms", "would show from"), rows=rows,
                 control=order.index(control) if control in order else None)


def _failures(result: Result) -> Table | str:
    rows = [[name, cell["state"], cell["reason"] or NOT_MEASURED, cell["remedy"] or "none is known"]
            for name, cell in result["cells"].items() if cell["state"] != "measured" or cell["reason"]]
    return Table(columns=("cell", "state", "reason", "remedy"), rows=rows, numbers=False) if rows else "Every cell started and was measured."


def _published(result: Result) -> Iterator[str | Table]:
    found = published.beside(result)
    if not found:
        yield "No run under reports/published has a load of this one."
        return
    yield ("Rates of another GPU, engine version or model stand here to be looked at together, and nothing follows from their difference alone; a "
           "cell's ratio to the control of its own run tells more.")
    for workload, rows in found.items():
        yield f"{workload}:"
        yield Table(columns=published.COLUMNS, rows=rows, numbers=False)


def _outputs(result: Result) -> Table:
    rows = []
    for name, cell in result["cells"].items():
        check = cell["output_check"]
        if name != result["control"] and cell["state"] == "measured":
            equal = f"{check['equal']} of {check['of']}" if check["of"] else NOT_MEASURED
            rows.append([name, cell["outputs"], check["verdict"], equal])
    return Table(columns=("cell", "its answers", "verdict", "equal answers"), rows=rows, numbers=False)


def _answers(result: Result) -> Iterator[str | Table]:
    asked = {name: found for name, cell in result["cells"].items() if (found := cell.get("answers"))}
    if not asked:
        yield f"{NOT_MEASURED.capitalize()}."
        return
    yield ("Perplexity over a fixed text of 1,400 words, by what the engine itself says of each token: cell / control, with its 95 % "
           "interval; above 1 is worse. Answers to 20 fixed questions at temperature 0 that are the control's word for word, and structured answers "
           "that keep their schema. With random weights none of this says anything.")
    yield Table(columns=("cell", "perplexity", "/ control", "verdict", "equal answers", "valid structure"), numbers=False, rows=[
        [name, f"{found['perplexity']:.3f}" if found["perplexity"] else f"{NOT_MEASURED}: {found['error']}", _of_control(found), found["verdict"],
         f"{found['equal']} of {found['of']}" if found["of"] else "", f"{found['structured']} of {found['structured_of']}"]
        for name, found in asked.items()])


def _of_control(found: AnswersFound) -> str:
    return f"{found['ratio']:.4f} ({found['low']:.4f} to {found['high']:.4f})" if found["ratio"] else ""


def _latencies(result: Result) -> Iterator[Part]:
    figures = [figure for workload in result["workloads"] for metric, label in ((GUARD_METRIC, "P99 ITL"), ("ttft_ms_p99", "P99 TTFT"))
               if (figure := plots.throughput_against_latency(result, workload, metric, f"{workload}: {label}"))]
    yield Part(title="Throughput against latency", blocks=[Plots(
        about="Up and to the left is better. The line is the Pareto front: no cell on it is beaten in both. Diamond: the control. Cross: wrong "
              "output, which is no part of the front. Points without room for a name are in the tables.", figures=figures)] if figures
               else [NOT_MEASURED])
    blocks: list[str | Table | Plots] = ["Milliseconds, medians of the loads. TTFT: time to the first token. ITL: time between two tokens. TPOT: a "
                                         "request's mean time for each token after the first."]
    for workload in result["workloads"]:
        figures = [figure for metric in plots.LATENCIES if (figure := plots.distribution(result, workload, metric))]
        if figures:
            blocks.append(Plots(about=f"{workload}: the line runs from P5 to P99 (red), the bar is the middle half, white in it the median.",
                                figures=figures))
        shares = [(f"{metric}_p{share}", f"{name} P{share}") for metric, name in _LATENCIES.items() for share in (50, 95, 99)]
        blocks.append(_metrics(result, workload, dict(shares)))
    yield Part(title="Latency", blocks=blocks)


def _memory_and_starts(result: Result) -> Iterator[Part]:
    memory = plots.memory(result)
    about = "One start of each cell with the loads after it; grey: cells that are not named."
    yield Part(title="GPU memory over time", blocks=[Plots(about=about, figures=[memory])] if memory else [NOT_MEASURED])
    starts, phases = result["starts"], plots.start_phases(result)
    ratio = starts.get("warm_to_cold")
    blocks: list[str | Table | Plots] = [
        f"A warm start of the control takes {ratio:.2f} of a cold one." if ratio is not None
        else f"Warm against cold for the control: {NOT_MEASURED}.",
        "A cold start compiles what a later one finds compiled. The first cold start of a run, the control's, finds all caches empty; other cells "
        "find filled what they share with it."]
    if phases:
        blocks.append(Plots(about="Where a start spends its time.", figures=[phases]))
    rows = []
    for name, cell in result["cells"].items():
        ok = [start for start in cell["starts"] if start["ok"]]
        cold, warm = ([start["seconds"] for start in ok if start["cold"] == kind] for kind in (True, False))
        rows.append([_named(result, name), *(_plain(statistics.median(seconds)) if seconds else NOT_MEASURED for seconds in (cold, warm)),
                     str(len(ok)), str(len(cell["starts"]) - len(ok))])
    blocks.append(_table(result, ("cell", "cold, s", "warm, s", "starts", "failed starts"), rows))
    if split := _phases(result["cells"][result["control"]]):
        blocks += ["The control's start by phase, in seconds:", split]
    yield Part(title="Start", blocks=blocks)


def _phases(control: CellResult) -> Table | None:
    kinds = [dict(start["phases"] if (start := plots.typical_start(control, cold=cold)) else ()) for cold in (True, False)]
    names = list(dict.fromkeys(name for phases in kinds for name in phases))
    rows = [[name, *(_plain(phases[name]) if name in phases else ("0" if phases else NOT_MEASURED) for phases in kinds)] for name in names]
    return Table(columns=("phase", "cold", "warm"), rows=rows) if rows else None


def _limits(result: Result) -> Iterator[Part]:
    blocks: list[str | Table | Plots] = [
        "The least time that the same work can take, at the copy bandwidth and matrix rate measured in this run, as a share of the time that it "
        "took. What is missing to 100 % is overhead and waiting."]
    for workload in result["workloads"]:
        rows: list[list[str]] = []
        for name, cell in result["cells"].items():
            if found := cell["roofline"].get(workload):
                rows.append([_named(result, name), _percent(found["share_of_limit"]), found["bound"], found["limited_by"],
                             _plain(found["prefill_s"]), _plain(found["decode_s"]), _plain(found["measured_s"])])
        if rows:
            if figure := plots.roofline(result, workload):
                blocks.append(Plots(about=workload, figures=[figure]))
            columns = (workload, "of the limit", "bound", "limited by", "prefill, least s", "decode, least s", "measured s")
            blocks.append(_table(result, columns, rows))
    unknown = dict.fromkeys(why for cell in result["cells"].values() if (why := cell["roofline_unknown"]))
    blocks += [f"Not computed for {_names([name for name, cell in result['cells'].items() if cell['roofline_unknown'] == why])}: {why}"
               for why in unknown]
    yield Part(title="Distance from the limit", blocks=blocks if len(blocks) > 1 else [NOT_MEASURED])
    yield Part(title="Concurrency within limits", blocks=list(_concurrency(result)) or [NOT_MEASURED])


def _concurrency(result: Result) -> Iterator[str | Table | Plots]:
    for workload, about in result["workloads"].items():
        held = {name: most for name, cell in result["cells"].items() if (most := plots.most_held(cell, workload))}
        limits = about["slo"]
        if not held or not limits:
            continue
        yield f"{workload}: P99 TTFT at most {_plain(limits['ttft_ms_p99'])} ms, P99 ITL at most {_plain(limits['itl_ms_p99'])} ms, " \
            f"{_percent(limits['success'])} of the requests answered; searched up to {_plain(limits['most'])}."
        if figure := plots.concurrency(result, workload):
            yield Plots(about="The bar is the median, a dot is one search.", figures=[figure])
        rows = [[_named(result, name), _plain(statistics.median(most)), ", ".join(map(_plain, most))] for name, most in held.items()]
        yield _table(result, (workload, "most concurrent requests", "each search"), rows)


def _engine(result: Result) -> Table | str:
    facts: dict[str, Facts] = {name: next((start["facts"] for start in cell["starts"] if start["facts"]), {})
                               for name, cell in result["cells"].items()}
    known = [key for key in _FACTS if any(key in found for found in facts.values())]
    if not known:
        return NOT_MEASURED
    return _table(result, ("cell", *(_FACTS[key] for key in known)),
                  [[_named(result, name), *(_plain(found.get(key)) for key in known)] for name, found in facts.items() if found])


def _by_workload(result: Result, names: Mapping[str, str]) -> list[str | Table | Plots]:
    return [_metrics(result, workload, names) for workload in result["workloads"]]


def _metrics(result: Result, workload: str, names: Mapping[str, str]) -> Table | str:
    """The medians of the metrics in `names`, for each cell; those that no cell has stand below as not measured."""
    measured = {name: cell for name, cell in result["cells"].items() if cell["state"] == "measured"}
    known = {key: label for key, label in names.items() if any(_number(cell, workload, key) is not None for cell in measured.values())}
    if not known:
        return f"{workload}: {NOT_MEASURED}."
    rows = [[_named(result, name), *(_share_or_plain(_number(cell, workload, key), key) for key in known)] for name, cell in measured.items()]
    return _table(result, (workload, *known.values()), rows)


def _recommended(result: Result) -> Iterator[str | Table | tuple[str, ...]]:
    found = recommend.recommend(result)
    if found["set"]:
        yield f"Over the profile `{found['base_profile']}`:"
        yield Table(columns=("setting", "value", "cell", "why"), numbers=False,
                    rows=[[f"`{one['key']}`", f"`{one['value']}`" if one["value"] else "not set", one["cell"], one["why"]] for one in found["set"]])
        yield (f"make bench-apply RUN={result['run']}",)
    if found["note"]:
        yield found["note"]
    if found["kept"]:
        yield "Tried otherwise, and kept:"
        yield Table(columns=("setting", "stays", "tried"), numbers=False,
                    rows=[[f"`{one['key']}`", f"`{one['value']}`" if one["value"] else "not set", one["why"]] for one in found["kept"]])


def _provenance(result: Result) -> Table:
    about, cells = result["provenance"], result["cells"]
    host, shape = about.get("host"), result["model"].get("config", {})
    described = [f"{key} {shape[key]}" for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
                 if shape.get(key)]
    return _facts({
        "run": result["run"], "suite": result["suite"], "began": _utc(result["started"]), "ended": _utc(result["finished"]),
        "complete": "yes" if result["complete"] else "no", "rounds": f"{result['rounds']}, forwards and backwards through the cells in turn",
        "loads in a round": f"{result['repeats']} of each workload",
        "engine starts": str(sum(len(cell["starts"]) for cell in cells.values())),
        "host": f"{host['cpus']} CPUs, {host['memory_gib']:.0f} GiB of memory" if host else "", "Python": about.get("python"),
        "model's shape": ", ".join([*shape.get("architectures", ()), *described]),
        "cells": "; ".join(f"{name}: profile {cell['profile']}{' with ' + ' '.join(f'`{line}`' for line in cell['sets']) if cell['sets'] else ''}"
                           for name, cell in cells.items())})


def _repeat(result: Result) -> Iterator[str | tuple[str, ...]]:
    about = result["provenance"]
    options = [f"--suite {result['suite']}"]
    options += ["--runtime process"] if about.get("runtime") == "process" else []
    options += [f"--card-gib {about['card_gib']:g}"] if about.get("card_gib") else []
    options += [f"--side-by-side {result['side_by_side']}"] if (result.get("side_by_side", 1)) > 1 else []
    given = result.get("options", {})
    options += [f"--rounds {result['rounds']}", f"--repeats {result['repeats']}",
                *(f"--env-file {shlex.quote(value)}" for value in given.get("env_files", ())),
                *(f"--set {shlex.quote(value)}" for value in given.get("sets", ()))]
    yield "With the same commit and model on such a host; then hold the new run against this one (exit 6: slower beyond noise):"
    checkout = [f"git checkout {about['git_commit']}"] if about.get("git_commit") else []
    yield (*checkout, " ".join(["python3 scripts/bench.py", *options, "--run again"]), f"python3 scripts/bench_compare.py {result['run']} again")
    yield "Everything here is in result.json beside this file; each engine start is a file in legs/."


def _title(result: Result, workload: str) -> str:
    return f"{workload} (decides)" if workload == recommend.main_workload(result) and len(result["workloads"]) > 1 else workload


def _load(result: Result, workload: str) -> str:
    about = result["workloads"][workload]
    load = ", ".join(f"{key} {value}" for key, value in about["load"].items())
    return f"{_sentence(about['about'])}Load: {load}."


def _named(result: Result, name: str) -> str:
    return f"{name} (control)" if name == result["control"] != "control" else name


def _table(result: Result, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    control = _named(result, result["control"])
    return Table(columns=columns, rows=rows, control=next((at for at, row in enumerate(rows) if row[0] == control), None))


def _facts(facts: Mapping[str, str | None]) -> Table:
    return Table(columns=("", ""), rows=[[name, value or NOT_MEASURED] for name, value in facts.items()], numbers=False)


def _found(cell: CellResult, workload: str, metric: str) -> Metric | None:
    return cell["metrics"].get(workload, {}).get(metric)


def _number(cell: CellResult, workload: str, metric: str) -> float | None:
    found = _found(cell, workload, metric)
    return found["median"] if found else None


def _metric(cell: CellResult, workload: str, metric: str, *, interval: bool = False) -> str:
    found = _found(cell, workload, metric)
    ends = f" ({_plain(found['low'])}–{_plain(found['high'])})" if interval and found else ""
    return _plain(found and found["median"]) + ends


def _plain(value: object) -> str:
    """A number with as many digits as it is worth; "not measured" for none."""
    if value is None:
        return NOT_MEASURED
    if not isinstance(value, (int, float)):
        return str(value)
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _share_or_plain(value: float | None, key: str) -> str:
    return _plain(None if value is None else 100 * value if key in _SHARES else value)


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def _ratio(compared: Row) -> str:
    low, high = compared["low"], compared["high"]
    if compared["ratio"] is None:
        return NOT_MEASURED
    return f"{compared['ratio']:.2f}" + (f" ({low:.2f}–{high:.2f})" if low is not None and high is not None else "")


def _sentence(text: str) -> str:
    text = text.strip()
    return "" if not text else f"{text[0].upper()}{text[1:].rstrip('.')}. "


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _environment(name: str) -> Environment:
    made = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=name.endswith(".html"), undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"rich": _rich, "cell": _cell}
    made.tests |= {"table": lambda block: isinstance(block, Table), "plots": lambda block: isinstance(block, Plots),
                   "commands": lambda block: isinstance(block, tuple)}
    made.globals["tone"] = {"faster": "good", "slower": "bad", "wrong output": "bad", "different": "bad", "failed": "bad", NOT_MEASURED: "none"}.get
    return made


def _rich(text: str) -> Markup:
    """`code` and **strong** of a text as HTML; everything else in it is text."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked))  # noqa: S704  (escaped above)


def _cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
