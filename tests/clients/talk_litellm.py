"""What LiteLLM's SDK makes of a server:   python talk_litellm.py URL, the key on stdin. One JSON object on stdout."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the internet for prices
import litellm  # type: ignore[import-not-found]  # in an environment of its own

url, key = sys.argv[1], sys.stdin.read().strip()
asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0, "num_retries": 0}
openai = asked | {"model": "openai/selftest", "api_base": f"{url}/v1", "api_key": key}
anthropic = asked | {"model": "anthropic/selftest", "api_base": url, "api_key": key}


def refused(**asking: object) -> str:
    try:
        litellm.completion(**asking)
    except Exception as error:  # noqa: BLE001  (its kind is what is asked for)
        return type(error).__name__
    return "none"


sys.stdout.write(json.dumps({
    "whole": litellm.completion(**openai).choices[0].message.content,
    "streamed": "".join(piece.choices[0].delta.content or "" for piece in litellm.completion(**openai, stream=True)),
    "anthropic": litellm.completion(**anthropic).choices[0].message.content,
    "refused": {"key": refused(**openai | {"api_key": "sk-of-somebody-else"}), "value": refused(**openai | {"max_tokens": -1}),
                "model": refused(**openai | {"model": "openai/no-such-model"})},
}))
