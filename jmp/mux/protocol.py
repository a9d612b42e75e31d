"""The mux protocol, sans-I/O. ``docs/protocol.md`` is its specification.

Theory of operation. A link carries messages; each holds whole frames (:mod:`jmp.wire.frames`). Either side opens streams:
the dialling side gives them odd numbers, the listening side even ones, always rising. A stream has two independent
directions. Each ends with END (orderly) or is given up with STOP by the side that reads it; RESET ends both at once. A
stream is forgotten when both directions are over, and frames that name a forgotten stream are ignored, because they
may have crossed the frame that ended it.

Flow control is per stream and direction: a sender starts with ``WINDOW`` bytes of credit and gets more as the reader
*consumes*. So what a link can make its receiver hold is bounded by streams × window, and the reader of the link never has
to wait for the reader of a stream. Whoever sends more than its credit has that one stream reset.

The caller, a thin asynchronous or blocking half, does three things: gives received messages to :meth:`Mux.receive` and
acts on the events; calls the actions (:meth:`Mux.open`, :meth:`Mux.send`, …); sends what :meth:`Mux.outgoing` returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final, NamedTuple

from jmp.errors import JmpError, LinkLost, ProtocolViolation
from jmp.wire.frames import MAX_DATA, MAX_STREAM, TARGET_MESSAGE, Kind, Reset, batches, pack, pack_bare, pack_data

VERSION: Final = (1, 0)
"""Major and minor. Peers with the same major work together; a newer minor only adds what an older one ignores."""
WINDOW: Final = 1024 * 1024
"""Bytes a stream's sender may have on the way (measured: 256 KiB gives 57 %, 4 MiB 93 % of this one's throughput)."""
MAX_QUEUED: Final = 64 * 1024 * 1024
"""Bytes waiting to be sent past which the other side is taken to ask for answers without ever reading them."""
MAX_FRAMES_QUEUED: Final = 64 * 1024
"""Frames, likewise: the smallest ones take thirty times as much memory as they have bytes."""
_MOST_PARTS: Final = 4096
_MANY_PARTS: Final = 64
"""Past which those of a message are joined: as many small objects as a link may keep would be large."""
MAX_CREDIT: Final = 2**40
MAX_STREAMS: Final = 1024
"""Streams that the other side may have open at once; more are reset as REFUSED."""


_OPEN: Final = int(Kind.OPEN)  # plain numbers, for what there is much of: they compare several times as fast
_DATA: Final = int(Kind.DATA)


class Role(Enum):
    """Which side of the link this is: it decides the numbers of the streams it opens."""

    DIALLER = 1
    LISTENER = 2


class Side(Enum):
    """One direction of a stream, seen from the side that sends in it."""

    OPEN = "open"
    STOPPED = "stopped"
    """The reader wants no more; only the sender's END is outstanding. What arrives meanwhile is dropped."""
    ENDED = "ended"


class Opened(NamedTuple):
    """The other side opened a stream; its first bytes follow as :class:`Received`."""

    stream: int


class Received(NamedTuple):
    """Bytes arrived. They count against the window until :meth:`Mux.consumed` is told of them."""

    stream: int
    data: bytes


class Ended(NamedTuple):
    """The other side will send no more on this stream."""

    stream: int


class Credited(NamedTuple):
    """There is more credit to send with."""

    stream: int


class Stopped(NamedTuple):
    """The other side reads no more on this stream; what is sent on is lost, so sending is over."""

    stream: int


class WasReset(NamedTuple):
    """The stream is over at once, both ways."""

    stream: int
    code: int
    detail: bytes


class Pong(NamedTuple):
    token: bytes


class GoingAway(NamedTuple):
    """The other side will take no new streams."""

    code: int
    reason: str


Event = Opened | Received | Ended | Credited | Stopped | WasReset | Pong | GoingAway


class _Stream:
    __slots__ = ("credit", "inbound", "outbound", "owed", "room")

    def __init__(self, window: int) -> None:
        self.outbound = Side.OPEN
        self.inbound = Side.OPEN
        self.credit = window
        """Bytes this side may still send."""
        self.room = WINDOW
        """Bytes the other side may still send."""
        self.owed = 0
        """Bytes consumed here and not yet returned as credit."""


