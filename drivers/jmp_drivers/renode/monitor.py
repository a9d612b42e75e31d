"""Renode's monitor: a prompt behind telnet.

Renode echoes a command, prints what it has to say, and its prompt again, which names the machine that commands are about:
``(monitor)``, ``(machine-0)``. It has no status: whether a command has failed is to be seen from what it prints.
"""

from __future__ import annotations

import re

import trio

from jmp.errors import BadValue, DeviceError
from jmp_drivers._telnet import Telnet

_PROMPT = re.compile(r"(?:\A|\n)\([^()\n]{1,80}\) *\Z")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\a]")
_FAILURES = re.compile(
    r"(?im)^\W*(no such command or device|parameters did not match|bad parameters|there was an error|"
    r"could ?n[o']t |error E\d+|error: |exception|unexpected |invalid |failed ).*$"
)
_LONGEST = 1024 * 1024  # characters of an answer that are kept


def failure_in(printed: str) -> str:
    """What a command says of its failure, a line; empty if it says nothing of the kind."""
    match = _FAILURES.search(printed)
    return match[0].strip() if match else ""


class Monitor:
    """A connection to the monitor: one command after the other."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._telnet = Telnet("dumb", columns=1000)
        self._text = ""
        self._owed = 1  # prompts that are still to come; the first one greets
        self._lock = trio.Lock()

    async def ready(self) -> None:
        """Wait for the first prompt."""
        async with self._lock:
            await self._answers()

    async def execute(self, command: str) -> str:
        """What a command prints. When cancelled, it is carried out all the same. Raises `DeviceError` if Renode has ended.

        Raises `BadValue` for what is not one line.
        """
        if not command.strip() or not command.isprintable():
            raise BadValue(f"a command of the monitor is one line, not {command!r}")
        async with self._lock:
            await self._answers()
            self._owed += 1
            try:
                await self._stream.send_all(Telnet.encode(command.encode()) + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise DeviceError(f"Renode has ended before {command!r}") from error
            return _without_echo(await self._answers(), command)

    async def _answers(self) -> str:
        """Read until all that has been asked for is answered; the last answer."""
        answer = ""
        while self._owed:
            answer = await self._answer()
            self._owed -= 1
        return answer

    async def _answer(self) -> str:
        while (match := _PROMPT.search(self._text)) is None:
            try:
                data = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise DeviceError("Renode has ended its monitor")
            plain, reply = self._telnet.feed(bytes(data))
            self._text = _CONTROL.sub("", self._text + plain.decode(errors="replace"))[-_LONGEST:]
            if reply:
                await self._stream.send_all(reply)
        answer, self._text = self._text[: match.start()], ""
        return answer


def _without_echo(answer: str, command: str) -> str:
    lines = answer.split("\n")
    for number, line in enumerate(lines):
        if line.endswith(command):
            return "\n".join(lines[number + 1 :]).strip("\n")
    return answer.strip("\n")
