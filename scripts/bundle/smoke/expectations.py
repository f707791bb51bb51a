"""What a client may expect of the service, one function per expectation: `make smoke` asks them in the order in which they stand here.

Each gets the server, returns a line on what it saw, and raises ExpectationFailed or NotApplicable. Its docstring says what it expects.
"""

import ipaddress
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from bundle.models import first
from bundle.smoke import closedroutes
from bundle.smoke.client import Reply, Server, ServerError

CONCURRENT = 16
LOOK_AGAIN_S = 10.0
"""vLLM counts a request a moment after it has answered it: so long a counter may lag."""

OVERFLOW = "numbers overflow in the model: try ENGINE_DTYPE=bfloat16, another quantization, attention backend or KV-cache type"

PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time, in a small village", "Water boils at")

CAPITALS = [{"role": "user", "content": "What is the capital of Germany?"}, {"role": "assistant", "content": "The capital of Germany is Berlin."},
            {"role": "user", "content": "And of France?"}]
"""The first model answers this with the same words at any precision: its likeliest token leads everywhere by 1.8 in log-probability."""


class ExpectationFailed(Exception):  # noqa: N818  (a verdict, not a malfunction)
    """The server does something else than it should; `hint` says where to look."""

    def __init__(self, *, expected: str, got: object, hint: str = "") -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got, self.hint = expected, str(got), hint


class NotApplicable(Exception):  # noqa: N818
    """This server does not have what the expectation is about; the text is the reason. Never raised for a deployment of this bundle."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one expectation went; `state` is pass, fail or n/a."""

    name: str
    about: str
    state: str
    seconds: float
    detail: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""

    @property
    def outcome(self) -> str:
        """The detail, or the failure in one line."""
        if self.state != "fail":
            return self.detail
        return f"expected {self.expected}; got {self.got}" + (f"; {self.hint}" if self.hint else "")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One expectation."""

    name: str
    about: str
    run: Callable[[Server], str]


EXPECTATIONS: list[Expectation] = []


def expectation(function: Callable[[Server], str]) -> Callable[[Server], str]:
    """Register `function`: its name and docstring become the expectation's."""
    EXPECTATIONS.append(Expectation(name=function.__name__.replace("_", " "), about=(function.__doc__ or "").strip(), run=function))
    return function


def run(server: Server, *, report: Callable[[Result], None]) -> list[Result]:
    """Every expectation in order on a connected server, each reported as it ends; of a model that writes no text, those that ask for none.

    Never outlasts the server's deadline by much.
    """
    results = []
    for each in EXPECTATIONS if server.writes else _WITHOUT_TEXT:
        results.append(_one(each, server))
        report(results[-1])
    return results


def _one(each: Expectation, server: Server) -> Result:
    started = time.monotonic()
    outcome: dict[str, str]
    try:
        outcome = {"state": "pass", "detail": each.run(server)}
    except ExpectationFailed as failed:
        outcome = {"state": "fail", "expected": failed.expected, "got": failed.got, "hint": failed.hint}
    except NotApplicable as reason:
        outcome = {"state": "n/a", "detail": str(reason)}
        if server.ours:
            outcome = {"state": "fail", "expected": "a deployment of this bundle to have this", "got": str(reason), "hint": "make logs"}
    except ServerError as error:
        outcome = {"state": "fail", "expected": "an answer", "got": str(error), "hint": "make status; make logs" if server.ours else ""}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # What an expectation reads out of an answer is not there, or is something else.
        outcome = {"state": "fail", "expected": "an answer of the form that OpenAI's API describes", "got": repr(error), "hint": ""}
    return Result(name=each.name, about=each.about, seconds=round(time.monotonic() - started, 3), **outcome)


def expect(condition: bool, expected: str, got: object, hint: str = "") -> None:
    """Raise ExpectationFailed unless `condition`."""
    if not condition:
        raise ExpectationFailed(expected=expected, got=got, hint=hint)


def expect_status(reply: Reply, status: int, hint: str = "") -> Any:
    """The body's JSON, when the status is as it should be."""
    expect(reply.status == status, f"status {status}", reply, hint)
    return reply.json()


