"""The benchmark on the real CPU engine: interrupted, resumed, reported, compared and applied; and without Docker, inside the engine's image."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from support.project import wait_until

pytestmark = pytest.mark.timeout(2700)
OPTIONS = ("--suite", "cpu", "--cell", "cpu-sequences-2", "--cell", "cpu-too-long", "--workload", "cpu-chat", "--workload", "cpu-shared-prefix",
           "--rounds", "2", "--repeats", "1")


def bench(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "scripts/bench.py", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def containers() -> list[str]:
    listed = subprocess.run(["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if name.startswith("bench-")]


def volumes() -> list[str]:
    listed = subprocess.run(["docker", "volume", "ls", "--format", "{{.Name}}"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if name.startswith("bench-")]


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[Path, dict[str, Any], str]]:
    """A run that was interrupted after its first measured leg and then went on: its folder, its result, and what the second call said."""
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}"
    folder = ROOT / "reports" / name
    begun = bench(*OPTIONS, "--run", name)
    try:
        wait_until(lambda: len(list(folder.glob("legs/*.json"))) > 1 or begun.poll() is not None, deadline_s=600,
                   what="the cold start and the first measured one are on disk")
        begun.send_signal(signal.SIGINT)
        _, said = begun.communicate(timeout=300)
        assert begun.returncode == 130, said
        assert f"RUN={name}" in said
        assert not containers()
        kept = len(list(folder.glob("legs/*.json")))
        resumed = bench(*OPTIONS, "--run", name, "--json")
        out, said = resumed.communicate(timeout=1500)
        assert resumed.returncode == 0, said
        assert f"{kept} starts are done" in said
        yield folder, json.loads(out), said
    finally:
        if begun.poll() is None:
            begun.send_signal(signal.SIGINT)  # it takes away what it has started
            begun.wait(timeout=300)
        shutil.rmtree(folder, ignore_errors=True)


def test_every_cell_is_measured_or_says_why_not(measured: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = measured
    assert result["complete"]
    states = {name: cell["state"] for name, cell in result["cells"].items()}
    assert states[result["control"]] == "measured"
    assert sorted(set(states.values())) == ["failed", "measured"]
    failed = [cell for cell in result["cells"].values() if cell["state"] == "failed"]
    assert all(cell["reason"] and cell["remedy"] for cell in failed)


def test_real_figures_stand_behind_each_comparison(measured: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = measured
    control = result["cells"][result["control"]]
    for workload in result["workloads"]:
        metrics = control["metrics"][workload]
        assert metrics["output_tokens_per_s"]["median"] > 0
        assert metrics["ttft_ms_p99"]["median"] >= metrics["ttft_ms_p50"]["median"] > 0
        assert len(metrics["output_tokens_per_s"]["values"]) == 2
    others = {row["cell"] for row in result["comparisons"] if row["metric"] == "output_tokens_per_s"}
    assert others >= {name for name, cell in result["cells"].items() if cell["state"] == "measured"} - {result["control"]}
    assert all(row["verdict"] in ("faster", "slower", "no difference seen", "wrong output", "not measured") for row in result["comparisons"])


def test_starts_are_split_into_phases_cold_and_warm(measured: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = measured
    starts = [start for start in result["cells"][result["control"]]["starts"] if start["ok"]]
    assert [start["cold"] for start in starts] == [True, *[False] * (len(starts) - 1)]
    for start in starts:
        assert len(start["phases"]) >= 4
        assert sum(seconds for _, seconds in start["phases"]) == pytest.approx(start["seconds"], abs=0.1)


def test_the_report_says_what_it_was_measured_on(measured: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, _ = measured
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for said in (result["provenance"]["engine"]["vllm"], result["run"], result["control"]):
        assert said in page
        assert said in text
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_nothing_of_it_is_left_running(measured: tuple[Path, dict[str, Any], str]) -> None:
    assert not containers()
    assert not volumes()


def test_a_run_is_not_slower_than_itself_and_a_slower_one_is_told(measured: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    folder, result, _ = measured
    slower = json.loads(json.dumps(result))
    for cell in slower["cells"].values():
        for metrics in cell["metrics"].values():
            metrics["output_tokens_per_s"]["values"] = [value / 10 for value in metrics["output_tokens_per_s"]["values"]]
    (tmp_path / "result.json").write_text(json.dumps(slower))
    same = subprocess.run([sys.executable, "scripts/bench_compare.py", folder.name, folder.name], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert same.returncode == 0, same.stderr
    worse = subprocess.run([sys.executable, "scripts/bench_compare.py", folder.name, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                           check=False)
    assert worse.returncode == 6, worse.stdout
    assert "output_tokens_per_s" in worse.stdout


def test_without_docker_the_same_suite_runs_where_vllm_is_installed(tmp_path: Path, no_leftovers: None) -> None:
    copy = tmp_path / "bundle"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "reports", "tests", "models")
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / "reports").mkdir()
    for path in (tmp_path, *copy.rglob("*"), copy):
        path.chmod(0o777 if path.is_dir() else 0o666)
    name = f"test-{os.getpid()}-bench-process"
    try:
        done = subprocess.run(
            ["docker", "run", "--rm", "--name", name, "--network", "none", "--volume", f"{copy}:/bundle", "--workdir", "/bundle", "--shm-size", "1g",
             "--entrypoint", "python3", "vllm-bundle/engine:cpu-0.32.0", "scripts/bench.py", "--runtime", "process", "--suite", "cpu",
             "--cell", "cpu-sequences-2", "--cell", "cpu-too-long", "--workload", "cpu-chat", "--rounds", "1", "--repeats", "1", "--run", "pod",
             "--set", "ENGINE_MODEL=/opt/bundle/selftest-model"],
            capture_output=True, text=True, check=False, timeout=900)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on with the packages of" in done.stderr
    assert "no report is written here" in done.stderr
    legs = [json.loads(path.read_text()) for path in sorted((copy / "reports/pod/legs").glob("*.json"))]
    assert [(leg["cell"], leg["start"]["ok"], len(leg["samples"])) for leg in legs] == [
        ("cpu", True, 0), ("cpu", True, 1), ("cpu-sequences-2", True, 1), ("cpu-too-long", False, 0)]
    assert legs[1]["samples"][0]["metrics"]["output_tokens_per_s"] > 0
    assert json.loads((copy / "reports/pod/run.json").read_text())["provenance"]["runtime"] == "process"
