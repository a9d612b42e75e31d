"""Values arrive as they left, or are refused where they would leave; bytes that nobody of ours made do no harm."""

from __future__ import annotations

import contextlib
import enum
import itertools
import math
import struct
from collections import OrderedDict
from collections.abc import Hashable
from datetime import UTC, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import BadValue, ProtocolViolation
from jmp.wire import codec

ZONES = st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**300), 2**300),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.datetimes(timezones=ZONES),
    st.dates(),
    st.times(),
    st.times(timezones=ZONES),
    st.timedeltas(),
)
HASHABLE: st.SearchStrategy[Hashable] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=4
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
    ),
    max_leaves=12,
)


def shown(value: object) -> str:
    """All that a user could see of a value: types, NaN's bits, the sign of zero, offsets from UTC, the order of keys."""
    name = type(value).__name__
    if isinstance(value, float):
        return f"{name} {struct.pack('>d', value).hex()}"
    if isinstance(value, list | tuple):
        return f"{name}[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{name}[{', '.join(f'{shown(key)}: {shown(item)}' for key, item in value.items())}]"
    if isinstance(value, set | frozenset):
        return f"{name}[{', '.join(sorted(map(shown, value)))}]"
    if isinstance(value, datetime | time):
        return f"{name} {value.isoformat()}"
    return f"{name} {value!r}" if not isinstance(value, int) else f"{name} {value:x}"


@given(VALUES)
def test_a_value_arrives_as_it_left(value: object) -> None:
    assert shown(codec.decode(codec.encode(value))) == shown(value)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**400,
        -(10**400),
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        5e-324,
        datetime.max,
        datetime.min.replace(tzinfo=UTC),
        datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=5, minutes=45, seconds=1, microseconds=2))),
        timedelta.max,
        timedelta.min,
        {(1, ("a", b"b")): [(), [()]], frozenset({(1, 2)}): {None: True}, 1.5: {}, True: set()},
        "\x00\U0010ffff",
    ],
)
def test_the_edges(value: object) -> None:
    assert shown(codec.decode(codec.encode(value))) == shown(value)


def test_byte_buffers_arrive_as_bytes() -> None:
    assert codec.decode(codec.encode([bytearray(b"a"), memoryview(b"b")])) == [b"a", b"b"]


def test_a_zone_arrives_as_its_offset() -> None:
    there = codec.decode(codec.encode(datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))))
    assert there == datetime(2024, 7, 1, 10, tzinfo=UTC)
    assert there.utcoffset() == timedelta(hours=2)


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    pass


HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)


def nested(kind: type[list[Any]] | type[tuple[Any, ...]], depth: int) -> object:
    value: object = kind()
    for _ in range(depth):
        value = kind((value,))
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Path("x"), "a value of type PosixPath cannot be carried over the wire; carried are None, bool, int"),
        ([1, {"a": (2, object())}], "a value of type object at [1]['a'][1] cannot"),
        ({"a": {Colour.RED: 1}}, "a value of type Colour at ['a'](key <Colour.RED: 1>) cannot"),
        ({Name("x")}, "a value of type Name at {'x'} cannot"),
        (OrderedDict(), "a value of type OrderedDict cannot"),
        ([1j], "a value of type complex at [0] cannot"),
        (["ok", "\ud800"], "a str at [1] cannot be carried over the wire: it is no valid Unicode"),
        (HOLDS_ITSELF, "a list cannot be carried over the wire: it is nested too deep or holds itself"),
        (nested(list, 5000), "a list cannot be carried over the wire: it is nested too deep or holds itself"),
        (nested(tuple, 5000), "a tuple cannot be carried over the wire: it is nested too deep or holds itself"),
        (
            {"at": time(12, tzinfo=ZoneInfo("Europe/Berlin"))},
            "a time at ['at'] cannot be carried over the wire: the offset of its zone depends on the date",
        ),
    ],
)
def test_a_refusal_names_the_type_and_the_place(value: object, message: str) -> None:
    with pytest.raises(BadValue) as refused:
        codec.encode(value)
    assert message in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("kind", [list, tuple])
def test_what_can_be_encoded_can_be_decoded_however_deep(kind: type[list[Any]] | type[tuple[Any, ...]]) -> None:
    for depth in [*range(20), *range(505, 520)]:
        try:
            data = codec.encode(nested(kind, depth))
        except BadValue:
            assert depth >= codec.MAX_NESTED
        else:
            assert codec.decode(data) == nested(kind, depth)


