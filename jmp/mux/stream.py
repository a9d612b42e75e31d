"""Trio's half of the mux: streams that are ordinary ``trio.abc.HalfCloseableStream``s.

One task reads the link and never waits for anybody else. Sending goes straight to the link from the task that has
something to send if the link takes it without waiting (a hand-over to another task costs more than the send), otherwise,
and for what follows in a burst, through one writer task, so that frames that are ready together leave together.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
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
    take,
)
from jmp.wire.frames import MAX_DATA, TARGET_MESSAGE, Reset

HIGH_WATER: Final = 256 * 1024
"""Bytes waiting for the link past which senders of streams wait: what an urgent small frame has to queue behind."""
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


class StreamReset(trio.BrokenResourceError):
    """The other side ended the stream at once, both ways."""

    def __init__(self, code: int, detail: bytes) -> None:
        super().__init__(f"the stream was reset ({Reset(code).name if code in set(Reset) else code})")
        self.code = code
        self.detail = detail


class StreamStopped(trio.BrokenResourceError):
    """The other side reads no more: it has closed the stream, or wants nothing further from it."""


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
        return now + (_TURN_SECONDS if now - self._since < 1 else _ALONE_SECONDS)


_READERS: Final = _Readers()


class _Signal:
    """One task waits, anybody wakes it."""

    _task: trio.lowlevel.Task | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None

    async def wait(self) -> None:
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)


class MuxStream(trio.abc.HalfCloseableStream):
    """One stream of a :class:`Connection`.

    Besides Trio's errors, :class:`StreamReset` (a ``BrokenResourceError``) tells what the other side gave as reason, and
    :class:`StreamStopped` (another one) that sending is over.
    """

    # What most streams never change belongs to the class: there is one for each call.
    scope: trio.CancelScope | None = None
    """Cancelled when the stream breaks: set it to end, with the stream, work that does not itself wait for the stream."""
    take: Callable[[bytes], int] | None = None
    """Is offered what comes, in the turn in which it comes, while nothing waits to be received: how much of it was taken. It
    neither waits nor raises."""
    _ended = False
    _stopped = False
    _sent_end = False
    _closed = False
    _error: BaseException | None = None
    _sending = False
    _unsent = b""
    _front = b""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._mux = connection._mux
        self.number = number
        self._mark = self._mux.position
        self._chunks: deque[bytes] = deque()
        self._readable = _Signal()
        self._writable = _Signal()

    @property
    def closed(self) -> bool:
        """It was closed or reset on this side."""
        return self._closed

    @property
    def receiving(self) -> bool:
        """A task waits to receive."""
        return self._readable.busy

    @property
    def broken(self) -> bool:
        """The other side has reset the stream, or the link has ended."""
        return self._error is not None

    @property
    def error(self) -> BaseException | None:
        """What broke the stream: :class:`StreamReset`, or the error that ended the link."""
        return self._error

    def mark(self) -> None:
        """Note what was sent until now: :meth:`arrived` is about that. At first it is what the stream was opened with."""
        self._mark = self._mux.position

    @property
    def arrived(self) -> bool | None:
        """Whether that has reached the other side; None: that is not known."""
        return self._connection.link.arrived(self._mark)

    def hand_over(self, serve: Serve) -> None:
        """Have a task serve the stream, for what cannot be done without waiting; only one that the other side opened."""
        assert self._connection._handlers is not None
        self._connection._handlers.start_soon(serve, self)

    def unread(self, data: bytes) -> None:
        """Give received bytes back: they are the next to be received."""
        self._front = data + self._front

    # ---- from the connection's reader; these never wait

    def _on_received(self, data: bytes) -> None:
        if self._closed:
            return
        if self.take is not None and not self._chunks and not self._front and (taken := self.take(data)):
            self._mux.consumed(self.number, taken)
            if taken == len(data):
                return
            data = data[taken:]
        self._chunks.append(data)
        self._readable.wake()

    def _on_ended(self) -> None:
        self._ended = True
        self._readable.wake()

    def _on_credited(self) -> None:
        if self._unsent:
            self._push()
        self._writable.wake()

    def _on_stopped(self) -> None:
        self._stopped = True
        self._wake_sender()

    def _on_broken(self, error: BaseException) -> None:
        self._error = error
        if self.scope is not None:
            self.scope.cancel()
        self._readable.wake()
        self._wake_sender()

    def _wake_sender(self) -> None:
        """Sending is over: let one that waits, for credit or for the link, find out."""
        if self._sending:
            self._writable.wake()
            self._connection._room.unpark_all()

    # ---- receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._readable.busy:
            raise trio.BusyResourceError("another task is receiving from this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._front and (self._chunks or self._ended):  # what was given back has been waited for
            await trio.lowlevel.cancel_shielded_checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed here")
            if self._front:
                data, self._front = self._front[:max_bytes], self._front[len(self._front[:max_bytes]) :]
                return data
            if self._chunks:
                return self._take(max_bytes)
            if self._ended and not isinstance(self._error, StreamReset):
                return b""  # whatever became of the link afterwards
            if self._error is not None:
                raise self._broken()
            await self._readable.wait()

    async def next_piece(self) -> bytes:
        """``receive_some`` for who has just sent what is to be answered: without a checkpoint if it need not wait."""
        while not (self._chunks or self._front or self._ended or self._closed or self._error):
            if self._readable.busy:
                raise trio.BusyResourceError("another task is receiving from this stream")
            await self._readable.wait()
        if self._chunks and not self._front and not self._closed:
            return self._take(None)
        return await self.receive_some()

    def take_nowait(self) -> bytes:
        """Bytes that are there already, or none; without a checkpoint."""
        if not self._chunks or self._front or self._error is not None:
            return b""
        return self._chunks.popleft() if self._ended else self._take(None)

    @property
    def heard(self) -> float:
        """When the other side last said anything, on Trio's clock."""
        return self._connection._heard

    @property
    def ended(self) -> bool:
        """Whether the other side will send nothing that is not here yet."""
        return self._ended

    def _take(self, max_bytes: int | None) -> bytes:
        data = take(self._chunks, max_bytes)
        if self._mux.consumed(self.number, len(data)):
            self._connection._flush()
        return data

    # ---- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send(data, end=False)

    def send_nowait(self, data: bytes, *, end: bool = False, soon: bool = False) -> bool:
        """Send ``data``, and the end of input if ``end``, if that takes no waiting; False: nothing was done.

        ``soon``: it leaves in a moment, with what is sent by then. Raises as :meth:`send_all`.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sending()
        room = min(self._mux.credit(self.number), MAX_DATA)
        if len(data) > room or self._unsent or self._mux.outgoing_bytes > HIGH_WATER:
            return False
        self._mux.send(self.number, data, end=end)
        self._sent_end = end
        self._connection.used = trio.current_time()
        self._connection._flush(soon=soon)
        return True

    def finish_nowait(self, data: bytes) -> bool:
        """Send ``data`` as the last there is, and close the stream, on which no task waits; False: nothing was done.

        Raises as :meth:`send_all`.
        """
        self._check_sending()
        mux, connection = self._mux, self._connection
        if self._unsent or not self._ended:
            return False
        if len(data) > min(mux.credit(self.number), MAX_DATA) or mux.outgoing_bytes > HIGH_WATER:
            return False
        mux.send(self.number, data, end=True)
        self._closed = True
        connection._streams.pop(self.number, None)
        connection.used = connection._heard
        connection._flush()
        return True

    def send_soon(self, data: bytes) -> None:
        """Send ``data`` without waiting: what there is no credit for goes as soon as there is, and before all that follows.

        Meant for what one waits for nothing after, such as the last words before a pause. Raises as :meth:`send_all`.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sending()
        self._unsent += data
        self._push()

    def _push(self) -> None:
        """Send what :meth:`send_soon` has left behind, as far as there is credit."""
        while self._unsent and (size := min(len(self._unsent), self._mux.credit(self.number), MAX_DATA)):
            self._mux.send(self.number, self._unsent[:size])
            self._unsent = self._unsent[size:]
            self._connection.used = trio.current_time()
        self._connection._flush()

    async def send_last(self, data: bytes | bytearray | memoryview) -> None:
        """``send_all`` and ``send_eof`` in one message."""
        await self._send(data, end=True)
        self._sent_end = True

    async def _send(self, data: bytes | bytearray | memoryview, *, end: bool) -> None:
        self._enter_sending()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._unsent:
                data, self._unsent = self._unsent + data, b""
            rest = memoryview(data if isinstance(data, bytes) else bytes(data))
            while True:
                self._check_sending()
                size = min(len(rest), self._mux.credit(self.number), MAX_DATA)
                if len(rest) and not size:
                    await self._writable.wait()
                elif self._mux.outgoing_bytes > HIGH_WATER:
                    await self._connection._room.park()
                else:
                    piece, rest = rest[:size], rest[size:]
                    if len(piece) or end:
                        self._mux.send(self.number, piece, end=end and not len(rest))
                    # What there is credit for leaves in one message, as far as that goes.
                    if not len(rest) or self._mux.outgoing_bytes >= TARGET_MESSAGE or not self._mux.credit(self.number):
                        self._connection.used = trio.current_time()
                        self._connection._flush()
                    if not len(rest):
                        break
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        self._enter_sending()
        try:
            await trio.lowlevel.checkpoint()
            self._check_sending()
            while not self._mux.credit(self.number):
                await self._writable.wait()
                if self._stopped or self._error is not None:
                    return
                self._check_sending()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        self._enter_sending()
        try:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed here")
            self._sent_end = True
            self._mux.end(self.number)
            self._connection._flush()
        finally:
            self._sending = False

    def _enter_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True

    def _check_sending(self) -> None:
        if self._closed or self._sent_end:
            raise trio.ClosedResourceError("sending on this stream has ended here")
        if self._error is not None:
            raise self._broken()
        if self._stopped:
            raise StreamStopped("the other side reads no more from this stream")

    def _broken(self) -> BaseException:
        if isinstance(self._error, StreamReset):
            return StreamReset(self._error.code, self._error.detail)
        error = trio.BrokenResourceError(str(self._error))
        error.__cause__ = self._error
        return error

    # ---- closing

    def stop(self) -> None:
        """Tell the other side that nothing more will be read; sending goes on."""
        self._mux.stop(self.number)
        self._connection._flush()

    async def aclose(self) -> None:
        """End sending and reading. What was sent still arrives."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """:meth:`aclose`, which waits for nothing, without its checkpoint."""
        if not self._closed:
            self._mux.end(self.number)
            self._mux.stop(self.number)
            self._leave()
            self._connection._flush(soon=True)

    def reset(self, code: int = Reset.CANCELLED, detail: bytes = b"") -> None:
        """End the stream at once, both ways; what was sent and has not arrived may be lost."""
        if not self._closed:
            self._mux.reset(self.number, code, detail)
            self._leave()
            self._connection._flush()

    def _leave(self) -> None:
        self._closed = True
        self._chunks.clear()
        self._connection._streams.pop(self.number, None)
        self._readable.wake()
        self._wake_sender()


Serve = Callable[[MuxStream], Awaitable[None]]
AtOnce = Callable[[MuxStream], Serve | None]
"""Called in the turn in which a stream was opened: serves it then and there (None), or gives what does that in a task."""


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
        self._wake_writer = _Signal()
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
