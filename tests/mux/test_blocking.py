"""Streams without an event loop: real sockets, real threads, and Trio's half on the other side."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from jmp.errors import LinkLost, ProtocolViolation
from jmp.link import Link
from jmp.link import blocking as links
from jmp.mux import blocking
from jmp.mux.blocking import BlockingConnection, BlockingStream, DeadlinePassed, StreamClosed, StreamReset
from jmp.mux.connection import multiplex
from jmp.mux.protocol import VERSION, WINDOW, Role
from jmp.mux.stream import MuxStream, Serve
from jmp.wire.frames import Kind, Reset, pack, unpack
from tests.fakes.links import serving

T = TypeVar("T")
HELLO = pack(Kind.HELLO, 0, {"version": list(VERSION), "agent": "test"})


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run in a thread, which is left behind by a test that takes too long."""
    return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


async def echo(stream: MuxStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.aclose()


@asynccontextmanager
async def connected(directory: Path, serve: Serve = echo, *, keep: bool = False) -> AsyncIterator[BlockingConnection]:
    """A connection whose other end serves streams."""

    async def handle(link: Link, _: object) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve) as connection:
            await connection.wait_over()

    async with serving("unix", directory, handle) as url:
        connection = BlockingConnection(await in_thread(links.connect, url), keep=keep)
        try:
            yield connection
        finally:
            with trio.CancelScope(shield=True):
                await in_thread(connection.close)


@asynccontextmanager
async def bare(directory: Path) -> AsyncIterator[tuple[BlockingConnection, Link]]:
    """A connection that is kept alive, and its bare link on the other side, greeted."""
    accepted, accept = trio.open_memory_channel[Link](1)

    async def handle(link: Link, _: object) -> None:
        await link.send([HELLO])
        await accepted.send(link)
        await trio.sleep_forever()

    async with serving("unix", directory, handle) as url:
        connection = BlockingConnection(await in_thread(links.connect, url), keep=True)
        try:
            yield connection, await accept.receive()
        finally:
            with trio.CancelScope(shield=True):
                await in_thread(connection.close)


def receive_all(stream: BlockingStream) -> bytes:
    return b"".join(iter(stream.receive_some, b""))


def ask(connection: BlockingConnection, question: bytes) -> bytes:
    stream = connection.open_stream(question, end=True)
    answer = receive_all(stream)
    stream.close()
    return answer


