"""The report of a run: what it says, that both forms say it, and that the page needs nothing else. All results are synthetic."""

import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bundle.bench import analysis, plots, report
from bundle.bench.rundata import Result
from support import benchruns
from support.benchresults import SyntheticResult, build

KV = SyntheticResult(name="kv-fp8", axis="kv cache", sets=("ENGINE_KV_CACHE_DTYPE=fp8",), ratio=1.25)
WRONG = SyntheticResult(name="backend-x", axis="attention", sets=("ENGINE_ATTENTION_BACKEND=X",), ratio=1.4, check="different")
FAILED = SyntheticResult(name="batched-64k", axis="batched", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=65536",), state="failed",
                         reason="<script>out of | memory</script>\nsecond line", remedy="lower it & retry")
NO_CONTROL = SyntheticResult(name="control", state="failed", reason="the engine ended", remedy="make logs")
VOID = {"meta", "br", "path", "use", "rect", "input", "link"}


class Page(HTMLParser):
    """What a page loads, what it is made of, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "srcset") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is about words: drawing takes most of the time."""
    for name in ("throughput_against_latency", "distribution", "memory", "start_phases", "roofline", "concurrency"):
        monkeypatch.setattr(plots, name, lambda *_: "")


def texts(result: Result, folder: Path) -> tuple[str, str]:
    report.write(folder, result)
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def answer(*cells: SyntheticResult, **changes: Any) -> str:
    return " ".join(report.answer(build(*cells, **changes)))


CASES: dict[str, Callable[[], Result]] = {
    "usual": lambda: build(KV, WRONG, FAILED, workloads=("chat",)), "only the control": lambda: build(workloads=("chat",)),
    "all failed": lambda: build(FAILED, control=NO_CONTROL), "no GPU": lambda: build(KV, gpu=False, workloads=("chat",)),
    "nothing known": lambda: build(KV, workloads=("chat",), provenance={}, model={}, ceilings={}, starts={}, comparisons=[])}


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_whole_and_needs_nothing_else(case: str, tmp_path: Path) -> None:
    _, html = texts(CASES[case](), tmp_path)
    page = Page(html)
    assert page.open == []
    assert page.outside == []
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r'(?:xlink:href="#|url\(#|href="#)([^")]+)', html)) <= set(page.ids)


def test_an_analysed_run_becomes_a_report(tmp_path: Path) -> None:
    cells, chat = (benchruns.CONTROL, benchruns.FASTER, benchruns.WRONG, benchruns.FAILED), {"chat": benchruns.WORKLOADS["chat"]}
    markdown, html = texts(analysis.analyse(benchruns.write(tmp_path / "synthetic-run", cells=cells, workloads=chat)), tmp_path)
    assert "`kv-fp8` is fastest on chat" in markdown
    plots_said = re.findall(r"report\.html has (\d+) plots? here", markdown)
    assert html.count("<svg ") == sum(map(int, plots_said)) == 2 + 3 + 1 + 1 + 1 + 1


def test_both_forms_say_the_same(no_plots: None, tmp_path: Path) -> None:
    markdown, html = texts(build(KV, WRONG, FAILED), tmp_path)
    headings = re.findall(r"^##+ (.*)$", markdown, re.MULTILINE)
    assert headings == re.findall(r"<h[23] [^>]*>(.*?)</h[23]>", html)
    assert [name for name in headings if name not in ("chat (decides)", "long-prompt")] == [
        "What it was measured on", "Cells", "This host beside the published runs", "What did not run", "Are the answers the same?",
        "How good are the answers?", "Throughput against latency", "Latency",
        "GPU memory over time", "Start", "Distance from the limit", "Concurrency within limits", "What the engine said", "Queue and caches",
        "GPU memory and energy", "Recommended settings", "Where it comes from", "Repeat it"]
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and not line.startswith(("| cell", "| ---", "|  |"))]
    page = unescape(re.sub(r"</?(code|strong)>", "", html)).replace("\n", " ")
    assert len(rows) > 60
    for row in rows:
        for cell in re.split(r"(?<!\\)\|", row.strip("| ")):
            assert unescape(re.sub(r"[`*\\]", "", cell.strip())) in page


