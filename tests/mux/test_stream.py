"""Streams under Trio: as Trio's own, whatever the link; and what becomes of them when links fail."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from jmp.errors import JmpError, LinkLost, ProtocolViolation
from jmp.link import Link
from jmp.link.memory import memory_links
from jmp.link.rfc6455 import Closed
from jmp.mux.connection import _TURN_SECONDS, _TURN_STREAMS, PING_AFTER, SILENCE, multiplex
from jmp.mux.protocol import VERSION, WINDOW, Role
from jmp.mux.stream import HIGH_WATER, MuxStream, StreamReset
from jmp.wire.frames import MAX_DATA, Kind, Reset, pack
from tests.fakes.connections import KINDS, Counting, Streams, connections, linked

HELLO = pack(Kind.HELLO, 0, {"version": list(VERSION), "agent": "test"})


async def receive_all(stream: trio.abc.ReceiveStream, *, into: bytearray | None = None) -> bytes:
    data = bytearray() if into is None else into
    while more := await stream.receive_some():
        data += more
    return bytes(data)


async def hold(stream: MuxStream) -> None:
    """Serve a stream without touching it."""
    await trio.sleep_forever()


# ---- as streams should be


@pytest.mark.parametrize("kind", KINDS)
async def test_streams_are_as_trio_wants_them(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Streams(kind, tmp_path) as streams:

            async def make() -> tuple[MuxStream, MuxStream]:
                return await streams.pair()

            async def make_clogged() -> tuple[MuxStream, MuxStream]:
                near, far = await streams.pair()
                await near.send_all(bytes(WINDOW))
                await far.send_all(bytes(WINDOW))
                return near, far

            await trio.testing.check_half_closeable_stream(make, make_clogged)


@pytest.mark.parametrize("kind", KINDS)
async def test_much_both_ways_at_once(kind: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(8 << 20)
    with trio.fail_after(60):
        async with Streams(kind, tmp_path) as streams, trio.open_nursery() as nursery:

            async def send(stream: MuxStream) -> None:
                await stream.send_all(data)
                await stream.send_eof()

            async def check(stream: MuxStream) -> None:
                assert await receive_all(stream) == data

            for stream in [*await streams.pair(), *await streams.pair()]:
                nursery.start_soon(send, stream)
                nursery.start_soon(check, stream)


async def test_first_bytes_and_end_go_with_the_opening() -> None:
    with trio.fail_after(60):
        heard = []

        async def serve(stream: MuxStream) -> None:
            heard.append(await receive_all(stream))
            await stream.send_last(b"answer")

        async with connections(serve=serve) as (dialler, _):
            stream = dialler.open_stream(b"question", end=True)
            assert await receive_all(stream) == b"answer"
            assert heard == [b"question"]
            with pytest.raises(trio.ClosedResourceError, match="sending on this stream has ended here"):
                await stream.send_all(b"more")


async def test_either_side_may_open() -> None:
    with trio.fail_after(60):
        left, right = memory_links()

        async def echo(stream: MuxStream) -> None:
            await stream.send_last(await receive_all(stream))

        async with (
            multiplex(left, Role.DIALLER, serve=echo) as one,
            multiplex(right, Role.LISTENER, serve=echo) as other,
        ):
            for connection in (one, other, one):
                assert await receive_all(connection.open_stream(b"x", end=True)) == b"x"


async def test_unread_bytes_come_first() -> None:
    with trio.fail_after(60):
        async with Streams() as streams:
            near, far = await streams.pair()
            await near.send_all(b"cdef")
            assert await far.receive_some(1) == b"c"
            far.unread(b"bc")
            far.unread(b"a")
            assert await far.receive_some(2) == b"ab"
            assert await far.receive_some() == b"c"
            assert await far.receive_some() == b"def"


async def test_what_was_sent_before_closing_arrives() -> None:
    with trio.fail_after(60):
        async with Streams() as streams:
            near, far = await streams.pair()
            await near.send_all(bytes(WINDOW))
            await near.aclose()
            assert len(await receive_all(far)) == WINDOW
            with pytest.raises(trio.BrokenResourceError, match="the other side reads no more from this stream"):
                await far.send_all(b"x")


async def test_a_reset_says_why_after_what_came_before() -> None:
    with trio.fail_after(60):
        async with Streams() as streams:
            near, far = await streams.pair()
            await far.send_all(b"first")
            far.reset(Reset.FAILED, b"detail")
            await trio.testing.wait_all_tasks_blocked()
            assert near.broken
            assert await near.receive_some() == b"first"
            for _ in range(2):
                with pytest.raises(StreamReset, match=r"the stream was reset \(FAILED\)") as reset:
                    await near.receive_some()
                assert (reset.value.code, reset.value.detail) == (Reset.FAILED, b"detail")
            with pytest.raises(StreamReset):
                await near.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                await far.receive_some()


async def test_a_reset_cancels_the_scope_of_the_work_for_it() -> None:
    with trio.fail_after(60):
        async with Streams() as streams:
            near, far = await streams.pair()
            far.scope = trio.CancelScope()
            near.reset()
            with far.scope:
                await trio.sleep_forever()


async def test_streams_are_refused_where_nobody_serves_them() -> None:
    with trio.fail_after(60):
        async with Streams() as streams:
            stream = streams.listener.open_stream(b"x")
            with pytest.raises(StreamReset, match="REFUSED"):
                await stream.receive_some()
            streams.listener.go_away("closing")
            stream = streams.dialler.open_stream()
            with pytest.raises(StreamReset, match="REFUSED"):
                await stream.receive_some()


async def test_an_overstepping_sender_loses_that_stream_only() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        opened, accept = trio.open_memory_channel[MuxStream](2)
        async with multiplex(right, Role.LISTENER, serve=opened.send):
            await left.send([HELLO, pack(Kind.OPEN, 1, b"", False), pack(Kind.OPEN, 3, b"", False)])
            for _ in range(WINDOW // MAX_DATA + 1):
                await left.send([pack(Kind.DATA, 1, bytes(MAX_DATA), False)])
            await left.send([pack(Kind.DATA, 3, b"fine", False)])
            streams = sorted([await accept.receive(), await accept.receive()], key=lambda stream: stream.number)
            assert await streams[1].receive_some() == b"fine"
            with pytest.raises(StreamReset, match="FLOW"):
                await receive_all(streams[0])


# ---- many at once


async def test_a_slow_reader_stops_nobody_else() -> None:
    with trio.fail_after(60):
        async with Streams() as streams, trio.open_nursery() as nursery:
            clogged, _ = await streams.pair()
            nursery.start_soon(clogged.send_all, bytes(2 * WINDOW))
            await trio.testing.wait_all_tasks_blocked()
            near, far = await streams.pair()
            for _ in range(100):
                await near.send_all(b"ping")
                assert await far.receive_some() == b"ping"
                await far.send_all(b"pong")
                assert await near.receive_some() == b"pong"
            nursery.cancel_scope.cancel()


class Flood(Link):
    """Has many messages, for none of which one has to wait, as a WebSocket of which much was read at once."""

    peer = "a flood"

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages
        self.drained = trio.Event()

    async def send(self, parts: object) -> None:
        await trio.lowlevel.checkpoint()

    def abort(self, reason: str) -> None:
        pass

    def receive_nowait(self) -> bytes | None:
        return self.messages.pop(0) if self.messages else None

    async def receive(self) -> bytes:
        self.drained.set()
        await trio.sleep_forever()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()


async def turns_beside(messages: list[bytes]) -> int:
    """How often another task has its turn while somebody's messages are read."""
    link = Flood([HELLO, *messages])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def serve(stream: MuxStream) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery, multiplex(link, Role.LISTENER, serve=serve):
        nursery.start_soon(others)
        await link.drained.wait()
        nursery.cancel_scope.cancel()
    return turns


