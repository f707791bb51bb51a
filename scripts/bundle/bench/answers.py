"""How good a cell's answers are, beside how fast it gives them: perplexity over a fixed text, answers at temperature 0, structured output.

The text are six passages that are in the public domain (the Declaration of Independence and the Gettysburg Address, the beginnings of A Tale of Two
Cities, Moby-Dick, Alice's Adventures in Wonderland and Pride and Prejudice), 1,400 words. The engine itself says how likely it held each of
them (`prompt_logprobs`). The same tokens are looked at on both sides, so that a cell is compared with its control token by token: the ratio of their
perplexities, with a 95 % interval from the spread of the differences.

What it does not say: how a model does on long contexts, on reasoning or on code. A ratio of 1 and equal answers are no proof that nothing changed; a
ratio above 1, beyond its interval, is one that something got worse.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.bench.rundata import AnswersData, AnswersFound

PASSAGES = tuple((Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").strip().split("\n\n"))
QUESTIONS = (
    "What is the capital of France?", "How many days does a week have?", "Name the largest ocean.", "What is 17 plus 26?", "Who wrote Hamlet?",
    "What is the chemical symbol of gold?", "Translate to French: good morning.", "Write one sentence about the sea.", "List three colours.",
    "What comes after Monday?", "Why is the sky blue?", "Explain what a computer program is.", "Give a synonym of happy.",
    "What is the opposite of hot?",
    "Write a Python function that adds two numbers.", "What does a thermometer measure?", "Name a mammal that lives in water.",
    "In which year did the Second World War end?", "How do you boil an egg?", "What is photosynthesis?")
ANSWER_TOKENS = 48
_PEOPLE = 99
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20},
                                           "people": {"type": "integer", "minimum": 0, "maximum": _PEOPLE}},
          "required": ["city", "people"], "additionalProperties": False}
STRUCTURED = ("Describe Paris as JSON.", "Describe London as JSON.", "Describe Rome as JSON.")
WORSE, SAME, BETTER = "worse", "no difference seen", "better"

Post = Callable[[str, Sequence[Mapping[str, object]]], list[dict[str, Any]]]
"""Send each body to a path of the engine, one after the other; its answers."""


def ask(post: Post, model: str) -> AnswersData:
    """What the engine behind `post` answers under the name `model`. Raises what `post` raises, and ValueError for an answer of another form."""
    read = post("/v1/completions", [{"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0} for text in PASSAGES])
    told = post("/v1/chat/completions", [_question(model, text, max_tokens=ANSWER_TOKENS) for text in QUESTIONS])
    shape = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    formed = post("/v1/chat/completions", [_question(model, text, max_tokens=2 * ANSWER_TOKENS, response_format=shape) for text in STRUCTURED])
    try:
        return {"logprobs": [value for one in read for value in _logprobs(one)], "greedy": [_text(one) for one in told],
                "structured": sum(_is_valid(_text(one)) for one in formed), "structured_of": len(STRUCTURED), "error": ""}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the engine's answer has another form ({type(error).__name__}: {error})") from error


def unknown(why: str) -> AnswersData:
    """Of an engine that does not answer this."""
    return {"logprobs": [], "greedy": [], "structured": 0, "structured_of": 0, "error": why}


def compared(cell: AnswersData, control: AnswersData) -> AnswersFound:
    """`cell` against `control`, which may be the same."""
    found: AnswersFound = {"perplexity": None, "ratio": None, "low": None, "high": None, "verdict": "", "equal": 0, "of": 0,
                           "structured": cell["structured"], "structured_of": cell["structured_of"], "error": cell["error"]}
    if cell["logprobs"]:
        found["perplexity"] = math.exp(-statistics.fmean(cell["logprobs"]))
    if len(cell["logprobs"]) == len(control["logprobs"]) > 1:
        worse_by = [theirs - own for own, theirs in zip(cell["logprobs"], control["logprobs"], strict=True)]
        mean, spread = statistics.fmean(worse_by), 1.96 * statistics.stdev(worse_by) / math.sqrt(len(worse_by))
        found["ratio"], found["low"], found["high"] = (math.exp(value) for value in (mean, mean - spread, mean + spread))
        found["verdict"] = WORSE if mean > spread else BETTER if mean < -spread else SAME
    pairs = list(zip(cell["greedy"], control["greedy"], strict=False))
    found["equal"], found["of"] = sum(own == theirs for own, theirs in pairs), len(pairs)
    return found


def _question(model: str, text: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "seed": 0, **more}


def _logprobs(answer: Mapping[str, Any]) -> list[float]:
    """Of each token but the first, before which nothing stands. No others were asked for: each place holds its own token alone."""
    places = answer["choices"][0]["prompt_logprobs"]
    return [float(next(iter(place.values()))["logprob"]) for place in places if place]


def _text(answer: Mapping[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def _is_valid(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return (isinstance(found, dict) and found.keys() == {"city", "people"} and isinstance(found["city"], str)
            and isinstance(found["people"], int) and 0 <= found["people"] <= _PEOPLE)
