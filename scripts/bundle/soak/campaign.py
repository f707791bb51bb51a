"""One soak, from its first request to its report."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bundle import ROOT
from bundle.base import console
from bundle.bench import plots, report
from bundle.bench.report import Part, Plots, Table
from bundle.service.deployment import Deployment
from bundle.smoke.client import Server
from bundle.soak import findings, samples
from bundle.soak.findings import Check
from bundle.soak.load import Clients, Request
from bundle.soak.samples import Sample

SAMPLES = 120
REST_S = 60.0
_WORDS = {True: "holds", False: "broken", None: "not judged"}


def soak(deployment: Deployment, *, minutes: float, clients: int) -> tuple[Path, list[Check]]:
    """Use the running deployment for so long; the report's folder, and what was found.

    Raises PrerequisiteError or NotReadyError when there is none that answers.
    """
    server = Server.from_deployment(deployment)
    server.request_limit_s = 180.0
    server.connect()
    before = {name: (each.id, each.restarts) for name, each in deployment.containers().items()}
    load, seen, whole_s = Clients(server), list[Sample](), 60 * minutes
    with console.step(f"{clients} clients for {minutes:g} min"), load.asking(clients):
        while (now := time.monotonic() - load.began) < whole_s:
            seen += samples.look(deployment, now)
            time.sleep(max(0.0, min(whole_s / SAMPLES - (time.monotonic() - load.began - now), whole_s - now)))
    with console.step("what is left after it"):
        after = samples.look(deployment, time.monotonic() - load.began)
        while not samples.idle(after) and time.monotonic() - load.began < whole_s + REST_S:
            time.sleep(1)
            after = samples.look(deployment, time.monotonic() - load.began)
    restarted = [name for name, each in deployment.containers().items() if before.get(name) != (each.id, each.restarts)]
    found = list(findings.checks(load.requests, seen, after, restarted, whole_s))
    folder = ROOT / "reports" / time.strftime("soak-%Y-%m-%d-%H%M%S", time.gmtime())
    folder.mkdir(parents=True)
    about = {"model": server.model, "minutes": minutes, "clients": clients, "images": sorted({c.image for c in deployment.containers().values()})}
    record = {**about, "checks": [asdict(one) for one in found], "requests": [asdict(one) for one in load.requests],
              "samples": [asdict(one) for one in (*seen, *after)]}
    (folder / "soak.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    report.pages(folder, title=f"Soak of {minutes:g} minutes, {clients} clients", suite="", answer=[_answer(found)],
                 parts=_parts(load.requests, (*seen, *after), found, about))
    return folder, found


def _answer(found: Sequence[Check]) -> str:
    broken = [one for one in found if one.ok is False]
    return f"**{len(broken)} of {len(found)} promises are broken**: {', '.join(one.name for one in broken)}." if broken \
        else "Nothing grew, nothing slowed down, every request got what it had to."


def _parts(requests: Sequence[Request], seen: Sequence[Sample], found: Sequence[Check], about: dict[str, object]) -> list[Part]:
    kinds = sorted({one.kind for one in requests})
    outcomes = sorted({one.outcome for one in requests})
    table = [[kind, *(str(sum(one.kind == kind and one.outcome == outcome for one in requests)) for outcome in outcomes)] for kind in kinds]
    gauges = {f"{name}, {sample.service}": [(one.at, one.gauges[name]) for one in seen if one.service == sample.service and name in one.gauges]
              for sample in seen[:16] for name in sample.gauges}
    figures = [plots.over_time(findings.memory(seen), "memory, MiB"), plots.over_time(findings.descriptors(seen), "open descriptors"),
               *(plots.over_time({name: points}, f"{name}, ms", dots=True) for name, points in findings.latencies(requests).items()),
               *(plots.over_time({name: points}, name) for name, points in gauges.items())]
    return [
        Part(title="What was found", blocks=[Table(columns=("", "promise", "found", "verdict"), numbers=False,
                                                   rows=[(one.name, one.promise, one.found, _WORDS[one.ok]) for one in found])]),
        Part(title="What was asked", blocks=[
            "whole and stream: an answer of 1 to 128 tokens, prompts up to a sixteenth of the context in words · cancelled: hung up after a few "
            "tokens · bad: has to be refused · same: one question at temperature 0",
            Table(columns=("kind", *outcomes), rows=table)]),
        Part(title="Over time", blocks=[Plots(about="The load ends where running requests fall to 0.", figures=[one for one in figures if one])]),
        Part(title="Where it comes from", blocks=[Table(columns=("", ""), numbers=False,
                                                        rows=[(name, str(value)) for name, value in about.items()])]),
    ]
