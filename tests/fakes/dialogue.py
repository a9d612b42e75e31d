"""Expect-style talk over a byte stream, for asynchronous tests."""

from __future__ import annotations

import re

import trio


class Dialogue:
    """A console in the hands of a test: wait for text, send text. What does not come within `timeout` seconds fails the test."""

    def __init__(self, stream: trio.abc.Stream, *, timeout: float = 240) -> None:
        self._stream = stream
        self._timeout = timeout
        self._unread = ""

    async def expect(self, pattern: str) -> str:
        """Wait for a regular expression; everything up to its end, from where the last one ended."""
        try:
            with trio.fail_after(self._timeout):
                while not (match := re.search(pattern, self._unread)):
                    data = await self._stream.receive_some()
                    assert data, f"the stream ended before {pattern!r} came, after {self._unread!r}"
                    self._unread += data.decode(errors="replace")
        except trio.TooSlowError:
            raise AssertionError(f"{pattern!r} did not come, only {self._unread!r}") from None
        seen, self._unread = self._unread[: match.end()], self._unread[match.end() :]
        return seen

    async def send(self, text: str) -> None:
        await self._stream.send_all(text.encode())

    async def ask(self, command: str, prompt: str) -> str:
        """Type a command line; what it prints until the next prompt."""
        await self.send(command + "\r")
        await self.expect(re.escape(command) + r"\r*(?=\n)")
        return (await self.expect(prompt)).replace("\r", "")
