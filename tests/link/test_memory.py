"""The pair in memory keeps the promises of a link, and its faults do what they say; on mocked time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jmp.errors import LinkLost
from jmp.link.memory import memory_links
from jmp.link.rfc6455 import Closed, Violation


async def test_messages_in_order_both_ways() -> None:
    left, right = memory_links()
    assert left.send_nowait([b"one", memoryview(b"-")])
    await left.send([b"t", b"wo"])
    await right.send([b"back"])
    assert [await right.receive(), await right.receive(), await left.receive()] == [b"one-", b"two", b"back"]


async def test_delay(autojump_clock: MockClock) -> None:
    left, right = memory_links()
    left.delay = 2.0
    start = trio.current_time()
    await left.send([b"slow"])
    left.delay = 0.5
    await left.send([b"quick"])
    right.send_nowait([b"not delayed"])
    assert await left.receive() == b"not delayed"
    assert trio.current_time() == start
    assert [await right.receive(), await right.receive()] == [b"slow", b"quick"]
    assert trio.current_time() == start + 2.0


async def test_good_bye_is_delayed_too(autojump_clock: MockClock) -> None:
    left, right = memory_links()
    left.delay = 1.0
    start = trio.current_time()
    await left.send([b"last"])
    await left.aclose(4001, "taken over")
    assert await right.receive() == b"last"
    with pytest.raises(Closed, match="4001 taken over"):
        await right.receive()
    assert trio.current_time() == start + 1.0
    for link in (left, right):
        with pytest.raises(LinkLost):
            link.send_nowait([b"x"])
        with pytest.raises(LinkLost):
            await link.receive()
        await link.aclose()


async def test_stall_gives_back_pressure_and_resume_ends_it() -> None:
    left, right = memory_links(capacity=100)
    left.stall()
    assert left.send_nowait([bytes(60)])
    assert left.send_nowait([bytes(60)])
    assert not left.send_nowait([b"x"])
    received: list[int] = []
    sent = False

    async def send() -> None:
        nonlocal sent
        await left.send([b"x"])
        sent = True

    async def receive() -> None:
        for _ in range(3):
            received.append(len(await right.receive()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
        await right.send([b"the other way is open"])
        await left.receive()
        await wait_all_tasks_blocked()
        assert (sent, received) == (False, [])
        left.resume()
    assert (sent, received) == (True, [60, 60, 1])


async def test_stall_while_a_message_is_on_its_way(autojump_clock: MockClock) -> None:
    left, right = memory_links()
    left.delay = 1.0
    await left.send([b"x"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.receive)
        await trio.sleep(0.5)
        left.stall()
        await trio.sleep(10)
        assert len(nursery.child_tasks) == 1
        left.resume()
    assert trio.current_time() >= 10


async def test_cut() -> None:
    left, right = memory_links(capacity=1)
    left.send_nowait([b"under way"])
    lost = []

    async def expect_lost(*, send: bool) -> None:
        with pytest.raises(LinkLost, match="was cut"):
            await (left.send([b"more"]) if send else left.receive())
        lost.append(send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: expect_lost(send=True))
        nursery.start_soon(lambda: expect_lost(send=False))
        await wait_all_tasks_blocked()
        right.cut()
    assert sorted(lost) == [False, True]
    with pytest.raises(LinkLost, match="was cut"):
        await right.receive()
    left.cut()


async def test_oversize_message() -> None:
    left, right = memory_links(max_message=10)
    left.send_nowait([bytes(11)])
    with pytest.raises(Violation) as violation:
        await right.receive()
    assert violation.value.close_code == 1009
    with pytest.raises(Closed, match="1009"):
        await left.receive()


async def test_cancellation_loses_nothing(autojump_clock: MockClock) -> None:
    left, right = memory_links(capacity=1)
    left.delay = 1.0
    await left.send([b"one"])
    with trio.move_on_after(0.5):
        await right.receive()
    with trio.move_on_after(0.1):
        await left.send([b"never sent"])
    assert await right.receive() == b"one"
    await left.send([b"two"])
    assert await right.receive() == b"two"


async def test_closing_wakes_a_sender_that_waits() -> None:
    left, right = memory_links(capacity=1)
    left.send_nowait([b"x"])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            with pytest.raises(LinkLost):
                await left.send([b"y"])

        await wait_all_tasks_blocked()
        await left.aclose()
    assert await right.receive() == b"x"
