"""Before an engine is stopped where nobody else drains it (a Kubernetes preStop hook): no new requests, and time for those that it has.

Its watch says from now on that it is not ready, by which the gateway leaves it out; then this waits until nothing runs any more, for at most
ENGINE_SHUTDOWN_TIMEOUT seconds. It always exits 0: what runs then, the engine itself may finish after SIGTERM, in as many seconds again.
Standard library only. In an image it stands beside ready.py.
"""

import http.client
import os
import re
import sys
import time

NOTICED_S = 5.0
"""In which the gateway has left it out: two failed checks, 0.5 to 1 s apart and answered within 3 (docker/gateway/haproxy.cfg)."""
POLL_S = 0.5


def ask(method: str, port: str, path: str) -> str:
    """What is answered there; "" where nothing is."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    try:
        connection.request(method, path)
        return connection.getresponse().read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def unfinished() -> float:
    """Requests that run or wait; none where the engine does not tell."""
    metrics = ask("GET", os.environ.get("ENGINE_PORT") or "8000", "/metrics")
    return sum(float(number) for number in re.findall(r"(?m)^vllm:num_requests_(?:running|waiting)(?:\{.*\})? (\S+)$", metrics))


def main() -> int:
    print(ask("POST", os.environ.get("HEALTH_PORT") or "8001", "/drain").strip() or "the watch does not answer", flush=True)
    ends_at = time.monotonic() + max(NOTICED_S, float(os.environ.get("ENGINE_SHUTDOWN_TIMEOUT") or 0))
    time.sleep(NOTICED_S)
    while unfinished() and time.monotonic() < ends_at:
        time.sleep(POLL_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
