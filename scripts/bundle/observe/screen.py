"""The live view on a terminal of any width: what does not fit is left out, the least needed first."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bundle.base import console
from bundle.base.clock import Clock
from bundle.observe.top import LATENCIES, SHARES, View

LOOK_S = 2.0
WIDE = 120
_STATES = {"healthy": "green", "UP": "green", "unhealthy": "red", "DOWN": "red", "starting": "yellow", "MAINT": "yellow", "DRAIN": "yellow"}
_TICKS = "▁▂▃▄▅▆▇█"
_NAMES = {"ttft": "TTFT", "itl": "ITL", "e2e": "end to end", "queue": "queue"}


def show(look: Callable[[], View], clock: Clock) -> None:
    """Look again and again until Ctrl-C, which is how it ends. A resized terminal is drawn anew at the next look."""
    out = Console(highlight=False)
    with Live(console=out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(drawn(look(), out.width), refresh=True)
                clock.sleep(LOOK_S)
        except KeyboardInterrupt:
            pass


def show_once(view: View, width: int | None = None) -> None:
    """One picture on stdout, as wide as the terminal, COLUMNS, or `width`."""
    out = Console(highlight=False, width=width)
    out.print(drawn(view, out.width))


def drawn(view: View, width: int) -> RenderableType:
    """Everything, `width` columns wide at most."""
    wide = width >= WIDE
    parts: list[RenderableType] = [
        Text(f"{view.project} at {view.base_url or '(not published)'} · latencies and counts over {view.window_s:.0f} s", style="bold"),
        _services(view, wide=wide), _latencies(view)]
    if view.tokens_per_s:
        span = max(width - 32, 10)
        parts += [_trail("tokens/s out", view.tokens_per_s, span), _trail("running", view.running, span)]
    parts.append(_gpus(view, wide=wide) if view.gpus else Text("GPU: none, or no nvidia-smi on this host", style="dim"))
    parts += [Text(console.redacted(f"{row['service']}: {row['reason']}"), style="yellow") for row in view.services if row["reason"]]
    return Group(*parts)


def _services(view: View, *, wide: bool) -> Table:
    table = _table("service", "health", "route", "run", "wait", "in/s", "out/s", "KV cache", "hits", "preempt",
                   *(["restarts", "model"] if wide else []))
    for row in view.services:
        table.add_row(row["service"], _state(row["health"] if row["state"] == "running" else row["state"]), _state(row.get("at_gateway")),
                      _number(row.get("running")), _number(row.get("waiting")), _number(row.get("tokens_in_per_s")),
                      _number(row.get("tokens_out_per_s")), _bar(row.get("kv_cache_use"), 24 if wide else 4), _share(row.get("prefix_hits")),
                      _number(row.get("preemptions")), *([str(row["restarts"]), row.get("model") or ""] if wide else []))
    return table


def _latencies(view: View) -> Table:
    table = _table("latency", *SHARES, "requests", "model")
    for model in view.models:
        for number, key in enumerate(LATENCIES):
            first = [_number(model["requests"]), model["model"]] if number == 0 else []
            table.add_row(_NAMES[key], *(_seconds(model[key][share]) for share in SHARES), *first)
    return table


def _gpus(view: View, *, wide: bool) -> Table:
    table = _table("GPU", "busy", "memory", "power", "°C", *(["name"] if wide else []))
    for gpu in view.gpus:
        used, total = gpu["memory_mib"], gpu["memory_total_mib"]
        memory = "-" if used is None or not total else f"{used / 1024:.1f} of {total / 1024:.1f} GiB"
        power = "-" if gpu["watts"] is None else f"{gpu['watts']:.0f} W" + (f" of {gpu['watts_limit']:.0f}" if gpu["watts_limit"] else "")
        busy = None if gpu["utilization"] is None else gpu["utilization"] / 100
        table.add_row(str(gpu["gpu"]), _bar(busy, 24 if wide else 8), memory, power, _number(gpu["celsius"]), *([gpu["name"]] if wide else []))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table


def _trail(name: str, values: Sequence[float], span: int) -> Text:
    shown = list(values)[-span:]
    top = max(shown)
    marks = "".join(_TICKS[min(int(value / top * len(_TICKS)), len(_TICKS) - 1)] if top else _TICKS[0] for value in shown)
    return Text.assemble((f"{name:<13}", "dim"), (marks, "cyan"), f" {_number(shown[-1])}", (f" (most {_number(top)})", "dim"))


def _bar(share: float | None, width: int) -> Text:
    if share is None:
        return Text("-")
    full = min(max(round(share * width), 0), width)
    colour = "red" if share >= 0.95 else "yellow" if share >= 0.8 else "green"
    return Text.assemble(("█" * full, colour), ("░" * (width - full), "dim"), f" {share:.0%}")


def _state(word: str | None) -> Text:
    return Text(word or "-", style=_STATES.get(word or "", ""))


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
