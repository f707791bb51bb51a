"""Check results as JUnit XML, which every CI system reads."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from bundle.checks import Result
from bundle.errors import ConfigurationError

# What XML 1.0 cannot hold, not even escaped. A model may write any of it.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(path: Path, suite: str, results: Sequence[Result]) -> None:
    """One test case per result. Raises ConfigurationError when the file cannot be written."""
    root = ElementTree.Element("testsuite", name=suite, tests=str(len(results)), errors="0",
                               failures=str(sum(r.state == "fail" for r in results)), skipped=str(sum(r.state == "n/a" for r in results)),
                               time=f"{sum(r.seconds for r in results):.3f}", timestamp=datetime.now(UTC).isoformat(timespec="seconds"))
    for result in results:
        case = ElementTree.SubElement(root, "testcase", classname=suite, name=_clean(result.name), time=f"{result.seconds:.3f}")
        if result.state == "fail":
            failure = ElementTree.SubElement(case, "failure", type="CheckFailed", message=_clean(result.shown))
            failure.text = _clean(f"{result.about}\nexpected: {result.expected}\ngot: {result.got}\nhint: {result.hint or '-'}\n")
        elif result.state == "n/a":
            ElementTree.SubElement(case, "skipped", message=_clean(result.detail))
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(result.detail)
    try:
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise ConfigurationError(f"--junit {path}: cannot be written: {error.strerror}") from error


def _clean(text: str) -> str:
    return _FORBIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
