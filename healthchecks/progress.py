"""Does the engine move? Exit 1, with the reason in one line, only if requests run and nothing has come of them for HEALTH_STALL_S (60) seconds.

However slow and full an engine is, it is healthy while it moves. Run it again and again, at least every HEALTH_STALL_S / 2: it compares with
what it saw before. Where the engine shows no metrics it cannot see, says so, and answers what live.py answers.
"""

import time

import engine


def check() -> str:
    deadline = engine.Deadline(engine.timeout_s())
    stall_s = engine.seconds("HEALTH_STALL_S", 60)
    seen = engine.metrics(deadline.left_s / 2)
    if seen is None:
        engine.alive(deadline.left_s)
        return "alive, but /metrics shows no vllm: counters (ENGINE_DISABLE_LOG_STATS?): cannot see whether it moves"
    now = time.monotonic()
    before = engine.recall("progress")
    # Looks that are far apart prove nothing: what runs now may have started a moment ago.
    still = before is not None and seen.running > 0 and seen.progress == before.progress and now - before.at <= stall_s
    since = before.since if before and still else now
    kept = engine.keep("progress", engine.Memory(at=now, progress=seen.progress, since=since))
    if now - since >= stall_s:
        raise engine.Unhealthy(f"no token for {now - since:.0f} s with {seen}: the engine hangs")
    if not kept:
        return f"{seen}; cannot see whether it moves: no place to remember in, is /tmp writable?"
    return f"{seen}; no token for {now - since:.0f} s of {stall_s:.0f} s" if still else f"{seen}"


if __name__ == "__main__":
    engine.main(check)
