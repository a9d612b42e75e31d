"""Histories of one session over links that are cut, stall and are slow: all that is sent arrives, once and in order."""

from __future__ import annotations

import random
from contextlib import suppress

import trio
from trio.testing import MockClock

from jmp.errors import LinkLost, ProtocolViolation
from jmp.link import Link
from tests.fakes.cables import Cable, cable
from tests.sim.bugs import RESEND_DROPPED
from tests.sim.world import replaced

MESSAGES = 30
PATIENCE = 300.0
"""Simulated seconds; whatever is on its way then never arrives."""


def history(seed: int) -> str:
    """What was wrong with it, if anything."""
    return trio.run(session, random.Random(seed), clock=MockClock(autojump_threshold=0))


async def session(rng: random.Random) -> str:
    sent = [number.to_bytes(4, "big") for number in range(MESSAGES)]
    got: tuple[list[bytes], list[bytes]] = ([], [])
    complete = trio.Event()
    slow = rng.choice((0.0, 0.01, 0.3))

    async def send(link: Link) -> None:
        with suppress(LinkLost, ProtocolViolation):  # which shows in what did not arrive
            for message in sent:
                await link.send([message])
                await trio.sleep(rng.choice((0.0, 0.01, 0.5)))

    async def receive(link: Link, arrived: list[bytes]) -> None:
        with suppress(LinkLost, ProtocolViolation):
            while True:
                arrived.append(await link.receive())
                if all(len(way) >= MESSAGES for way in got):
                    complete.set()

    async def far(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, link)
            await receive(link, got[1])

    async def disturb(joined: Cable) -> None:
        for _ in range(rng.choice((0, 1, 3, 6))):
            await trio.sleep(rng.random() * 2)
            joined.now.delay = joined.now._other.delay = rng.random() * slow
            match rng.choice(("cut", "cut", "stall", "unplug")):
                case "cut":
                    joined.cut()
                case "stall":
                    rng.choice((joined.now, joined.now._other)).stall()
                    await trio.sleep(rng.random() * 3)
                    joined.cut()  # as whoever watches over the link does in the end
                case _:
                    joined.plugged = False
                    joined.cut()
                    await trio.sleep(rng.random() * 10)
                    joined.plugged = True

    with trio.move_on_after(PATIENCE):
        async with cable(far) as (joined, link), trio.open_nursery() as nursery:
            nursery.start_soon(send, link)
            nursery.start_soon(receive, link, got[0])
            await trio.sleep(0.5)  # the session has begun
            nursery.start_soon(disturb, joined)
            await complete.wait()
            nursery.cancel_scope.cancel()
    return "" if got == (sent, sent) else f"{[len(way) for way in got]} of {MESSAGES} arrived, or others"


def test_all_arrives() -> None:
    assert {seed: wrong for seed in range(100) if (wrong := history(seed))} == {}


def test_a_resend_that_is_dropped_would_be_found() -> None:
    with replaced(*RESEND_DROPPED):
        assert any(history(seed) for seed in range(1000))
