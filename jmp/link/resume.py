"""A session that outlives its links, sans-I/O: what is sent again after a break, and what is not.

Theory of operation. A session carries whole messages over one link after another. Each end counts what it has received, and
keeps what it sent until the other end says that it has that. Messages are not numbered on the wire: they are in order, so their
place says it. What the ends tell each other goes in front of a message's own frames, or in a message without any, which does
not count:

====== === ============================ ==========================================================================
prefix  #  elements after kind, stream  meaning
====== === ============================ ==========================================================================
RESUME 10  properties: map              first on every link, by the dialler, then by the listener: ``key``, ``received``;
                                        instead of the latter ``refused``, why the session cannot go on. A dialler
                                        may give ``token``, which shows once more who it is
ACK    11  received: uint 64            so many messages have arrived in this direction, since the session began
====== === ============================ ==========================================================================

They have the shape of frames (:mod:`jmp.wire.frames`) of stream 0, so a peer that knows nothing of this ignores them, and then
there is nothing to resume: see :attr:`Resume.plain`.

On the first link the dialler sends its RESUME with its first message and waits for nothing. On every further one it sends
nothing but that until the answer tells from where on to send again; so the listener sees by the first message alone whether a
session begins or goes on. The listener never sends before it has heard the dialler.

Where a session ends for good, :meth:`Resume.arrived` tells what has reached the other end, as far as this one knows.

The caller, a thin asynchronous or blocking half, tells of links that come and go (:meth:`Resume.attach`, :meth:`Resume.detach`),
hands over what came (:meth:`Resume.receive`) and what is to go (:meth:`Resume.put`), and sends what :meth:`Resume.take` returns,
one after the other. Time is its affair: how long to wait for a link, and when to acknowledge what nothing else did.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack

from jmp.errors import LinkLost, ProtocolViolation
from jmp.link.rfc6455 import Buffer

RESUME: Final = 10
ACK: Final = 11
MAX_KEPT: Final = 8 * 1024 * 1024
"""Bytes kept in case they must be sent again; then senders wait. Several windows of a stream (:mod:`jmp.mux.protocol`)."""
MAX_KEPT_MESSAGES: Final = 8192
_ACK_ALONG: Final = 16
"""Messages received after which the next one sent acknowledges them; one that answers each call would cost more than it saves."""
ACK_BYTES: Final = 512 * 1024
"""Bytes received after which they are acknowledged although there is nothing else to send."""
ACK_MESSAGES: Final = 256
MIN_KEY: Final = 16
"""Bytes of the shortest key: it is all that tells one session of a client from another, so it must not be guessable."""
MAX_PREFIX: Final = 16 * 1024

RESUME_SECONDS: Final = 45.0
"""How long a dialler looks for another link: a router restarts, a laptop changes its network, or sleeps for a moment."""
LISTEN_SECONDS: Final = 60.0
"""How long a listener waits for that: longer, because the dialler may notice the loss only after 15 s of silence."""
ANSWER_SECONDS: Final = 5.0
"""How long the other end may take to answer on a new link; then another one is tried."""
ATTEMPT_SECONDS: Final = 10.0
"""How long one attempt to get a link may take."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts: doubled from the first to the longest, each drawn at random from the upper half."""
GOOD_SECONDS: Final = 0.5
"""After which a link was a good one: the next attempt is made without a pause again."""
PASSING_CODES: Final = frozenset({1012, 1013, 1014})
"""Good-byes (RFC 6455, section 7.4) of who is between the ends; all others are an end's own, and end the session."""

_ACK: Final = struct.Struct(">4sQ")
_ACK_HEAD: Final = b"\x93\x0b\x00\xcf"
_RESUME_HEAD: Final = b"\x93\x0a\x00"


class Ended(LinkLost):
    """The other end has refused to go on with the session: it will not be resumed."""