async def test_who_opens_streams_without_end_leaves_others_their_turn() -> None:
    opens = [pack(Kind.OPEN, number, b"", True) for number in range(1, 2001, 2)]
    assert await turns_beside(opens) > 1000 / _TURN_STREAMS - 10
    assert await turns_beside([b"".join(opens)]) > 1000 / _TURN_STREAMS - 10


class Passing(trio.abc.Clock):
    """Time passes when somebody looks: 10 µs each time."""

    now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self.now += 1e-5
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0


async def test_a_message_of_very_many_frames_leaves_others_their_turn() -> None:
    async def main() -> None:
        assert await turns_beside([pack(Kind.PONG, 0, b"") * 50_000]) > 10

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=Passing()))


async def test_a_call_waits_for_one_turn_of_a_link_on_which_much_comes() -> None:
    """As long as that takes: it may come when such a turn has just begun, but no second one is before it."""
    per_turn = _TURN_SECONDS / 1e-5 + 2

    async def main() -> None:
        begun = 0
        waited = []

        class Greedy:
            async def __call__(self, stream: MuxStream) -> None: ...

            def at_once(self, stream: MuxStream) -> None:
                nonlocal begun
                begun += 1
                stream.close()

        class Other(Greedy):
            def at_once(self, stream: MuxStream) -> None:
                waited.append(begun)
                stream.close()

        much = [pack(Kind.OPEN, number, b"", True) for number in range(1, 100_001, 2)]
        link = Flood([HELLO, b"".join(much[:100]), b"".join(much[100:])])
        near, far = memory_links()
        async with (
            multiplex(near, Role.DIALLER) as caller,
            multiplex(far, Role.LISTENER, serve=Other()),
            multiplex(link, Role.LISTENER, serve=Greedy()),
        ):
            while len(waited) < 100:
                asked, before = len(waited), begun
                caller.open_stream(b"", end=True)
                while len(waited) == asked:
                    await trio.lowlevel.checkpoint()
                assert waited.pop() - before <= per_turn
                waited.append(begun)
                for _ in range(asked % 5):
                    await trio.lowlevel.checkpoint()
            assert not link.drained.is_set()

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=Passing()))


