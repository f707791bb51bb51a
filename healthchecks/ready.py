"""Can the engine serve a request now? Exit 0, or 1 with the reason in one line. This is the container's health check.

/health, then /v1/models, then one deterministic completion of one token: /health alone stays 200 while the core hangs. The completion is
left out while requests of others succeed, or run and move: they prove the same, and in a saturated engine it would wait in the queue.
"""

import time

import engine

RECENT_S = 60
"""What was seen longer ago is not compared with."""
PAUSE_S = 15
"""After an unanswered completion none is asked for so long, lest they pile up in an engine that hangs."""
AFTERLOOK = 0.25
"""Of the time for a check, what a last look at the metrics may take on top."""


def check() -> str:
    limit_s = engine.timeout_s()
    deadline = engine.Deadline(limit_s)
    engine.alive(deadline.left_s)
    model = served_model(deadline)
    seen = engine.metrics(deadline.left_s / 2)  # slow metrics must leave time for the completion
    before, now = engine.recall("ready"), time.monotonic()
    if before and now - before.at > RECENT_S and not before.since:
        before = None
    moved = bool(before and seen and seen.progress != before.progress)
    if before and seen and moved and (seen.succeeded > before.succeeded or seen.busy):
        remember(seen)
        return f"{seen.succeeded - before.succeeded} requests succeeded in {now - before.at:.0f} s, {seen}"
    # Asked for less than limit_s ago it may still be waited for, by another check.
    if before and before.since and not moved and limit_s <= now - before.since < limit_s + PAUSE_S:
        raise engine.Unhealthy(f"a completion asked for {now - before.since:.0f} s ago got no answer, and nothing moved since: the engine hangs")
    return completion(model, seen, deadline)


def served_model(deadline: engine.Deadline) -> str:
    """The first model that the engine lists. Raises Unhealthy when there is none."""
    reply = engine.ask("/v1/models", deadline.left_s)
    try:
        return str(reply.json()["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise engine.Unhealthy(f"GET /v1/models lists no model: {reply}") from error


def completion(model: str, seen: engine.Metrics | None, deadline: engine.Deadline) -> str:
    """Ask for one token. Raises Unhealthy when it does not come, unless the engine moved meanwhile: then it is only full."""
    started = time.monotonic()
    remember(seen, since=started)
    try:
        reply = engine.ask("/v1/completions", deadline.left_s, {"model": model, "prompt": "ready?", "max_tokens": 1, "temperature": 0, "seed": 0})
    except engine.NoAnswer as late:
        reason = str(late)
    else:
        answer = reply.json()
        if reply.status == 200 and isinstance(answer, dict) and answer.get("choices"):
            took = time.monotonic() - started
            remember(engine.metrics(AFTERLOOK * deadline.seconds))
            return f"one token in {took:.2f} s"
        remember(seen)
        reason = f"POST /v1/completions: {reply}"
        if reply.status not in (429, 503):  # a full queue is no fault
            raise engine.Unhealthy(reason)
    after = engine.metrics(AFTERLOOK * deadline.seconds)
    if after is None:
        raise engine.Unhealthy(f"{reason}; no metrics to see whether it is only busy")
    if seen is None or after.progress == seen.progress:
        raise engine.Unhealthy(f"{reason}; no token meanwhile, {after}")
    remember(after)
    return f"busy and moving: {after}"


def remember(seen: engine.Metrics | None, since: float = 0) -> None:
    """Keep what the next run compares with; `since` marks a completion that is unanswered."""
    now = time.monotonic()
    engine.keep("ready", engine.Memory(at=now, since=since, succeeded=seen.succeeded if seen else 0, progress=seen.progress if seen else ()))


if __name__ == "__main__":
    engine.main(check)
