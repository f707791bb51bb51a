"""Docker's health check of an engine: what its watch says (docker/engine/watch.py). Exit 0, or 1 with the reason in one line.

usage: ready.py [live]

`live`: not whether the engine can serve, but whether the watch over it is alive, which ends an engine that hangs by itself.

Standard library only, and little of it: it runs every few seconds beside the engine, on the same cores. It asks over a bare connection, which
no proxy of the container's environment can come between.
"""

import http.client
import os
import sys


def main() -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("HEALTH_PORT") or 8001), timeout=5)  # answered from memory
    try:
        connection.request("GET", "/live" if sys.argv[1:] == ["live"] else "/ready")
        reply = connection.getresponse()
        status, text = reply.status, reply.read(1000).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        status, text = 0, f"the watch does not answer: {error}"
    print(f"ok: {text}" if status == 200 else text)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
