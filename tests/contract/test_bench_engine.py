"""The load agent and the probe beside a real engine, where the bundle runs them: inside its container. Times are noise there, counts are not."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bundle.bench import matrix
from bundle.bench.agent import Agent, AgentError
from bundle.bench.rundata import Answer
from support.project import Project, wait_until

LIMIT_S = 300.0
ENGINE = "http://127.0.0.1:8000"
MODEL = "/opt/bundle/selftest-model"
BLOCK = 128
"""Tokens in a block of the CPU engine's cache: no shorter prefix is found again."""

RANDOM = {"dataset-name": "random", "random-input-len": "300", "random-output-len": "8", "num-prompts": "12"}
SHARED_PREFIX = {"dataset-name": "prefix_repetition", "prefix-repetition-prefix-len": str(4 * BLOCK), "prefix-repetition-suffix-len": "32",
                 "prefix-repetition-num-prefixes": "2", "prefix-repetition-output-len": "8", "num-prompts": "12", "ignore-eos": "true"}


@pytest.fixture(scope="module")
def container(served: Project) -> str:
    return served.containers()["engine"].id


def argv(container: str, script: str) -> list[str]:
    return ["docker", "exec", "-i", container, "/opt/venv/bin/python", f"/opt/bundle/{script}.py"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent") / "log"


@pytest.fixture(scope="module")
def agent(container: str, log: Path) -> Iterator[Agent]:
    """One agent for every test: it is made for many loads."""
    with Agent(argv(container, "benchagent"), log=log, ready_limit_s=LIMIT_S) as started:
        yield started


def load(agent: Agent, options: Mapping[str, str], *, seed: int, base_url: str = ENGINE) -> Answer:
    return agent.load({**options, "seed": str(seed)}, base_url=base_url, model=MODEL, served_model_name="selftest", limit_s=LIMIT_S)


@pytest.mark.parametrize(("options", "inputs"), [
    (RANDOM | {"max-concurrency": "4"}, 12 * 300),
    (RANDOM | {"request-rate": "20"}, 12 * 300),
    (SHARED_PREFIX | {"max-concurrency": "4"}, 12 * (4 * BLOCK + 32)),
], ids=["closed loop", "open loop", "shared prefix"])
def test_every_request_of_a_load_is_counted_and_timed(agent: Agent, options: dict[str, str], inputs: int) -> None:
    found = load(agent, options, seed=1)
    assert found["requests"] == {"asked": 12, "completed": 12, "failed": 0, "errors": []}
    assert found["tokens"]["output"] == 12 * 8
    assert found["tokens"]["input"] == pytest.approx(inputs, rel=0.05)  # a random sequence of tokens, written out, may be read as one more or less
    metrics, quantiles = found["metrics"], found["quantiles"]
    assert metrics["output_tokens_per_s"] == pytest.approx(12 * 8 / found["seconds"])
    for name in ("ttft_ms", "itl_ms", "e2e_ms"):
        assert len(quantiles[name]) == 101
        assert quantiles[name] == sorted(quantiles[name])
        assert quantiles[name][99] == metrics[f"{name}_p99"]
    assert 0 < quantiles["ttft_ms"][0] <= quantiles["e2e_ms"][100] <= 1e3 * found["seconds"]
    assert metrics["preemptions"] == 0
    assert metrics["queue_ms_mean"] >= 0


def test_its_figures_are_those_that_vllm_prints_of_the_same_load(agent: Agent, log: Path) -> None:
    before = log.stat().st_size
    found = load(agent, RANDOM | {"max-concurrency": "3"}, seed=2)
    with log.open("rb") as file:
        file.seek(before)
        table = dict(re.findall(r"(?m)^([A-Z][^:\n]*):\s+([\d.]+)\s*$", file.read().decode()))
    printed = {"output_tokens_per_s": "Output token throughput (tok/s)", "total_tokens_per_s": "Total token throughput (tok/s)",
               "requests_per_s": "Request throughput (req/s)"} | {
        f"{name}_ms_p{p}": f"P{p} {title} (ms)" for name, title in (("ttft", "TTFT"), ("itl", "ITL"), ("tpot", "TPOT"), ("e2e", "E2EL"))
        for p in (50, 95, 99)}
    theirs = {name: float(table[text]) for name, text in printed.items()}
    assert {name: found["metrics"][name] for name in printed} == pytest.approx(theirs, abs=0.006)
    assert found["seconds"] == pytest.approx(float(table["Benchmark duration (s)"]), abs=0.006)


def test_the_engines_gauges_show_the_load(agent: Agent) -> None:
    found = load(agent, RANDOM | {"random-output-len": "400", "num-prompts": "40", "max-concurrency": "20"}, seed=3)
    metrics, series = found["metrics"], found["series"]
    assert {len(values) for values in series.values()} == {len(series["t_s"])}
    assert 1 <= metrics["running_mean"] <= metrics["running_max"] <= 16  # the profile's ENGINE_MAX_NUM_SEQS
    assert metrics["waiting_max"] >= 1
    assert 0 < metrics["kv_cache_use_max"] <= 1
    assert metrics["queue_ms_mean"] > 1


def test_a_fresh_seed_finds_nothing_in_the_prefix_cache_and_the_same_seed_does(agent: Agent) -> None:
    first, again, fresh = (load(agent, RANDOM, seed=seed)["metrics"]["prefix_hit_rate"] for seed in (4, 4, 5))
    assert first < 0.1
    assert again > 0.7  # two of the three blocks that a prompt begins
    assert fresh < 0.1
    assert load(agent, SHARED_PREFIX, seed=6)["metrics"]["prefix_hit_rate"] > 0.5


def test_outputs_at_temperature_0_are_the_same_each_time(agent: Agent) -> None:
    prompts = ["The first prompt", "Another one"]
    first, again = (agent.outputs(prompts, base_url=ENGINE, served_model_name="selftest", max_tokens=12, limit_s=LIMIT_S) for _ in range(2))
    assert first == again
    assert len(set(first)) == 2


def test_the_models_shape_is_read_where_the_engine_has_it(agent: Agent) -> None:
    found = agent.model(MODEL, limit_s=LIMIT_S)
    assert found["config"]["model_type"] == "qwen3"
    assert 4e6 < found["weights_bytes"] < 10e6


def test_a_load_that_the_engine_refuses_is_an_answer(agent: Agent) -> None:
    found = load(agent, RANDOM | {"random-input-len": "4000"}, seed=7)  # longer than the model's context in this profile
    assert found["requests"] == {"asked": 12, "completed": 0, "failed": 12, "errors": ["12 × Bad Request"]}
    assert found["quantiles"] == {"ttft_ms": [], "itl_ms": [], "e2e_ms": []}


def test_a_load_on_an_engine_that_is_gone_is_an_answer(agent: Agent) -> None:
    found = load(agent, RANDOM, seed=8, base_url="http://127.0.0.1:9")
    assert found["requests"]["completed"] == 0
    assert "Cannot connect to host 127.0.0.1:9" in found["requests"]["errors"][0]


def test_vllms_generator_takes_every_workload_of_the_matrix(agent: Agent) -> None:
    for name, workload in matrix.load().workloads.items():
        # Nobody is there to be asked: what counts is that the options are taken and prompts are made of them.
        found = load(agent, {**workload.load, "num-prompts": "8", "request-rate": "inf"}, seed=9, base_url="http://127.0.0.1:9")
        assert found["requests"]["failed"] == 8, name


def test_an_unknown_option_is_refused_with_its_name(agent: Agent) -> None:
    with pytest.raises(AgentError, match="unrecognized arguments: --no-such=1"):
        load(agent, RANDOM | {"no-such": "1"}, seed=10)


def test_an_agent_whose_client_is_gone_does_not_load_the_engine_on(container: str, tmp_path: Path) -> None:
    def running() -> int:
        processes = subprocess.run(["docker", "top", container, "-o", "pid,args"], capture_output=True, text=True, check=True, timeout=60).stdout
        return processes.count("/opt/bundle/benchagent.py")

    before = running()
    agent = Agent(argv(container, "benchagent"), log=tmp_path / "log", ready_limit_s=LIMIT_S)
    assert running() == before + 1
    with pytest.raises(AgentError, match="was killed"):
        agent.load(RANDOM | {"request-rate": "0.1"}, base_url=ENGINE, model=MODEL, served_model_name="selftest", limit_s=3)
    agent.close()
    wait_until(lambda: running() == before, deadline_s=30, what="the agent in the container ends")


def test_the_probe_measures_the_device_beside_the_engine(container: str) -> None:
    done = subprocess.run(argv(container, "benchprobe"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["device"] == "cpu"
    assert set(found["matmul_tflops"]) == {"bf16"}
    assert 0.1 < found["copy_gb_s"] < 10_000
    assert 1e-4 < found["matmul_tflops"]["bf16"] < 1000
    assert found["seconds"] > 0
