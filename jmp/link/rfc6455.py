"""WebSocket (RFC 6455), sans-I/O: binary messages ↔ bytes, and the client's half of the opening handshake.

Only what jmp needs of the RFC, written for speed: a message is parsed where it lies and copied once, and is sent as
one frame whose parts are never joined. No extensions. Text messages are refused (1003). Nothing here knows of sockets,
tasks or time, so the Trio link and the blocking link share it.

Masking. A client must mask its frames (section 5.1), to protect *intermediaries* from a script in a browser that
chooses the bytes on the wire (section 10.3). Our client is no browser, and inside TLS or a Unix socket no intermediary
sees a frame: there the client masks with the key 0, which any server unmasks as usual and which costs nothing. On plain
TCP the key is random, as the RFC asks. The receiving side undoes any key.
"""

from __future__ import annotations

import binascii
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Sequence
from struct import pack
from typing import Final, NoReturn, TypeAlias

from jmp.errors import Busy, LabError, LinkLost, ProtocolViolation, Refused, UsageError

SUBPROTOCOL: Final = "jmp.v1"
MAX_MESSAGE: Final = 1 << 20
"""Longest message accepted, in bytes, unless told otherwise."""
MAX_HEAD: Final = 16 << 10
"""Longest head of an HTTP request or response accepted, in bytes."""
MAX_REASON: Final = 4 << 10
"""As much of the body of a refusal is read, in bytes."""
ERROR_HEADER: Final = "Jmp-Error"
"""Response header that says with which wire code (:mod:`jmp.errors`) an upgrade was refused."""

_FIN: Final = 0x80
_MASKED: Final = 0x80
_CONTINUATION: Final = 0x0
_TEXT: Final = 0x1
_BINARY: Final = 0x2
_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA
_WHOLE_BINARY: Final = _FIN | _BINARY

_MAX_CONTROL: Final = 125
_JOINED: Final = 4096
"""Bytes of a message below which its parts are joined: that takes less time than handing several buffers to the system."""
_MAX_PIECES: Final = 64
"""So many are kept apart: each takes memory besides its bytes, and somebody may send single ones."""
_NO_KEY: Final = bytes(4)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


Buffer: TypeAlias = bytes | memoryview


class Closed(LinkLost):
    """The other side closed the connection in due form."""

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(f"the other side closed the connection: {close_code}{reason and ' '}{reason}")
        self.close_code = close_code
        self.reason = reason


class Violation(ProtocolViolation):
    """The other side broke the rules of RFC 6455; it is told so by ``close_code``."""

    def __init__(self, close_code: int, message: str) -> None:
        super().__init__(f"the other side broke the WebSocket protocol: {message}")
        self.close_code = close_code


