"""A headless Chromium that a test looks through, by the DevTools protocol over a pipe."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium")
"""The program; None where it is not installed."""


class BrowserError(AssertionError):
    """The page or the browser did something else than asked."""


class Browser:
    """One page of a browser of its own.

    Args:
        profile: an empty folder for the browser's files.
        width: of the window, in pixels.
        height: of the window.
    """

    def __init__(self, profile: Path, width: int = 1200, height: int = 860) -> None:
        if CHROMIUM is None:
            raise BrowserError("chromium is not installed")
        commands_out, commands_in = os.pipe()
        answers_out, answers_in = os.pipe()
        arguments = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        # It reads commands from descriptor 3 and writes answers to descriptor 4. Not every sh takes numbers above 9.
        redirect = f'exec "$@" 3<&{commands_out} 4>&{answers_in}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *arguments],
            pass_fds=(commands_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        self._commands = os.fdopen(commands_in, "wb")
        self._answers = os.fdopen(answers_out, "rb")
        self._unread = b""
        self._last_id = 0
        self._session: str | None = None
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, once it is no promise any more."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout: float = 60.0) -> None:
        """Wait until an expression is true in the page."""
        waiting = (
            "new Promise((resolve) => { const look = (left) => {"
            f" let seen = false; try {{ seen = Boolean({condition}); }} catch (error) {{ }}"
            " if (seen || left <= 0) resolve(seen); else setTimeout(() => look(left - 50), 50); };"
            f" look({1000 * timeout:.0f}); }})"
        )
        if not self.evaluate(waiting):
            raise BrowserError(f"not within {timeout} s: {condition}; {self.evaluate('document.body.innerText')}")

    def move_to(self, selector: str) -> None:
        """Put the pointer on an element."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def click(self, selector: str) -> None:
        """Click an element as a person does, wherever it is drawn."""
        middle = self._middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)

    def screenshot(self, path: Path) -> None:
        """Save what the page looks like as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._commands.close()
        self._answers.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _middle(self, selector: str) -> dict[str, float]:
        box = self.evaluate(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            " element.scrollIntoView({block: 'nearest'}); const box = element.getBoundingClientRect();"
            " return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
        )
        return {"x": box["x"], "y": box["y"]}

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") != self._last_id:
                continue  # an event
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error']}")
            return answer["result"]

    def _read(self) -> bytes:
        while b"\0" not in self._unread:
            part = os.read(self._answers.fileno(), 1 << 20)
            if not part:
                raise BrowserError("the browser has ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return message
