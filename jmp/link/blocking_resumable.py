"""A blocking link that outlives the links it goes over: the half of :mod:`jmp.link.resume` for threads. Light imports.

Theory of operation. Who receives finds a link broken, and dials there and then, for as long as it has time to wait: the next one
that receives goes on with that, the keeper of :mod:`jmp.mux.blocking` if nobody else does. Who sends only puts a message
among those that are to arrive, and gives the link what it can.

Nobody waits because much is to be acknowledged still: streams' windows bound that, and a thread that has to read for it might
be the very one that waits.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Sequence
from secrets import token_bytes
from time import monotonic
from typing import Final

from jmp.errors import Busy, JmpError, LabError, LinkLost, ProtocolViolation, Timeout
from jmp.link.blocking import BlockingLink
from jmp.link.interrupts import wait
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

Dial = Callable[[float], BlockingLink]
"""Gives another link within so many seconds, or raises ``JmpError``."""

_CLOSED_HERE: Final = "this side closed the connection"


class ResumableBlockingLink:
    """As :class:`~jmp.link.blocking.BlockingLink`, but it ends with its session only.

    ``link`` is the first one; ``token`` is shown on those that follow, for ``patience`` seconds in all after a loss.
    """

    def __init__(
        self, link: BlockingLink, dial: Dial, *, token: str | None = None, patience: float = RESUME_SECONDS
    ) -> None:
        self.peer = link.peer
        self._link = link
        self._dial = dial
        self._token = token
        self._patience = patience
        self._core = Resume(token_bytes(32))
        self._state = threading.Lock()  # guards the core; never held while waiting
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._end: LinkLost | ProtocolViolation | None = None
        # What follows is the receiving thread's.
        self._lost: LinkLost | None = None
        self._why = ""
        self._since = math.inf
        self._answer_by = math.inf
        self._pause = 0.0
        self._not_before = self._last = -math.inf
        self._core.attach()

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send the message made of ``parts``, joined: it will arrive, if the session goes on."""
        with self._state:
            if self._end is not None:
                raise self._end
            self._core.put(parts)
        self._push()

    def receive(self, timeout: float | None = None) -> bytes | None:
        """Wait for the next message; None if none comes within ``timeout`` seconds (0: do not wait, but for another link)."""
        deadline = math.inf if timeout is None else monotonic() + timeout
        with self._reading:
            while True:
                if self._end is not None:
                    raise self._end
                try:
                    message = self._receive(deadline, at_least_once=timeout == 0)
                except ProtocolViolation as error:
                    self._finish(error)
                except Ended as error:
                    self._finish(Ended(f"{self._why}; {error.message}"))
                except LinkLost as error:
                    passing = not isinstance(error, Closed) or error.close_code in PASSING_CODES
                    with self._state:
                        goes_on = self._core.detach() and passing
                    if not goes_on:
                        self._finish(error)
                    self._lost, self._answer_by = error, math.inf
                else:
                    if message is not None:
                        return message
                    if monotonic() >= deadline:
                        return None

    def _receive(self, deadline: float, *, at_least_once: bool) -> bytes | None:
        """The other side's next message; None if there was none in time, or only a word about the session."""
        if self._lost is not None and not self._change(self._lost, deadline, at_least_once):
            return None
        until = min(deadline, self._answer_by)
        data = self._link.receive(None if until == math.inf else max(until - monotonic(), 0))
        if data is None:
            if monotonic() >= self._answer_by:
                raise LinkLost(f"{self.peer} did not answer")
            return None
        with self._state:
            message = self._core.receive(data)
            due = self._core.ack_due
        if due:
            self._push(wait=False)
        if self._answer_by != math.inf:
            self._answer_by, took, self._since = math.inf, monotonic() - self._since, math.inf
            log.info("%s: the session goes on, %.1f s after the loss of its link", self.peer, took)
            self._push()
        return message

    def abort(self, reason: str) -> None:
        """Take the present link for lost; the session goes on over the next one."""
        self._link.abort(reason)

    def arrived(self, position: int) -> bool | None:
        """As in :class:`~jmp.link.Link`."""
        with self._state:
            return self._core.arrived(position)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say good-bye, on both sides. May be called again, and by any thread."""
        self._finish(LinkLost(_CLOSED_HERE))
        self._closed.set()
        self._link.close(code, reason)

    def disown(self) -> None:
        """Forget the session without a good-bye: after a fork, in the child, it is the parent's."""
        self._state, self._reading, self._sending = threading.Lock(), threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._closed.set()
        self._end = LinkLost(_CLOSED_HERE)
        self._link.disown()

    def _finish(self, error: LinkLost | ProtocolViolation) -> None:
        with self._state:
            if self._end is None:
                self._end = error

    def _push(self, *, wait: bool = True) -> None:
        """Give the link what is to go. Without ``wait``, leaves that to a thread that is at it."""
        while self._sending.acquire(blocking=wait):
            try:
                with self._state:
                    parts = self._core.take(ack=True)
                if not parts:
                    return
                self._link.send(parts)
            except (LinkLost, ProtocolViolation):
                return  # who receives finds out, and says what becomes of it
            finally:
                self._sending.release()

    def _change(self, lost: LinkLost, deadline: float, at_least_once: bool) -> bool:
        """Get the next link; whether that was possible in time. Raises ``Ended`` when there will be none.

        ``at_least_once``: give it a try in any case, since there may be nobody else who does.
        """
        if self._since == math.inf:
            self._since, self._why = monotonic(), lost.message
            log.info("%s: the link was lost: %s", self.peer, lost.message)
            self._link.abort("")
        if self._since - self._last > GOOD_SECONDS:
            self._pause = 0.0
        end = self._since + self._patience
        while True:
            wait(self._closed.wait, max(min(self._not_before, deadline, end) - monotonic(), 0))
            if self._end is not None:
                raise self._end
            now = monotonic()
            if now >= end:
                raise Ended(f"the session was not resumed within {self._patience:g} s")
            if now < self._not_before or (now >= deadline and not at_least_once):
                return False
            limit = min(ATTEMPT_SECONDS, end - now, math.inf if at_least_once else deadline - now)
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._not_before = now + random.uniform(self._pause / 2, self._pause)
            try:
                link = wait(self._dial, limit)
            except (LabError, Busy, Timeout) as error:
                log.debug("no link yet: %s", error)
            except JmpError as error:
                raise Ended(f"it cannot be resumed: {error.message}") from error
            else:
                self._take(link)
                return True

    def _take(self, link: BlockingLink) -> None:
        self._link.abort("")  # whoever sends there still finds out, and lets go
        with self._sending, self._state:
            self._link = link
            self._core.attach(self._token)
            closed = self._end is not None
        if closed:
            link.close()
        self.peer, self._lost = link.peer, None
        self._last = monotonic()
        self._answer_by = self._last + ANSWER_SECONDS
        self._push()
