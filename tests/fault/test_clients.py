"""The libraries that clients use against the real engine, through the gateway, with a key: OpenAI's and Anthropic's own, and LiteLLM's."""

from typing import Any

import anthropic
import openai

from support import foreign
from support.deployed import KEY, Deployed
from support.project import wait_until

TALK: Any = [{"role": "user", "content": "hello"}]


def test_openais_client_is_served(served: Deployed) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        assert [model.id for model in client.models.list()] == ["selftest"]
        whole = client.chat.completions.create(model="selftest", messages=TALK, max_tokens=8, temperature=0)
        assert whole.usage
        pieces = list(client.chat.completions.create(model="selftest", messages=TALK, max_tokens=8, temperature=0, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
        assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        answers = client.completions.create(model="selftest", prompt=["1", "2"], n=3, max_tokens=2)
        assert len(answers.choices) == 6
        assert client.responses.create(model="selftest", input="hello", max_output_tokens=16).output


def test_one_request_gets_no_more_answers_than_the_engine_is_told_to_give(served: Deployed) -> None:
    """By VLLM_MAX_N_SEQUENCES, which holds where the gateway does not see `n`: behind the first 64 KiB."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        try:
            client.completions.create(model="selftest", prompt="1", n=129, max_tokens=1)
        except openai.BadRequestError as refused:
            assert "128" in refused.message  # noqa: PT017  (what it says is the point)
        else:
            raise AssertionError("129 answers were given")


def test_anthropics_client_is_served(served: Deployed) -> None:
    with anthropic.Anthropic(base_url=served.url, api_key=KEY, max_retries=0, timeout=120) as client:
        whole = client.messages.create(model="selftest", max_tokens=8, messages=TALK)
        assert whole.usage.output_tokens > 0
        with client.messages.stream(model="selftest", max_tokens=8, messages=TALK) as stream:
            assert stream.get_final_message().usage.output_tokens > 0
        assert client.messages.count_tokens(model="selftest", messages=TALK).input_tokens > 0


def test_their_libraries_for_node_are_served_and_refused_as_python_s(served: Deployed) -> None:
    said = foreign.node(served.url, KEY)
    assert said["model"] == "selftest"
    assert said["whole"] == said["streamed"] != ""
    assert said["piped"] == 200, "a body in chunks, without its length"
    assert min(said["anthropic"]) > 0
    assert said["refused"] == {"openai key": "AuthenticationError", "openai value": "BadRequestError", "openai model": "NotFoundError",
                               "anthropic key": "AuthenticationError", "anthropic value": "BadRequestError"}
    wait_until(lambda: served.metric("num_requests_running") == 0, deadline_s=60, what="who hung up is not computed for")


def test_litellms_sdk_is_served_and_refused(served: Deployed) -> None:
    said = foreign.litellm(served.url, KEY)
    assert said["whole"] == said["streamed"] == said["anthropic"] != ""
    assert said["refused"] == {"key": "AuthenticationError", "value": "BadRequestError", "model": "NotFoundError"}
