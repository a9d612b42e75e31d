"""The terminal's line discipline: typed bytes in, echo and finished lines out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_LINE = 4096
"""Bytes in a line, as in Linux' own terminals (N_TTY_BUF_SIZE); what is typed beyond it rings the bell and is lost."""

CTRL_C, CTRL_D, CTRL_U, BELL, ESCAPE = 0x03, 0x04, 0x15, b"\a", 0x1B


class Signal(Enum):
    INTERRUPT = "Ctrl-C"
    END = "Ctrl-D on an empty line"


@dataclass
class Typed:
    """What came of some typed bytes: what to echo, and the first thing that was finished, if any."""

    echo: bytes = b""
    what: str | Signal | None = None


class LineEditor:
    """Edits one line at a time: backspace, Ctrl-U, Ctrl-C, Ctrl-D; arrow and function keys are ignored.

    A line ends with ``\\r``, ``\\n`` or ``\\r\\n``, whatever the terminal program at the other end sends.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._escape = b""  # what of an escape sequence has been seen
        self._after_return = False

    def take(self, typed: bytearray, echo: bool) -> Typed:
        """Consume ``typed`` from its front, up to and including what finishes a line."""
        shown = bytearray()
        used = 0
        what: str | Signal | None = None
        while what is None and used < len(typed):
            byte = typed[used]
            used += 1
            after_return, self._after_return = self._after_return, byte == 0x0D
            if self._escape:
                self._in_escape(byte)
            elif byte == ESCAPE:
                self._escape = b"\x1b"
            elif byte == 0x0A and after_return:
                pass
            elif byte in (0x0D, 0x0A):
                what = self._line.decode(errors="replace")
                self._line.clear()
                shown += b"\r\n"
            elif byte == CTRL_C:
                what = Signal.INTERRUPT
                self._line.clear()
                shown += b"^C\r\n"
            elif byte == CTRL_D and not self._line:
                what = Signal.END
            elif byte in (0x7F, 0x08):
                shown += self._erase(1, echo)
            elif byte == CTRL_U:
                shown += self._erase(len(self._line), echo)
            elif byte < 0x20:
                pass
            elif len(self._line) >= MAX_LINE:
                shown += BELL
            else:
                self._line.append(byte)
                if echo:
                    shown.append(byte)
        del typed[:used]
        return Typed(bytes(shown), what)

    def _erase(self, characters: int, echo: bool) -> bytes:
        erased = 0
        while self._line and erased < characters:
            while self._line and 0x80 <= self._line[-1] < 0xC0:  # UTF-8 continuation bytes
                self._line.pop()
            if self._line:
                self._line.pop()
            erased += 1
        return b"\b \b" * erased if echo else b""

    def _in_escape(self, byte: int) -> None:
        """ESC [ … or ESC O … up to a final byte (ECMA-48, section 5.4), or ESC and one more byte."""
        if self._escape == b"\x1b" and byte in b"[O":
            self._escape += bytes([byte])
        elif self._escape == b"\x1b" or 0x40 <= byte <= 0x7E:
            self._escape = b""
