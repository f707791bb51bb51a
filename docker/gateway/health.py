"""Is the gateway itself alive? Docker runs this inside the container. Exit 0, or 1 with one line that says why."""

import http.client
import sys


def main() -> int:
    # HAProxy answers this from memory; what takes seconds is stuck. Not urllib: a proxy of Docker's client would be asked instead.
    connection = http.client.HTTPConnection("127.0.0.1", 8404, timeout=3)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"GET 127.0.0.1:8404/health: {error}")  # noqa: T201  (Docker keeps it as the reason)
        return 1
    if status != 200:
        print(f"GET 127.0.0.1:8404/health: HTTP {status}")  # noqa: T201
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