class Codec:
    """One side of an open WebSocket connection.

    ``client`` says which side; ``mask`` (client only) asks for random mask keys, see above. Messages longer than
    ``max_message`` bytes are refused (1009) as soon as their header shows it, so never more than one message plus
    what was fed last is held.

    Frames to be sent in answer (pongs, the close frame) wait in order for :meth:`take_replies`. One thread may encode
    while another one feeds.
    """

    def __init__(self, *, client: bool, mask: bool = True, max_message: int = MAX_MESSAGE) -> None:
        self._client = client
        self._mask = mask
        self._max_message = max_message
        self._buffer = b""
        self._position = 0
        self._later: list[bytes] = []
        """What came after the buffer, and is not all that is needed."""
        self._held = 0
        """Bytes in that."""
        self._needed = 0
        """Bytes from the position on without which the message there cannot be made out."""
        self._fragments: bytearray | None = None
        # Only the latest pongs matter (section 5.5.3), so a flood of pings takes no memory; a close frame is always the last.
        self._replies: deque[bytes] = deque(maxlen=8)
        self._close_sent = False
        self._end: Closed | Violation | None = None

    @property
    def ended(self) -> bool:
        """Whether the other side closed or broke the rules: no message will come any more."""
        return self._end is not None

    def encode(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Make one binary frame of the parts; the buffers returned follow one another on the wire."""
        return self._frame(_BINARY, parts)

    def encode_close(self, code: int = 1000, reason: str = "") -> bytes:
        """Make the close frame; empty if one was sent or queued before. No message may follow it."""
        if self._close_sent:
            return b""
        self._close_sent = True
        # Cut to what a control frame holds, at a character's border.
        text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore").encode()
        return b"".join(self._frame(_CLOSE, [code.to_bytes(2, "big"), text]))

    def feed(self, data: bytes) -> None:
        """Take bytes that arrived. Before the next call, :meth:`next_message` has to be called until it returns None."""
        if self._end is not None:
            return
        if self._position == len(self._buffer):
            self._buffer = data
        else:
            # A long message comes in many pieces: they are put together once it is there, and copied once for that.
            self._later.append(data)
            self._held += len(data)
            if len(self._later) == _MAX_PIECES:
                self._later = [b"".join(self._later)]
            if len(self._buffer) - self._position + self._held < self._needed:
                return
            self._buffer = b"".join([memoryview(self._buffer)[self._position :], *self._later])
            self._later.clear()
            self._held = 0
        self._position = 0

    def next_message(self) -> bytes | None:
        """Return the next message; None: more bytes are needed.

        Raises :class:`Closed` or :class:`Violation` when the connection is over, and again at every later call; what is
        to be sent in answer is then in :meth:`take_replies`.
        """
        if self._end is not None:
            raise self._end
        while True:
            buffer = self._buffer
            start = self._position
            available = len(buffer) - start
            if available < 2:
                self._needed = 2
                return None
            first = buffer[start]
            second = buffer[start + 1]
            if first != _WHOLE_BINARY or self._fragments is not None:
                self._check_kind(first, second)
            if (second >= _MASKED) is self._client:
                self._fail(1002, "a server's frame was masked" if self._client else "a client's frame was not masked")
            length = second & 0x7F
            header = 2
            if length == 126:
                header = 4
                if available < header:
                    self._needed = header
                    return None
                length = buffer[start + 2] << 8 | buffer[start + 3]
                if length < 126:
                    self._fail(1002, "a length took more bytes than needed")
            elif length == 127:
                header = 10
                if available < header:
                    self._needed = header
                    return None
                length = int.from_bytes(buffer[start + 2 : start + 10], "big")
                if length >> 63:
                    self._fail(1002, "a length was negative")
                if length < 1 << 16:
                    self._fail(1002, "a length took more bytes than needed")
            fragments = self._fragments
            # Control frames (at most 125 bytes) do not count.
            if first & 0x8 == 0 and length + (len(fragments) if fragments is not None else 0) > self._max_message:
                self._fail(1009, f"a message was longer than {self._max_message} bytes")
            if second >= _MASKED:
                header += 4
            end = start + header + length
            if available < header + length:
                self._needed = header + length
                return None
            payload = buffer[start + header : end]
            if second >= _MASKED:
                payload = _mask(payload, buffer[start + header - 4 : start + header])
            self._position = end
            if first == _WHOLE_BINARY:
                return payload
            message = self._take(first, payload)
            if message is not None:
                return message

    def take_replies(self) -> bytes:
        """Return the frames to be sent in answer to what was received, once each; they must not split another frame."""
        taken = []
        while self._replies:
            taken.append(self._replies.popleft())
        return b"".join(taken)

    @property
    def has_replies(self) -> bool:
        return bool(self._replies)

    def _frame(self, opcode: int, parts: Sequence[Buffer]) -> list[Buffer]:
        length = sum(map(len, parts))
        masked = _MASKED if self._client else 0
        if length < 126:
            header = pack("!BB", _FIN | opcode, masked | length)
        elif length < 1 << 16:
            header = pack("!BBH", _FIN | opcode, masked | 126, length)
        else:
            header = pack("!BBQ", _FIN | opcode, masked | 127, length)
        if self._client and not self._mask:
            header += _NO_KEY
        if not self._client or not self._mask:
            return [b"".join((header, *parts))] if length < _JOINED else [header, *parts]
        key = os.urandom(4)
        return [header + key, _mask(b"".join(parts), key)]

    def _check_kind(self, first: int, second: int) -> None:
        opcode = first & 0xF
        if first & 0x70:
            self._fail(1002, "a reserved bit was set")
        if opcode in (_CLOSE, _PING, _PONG):
            if not first & _FIN:
                self._fail(1002, "a control frame was fragmented")
            if second & 0x7F > _MAX_CONTROL:
                self._fail(1002, "a control frame was too long")
        elif opcode == _CONTINUATION:
            if self._fragments is None:
                self._fail(1002, "a continuation had nothing to continue")
        elif opcode == _TEXT:
            self._fail(1003, "a text message; only binary messages are understood")
        elif opcode != _BINARY:
            self._fail(1002, f"opcode {opcode} is unknown")
        elif self._fragments is not None:
            self._fail(1002, "a message began before the one before it ended")

    def _take(self, first: int, payload: bytes) -> bytes | None:
        """Handle a frame that is not a message on its own; return the message it completes."""
        opcode = first & 0xF
        if opcode == _PING:
            if not self._close_sent:
                self._replies.append(b"".join(self._frame(_PONG, [payload])))
        elif opcode == _CLOSE:
            self._take_close(payload)
        elif opcode != _PONG:
            if self._fragments is None:
                self._fragments = bytearray()
            self._fragments += payload
            if first & _FIN:
                message = bytes(self._fragments)
                self._fragments = None
                return message
        return None

    def _take_close(self, payload: bytes) -> NoReturn:
        code = 1005  # "no code was given": never sent itself
        reason = ""
        if len(payload) == 1:
            self._fail(1002, "half a close code")
        if payload:
            code = int.from_bytes(payload[:2], "big")
            if not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, 1005, 1006):
                self._fail(1002, f"close code {code} is not allowed")
            try:
                reason = payload[2:].decode()
            except UnicodeDecodeError:
                self._fail(1007, "the reason for closing was not UTF-8")
        self._finish(Closed(code, reason), code if payload else 1000)

    def _fail(self, close_code: int, message: str) -> NoReturn:
        self._finish(Violation(close_code, message), close_code)

    def _finish(self, end: Closed | Violation, close_code: int) -> NoReturn:
        if not self._close_sent:
            self._replies.append(self.encode_close(close_code))
        self._buffer = b""
        self._position = 0
        self._later.clear()
        self._held = self._needed = 0
        self._fragments = None
        self._end = end
        raise end


def _mask(data: bytes, key: bytes) -> bytes:
    """Mask or unmask; the fastest way that the standard library offers."""
    if key == _NO_KEY:
        return data
    size = len(data)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


class ClientHandshake:
    """The client's half of the opening handshake: send ``request``, then :meth:`feed` what comes back.

    ``host`` is the value of the Host header, ``token`` goes into the Authorization header. Raises
    :class:`~jmp.errors.UsageError` if a header cannot be sent.
    """

    def __init__(
        self, host: str, path: str = "/", *, token: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        key = binascii.b2a_base64(os.urandom(16), newline=False)
        lines = [f"GET {path} HTTP/1.1"]
        for name, value in (
            ("Host", host),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key.decode()),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Protocol", SUBPROTOCOL),
            *([("Authorization", f"Bearer {token}")] if token is not None else []),
            *headers,
        ):
            # The value is not repeated in the message: it may be a token.
            if not f"{name}{value}".isprintable() or not f"{name}{value}".isascii():
                raise UsageError(f"the {name!r} header can only hold printable ASCII")
            lines.append(f"{name}: {value}")
        if not path.isprintable() or not path.isascii() or " " in path:
            raise UsageError(f"{path!r} is not a path of a URL: escape what is not ASCII, and spaces")
        self.request = "\r\n".join([*lines, "", ""]).encode()
        self._accept = accept_token(key)
        self._received = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes that arrived, ``b""`` for the end of input.

        Returns None while the response is incomplete, and once upgraded the bytes that followed the response. Otherwise
        raises :class:`~jmp.errors.Refused`, :class:`~jmp.errors.Busy` or :class:`~jmp.errors.LabError` with the reason
        that the server gave, :class:`~jmp.errors.ProtocolViolation` if no jmp answers there, and
        :class:`~jmp.errors.LinkLost` if the response was cut short.
        """
        self._received += data
        head, end_of_head, rest = bytes(self._received).partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD:
            raise _not_jmp("its response is too long")
        if not end_of_head:
            if not self._received.startswith(b"HTTP/1.1 "[: len(self._received)]):
                raise _not_jmp("its response is not HTTP/1.1")
            if not data:
                raise LinkLost("the other side ended the connection during the opening handshake")
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, status = status_line.partition(" ")
        if version != "HTTP/1.1":
            raise _not_jmp("its response is not HTTP/1.1")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if status[:3] == "101":
            self._check_upgrade(headers)
            return rest
        length = headers.get("content-length", "")
        expected = min(int(length), MAX_REASON) if length.isascii() and length.isdigit() else MAX_REASON
        if data and len(rest) < expected:
            return None
        raise _refusal(status, headers, rest[:expected])

    def _check_upgrade(self, headers: dict[str, str]) -> None:
        if (
            headers.get("upgrade", "").lower() != "websocket"
            or "upgrade" not in [token.strip() for token in headers.get("connection", "").lower().split(",")]
            or headers.get("sec-websocket-accept") != self._accept
        ):
            raise _not_jmp("its answer to the upgrade is wrong")
        if "sec-websocket-extensions" in headers:
            raise _not_jmp("it uses an extension that was not offered")
        if headers.get("sec-websocket-protocol") != SUBPROTOCOL:
            raise _not_jmp(f"it does not speak the subprotocol {SUBPROTOCOL}")


def accept_token(key: bytes) -> str:
    """What a server answers to a client's Sec-WebSocket-Key (section 4.2.2)."""
    return binascii.b2a_base64(hashlib.sha1(key + _GUID, usedforsecurity=False).digest(), newline=False).decode()


def _not_jmp(why: str) -> ProtocolViolation:
    return ProtocolViolation(f"this is not a jmp: {why}; check the address")


def _refusal(status: str, headers: dict[str, str], body: bytes) -> Exception:
    reason = body.decode(errors="replace").strip() if headers.get("content-type", "").startswith("text/plain") else ""
    # One line, and nothing in it that could play tricks on a terminal.
    reason = "".join(char if char.isprintable() else " " for char in reason or status)
    match status[:3]:
        case "401" | "403":
            return Refused(reason)
        case "503" if headers.get(ERROR_HEADER.lower()) == Busy.code:
            return Busy(reason)
        case "502" | "503" | "504":  # also what a reverse proxy says when the server behind it is gone
            return LabError(f"the other side cannot serve now: {reason}")
        case _:
            return _not_jmp(f"it answered {status!r}")