async def test_small_frames_that_are_ready_together_leave_together() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        counting = Counting(left)
        async with multiplex(counting, Role.DIALLER) as dialler, multiplex(right, Role.LISTENER):
            await trio.testing.wait_all_tasks_blocked()
            counting.sizes.clear()
            for _ in range(1000):
                dialler.open_stream(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert len(counting.sizes) == 2  # the first one at once, and the others


async def test_what_is_sent_at_once_leaves_in_few_messages() -> None:
    with trio.fail_after(60):
        left, right = memory_links(capacity=1 << 30)
        async with multiplex(left, Role.DIALLER) as dialler:
            stream = dialler.open_stream()
            assert len(await right.receive()) < 100  # HELLO and OPEN
            await stream.send_all(bytes(3 * MAX_DATA + 5))
            assert 3 * MAX_DATA < len(await right.receive()) < 3 * MAX_DATA + 100
            await stream.send_last(b"x")
            assert len(await right.receive()) < 100
            right.cut()


async def test_what_opens_soon_leaves_with_what_is_sent_first() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        counting = Counting(left)
        async with multiplex(counting, Role.DIALLER) as dialler, multiplex(right, Role.LISTENER):
            await trio.testing.wait_all_tasks_blocked()
            counting.sizes.clear()
            stream = dialler.open_stream(b"who", soon=True)
            assert counting.sizes == []
            await stream.send_all(b"is it?")
            assert len(counting.sizes) == 1
            dialler.open_stream(b"nobody", soon=True)
            await trio.testing.wait_all_tasks_blocked()
            assert len(counting.sizes) == 2


async def test_two_tasks_that_wait_for_the_next_piece() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        async with multiplex(left, Role.DIALLER) as dialler, trio.open_nursery() as nursery:
            stream = dialler.open_stream()
            nursery.start_soon(stream.next_piece)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.next_piece()
            nursery.cancel_scope.cancel()
            right.cut()


async def test_an_urgent_frame_queues_behind_little() -> None:
    """However many bulk senders there are: what waits above the link is bounded."""
    with trio.fail_after(60):
        left, right = memory_links(capacity=1)
        async with (
            multiplex(left, Role.DIALLER) as dialler,
            multiplex(right, Role.LISTENER, serve=hold),
            trio.open_nursery() as nursery,
        ):
            left.stall()
            for _ in range(20):
                nursery.start_soon(dialler.open_stream().send_all, bytes(WINDOW))
            await trio.testing.wait_all_tasks_blocked()
            assert dialler._mux.outgoing_bytes < HIGH_WATER + 2 * MAX_DATA
            nursery.cancel_scope.cancel()
            left.cut()


async def test_waiting_for_the_link_ends_however_it_gets_through() -> None:
    """Whether the writer or the reader sends what waits: who waits behind it goes on. Their order is Trio's dice's."""
    with trio.fail_after(60):
        left, right = memory_links(capacity=1 << 30)
        async with multiplex(left, Role.DIALLER) as dialler, multiplex(right, Role.LISTENER, serve=hold):
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(60):
                go = trio.Event()

                async def wait_and_send(go: trio.Event = go) -> None:
                    stream = dialler.open_stream()
                    await go.wait()
                    await stream.send_all(b"x")

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_and_send)
                    await trio.testing.wait_all_tasks_blocked()
                    # More than the high-water mark, and yet one message.
                    for size in (1, 60000, 60000, 60000, 60000, MAX_DATA):
                        dialler.open_stream(bytes(size))
                    go.set()
                    right.send_nowait([pack(Kind.PING, 0, b"")])


