"""A connection that is made again whenever it breaks."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from jmp.link import Link
from jmp.link.memory import memory_links
from jmp.rpc.call import Caller
from jmp.rpc.reconnect import FIRST, LONGEST, SETTLED, keep_connected


async def pauses(lasting: float, times: int) -> list[float]:
    """How long it took to dial again each time, when the other side is gone after ``lasting`` seconds."""
    lost, found = -1.0, list[float]()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def dial() -> Link:
                if lost >= 0:
                    found.append(trio.current_time() - lost)
                if len(found) == times:
                    scope.cancel()
                ours, theirs = memory_links()
                nursery.start_soon(serve, theirs)
                return ours

            async def serve(link: Link) -> None:
                nonlocal lost
                await trio.sleep(lasting)
                lost = trio.current_time()
                await link.aclose()

            async def use(caller: Caller) -> None:
                await trio.sleep_forever()

            await keep_connected(dial, use)
    return found


async def test_after_a_good_one_the_next_is_tried_soon_however_often(autojump_clock: MockClock) -> None:
    """Controllers of which one dies every few seconds: whoever loses one is not kept from the others."""
    assert all(pause <= FIRST for pause in (await pauses(SETTLED + 0.1, 20))[1:])


async def test_after_bad_ones_it_takes_longer_and_longer(autojump_clock: MockClock) -> None:
    found = await pauses(0.0, 12)
    assert found[0] <= FIRST
    assert all(LONGEST / 2 <= pause <= LONGEST + 0.1 for pause in found[-4:])
