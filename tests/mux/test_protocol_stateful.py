"""Two cores do anything that is allowed, in any order, and what they say arrives in any pieces.

Each stream's bytes must arrive as a prefix of what was sent, never more than a window may be unread, and once all has
arrived, everything that was neither reset nor refused by its reader must be there and every finished stream forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jmp.mux.protocol import WINDOW, Credited, Ended, Event, Opened, Received, Stopped, WasReset
from jmp.wire.frames import MAX_DATA, Reset
from tests.fakes.pair import Pair


@dataclass
class Half:
    """What one end knows of a stream."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    consumed: int = 0
    sent_end: bool = False
    got_end: bool = False
    stopping: bool = False
    stopped: bool = False
    reset: bool = False


Stream = dict[int, Half]
ENDS = st.sampled_from([0, 1])


class Conversation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.streams: dict[int, Stream] = {}

    def alive(self, end: int) -> list[int]:
        """Streams that an end may still act on, the newest first: shrinking prefers those."""
        return [number for number, halves in reversed(self.streams.items()) if end in halves and not halves[end].reset]

    def pick(self, data: st.DataObject, end: int) -> tuple[int, Half] | None:
        numbers = self.alive(end)
        if not numbers:
            return None
        number = data.draw(st.sampled_from(numbers), label="stream")
        return number, self.streams[number][end]

    # ---- what an end may do

    @precondition(lambda self: len(self.streams) < 6)
    @rule(end=ENDS, size=st.integers(0, MAX_DATA), last=st.booleans())
    def open(self, end: int, size: int, last: bool) -> None:
        opening = bytes([len(self.streams)]) * size
        number = self.pair.ends[end].open(opening, end=last)
        self.streams[number] = {end: Half(bytearray(opening), sent_end=last)}

    @rule(end=ENDS, data=st.data(), size=st.integers(1, MAX_DATA), times=st.integers(1, 20), last=st.booleans())
    def send(self, end: int, data: st.DataObject, size: int, times: int, last: bool) -> None:
        if (picked := self.pick(data, end)) is None:
            return
        number, half = picked
        for step in range(times):
            piece = bytes([(len(half.sent) + step) % 251]) * min(size, self.pair.ends[end].credit(number))
            ends = last and step == times - 1
            self.pair.ends[end].send(number, piece, end=ends)
            if not half.sent_end and not half.stopped:
                half.sent += piece
                half.sent_end = ends

    @rule(end=ENDS, data=st.data())
    def end(self, end: int, data: st.DataObject) -> None:
        if (picked := self.pick(data, end)) is not None:
            self.pair.ends[end].end(picked[0])
            picked[1].sent_end = True

    @rule(end=ENDS, data=st.data())
    def stop(self, end: int, data: st.DataObject) -> None:
        if (picked := self.pick(data, end)) is not None:
            self.pair.ends[end].stop(picked[0])
            picked[1].stopping = True

    @rule(end=ENDS, data=st.data())
    def reset(self, end: int, data: st.DataObject) -> None:
        if (picked := self.pick(data, end)) is not None:
            self.pair.ends[end].reset(picked[0])
            picked[1].reset = True

    @rule(end=ENDS, data=st.data(), share=st.floats(0, 1))
    def consume(self, end: int, data: st.DataObject, share: float) -> None:
        if (picked := self.pick(data, end)) is not None:
            number, half = picked
            count = int((len(half.received) - half.consumed) * share)
            half.consumed += count
            self.pair.ends[end].consumed(number, count)

    @rule(end=ENDS)
    def ping(self, end: int) -> None:
        self.pair.ends[end].ping(b"?")

    # ---- what arrives

    @rule(end=ENDS, count=st.integers(1, 30))
    def deliver(self, end: int, count: int) -> None:
        for event in self.pair.deliver(end, count):
            self.learn(end, event)

    def learn(self, end: int, event: Event) -> None:
        match event:
            case Opened(number):
                assert end not in self.streams[number]
                self.streams[number][end] = Half()
            case Received(number, data):
                half = self.streams[number][end]
                assert not half.reset
                assert not half.got_end
                assert not half.stopping
                half.received += data
            case Ended(number):
                half = self.streams[number][end]
                assert not half.reset
                assert not half.got_end
                half.got_end = True
            case Stopped(number):
                half = self.streams[number][end]
                assert not half.stopped
                half.stopped = True
            case WasReset(number, code):
                half = self.streams[number][end]
                assert code == Reset.CANCELLED
                assert not half.reset
                half.reset = True
            case Credited(number):
                assert not self.streams[number][end].reset

    # ---- what always holds

    @invariant()
    def bytes_are_a_prefix_and_within_the_window(self) -> None:
        for halves in self.streams.values():
            for end, half in halves.items():
                assert len(half.received) - half.consumed <= WINDOW
                if other := halves.get(1 - end):
                    assert other.sent.startswith(half.received)
                    assert len(other.sent) - half.consumed <= WINDOW

    def teardown(self) -> None:
        """All arrives and is read."""
        for number, halves in self.streams.items():
            for end, half in halves.items():
                self.pair.ends[end].consumed(number, len(half.received) - half.consumed)
                half.consumed = len(half.received)
        for end, events in enumerate(self.pair.pump()):
            for event in events:
                self.learn(end, event)
        self.bytes_are_a_prefix_and_within_the_window()
        open_streams = 0
        for halves in self.streams.values():
            assert len(halves) == 2
            one, other = halves[0], halves[1]
            assert one.reset == other.reset or self.over(one, other)
            if one.reset or other.reset:
                continue
            for sender, reader in ((one, other), (other, one)):
                assert sender.stopped <= reader.stopping
                if not reader.stopping:
                    assert reader.received == sender.sent
                    assert reader.got_end == sender.sent_end
            open_streams += not self.over(one, other)
        assert self.pair.dialler.streams == self.pair.listener.streams == open_streams

    @staticmethod
    def over(one: Half, other: Half) -> bool:
        """Both directions have ended, or were given up by their readers."""
        return all(
            sender.sent_end or reader.stopping or reader.got_end for sender, reader in ((one, other), (other, one))
        )


Conversation.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
TestConversation = Conversation.TestCase
