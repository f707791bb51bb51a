"""Every way a verb can fail, each with its own exit code. README.md lists the codes."""


class BundleError(Exception):
    """A failure that an operator can act on.

    `message` says what, where and what was found; `fix` says what to do about it (may be empty).
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class ConfigurationError(BundleError):
    """An env file, an option or a value is wrong. Nothing was changed."""

    exit_code = 2


class PrerequisiteError(BundleError):
    """Docker, the driver, disk, a port or the model is missing. Nothing was changed."""

    exit_code = 3


class NotReadyError(BundleError):
    """The service did not become ready in time, or its engine ended before."""

    exit_code = 4


class CheckFailedError(BundleError):
    """A check ran and did not pass."""

    exit_code = 5


class SlowerError(BundleError):
    """A benchmark run is slower than its reference, beyond noise."""

    exit_code = 6


class RolledBackError(BundleError):
    """A new version did not become ready; the one before it serves again."""

    exit_code = 7


INTERRUPTED = 130