def complete(server: Server, prompt: str, **options: Any) -> dict[str, Any]:
    """A completion's whole answer, with status 200."""
    answer: dict[str, Any] = expect_status(server.post("/v1/completions", prompt=prompt, **{"max_tokens": 16, "temperature": 0, **options}), 200)
    return answer


def full_length(server: Server) -> dict[str, Any]:
    """Options that make an answer run to max_tokens. vLLM's addition; elsewhere a prompt that goes on by itself has to do."""
    return {"ignore_eos": True} if server.is_vllm else {}


def counters(server: Server) -> dict[str, float]:
    values = server.metrics()
    if values is None:
        raise NotApplicable("the server shows no vLLM metrics")
    return values


def moved(server: Server, before: dict[str, float], least: dict[str, float]) -> dict[str, float]:
    """How far the counters named in `least` have moved since `before`, once each has moved so far or LOOK_AGAIN_S seconds have passed."""
    end = min(time.monotonic() + LOOK_AGAIN_S, server.deadline - 1)
    while True:
        now = counters(server)
        by = {name: now.get(name, 0) - before.get(name, 0) for name in least}
        if time.monotonic() > end or all(by[name] >= amount for name, amount in least.items()):
            return by
        time.sleep(0.1)


# --- it answers

@expectation
def models(server: Server) -> str:
    """GET /v1/models lists the model"""
    listed = [m["id"] for m in expect_status(server.request("GET", "/v1/models"), 200)["data"]]
    expect(server.model in listed, f"the model {server.model or '(any)'} in the list", listed,
           "ENGINE_SERVED_MODEL_NAME is the name that clients ask for")
    return ", ".join(listed)


@expectation
def completion(server: Server) -> str:
    """POST /v1/completions answers with text and counts its tokens"""
    answer = complete(server, PROMPTS[0])
    text = answer["choices"][0]["text"]
    expect(bool(text), "text", answer["choices"][0])
    expect(answer["usage"]["completion_tokens"] > 0 < answer["usage"]["prompt_tokens"], "counts of tokens above 0", answer["usage"])
    return repr(text[:60])


@expectation
def chat(server: Server) -> str:
    """POST /v1/chat/completions answers as the assistant; the bundle's own first model, with what it is known to answer"""
    asked, known = (CAPITALS, "Paris") if server.model == first.NAME else ([{"role": "user", "content": "Say hello."}], "")
    reply = server.post("/v1/chat/completions", messages=asked, max_tokens=32, temperature=0)
    answer = expect_status(reply, 200, "a model without a chat template needs ENGINE_CHAT_TEMPLATE" if reply.status == 400 else "")
    message = answer["choices"][0]["message"]
    expect(message["role"] == "assistant", "role assistant", message)
    text = message.get("content") or message.get("reasoning") or message.get("reasoning_content")
    expect(bool(text), "text", message)
    expect(known in str(text), f"{known} as the capital of France", repr(text), "the weights, the tokenizer or the chat template are damaged")
    return repr(str(text)[:60])


@expectation
def streaming(server: Server) -> str:
    """a streamed chat: the role first, then text, finish_reason, usage, and [DONE] last"""
    hint = "a proxy between client and engine may cut or collect streams"
    data = list(server.events("/v1/chat/completions", messages=[{"role": "user", "content": "Count to ten."}], max_tokens=16, temperature=0,
                              stream_options={"include_usage": True}))
    expect(bool(data) and data[-1] == "[DONE]", "[DONE] as the last event", data[-1:] or "no event", hint)
    chunks = [json.loads(event) for event in data[:-1]]
    first, *deltas = [c["choices"][0] for c in chunks if c["choices"]]
    expect(first["delta"].get("role") == "assistant", "role assistant in the first event", first)
    words = [d for d in deltas if any(d["delta"].get(part) for part in ("content", "reasoning", "reasoning_content"))]
    expect(len(words) > 1, "text in more than one event", f"{len(words)} of {len(chunks)} events", hint)
    ends = [place for place, d in enumerate(deltas) if d["finish_reason"]]
    expect(ends == [len(deltas) - 1], "one finish_reason, in the last event with a choice", ends)
    usage = [place for place, c in enumerate(chunks) if c.get("usage")]
    expect(usage == [len(chunks) - 1], "usage in the last event before [DONE] and nowhere else", f"usage in events {usage} of {len(chunks)}")
    expect(len({c["id"] for c in chunks}) == 1, "one id in all events", {c["id"] for c in chunks})
    return f"{len(data)} events, {chunks[-1]['usage']['completion_tokens']} tokens"


