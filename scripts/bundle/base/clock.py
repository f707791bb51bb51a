"""The clock that waiting goes by, so that a test can wait for minutes in milliseconds."""

import time


class Clock:
    """This machine's."""

    def now(self) -> float:
        """Seconds since some moment in the past; never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
