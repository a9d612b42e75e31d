"""Frames: what a mux puts into the messages of a link.

One message holds one or more whole frames. A frame is a msgpack array: its kind, the stream it belongs to (0: the link
as a whole), and what the kind says. ``docs/protocol.md`` is the specification, with these names. Elements past those
listed here, and kinds not listed here, are ignored by the receiver, so that a later minor version may add some.

====== === ===============================  =======================================================================
kind    #  elements after kind and stream   meaning
====== === ===============================  =======================================================================
HELLO   0  properties: map                  first frame in each direction: ``version`` [major, minor], ``agent``
OPEN    1  data: bin, end: bool             a new stream, with its first bytes; ``end``: they are also the last
DATA    2  data: bin, end: bool             the next bytes of a stream
END     3                                   no bytes will follow from this side
CREDIT  4  bytes: int                       the other side may send so many bytes more
STOP    5                                   this side reads no more: send nothing further
RESET   6  code: int, detail: bin           this stream is over at once, in both directions
PING    7  token: bin                       answer with PONG; stream 0
PONG    8  token: bin                       the answer; stream 0
GOAWAY  9  code: int, reason: str           no new streams please; those open go on; stream 0
====== === ===============================  =======================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import msgpack

from jmp.errors import ProtocolViolation


class Kind(IntEnum):
    HELLO = 0
    OPEN = 1
    DATA = 2
    END = 3
    CREDIT = 4
    STOP = 5
    RESET = 6
    PING = 7
    PONG = 8
    GOAWAY = 9


class Reset(IntEnum):
    """Why a stream was reset."""

    CANCELLED = 0
    """Its user gave it up."""
    FAILED = 1
    """What served it failed; ``detail`` says how."""
    REFUSED = 2
    """Too many streams are open."""
    FLOW = 3
    """More bytes were sent than credit was given."""


class Frame(NamedTuple):
    kind: int
    stream: int
    a: Any = None
    """The first element after the stream, of the type that the table gives."""
    b: Any = None


MAX_DATA: Final = 64 * 1024
"""Bytes of data in one frame: more delays other streams, less costs throughput (measured: 16 KiB −8 %, 256 KiB −40 %)."""
MAX_MESSAGE: Final = 1024 * 1024
"""Bytes in one message of a link; see ``TARGET_MESSAGE`` for what is sent."""
TARGET_MESSAGE: Final = 256 * 1024
"""Frames that are ready leave together up to about this size."""

_BATCH: Final = 32
"""Frames of one message that are read in a row: about 0.1 ms of work."""

MAX_STREAM: Final = 2**32 - 1

_TYPES: Final[dict[int, tuple[type, ...]]] = {
    Kind.HELLO: (dict,),
    Kind.OPEN: (bytes, bool),
    Kind.DATA: (bytes, bool),
    Kind.END: (),
    Kind.CREDIT: (int,),
    Kind.STOP: (),
    Kind.RESET: (int, bytes),
    Kind.PING: (bytes,),
    Kind.PONG: (bytes,),
    Kind.GOAWAY: (int, str),
}
_LINK_KINDS: Final = frozenset({Kind.HELLO, Kind.PING, Kind.PONG, Kind.GOAWAY})

_BARE = struct.Struct(">BBBI")
"""A msgpack array: how many elements, the first one (a small int), the second one (a 32-bit int)."""
_HEAD_8, _HEAD_16, _HEAD_32 = struct.Struct(">BBBIBB"), struct.Struct(">BBBIBH"), struct.Struct(">BBBIBI")
"""A msgpack array of four: its first element (a small int), its second (a 32-bit int), and the head of its third (bytes)."""


def pack(kind: Kind, stream: int, *elements: object) -> bytes:
    return msgpack.packb((int(kind), stream, *elements), use_bin_type=True) or b""


def pack_bare(kind: int, stream: int) -> bytes:
    """A frame that says nothing but its kind: END or STOP."""
    return _BARE.pack(_ARRAY_OF_2, kind, _UINT_32, stream)


def pack_data(kind: int, stream: int, data: bytes | memoryview, end: bool) -> tuple[bytes | memoryview, ...]:
    """An OPEN or DATA frame in parts, one being ``data`` itself if that is large: no copy is made of it."""
    size = len(data)
    if size < 0x100:
        head = _HEAD_8.pack(0x94, kind, 0xCE, stream, 0xC4, size)
        return (b"".join((head, data, b"\xc3" if end else b"\xc2")),)
    long, width = (_HEAD_16, 0xC5) if size < 0x10000 else (_HEAD_32, 0xC6)
    return long.pack(0x94, kind, 0xCE, stream, width, size), data, b"\xc3" if end else b"\xc2"


def unpack(message: bytes) -> list[Frame]:
    """The frames of one message, in order, those of unknown kind left out.

    Raises :class:`~jmp.errors.ProtocolViolation` for anything that is not a whole number of well-formed frames.
    """
    return list(chain.from_iterable(batches(message)))


def batches(message: bytes) -> Iterator[list[Frame]]:
    """As :func:`unpack`, but ``_BATCH`` of them at a time: a message may hold a third of a million frames, which take a while."""
    frames: list[Frame] = []
    size = len(message)
    at = 0
    while size - at >= _BARE.size:
        # Frames as they are usually written, which is nearly all that ever comes: read where they lie.
        array, kind, wide, stream = _BARE.unpack_from(message, at)
        if wide != _UINT_32 or not stream:
            break
        if len(frames) == _BATCH:
            yield frames
            frames = []
        if array == _ARRAY_OF_2 and (kind == Kind.END or kind == Kind.STOP):
            frames.append(_frame(Frame, (kind, stream, None, None)))
            at += _BARE.size
            continue
        if array != _ARRAY_OF_4 or not 0 < kind < 3 or size - at <= _SHORTEST:
            break
        width, length = message[at + 7], message[at + 8]
        begin = at + 9
        if width != _BIN_8:
            if width == _BIN_16:
                begin += 1
            elif width == _BIN_32:
                begin += 3
            else:
                break
            length = int.from_bytes(message[at + 8 : begin], "big")
        end = begin + length
        if end >= size or message[end] not in _BOOL:
            break
        frames.append(_frame(Frame, (kind, stream, message[begin:end], message[end] == _TRUE)))
        at = end + 1
    yield frames
    if at < size:
        # The rest in one go: a message that mixes them costs no more for that.
        yield from _any_batches(message[at:] if at else message)


_ARRAY_OF_2: Final = 0x92
_ARRAY_OF_4: Final = 0x94
_UINT_32: Final = 0xCE
_BIN_8: Final = 0xC4
_BIN_16: Final = 0xC5
_BIN_32: Final = 0xC6
_TRUE: Final = 0xC3
_BOOL: Final = frozenset({0xC2, _TRUE})
_SHORTEST: Final = 9
"""Bytes of an OPEN or DATA frame before the last of one without data."""
_frame: Final = tuple.__new__  # less than half the time of Frame() itself


def _any_batches(message: bytes) -> Iterator[list[Frame]]:
    """The frames of a message, whatever their kind and encoding."""
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=MAX_MESSAGE, max_array_len=16, max_map_len=64, max_ext_len=0)
    end = 0
    try:
        unpacker.feed(message)
        while items := [(item, unpacker.tell()) for item in islice(unpacker, _BATCH)]:
            end = items[-1][1]  # here only: later it counts the bytes of half a frame, too
            yield [frame for item, _ in items if (frame := _checked(item)) is not None]
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise ProtocolViolation(f"a message holds no valid frames: {str(error) or type(error).__name__}") from error
    if end != len(message):
        raise ProtocolViolation("a message ends inside a frame")


def _checked(item: object) -> Frame | None:
    if (
        type(item) is not list
        or len(item) < 2
        or type(item[0]) is not int
        or type(item[1]) is not int
        or not 0 <= item[1] <= MAX_STREAM
    ):
        raise ProtocolViolation("a frame is not an array of kind, stream and more")
    kind, stream = item[0], item[1]
    types = _TYPES.get(kind)
    if types is None:
        return None
    count = len(types)
    if len(item) < count + 2 or any(type(item[place + 2]) is not types[place] for place in range(count)):
        raise ProtocolViolation(f"a frame of kind {Kind(kind).name} lacks an element or has one of the wrong type")
    if (stream == 0) is not (kind in _LINK_KINDS):
        raise ProtocolViolation(f"a frame of kind {Kind(kind).name} names stream {stream}")
    return Frame(*item[: count + 2])
