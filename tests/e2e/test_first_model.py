"""The model that `make up` serves where none is named: its answers are known, so they are asked for. One start of one engine for all of it."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from bundle import ROOT
from bundle.models import first
from support.project import Project

# strict: without it the engine (0.32.0) holds a call to its tool's name, not to the schema of its arguments.
TOOL = {"type": "function", "function": {"name": "get_weather", "strict": True, "description": "The weather in a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False}}}
BRIEF = {"role": "system", "content": "You are a helpful assistant. Answer in one short English sentence."}


@dataclass(frozen=True, kw_only=True)
class Served:
    """The running deployment, and what `up` printed."""

    project: Project
    url: str
    printed: str

    def ask(self, *messages: dict[str, Any], **options: Any) -> dict[str, Any]:
        """The answer to a chat at temperature 0."""
        body = {"model": first.NAME, "messages": messages, "temperature": 0, "max_tokens": 48, **options}
        reply = requests.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def say(self, *messages: dict[str, Any], **options: Any) -> str:
        return str(self.ask(*messages, **options)["choices"][0]["message"]["content"])

    def cached_tokens(self) -> float:
        found = re.findall(r"^vllm:prefix_cache_hits_total{.*} (\S+)$", requests.get(f"{self.url}/metrics", timeout=60).text, re.MULTILINE)
        return sum(map(float, found))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def options() -> Sequence[str]:
    return ("--profile", "cpu", "--set", "GATEWAY_PORT=0", "--set", "ENGINE_ENABLE_AUTO_TOOL_CHOICE=true", "--set", "ENGINE_TOOL_CALL_PARSER=hermes")


@pytest.fixture(scope="module")
def served(no_leftovers: None) -> Iterator[Served]:
    own = Project(name=f"test-{os.getpid()}-first")
    try:
        up = own.script("up", *options(), timeout_s=900)
        assert up.returncode == 0, up.stderr
        yield Served(project=own, url=own.url, printed=up.stdout)
    finally:
        own.remove()


def test_the_curl_line_that_up_ends_with_gets_an_english_answer(served: Served) -> None:
    ready, line = served.printed.splitlines()
    assert ready == f"ready: {first.NAME} at {served.url}/v1", "by its own name, also when it has just been fetched"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "The capital of France is Paris."


def test_it_answers_what_it_is_known_to_answer_and_stops_by_itself(served: Served) -> None:
    # Those whose likeliest token leads by 0.7 or more all the way: rounding to 16 bits does not turn them.
    for country, city in (("Germany", "Berlin"), ("Japan", "Tokyo")):
        answer = served.ask(user(f"What is the capital of {country}?"))
        assert answer["choices"][0]["message"]["content"] == f"The capital of {country} is {city}."
        assert answer["choices"][0]["finish_reason"] == "stop", "its end token ends it"
        assert answer["usage"]["completion_tokens"] < 12


def test_the_chat_template_is_the_models_own(served: Served) -> None:
    # 37 tokens: its default system prompt, the question, and the start of the answer. A system message of one's own takes the default's place.
    assert served.ask(user("What is the capital of Germany?"))["usage"]["prompt_tokens"] == 37
    own = served.ask({"role": "system", "content": "Answer."}, user("What is the capital of Germany?"))
    assert own["usage"]["prompt_tokens"] < 30


def test_structured_output_parses_and_keeps_to_its_schema(served: Served) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"type": "string", "maxLength": 20}},
              "required": ["city", "country"], "additionalProperties": False}
    text = served.say(user("Give me the capital of France as JSON with the keys city and country."),
                      response_format={"type": "json_schema", "json_schema": {"name": "capital", "schema": schema, "strict": True}})
    assert json.loads(text)["city"] == "Paris"
    cities = ["London", "Paris", "Rome"]
    assert served.say(BRIEF, user("What is the capital of France?"), structured_outputs={"choice": cities}) in cities


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_call_has_the_form_that_was_asked_for(choice: Any, served: Served) -> None:
    message = served.ask(user("What is the weather in Paris?"), tools=[TOOL], tool_choice=choice)["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_a_conversation_finds_its_own_beginning_in_the_prefix_cache(served: Served) -> None:
    turns = [BRIEF, user("What is the capital of Germany? " + "Take your time and think of the map of Europe. " * 20)]
    turns.append({"role": "assistant", "content": served.say(*turns)})
    before = served.cached_tokens()
    answer = served.ask(*turns, user("And what is the capital of France?"))
    hit = served.cached_tokens() - before
    assert hit >= 0.8 * (answer["usage"]["prompt_tokens"] - 40), "all but what is new"
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_smoke_asks_it_what_it_knows(served: Served) -> None:
    smoke = served.project.script("smoke", "--json")
    assert smoke.returncode == 0, smoke.stdout + smoke.stderr
    chat = next(check for check in json.loads(smoke.stdout)["checks"] if check["name"] == "chat")
    assert "Paris" in chat["detail"]


def test_it_is_converted_once_and_serves_on(served: Served) -> None:
    made = (ROOT / "models" / first.NAME / "model.safetensors").stat().st_mtime_ns
    again = served.project.script("up", *options(), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["changed"] is False
    assert "fetch" not in again.stderr
    assert (ROOT / "models" / first.NAME / "model.safetensors").stat().st_mtime_ns == made
    doctor = served.project.script("doctor", "--profile", "cpu", "--json")
    assert next(check for check in json.loads(doctor.stdout) if check["name"] == "model")["found"].endswith("LlamaForCausalLM, 0.3 GB in 1 files")