class Resume:
    """One end of a session. The dialler gives its ``key``; the listener learns it from the first message.

    Not thread-safe: the caller sees to it.
    """

    def __init__(self, key: bytes | None = None) -> None:
        assert key is None or len(key) >= MIN_KEY
        self.key = key
        self.plain = False
        """The other end knows nothing of sessions: messages pass as they are, and nothing is left of a link that breaks."""
        self.attached = False
        """Whether there is a link, for all that this end knows."""
        self._dialler = key is not None
        self._links = 0
        self._greeting = False  # RESUME is to be said next
        self._open = False  # on this link, the other side has said its RESUME
        self._kept: deque[tuple[int, Sequence[Buffer]]] = deque()  # sizes and messages that are not acknowledged
        self._kept_bytes = 0
        self._sent = 0  # how many of those have gone on this link
        self._acknowledged = 0  # messages before the first of those
        self._reached = 0  # messages that have gone on any link
        self._acknowledged_bytes = self._reached_bytes = 0  # of these
        self._token: str | None = None
        self._received = 0
        self._told = 0  # what of that the other side knows
        self._owed_bytes = 0

    # ---- links

    @property
    def open(self) -> bool:
        """Whether there is a link on which the other side has said which session it is."""
        return self.attached and (self._open or self.plain)

    def attach(self, token: str | None = None) -> None:
        """There is a new link; one that there was before is given up. A dialler may show a ``token``."""
        assert not self.plain
        self._token = token
        self.attached = True
        self._links += 1
        self._greeting = self._dialler
        self._open = False
        self._sent = 0

    def detach(self) -> bool:
        """The link is gone. Whether the session can go on over another one."""
        self.attached = False
        return not self.plain and self.key is not None

    # ---- what comes in

    def receive(self, message: bytes) -> bytes | None:
        """The other side's own message; None if this was none.

        Raises :class:`~jmp.errors.ProtocolViolation` if that side breaks the rules, and :class:`Ended` if it will not go on.
        """
        if self.plain:
            return message
        if not self._open:
            properties, message = _opening(message)
            if not self._begin(properties):
                return message
        if message.startswith(_ACK_HEAD):
            if len(message) < _ACK.size:
                raise ProtocolViolation("a message ends inside a frame")
            self._acknowledge(_ACK.unpack_from(message)[1])
            message = message[_ACK.size :]
        if not message:
            return None
        self._received += 1
        self._owed_bytes += len(message)
        return message

    def _begin(self, properties: dict[Any, Any] | None) -> bool:
        """Act on the RESUME that a link began with; False if the other side has none."""
        if properties is None:
            if self._links > 1:  # what went over the first one would be done twice
                raise ProtocolViolation("a link began without saying which session it goes on with")
            self.plain = True
            self._greeting = False
            self._drop(self._sent)
            return False
        key, received, refused = (properties.get(name) for name in ("key", "received", "refused"))
        if self._dialler and type(refused) is str:
            raise Ended(f"it cannot be resumed: {refused}")
        if type(key) is not bytes or len(key) < MIN_KEY or type(received) is not int:
            raise ProtocolViolation("RESUME names no key, or not how many messages were received")
        if self.key is None:
            self.key = key
        elif key != self.key:
            raise ProtocolViolation("RESUME names another session")
        self._acknowledge(received)
        self._open = True
        self._greeting = not self._dialler
        return True

    def _acknowledge(self, received: int) -> None:
        count = received - self._acknowledged
        # What has gone on an earlier link only is acknowledged by this one's RESUME, or not before it has gone here.
        if not 0 <= count <= (self._sent if self._open else self._reached - self._acknowledged):
            raise ProtocolViolation(f"{received} messages were acknowledged, which cannot be")
        self._drop(count)

    def _drop(self, count: int) -> None:
        for _ in range(count):
            size, _parts = self._kept.popleft()
            self._kept_bytes -= size
            self._acknowledged_bytes += size
        self._acknowledged += count
        self._sent = max(self._sent - count, 0)

    # ---- what goes out

    @property
    def full(self) -> bool:
        """Whether so much waits to be acknowledged that senders have to wait."""
        return self._kept_bytes >= MAX_KEPT or len(self._kept) >= MAX_KEPT_MESSAGES

    @property
    def waiting(self) -> bool:
        """Whether messages wait to be sent on this link: then no other may be sent before them."""
        return self._sent < len(self._kept)

    @property
    def owed(self) -> bool:
        """Whether the other side does not know yet of something that has arrived."""
        return self._received != self._told

    @property
    def _owes_some(self) -> bool:
        return self._received - self._told >= _ACK_ALONG or self._owed_bytes >= ACK_BYTES // 8

    @property
    def ack_due(self) -> bool:
        """Whether that is so much that it should be told now."""
        return self._owed_bytes >= ACK_BYTES or self._received - self._told >= ACK_MESSAGES

    def arrived(self, position: int) -> bool | None:
        """Whether the first ``position`` bytes of what this end was given to send have arrived; None: that is not known."""
        if position > self._reached_bytes:
            return False
        return True if position <= self._acknowledged_bytes and not self.plain else None

    def put(self, parts: Sequence[Buffer]) -> None:
        """Take a message, which must not change or be empty: it will arrive, once, as long as the session lasts."""
        size = sum(map(len, parts))
        assert size
        self._kept.append((size, parts))
        self._kept_bytes += size

    def take(self, *, ack: bool = False) -> list[Buffer]:
        """The parts of the next message to send; empty if there is none. It counts as sent until the link is gone.

        With ``ack`` it may consist of an acknowledgement only.
        """
        if not self.attached:
            return []
        parts: list[Buffer] = []
        if self._greeting:
            if self._dialler and self._links == 1 and not self.waiting:
                return parts  # it goes with the first message
            self._greeting = False
            properties: dict[str, object] = {"key": self.key, "received": self._received}
            if self._token is not None:
                properties["token"] = self._token
            parts.append(_pack(properties))
            self._told_all()
            if self._dialler and self._links > 1:
                return parts  # the answer says what else
        elif not self._open and not self.plain and (not self._dialler or self._links > 1):
            return []
        elif self.owed and not self.plain and (ack or self.ack_due or (self.waiting and self._owes_some)):
            parts.append(_ACK.pack(_ACK_HEAD, self._received))
            self._told_all()
        if self.waiting:
            size, own = self._kept[self._sent]
            parts.extend(own)
            self._sent += 1
            if self._acknowledged + self._sent > self._reached:
                self._reached += 1
                self._reached_bytes += size
            if self.plain:
                self._drop(1)
        return parts

    def _told_all(self) -> None:
        self._told = self._received
        self._owed_bytes = 0


