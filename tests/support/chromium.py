"""A real headless Chromium, driven over its DevTools protocol on a pair of pipes. https://chromedevtools.github.io/devtools-protocol/"""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_S = 60


@dataclass(kw_only=True)
class Tab:
    """One open page."""

    commands: int
    answers: int
    session: str = ""
    number: int = 0
    unread: bytes = b""
    said: list[str] = field(default_factory=list)
    """What the page complained of: exceptions that nobody caught, and what the browser refused."""

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Load `url` as in a window of that size; it returns when everything is there that the page's HTML names."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Page.navigate", url="about:blank")  # or a link that differs in what stands behind its # alone would load nothing
        self.call("Page.navigate", url=url)
        end = time.monotonic() + ANSWER_S
        while self.value("location.protocol === 'about:' || document.readyState !== 'complete'"):
            assert time.monotonic() < end, f"{url} does not load"
            time.sleep(0.1)

    def type(self, text: str) -> None:
        """Into what has the focus; "\\r" is the Enter key."""
        for character in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", text=character, key="Enter" if character == "\r" else character)
            self.call("Input.dispatchKeyEvent", type="keyUp", key="Enter" if character == "\r" else character)

    def picture(self, file: Path) -> None:
        """The whole page, also what is below the window, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _next(self) -> Any:
        while b"\0" not in self.unread:
            piece = os.read(self.answers, 2**20)
            assert piece, "the browser has ended"
            self.unread += piece
        message, _, self.unread = self.unread.partition(b"\0")
        told = json.loads(message)
        if told.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(told["params"]["exceptionDetails"]))
        if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
            self.said.append(told["params"]["entry"]["text"])
        return told


def program() -> str:
    found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert found, "no browser here: apt-get install chromium-headless-shell"
    return found


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with nothing in it, that keeps what it keeps in `profile`; one tab of it."""
    to_it, commands = os.pipe()
    answers, from_it = os.pipe()

    def at_3_and_4() -> None:  # where Chromium looks for them
        there = (os.dup(to_it), os.dup(from_it))
        os.dup2(there[0], 3)
        os.dup2(there[1], 4)

    running = subprocess.Popen(
        [program(), "--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--hide-scrollbars", f"--user-data-dir={profile}",
         "--remote-debugging-pipe"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, close_fds=False, preexec_fn=at_3_and_4)
    os.close(to_it)
    os.close(from_it)
    try:
        tab = Tab(commands=commands, answers=answers)
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        os.killpg(running.pid, signal.SIGKILL)  # it has started others
        running.wait()
        os.close(commands)
        os.close(answers)