Ending = Callable[[MuxStream, MuxStream], Awaitable[None]]


async def close_near(near: MuxStream, far: MuxStream) -> None:
    await near.aclose()


async def reset_far(near: MuxStream, far: MuxStream) -> None:
    far.reset()


async def close_far(near: MuxStream, far: MuxStream) -> None:
    await far.aclose()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (close_near, trio.ClosedResourceError),
        (reset_far, StreamReset),
        (close_far, trio.BrokenResourceError),
    ],
)
async def test_a_sender_that_waits_for_the_link_learns_of_its_streams_end(end: Ending, error: type[Exception]) -> None:
    with trio.fail_after(60):
        left, right = memory_links(capacity=1)
        opened, accept = trio.open_memory_channel[MuxStream](100)
        async with (
            multiplex(left, Role.DIALLER) as dialler,
            multiplex(right, Role.LISTENER, serve=opened.send),
        ):
            near = dialler.open_stream()
            far = await accept.receive()
            left.stall()
            for _ in range(20):
                dialler.open_stream(bytes(MAX_DATA))
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    with pytest.raises(error):
                        await near.send_all(b"x")

                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                await end(near, far)
            left.cut()


# ---- cancellation


async def test_a_cancelled_receive_loses_nothing() -> None:
    dice = random.Random(2)
    data = dice.randbytes(300_000)
    with trio.fail_after(60):
        async with Streams() as streams, trio.open_nursery() as nursery:
            near, far = await streams.pair()

            async def send() -> None:
                for start in range(0, len(data), 1000):
                    await near.send_all(data[start : start + 1000])
                await near.send_eof()

            nursery.start_soon(send)
            got = b""
            while True:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_soon, scope, dice.randrange(3))
                    more = await far.receive_some(dice.randrange(1, 3000))
                    if not more:
                        break
                    got += more
            assert got == data


