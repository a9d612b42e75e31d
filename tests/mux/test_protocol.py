"""The mux protocol as conversations between two cores, and between one core and somebody who misbehaves."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import ProtocolViolation
from jmp.mux.protocol import (
    MAX_FRAMES_QUEUED,
    MAX_QUEUED,
    VERSION,
    WINDOW,
    Credited,
    Ended,
    GoingAway,
    Mux,
    Opened,
    Pong,
    Received,
    Role,
    Stopped,
    WasReset,
    take,
)
from jmp.wire.frames import MAX_DATA, MAX_STREAM, TARGET_MESSAGE, Kind, Reset, pack, unpack
from tests.fakes.pair import Pair

HELLO = pack(Kind.HELLO, 0, {"version": list(VERSION), "agent": "test"})


def greeted(role: Role = Role.LISTENER, *, max_streams: int = 1024) -> Mux:
    """A core whose peer is the test itself."""
    mux = Mux(role, max_streams=max_streams)
    mux.receive(HELLO)
    mux.outgoing()
    return mux


def violated(mux: Mux, *frames: bytes) -> str:
    with pytest.raises(ProtocolViolation) as violation:
        mux.receive(b"".join(frames))
    return violation.value.message


def said(mux: Mux) -> list[tuple[object, ...]]:
    """What the core wants to send, as kind, stream and elements."""
    message = b"".join(mux.outgoing())
    return [
        tuple(element for element in (Kind(frame.kind).name, *frame[1:]) if element is not None)
        for frame in unpack(message)
    ]


# ---- greeting


def test_each_side_says_hello_first() -> None:
    pair = Pair()
    pair.dialler.open(b"early")  # nothing waits for the other side's HELLO
    assert pair.to_listener() == [Opened(1), Received(1, b"early")]
    assert pair.listener.peer == {"version": [1, 0], "agent": "jmp"}
    assert said(Mux(Role.LISTENER)) == [("HELLO", 0, {"version": [1, 0], "agent": "jmp"})]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (pack(Kind.PING, 0, b""), "the first frame is PING, not HELLO"),
        (pack(Kind.OPEN, 1, b"", False), "the first frame is OPEN, not HELLO"),
        (pack(Kind.HELLO, 0, {}), "HELLO names no version"),
        (pack(Kind.HELLO, 0, {"version": "1.0"}), "HELLO names no version"),
        (pack(Kind.HELLO, 0, {"version": [1]}), "HELLO names no version"),
        (pack(Kind.HELLO, 0, {"version": [True, 0]}), "HELLO names no version"),
        (
            pack(Kind.HELLO, 0, {"version": [2, 3]}),
            "the other side speaks version 2.3 of the protocol, this is 1.0: update the jmp on this side",
        ),
        (
            pack(Kind.HELLO, 0, {"version": [0, 9]}),
            "the other side speaks version 0.9 of the protocol, this is 1.0: update the other side",
        ),
    ],
)
def test_a_greeting_that_is_none(first: bytes, message: str) -> None:
    assert violated(Mux(Role.LISTENER), first) == message


def test_a_newer_minor_version_may_add_frames_elements_and_properties() -> None:
    mux = Mux(Role.LISTENER)
    unknown = pack(99, 7, "later")  # type: ignore[arg-type]  # no Kind yet
    hello = pack(Kind.HELLO, 0, {"version": [1, 7], "resume": True}, "more")
    opened = pack(Kind.OPEN, 1, b"x", False, {"priority": 3})
    assert mux.receive(unknown + hello + unknown + opened) == [Opened(1), Received(1, b"x")]
    assert mux.peer["resume"] is True


def test_a_second_hello_means_nothing() -> None:
    assert greeted().receive(pack(Kind.HELLO, 0, {"version": [9, 9]})) == []


# ---- a stream's life


def test_a_call_is_one_frame_each_way() -> None:
    pair = Pair()
    number = pair.dialler.open(b"question", end=True)
    assert pair.to_listener() == [Opened(1), Received(1, b"question"), Ended(1)]
    pair.listener.send(number, b"answer", end=True)
    assert said(pair.listener) == [("DATA", 1, b"answer", True)]
    assert pair.dialler.streams == 1  # the answer is on its way
    assert pair.listener.streams == 0


def test_both_sides_open_streams_with_numbers_of_their_own() -> None:
    pair = Pair()
    assert [pair.dialler.open() for _ in range(3)] == [1, 3, 5]
    assert [pair.listener.open() for _ in range(3)] == [2, 4, 6]
    dialler, listener = pair.pump()
    assert dialler == [Opened(2), Opened(4), Opened(6)]
    assert listener == [Opened(1), Opened(3), Opened(5)]


def test_the_directions_end_one_by_one() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.dialler.send(number, b"over")
    pair.dialler.end(number)
    assert pair.to_listener() == [Opened(1), Received(1, b"over"), Ended(1)]
    assert pair.dialler.credit(number) == 0
    pair.listener.send(number, b"still here")
    assert pair.to_dialler() == [Received(1, b"still here")]
    pair.listener.end(number)
    assert pair.to_dialler() == [Ended(1)]
    assert pair.dialler.streams == pair.listener.streams == 0


def test_after_the_end_nothing_is_sent() -> None:
    mux = greeted(Role.DIALLER)
    number = mux.open(end=True)
    mux.outgoing()
    mux.send(number, b"more")
    mux.end(number)
    mux.send(77, b"no such stream")
    mux.end(77)
    mux.stop(77)
    mux.reset(77)
    mux.consumed(77, 5)
    assert said(mux) == []


def test_stop_is_answered_with_the_end() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.to_listener()
    pair.listener.stop(number)
    assert pair.to_dialler() == [Stopped(1)]
    assert pair.dialler.credit(number) == 0
    pair.listener.end(number)
    assert pair.to_dialler() == [Ended(1)]
    assert pair.dialler.streams == pair.listener.streams == 0


def test_data_that_crosses_a_stop_is_dropped() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.to_listener()
    pair.listener.stop(number)
    pair.dialler.send(number, b"too late")
    dialler, listener = pair.pump()
    assert (dialler, listener) == ([Stopped(1)], [])
    pair.listener.consumed(number, 8)  # nobody waits for that credit
    assert pair.listener.outgoing() == []


def test_stop_and_end_cross() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.to_listener()
    pair.listener.stop(number)
    pair.listener.end(number)
    pair.dialler.end(number)
    dialler, listener = pair.pump()
    assert (dialler, listener) == ([Ended(1)], [])
    assert pair.dialler.streams == pair.listener.streams == 0


def test_both_stop_both_directions_at_once() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.to_listener()
    for mux in pair.ends:
        mux.end(number)
        mux.stop(number)
    assert pair.pump() == ([], [])
    assert pair.dialler.streams == pair.listener.streams == 0


def test_a_reset_ends_both_directions_and_says_why() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.to_listener()
    pair.dialler.send(number, b"lost")
    pair.listener.send(number, b"this arrives first")
    pair.listener.reset(number, Reset.FAILED, b"why")
    dialler, listener = pair.pump()
    assert dialler == [Received(1, b"this arrives first"), WasReset(1, Reset.FAILED, b"why")]
    assert listener == []
    assert pair.dialler.streams == pair.listener.streams == 0


def test_resets_cross() -> None:
    pair = Pair()
    number = pair.dialler.open()
    pair.to_listener()
    pair.dialler.reset(number)
    pair.listener.reset(number, Reset.FAILED, b"")
    assert pair.pump() == ([], [])


def test_frames_for_a_forgotten_stream_are_ignored() -> None:
    mux = greeted()
    mux.receive(pack(Kind.OPEN, 1, b"", False))
    mux.reset(1)
    mux.outgoing()
    late = [pack(Kind.DATA, 1, b"x", True), pack(Kind.END, 1), pack(Kind.CREDIT, 1, 0), pack(Kind.STOP, 1)]
    assert mux.receive(b"".join(late) + pack(Kind.RESET, 1, 0, b"")) == []
    assert said(mux) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([pack(Kind.DATA, 3, b"", False)], "stream 3 was never opened"),
        ([pack(Kind.END, 3)], "stream 3 was never opened"),
        ([pack(Kind.RESET, 2, 0, b"")], "stream 2 was never opened"),
        ([pack(Kind.OPEN, 2, b"", False)], "stream 2 was opened out of turn"),
        ([pack(Kind.OPEN, 1, b"", False)], "stream 1 was opened out of turn"),
        ([pack(Kind.OPEN, 5, b"", False), pack(Kind.OPEN, 3, b"", False)], "stream 3 was opened out of turn"),
        ([pack(Kind.END, 1), pack(Kind.DATA, 1, b"", False)], "stream 1 went on after its END"),
        ([pack(Kind.DATA, 1, b"", True), pack(Kind.END, 1)], "stream 1 went on after its END"),
        ([pack(Kind.CREDIT, 1, 0)], "0 bytes of credit were given to stream 1"),
        ([pack(Kind.CREDIT, 1, -1)], "-1 bytes of credit were given to stream 1"),
        ([pack(Kind.CREDIT, 1, 2**41)], f"{2**41} bytes of credit were given to stream 1"),
        ([b"\x94"], "a message ends inside a frame"),
        ([b"\xc1"], "a message holds no valid frames"),
    ],
)
def test_breaking_the_protocol_concerns_the_whole_link(frames: list[bytes], message: str) -> None:
    mux = greeted()
    mux.receive(pack(Kind.OPEN, 1, b"", False))
    assert violated(mux, *frames).startswith(message)


def test_numbers_may_skip_some_but_never_run_out() -> None:
    mux = greeted()
    assert mux.receive(pack(Kind.OPEN, 1001, b"", False)) == [Opened(1001)]
    assert mux.receive(pack(Kind.END, 999)) == []  # as good as forgotten
    mux = greeted(Role.DIALLER)
    mux._next = MAX_STREAM
    assert mux.open() == MAX_STREAM
    with pytest.raises(ProtocolViolation, match="used up its stream numbers; dial again"):
        mux.open()


def test_too_many_streams_are_refused_one_by_one() -> None:
    pair = Pair(max_streams=2)
    for _ in range(3):
        pair.dialler.open(b"x")
    pair.dialler.send(5, b"crosses the refusal")
    dialler, listener = pair.pump()
    assert dialler == [WasReset(5, Reset.REFUSED, b"")]
    assert listener == [Opened(1), Received(1, b"x"), Opened(3), Received(3, b"x")]
    pair.listener.open()  # its own do not count
    pair.to_dialler()
    pair.dialler.reset(1)
    pair.dialler.open()
    assert pair.to_listener() == [WasReset(1, Reset.CANCELLED, b""), Opened(7)]


def test_who_is_refused_and_goes_on_for_ever_loses_the_link() -> None:
    mux = Mux(Role.LISTENER, max_streams=2)
    mux.receive(pack(Kind.HELLO, 0, {"version": list(VERSION)}))
    opens = [pack(Kind.OPEN, number, b"", False) for number in range(1, 200, 2)]
    mux.receive(b"".join(opens[:34]))
    mux.reset(1)
    mux.receive(opens[34])  # which is accepted: it begins anew
    mux.receive(b"".join(opens[35:67]))
    with pytest.raises(ProtocolViolation, match="goes on opening streams though they are refused"):
        mux.receive(opens[67])


def test_going_away_refuses_new_streams_and_lets_the_others_go_on() -> None:
    pair = Pair()
    pair.dialler.open()
    pair.to_listener()
    pair.listener.go_away(3, "closing down")
    pair.dialler.open(b"crosses it")
    dialler, listener = pair.pump()
    assert dialler == [GoingAway(3, "closing down"), WasReset(3, Reset.REFUSED, b"")]
    assert listener == []
    pair.dialler.send(1, b"goes on")
    assert pair.to_listener() == [Received(1, b"goes on")]


def test_ping_is_answered() -> None:
    pair = Pair()
    pair.dialler.ping(b"token")
    assert pair.to_dialler() == [Pong(b"token")]


def test_who_asks_and_never_reads_the_answers_is_cut_off() -> None:
    mux = greeted()
    pings = pack(Kind.PING, 0, bytes(1 << 16)) * 8
    for _ in range(MAX_QUEUED // len(pings)):
        mux.receive(pings)
    assert violated(mux, pings) == "the other side asks for answers without reading them"


def test_who_asks_for_very_many_small_answers_is_cut_off_soon() -> None:
    pings = pack(Kind.PING, 0, b"") * (MAX_FRAMES_QUEUED + 100)
    assert violated(greeted(), pings) == "the other side asks for answers without reading them"


def test_many_small_frames_are_one_part() -> None:
    """However little they hold: what is kept to be sent again would be large otherwise."""
    mux = greeted()
    mux.outgoing()
    mux.receive(pack(Kind.PING, 0, b"") * 10_000)
    sizes = []
    while parts := mux.outgoing():
        sizes.append(len(parts[0]))
        assert len(parts) == 1
    assert sum(sizes) == 10_000 * len(pack(Kind.PONG, 0, b""))
    assert len(sizes) == 3


# ---- flow control


def fill(mux: Mux, number: int) -> int:
    """Send until there is no credit; returns how many bytes that were."""
    sent = 0
    while size := min(mux.credit(number), MAX_DATA):
        mux.send(number, bytes(size))
        sent += size
    return sent


def test_a_window_is_all_that_is_ever_under_way() -> None:
    pair = Pair()
    number = pair.dialler.open(b"first")
    assert fill(pair.dialler, number) == WINDOW - 5
    pair.to_listener()
    pair.listener.consumed(number, WINDOW // 2 - 1)
    assert pair.to_dialler() == []  # credit is given in halves of a window
    pair.listener.consumed(number, 1)
    assert pair.to_dialler() == [Credited(1)]
    assert fill(pair.dialler, number) == WINDOW // 2
    pair.to_listener()
    assert pair.listener.streams == 1


def test_a_stream_that_oversteps_is_reset_and_the_others_go_on() -> None:
    mux = greeted()
    mux.receive(pack(Kind.OPEN, 1, b"", False) + pack(Kind.OPEN, 3, b"", False))
    for _ in range(WINDOW // MAX_DATA):
        assert mux.receive(pack(Kind.DATA, 1, bytes(MAX_DATA), False)) == [Received(1, bytes(MAX_DATA))]
    overstep = pack(Kind.DATA, 1, b"x", True) + pack(Kind.DATA, 3, b"fine", False)
    assert mux.receive(overstep) == [WasReset(1, Reset.FLOW, b""), Received(3, b"fine")]
    assert said(mux) == [("RESET", 1, Reset.FLOW, b"")]
    assert mux.receive(pack(Kind.DATA, 1, bytes(MAX_DATA), False)) == []


def test_an_open_can_overstep_too() -> None:
    mux = greeted()
    data = bytes(WINDOW - 100)
    assert mux.receive(pack(Kind.OPEN, 1, data, False)) == [Opened(1), Received(1, data)]
    assert mux.receive(pack(Kind.DATA, 1, bytes(101), False)) == [WasReset(1, Reset.FLOW, b"")]


def test_empty_data_is_nothing() -> None:
    mux = greeted()
    mux.receive(pack(Kind.OPEN, 1, b"", False))
    assert mux.receive(pack(Kind.DATA, 1, b"", False) * 100) == []


def test_frames_that_are_ready_leave_together_but_not_without_bound() -> None:
    mux = greeted(Role.DIALLER)
    for _ in range(100):
        mux.open(b"small")
    assert len(said(mux)) == 100
    number = mux.open()
    fill(mux, number)
    waiting = mux.outgoing_bytes
    sizes = []
    while parts := mux.outgoing():
        sizes.append(sum(map(len, parts)))
    assert sum(sizes) == waiting
    assert max(sizes) < TARGET_MESSAGE + MAX_DATA + 100
    assert mux.outgoing_bytes == 0


# ---- whatever arrives


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_is_a_violation_or_means_something(messages: list[bytes]) -> None:
    mux = greeted()
    try:
        for message in messages:
            mux.receive(message)
    except ProtocolViolation:
        pass


NUMBERS = st.integers(1, 8)
FRAMES = st.one_of(
    st.builds(pack, st.just(Kind.OPEN), NUMBERS, st.binary(max_size=9), st.booleans()),
    st.builds(pack, st.just(Kind.DATA), NUMBERS, st.binary(max_size=9), st.booleans()),
    st.builds(pack, st.sampled_from([Kind.END, Kind.STOP]), NUMBERS),
    st.builds(pack, st.just(Kind.CREDIT), NUMBERS, st.integers(0, 2**40)),
    st.builds(pack, st.just(Kind.RESET), NUMBERS, st.integers(0, 5), st.binary(max_size=9)),
    st.just(pack(Kind.DATA, 1, bytes(WINDOW // 2), False)),
)


@given(st.lists(FRAMES, max_size=40), st.integers(0, 3))
def test_well_formed_nonsense_is_a_violation_or_a_sequence_that_makes_sense(frames: list[bytes], opened: int) -> None:
    """Per stream: opened once, then data, then at most one end; nothing after a reset; never more held than the window."""
    mux = greeted()
    states = {mux.open(): "open" for _ in range(opened)}
    held = dict.fromkeys(states, 0)
    for frame in frames:
        try:
            events = mux.receive(frame)
        except ProtocolViolation:
            return
        for event in events:
            match event:
                case Opened(number):
                    assert number not in states
                    states[number], held[number] = "open", 0
                case Received(number, data):
                    assert states[number] == "open"
                    held[number] += len(data)
                    assert held[number] <= WINDOW
                case Ended(number):
                    assert states[number] == "open"
                    states[number] = "ended"
                case WasReset(number):
                    assert states[number] in ("open", "ended")
                    states[number] = "reset"
                case Credited(number) | Stopped(number):
                    assert states[number] in ("open", "ended")


# ---- what a reader gets at once


def test_what_arrived_is_taken_together_but_not_all_of_much() -> None:
    assert take(deque([b"one"]), None) == b"one"
    assert take(deque([b"one", b"two"]), None) == b"onetwo"
    much = deque([bytes([number]) * MAX_DATA for number in range(10)])
    assert take(much, None) == b"".join(bytes([number]) * MAX_DATA for number in range(TARGET_MESSAGE // MAX_DATA))
    assert len(much) == 10 - TARGET_MESSAGE // MAX_DATA


def test_no_more_is_taken_than_was_asked_for() -> None:
    chunks = deque([b"one", b"two"])
    assert [take(chunks, 2), take(chunks, 2), take(chunks, 5)] == [b"on", b"e", b"two"]
