"""What a run recommends, and the profile that is made of it. All results are synthetic."""

import shutil
from pathlib import Path

import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.bench import recommend
from bundle.config import profiles, settings
from support.benchresults import CONTROL, SyntheticResult, build

KV = SyntheticResult(name="kv-fp8", axis="kv cache", sets=("ENGINE_KV_CACHE_DTYPE=fp8",), ratio=1.25)
SEQS = SyntheticResult(name="seqs-512", axis="sequences", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=1.1)
SLOWER = SyntheticResult(name="batched-2k", axis="batched tokens", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=2048",), ratio=0.8)
PENDING = SyntheticResult(name="connections", axis="toggles", sets=("CUDA_DEVICE_MAX_CONNECTIONS=32",), ratio=1.05)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle with the shipped env files and catalogues, and no site.env."""
    shutil.copytree(ROOT / "env", tmp_path / "env", ignore=shutil.ignore_patterns("site.env"))
    (tmp_path / "docker" / "engine").mkdir(parents=True)
    (tmp_path / "docker" / "engine" / "catalogue").symlink_to(ROOT / "docker" / "engine" / "catalogue")
    return tmp_path


def chosen(*cells: SyntheticResult) -> dict[str, str]:
    return {one["key"]: one["value"] for one in recommend.recommend(build(*cells))["set"]}


def test_a_faster_cell_is_recommended_with_figure_interval_workload_and_run() -> None:
    (found,) = recommend.recommend(build(KV))["set"]
    assert (found["key"], found["value"], found["cell"]) == ("ENGINE_KV_CACHE_DTYPE", "fp8", "kv-fp8")
    for part in ("1.25 times", "95 % interval 1.22 to 1.28", "on chat", "run 2026-01-02-synthetic", "P99 ITL no difference seen"):
        assert part in found["why"]


@pytest.mark.parametrize("cell", [
    SLOWER,
    SyntheticResult(name="noise", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=1.01),
    SyntheticResult(name="slow-itl", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=1.3, itl=1.2, itl_verdict="slower"),
    SyntheticResult(name="wrong", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=1.3, check="different"),
    SyntheticResult(name="failed", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=1.3, state="failed", reason="out of memory"),
    SyntheticResult(name="other-profile", profile="seed", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=1.3)], ids=lambda cell: cell.name)
def test_a_cell_that_is_no_gain_is_not_recommended(cell: SyntheticResult) -> None:
    assert chosen(cell) == {}


def test_the_fastest_cell_is_recommended_as_it_was_measured_and_no_other_added() -> None:
    assert chosen(SEQS, KV) == {"ENGINE_KV_CACHE_DTYPE": "fp8"}
    both = SyntheticResult(name="together", axis="together", sets=(*KV.sets, *SEQS.sets), ratio=1.3)
    assert chosen(SEQS, KV, both) == {"ENGINE_KV_CACHE_DTYPE": "fp8", "ENGINE_MAX_NUM_SEQS": "512"}
    found = recommend.recommend(build(SEQS, KV, both))["set"]
    assert "(together with ENGINE_MAX_NUM_SEQS=512)" in found[0]["why"]


def test_what_was_faster_each_for_itself_is_to_be_measured_at_once_the_best_of_each_axis() -> None:
    more = SyntheticResult(name="seqs-1024", axis="sequences", sets=("ENGINE_MAX_NUM_SEQS=1024",), ratio=1.2)
    beside = SyntheticResult(name="dtype", axis="sequences", sets=("ENGINE_DTYPE=half",), ratio=1.15)  # no contradiction, and still one axis
    cells, values = recommend.together(build(SEQS, more, beside, KV, SLOWER))
    assert (cells, values) == (["kv-fp8", "seqs-1024"], {"ENGINE_KV_CACHE_DTYPE": "fp8", "ENGINE_MAX_NUM_SEQS": "1024"})


def test_of_two_cells_that_contradict_each_other_the_one_that_gained_more_counts() -> None:
    both = SyntheticResult(name="both", axis="combined", sets=("ENGINE_MAX_NUM_SEQS=384", "ENGINE_KV_CACHE_DTYPE=fp8"), ratio=1.05)
    assert recommend.together(build(both, SEQS, PENDING))[0] == ["seqs-512", "connections"]


@pytest.mark.parametrize("cells", [(), (KV,), (KV, SLOWER), (
    KV, SEQS, SyntheticResult(name="both", axis="combined", sets=("ENGINE_MAX_NUM_SEQS=512", "ENGINE_KV_CACHE_DTYPE=fp8"), ratio=0.9))],
    ids=["none", "one", "one that gained", "two, and a cell has both"])
def test_without_two_that_gained_or_with_both_measured_already_there_is_nothing_to_measure_at_once(cells: tuple[SyntheticResult, ...]) -> None:
    assert recommend.together(build(*cells)) == ([], {})


def test_a_cell_that_left_requests_unanswered_is_not_recommended_however_fast() -> None:
    result = build(KV, SEQS)
    result["cells"]["kv-fp8"]["metrics"]["chat"]["success"] = {"median": 0.75, "low": 0.5, "high": 1.0, "values": [0.5, 1.0]}
    found = recommend.recommend(result)
    assert [one["cell"] for one in found["set"]] == ["seqs-512"]
    assert found["kept"][0]["why"] == "fp8 (cell kv-fp8): only 75.0 % of its requests were answered."


def test_only_the_first_workload_decides() -> None:
    result = build(KV)
    for row in result["comparisons"]:
        if row["workload"] == "chat":
            row["verdict"] = "no difference seen"
    assert recommend.recommend(result)["set"] == []


def test_it_is_said_whether_what_was_faster_was_measured_at_once() -> None:
    assert "all of them at once was not measured" in recommend.recommend(build(KV, SEQS))["note"]
    assert "at once" not in recommend.recommend(build(KV))["note"]
    worse = SyntheticResult(name="together", axis="together", sets=(*KV.sets, *SEQS.sets), ratio=0.9)
    found = recommend.recommend(build(KV, SEQS, worse))
    assert "measured at once, too (cell together): 0.90 times (95 % interval 0.87 to 0.93): slower" in found["note"]
    assert [one["key"] for one in found["set"]] == ["ENGINE_KV_CACHE_DTYPE"]


def test_a_faster_whole_profile_is_named_and_not_merged() -> None:
    found = recommend.recommend(build(SyntheticResult(name="all-of-latency", profile="latency", ratio=1.2)))
    assert found["set"] == []
    assert "whole profile latency (cell all-of-latency) gave 1.20 times" in found["note"]


def test_what_was_tried_and_no_better_is_kept_with_the_reason() -> None:
    failed = SyntheticResult(name="batched-64k", axis="batched tokens", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=65536",), state="failed", reason="OOM")
    (kept,) = recommend.recommend(build(SLOWER, failed))["kept"]
    assert (kept["key"], kept["value"]) == ("ENGINE_MAX_NUM_BATCHED_TOKENS", "8192")
    assert "2048 (cell batched-2k): 0.80 times" in kept["why"]
    assert "65536 (cell batched-64k): failed: OOM" in kept["why"]


def test_a_cell_that_changes_several_things_is_no_word_on_any_of_them_alone() -> None:
    stock = SyntheticResult(name="stock", sets=("ENGINE_MAX_NUM_BATCHED_TOKENS=2048", "ENGINE_QUANTIZATION="), ratio=0.7)
    kept = recommend.recommend(build(stock, SEQS, KV))["kept"]
    why = {one["key"]: one["why"] for one in kept}
    assert why["ENGINE_QUANTIZATION"].startswith("not set (cell stock, with 1 other change): 0.70 times")
    assert why["ENGINE_MAX_NUM_SEQS"].startswith("512 (cell seqs-512): 1.10 times")
    assert why["ENGINE_MAX_NUM_SEQS"].endswith("faster, but less so than kv-fp8.")


def test_other_answers_are_the_reason_whatever_the_speed() -> None:
    (kept,) = recommend.recommend(build(SyntheticResult(name="wrong", sets=("ENGINE_MAX_NUM_SEQS=512",), ratio=0.5, check="different")))["kept"]
    assert "its answers at temperature 0 are not the control's (2 of 6 are equal)" in kept["why"]


def test_answers_that_may_differ_are_recommended_with_the_warning() -> None:
    (found,) = recommend.recommend(build(SyntheticResult(name="kv", sets=KV.sets, ratio=1.2, check="may differ")))["set"]
    assert "quality was not measured" in found["why"]


def test_what_the_control_itself_sets_is_no_change_of_a_cell() -> None:
    control = SyntheticResult(name="control", axis="control", sets=("ENGINE_LOAD_FORMAT=dummy",))
    cell = SyntheticResult(name="seqs-512", sets=("ENGINE_LOAD_FORMAT=dummy", "ENGINE_MAX_NUM_SEQS=512"), ratio=1.2)
    found = recommend.recommend(build(cell, control=control))
    assert [one["key"] for one in found["set"]] == ["ENGINE_MAX_NUM_SEQS"]
    assert "ENGINE_LOAD_FORMAT=dummy" in found["note"]
    changed = SyntheticResult(name="real", sets=("ENGINE_LOAD_FORMAT=auto",), ratio=1.2)
    assert "The control ran with" not in recommend.recommend(build(changed, control=control))["note"]


def test_a_share_of_a_held_down_gpu_is_told_as_the_profile_would_say_it() -> None:
    result = build(SyntheticResult(name="auto", sets=("ENGINE_GPU_MEMORY_UTILIZATION=auto",), ratio=1.2))
    result["provenance"] |= {"card_gib": 32.0, "gpu_memory_gib": 128.0}
    result["cells"]["control"]["settings"]["ENGINE_GPU_MEMORY_UTILIZATION"] = "0.23250"
    (found,) = recommend.recommend(result)["set"]
    assert "tokens/s with 0.93," in found["why"]


def test_a_control_that_did_not_run_recommends_nothing() -> None:
    found = recommend.recommend(build(KV, control=SyntheticResult(name="control", state="failed")))
    assert found["set"] == []
    assert "control control was not measured" in found["note"]


def test_apply_changes_lines_in_place_and_the_profile_loads(root: Path) -> None:
    new = SyntheticResult(name="async-off", axis="scheduling", sets=("ENGINE_ASYNC_SCHEDULING=false",), ratio=1.3)
    all_of_it = SyntheticResult(name="together", axis="together", sets=(*KV.sets, *SEQS.sets, *PENDING.sets, *new.sets), ratio=1.4)
    path = recommend.apply(build(KV, SEQS, PENDING, new, all_of_it), "tuned", root)
    assert path == root / "env" / "tuned.env"
    lines, base = path.read_text().splitlines(), (root / "env" / "throughput.env").read_text().splitlines()
    assert "run 2026-01-02-synthetic" in lines[0]
    assert "synthetic GPU" in lines[0]
    assert "written by make bench-apply" in lines[0]
    at = lines.index("ENGINE_MAX_NUM_SEQS=512")
    assert any(line.startswith("# Measured: 1.40 times") for line in lines[at - 3:at])
    assert "ENGINE_MAX_NUM_SEQS=256" not in lines
    at = lines.index("CUDA_DEVICE_MAX_CONNECTIONS=32")  # it stood there commented out
    assert "# CUDA_DEVICE_MAX_CONNECTIONS=32" not in lines
    assert lines.index("# Read by nothing; use nothing.") > at
    assert lines.index("#### Measured: what the profile did not have") < lines.index("ENGINE_ASYNC_SCHEDULING=false")
    assert lines.index("ENGINE_KV_CACHE_DTYPE=fp8") < at  # in its own place, too
    changed = {"ENGINE_MAX_NUM_SEQS=auto", "# ENGINE_KV_CACHE_DTYPE=fp8", "# CUDA_DEVICE_MAX_CONNECTIONS=32"}
    assert [line for line in base if line not in lines] == [line for line in base if line in changed]
    assert max(map(len, lines)) <= 150
    loaded = settings.load("tuned", root=root, environ={})
    assert loaded.errors == ()
    assert (loaded.value("ENGINE_MAX_NUM_SEQS"), loaded.value("ENGINE_KV_CACHE_DTYPE")) == ("512", "fp8")


def test_a_setting_that_is_taken_away_becomes_empty(root: Path) -> None:
    path = recommend.apply(build(SyntheticResult(name="bf16", sets=("ENGINE_QUANTIZATION=",), ratio=1.2)), "tuned", root)
    assert path is not None
    assert "ENGINE_QUANTIZATION=" in path.read_text().splitlines()
    assert settings.load("tuned", root=root, environ={}).value("ENGINE_QUANTIZATION") == ""


def test_a_later_run_replaces_what_an_earlier_one_wrote(root: Path) -> None:
    recommend.apply(build(SEQS), "tuned", root)
    control = SyntheticResult(name="control", axis="control", profile="tuned")
    cell = SyntheticResult(name="seqs-768", sets=("ENGINE_MAX_NUM_SEQS=768",), profile="tuned", ratio=1.3)
    path = recommend.apply(build(cell, control=control, run="second"), "tuned", root)
    assert path is not None
    text = path.read_text()
    assert "ENGINE_MAX_NUM_SEQS=768" in text.splitlines()
    assert text.count("written by make bench-apply") == text.count("# Measured: ") == 1
    assert "2026-01-02-synthetic" not in text


@pytest.mark.parametrize("name", ["throughput", "base", "site", "Tuned", "../tuned", "a b", "", ".hidden"])
def test_a_name_that_is_no_free_profile_is_refused(name: str, root: Path) -> None:
    before = {path.name: path.read_bytes() for path in (root / "env").iterdir()}
    with pytest.raises(ConfigurationError):
        recommend.apply(build(KV), name, root)
    assert {path.name: path.read_bytes() for path in (root / "env").iterdir()} == before


def test_site_env_is_no_profile(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a profile"):
        recommend.apply(build(KV), "site", root)


def test_a_file_of_somebody_elses_is_not_written_over(root: Path) -> None:
    (root / "env" / "mine.env").write_text("# mine\n# written by make bench-apply, says a comment further down\n")
    with pytest.raises(ConfigurationError, match="did not write it"):
        recommend.apply(build(KV), "mine", root)
    assert (root / "env" / "mine.env").read_text().startswith("# mine\n")


@pytest.mark.parametrize("sets", ["ENGINE_MAX_NUM_SEQS=many", "ENGINE_NO_SUCH_FLAG=1", "ENGINE_MAX_NUM_SEQS=1\nHOST_PROJECT=x"])
def test_a_profile_that_would_have_errors_is_not_left_there(sets: str, root: Path) -> None:
    with pytest.raises(ConfigurationError):
        recommend.apply(build(SyntheticResult(name="bad", sets=(sets,), ratio=1.2)), "tuned", root)
    assert "tuned" not in profiles.names(root)
    recommend.apply(build(KV), "tuned", root)
    good = (root / "env" / "tuned.env").read_bytes()
    with pytest.raises(ConfigurationError):
        recommend.apply(build(SyntheticResult(name="bad", sets=(sets,), ratio=1.2)), "tuned", root)
    assert (root / "env" / "tuned.env").read_bytes() == good
    assert list((root / "env").glob("*.new")) == []


def test_a_profile_that_this_bundle_does_not_have_is_named(root: Path) -> None:
    control = SyntheticResult(name="control", profile="gone")
    with pytest.raises(ConfigurationError, match=r"there is no env/gone\.env"):
        recommend.apply(build(SyntheticResult(name="kv", profile="gone", sets=KV.sets, ratio=1.2), control=control), "tuned", root)


def test_nothing_to_change_writes_nothing_and_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.apply(build(SLOWER), "tuned", root) is None
    assert "keep the profile throughput as it is" in capsys.readouterr().out
    assert "tuned" not in profiles.names(root)


def test_the_control_alone_is_enough() -> None:
    assert recommend.recommend(build(control=CONTROL))["set"] == []