class Opening(NamedTuple):
    """What the first message of a link says of its session."""

    key: bytes
    again: bool
    """Whether it is to go on, and has not just begun."""
    token: str | None
    """Who the dialler is."""


def opening_of(message: bytes) -> Opening | None:
    """Which session the first message of a link belongs to; None: the dialler knows nothing of sessions.

    Raises :class:`~jmp.errors.ProtocolViolation`.
    """
    properties, rest = _opening(message)
    if properties is None:
        return None
    key, token = properties.get("key"), properties.get("token")
    if type(key) is not bytes or len(key) < MIN_KEY:
        raise ProtocolViolation("RESUME names no key, or one that could be guessed")
    return Opening(key, not rest, token if type(token) is str else None)


def is_resume(message: bytes) -> bool:
    """Whether who sent this as its first message knows how to go on with its session: for those between the ends."""
    return message.startswith(_RESUME_HEAD)


def refusal(reason: str) -> bytes:
    """The listener's answer to the dialler of a session that cannot go on."""
    return _pack({"refused": reason})


def _pack(properties: dict[str, object]) -> bytes:
    return msgpack.packb((RESUME, 0, properties), use_bin_type=True) or b""


def _opening(message: bytes) -> tuple[dict[Any, Any] | None, bytes]:
    """The properties of the RESUME that ``message`` begins with, and the rest of it; None if it begins otherwise."""
    if not message.startswith(_RESUME_HEAD):
        return None, message
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=MAX_PREFIX, max_array_len=16, max_map_len=64, max_ext_len=0)
    try:
        unpacker.feed(message[:MAX_PREFIX])
        properties = unpacker.unpack()[2]
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise ProtocolViolation(f"a link began with no valid RESUME: {str(error) or type(error).__name__}") from error
    if type(properties) is not dict:
        raise ProtocolViolation("RESUME has no properties")
    return properties, message[unpacker.tell() :]
