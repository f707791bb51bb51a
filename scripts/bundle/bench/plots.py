"""The report's plots, each as inline SVG: one narrow figure per question, so that a phone shows it as well as a page."""

import html
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from bundle.bench.rundata import MAIN_METRIC, CellResult, Memory, Phases, Result, StartTimes

# Okabe and Ito's colours: told apart by every kind of colour vision. The grey is for what is context.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#222222"
GREY, LIGHT = "#8A8A8A", "#D9D9D9"
_SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, GREY, "#7A5C00", "#004B49")

LATENCIES = {"ttft_ms": "time to first token", "itl_ms": "time between tokens", "e2e_ms": "whole request"}

_WIDTH = 420  # in CSS pixels: text of 12 is still 9 on a phone
_FONT = 12
_ROW = 22
_NAME = 22  # characters of a cell's name beside a row
_MOST_LINES = 300
_AROUND = ((0, "left", "center"), (180, "right", "center"), (90, "center", "bottom"), (270, "center", "top"),
           (35, "left", "bottom"), (325, "left", "top"), (145, "right", "bottom"), (215, "right", "top"))
_RINGS = (8, 22, 38, 56, 76)  # how far a name stands from its point: with a line to it but in the nearest, where it could be any neighbour's
_STYLE: Any = {"svg.fonttype": "none", "font.family": ["DejaVu Sans"], "font.size": _FONT, "axes.spines.top": False,
          "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": BLACK, "xtick.color": "#444444", "ytick.color": "#444444",
          "axes.labelsize": _FONT, "xtick.labelsize": _FONT - 1, "ytick.labelsize": _FONT - 1, "axes.axisbelow": True, "grid.color": "#E8E8E8"}
_PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The cells that no other beats in both latency and throughput, by rising latency; `points` are (latency, throughput)."""
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best


def throughput_against_latency(result: Result, workload: str, latency: str, label: str) -> str:
    """Each cell's output tokens/s over its `latency` (a metric in ms, called `label`), with the Pareto front; "" without two measured numbers."""
    points = {name: (x, y) for name, cell in result["cells"].items()
              if (x := _median(cell, workload, latency)) is not None and (y := _median(cell, workload, MAIN_METRIC)) is not None}
    if not points:
        return ""
    wrong = {name for name in points if result["cells"][name]["output_check"]["verdict"] == "different"}
    best = front({name: point for name, point in points.items() if name not in wrong})
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(330)
        axes.grid(True)
        axes.step([points[name][0] for name in best], [points[name][1] for name in best], where="post", color=BLUE, linewidth=1.2, alpha=0.6)
        for name, (x, y) in points.items():
            colour, marker = (RED, "X") if name in wrong else (BLACK, "D") if name == result["control"] else (BLUE if name in best else GREY, "o")
            axes.plot([x], [y], marker, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8)
        _roomy(axes, points)
        axes.set_xlabel(f"{label}, ms")
        axes.set_title("output tokens/s", loc="left", fontsize=_FONT, color=BLACK)
        first = [name for name in (*best, result["control"]) if name in points]
        colours = {name: RED if name in wrong else BLUE if name in best else BLACK for name in dict.fromkeys([*first, *points])}
        _label(figure, axes, points, colours, best)
        return _svg(figure, f"Output tokens per second over {label}, one point for each cell, on {workload}")