@given(st.binary() | VALUES.map(codec.encode).flatmap(lambda good: st.integers(0, len(good)).map(lambda n: good[:n])))
def test_garbage_is_a_protocol_violation_or_a_value(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        codec.decode(data)


@given(VALUES, st.data())
def test_a_flipped_byte_is_a_protocol_violation_or_another_value(value: object, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolViolation):
        codec.decode(bytes(encoded))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x02",
        msgpack.packb(msgpack.ExtType(99, b"")),
        msgpack.packb(msgpack.ExtType(codec.EXT_TUPLE, b"\x01")),
        msgpack.packb(msgpack.ExtType(codec.EXT_TUPLE, b"")),
        msgpack.packb(msgpack.ExtType(codec.EXT_TIMEDELTA, b"\x93\x01\x02\xc0")),
        msgpack.packb(msgpack.ExtType(codec.EXT_TIMEDELTA, b"\x91\x01")),
        msgpack.packb(msgpack.ExtType(codec.EXT_SET, b"\x91\x90")),
        msgpack.packb(msgpack.ExtType(codec.EXT_DATETIME, b"\xff")),
        msgpack.packb(msgpack.ExtType(codec.EXT_DATE, b"tomorrow")),
        b"\x81\x90\x01",
        b"\xc1",
    ],
)
def test_malformed_values(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match=r"a value could not be decoded: .+"):
        codec.decode(data)


def test_a_header_that_claims_much_makes_no_room_for_it() -> None:
    """Each of 500 nested arrays claims half a million items, which would be 4 MB each if they were believed."""
    data = (b"\xdd" + (500_000).to_bytes(4, "big")) * 500 + bytes(500_000)
    with pytest.raises(ProtocolViolation):
        codec.decode(data)
    with pytest.raises(ProtocolViolation):
        codec.decode(msgpack.packb(msgpack.ExtType(codec.EXT_TUPLE, data)))


def test_extension_types_nest_only_so_deep_because_each_level_is_a_copy() -> None:
    data = b"\xc0"
    for _ in range(codec.MAX_NESTED + 1):
        data = msgpack.packb(msgpack.ExtType(codec.EXT_TUPLE, b"\x91" + data))
    with pytest.raises(ProtocolViolation, match="nested too deep"):
        codec.decode(data)


# ---- Decoder


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(VALUES, max_size=5), st.lists(st.integers(0, 10_000), max_size=10))
def test_any_splitting_gives_the_same_values(values: list[object], cuts: list[int]) -> None:
    decoder = codec.Decoder(1 << 20)
    got = []
    for piece in split(b"".join(map(codec.encode, values)), cuts):
        decoder.feed(piece)
        got += list(decoder)
    assert shown(got) == shown(values)
    assert decoder.tail() == b""


@given(VALUES, st.binary(), st.lists(st.integers(0, 10_000), max_size=10))
def test_what_follows_a_value_comes_out_raw(value: object, rest: bytes, cuts: list[int]) -> None:
    decoder = codec.Decoder(1 << 20)
    pieces = split(codec.encode(value) + rest, cuts)
    while True:
        decoder.feed(pieces.pop(0))
        for got in decoder:
            assert shown(got) == shown(value)
            break
        else:
            continue
        break
    assert decoder.tail() + b"".join(pieces) == rest
    decoder.feed(codec.encode("next"))
    assert list(decoder) == ["next"]


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_garbage_in_pieces_is_a_protocol_violation_or_values(pieces: list[bytes]) -> None:
    decoder = codec.Decoder(100)
    try:
        for piece in pieces:
            decoder.feed(piece)
            list(decoder)
    except ProtocolViolation:
        pass


def test_a_value_up_to_the_limit_passes() -> None:
    decoder = codec.Decoder(1000)
    value = codec.encode(b"x" * 997)
    assert len(value) == 1000
    for _ in range(3):
        decoder.feed(value)
    assert list(decoder) == [b"x" * 997] * 3


@pytest.mark.parametrize("value", [b"x" * 998, [b"x" * 100] * 10, list(range(1000)), {n: (n,) for n in range(200)}])
def test_a_larger_one_is_a_violation_whatever_it_is_made_of(value: object) -> None:
    data = codec.encode(value)
    for step in (1, 100, len(data)):
        decoder = codec.Decoder(1000)
        held = 0

        def feed(step: int = step, decoder: codec.Decoder = decoder) -> None:
            nonlocal held
            for start in range(0, len(data), step):
                decoder.feed(data[start : start + step])
                held = start + step
                list(decoder)

        with pytest.raises(ProtocolViolation, match="larger than the limit of 1000 bytes"):
            feed()
        assert held <= 1000 + step


def test_a_value_that_only_claims_to_be_large_waits() -> None:
    decoder = codec.Decoder(1000)
    decoder.feed(b"\xdf\x1f\xff\xff\xff" * 100)
    assert list(decoder) == []
