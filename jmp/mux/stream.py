"""Streams of the mux that are ordinary ``trio.abc.HalfCloseableStream``s."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from jmp.mux.protocol import take
from jmp.wire.frames import MAX_DATA, TARGET_MESSAGE, Reset

if TYPE_CHECKING:
    from jmp.mux.connection import Connection

HIGH_WATER: Final = 256 * 1024
"""Bytes waiting for the link past which senders of streams wait: what an urgent small frame has to queue behind."""


class StreamReset(trio.BrokenResourceError):
    """The other side ended the stream at once, both ways."""

    def __init__(self, code: int, detail: bytes) -> None:
        super().__init__(f"the stream was reset ({Reset(code).name if code in set(Reset) else code})")
        self.code = code
        self.detail = detail


class StreamStopped(trio.BrokenResourceError):
    """The other side reads no more: it has closed the stream, or wants nothing further from it."""


class Signal:
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
        self._readable = Signal()
        self._writable = Signal()

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
