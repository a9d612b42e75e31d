"""A link with streams on it, under Trio.

One task reads the link and never waits for anybody else. Sending goes straight to the link from the task that has
something to send if the link takes it without waiting (a hand-over to another task costs more than the send), otherwise,
and for what follows in a burst, through one writer task, so that frames that are ready together leave together.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from jmp.errors import JmpError, LinkLost, ProtocolViolation
from jmp.groups import ungrouped
from jmp.link import Link
from jmp.mux.protocol import (
    Credited,
    Ended,
    Event,
    GoingAway,
    Mux,
    Opened,
    Pong,
    Received,
    Role,
    Stopped,
    WasReset,
    again,
)
from jmp.mux.stream import HIGH_WATER, MuxStream, Serve, Signal, StreamReset
from jmp.wire.frames import Reset

PING_AFTER: Final = 5.0
"""Seconds of silence after which the other side is asked for a sign of life."""
SILENCE: Final = 15.0
"""Seconds of silence after which the link is taken for dead."""
_TURN_SECONDS: Final = 0.0001
_TURN_STREAMS: Final = 4
"""After which the reader of a link on which much comes lets others go on: so much time, or so many tasks begun."""
_ALONE_SECONDS: Final = 0.001
"""Instead of that time where nothing has come on any other link for a second: each turn that ends costs 15 µs."""
CLOSE_GRACE: Final = 2.0
"""Seconds that a closing link may take to say good-bye."""

AtOnce = Callable[[MuxStream], Serve | None]
"""Called in the turn in which a stream was opened: serves it then and there (None), or gives what does that in a task."""


class _Readers:
    """Which of a process's links was read last, and since when only that one was."""

    def __init__(self) -> None:
        self._last = 0
        """Its id, so as not to keep it. One that gets the same id later is taken for it, which does no harm."""
        self._since = -math.inf

    def turn(self, reader: object, now: float) -> float:
        """When the turn of ``reader`` ends that begins now."""
        if self._last != id(reader):
            self._last, self._since = id(reader), now
        return now + (_TURN_SECONDS if self.shared(now) else _ALONE_SECONDS)

    def shared(self, now: float) -> bool:
        """Whether something has come on other links, too, within a second."""
        return now - self._since < 1


_READERS: Final = _Readers()


