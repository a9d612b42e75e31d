"""The side of a listener: which session a new link belongs to.

Theory of operation. A session is served in the task of the link that it began on, and goes on in that task whatever becomes
of that link. Who comes later and goes on with it hands its link over to there, and keeps it open until the session has left it.

Where the two meet at a third place (a router), this side has dialled, too. When such a link breaks it goes there again, and waits
for the other side, which may come there or send for it from elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from jmp.errors import JmpError, LabError, LinkLost, ProtocolViolation, Refused
from jmp.link import Link
from jmp.link.resumable import Onward, Redial, ResumableLink, resumable
from jmp.link.resume import LISTEN_SECONDS, Opening, Resume, opening_of, refusal

log = logging.getLogger("jmp.link")

BEGIN_SECONDS: Final = 15.0
"""How long a dialler may take to say its first message."""
UNKNOWN: Final = "the other side does not know the session (any more): it has ended there, or that side was restarted"

Check = Callable[[str | None], None]
"""Raises ``Refused`` unless whoever shows this token may go on with a session."""
Again = Callable[[], Awaitable[Link]]
"""Another link to the place where a link came from. Raises ``JmpError``."""


class Sessions:
    """Those of one listener, by their keys."""

    def __init__(self, patience: float = LISTEN_SECONDS) -> None:
        self._patience = patience
        self._open: dict[bytes, _Session] = {}

    async def serve(
        self, link: Link, handler: Callable[[Link], Awaitable[None]], check: Check, again: Again | None = None
    ) -> None:
        """Serve ``link``: run ``handler`` with it if a session begins, over this link and those that follow.

        If it goes on with one that there is, and ``check``, which that one came with, lets its token pass, it is handed over.
        ``again``: where to look for the other side when this link has broken; by default that comes here.
        Returns when the link is no longer used.
        """
        try:
            with trio.fail_after(BEGIN_SECONDS):
                first = await link.receive()
            opening = opening_of(first)
            if opening is not None and not opening.again and opening.key in self._open:
                raise ProtocolViolation("a session has begun that there is already")
        except trio.TooSlowError:
            await link.aclose(1002, f"nothing was said within {BEGIN_SECONDS:g} s")
        except ProtocolViolation as error:
            log.warning("%s: %s", link.peer, error.message)
            await link.aclose(1002, error.message[:100])
        except LinkLost as error:
            log.debug("%s: %s", link.peer, error.message)
        else:
            if opening is not None and opening.again:
                await self._hand_over(link, first, opening, again)
            else:
                await self._begin(link, first, opening, handler, check, again)

    async def _begin(
        self,
        link: Link,
        first: bytes,
        opening: Opening | None,
        handler: Callable[[Link], Awaitable[None]],
        check: Check,
        again: Again | None,
    ) -> None:
        session = _Session(opening.key if opening is not None else b"", check, again)
        if opening is not None:
            self._open[opening.key] = session
        try:
            async with resumable(
                Onward(link, first=first), Resume(), session.following, patience=self._patience
            ) as session.link:
                await handler(session.link)
        finally:
            if opening is not None:
                del self._open[opening.key]
            session.end()

    async def _hand_over(self, link: Link, first: bytes, opening: Opening, again: Again | None) -> None:
        session = self._open.get(opening.key)
        try:
            if session is None:
                raise Refused(UNKNOWN)
            session.check(opening.token)
        except Refused as error:
            await _refuse(link, error)
            return
        left = trio.Event()
        session.offer(Onward(link, first=first, left=left.set), again)
        with trio.CancelScope(shield=True):  # the session closes it, in order: with its reason, when this process stops
            await left.wait()


async def _refuse(link: Link, error: Refused) -> None:
    log.warning("%s: a session is not resumed: %s", link.peer, error.message)
    try:
        await link.send([refusal(error.message)])
    except LinkLost as lost:
        log.debug("%s: %s", link.peer, lost.message)
    await link.aclose(1008, error.message[:100])


class _Session:
    """One session, and the link that it shall go on over."""

    def __init__(self, key: bytes, check: Check, again: Again | None) -> None:
        self.check = check
        self.link: ResumableLink | None = None
        self._key = key
        self._again = self._redial(again)
        self._offered: Onward | None = None
        self._news = trio.lowlevel.ParkingLot()

    def offer(self, onward: Onward, again: Again | None) -> None:
        """Go on over this link now, whatever there is: its dialler has left the others."""
        self._again = self._redial(again)
        self._take(onward)
        if self.link is not None:
            self.link.abort("the session goes on over another link")

    def _take(self, onward: Onward) -> None:
        self.end()
        self._offered = onward
        self._news.unpark_all()

    def _redial(self, again: Again | None) -> Redial | None:
        return Redial(partial(self._meet, again)) if again is not None else None

    async def following(self, lost: LinkLost) -> Onward:
        if self._offered is None:
            async with trio.open_nursery() as nursery:
                if self._again is not None:
                    nursery.start_soon(self._look, self._again, lost)
                while self._offered is None:
                    await self._news.park()
                nursery.cancel_scope.cancel()
        onward, self._offered = self._offered, None
        return onward

    async def _look(self, again: Redial, lost: LinkLost) -> None:
        """Go where the link came from, again and again, until the other side is there."""
        onward = await again(lost)
        if self._offered is None:
            self._take(onward)
        else:
            onward.left()

    async def _meet(self, again: Again) -> Onward:
        """Raises ``LabError`` if it cannot be met there now."""
        try:
            link = await again()
        except JmpError as error:  # also a refusal: a router that has forgotten its keys is told them again
            raise LabError(error.message) from error
        onward = None
        try:
            first = await link.receive()
            opening = opening_of(first)
            if opening is None or not opening.again or opening.key != self._key:
                raise ProtocolViolation("who came there does not go on with this session")
            self.check(opening.token)
            onward = Onward(link, first=first, left=partial(link.abort, "the session goes on over another link"))
        except Refused as error:
            await _refuse(link, error)
            raise LabError(error.message) from error
        finally:
            if onward is None:
                link.abort("nobody goes on over it")
        return onward

    def end(self) -> None:
        if self._offered is not None:
            self._offered.left()
            self._offered = None