def test_the_answer_comes_first_with_interval_and_what_to_do(no_plots: None, tmp_path: Path) -> None:
    markdown, html = texts(build(KV), tmp_path)
    said = markdown.split("\n## ")[0]
    for part in ("`kv-fp8` is fastest on chat", "1.25 times (95 % interval 1.22 to 1.28)", "3,250 against 2,600",
                 "`make bench-apply RUN=2026-01-02-synthetic`", "`ENGINE_KV_CACHE_DTYPE=fp8`"):
        assert part in said
    assert html.index("is fastest on chat") < html.index("What it was measured on")


def test_the_call_that_repeats_a_run_has_its_options(no_plots: None, tmp_path: Path) -> None:
    given = {"env_files": ["my own.env"], "sets": ["ENGINE_LOAD_FORMAT=dummy"]}
    markdown, _ = texts(build(KV, options=given), tmp_path)
    assert "--suite default --rounds 2 --repeats 3 --env-file 'my own.env' --set ENGINE_LOAD_FORMAT=dummy --run again" in markdown


def test_requests_that_failed_are_said_first() -> None:
    result = build(KV)
    result["cells"]["kv-fp8"]["metrics"]["long-prompt"]["success"] = {"median": 0.995, "low": 0.99, "high": 1.0, "values": [0.99, 1.0]}
    assert "**Requests failed**: `kv-fp8` on long-prompt (99.5 % answered)." in " ".join(report.answer(result))


def test_wrong_output_is_never_the_fastest() -> None:
    said = answer(KV, WRONG)
    assert "`kv-fp8` is fastest" in said
    assert "**Wrong output**: `backend-x`" in said