async def test_a_question_and_its_answer(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with connected(tmp_path) as connection:
            assert await in_thread(ask, connection, b"x" * 1000) == b"x" * 1000


async def test_many_threads_share_a_connection(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with connected(tmp_path) as connection:

            def work(seed: int) -> None:
                dice = random.Random(seed)
                for _ in range(30):
                    question = dice.randbytes(dice.randrange(60_000))
                    assert ask(connection, question) == question

            async with trio.open_nursery() as nursery:
                for seed in range(20):
                    nursery.start_soon(in_thread, work, seed)
            assert connection._mux.streams == 0
            assert connection._streams == {}


async def test_much_both_ways_at_once(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(12 << 20)
    with trio.fail_after(60):
        async with connected(tmp_path) as connection:

            def send(stream: BlockingStream) -> None:
                stream.send_all(data, end=True)

            def check(stream: BlockingStream) -> None:
                assert receive_all(stream) == data

            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    stream = connection.open_stream()
                    nursery.start_soon(in_thread, send, stream)
                    nursery.start_soon(in_thread, check, stream)


async def test_a_stream_that_nobody_reads_stops_no_other(tmp_path: Path) -> None:
    async def flood(stream: MuxStream) -> None:
        if await stream.receive_some() == b"flood":
            await stream.send_all(bytes(2 * WINDOW))
        await stream.send_last(b"done")

    with trio.fail_after(60):
        async with connected(tmp_path, flood) as connection:
            flooded = connection.open_stream(b"flood")
            for _ in range(20):
                assert await in_thread(ask, connection, b"?") == b"done"
            assert await in_thread(receive_all, flooded) == bytes(2 * WINDOW) + b"done"


async def test_the_reader_hands_over(tmp_path: Path) -> None:
    """Each thread in turn reads for all; when it has its answer, those that are left still get theirs."""
    streams: dict[bytes, MuxStream] = {}
    arrived = trio.Event()

    async def serve(stream: MuxStream) -> None:
        streams[bytes(await stream.receive_some())] = stream
        if len(streams) == 4:
            arrived.set()

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            order: list[bytes] = []
            answered = {name: trio.Event() for name in (b"0", b"1", b"2", b"3")}

            async def wait(name: bytes) -> None:
                assert await in_thread(ask, connection, name) == name
                order.append(name)
                answered[name].set()

            async with trio.open_nursery() as nursery:
                for name in answered:
                    nursery.start_soon(wait, name)
                await arrived.wait()
                for name in (b"2", b"0", b"3", b"1"):
                    await streams[name].send_last(name)
                    await answered[name].wait()
            assert order == [b"2", b"0", b"3", b"1"]


async def test_deadlines(tmp_path: Path) -> None:
    go = trio.Event()

    async def serve(stream: MuxStream) -> None:
        await go.wait()
        await stream.send_all(b"late")
        await trio.sleep_forever()

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            stream = connection.open_stream()

            def receive(seconds: float) -> bytes:
                return stream.receive_some(deadline=time.monotonic() + seconds)

            def send(seconds: float) -> None:
                stream.send_all(bytes(2 * WINDOW), deadline=time.monotonic() + seconds)

            with pytest.raises(DeadlinePassed):
                await in_thread(receive, 0.05)
            with pytest.raises(DeadlinePassed):
                await in_thread(receive, -1.0)
            with pytest.raises(DeadlinePassed):
                await in_thread(send, 0.05)
            # One that does not read the link, because another thread does, keeps to its deadline, too.
            async with trio.open_nursery() as nursery:
                other = connection.open_stream()
                nursery.start_soon(in_thread, other.receive_some)
                with pytest.raises(DeadlinePassed):
                    await in_thread(receive, 0.05)
                go.set()
                assert await in_thread(receive, 10.0) == b"late"


async def test_what_is_received_in_parts_and_given_back(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with connected(tmp_path) as connection:
            stream = connection.open_stream(b"abcdef", end=True)

            def receive(size: int | None) -> bytes:
                return stream.receive_some(size)

            assert await in_thread(receive, 2) == b"ab"
            stream.unread(b"ab")
            assert await in_thread(receive, 1) == b"a"
            assert await in_thread(receive, None) == b"b"
            assert await in_thread(receive, None) == b"cdef"
            assert await in_thread(receive, None) == b""


async def test_a_reset_says_why_after_what_came_before(tmp_path: Path) -> None:
    async def serve(stream: MuxStream) -> None:
        await stream.send_all(b"first")
        stream.reset(Reset.FAILED, b"detail")

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            stream = connection.open_stream()
            assert await in_thread(stream.receive_some) == b"first"
            for action in (stream.receive_some, lambda: stream.send_all(b"x")):
                with pytest.raises(StreamReset, match="FAILED") as reset:
                    await in_thread(action)
                assert (reset.value.code, reset.value.detail) == (Reset.FAILED, b"detail")
            stream.reset()
            stream.close()


async def test_resetting_and_closing_reach_the_other_side(tmp_path: Path) -> None:
    heard, hear = trio.open_memory_channel[object](10)

    async def serve(stream: MuxStream) -> None:
        try:
            await heard.send(await stream.receive_some())
            await heard.send(await stream.receive_some())
        except trio.BrokenResourceError as error:
            await heard.send(error)

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            stream = connection.open_stream(b"a")
            assert await hear.receive() == b"a"
            await in_thread(stream.reset)
            assert isinstance(await hear.receive(), trio.BrokenResourceError)
            stream = connection.open_stream(b"b")
            await in_thread(stream.close)
            assert [await hear.receive(), await hear.receive()] == [b"b", b""]
            with pytest.raises(StreamClosed, match="this stream was closed here"):
                await in_thread(stream.receive_some)
            with pytest.raises(StreamClosed, match="this stream was closed here"):
                await in_thread(stream.send_all, b"x")


async def test_the_other_side_reads_no_more(tmp_path: Path) -> None:
    async def serve(stream: MuxStream) -> None:
        await stream.aclose()

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            stream = connection.open_stream()
            with pytest.raises(StreamClosed, match="the other side reads no more from this stream"):
                await in_thread(stream.send_all, bytes(2 * WINDOW))


async def test_streams_of_the_other_side_are_refused(tmp_path: Path) -> None:
    refused = trio.Event()

    async def serve(stream: MuxStream) -> None:
        with pytest.raises(trio.BrokenResourceError, match="REFUSED"):
            await stream._connection.open_stream().receive_some()
        refused.set()

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            stream = connection.open_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, stream.receive_some)
                await refused.wait()
                stream._connection._link.abort("it is over")
                nursery.cancel_scope.cancel()


async def test_a_reset_wakes_who_waits_by_reading_the_link(tmp_path: Path) -> None:
    """The other side may have nothing to say to a reset, and so nothing that the link's reader would notice."""
    over = trio.Event()

    async def serve(stream: MuxStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.receive_some()
        over.set()

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            stream = connection.open_stream(b"hello")

            waiting = threading.Barrier(2)

            def receive() -> None:
                waiting.wait()
                with pytest.raises(StreamClosed, match="this stream was closed here"):
                    stream.receive_some()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, receive)
                await in_thread(waiting.wait)
                await in_thread(stream.reset)
            await over.wait()


@pytest.mark.parametrize("whom", ["stream", "connection"])
async def test_closing_from_another_thread_wakes_those_who_wait(whom: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with connected(tmp_path) as connection:
            errors: list[Exception] = []
            waiting = threading.Barrier(4)

            def receive(stream: BlockingStream) -> None:
                waiting.wait()
                try:
                    stream.receive_some()
                except (StreamClosed, LinkLost) as error:
                    errors.append(error)

            def send(stream: BlockingStream) -> None:
                waiting.wait()
                try:
                    stream.send_all(bytes(8 * WINDOW))  # nobody reads the echo
                except (StreamClosed, LinkLost) as error:
                    errors.append(error)

            reader, other, writer = (connection.open_stream() for _ in range(3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, receive, reader)
                nursery.start_soon(in_thread, receive, other)
                nursery.start_soon(in_thread, send, writer)
                await in_thread(waiting.wait)
                for closed in (reader, other, writer) if whom == "stream" else (connection,):
                    await in_thread(closed.close)
            assert [str(error) for error in errors] == [
                "this stream was closed here" if whom == "stream" else "the link was closed on this side"
            ] * 3
            if whom == "connection":
                with pytest.raises(LinkLost, match="the link was closed on this side"):
                    connection.open_stream()


async def test_the_end_of_the_link_comes_after_what_arrived(tmp_path: Path) -> None:
    ended = trio.Event()

    async def serve(stream: MuxStream) -> None:
        if await stream.receive_some() == b"whole":
            await stream.send_last(b"the end")
            ended.set()
        else:
            await ended.wait()
            await stream.send_all(b"half")
            await trio.testing.wait_all_tasks_blocked()
            await stream._connection.link.aclose(4000, "enough")

    with trio.fail_after(60):
        async with connected(tmp_path, serve) as connection:
            whole, half, other = (connection.open_stream(name) for name in (b"whole", b"half", b""))
            assert await in_thread(half.receive_some) == b"half"
            with pytest.raises(LinkLost, match="4000 enough"):
                await in_thread(half.receive_some)
            with pytest.raises(LinkLost, match="4000 enough"):
                await in_thread(other.send_all, b"x")
            assert await in_thread(receive_all, whole) == b"the end"
            with pytest.raises(LinkLost, match="4000 enough"):
                connection.open_stream()


async def test_a_peer_that_breaks_the_protocol(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with bare(tmp_path) as (connection, link):
            stream = connection.open_stream()
            await link.send([pack(Kind.END, 77)])
            with pytest.raises(ProtocolViolation, match="stream 77 was never opened"):
                await in_thread(stream.receive_some)


# ---- signs of life, at a quicker pace than usual


async def test_an_idle_link_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "KEEP_EVERY", 0.1)
    with trio.fail_after(60):
        async with bare(tmp_path) as (_, link):
            pings = 0
            while pings < 3:
                pings += sum(frame.kind == Kind.PING for frame in unpack(await link.receive()))


async def test_so_does_one_on_which_much_arrives_that_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "KEEP_EVERY", 0.5)
    with trio.fail_after(60):
        async with bare(tmp_path) as (connection, link), trio.open_nursery() as nursery:
            number = connection.open_stream()._number

            async def write() -> None:
                for _ in range(20):
                    await link.send([pack(Kind.DATA, number, b"line", False)])
                await link.send([pack(Kind.PING, 0, b"still there?")])
                while True:
                    await link.send([pack(Kind.DATA, number, b"line", False)])
                    await trio.sleep(0.1)

            nursery.start_soon(write)
            wanted = {Kind.PING, Kind.PONG}
            while wanted:
                wanted -= {frame.kind for frame in unpack(await link.receive())}
            nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "KEEP_EVERY", 0.05)
    monkeypatch.setattr(blocking, "SILENCE", 0.3)
    with trio.fail_after(60):
        async with bare(tmp_path) as (connection, _):
            with pytest.raises(LinkLost, match=r"gave no sign of life for 0\.3 s"):
                await in_thread(connection.open_stream().receive_some)
