"""Is the gateway itself alive? Docker runs this inside the container. Exit 0, or 1 with one line that says why."""

import sys
import urllib.request

URL = "http://127.0.0.1:8404/health"


def main() -> int:
    try:
        # HAProxy answers this from memory; what takes seconds is stuck.
        with urllib.request.urlopen(URL, timeout=3):
            return 0
    except OSError as error:
        print(f"{URL}: {error}")  # noqa: T201  (Docker keeps it as the reason)
        return 1


if __name__ == "__main__":
    sys.exit(main())
