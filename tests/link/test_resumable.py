"""A link that outlives the links it goes over, on links in memory that are cut."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from jmp.errors import LabError, LinkLost
from jmp.link import Link
from jmp.link.memory import MemoryLink, memory_links
from jmp.link.resumable import resumable
from jmp.link.resume import Resume

KEY = b"k" * 32


class Cable:
    """Links in memory, each one made when the one before is lost."""

    def __init__(self) -> None:
        self.made = 0
        self._dialled, self._accepted = trio.open_memory_channel[MemoryLink](100)
        self.now = self._make()

    def _make(self) -> tuple[MemoryLink, MemoryLink]:
        self.made += 1
        return memory_links(capacity=5000)

    def cut(self) -> None:
        self.now[0].cut()

    async def dial(self, lost: LinkLost) -> Link:
        await trio.sleep(0.01)
        self.now = self._make()
        await self._dialled.send(self.now[1])
        return self.now[0]

    async def accept(self, lost: LinkLost) -> Link:
        return await self._accepted.receive()


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_cut_arrives_once_and_in_order(seed: int, autojump_clock: MockClock) -> None:
    rng = random.Random(seed)
    cable = Cable()
    messages = [number.to_bytes(4, "big") * rng.randrange(1, 400) for number in range(3000)]

    async def send(link: Link) -> None:
        for message in messages:
            if not link.send_nowait([message]):
                await link.send([message])
            if rng.random() < 0.3:
                await trio.sleep(0.001)

    async def receive(link: Link, arrived: list[bytes]) -> None:
        while True:  # as a reader does: it is the one who finds out of a break
            arrived.append(await link.receive())
            if all(len(way) == len(messages) for way in ways):
                complete.set()

    async def cut() -> None:
        while True:
            await trio.sleep(rng.random() * 0.05)
            cable.cut()

    complete = trio.Event()
    ways: tuple[list[bytes], list[bytes]] = ([], [])
    with trio.fail_after(1000):
        async with AsyncExitStack() as stack:
            here, there = cable.now
            dialler = await stack.enter_async_context(resumable(here, Resume(KEY), cable.dial))
            listener = await stack.enter_async_context(resumable(there, Resume(), cable.accept))
            async with trio.open_nursery() as cutting:
                await trio.sleep(0.001)
                cutting.start_soon(cut)
                for end, arrived in zip((dialler, listener), ways, strict=True):
                    cutting.start_soon(send, end)
                    cutting.start_soon(receive, end, arrived)
                await complete.wait()
                cutting.cancel_scope.cancel()
    assert cable.made > 10
    assert ways == (messages, messages)


async def test_when_no_link_follows_it_ends_and_says_why() -> None:
    here, _ = memory_links()

    async def nothing(lost: LinkLost) -> MemoryLink:
        raise LabError("the link was lost and not found again within 30 s")

    async with resumable(here, Resume(KEY), nothing) as link:
        here.cut()
        with trio.fail_after(5), pytest.raises(LinkLost, match="not found again within 30 s"):
            await link.receive()
        with pytest.raises(LinkLost, match="not found again"):
            link.send_nowait([b"x"])
