"""The side of a listener: which session a new link belongs to.

Theory of operation. A session is served in the task of the link that it began on, and goes on in that task whatever becomes
of that link. Who comes later and goes on with it hands its link over to there, and keeps it open until the session has left it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from jmp.errors import LinkLost, ProtocolViolation, Refused
from jmp.link import Link
from jmp.link.resumable import Onward, ResumableLink, resumable
from jmp.link.resume import LISTEN_SECONDS, Opening, Resume, opening_of, refusal

log = logging.getLogger("jmp.link")

BEGIN_SECONDS: Final = 15.0
"""How long a dialler may take to say its first message."""
UNKNOWN: Final = "the other side does not know the session (any more): it has ended there, or that side was restarted"

Check = Callable[[str | None], None]
"""Raises ``Refused`` unless whoever shows this token may go on with a session."""


class Sessions:
    """Those of one listener, by their keys."""

    def __init__(self, patience: float = LISTEN_SECONDS) -> None:
        self._patience = patience
        self._open: dict[bytes, _Session] = {}

    async def serve(self, link: Link, handler: Callable[[Link], Awaitable[None]], check: Check) -> None:
        """Serve ``link``: run ``handler`` with it if a session begins, over this link and those that follow.

        If it goes on with one that there is, and ``check``, which that one came with, lets its token pass, it is handed over.
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
                await self._hand_over(link, first, opening)
            else:
                await self._begin(link, first, opening, handler, check)

    async def _begin(
        self,
        link: Link,
        first: bytes,
        opening: Opening | None,
        handler: Callable[[Link], Awaitable[None]],
        check: Check,
    ) -> None:
        session = _Session(check)
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

    async def _hand_over(self, link: Link, first: bytes, opening: Opening) -> None:
        session = self._open.get(opening.key)
        try:
            if session is None:
                raise Refused(UNKNOWN)
            session.check(opening.token)
        except Refused as error:
            log.warning("%s: a session is not resumed: %s", link.peer, error.message)
            try:
                await link.send([refusal(error.message)])
            except LinkLost as lost:
                log.debug("%s: %s", link.peer, lost.message)
            await link.aclose(1008, error.message[:100])
            return
        left = trio.Event()
        session.offer(Onward(link, first=first, left=left.set))
        with trio.CancelScope(shield=True):  # the session closes it, in order: with its reason, when this process stops
            await left.wait()


class _Session:
    """One session, and the link that it shall go on over."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.link: ResumableLink | None = None
        self._offered: Onward | None = None
        self._news = trio.lowlevel.ParkingLot()

    def offer(self, onward: Onward) -> None:
        """Go on over this link now, whatever there is: its dialler has left the others."""
        self.end()
        self._offered = onward
        self._news.unpark_all()
        if self.link is not None:
            self.link.abort("the session goes on over another link")

    async def following(self, lost: LinkLost) -> Onward:
        while self._offered is None:
            await self._news.park()
        onward, self._offered = self._offered, None
        return onward

    def end(self) -> None:
        if self._offered is not None:
            self._offered.left()
            self._offered = None
