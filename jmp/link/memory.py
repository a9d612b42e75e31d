"""A pair of links within one process: for tests of everything above, on real or mocked time.

Each end controls what *it* sends: ``delay`` seconds on the way, :meth:`MemoryLink.stall` and
:meth:`MemoryLink.resume`; either end can :meth:`MemoryLink.cut` both ways.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from jmp.errors import LinkLost, ProtocolViolation
from jmp.link import Link
from jmp.link.rfc6455 import MAX_MESSAGE, Buffer, Closed, Violation

CAPACITY: Final = 1 << 20
"""Bytes under way in one direction from which on a sender has to wait: about what two socket buffers hold."""


class MemoryLink(Link):
    """One end of a pair made by :func:`memory_links`; behaves like a WebSocket link, limits included."""

    delay: float = 0.0
    """Seconds that each message sent from now on is under way. Never overtakes: a shorter one waits for a longer one."""

    def __init__(self, peer: str, max_message: int, capacity: int) -> None:
        self.peer = peer
        self._max_message = max_message
        self._capacity = capacity
        self._other = self
        # What is on its way here, each with the time of its arrival; a good-bye comes last, so it may be delayed, too.
        self._incoming: deque[tuple[float, bytes | Closed]] = deque()
        self._size = 0
        self._stalled = False  # nothing arrives here for now
        self._end: LinkLost | ProtocolViolation | None = None
        self._arrivals = trio.lowlevel.ParkingLot()
        self._space = trio.lowlevel.ParkingLot()  # where senders to this end wait

    def stall(self) -> None:
        """Hold back all that this end has sent and sends, until :meth:`resume`; its senders wait as buffers fill."""
        self._other._stalled = True
        self._other._arrivals.unpark_all()  # one may already be waiting for the time of an arrival

    def resume(self) -> None:
        self._other._stalled = False
        self._other._arrivals.unpark_all()

    def cut(self) -> None:
        """Break the connection at once: what is under way is lost, both ends find the link lost."""
        for end in (self, self._other):
            end._finish(LinkLost("the connection was cut"))

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        if self._end is not None:
            raise self._end
        if self._other._size >= self._capacity:
            return False
        message = b"".join(parts)
        self._other._arrive(trio.current_time() + self.delay, message)
        return True

    async def send(self, parts: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        while not self.send_nowait(parts):
            await self._other._space.park()

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while self._end is None:
            if self._stalled or not self._incoming:
                await self._arrivals.park()
                continue
            arrival, message = self._incoming[0]
            if arrival > trio.current_time():
                # Woken early by what changes meanwhile: a stall, a cut.
                with trio.move_on_at(arrival):
                    await self._arrivals.park()
                continue
            self._incoming.popleft()
            if isinstance(message, Closed):
                self._finish(message)
            elif len(message) > self._max_message:
                self._fail(Violation(1009, f"a message was longer than {self._max_message} bytes"))
            else:
                self._size -= len(message)
                self._space.unpark_all()
                return message
        raise self._end

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """As in :class:`~jmp.link.Link`. What was sent before still arrives, and so does the good-bye."""
        if self._end is None:
            self._other._arrive(trio.current_time() + self.delay, Closed(code, reason))
            self._finish(LinkLost("this side closed the connection"))
        await trio.lowlevel.checkpoint()

    def abort(self, reason: str) -> None:
        self._finish(LinkLost(reason))
        self._other._finish(LinkLost("the other side ended the connection without a good-bye"))

    def _arrive(self, arrival: float, message: bytes | Closed) -> None:
        if self._end is not None:
            return  # this end is closed: as into a socket that nobody reads
        if self._incoming:
            arrival = max(arrival, self._incoming[-1][0])
        self._incoming.append((arrival, message))
        if isinstance(message, bytes):
            self._size += len(message)
        self._arrivals.unpark_all()

    def _fail(self, violation: Violation) -> None:
        self._finish(violation)
        self._other._arrive(trio.current_time() + self.delay, Closed(violation.close_code, ""))

    def _finish(self, end: LinkLost | ProtocolViolation) -> None:
        if self._end is not None:
            return
        self._end = end
        self._incoming.clear()
        self._size = 0
        self._arrivals.unpark_all()
        self._space.unpark_all()
        self._other._space.unpark_all()


def memory_links(*, max_message: int = MAX_MESSAGE, capacity: int = CAPACITY) -> tuple[MemoryLink, MemoryLink]:
    """Make two connected links; ``capacity`` bytes under way in a direction make its senders wait."""
    left = MemoryLink("memory:right", max_message, capacity)
    right = MemoryLink("memory:left", max_message, capacity)
    left._other, right._other = right, left
    return left, right
