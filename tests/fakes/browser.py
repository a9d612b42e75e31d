"""A real browser, headless, worked by its DevTools protocol over a pipe: no port, no other program."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

PATIENCE = 120.0  # seconds


class Browser:
    """One page of a Chromium."""

    def __init__(self, to: int, answers: SimpleQueue[dict[str, Any]]) -> None:
        self._to = to
        self._answers = answers
        self._numbers = count(1)
        self._session: str | None = None
        self.complaints: list[str] = []
        """What pages have said on their consoles as errors."""
        target = self.ask("Target.createTarget", url="about:blank", width=800, height=600)["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)

    def ask(self, method: str, **parameters: Any) -> Any:
        """Give a command; its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self._answers.get(timeout=PATIENCE)
            except Empty:
                raise AssertionError(f"the browser does not answer {method}") from None
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.complaints.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(answer["params"]["exceptionDetails"]))

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true in the page, which looks at each of its frames."""
        self.run(
            "new Promise((done, fail) => { const end = Date.now() + "
            f"{(PATIENCE - 5) * 1000}; const look = () => {{ let ok = false; try {{ ok = {condition}; }} catch {{}} "
            "if (ok) done(true); else if (Date.now() > end) fail(new Error(document.body.innerText)); "
            "else setTimeout(look, 20); }; look(); })"
        )

    def type(self, text: str) -> None:
        """Press keys."""
        for character in text:
            key = {"\r": "Enter"}.get(character, character)
            code = (
                ord(character.upper()) if character.isalnum() or character in " \r" else 0
            )  # Windows' number of the key
            common = {"key": key, "windowsVirtualKeyCode": code}
            self.ask("Input.dispatchKeyEvent", type="keyDown", text=character, **common)
            self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self) -> bytes:
        """What the page looks like, as a PNG file."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's chromium-headless-shell."""
    program = shutil.which("chromium-headless-shell")
    assert program, "chromium-headless-shell is not installed"
    theirs_in, to = os.pipe()
    answers_from, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        script = f"exec {program} {' '.join(flags)} 3<&{theirs_in} 4>&{theirs_out}"
        process = subprocess.Popen(["bash", "-c", script], pass_fds=[theirs_in, theirs_out], stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        answers: SimpleQueue[dict[str, Any]] = SimpleQueue()

        def read() -> None:
            rest = b""
            while data := os.read(answers_from, 65536):
                *messages, rest = (rest + data).split(b"\0")
                for message in messages:
                    answers.put(json.loads(message))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield Browser(to, answers)
        finally:
            process.terminate()
            process.wait()
            os.close(to)
            reader.join(5)
            os.close(answers_from)
