"""Values on the wire: msgpack, with extension types so that a value arrives as it left.

Carried as they are: ``None``, ``bool``, ``int`` of any size, ``float`` (NaN and infinities included), ``str``, ``bytes``,
``list``, ``tuple``, ``dict`` with any hashable key, ``set``, ``frozenset``, ``datetime``, ``date``, ``time``,
``timedelta``, nested in each other. ``bytearray`` and ``memoryview`` arrive as ``bytes``; the zone of a ``datetime``
arrives as its offset from UTC. Anything else, subclasses included, is refused at the sender, because it would arrive as
something else than what left.

What comes in may be meant to do harm. Two things that msgpack would do are therefore kept from it: making room for as
many items as a header claims, and recursion (an extension type holds msgpack in turn; each level takes 40 KB of the C
stack, and a copy).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import Any, Final

import msgpack

from jmp.errors import BadValue, ProtocolViolation

EXT_INT: Final = 1
"""An int beyond 64 bit: two's complement, big-endian."""
EXT_DATETIME: Final = 2
"""ISO 8601 text, with the offset from UTC if the value has one."""
EXT_DATE: Final = 3
EXT_TIME: Final = 4
EXT_TIMEDELTA: Final = 5
"""msgpack array of days, seconds, microseconds."""
EXT_TUPLE: Final = 6
"""msgpack array of the items; so are the next two."""
EXT_SET: Final = 7
EXT_FROZENSET: Final = 8

MAX_NESTED: Final = 16
"""Tuples, sets and frozensets within one another."""

_BELIEVED: Final = 4096
"""In bytes: headers in so little data may claim what they like; what is longer is scanned before it is decoded."""

_ROOM: Final = 1024
"""In bytes: what there is room for at first. Most values are small, and to make more room for each takes longer than they do."""

_MALFORMED = (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError)
"""What the decoder raises for bytes that no encoder of ours makes."""


def encode(value: object) -> bytes:
    """The msgpack of ``value``.

    Raises :class:`~jmp.errors.BadValue` naming the type, and the place in ``value``, of what cannot be carried.
    """
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadValue(_why_not(value, error)) from error


def decode(data: bytes) -> Any:
    """The one value that ``data`` holds; :class:`~jmp.errors.ProtocolViolation` if it is anything else."""
    try:
        return _unpack(data, 0)
    except _MALFORMED as error:
        raise ProtocolViolation(f"a value could not be decoded: {_reason(error)}") from error


