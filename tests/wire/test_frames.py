"""Frames arrive as they left; anything else is a protocol violation; what a later version may add is ignored."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import ProtocolViolation
from jmp.wire.frames import MAX_DATA, MAX_MESSAGE, MAX_STREAM, Frame, Kind, batches, pack, pack_bare, pack_data, unpack

STREAMS = st.integers(1, MAX_STREAM)
CODES = st.integers(-(2**63), 2**64 - 1)
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.tuples(st.just(Kind.HELLO), st.just(0), st.dictionaries(st.text(max_size=5), CODES | st.text(), max_size=5)),
    st.tuples(st.sampled_from([Kind.OPEN, Kind.DATA]), STREAMS, st.binary(max_size=300), st.booleans()),
    st.tuples(st.sampled_from([Kind.END, Kind.STOP]), STREAMS),
    st.tuples(st.just(Kind.CREDIT), STREAMS, CODES),
    st.tuples(st.just(Kind.RESET), STREAMS, CODES, st.binary(max_size=50)),
    st.tuples(st.sampled_from([Kind.PING, Kind.PONG]), st.just(0), st.binary(max_size=50)),
    st.tuples(st.just(Kind.GOAWAY), st.just(0), CODES, st.text(max_size=50)),
).map(lambda elements: Frame(*elements))


def packed(frame: Frame) -> bytes:
    kind = Kind(frame.kind)
    if kind in (Kind.OPEN, Kind.DATA):
        return b"".join(pack_data(kind, frame.stream, frame.a, frame.b))
    if kind in (Kind.END, Kind.STOP):
        return pack_bare(kind, frame.stream)
    return pack(kind, frame.stream, *(element for element in frame[2:] if element is not None))


def violated(message: bytes) -> str:
    with pytest.raises(ProtocolViolation) as violation:
        unpack(message)
    return violation.value.message


@given(st.lists(FRAMES, max_size=8))
def test_frames_arrive_as_they_left(frames: list[Frame]) -> None:
    assert unpack(b"".join(map(packed, frames))) == frames


@pytest.mark.parametrize("size", [0, 1, 0xFF, 0x100, 0xFFFF, 0x10000, MAX_DATA])
def test_data_of_every_header_size(size: int) -> None:
    data = bytes(size)
    parts = pack_data(Kind.DATA, MAX_STREAM, data, True)
    assert size < 0x100 or parts[1] is data  # what is large is not copied
    assert unpack(b"".join(parts)) == [Frame(Kind.DATA, MAX_STREAM, data, True)]
    assert unpack(b"".join(parts)) == unpack(pack(Kind.DATA, MAX_STREAM, data, True))


@given(st.lists(FRAMES, min_size=1, max_size=3), st.data())
def test_half_a_frame_is_a_violation(frames: list[Frame], data: st.DataObject) -> None:
    last = packed(frames[-1])
    message = b"".join(map(packed, frames[:-1])) + last[: data.draw(st.integers(1, len(last) - 1))]
    assert violated(message) == "a message ends inside a frame"


@given(st.binary(max_size=200))
def test_garbage_is_a_violation_or_frames(message: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        unpack(message)


@given(st.lists(FRAMES, min_size=1, max_size=3), st.data())
def test_a_flipped_byte_is_a_violation_or_other_frames(frames: list[Frame], data: st.DataObject) -> None:
    message = bytearray(b"".join(map(packed, frames)))
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolViolation):
        unpack(bytes(message))


def test_a_later_version_may_add_elements_and_kinds() -> None:
    added = msgpack.packb([Kind.END, 5, "more", {"x": [1]}, 2])
    unknown = msgpack.packb([77, 0, "news"])
    assert unpack(added + unknown + pack(Kind.STOP, 5)) == [Frame(Kind.END, 5), Frame(Kind.STOP, 5)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "not an array of kind, stream and more"),
        ({}, "not an array"),
        ([], "not an array"),
        ([Kind.END], "not an array"),
        ([True, 1], "not an array"),
        ([Kind.END, True], "not an array"),
        ([Kind.END, -1], "not an array"),
        ([Kind.END, MAX_STREAM + 1], "not an array"),
        ([Kind.DATA, 1, b""], "kind DATA lacks an element or has one of the wrong type"),
        ([Kind.DATA, 1, "text", False], "kind DATA lacks"),
        ([Kind.DATA, 1, b"", 1], "kind DATA lacks"),
        ([Kind.CREDIT, 1, 1.5], "kind CREDIT lacks"),
        ([Kind.HELLO, 0, []], "kind HELLO lacks"),
        ([Kind.DATA, 0, b"", False], "kind DATA names stream 0"),
        ([Kind.PING, 1, b""], "kind PING names stream 1"),
        ([Kind.HELLO, 0, {1: 2}], "is not allowed for map key"),
        ([Kind.END, 1, list(range(17))], "no valid frames"),
        ([Kind.END, 1, msgpack.ExtType(1, b"x")], "no valid frames"),
    ],
)
def test_malformed_frames(item: object, message: str) -> None:
    assert message in violated(msgpack.packb(item))


def test_a_message_of_more_than_the_limit() -> None:
    assert "no valid frames" in violated(bytes(MAX_MESSAGE + 1))


def test_deep_nesting() -> None:
    assert "no valid frames" in violated(b"\x91" * 100_000)


def test_end_and_stop_in_any_encoding() -> None:
    """As this side writes them, and as short as msgpack allows; between other frames."""
    data, ping = b"".join(pack_data(Kind.DATA, 5, b"x", False)), pack(Kind.PING, 0, b"")
    before, after = Frame(Kind.DATA, 5, b"x", False), Frame(Kind.PING, 0, b"")
    for kind in (Kind.END, Kind.STOP):
        for one in (pack_bare(kind, 7), pack(kind, 7)):
            assert unpack(one) == [Frame(kind, 7)]
            assert unpack(data + one + one + data + ping) == [before, Frame(kind, 7), Frame(kind, 7), before, after]


@pytest.mark.parametrize(
    "one", [pack_bare(Kind.END, 7), pack(Kind.END, 7), b"".join(pack_data(Kind.DATA, 7, b"", False))]
)
def test_many_frames_come_a_few_at_a_time(one: bytes) -> None:
    sizes = list(map(len, batches(one * 10_000)))
    assert sum(sizes) == 10_000
    assert max(sizes) < 1000
