"""A Trio link that outlives the links it goes over: the thin half of :mod:`jmp.link.resume`.

Theory of operation. Whoever receives finds the link broken, and gets the next one there and then: it is the one task that is
always there and waits for no consumer. A task of its own sends what the link did not take at once: after a break what has to go
again, while the reader reads, since both ends may have much to say; and acknowledgements that nothing else carries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from jmp.errors import JmpError, LinkLost, ProtocolViolation
from jmp.link import Link
from jmp.link.resume import Ended, Resume
from jmp.link.rfc6455 import Buffer, Closed

ACK_SECONDS: Final = 1.0
"""After which what was received is acknowledged, however little it is: it is kept at the other side until then."""
FINAL_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1009, 1011})
"""Good-byes (RFC 6455, section 7.4) that are meant for the session; after others, a router's, it goes on."""

Next = Callable[[LinkLost], Awaitable[Link]]
"""Gives the link to go on with after the loss of one. Raises ``JmpError`` when there will be none."""


class ResumableLink(Link):
    """A link that ends with its session only; made by :func:`resumable`."""

    def __init__(self, link: Link, core: Resume, following: Next) -> None:
        self.peer = link.peer
        self._link = link
        self._core = core
        self._following = following
        self._unsent: list[Buffer] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._work = trio.Event()
        self._lost: LinkLost | None = None
        self._end: LinkLost | ProtocolViolation | None = None
        core.attach()

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        if self._end is not None:
            raise self._end
        if self._unsent or (self._core.waiting and self._core.attached) or self._core.full:
            return False
        self._core.put(parts)
        self._send_next()
        return True

    async def send(self, parts: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        while not self.send_nowait(parts):
            await self._changed.park()

    async def receive(self) -> bytes:
        while True:
            if self._end is not None:
                raise self._end
            try:
                if self._lost is not None:
                    await self._go_on(self._lost)
                message = self._core.receive(await self._link.receive())
            except (Ended, ProtocolViolation) as error:
                self._finish(error)
            except LinkLost as error:
                if (isinstance(error, Closed) and error.close_code in FINAL_CODES) or not self._core.detach():
                    self._finish(error)
                self._lost = error
            else:
                self._work.set()
                self._changed.unpark_all()
                if message is not None:
                    return message

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """As in :class:`~jmp.link.Link`: the session is over, on both sides."""
        self._finish(LinkLost("this side closed the connection"))
        await self._link.aclose(code, reason)

    # ---- one link after another

    async def _go_on(self, lost: LinkLost) -> None:
        with trio.CancelScope() as at_once:
            at_once.cancel()
            await self._link.aclose()
        try:
            link = await self._following(lost)
        except JmpError as error:
            raise Ended(error.message) from error
        self._link, self._lost, self._unsent = link, None, []
        self._core.attach()
        self._work.set()

    def _finish(self, error: LinkLost | ProtocolViolation) -> None:
        if self._end is None:
            self._end = error
        self._changed.unpark_all()

    def _send_next(self) -> None:
        parts = self._core.take()
        try:
            if parts and not self._link.send_nowait(parts):
                self._unsent = parts
                self._work.set()
        except (LinkLost, ProtocolViolation):
            pass  # the reader finds out, and says what becomes of it

    async def _send_rest(self) -> None:
        ack = False
        while True:
            while parts := self._unsent or self._core.take(ack=ack):
                self._unsent = parts
                try:
                    if not self._link.send_nowait(parts):
                        await self._link.send(parts)
                except (LinkLost, ProtocolViolation):
                    pass  # as above
                if self._unsent is parts:  # else it was of a link that is no more
                    self._unsent = []
                self._changed.unpark_all()
            self._work = trio.Event()
            with trio.move_on_after(ACK_SECONDS if self._core.owed else float("inf")) as waited:
                await self._work.wait()
            ack = waited.cancelled_caught


@asynccontextmanager
async def resumable(link: Link, core: Resume, following: Next) -> AsyncIterator[ResumableLink]:
    """A link that goes on over what ``following`` gives when ``link`` breaks, and then the next; closed at the end of the block.

    A peer without resume gets what it would get over ``link`` itself, and the loss of that is the end.
    """
    whole = ResumableLink(link, core, following)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(whole._send_rest)
        try:
            yield whole
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await whole.aclose()