class Connection:
    """A link with streams on it; made by :func:`multiplex`."""

    def __init__(self, link: Link, role: Role, serve: Serve | None, at_once: AtOnce | None) -> None:
        self.link = link
        self._at_once = at_once
        self._mux = Mux(role)
        self._serve = serve
        self._streams: dict[int, MuxStream] = {}
        self._handlers: trio.Nursery | None = None
        self._room = trio.lowlevel.ParkingLot()
        self._wake_writer = Signal()
        self._patient = False
        """Whether that is for what nobody waits for."""
        self._writing = trio.CancelScope(shield=True)
        """The writer's: where the block is cancelled, it has its last words to send still."""
        self._unsent: list[bytes | memoryview] = []
        self._direct = True
        """Whether the next frame may go to the link at once: nothing went that way since the last message or writer's turn."""
        self._heard = -math.inf
        self.used = trio.current_time()
        """When a stream was last opened by the other side, or a stream's bytes came or went, on Trio's clock."""
        self._over = trio.Event()
        self.error: JmpError | None = None
        """Why the link ended, once it has."""
        self.farewell = (1000, "")
        """Close code and reason that the other side is told at the end of the block."""

    def open_stream(self, data: bytes = b"", *, end: bool = False, soon: bool = False) -> MuxStream:
        """Open a stream; its first bytes (64 KiB at most) and end of input go in the same message.

        ``soon``: that leaves in a moment, with what is sent on the stream by then.
        Raises :class:`~jmp.errors.LinkLost` if the link has ended.
        """
        if self.error is not None:
            raise again(self.error)
        stream = MuxStream(self, self._mux.open(data, end=end))
        stream._sent_end = end
        self._streams[stream.number] = stream
        self._flush(soon=soon)
        return stream

    def go_away(self, reason: str) -> None:
        """Take no new streams from the other side; those open go on."""
        self._mux.go_away(0, reason)
        self._flush()

    async def wait_over(self) -> JmpError:
        """Wait until the link has ended, and return why."""
        await self._over.wait()
        assert self.error is not None
        return self.error

    # ---- the two tasks

    async def _read(self) -> None:
        async with trio.open_nursery() as handlers:
            self._handlers = handlers
            begun, until = 0, -math.inf
            try:
                while True:
                    message = self.link.receive_nowait()
                    if message is None:
                        message = await self.link.receive()
                        begun, until = 0, _READERS.turn(self, trio.current_time())
                    self._heard = trio.current_time()
                    self._direct = True
                    for events in self._mux.read(message):
                        opened: list[MuxStream] = []
                        for event in events:
                            self._act(event, opened)
                        for stream in opened:
                            begun += self._begin(stream, handlers)
                            if begun >= _TURN_STREAMS or trio.current_time() > until:
                                begun, until = 0, await self._let_others()
                        if trio.current_time() > until:
                            begun, until = 0, await self._let_others()
                    self._flush(soon=begun > 0)  # who has just begun may have something to send, too
            except (LinkLost, ProtocolViolation) as error:
                self._end(error)
                if isinstance(error, ProtocolViolation):
                    # It takes a second, and what was wrong may be large: nothing of that is kept until then.
                    message, events, opened = None, [], []
                    error.__traceback__ = None
                    # Shielded: who waits for the end cancels this task, and the other side is to learn what it did.
                    with trio.move_on_after(CLOSE_GRACE, shield=True):
                        await self.link.aclose(1002, error.message)
            handlers.cancel_scope.cancel()

    def _act(self, event: Event, opened: list[MuxStream]) -> None:
        if isinstance(event, Received):
            self.used = self._heard
            if (receiver := self._streams.get(event.stream)) is not None:
                receiver._on_received(event.data)
            return
        kind = type(event)
        if kind is Pong or kind is GoingAway:
            return
        number: int = event.stream  # type: ignore[union-attr]  # of all others
        if kind is Opened:
            self.used = self._heard
            if self._serve is None:
                self._mux.reset(number, Reset.REFUSED, b"")
            else:
                opened.append(MuxStream(self, number))
                self._streams[number] = opened[-1]
            return
        stream = self._streams.get(number)
        if stream is None:
            pass
        elif kind is Ended:
            stream._on_ended()
        elif kind is Credited:
            stream._on_credited()
        elif kind is Stopped:
            stream._on_stopped()
        elif isinstance(event, WasReset):
            del self._streams[number]
            stream._on_broken(StreamReset(event.code, event.detail))

    def _begin(self, stream: MuxStream, handlers: trio.Nursery) -> bool:
        """Serve it; whether that takes a task."""
        serve = self._serve if self._at_once is None else self._at_once(stream)
        if serve is not None:
            handlers.start_soon(serve, stream)
        return serve is not None

    async def _let_others(self) -> float:
        """End the turn: there may be more to read for long, which takes no waiting. Returns when the next one ends."""
        self._flush()
        await trio.lowlevel.checkpoint()
        if _READERS.shared(trio.current_time()):
            # Who became ready meanwhile is known only now, and the order within a round is none: this one lets it pass.
            await trio.lowlevel.checkpoint()
        return _READERS.turn(self, trio.current_time())

    def _flush(self, *, soon: bool = False) -> None:
        """Send what waits: at once if that takes no waiting, else by the writer.

        ``soon``: in a moment, with what else there is to send by then; for what nobody on the other side waits for.
        """
        if self._unsent or not self._mux.outgoing_bytes or self.error is not None:
            return
        if self._direct and not soon:
            self._direct = False
            parts = self._mux.outgoing()
            try:
                if not self.link.send_nowait(parts):
                    self._unsent = parts
            except (LinkLost, ProtocolViolation) as error:
                self._end(error)
                return
        if self._unsent or self._mux.outgoing_bytes:
            self._patient = soon
            self._wake_writer.wake()

    async def _write(self) -> None:
        with self._writing:
            await self._write_all()

    async def _write_all(self) -> None:
        try:
            while True:
                while parts := self._unsent or self._mux.outgoing():
                    self._unsent = parts
                    if not self.link.send_nowait(parts):
                        await self.link.send(parts)
                    self._unsent = []
                    if self._mux.outgoing_bytes <= HIGH_WATER:
                        self._room.unpark_all()
                self._room.unpark_all()  # also when somebody else has sent what was here
                self._direct = True
                await self._wake_writer.wait()
                if self._patient:  # until all have had their turn that had it with the one that woke this task
                    await trio.lowlevel.checkpoint()
        except (LinkLost, ProtocolViolation) as error:
            self._end(error)

    async def _watch(self) -> None:
        """Ask a silent peer for a sign of life, and give the link up when there is none."""
        self._heard = trio.current_time()
        while self.error is None:
            await trio.sleep_until(self._heard + PING_AFTER)
            asked = trio.current_time()
            if self._heard + PING_AFTER > asked:
                continue
            self._mux.ping()
            self._flush()
            with trio.move_on_at(asked + SILENCE - PING_AFTER):
                await self._over.wait()
            if self._heard < asked and self.error is None:
                self.link.abort(f"{self.link.peer} gave no sign of life for {SILENCE:g} s")
                self._heard = trio.current_time()  # the session may go on over another link

    def _end(self, error: JmpError) -> None:
        if self.error is not None:
            return
        self.error = error
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream._on_broken(error)
        self._room.unpark_all()
        self._over.set()


@ungrouped
@asynccontextmanager
async def multiplex(
    link: Link, role: Role, *, serve: Serve | None = None, watch: bool = False
) -> AsyncIterator[Connection]:
    """Run streams over ``link`` for as long as the block lasts; closes the link at its end.

    ``serve`` is called, in a task of its own, with each stream that the other side opens; it is cancelled when the link ends. If
    it has an attribute ``at_once`` (:data:`AtOnce`), that is asked first. Without it such streams are refused.
    ``watch``: give the link up when the other side falls silent for 15 s.
    The end of the link does not end the block: streams raise ``BrokenResourceError``, and :meth:`Connection.wait_over` returns.
    """
    connection = Connection(link, role, serve, getattr(serve, "at_once", None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection._read)
        nursery.start_soon(connection._write)
        if watch:
            nursery.start_soon(connection._watch)
        try:
            yield connection
        finally:
            with trio.move_on_after(CLOSE_GRACE, shield=True):
                await _drain(connection)
            connection._writing.cancel()
            nursery.cancel_scope.cancel()
            with trio.move_on_after(CLOSE_GRACE, shield=True):
                await link.aclose(*connection.farewell)
            connection._end(LinkLost("the link was closed on this side"))


async def _drain(connection: Connection) -> None:
    """Wait until everything queued has been given to the link."""
    while connection.error is None and (connection._unsent or connection._mux.outgoing_bytes):
        connection._flush()
        if connection._unsent or connection._mux.outgoing_bytes:
            await connection._room.park()