class Decoder:
    """Takes bytes in any pieces and gives the values in them; what follows a value can be taken out raw.

    ``limit`` bounds the bytes of one value, and so what is held for one that is not complete yet.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer: bytes | bytearray = b""
        self._scanner: msgpack.Unpacker | None = None
        self._scanned = 0  # bytes of the values given out since the scanner began
        self._position = 0  # where the next value begins

    def feed(self, data: bytes) -> None:
        """Add ``data``. Then take out the values that it completes, before the next call."""
        if self._position == len(self._buffer):
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            del self._buffer[: self._position]
            self._buffer += data
        else:
            self._buffer = bytearray(memoryview(self._buffer)[self._position :])
            self._buffer += data
        self._position = 0
        if self._scanner is not None:
            self._scanner.feed(data)

    def __iter__(self) -> Iterator[Any]:
        """The values that are complete by now. Raises :class:`~jmp.errors.ProtocolViolation`, also past the limit."""
        return self

    def __next__(self) -> Any:
        if self._scanner is None:
            left = len(self._buffer) - self._position
            if not left:
                raise StopIteration
            if left <= min(_BELIEVED, self._limit):
                # Nearly always it is one value, neither less nor more: that need not be scanned first.
                try:
                    value = _unpack(bytes(self._buffer), 0)
                except _MALFORMED:
                    pass  # less or more, or wrong: the scanner knows
                else:
                    self._position += left
                    return value
            self._scanner = _scanner()
            self._scanner.feed(self._buffer)
        try:
            self._scanner.skip()
        except msgpack.OutOfData:
            self._check(len(self._buffer) - self._position)
            raise StopIteration from None
        except _MALFORMED as error:
            raise ProtocolViolation(f"a value could not be decoded: {_reason(error)}") from error
        end = int(self._scanner.tell())
        size = end - self._scanned
        self._check(size)
        self._scanned = end
        begin = self._position
        self._position += size
        return decode(bytes(self._buffer[begin : self._position]))

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise ProtocolViolation(f"a value is larger than the limit of {self._limit} bytes")

    def tail(self) -> bytes:
        """Take out the bytes that follow the last value."""
        if self._position == len(self._buffer) and self._scanner is None:
            return b""
        rest = bytes(self._buffer[self._position :])
        self._buffer = b""
        self._scanner, self._scanned, self._position = None, 0, 0
        return rest


def _scanner() -> msgpack.Unpacker:
    """Finds the ends of values without making them."""
    return msgpack.Unpacker(read_size=1, max_buffer_size=2**31 - 1)


def _unpack(data: bytes, depth: int) -> Any:
    if len(data) > _BELIEVED:
        scanner = _scanner()
        scanner.feed(data)
        scanner.skip()
    return msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=_FROM_EXT[depth])


def _pack(value: object, depth: int = 0) -> bytes:
    packer = msgpack.Packer(default=_TO_EXT[depth], strict_types=True, use_bin_type=True, buf_size=_ROOM)
    packed: bytes = packer.pack(value)
    return packed


def _to_ext(depth: int, value: object) -> msgpack.ExtType:
    kind = type(value)
    if kind is int:
        assert isinstance(value, int)
        return msgpack.ExtType(EXT_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is tuple:
        return msgpack.ExtType(EXT_TUPLE, _pack_items(value, depth))
    if kind is datetime:
        return msgpack.ExtType(EXT_DATETIME, value.isoformat().encode())  # type: ignore[attr-defined]
    if kind is timedelta:
        assert isinstance(value, timedelta)
        return msgpack.ExtType(EXT_TIMEDELTA, _pack([value.days, value.seconds, value.microseconds]))
    if kind is set:
        return msgpack.ExtType(EXT_SET, _pack_items(value, depth))
    if kind is frozenset:
        return msgpack.ExtType(EXT_FROZENSET, _pack_items(value, depth))
    if kind is date:
        return msgpack.ExtType(EXT_DATE, value.isoformat().encode())  # type: ignore[attr-defined]
    if kind is time:
        assert isinstance(value, time)
        if value.tzinfo is not None and value.utcoffset() is None:
            raise TypeError(_NO_OFFSET)
        return msgpack.ExtType(EXT_TIME, value.isoformat().encode())
    raise TypeError(f"{kind.__name__} cannot be carried over the wire")


def _pack_items(value: Any, depth: int) -> bytes:
    if depth == MAX_NESTED:
        raise ValueError(_TOO_DEEP)
    return _pack(list(value), depth + 1)


_NO_OFFSET: Final = "the offset of its zone depends on the date"
_TOO_DEEP: Final = "nested too deep"


def _from_ext(depth: int, code: int, data: bytes) -> object:
    if code == EXT_INT:
        return int.from_bytes(data, "big", signed=True)
    if code == EXT_TUPLE:
        return tuple(_array(data, depth))
    if code == EXT_DATETIME:
        return datetime.fromisoformat(data.decode())
    if code == EXT_TIMEDELTA:
        days, seconds, microseconds = _array(data, depth)
        return timedelta(days, seconds, microseconds)
    if code == EXT_SET:
        return set(_array(data, depth))
    if code == EXT_FROZENSET:
        return frozenset(_array(data, depth))
    if code == EXT_DATE:
        return date.fromisoformat(data.decode())
    if code == EXT_TIME:
        return time.fromisoformat(data.decode())
    raise ValueError(f"extension type {code} is unknown to this version")


def _array(data: bytes, depth: int) -> list[Any]:
    if depth == MAX_NESTED:
        raise ValueError(_TOO_DEEP)
    items = _unpack(data, depth + 1)
    if not isinstance(items, list):
        raise ValueError("an extension type holds no array")
    return items


_TO_EXT: Final = tuple(partial(_to_ext, depth) for depth in range(MAX_NESTED + 1))
_FROM_EXT: Final = tuple(partial(_from_ext, depth) for depth in range(MAX_NESTED + 1))


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _why_not(value: object, error: Exception) -> str:
    """One line about the first thing in ``value`` that cannot be packed."""
    where, seen = "", 0
    while seen < 64:  # deeper than this the place helps nobody
        seen += 1
        for step, inner in _inside(value):
            try:
                _pack(inner)
            except (TypeError, ValueError, OverflowError, RecursionError) as deeper:
                where, value, error = where + step, inner, deeper
                break
        else:
            break
    place = f" at {where}" if where else ""
    if isinstance(error, RecursionError | ValueError) and not isinstance(error, UnicodeError):
        return f"a {type(value).__name__} cannot be carried over the wire: it is nested too deep or holds itself"
    if isinstance(error, UnicodeError):
        return f"a str{place} cannot be carried over the wire: it is no valid Unicode"
    if str(error) == _NO_OFFSET:
        return f"a time{place} cannot be carried over the wire: {_NO_OFFSET}"
    hint = "; carried are None, bool, int, float, str, bytes, list, tuple, dict, set and datetime types"
    return f"a value of type {type(value).__name__}{place} cannot be carried over the wire{hint}"


def _inside(value: object) -> Iterator[tuple[str, object]]:
    if type(value) is dict:
        for key, item in value.items():
            yield f"[{key!r}]", item
            yield f"(key {key!r})", key
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]  # a list or tuple
            yield f"[{index}]", item
    elif type(value) in (set, frozenset):
        for item in value:  # type: ignore[attr-defined]  # a set
            yield f"{{{item!r}}}", item
