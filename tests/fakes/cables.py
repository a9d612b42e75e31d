"""Links in memory for a session that outlives them: each one is made when the one before is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from jmp.errors import LabError, Refused
from jmp.link import Link
from jmp.link.memory import MemoryLink, memory_links
from jmp.link.resumable import Onward, ResumableLink, Told, lasting
from jmp.link.sessions import Sessions

TOKEN = "a good token"


class Cable:
    """What a dialler and a listener are joined by, and lose at will. ``handler`` serves a session at the listener."""

    def __init__(self, nursery: trio.Nursery, handler: Callable[[Link], Awaitable[None]]) -> None:
        self.made = 0
        self.plugged = True
        self.token: str | None = TOKEN
        self.sessions = Sessions()
        self.now: MemoryLink
        self._nursery = nursery
        self._handler = handler

    async def dial(self) -> Onward:
        await trio.sleep(0.01)
        if not self.plugged:
            raise LabError("there is no cable")
        self.made += 1
        self.now, far = memory_links(capacity=5000)
        self._nursery.start_soon(self.serve, far)
        return Onward(self.now, self.token)

    async def serve(self, link: Link) -> None:
        """As a listener does with a link that it has accepted."""
        await self.sessions.serve(link, self._handler, self.check)
        await link.aclose()

    def check(self, token: str | None) -> None:
        if token != TOKEN:
            raise Refused("this token is not a good one")

    def cut(self) -> None:
        self.now.cut()


@asynccontextmanager
async def cable(
    handler: Callable[[Link], Awaitable[None]], told: Told | None = None
) -> AsyncIterator[tuple[Cable, ResumableLink]]:
    """A cable, and its dialling end, as one link that lasts."""
    async with trio.open_nursery() as nursery:
        joined = Cable(nursery, handler)
        async with lasting((await joined.dial()).link, joined.dial, told) as link:
            yield joined, link
        nursery.cancel_scope.cancel()
