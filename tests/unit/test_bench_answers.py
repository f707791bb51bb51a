"""How good the answers are: the instrument against answers that are known."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bundle.bench import analysis, answers, report, runner
from bundle.bench.rundata import AnswersData, LegData
from support import benchruns

NOISE = random.Random(1)
PLAIN: AnswersData = {"logprobs": [NOISE.gauss(-2.5, 1.5) for _ in range(2000)], "greedy": ["a", "b", "c"],
                      "structured": 3, "structured_of": 3, "error": ""}


def shifted(by: float, spread: float) -> AnswersData:
    return {**PLAIN, "logprobs": [value - NOISE.gauss(by, spread) for value in PLAIN["logprobs"]], "greedy": ["a", "x", "c"]}


def test_the_same_answers_agree_wholly() -> None:
    found = answers.compared(PLAIN, PLAIN)
    assert (found["ratio"], found["low"], found["high"], found["verdict"]) == (1, 1, 1, answers.SAME)
    assert (found["equal"], found["of"], found["structured"]) == (3, 3, 3)
    assert found["perplexity"] == pytest.approx(math.exp(-sum(PLAIN["logprobs"]) / 2000))


def test_a_model_that_is_a_little_worse_is_seen_and_noise_is_not() -> None:
    worse = answers.compared(shifted(0.02, 0.2), PLAIN)
    assert worse["verdict"] == answers.WORSE
    assert worse["low"] is not None
    assert worse["high"] is not None
    assert 1 < worse["low"] < 1.02 < worse["high"] < 1.04
    assert (worse["equal"], worse["of"]) == (2, 3)
    verdicts = [answers.compared(shifted(0, 0.2), PLAIN)["verdict"] for _ in range(100)]
    assert verdicts.count(answers.SAME) >= 88
    assert answers.compared(shifted(-0.02, 0.2), PLAIN)["verdict"] == answers.BETTER


def test_an_engine_that_told_nothing_has_no_figure() -> None:
    found = answers.compared(answers.unknown("HTTP 400"), PLAIN)
    assert (found["perplexity"], found["ratio"], found["of"], found["error"]) == (None, None, 0, "HTTP 400")


def engine(path: str, bodies: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    if path == "/v1/completions":
        assert all(body["prompt_logprobs"] == 0 for body in bodies)
        return [{"choices": [{"prompt_logprobs": [None, {"5": {"logprob": -1.5, "rank": 3}}]}]} for _ in bodies]
    texts = ['{"city": "Rome", "people": 3}', '{"city": "Rome", "people": 300}', '{"city": "Ro'] if "response_format" in bodies[0] else ["yes"] * 20
    assert all(body["temperature"] == 0 for body in bodies)
    return [{"choices": [{"message": {"content": text}}]} for text in texts]


def test_an_engine_is_asked_for_its_text_its_answers_and_its_structure() -> None:
    found = answers.ask(engine, "m")
    assert found["logprobs"] == [-1.5] * len(answers.PASSAGES)
    assert (found["greedy"], found["structured"], found["structured_of"]) == (["yes"] * 20, 1, 3)
    with pytest.raises(ValueError, match=r"another form \(KeyError: 'choices'\)"):
        answers.ask(lambda *_: [{}], "m")


def test_the_text_has_about_two_thousand_tokens() -> None:
    assert len(answers.PASSAGES) == 6
    assert 1300 < sum(len(text.split()) for text in answers.PASSAGES) < 1600


def test_the_report_has_them_beside_the_speed(tmp_path: Path) -> None:
    folder = benchruns.write(tmp_path / "run", cells=(benchruns.CONTROL, benchruns.FASTER))
    for path in (folder / "legs").glob("*.json"):
        leg = runner.read(LegData, path)
        leg["answers"] = PLAIN if leg["cell"] == "control" else shifted(0.05, 0.1)
        runner.write_json(path, leg)
    report.write(folder, analysis.analyse(folder))
    rows = [line for line in (folder / "report.md").read_text().partition("How good are the answers?")[2].splitlines() if line.startswith("|")]
    control, faster = ([cell.strip(" *`") for cell in row.split("|")[1:-1]] for row in rows[2:4])
    assert (control[2].split()[0], control[3:]) == ("1.0000", [answers.SAME, "3 of 3", "3 of 3"])
    assert faster[2].startswith("1.05")
    assert faster[3:] == [answers.WORSE, "2 of 3", "3 of 3"]