async def cancel_soon(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_cancelled_send_has_sent_a_prefix_and_harms_no_other_stream() -> None:
    data = random.Random(3).randbytes(3 * WINDOW)
    with trio.fail_after(60):
        async with Streams() as streams:
            near, far = await streams.pair()
            with trio.move_on_after(0.05) as scope:
                await near.send_all(data)
            assert scope.cancelled_caught
            near.reset()
            got = bytearray()
            with pytest.raises(StreamReset):
                await receive_all(far, into=got)
            assert data.startswith(got)
            near, far = await streams.pair()
            await near.send_all(b"fine")
            assert await far.receive_some() == b"fine"


async def test_nothing_is_sent_by_who_is_cancelled_already() -> None:
    with trio.fail_after(60):
        async with Streams() as streams:
            near, far = await streams.pair()
            with trio.CancelScope() as scope:
                scope.cancel()
                await near.send_all(b"never")
            await near.send_all(b"x")
            assert await far.receive_some() == b"x"


# ---- the end of the link


async def test_the_end_of_the_link_breaks_its_streams_and_says_why() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        cancelled = []

        async def serve(stream: MuxStream) -> None:
            await stream.send_all(b"before")
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append(stream.number)

        async with multiplex(left, Role.DIALLER) as dialler, multiplex(right, Role.LISTENER, serve=serve) as listener:
            streams = [dialler.open_stream() for _ in range(3)]
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:

                async def waits() -> None:
                    with pytest.raises(trio.BrokenResourceError, match="the connection was cut") as broken:
                        await streams[2].send_all(bytes(2 * WINDOW))
                    assert isinstance(broken.value.__cause__, LinkLost)

                nursery.start_soon(waits)
                await trio.testing.wait_all_tasks_blocked()
                left.cut()
            assert await streams[0].receive_some() == b"before"
            with pytest.raises(trio.BrokenResourceError, match="the connection was cut"):
                await streams[0].receive_some()
            with pytest.raises(trio.BrokenResourceError, match="the connection was cut"):
                await streams[1].send_all(b"x")
            await streams[1].send_eof()
            await streams[1].aclose()
            with pytest.raises(LinkLost, match="the connection was cut"):
                dialler.open_stream()
            # The block goes on; the handlers do not.
            assert (
                (await dialler.wait_over()).message == (await listener.wait_over()).message == "the connection was cut"
            )
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(cancelled) == [1, 3, 5]


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_the_block_sends_what_waits_and_says_good_bye(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        received, receive = trio.open_memory_channel[int](1)
        ended, end = trio.open_memory_channel[JmpError](1)

        async def serve(stream: MuxStream) -> None:
            with trio.CancelScope(shield=True):
                await received.send(len(await receive_all(stream)))

        async def handle(link: Link, _: object) -> None:
            async with multiplex(link, Role.LISTENER, serve=serve) as connection:
                await ended.send(await connection.wait_over())

        async with linked(kind, tmp_path, handle) as link:
            async with multiplex(link, Role.DIALLER) as dialler:
                dialler.farewell = (4001, "had enough")
                stream = dialler.open_stream()
                await stream.send_all(bytes(WINDOW))
                await stream.aclose()
            error = await end.receive()
            assert isinstance(error, Closed)
            assert (error.close_code, error.reason) == (4001, "had enough")
            assert await receive.receive() == WINDOW


async def test_leaving_the_block_takes_no_time(autojump_clock: trio.testing.MockClock) -> None:
    opened, accept = trio.open_memory_channel[MuxStream](1)
    began = trio.current_time()
    for _ in range(50):  # the order of tasks is Trio's dice's
        left, right = memory_links()
        async with multiplex(right, Role.LISTENER, serve=opened.send):
            async with multiplex(left, Role.DIALLER) as dialler:
                stream = dialler.open_stream()
                await stream.send_all(bytes(WINDOW))
                stream.reset(Reset.FAILED, b"last words")
            far = await accept.receive()
            with pytest.raises(StreamReset) as reset:
                await receive_all(far)
            assert reset.value.detail == b"last words"
    assert trio.current_time() == began


async def test_a_peer_that_takes_nothing_delays_the_end_a_little_only(autojump_clock: trio.testing.MockClock) -> None:
    left, right = memory_links(capacity=1)
    began = trio.current_time()
    async with multiplex(right, Role.LISTENER):
        async with multiplex(left, Role.DIALLER) as dialler:
            left.stall()
            stream = dialler.open_stream()
            for _ in range(5):
                await stream.send_all(b"x")
        assert 0 < trio.current_time() - began < 5
        with pytest.raises(LinkLost, match="the link was closed on this side"):
            dialler.open_stream()


async def test_an_error_in_the_block_comes_out() -> None:
    left, right = memory_links()
    with trio.fail_after(60):
        async with multiplex(right, Role.LISTENER) as listener:
            with pytest.raises(ValueError):
                async with multiplex(left, Role.DIALLER):
                    raise ValueError
            await listener.wait_over()


async def test_no_stream_opens_on_a_link_that_was_closed_in_due_form() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        async with multiplex(right, Role.LISTENER) as listener:
            await left.aclose(4001, "had enough")
            await listener.wait_over()
            with pytest.raises(LinkLost, match="4001 had enough"):
                listener.open_stream()


async def test_a_peer_that_breaks_the_protocol_is_told_so() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        async with multiplex(right, Role.LISTENER) as listener:
            await left.send([HELLO, pack(Kind.END, 77)])
            assert isinstance(await listener.wait_over(), ProtocolViolation)
            await left.receive()
            with pytest.raises(Closed, match="1002 stream 77 was never opened"):
                await left.receive()


async def test_another_major_version_is_told_so() -> None:
    with trio.fail_after(60):
        left, right = memory_links()
        async with multiplex(right, Role.LISTENER) as listener:
            await left.send([pack(Kind.HELLO, 0, {"version": [2, 0]})])
            assert "speaks version 2.0" in (await listener.wait_over()).message
            await left.receive()
            with pytest.raises(
                Closed, match=r"1002 the other side speaks version 2.0 of the protocol, this is 1.0: update"
            ):
                await left.receive()


# ---- signs of life


async def test_a_peer_that_answers_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    left, right = memory_links()
    left.delay = right.delay = 2.0
    async with multiplex(left, Role.DIALLER, watch=True) as dialler, multiplex(right, Role.LISTENER, watch=True):
        await trio.sleep(1000)
        assert dialler.error is None


async def test_a_silent_peer_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    left, right = memory_links()
    async with (
        multiplex(left, Role.DIALLER, watch=True) as dialler,
        multiplex(right, Role.LISTENER, serve=hold) as listener,
    ):
        stream = dialler.open_stream()
        await trio.sleep(100)
        right.stall()
        stalled = trio.current_time()
        with pytest.raises(trio.BrokenResourceError, match="memory:right gave no sign of life for 15 s"):
            await stream.receive_some()
        assert SILENCE - PING_AFTER - 0.1 <= trio.current_time() - stalled <= SILENCE + PING_AFTER
        assert (await listener.wait_over()).message.endswith("ended the connection without a good-bye")


async def test_a_stall_shorter_than_that_does_no_harm(autojump_clock: trio.testing.MockClock) -> None:
    left, right = memory_links()
    async with multiplex(left, Role.DIALLER, watch=True) as dialler, multiplex(right, Role.LISTENER):
        for _ in range(10):
            right.stall()
            await trio.sleep(SILENCE - PING_AFTER - 0.5)
            right.resume()
            await trio.sleep(PING_AFTER + 0.1)
        assert dialler.error is None


async def test_one_that_does_not_watch_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    left, right = memory_links()
    async with multiplex(left, Role.DIALLER) as dialler, multiplex(right, Role.LISTENER):
        right.stall()
        await trio.sleep(1000)
        assert dialler.error is None
        right.cut()


async def test_one_that_is_cancelled_ends_at_once_and_says_its_last_words(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended: list[bytes] = []

    async def serve(stream: MuxStream) -> None:
        with trio.CancelScope(shield=True):
            ended.append(await receive_all(stream))

    near, far = memory_links()
    async with multiplex(far, Role.LISTENER, serve=serve) as listener:
        with trio.CancelScope() as scope:
            async with multiplex(near, Role.DIALLER) as dialler:
                streams = [dialler.open_stream(b"x") for _ in range(3)]
                await trio.testing.wait_all_tasks_blocked()
                began = trio.current_time()
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.testing.wait_all_tasks_blocked()
                    for stream in streams:  # the first of these goes at once, the others are the writer's
                        stream.close()
        assert trio.current_time() == began
        await listener.wait_over()
    assert ended == [b"x"] * 3
