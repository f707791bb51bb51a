"""The load agent and its client as processes: benchagent.py with a fake vLLM, the client with fake agents. The real vLLM is in tests/contract."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.bench.agent import Agent, AgentError
from bundle.bench.rundata import Answer
from fake_engine import FakeEngine
from support.project import wait_until

LIMIT_S = 60.0

FAKE_VLLM = {
    "vllm/__init__.py": "print('printed by fake vLLM at import')\n__version__ = '1.fake'\n",
    "torch/__init__.py": "__version__ = '2.fake'\n",
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
    "vllm/benchmarks/__init__.py": "",
    # What vLLM's generator returns, except that `fake-result` says what; `fake-prepared` and `fake-wait` name files to wait for,
    # before its first request and before its end.
    "vllm/benchmarks/serve.py": """
import json, os, time
def add_cli_args(parser):
    for name in ("base-url", "model", "served-model-name", "percentile-metrics", "metric-percentiles",
                 "fake-result", "fake-prepared", "fake-wait", "fake-end"):
        parser.add_argument("--" + name)
    for name in ("num-prompts", "num-warmups", "ready-check-timeout-sec", "seed"):
        parser.add_argument("--" + name, type=int)
    for name in ("disable-tqdm", "save-detailed", "ignore-eos"):
        parser.add_argument("--" + name, action="store_true")
def main(arguments):
    print("printed by fake vLLM:", vars(arguments))
    os.write(1, b"written to descriptor 1 by fake vLLM\\n")
    if arguments.fake_end:
        os._exit(int(arguments.fake_end))
    result = json.loads(arguments.fake_result or "{}")
    while arguments.fake_prepared and not os.path.exists(arguments.fake_prepared):
        time.sleep(0.01)
    started = time.perf_counter()
    if arguments.fake_wait:
        open(arguments.fake_wait + ".begun", "w").close()
        while not os.path.exists(arguments.fake_wait):
            time.sleep(0.01)
    if not result:
        raise RuntimeError("fake failure inside vLLM")
    return {"duration": time.perf_counter() - started, "start_times": [started for _ in result["errors"]]} | result
""",
}

ONE_REQUEST = {"duration": 2.0, "ttfts": [0.25], "itls": [[0.125, 0.25]], "output_lens": [3], "errors": [""],
               "total_input_tokens": 7, "total_output_tokens": 3}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Starts benchagent.py beside a fake vLLM; further variables of its environment may be given."""
    for name, text in FAKE_VLLM.items():
        (tmp_path / "fake" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fake" / name).write_text(text)
    started: list[Agent] = []

    def agent(**extra: str) -> Agent:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "fake"), **extra}
        started.append(Agent([sys.executable, str(ROOT / "docker/engine/benchagent.py")], environment, log=tmp_path / "log", ready_limit_s=LIMIT_S))
        return started[-1]

    yield agent
    for each in started:
        each.close()


def load(agent: Agent, result: Mapping[str, Any], options: Mapping[str, str] | None = None, *, base_url: str = "http://127.0.0.1:9",
         limit_s: float = LIMIT_S) -> Answer:
    """One load of which the fake vLLM returns `result`."""
    given = {"num-prompts": str(len(result.get("errors", ()))), "fake-result": json.dumps(result)} | dict(options or {})
    return agent.load(given, base_url=base_url, model="/fake/model", served_model_name="fake", limit_s=limit_s)


# --- what is measured