def test_a_fastest_cell_that_is_not_recommended_says_why() -> None:
    said = answer(SyntheticResult(name="batched", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=1",), ratio=1.2, itl=1.5, itl_verdict="slower"))
    assert "not recommended: 1.20 times" in said
    assert "P99 ITL is 1.50 times" in said
    assert "bench-apply" not in said


def test_no_difference_says_what_would_have_shown() -> None:
    said = answer(SyntheticResult(name="toggle", sets=("CUDA_TENSOR_CORES=1",), ratio=1.005))
    assert "No cell was faster than `control`" in said
    assert "An effect of 2.1 %" in said
    assert "Keep the profile `throughput`" in said


def test_without_a_control_nothing_is_compared() -> None:
    said = answer(FAILED, control=NO_CONTROL)
    assert "Nothing can be compared" in said
    assert "The engine ended. Make logs." in said


def test_a_run_that_is_not_complete_says_so_first() -> None:
    assert answer(KV, complete=False).startswith("**This run is not complete**")


def test_the_fastest_stands_on_top_and_wrong_output_last(no_plots: None, tmp_path: Path) -> None:
    markdown, _ = texts(build(KV, WRONG, SyntheticResult(name="slow", sets=("ENGINE_MAX_NUM_SEQS=1",), ratio=0.5)), tmp_path)
    table = markdown.split("### chat (decides)")[1].split("###")[0]
    assert re.findall(r"^\| (\w[\w-]*) \|", table, re.MULTILINE)[1:] == ["kv-fp8", "control", "slow", "backend-x"]
    assert "| 3,250 (3,201–3,299) | 1.25 (1.22–1.28) | faster | 154 (better) | 24 | 2.1 % |" in table


def test_what_is_not_known_is_called_not_measured(no_plots: None, tmp_path: Path) -> None:
    markdown, _ = texts(CASES["nothing known"](), tmp_path)
    for name in ("GPU", "driver", "GPU memory", "engine", "model's shape", "images", "git commit", "matrix"):
        assert f"| {name} | not measured |" in markdown
    without, _ = texts(build(KV, gpu=False), tmp_path)
    assert "## GPU memory over time\n\nnot measured" in without
    assert "None" not in without + markdown
    assert "nan" not in without.lower().split()


def test_a_failure_keeps_its_reason_and_can_do_no_harm_to_the_page(no_plots: None, tmp_path: Path) -> None:
    markdown, html = texts(build(FAILED), tmp_path)
    assert "| batched-64k | failed | &lt;script>out of \\| memory&lt;/script> second line | lower it & retry |" in markdown
    assert "&lt;script&gt;out of | memory&lt;/script&gt;" in html


def test_a_held_down_gpu_and_random_weights_are_said_at_the_top(no_plots: None, tmp_path: Path) -> None:
    result = build(KV, side_by_side=3)
    result["provenance"] |= {"gpu": "NVIDIA H200", "card_gib": 31.36}
    markdown, _ = texts(result, tmp_path)
    assert "NVIDIA H200 held to 31.36 GiB; no claim about another GPU" in markdown
    assert "random weights" in markdown
    assert "3 side by side on one GPU" in markdown
    result["cells"]["control"]["settings"].pop("ENGINE_LOAD_FORMAT")
    assert "random weights" not in texts(result, tmp_path)[0]


def test_how_to_repeat_it_names_what_the_run_was_made_with(no_plots: None, tmp_path: Path) -> None:
    result = build(KV, side_by_side=3)
    result["provenance"] |= {"runtime": "process", "card_gib": 31.36}
    markdown, _ = texts(result, tmp_path)
    command = next(line for line in markdown.splitlines() if "scripts/bench.py" in line)
    assert command.split()[2:] == ["--suite", "default", "--runtime", "process", "--card-gib", "31.36", "--side-by-side", "3", "--rounds", "2",
                                   "--repeats", "3", "--run", "again"]
    assert f"git checkout {'2' * 40}" in markdown


def test_why_the_limit_is_not_known_is_said(no_plots: None, tmp_path: Path) -> None:
    result = build(KV)
    result["cells"]["kv-fp8"] |= {"roofline": {}, "roofline_unknown": "no rate was measured"}
    assert "Not computed for `kv-fp8`: no rate was measured" in texts(result, tmp_path)[0]


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    points = {"quick": (1.0, 10.0), "worse": (2.0, 9.0), "fast": (3.0, 20.0), "same-slower": (3.0, 15.0), "slow": (4.0, 20.0)}
    assert plots.front(points) == ["quick", "fast"]
    assert plots.front({}) == []


def test_names_beside_points_do_not_cover_each_other() -> None:
    far = SyntheticResult(name="far", sets=("ENGINE_MAX_NUM_SEQS=1",), ratio=2, itl=2)
    crowd = [SyntheticResult(name=f"a-cell-{number:02}", sets=(f"ENGINE_MAX_NUM_SEQS={number}",), ratio=1 + number / 200, itl=1 + number / 300)
             for number in range(8)]
    svg = plots.throughput_against_latency(build(far, *crowd), "chat", "itl_ms_p99", "P99 ITL")
    boxes = []
    for style, x, y, name in re.findall(r'<text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>(a-cell-\d+|control|far)<', svg):
        width = 5.5 * len(name)  # no less than that at a size of 11
        left = float(x) - (width if "anchor: end" in style else width / 2 if "anchor: middle" in style else 0)
        boxes.append((left, left + width, float(y) - 9, float(y)))
    assert len(boxes) >= 4
    for at, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[:at]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


@pytest.mark.parametrize(("slowest", "said"), [(21.0, True), (19.0, False)])
def test_an_axis_that_is_logarithmic_says_so(slowest: float, said: bool) -> None:
    result = build()
    result["cells"]["control"]["quantiles"]["chat"]["ttft_ms"] = [1.0] * 99 + [slowest] * 2
    assert ("time to first token, ms (logarithmic scale)" in plots.distribution(result, "chat", "ttft_ms")) is said


def test_text_stays_text_and_a_plot_comes_out_the_same_each_time() -> None:
    result = build(KV, SyntheticResult(name="a<b&c", sets=("ENGINE_MAX_NUM_SEQS=1",), ratio=0.9))
    svg = plots.distribution(result, "chat", "ttft_ms")
    assert ">kv-fp8</text>" in svg
    assert ">a&lt;b&amp;c</text>" in svg
    assert svg == plots.distribution(result, "chat", "ttft_ms")


@pytest.mark.parametrize("seconds", [0, 1])
def test_memory_keeps_its_peak_when_it_is_thinned(seconds: int) -> None:
    gib = [1.0] * 5000
    gib[2345] = 30.0
    series = plots._thinned({"t_s": [seconds + 0.5 * at for at in range(5000)], "gib": gib})
    assert series is not None
    assert len(series[0]) <= 300
    assert max(series[1]) == 30.0
    assert series[0][0] == 0


def test_nothing_to_plot_is_no_plot() -> None:
    result = build(control=NO_CONTROL)
    assert plots.memory(result) == plots.start_phases(result) == plots.roofline(result, "chat") == plots.concurrency(result, "chat") == ""
    assert plots.throughput_against_latency(result, "chat", "itl_ms_p99", "P99 ITL") == plots.distribution(result, "chat", "itl_ms") == ""
