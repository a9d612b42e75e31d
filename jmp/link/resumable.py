"""A Trio link that outlives the links it goes over: the thin half of :mod:`jmp.link.resume`.

Theory of operation. Whoever receives finds the link broken, and gets the next one there and then: it is the one task that is
always there and waits for no consumer. A message goes to the link from the task that has it, if the link takes it at once.
A task of its own sends the rest: after a break what has to go again, while the reader reads, since both ends may have much to
say; and acknowledgements that nothing else carries. It is woken once a second at most while nothing is in its way.

Where the next link comes from is the affair of ``following``: :class:`Redial` for the side that dials,
:mod:`jmp.link.sessions` for the one that listens.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from secrets import token_bytes
from typing import Final, NamedTuple

import trio

from jmp.errors import Busy, JmpError, LabError, LinkLost, ProtocolViolation, Timeout
from jmp.groups import ungrouped
from jmp.link import Link
from jmp.link.resume import (
    ANSWER_SECONDS,
    ATTEMPT_SECONDS,
    FIRST_PAUSE,
    GOOD_SECONDS,
    LONGEST_PAUSE,
    PASSING_CODES,
    RESUME_SECONDS,
    Ended,
    Resume,
)
from jmp.link.rfc6455 import Buffer, Closed

log = logging.getLogger("jmp.link")

ACK_SECONDS: Final = 1.0
"""After which what was received is acknowledged, however little it is: it is kept at the other side until then."""


class Onward(NamedTuple):
    """A link to go on with."""

    link: Link
    token: str | None = None
    """What the dialler shows there."""
    first: bytes = b""
    """What has been received on it already."""
    left: Callable[[], None] = lambda: None
    """Called when the link is no longer used."""


Following = Callable[[LinkLost], Awaitable[Onward]]
"""Gives the link to go on with after the loss of one. Raises ``JmpError`` when there will be none."""
Told = Callable[[LinkLost | None, float], None]
"""Hears of a loss, when it is noticed; and then, with None, that the session goes on, and for how many seconds it did not."""


class ResumableLink(Link):
    """A link that ends with its session only; made by :func:`resumable`."""

    def __init__(self, begin: Onward, core: Resume, following: Following, patience: float, told: Told | None) -> None:
        self.peer = begin.link.peer
        self._now = begin
        self._link = begin.link
        self._first = begin.first
        self._core = core
        self._following = following
        self._patience = patience
        self._told = told
        self._begins = bool(begin.first)  # what is received next, if anything, is the first of its link
        self._since = math.inf  # when it was lost, if it does not go on yet
        self._lost: LinkLost | None = None
        self._why = ""
        self._unsent: list[Buffer] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._work = trio.Event()
        self._busy = True  # the sending task needs not be woken to acknowledge in time
        self._end: LinkLost | ProtocolViolation | None = None
        self._farewell: tuple[int, str] | None = None
        core.attach(begin.token)

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        if self._end is not None:
            raise self._end
        core = self._core
        if self._unsent or core.full or (core.waiting and core.attached):
            return False
        core.put(parts)
        self._send_next()
        return True

    async def send(self, parts: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        while not self.send_nowait(parts):
            await self._changed.park()

    def receive_nowait(self) -> bytes | None:
        while not self._begins:
            if self._end is not None:
                raise self._end
            try:
                data = self._link.receive_nowait()
            except (LinkLost, ProtocolViolation):
                return None  # receive() meets that, too, and sees to it
            if data is None:
                return None
            try:
                message = self._core.receive(data)
            except (LinkLost, ProtocolViolation) as error:
                self._finish(error)
                continue
            self._heard()
            if message is not None:
                return message
        return None

    async def receive(self) -> bytes:
        core = self._core
        while True:
            if self._end is not None:
                raise self._end
            try:
                begins = self._begins
                message = core.receive(await (self._receive_first() if begins else self._link.receive()))
            except ProtocolViolation as error:
                self._finish(error)
            except Ended as error:
                self._finish(Ended(f"{self._why}; {error.message}"))
            except LinkLost as error:
                passing = not isinstance(error, Closed) or error.close_code in PASSING_CODES
                if not passing or not core.detach():
                    self._finish(error)
                self._lost, self._begins = error, True
            else:
                if begins:
                    self._go_on()
                self._heard()
                if message is not None:
                    return message

    def _heard(self) -> None:
        """Do what follows from a message: acknowledge, now or in time; who waited until something was acknowledged may go on."""
        if self._core.ack_due:
            self._send_next()
        if not self._busy and self._core.owed:
            self._wake()
        if self._changed:
            self._changed.unpark_all()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """As in :class:`~jmp.link.Link`: the session is over, on both sides. What was sent before still goes."""
        farewell = self._farewell = self._farewell or (code, reason)
        try:
            while self._end is None and self._core.open and (self._unsent or self._core.waiting):
                await self._changed.park()
        finally:
            self._finish(LinkLost("this side closed the connection"))
            await self._link.aclose(*farewell)

    def abort(self, reason: str) -> None:
        """Give the present link up; the session goes on over the next one."""
        self._link.abort(reason)

    def arrived(self, position: int) -> bool | None:
        return self._core.arrived(position)

    # ---- one link after another

    async def _receive_first(self) -> bytes:
        """What comes first over a link that is new, or over the one after the one that was lost."""
        if self._lost is not None:
            await self._change(self._lost)
        if self._first:
            data, self._first = self._first, b""
            return data
        with trio.move_on_after(ANSWER_SECONDS):
            return await self._link.receive()
        raise LinkLost(f"{self._link.peer} did not answer")

    async def _change(self, lost: LinkLost) -> None:
        if self._since == math.inf:
            self._since, self._why = trio.current_time(), lost.message
            log.info("%s: the link was lost: %s", self.peer, lost.message)
            if self._told is not None:
                self._told(lost, 0.0)
        await self._leave()
        try:
            with trio.fail_at(self._since + self._patience):
                self._now = await self._following(lost)
        except trio.TooSlowError:
            raise Ended(f"the session was not resumed within {self._patience:g} s") from lost
        except JmpError as error:
            raise Ended(f"it cannot be resumed: {error.message}") from error
        self._link, self._first = self._now.link, self._now.first
        self._lost, self._unsent = None, []
        self.peer = self._link.peer
        self._core.attach(self._now.token)
        self._wake()

    def _go_on(self) -> None:
        """The other end has answered."""
        self._begins = False
        if self._since != math.inf:
            took, self._since = trio.current_time() - self._since, math.inf
            log.info("%s: the session goes on, %.1f s after the loss of its link", self.peer, took)
            if self._told is not None:
                self._told(None, took)
        self._wake()

    async def _leave(self) -> None:
        with trio.CancelScope() as at_once:
            at_once.cancel()
            await self._link.aclose()
        self._now.left()

    def _finish(self, error: LinkLost | ProtocolViolation) -> None:
        if self._end is None:
            self._end = error
        self._changed.unpark_all()

    def _wake(self) -> None:
        self._busy = True
        self._work.set()

    # ---- sending

    def _send_next(self) -> None:
        """Send the next message, or an acknowledgement that is due, if the link takes it at once."""
        if self._unsent:
            return
        parts = self._core.take()
        try:
            if parts and not self._link.send_nowait(parts):
                self._unsent = parts
                self._wake()
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
            self._busy = self._core.owed
            with trio.move_on_after(ACK_SECONDS if self._busy else math.inf) as waited:
                await self._work.wait()
            ack = waited.cancelled_caught


@ungrouped
@asynccontextmanager
async def resumable(
    begin: Onward, core: Resume, following: Following, *, patience: float = RESUME_SECONDS, told: Told | None = None
) -> AsyncIterator[ResumableLink]:
    """A link that goes on over what ``following`` gives within ``patience`` seconds when one breaks; closed at the block's end.

    A peer without resume gets what it would get over the first link itself, and the loss of that is the end.
    """
    whole = ResumableLink(begin, core, following, patience, told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(whole._send_rest)
        try:
            yield whole
        finally:
            nursery.cancel_scope.cancel()
            whole._finish(LinkLost("this side closed the connection"))
            with trio.CancelScope(shield=True):
                await whole.aclose()
            whole._now.left()


def lasting(
    link: Link, dial: Callable[[], Awaitable[Onward]], told: Told | None = None
) -> AbstractAsyncContextManager[ResumableLink]:
    """``link``, which this side has dialled, as one that lasts: ``dial`` gives the next one whenever it breaks."""
    return resumable(Onward(link), Resume(token_bytes(32)), Redial(dial), told=told)


class Redial:
    """Dials until there is a link, with a growing pause from one attempt to the next."""

    def __init__(self, dial: Callable[[], Awaitable[Onward]]) -> None:
        self._dial = dial
        self._pause = 0.0
        self._last = -math.inf

    async def __call__(self, lost: LinkLost) -> Onward:
        """The next link. Raises what cannot be mended by trying again: a refusal, say."""
        if trio.current_time() - self._last > GOOD_SECONDS:
            self._pause = 0.0
        while True:
            await trio.sleep(random.uniform(self._pause / 2, self._pause))
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            try:
                with trio.fail_after(ATTEMPT_SECONDS):
                    found = await self._dial()
            except (LabError, Busy, Timeout, trio.TooSlowError) as error:
                log.debug("no link yet: %s", error)
            else:
                self._last = trio.current_time()
                return found
