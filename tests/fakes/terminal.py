"""A terminal, as a person has it: what a program shows is on its screen, what is typed goes to the program."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import pexpect
import pyte


class Terminal:
    """A program on a terminal of its own. Every wait fails after ``patience`` seconds, with the screen in the message."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        columns: int = 80,
        lines: int = 24,
        patience: float = 60.0,
    ) -> None:
        self.screen = _Screen(self, columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._patience = patience
        self.raw = b""
        """All that the program has written."""
        self.program: Any = pexpect.spawn(
            command[0], list(command[1:]), env=dict(environment), dimensions=(lines, columns), timeout=patience
        )
        self.program.delaybeforesend = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.program.close(force=True)
        except (
            pexpect.ExceptionPexpect
        ):  # it was killed; until it is gone takes longer than pexpect waits on a busy machine
            self.program.ptyproc.wait()

    @property
    def text(self) -> str:
        """What was and is on the screen, lines without what is blank at their end."""
        above = ["".join(row[column].data for column in sorted(row)).rstrip() for row in self._above()]
        return "\n".join([*above, *(row.rstrip() for row in self.screen.display)]).rstrip()

    def _above(self) -> Sequence[Any]:
        return list(self.screen.history.top)

    def type(self, keys: str) -> None:
        """Press keys."""
        self.program.send(keys)

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until the text matches a regular expression (``$`` is the end of a line, ``\\Z`` that of the text)."""
        deadline = time.monotonic() + self._patience
        while (found := re.search(pattern, self.text, re.MULTILINE)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} did not appear:\n{self.text}"
            assert self._read(), f"the program ended before {pattern!r} appeared:\n{self.text}"
        return found

    def end(self) -> int:
        """Wait until the program has ended; its exit status, 128 + N if signal N ended it."""
        while self._read():
            pass
        self.program.wait()
        status = self.program.exitstatus
        return int(status) if status is not None else 128 + int(self.program.signalstatus or 0)

    def _read(self) -> bool:
        try:
            data = self.program.read_nonblocking(65536, timeout=self._patience)
        except pexpect.EOF:
            return False
        except pexpect.TIMEOUT:
            raise AssertionError(f"nothing more came:\n{self.text}") from None
        self.raw += data
        self._stream.feed(data)
        return True


class _Screen(pyte.HistoryScreen):
    def __init__(self, terminal: Terminal, columns: int, lines: int) -> None:
        super().__init__(columns, lines, history=1000)
        self._terminal = terminal

    def write_process_input(self, data: str) -> None:
        """Where the cursor is, for one: a terminal answers when it is asked."""
        self._terminal.program.send(data)
