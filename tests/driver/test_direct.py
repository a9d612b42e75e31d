"""What comes from a client goes straight on to a socket: all of it, in order, whoever takes it."""

from __future__ import annotations

import hashlib
import random

import trio
import trio.testing

from jmp.driver import overflow
from tests.fakes.connections import Streams


async def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


async def test_what_there_is_room_for_goes_in_the_turn_in_which_it_comes() -> None:
    with trio.fail_after(60):
        near, far = await sockets()
        async with near, far, Streams() as streams:
            client, driver = await streams.pair()
            left = overflow(driver, near)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.__anext__)  # waits, and is given nothing
                await trio.testing.wait_all_tasks_blocked()
                await client.send_all(b"a key")
                assert await far.receive_some() == b"a key"
                nursery.cancel_scope.cancel()
            assert driver.take is None


async def test_nothing_is_lost_or_out_of_order_before_a_slow_reader() -> None:
    chance = random.Random(3)
    sent, arrived = hashlib.sha256(), hashlib.sha256()
    with trio.fail_after(60):
        near, far = await sockets()
        async with near, far, Streams() as streams:
            client, driver = await streams.pair()

            async def talk() -> None:
                for _ in range(400):
                    data = chance.randbytes(chance.choice([1, 100, 50_000]))
                    sent.update(data)
                    await client.send_all(data)
                await client.send_eof()

            async def carry() -> None:
                async for data in overflow(driver, near):
                    await near.send_all(data)
                await near.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                nursery.start_soon(carry)
                while data := await far.receive_some(30_000):
                    arrived.update(data)
    assert arrived.digest() == sent.digest()


async def test_a_stream_that_is_none_of_a_connection_comes_whole() -> None:
    near, far = await sockets()
    async with near, far:
        one, other = trio.testing.memory_stream_pair()
        await one.send_all(b"bytes")
        await one.send_eof()
        assert [data async for data in overflow(other, near)] == [b"bytes"]