# --- it does as it is told

@expectation
def max_tokens(server: Server) -> str:
    """max_tokens is honoured, and finish_reason says so"""
    for asked in (1, 7):
        answer = complete(server, PROMPTS[2], max_tokens=asked, **full_length(server))
        got = (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"])
        expect(got == (asked, "length"), f"{asked} tokens and finish_reason length", f"{got[0]} tokens and finish_reason {got[1]}")
    return "1 and 7 tokens"


@expectation
def stop(server: Server) -> str:
    """a stop string ends the answer before it, and finish_reason says so"""
    whole = complete(server, PROMPTS[2], max_tokens=24, **full_length(server))["choices"][0]["text"]
    # Any model: take the stop string out of the middle of what it says anyway. Not from pieces of characters, which show as U+FFFD.
    usable = whole.partition("\ufffd")[0]
    expect(len(usable) >= 4, "at least four readable characters", repr(whole))
    stop_string = usable[len(usable) // 2:][:3]
    choice = complete(server, PROMPTS[2], max_tokens=24, stop=[stop_string], **full_length(server))["choices"][0]
    wanted = whole[:whole.index(stop_string)]
    expect(choice["text"] == wanted, f"the text up to {stop_string!r}: {wanted!r}", repr(choice["text"]))
    expect(choice["finish_reason"] == "stop", "finish_reason stop", choice["finish_reason"])
    return f"ended before {stop_string!r}"


@expectation
def concurrency(server: Server) -> str:
    """16 requests at once are all answered, each with its own answer"""
    answers: list[dict[str, Any]] = []
    failures: list[Exception] = []

    def one(number: int) -> None:
        try:
            answers.append(complete(server, f"{number} {PROMPTS[number % len(PROMPTS)]}", max_tokens=8, **full_length(server)))
        except (ExpectationFailed, ServerError) as error:
            failures.append(error)

    # Daemons: Ctrl-C must not wait for them.
    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(CONCURRENT)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + server.request_limit_s
    for thread in threads:
        thread.join(max(0.0, min(end, server.deadline) - time.monotonic()))
    expect(len(answers) == CONCURRENT, f"{CONCURRENT} answers", f"{len(answers)}; first failure: {failures[0] if failures else 'no answer in time'}",
           "ENGINE_MAX_NUM_QUEUED_REQS or the gateway's maxconn may be too low")
    ids = {answer["id"] for answer in answers}
    expect(len(ids) == CONCURRENT, f"{CONCURRENT} different ids", sorted(ids))
    lengths = sorted({answer["usage"]["completion_tokens"] for answer in answers})
    expect(not server.is_vllm or lengths == [8], "8 tokens in each", lengths)
    return f"{CONCURRENT} of {CONCURRENT}"


@expectation
def determinism(server: Server) -> str:
    """the same prompt at temperature 0 gives the same answer"""
    texts = [complete(server, PROMPTS[3], seed=1)["choices"][0]["text"] for _ in range(3)]
    expect(len(set(texts)) == 1, "three times the same text", texts,
           "other load changes batch sizes and with them rounding: ask again when idle, or set VLLM_BATCH_INVARIANT=1")
    return repr(texts[0][:60])


# --- what it says is sane

@expectation
def logprobs(server: Server) -> str:
    """log-probabilities are finite and not above 0"""
    reply = server.post("/v1/completions", prompt=PROMPTS[0], max_tokens=16, temperature=0, logprobs=2)
    plain = expect_status(reply, 200, OVERFLOW if "Out of range float" in reply.message else "")["choices"][0]["logprobs"]
    values = list(plain["token_logprobs"]) + [v for each in plain["top_logprobs"] for v in each.values()]
    answer = expect_status(server.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0,
                                       logprobs=True, top_logprobs=2), 200)
    for token in answer["choices"][0]["logprobs"]["content"]:
        values += [token["logprob"], *(top["logprob"] for top in token["top_logprobs"])]
    expect(len(values) > 2, "log-probabilities", values)
    # A sum of rounded exponentials may be a hair below 1.
    wrong = [v for v in values if not (isinstance(v, float | int) and math.isfinite(v) and v <= 1e-4)]
    expect(not wrong, "finite values of 0 or less", wrong[:5], OVERFLOW)
    return f"{len(values)} values, lowest {min(values):.2f}"


@expectation
def no_garbage(server: Server) -> str:
    """answers are not empty, not token 0 over and over, and not the same token to every prompt"""
    # Sampled at temperature 1, even a model of random weights writes varied tokens. One whose numbers overflowed cannot: every token is
    # then as likely as NaN, and token 0 wins ("!!!!" in many vocabularies).
    options = {"max_tokens": 24, "temperature": 1, **full_length(server), **({"return_token_ids": True} if server.is_vllm else {})}
    choices = [complete(server, prompt, seed=number, **options)["choices"][0] for number, prompt in enumerate(PROMPTS)]
    texts = [choice["text"] for choice in choices]
    expect(all(text.strip() for text in texts), "text to each of four prompts", texts, OVERFLOW)
    expect(not any(set(choice.get("token_ids") or ()) == {0} for choice in choices), "other tokens than token 0", texts, OVERFLOW)
    tokens = {token for choice in choices for token in choice.get("token_ids") or choice["text"].split()}
    expect(len(tokens) > 1, "more than one token in all answers together", texts, OVERFLOW)
    expect(len(set("".join(texts))) > 1, "more than one character in all answers together", texts, OVERFLOW)
    return repr(texts[0][:60])


@expectation
def prefix_cache(server: Server) -> str:
    """the same long prompt again hits the prefix cache, and the metrics count it"""
    before = counters(server)
    block = server.cache_config.get("block_size", "")
    tokens = 2 * (int(block) if block.isdigit() else 16) + 16
    prompt = uuid4().hex + " the" * tokens
    name = "vllm:prefix_cache_hits_total"
    if server.cache_config.get("enable_prefix_caching") == "False":
        complete(server, prompt, max_tokens=1)
        complete(server, prompt, max_tokens=1)
        by = counters(server).get(name, 0) - before.get(name, 0)
        expect(by == 0, "no hits: prefix caching is switched off", f"{by:.0f} tokens")
        return "switched off by ENGINE_ENABLE_PREFIX_CACHING=false, and no hits counted"
    complete(server, prompt, max_tokens=1)
    complete(server, prompt, max_tokens=1)
    by = moved(server, before, {name: 1})[name]
    expect(by > 0, f"{name} to grow by some of {tokens} tokens", f"{by:.0f}", "is the KV cache large enough to keep one request of that length?")
    return f"{by:.0f} tokens hit"


# --- it refuses what it must

def expect_error(reply: Reply, status: int) -> str:
    expect(reply.status == status, f"status {status}", reply)
    expect(bool(reply.message), "a message that says what is wrong", reply)
    return " ".join(reply.message.split())[:100]


@expectation
def too_long_prompt(server: Server) -> str:
    """a prompt longer than the context gets 400 and a message"""
    if not server.context:
        raise NotApplicable("the server does not say its context length (max_model_len)")
    return expect_error(server.post("/v1/completions", prompt=" the" * (server.context + 1), max_tokens=1), 400)


@expectation
def unknown_model(server: Server) -> str:
    """a model that is not served gets 404 and a message"""
    return expect_error(server.post("/v1/completions", model="no-such-model", prompt="x", max_tokens=1), 404)


@expectation
def malformed_JSON(server: Server) -> str:  # noqa: N802  (the name is shown)
    """a body that is not JSON gets 400 and a message"""
    return expect_error(server.request("POST", "/v1/completions", raw=b'{"model": '), 400)


@expectation
def keys(server: Server) -> str:
    """without the key, or with another, nothing is answered"""
    if not server.key:
        if not server.ours:
            raise NotApplicable("no key was given")
        expect(ipaddress.ip_address(server.bind).is_loopback, "an API key, because the port is open to the network", f"none on {server.bind}",
               "set GATEWAY_API_KEYS_FILE, or GATEWAY_BIND=127.0.0.1")
        return f"none asked for; only this host reaches {server.bind}"
    asked = [("GET", "/v1/models", None), ("POST", "/v1/completions", {"model": server.model, "prompt": "x", "max_tokens": 1}),
             ("POST", "/v1/chat/completions", {"model": server.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})]
    for method, path, body in asked:
        for what, key in (("without a key", ""), ("with a wrong key", "wrong-" + uuid4().hex)):
            reply = server.request(method, path, body, key=key)
            expect(reply.status == 401, f"status 401 to {method} {path} {what}", reply,
                   "GATEWAY_API_KEYS_FILE guards the gateway; the engine's own --api-key leaves routes open")
    return f"{2 * len(asked)} requests refused"


@expectation
def other_routes(server: Server) -> str:
    """the engine's other routes, and other spellings of paths, are refused"""
    if not server.ours and not server.is_vllm:
        raise NotApplicable("not vLLM: it has none of these routes")
    hint = "only the gateway may publish a port; docker/gateway/routes.lst is the list of what it lets through"
    opened = [f"{method} {path} → {status}" for method, path in closedroutes.ROUTES
              if (status := server.request(method, path, {} if method == "POST" else None).status) not in (401, 403, 404, 405)]
    expect(not opened, f"all of {len(closedroutes.ROUTES)} routes refused", f"{len(opened)} open: {'; '.join(opened[:5])}", hint)
    opened = [f"GET {target} → {status}" for target in closedroutes.SPELLINGS if (status := server.untouched("GET", target)) < 400]
    expect(not opened, f"all of {len(closedroutes.SPELLINGS)} spellings refused", f"{len(opened)} open: {'; '.join(opened[:5])}", hint)
    return f"{len(closedroutes.ROUTES)} routes and {len(closedroutes.SPELLINGS)} spellings"


@expectation
def metrics(server: Server) -> str:
    """the metrics are there, and count what was just asked"""
    before = counters(server)
    usage = complete(server, PROMPTS[1], max_tokens=5, **full_length(server))["usage"]
    least = {"vllm:request_success_total": 1.0, "vllm:prompt_tokens_total": float(usage["prompt_tokens"]),
             "vllm:generation_tokens_total": float(usage["completion_tokens"])}
    by = moved(server, before, least)
    for name, amount in least.items():
        expect(by[name] >= amount, f"{name} to grow by {amount:.0f} or more", f"{by[name]:.0f}", "is ENGINE_DISABLE_LOG_STATS set?")
    return ", ".join(f"{name.removeprefix('vllm:').removesuffix('_total')} +{amount:.0f}" for name, amount in by.items())


def embedding(server: Server) -> str:
    """POST /v1/embeddings answers with a vector of finite numbers, and others to another text"""
    answers = [expect_status(server.post("/v1/embeddings", input=text), 200)["data"][0]["embedding"] for text in (PROMPTS[0], PROMPTS[0], PROMPTS[1])]
    numbers = [value for answer in answers for value in answer]
    expect(all(isinstance(value, float | int) and math.isfinite(value) for value in numbers), "finite numbers", numbers[:5], OVERFLOW)
    same, other = (sum(a * b for a, b in zip(answers[0], each, strict=True)) / math.hypot(*answers[0]) / math.hypot(*each) for each in answers[1:])
    expect(same > 0.99 > other, "the same vector for the same text, another for another", f"cosines {same:.3f} and {other:.3f}")
    return f"{len(answers[0])} numbers"


_WITHOUT_TEXT = [*(each for each in EXPECTATIONS if each.run in (models, unknown_model, malformed_JSON, other_routes)),
                 Expectation(name="embedding", about=(embedding.__doc__ or ""), run=embedding)]
"""For a model of embeddings."""


def summary(results: Sequence[Result]) -> str:
    """`17 passed, 1 failed in 4.2 s`"""
    count = {state: sum(r.state == state for r in results) for state in ("pass", "fail", "n/a")}
    parts = [f"{count['pass']} passed", f"{count['fail']} failed"] + ([f"{count['n/a']} not applicable"] if count["n/a"] else [])
    return f"{', '.join(parts)} in {sum(r.seconds for r in results):.1f} s"
