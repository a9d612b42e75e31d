"""Telnet (RFC 854), the client's side: bytes in, the console's bytes and the answers out. No I/O here.

Options are agreed on as RFC 1143 does: what is in force, and what has been asked for and not been answered yet, decides whether a
word of the other side is answered at all, so that two sides never talk about options for ever.
"""

from __future__ import annotations

from enum import IntEnum

IAC = 255
_BINARY, _ECHO, _SUPPRESS_GO_AHEAD, _TERMINAL_TYPE, _WINDOW_SIZE = 0, 1, 3, 24, 31
_TERMINAL_TYPE_IS, _TERMINAL_TYPE_SEND = 0, 1
_HERE = frozenset({_BINARY, _SUPPRESS_GO_AHEAD, _TERMINAL_TYPE, _WINDOW_SIZE})  # what we do when asked
_THERE = frozenset({_BINARY, _ECHO, _SUPPRESS_GO_AHEAD})  # what the other side may do
_LONGEST = 4096  # bytes of a subnegotiation that are kept


class Word(IntEnum):
    """What may follow IAC."""

    SE = 240
    BREAK = 243
    SB = 250
    WILL = 251
    WONT = 252
    DO = 253
    DONT = 254


class Telnet:
    """One connection's state."""

    def __init__(self, terminal: str = "vt100", columns: int = 80, lines: int = 24) -> None:
        self._terminal = terminal.encode()
        self._size = columns.to_bytes(2, "big") + lines.to_bytes(2, "big")
        self._on: set[tuple[bool, int]] = set()  # (here or there, option)
        self._asked: set[tuple[bool, int]] = set()
        self._pending = bytearray()
        self._after_cr = False

    def begin(self) -> bytes:
        """What to say first: every byte is to pass as it is, both ways."""
        wanted = [(True, _BINARY), (False, _BINARY), (True, _SUPPRESS_GO_AHEAD), (False, _SUPPRESS_GO_AHEAD)]
        self._asked.update(wanted)
        return b"".join(bytes([IAC, Word.WILL if here else Word.DO, option]) for here, option in wanted)

    @staticmethod
    def encode(data: bytes) -> bytes:
        """The console's bytes as they are sent.

        Without a NUL after each CR, which RFC 854 wants outside of binary mode: terminal servers hand that to the device, and
        telnetds can do without.
        """
        return data.replace(b"\xff", b"\xff\xff")

    @staticmethod
    def send_break() -> bytes:
        return bytes([IAC, Word.BREAK])

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What came: the console's bytes, and what to answer."""
        self._pending += data
        plain, answers = bytearray(), bytearray()
        while self._pending:
            start = self._pending.find(IAC)
            if start != 0:
                end = start if start > 0 else len(self._pending)
                plain += self._text(bytes(self._pending[:end]))
                del self._pending[:end]
                continue
            length = self._length()
            if length is None:
                break
            command = bytes(self._pending[:length])
            del self._pending[:length]
            if command[1] == IAC:
                plain += self._text(b"\xff")
            else:
                answers += self._obey(command)
        return bytes(plain), bytes(answers)

    def _text(self, data: bytes) -> bytes:
        if (False, _BINARY) in self._on:
            return data
        if self._after_cr and data.startswith(b"\0"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\0", b"\r")

    def _length(self) -> int | None:
        """Bytes of the command that comes first; None while it is not complete."""
        if len(self._pending) < 2:
            return None
        if self._pending[1] == Word.SB:
            end = self._pending.find(bytes([IAC, Word.SE]), 2)
            if end < 0 and len(self._pending) > _LONGEST:
                return len(self._pending)  # nobody means that
            return end + 2 if end >= 0 else None
        size = 3 if Word.WILL <= self._pending[1] <= Word.DONT else 2
        return size if len(self._pending) >= size else None

    def _obey(self, command: bytes) -> bytes:
        match command[1]:
            case Word.DO | Word.DONT:
                return self._agree(True, command[2], command[1] == Word.DO)
            case Word.WILL | Word.WONT:
                return self._agree(False, command[2], command[1] == Word.WILL)
            case Word.SB if command[2:4] == bytes([_TERMINAL_TYPE, _TERMINAL_TYPE_SEND]):
                return self._told(_TERMINAL_TYPE, bytes([_TERMINAL_TYPE_IS]) + self._terminal)
        return b""

    def _agree(self, here: bool, option: int, on: bool) -> bytes:
        """The other side asks for, or answers with, an option of ours (here) or of its own."""
        key = (here, option)
        yes, no = (Word.WILL, Word.WONT) if here else (Word.DO, Word.DONT)
        asked = key in self._asked
        self._asked.discard(key)
        if on == (key in self._on):
            return b""
        if not on:
            self._on.discard(key)
            return bytes([IAC, no, option])
        if option not in (_HERE if here else _THERE):
            return bytes([IAC, no, option])
        self._on.add(key)
        answer = b"" if asked else bytes([IAC, yes, option])
        return answer + (self._told(_WINDOW_SIZE, self._size) if key == (True, _WINDOW_SIZE) else b"")

    @staticmethod
    def _told(option: int, value: bytes) -> bytes:
        return bytes([IAC, Word.SB, option]) + value.replace(b"\xff", b"\xff\xff") + bytes([IAC, Word.SE])
