"""Every alert rule fires on what it is for and is quiet on what lies next to it, in Prometheus' own rule tester."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle import ROOT
from bundle.config import settings
from support import image as engine_image
from support.promql import unknown

CASES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())
RULES = [rule for group in yaml.safe_load((ROOT / "docker/monitoring/rules.yml").read_text())["groups"] for rule in group["rules"]]
ALWAYS = "Watchdog"


@cache
def image() -> str:
    return settings.load("cpu").value("IMAGE_MONITORING")


def promtool(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["docker", "run", "--rm", "--network=none", "--user", "0", "--volume", f"{folder}:/work", "--entrypoint", "sh", image(),
                           "-c", f"python3 /opt/bundle/serve.py --render /work/rendered && cd /work && {command}"],
                          capture_output=True, text=True, check=False, timeout=300)


def fired(folder: Path, case: str) -> set[str]:
    """The rules that fire on their `case` (fires or quiet). promtool is told to expect nothing; what it got instead is what fires."""
    tests = [{"name": name, "interval": "1m", "input_series": [{"series": series, "values": values} for series, values in given[case].items()],
              "alert_rule_test": [{"eval_time": given.get("at", "20m"), "alertname": name, "exp_alerts": []}]} for name, given in CASES.items()]
    (folder / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rendered/rules.yml"], "evaluation_interval": "1m", "tests": tests}))
    done = promtool(folder, "promtool test rules tests.yml")
    assert ("SUCCESS" in done.stdout) or ("FAILED" in done.stdout + done.stderr), done.stderr
    return set(re.findall(r'Labels:\{alertname="(\w+)"', done.stdout + done.stderr))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rules")


def test_every_rule_has_its_runbook_and_its_case() -> None:
    for rule in RULES:
        assert rule["annotations"].keys() == {"means", "look", "do"}, rule["alert"]
        assert all(rule["annotations"].values())
        assert rule["labels"]["severity"] in ("page", "ticket", "info", "none")
    assert CASES.keys() | {ALWAYS} == {rule["alert"] for rule in RULES}


def test_every_metric_of_the_engine_that_is_asked_for_is_in_the_cuda_image_too() -> None:
    """By that vLLM's own registry. What the CPU image's has, and everything else, is asked of the running engine: tests/e2e/test_monitoring.py."""
    probe = ROOT / "tests" / "support" / "metrics_probe.py"
    said = engine_image.answer(settings.load("throughput").image_engine, "/opt/venv/bin/python", "/probe.py", mounts=[(probe, "/probe.py")])
    there = {name: {*labels, "job", "replica", "instance"} for name, labels in json.loads(said.splitlines()[-1]).items()}
    panels = json.loads((ROOT / "docker/gateway/page/panels.json").read_text())
    expressions = [*(one["expr"] for panel in panels["panels"] for one in panel["series"]), *(re.sub(r"@\w+@", "1", rule["expr"]) for rule in RULES)]
    missing = {each for expression in expressions for each in unknown(expression, there) if each.startswith("vllm:")}
    assert not missing
    assert sum("vllm:" in expression for expression in expressions) > 15


def test_every_rule_fires_on_what_it_is_for(folder: Path) -> None:
    assert fired(folder, "fires") == CASES.keys()


def test_no_rule_fires_on_what_lies_next_to_it(folder: Path) -> None:
    assert not fired(folder, "quiet")