class Mux:
    """One side's state of one link. Not thread-safe: the caller sees to it."""

    def __init__(self, role: Role, *, agent: str = "jmp", max_streams: int = MAX_STREAMS) -> None:
        self._own = role.value & 1
        self._next = role.value
        self._last_peer = 0
        self._streams: dict[int, _Stream] = {}
        self._of_peer = 0
        self._max_streams = max_streams
        self._refused = 0  # since one was accepted
        self._out: deque[tuple[bytes | memoryview, ...]] = deque()
        self._greeted = False
        self._going_away = False
        self.peer: dict[Any, Any] = {}
        """What the other side's HELLO said."""
        self.outgoing_bytes = 0
        """Bytes that wait to be sent."""
        self._taken = 0
        self._queue(pack(Kind.HELLO, 0, {"version": list(VERSION), "agent": agent}))

    # ---- what comes in

    def receive(self, message: bytes) -> list[Event]:
        """What ``message`` means, in order.

        Raises :class:`~jmp.errors.ProtocolViolation` if the other side broke the protocol in a way that concerns the whole link:
        the caller then closes it.
        """
        return [event for events in self.read(message) for event in events]

    def read(self, message: bytes) -> Iterator[list[Event]]:
        """As :meth:`receive`, a few frames at a time: who serves others, too, gives them their turn in between."""
        for frames in batches(message):
            events: list[Event] = []
            for kind, number, a, b in frames:
                if not self._greeted:
                    self._greet(kind, a)
                elif kind == _DATA:
                    self._on_data(events, self._streams.get(number) or self._known(number), number, a, b)
                elif kind == _OPEN:
                    self._on_open(events, number, a, b)
                elif number:
                    self._on_stream(events, kind, number, a, b)
                elif kind == Kind.PING:
                    self._queue(pack(Kind.PONG, 0, a))
                elif kind == Kind.PONG:
                    events.append(Pong(a))
                elif kind == Kind.GOAWAY:
                    events.append(GoingAway(a, b))
            if self.outgoing_bytes > MAX_QUEUED or len(self._out) > MAX_FRAMES_QUEUED:
                raise ProtocolViolation("the other side asks for answers without reading them")
            yield events

    def _greet(self, kind: int, properties: Any) -> None:
        if kind != Kind.HELLO:
            raise ProtocolViolation(f"the first frame is {Kind(kind).name}, not HELLO")
        version = properties.get("version")
        if type(version) is not list or len(version) != 2 or any(type(part) is not int for part in version):
            raise ProtocolViolation("HELLO names no version")
        if version[0] != VERSION[0]:
            raise ProtocolViolation(
                f"the other side speaks version {version[0]}.{version[1]} of the protocol, this is {VERSION[0]}.{VERSION[1]}:"
                f" update the {'other side' if version[0] < VERSION[0] else 'jmp on this side'}"
            )
        self._greeted = True
        self.peer = properties

    def _known(self, number: int) -> _Stream | None:
        """The stream, or None if it is forgotten; a violation if it never was."""
        stream = self._streams.get(number)
        if stream is None and number > (self._last_peer if self._is_peers(number) else self._next - 2):
            raise ProtocolViolation(f"stream {number} was never opened")
        return stream

    def _is_peers(self, number: int) -> bool:
        return number & 1 != self._own

    def _on_open(self, events: list[Event], number: int, data: bytes, end: bool) -> None:
        if not self._is_peers(number) or number <= self._last_peer:
            raise ProtocolViolation(f"stream {number} was opened out of turn")
        self._last_peer = number
        if self._going_away or self._of_peer >= self._max_streams:
            self._refused += 1
            if self._refused > 16 * self._max_streams:
                raise ProtocolViolation("the other side goes on opening streams though they are refused")
            self._queue(pack(Kind.RESET, number, int(Reset.REFUSED), b""))
            return
        self._of_peer += 1
        self._refused = 0
        stream = self._streams[number] = _Stream(WINDOW)
        events.append(Opened(number))
        self._on_data(events, stream, number, data, end)

    def _on_data(self, events: list[Event], stream: _Stream | None, number: int, data: bytes, end: bool) -> None:
        if stream is None:
            return
        if stream.inbound is Side.ENDED:
            raise ProtocolViolation(f"stream {number} went on after its END")
        if stream.inbound is Side.OPEN and data:
            if len(data) > stream.room:
                self.reset(number, Reset.FLOW)
                events.append(WasReset(number, Reset.FLOW, b""))
                return
            stream.room -= len(data)
            events.append(Received(number, data))
        if end:
            if stream.inbound is Side.OPEN:
                events.append(Ended(number))
            stream.inbound = Side.ENDED
            if stream.outbound is Side.ENDED:
                self._forget(number)

    def _on_stream(self, events: list[Event], kind: int, number: int, a: Any, b: Any) -> None:
        stream = self._known(number)
        if stream is None:
            return
        if kind == Kind.CREDIT:
            stream.credit += a
            if a <= 0 or stream.credit > MAX_CREDIT:
                raise ProtocolViolation(f"{a} bytes of credit were given to stream {number}")
            events.append(Credited(number))
        elif kind == Kind.END:
            self._on_data(events, stream, number, b"", True)
        elif kind == Kind.STOP:
            if stream.outbound is Side.OPEN:
                events.append(Stopped(number))
                self.end(number)
        elif kind == Kind.RESET:
            self._forget(number)
            events.append(WasReset(number, a, b))

    # ---- actions

    def open(self, data: bytes = b"", *, end: bool = False) -> int:
        """Open a stream and send its first bytes with it, 64 KiB at most; returns its number."""
        assert len(data) <= MAX_DATA
        number = self._next
        if number > MAX_STREAM:
            raise ProtocolViolation("this link has used up its stream numbers; dial again")
        self._next += 2
        stream = self._streams[number] = _Stream(WINDOW)
        stream.credit -= len(data)
        if end:
            stream.outbound = Side.ENDED
        self._queue(*pack_data(_OPEN, number, data, end))
        return number

    def credit(self, number: int) -> int:
        """Bytes that may be sent on the stream now; 0 if sending on it is over."""
        stream = self._streams.get(number)
        return stream.credit if stream is not None and stream.outbound is Side.OPEN else 0

    def send(self, number: int, data: bytes | memoryview, *, end: bool = False) -> None:
        """Send ``data``, which must not change afterwards: within the credit and 64 KiB at most.

        Nothing happens if sending on the stream is over.
        """
        stream = self._streams.get(number)
        if stream is None or stream.outbound is not Side.OPEN:
            return
        assert len(data) <= min(stream.credit, MAX_DATA)
        stream.credit -= len(data)
        self._queue(*pack_data(_DATA, number, data, end))
        if end:
            stream.outbound = Side.ENDED
            self._forget_if_over(stream, number)

    def end(self, number: int) -> None:
        """Say that nothing more will be sent on the stream."""
        stream = self._streams.get(number)
        if stream is not None and stream.outbound is Side.OPEN:
            self._queue(pack_bare(Kind.END, number))
            stream.outbound = Side.ENDED
            self._forget_if_over(stream, number)

    def stop(self, number: int) -> None:
        """Say that nothing more will be read from the stream."""
        stream = self._streams.get(number)
        if stream is not None and stream.inbound is Side.OPEN:
            self._queue(pack_bare(Kind.STOP, number))
            stream.inbound = Side.STOPPED

    def reset(self, number: int, code: int = Reset.CANCELLED, detail: bytes = b"") -> None:
        """End the stream at once, both ways."""
        if number in self._streams:
            self._queue(pack(Kind.RESET, number, int(code), detail))
            self._forget(number)

    def consumed(self, number: int, count: int) -> bool:
        """``count`` received bytes are held no longer: the other side may send as many again. Whether it is to be told now."""
        stream = self._streams.get(number)
        if stream is None or stream.inbound is not Side.OPEN:
            return False
        stream.owed += count
        if stream.owed < WINDOW // 2:
            return False
        self._queue(pack(Kind.CREDIT, number, stream.owed))
        stream.room += stream.owed
        stream.owed = 0
        return True

    def ping(self, token: bytes = b"") -> None:
        """Ask for a sign of life: :class:`Pong` with ``token`` will follow."""
        self._queue(pack(Kind.PING, 0, token))

    def go_away(self, code: int = 0, reason: str = "") -> None:
        """Take no new streams from the other side; those open go on."""
        self._going_away = True
        self._queue(pack(Kind.GOAWAY, 0, code, reason))

    def outgoing(self) -> list[bytes | memoryview]:
        """The parts of the next message to send: whole frames, about 256 KiB at most; empty if none wait."""
        parts: list[bytes | memoryview]
        if len(self._out) == 1:  # as nearly always
            parts = list(self._out.popleft())
            self._taken += self.outgoing_bytes
            self.outgoing_bytes = 0
            return parts
        parts = []
        size = 0
        while self._out and size < TARGET_MESSAGE and len(parts) < _MOST_PARTS:
            for part in self._out.popleft():
                parts.append(part)
                size += len(part)
        self.outgoing_bytes -= size
        self._taken += size
        return parts if len(parts) <= _MANY_PARTS else [b"".join(parts)]

    @property
    def position(self) -> int:
        """How many bytes were given to be sent, in all; some of them may wait still."""
        return self._taken + self.outgoing_bytes

    @property
    def streams(self) -> int:
        """How many streams are not over yet."""
        return len(self._streams)

    def _queue(self, *frame: bytes | memoryview) -> None:
        self._out.append(frame)
        for part in frame:
            self.outgoing_bytes += len(part)

    def _forget_if_over(self, stream: _Stream, number: int) -> None:
        if stream.inbound is Side.ENDED and stream.outbound is Side.ENDED:
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._streams[number]
        if self._is_peers(number):
            self._of_peer -= 1


def take(chunks: deque[bytes], max_bytes: int | None) -> bytes:
    """Take out bytes that arrived: at most ``max_bytes``, or else about a message's worth: each turn of a reader costs."""
    data = chunks.popleft()
    if max_bytes is not None:
        if len(data) > max_bytes:
            chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
    elif chunks:
        pieces, size = [data], len(data)
        while chunks and size < TARGET_MESSAGE:
            pieces.append(chunks.popleft())
            size += len(pieces[-1])
        data = b"".join(pieces)
    return data


def again(error: JmpError) -> JmpError:
    """A fresh exception, to be raised where somebody learns only now of the error that ended the link."""
    kind = ProtocolViolation if isinstance(error, ProtocolViolation) else LinkLost
    fresh = kind(error.message)
    fresh.__cause__ = error
    return fresh