def distribution(result: Result, workload: str, metric: str) -> str:
    """How `metric` (ttft_ms, itl_ms, e2e_ms) spreads over the requests, a row for each cell; "" where no cell has its quantiles."""
    rows = {name: values for name, cell in result["cells"].items() if (values := cell["quantiles"].get(workload, {}).get(metric))}
    if not rows:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _rows(list(rows), result)
        lowest, highest = min(values[5] for values in rows.values()), max(values[99] for values in rows.values())
        logarithmic = lowest > 0 and highest / lowest > 20
        if logarithmic:
            _log(axes, lowest, highest)
        else:
            axes.set_xlim(0, highest * 1.05 or 1)
        for at, values in enumerate(rows.values()):
            axes.plot([values[5], values[99]], [at, at], color=SKY, linewidth=1.5, solid_capstyle="butt")
            axes.plot([values[25], values[75]], [at, at], color=BLUE, linewidth=7, solid_capstyle="butt")
            axes.plot([values[50]], [at], "|", color="white", markersize=7, markeredgewidth=2)
            axes.plot([values[99]], [at], "|", color=RED, markersize=9, markeredgewidth=2)
        axes.set_xlabel(f"{LATENCIES[metric]}, ms{' (logarithmic scale)' if logarithmic else ''}")
        return _svg(figure, f"{LATENCIES[metric]} on {workload}: for each cell the range from P5 to P99, the middle half and the median")


def memory(result: Result) -> str:
    """GPU memory since the start was asked for, a line for each cell; "" where none was sampled."""
    lines = {name: found for name, cell in result["cells"].items() if (found := _thinned(cell["memory"]))}
    if not lines:
        return ""
    peak = {name: max(gib) for name, (_, gib) in lines.items()}
    # More lines than colours would tell nothing apart: then only the ends of the range and the control stand out.
    named = list(lines) if len(lines) <= 5 else list(dict.fromkeys(
        [name for name in (result["control"],) if name in lines] + [max(peak, key=peak.__getitem__), min(peak, key=peak.__getitem__)]))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(300)
        axes.grid(True, axis="y")
        for name in sorted(lines, key=lambda name: name in named):
            colour = BLACK if name == result["control"] else _SERIES[named.index(name)] if name in named else LIGHT
            axes.plot(*lines[name], color=colour, linewidth=1.6 if name in named else 0.9, label=_short(name, 40) if name in named else None)
        axes.set_xlim(0, max(times[-1] for times, _ in lines.values()) or 1)
        axes.set_ylim(0, max(peak.values()) * 1.1 or 1)
        axes.set_xlabel("seconds since the start was asked for")
        axes.set_title("GPU memory, GiB", loc="left", fontsize=_FONT, color=BLACK)
        _legend(figure, len(named))
        return _svg(figure, "GPU memory over time, from the start of the engine, one line for each cell")


def over_time(lines: Mapping[str, Sequence[tuple[float, float]]], title: str, *, dots: bool = False) -> str:
    """What `lines` have of (seconds, value), a line or a cloud of dots for each; "" without any."""
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(300)
        axes.grid(True, axis="y")
        for number, (name, points) in enumerate(lines.items()):
            axes.plot(*zip(*points, strict=True), "." if dots else "-", color=_SERIES[number % len(_SERIES)], markersize=2, linewidth=1.4,
                      label=_short(name, 40) if len(lines) > 1 else None)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds")
        axes.set_title(title, loc="left", fontsize=_FONT, color=BLACK)
        if len(lines) > 1:
            _legend(figure, len(lines))
        return _svg(figure, f"{title} over time")