def test_it_says_which_engine_it_came_with_and_keeps_what_vllm_prints_out_of_its_answers(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start()
    assert agent.versions == {"vllm": "1.fake", "torch": "2.fake"}
    load(agent, ONE_REQUEST, {"ignore-eos": "true", "seed": "-4"})
    log = (tmp_path / "log").read_text()
    assert "printed by fake vLLM at import" in log
    assert "written to descriptor 1 by fake vLLM" in log
    given = {"ignore_eos": True, "seed": -4, "num_warmups": 0, "ready_check_timeout_sec": 0, "save_detailed": True, "disable_tqdm": True,
             "base_url": "http://127.0.0.1:9", "model": "/fake/model", "served_model_name": "fake"}
    for key, value in given.items():
        assert f"{key!r}: {value!r}" in log


def test_times_are_over_the_requests_that_succeeded_and_counts_say_how_many_did(start: Callable[..., Agent]) -> None:
    answer = load(start(), options={"num-prompts": "5"}, result={  # some datasets round that down
        "duration": 4.0,
        "ttfts": [0.1, 0.3, 0.2, 0.0],
        # The second broke off in the middle of its answer; the third has a single token.
        "itls": [[0.02, 0.04], [9.0], [], []],
        "output_lens": [3, 0, 1, 0],
        "errors": ["", "Traceback\n  many lines\nValueError: broke off\n", "", "Bad Request"],
        "total_input_tokens": 20, "total_output_tokens": 4,
    })
    assert answer["requests"] == {"asked": 4, "completed": 2, "failed": 2, "errors": ["1 × ValueError: broke off", "1 × Bad Request"]}
    assert answer["tokens"] == {"input": 20, "output": 4}
    assert answer["seconds"] == 4.0
    assert answer["metrics"] == pytest.approx({
        "output_tokens_per_s": 1.0, "total_tokens_per_s": 6.0, "requests_per_s": 0.5,
        "ttft_ms_p50": 150, "ttft_ms_p95": 195, "ttft_ms_p99": 199,
        "itl_ms_p50": 30, "itl_ms_p95": 39, "itl_ms_p99": 39.8,
        "tpot_ms_p50": 30, "tpot_ms_p95": 30, "tpot_ms_p99": 30,
        "e2e_ms_p50": 180, "e2e_ms_p95": 198, "e2e_ms_p99": 199.6,
    })


def test_quantiles_run_from_minimum_to_maximum_as_statistics_has_them(start: Callable[..., Agent]) -> None:
    synthetic = [(number * 37 % 101) ** 2 / 1e3 + 0.001 for number in range(250)]
    count = len(synthetic)
    found = load(start(), ONE_REQUEST | {"ttfts": synthetic, "itls": [[]] * count, "output_lens": [1] * count, "errors": [""] * count})
    cuts = [1e3 * cut for cut in statistics.quantiles(synthetic, n=100, method="inclusive")]
    assert found["quantiles"]["ttft_ms"] == pytest.approx([1e3 * min(synthetic), *cuts, 1e3 * max(synthetic)])
    assert found["quantiles"]["itl_ms"] == []
    assert not [name for name in found["metrics"] if name.startswith(("itl", "tpot"))]


def test_a_load_of_which_nothing_succeeds_is_an_answer_without_latencies(start: Callable[..., Agent]) -> None:
    errors = [f"error {number % 7}" + "x" * 1000 for number in range(20)]
    answer = load(start(), {"duration": 1.0, "ttfts": [0.0] * 20, "itls": [[]] * 20, "output_lens": [0] * 20, "errors": errors,
                            "total_input_tokens": 0, "total_output_tokens": 0})
    assert (answer["requests"]["completed"], answer["requests"]["failed"]) == (0, 20)
    assert [text[:11] for text in answer["requests"]["errors"]] == [f"3 × error {n}" for n in range(5)]
    assert max(map(len, answer["requests"]["errors"])) < 250
    assert answer["metrics"] == {"output_tokens_per_s": 0, "total_tokens_per_s": 0, "requests_per_s": 0}
    assert answer["quantiles"] == {"ttft_ms": [], "itl_ms": [], "e2e_ms": []}


def test_the_engines_own_metrics_are_sampled_during_the_load_and_counted_over_it(start: Callable[..., Agent], tmp_path: Path) -> None:
    pages: list[str] = []

    class FakeMetrics(FakeEngine):
        def _metrics(self) -> tuple[int, str]:
            looks = len(pages)
            if looks == 2:
                (tmp_path / "prepared").touch()  # the first request is sent when a sample was taken
            if looks == 5:
                (tmp_path / "wait").touch()  # and the load ends after some more
            core = {"num_requests_running": 3 + looks % 2, "num_requests_waiting": looks, "kv_cache_usage_perc": 0.125 * looks,
                    "num_preemptions_total": looks, "request_queue_time_seconds_sum": looks * 0.5, "request_queue_time_seconds_count": looks * 2,
                    "prefix_cache_queries_total": 100 * looks, "prefix_cache_hits_total": 25 * looks}
            # Two cores; what only begins like a name is another metric.
            pages.append("".join(f'vllm:{name}{{engine="{core_number}"}} {float(value)}\nvllm:{name}_created{{engine="0"}} 1.79e+09\n'
                                 for name, value in core.items() for core_number in "01"))
            return 200, pages[-1]

    with FakeMetrics() as engine:
        found = load(start(), {key: value for key, value in ONE_REQUEST.items() if key != "duration"},
                     {"fake-prepared": str(tmp_path / "prepared"), "fake-wait": str(tmp_path / "wait")}, base_url=engine.url)
    looks, metrics, series = len(pages), found["metrics"], found["series"]
    assert metrics["preemptions"] == 2 * (looks - 1)  # from the first look to the last
    assert metrics["queue_ms_mean"] == pytest.approx(250)
    assert metrics["prefix_hit_rate"] == pytest.approx(0.25)
    assert len(series["t_s"]) >= 2
    assert all(0 <= t <= round(found["seconds"], 3) for t in series["t_s"])  # they are rounded so
    assert {len(values) for values in series.values()} == {len(series["t_s"])}
    assert set(series["running"]) == {6, 8}
    assert metrics["running_max"] == 8
    assert metrics["running_mean"] == pytest.approx(statistics.fmean(series["running"]))
    assert min(series["waiting"]) > 2  # the sample before the first request is not of the load
    assert metrics["waiting_max"] == max(series["waiting"])
    assert metrics["kv_cache_use_max"] == max(series["kv_cache_use"]) == metrics["waiting_max"] / 2 * 0.125  # of one core, not of both


@pytest.mark.parametrize("shown", ["off", "garbage", "error"])
def test_an_engine_that_shows_no_metrics_is_measured_without_them(start: Callable[..., Agent], shown: str) -> None:
    with FakeEngine(metrics=shown) as engine:
        found = load(start(), ONE_REQUEST, base_url=engine.url)
        assert engine.count("GET /metrics") >= 2
    assert found["metrics"]["output_tokens_per_s"] == 1.5
    assert not found["metrics"].keys() & {"preemptions", "queue_ms_mean", "prefix_hit_rate", "running_mean", "waiting_max", "kv_cache_use_max"}


def test_the_engine_is_reached_past_a_proxy_of_the_environment(start: Callable[..., Agent]) -> None:
    with FakeEngine(running=5) as engine:
        agent = start(http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
        assert agent.outputs(["a", "b"], base_url=engine.url, served_model_name="fake", limit_s=LIMIT_S) == ["x", "x"]
        assert engine.count("POST /v1/completions") == 2


def test_what_the_engine_says_against_a_prompt_is_passed_on(start: Callable[..., Agent]) -> None:
    with FakeEngine(completions="error") as engine, pytest.raises(AgentError, match=r"prompt 1: HTTP 500: .*EngineCore encountered an issue"):
        start().outputs(["a"], base_url=engine.url, served_model_name="fake", limit_s=LIMIT_S)


def test_a_models_shape_is_its_configuration_and_the_size_of_its_weights(start: Callable[..., Agent], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    for name, size in {"a.safetensors": 30, "b.safetensors": 12, "tokenizer.json": 1000}.items():
        (tmp_path / name).write_bytes(b"\0" * size)
    assert start().model(str(tmp_path)) == {"config": {"hidden_size": 8}, "weights_bytes": 42}


# --- what goes wrong


@pytest.mark.parametrize(("options", "said"), [
    ({"no-such": "1"}, "unrecognized arguments: --no-such=1"),
    ({"seed": "much"}, "argument --seed: invalid int value: 'much'"),
    ({"num-warmups": "3"}, "the agent sets --num-warmups itself"),
])
def test_an_option_that_is_wrong_is_named_and_the_agent_lives_on(start: Callable[..., Agent], options: dict[str, str], said: str) -> None:
    agent = start()
    with pytest.raises(AgentError, match=said):
        load(agent, ONE_REQUEST, options)
    assert load(agent, ONE_REQUEST)["requests"]["completed"] == 1


def test_a_failure_inside_vllm_is_an_answer_and_the_agent_lives_on(start: Callable[..., Agent]) -> None:
    agent = start()
    with pytest.raises(AgentError, match="RuntimeError: fake failure inside vLLM"):
        load(agent, {})
    assert load(agent, ONE_REQUEST)["requests"]["completed"] == 1


def test_an_agent_that_dies_is_reported_with_its_last_words(start: Callable[..., Agent], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("words of an agent before\n")
    agent = start()
    with pytest.raises(AgentError) as raised:
        load(agent, ONE_REQUEST, {"fake-end": "7"})
    assert "exit code 7" in str(raised.value)
    assert "written to descriptor 1 by fake vLLM" in str(raised.value)
    assert "an agent before" not in str(raised.value)
    with pytest.raises(AgentError, match="ended before"):
        agent.model(str(tmp_path))


def test_a_load_past_its_limit_ends_the_agent(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start()
    with pytest.raises(AgentError, match=r"within 0\.2 s and was killed"):
        load(agent, ONE_REQUEST, {"fake-wait": str(tmp_path / "never")}, limit_s=0.2)
    assert agent._child.wait(LIMIT_S) < 0


def test_it_ends_in_the_middle_of_a_load_when_its_client_goes(start: Callable[..., Agent], tmp_path: Path) -> None:
    child = start()._child  # driven by hand: the client itself would wait
    assert child.stdin is not None
    options = {"num-prompts": "1", "fake-result": json.dumps(ONE_REQUEST), "fake-wait": str(tmp_path / "never")}
    request = {"do": "load", "options": options, "base_url": "http://127.0.0.1:9", "model": "m", "served_model_name": "fake"}
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    wait_until((tmp_path / "never.begun").exists, deadline_s=LIMIT_S, what="the load begins")
    child.stdin.close()
    assert child.wait(LIMIT_S) == 0


# --- the client alone

FAKE_AGENTS = {
    "dies at once": ("import sys; print('no fake vLLM', file=sys.stderr); sys.exit(3)", r"during its start \(exit code 3\).*no fake vLLM"),
    "dies of a signal, silently": ("import os; os.kill(os.getpid(), 9)", r"during its start \(signal 9\), without a word"),
    "says nothing": ("import time; time.sleep(600)", r"did not end its start within 0\.2 s"),
    "talks of something else": ("print('Hello'); input()", r"no answer to its start: b'Hello"),
    "talks JSON of something else": ("print('[1]'); input()", r"no answer to its start: b'\[1\]"),
}


@pytest.mark.parametrize("name", FAKE_AGENTS)
def test_an_agent_that_does_not_become_ready_says_why_and_is_not_left_behind(name: str, tmp_path: Path) -> None:
    program, said = FAKE_AGENTS[name]
    marker = f"fake-agent-{tmp_path.name}"
    with pytest.raises(AgentError, match=f"(?s){said}"):
        Agent([sys.executable, "-u", "-c", program, marker], log=tmp_path / "log", ready_limit_s=0.2 if name == "says nothing" else LIMIT_S)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert marker not in running


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="fake-no-such-program: No such file"):
        Agent(["fake-no-such-program"], log=tmp_path / "log")


def test_an_agent_that_does_not_end_when_asked_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.bench.agent.CLOSE_S", 0.1)
    deaf = """import json, time; print(json.dumps({"ready": True, "vllm": "1", "torch": "2"}), flush=True); time.sleep(600)"""
    with Agent([sys.executable, "-c", deaf], log=tmp_path / "log", ready_limit_s=LIMIT_S) as agent:
        pass
    assert agent._child.returncode == -9