def start_phases(result: Result) -> str:
    """What a start spends its time on, cold above warm, for each cell; "" where no start has phases."""
    bars: list[tuple[str, Phases]] = []
    for name, cell in result["cells"].items():
        for cold in (True, False):
            if start := typical_start(cell, cold=cold):
                bars.append((f"{_short(name, _NAME - 6)}, {'cold' if cold else 'warm'}", start["phases"]))
    if not bars:
        return ""
    phases = list(dict.fromkeys(phase for _, found in bars for phase, _ in found))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _rows([label for label, _ in bars], result)
        longest = max(sum(seconds for _, seconds in found) for _, found in bars)
        for at, (_, found) in enumerate(bars):
            begun = 0.0
            for phase, seconds in found:
                axes.barh([at], [seconds], left=[begun], height=0.66, color=_SERIES[phases.index(phase) % len(_SERIES)], linewidth=0)
                begun += seconds
            axes.annotate(f"{begun:.0f} s", (begun, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=_FONT - 1, color=BLACK)
        axes.set_xlim(0, longest * 1.18 or 1)
        axes.set_xlabel("seconds until ready")
        keys = [Rectangle((0, 0), 1, 1, color=_SERIES[number % len(_SERIES)]) for number in range(len(phases))]
        _legend(figure, len(phases), keys, phases)
        return _svg(figure, "Start time by phase, cold and warm, for each cell")


def typical_start(cell: CellResult, *, cold: bool) -> StartTimes | None:
    """The start of median length among the cell's cold (or warm) ones that came up and have phases; None where there is none."""
    starts = sorted((start for start in cell["starts"] if start["ok"] and start["cold"] == cold and start["phases"]),
                    key=lambda start: start["seconds"])
    return starts[(len(starts) - 1) // 2] if starts else None


def roofline(result: Result, workload: str) -> str:
    """What share of the measured time the GPU's limits account for, prefill and decode, for each cell; "" where none was computed."""
    rows = {name: found for name, cell in result["cells"].items() if (found := cell["roofline"].get(workload))}
    if not rows:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _rows(list(rows), result)
        most = 100.0
        for at, found in enumerate(rows.values()):
            prefill, decode = (100 * part / found["measured_s"] for part in (found["prefill_s"], found["decode_s"]))
            axes.barh([at], [prefill], height=0.66, color=ORANGE, linewidth=0)
            axes.barh([at], [decode], left=[prefill], height=0.66, color=BLUE, linewidth=0)
            axes.annotate(f"{100 * found['share_of_limit']:.0f} %", (prefill + decode, at), xytext=(4, 0), textcoords="offset points", va="center",
                          fontsize=_FONT - 1, color=BLACK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
            most = max(most, prefill + decode)
        axes.axvline(100, color=BLACK, linewidth=1)
        axes.set_xlim(0, most * 1.12)
        axes.set_xlabel("share of the measured time, %; 100: at the limit")
        _legend(figure, 2, [Rectangle((0, 0), 1, 1, color=colour) for colour in (ORANGE, BLUE)], ["prefill", "decode"])
        return _svg(figure, f"Distance from the roofline on {workload}: the least time for prefill and decode as a share of the measured time")


def concurrency(result: Result, workload: str) -> str:
    """The most concurrent requests that kept the workload's limits, for each cell; "" where none was searched."""
    rows = {name: most for name, cell in result["cells"].items() if (most := most_held(cell, workload))}
    if not rows:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _rows(list(rows), result)
        for at, (name, most) in enumerate(rows.items()):
            middle = statistics.median(most)
            axes.barh([at], [middle], height=0.66, color=BLACK if name == result["control"] else BLUE, linewidth=0)
            if len(most) > 1:
                axes.plot(most, [at] * len(most), "o", color=ORANGE, markersize=5, markeredgecolor="white", markeredgewidth=0.6)
            axes.annotate(f"{middle:g}", (max(most), at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=_FONT - 1, color=BLACK)
        axes.set_xlim(0, max(max(most) for most in rows.values()) * 1.18 or 1)
        axes.set_xlabel("most concurrent requests within the limits")
        return _svg(figure, f"Most concurrent requests within the limits of {workload}, for each cell")


def most_held(cell: CellResult, workload: str) -> list[int]:
    """What each search of `cell` found: the most concurrent requests that kept the limits; [] where none was made."""
    found = cell["slo"].get(workload)
    return found["most"] if found else []


def _median(cell: CellResult, workload: str, metric: str) -> float | None:
    found = cell["metrics"].get(workload, {}).get(metric)
    return found["median"] if found and math.isfinite(found["median"]) else None


def _thinned(series: Memory) -> tuple[list[float], list[float]] | None:
    """Seconds from the first sample and GiB, few enough to draw, with the peak among them."""
    times, gib = series["t_s"], series["gib"]
    if not times:
        return None
    step = max(1, math.ceil(len(times) / _MOST_LINES))
    picked = [max(range(at, min(at + step, len(gib))), key=gib.__getitem__) for at in range(0, len(gib), step)]
    return [times[at] - times[0] for at in picked], [gib[at] for at in picked]


def _short(name: str, most: int = _NAME) -> str:
    """`name` with its middle left out where it is too long: the ends are what tells names apart."""
    keep = most - 1
    return name if len(name) <= most else f"{name[:math.ceil(keep / 2)]}…{name[-(keep // 2):]}"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def _rows(labels: Sequence[str], result: Result) -> tuple[Figure, Axes]:
    """A figure with one named row for each label, the first on top; the control's name stands out."""
    figure, axes = _figure(_ROW * len(labels) + 80)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    for text, label in zip(axes.get_yticklabels(), labels, strict=True):
        if label == result["control"]:
            text.set_fontweight("bold")
    return figure, axes


def _log(axes: Axes, lowest: float, highest: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.15, highest * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest / lowest < 100 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _roomy(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Axes that begin where the data is, with room for labels around it."""
    for place, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        low, high = (edge(point[place] for point in points.values()) for edge in (min, max))
        room = (high - low) * (0.28 if place == 0 else 0.16) or abs(high) * 0.1 or 1.0
        limit(max(0.0, low - room) if low >= 0 else low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _label(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str], line: Sequence[str]) -> None:
    """Write each point's name right beside it where there is room, else further off with a line to it. Those without room for either stay without.

    `colours` says the order too. `line` are the points that a stepped line joins, which no name may cover.
    """
    figure.draw_without_rendering()  # the layout decides where a point lies
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in (axes.transData.transform(point) for point in points.values())]
    for (x, y), (next_x, next_y) in pairwise(axes.transData.transform([points[name] for name in line]) if line else ()):
        taken += [Bbox([[x, y - 2], [next_x, y + 2]]), Bbox([[next_x - 2, y], [next_x + 2, next_y]])]
    for name, colour in colours.items():
        for distance in _RINGS:
            if placed := _free_place(axes, points[name], _short(name), colour, distance, frame, taken):
                taken.append(placed)
                break


def _free_place(axes: Axes, point: tuple[float, float], text: str, colour: str, distance: float, frame: Bbox, taken: Sequence[Bbox]) -> Bbox | None:
    """Write `text` at `distance` from `point` where it covers nothing that is `taken`, and return what it covers; None where all is taken."""
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4} if distance > _RINGS[0] else None
    note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=_FONT - 1, color=colour, arrowprops=line)
    for degrees, across, along in _AROUND:
        note.xyann = (distance * math.cos(math.radians(degrees)), distance * math.sin(math.radians(degrees)))
        note.set(ha=across, va=along)
        note.get_window_extent()  # puts it in its place
        covers = Text.get_window_extent(note)  # without the line
        inside = frame.x0 <= covers.x0 and covers.x1 <= frame.x1 and frame.y0 <= covers.y0 and covers.y1 <= frame.y1
        if inside and not any(covers.overlaps(other) for other in taken):
            return covers
    note.remove()
    return None


def _legend(figure: Figure, count: int, handles: Sequence[Artist] = (), labels: Sequence[str] = ()) -> None:
    """The key above the plot, two names beside each other; the figure grows by it."""
    given = {"handles": handles, "labels": labels} if handles else {}
    figure.legend(loc="outside upper left", ncols=min(count, 2), frameon=False, fontsize=_FONT - 1, handlelength=1.1, **given)
    figure.set_figheight(figure.get_figheight() + 17 * math.ceil(count / 2) / 72)


def _svg(figure: Figure, title: str) -> str:
    """`figure` as an SVG element that can stand in a page beside others: no size of its own, and no identifiers but those it refers to itself."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # identifiers come of it: other than in every other figure, and the same each time
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    _, _, text = written.getvalue().partition("<svg ")
    head, _, body = text.partition(">")
    body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)  # it would hold for the whole page
    body = re.sub(r' id="[\w.]+_\d+"', "", body)
    body = body.replace("'DejaVu Sans'", _PAGE_FONT)
    box = head.partition('viewBox="')[2].partition('"')[0]
    return f'<svg viewBox="{box}" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" ' \
        f'aria-label="{html.escape(title)}">{body}'
