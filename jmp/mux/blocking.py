"""The mux without an event loop: streams on a blocking link, for threads.

There is no background thread on the way of a call. Whichever thread waits for something reads the link for all (the
*reader*), and wakes those whose events came; when it has what it waited for, another one that waits takes over. A thread on
its own therefore goes straight from its socket to its result.

While no thread waits, nobody reads: what arrives stays with the system and slows its sender down, as it should. Only signs of
life would then be missing, so a keeper thread looks after the link every few seconds; it also keeps the program from idling on a
link that is long dead.

Nothing here may be left half done by Ctrl-C. So whoever uses a stream in the main thread does that inside of a block of
:data:`~jmp.link.interrupts.uninterrupted`, one for all that makes up a call.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from jmp.errors import JmpError, LinkLost, ProtocolViolation
from jmp.link.blocking import BlockingLink
from jmp.link.interrupts import uninterrupted, wait
from jmp.mux.protocol import Credited, Ended, Event, Mux, Opened, Received, Role, Stopped, WasReset, again, take
from jmp.wire.frames import MAX_DATA, TARGET_MESSAGE, Reset

if TYPE_CHECKING:
    from jmp.link.blocking_resumable import ResumableBlockingLink

KEEP_EVERY: Final = 4.0
"""Seconds between two looks at an idle link: less than the other side's patience (see :mod:`jmp.mux.connection`)."""

SILENCE: Final = 15.0
"""Seconds of silence after which the link is taken for dead."""


class StreamReset(Exception):
    """The other side ended the stream at once, both ways."""

    def __init__(self, code: int, detail: bytes) -> None:
        super().__init__(f"the stream was reset ({Reset(code).name if code in set(Reset) else code})")
        self.code = code
        self.detail = detail


class DeadlinePassed(Exception):
    """What was waited for did not come in time."""


class StreamClosed(Exception):
    """The stream was used after it was closed here, or after the other side stopped reading."""


_connections: Final[WeakSet[BlockingConnection]] = WeakSet()


def _disown_all() -> None:
    for connection in _connections:
        connection.disown()


os.register_at_fork(after_in_child=_disown_all)  # two processes that use one link would garble it


class BlockingConnection:
    """A blocking link with streams on it. Any thread may use it; each stream one thread per direction."""

    def __init__(self, link: BlockingLink | ResumableBlockingLink, *, keep: bool = False) -> None:
        """``keep``: look after the link while it is idle. Needed where the other side watches for signs of life."""
        self._link = link
        self._mux = Mux(Role.DIALLER)
        self._streams: dict[int, BlockingStream] = {}
        self._lock = threading.RLock()  # guards everything here; held while reading never, while sending never
        self._reading = False
        self._idle: list[threading.Lock] = []  # of threads that wait for the one that reads, which lets them go
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._heard = time.monotonic()
        self.error: JmpError | None = None
        """Why the link ended, once it has."""
        if keep:
            threading.Thread(target=self._keep, name="jmp-keeper", daemon=True).start()
        _connections.add(self)

    def open_stream(self, data: bytes = b"", *, end: bool = False) -> BlockingStream:
        """Open a stream with its first bytes, 64 KiB at most. Raises :class:`~jmp.errors.LinkLost` if the link has ended."""
        with self._lock:
            self._check()
            stream = BlockingStream(self, self._mux.open(data, end=end))
            self._streams[stream._number] = stream
        self._flush()
        return stream

    def close(self) -> None:
        """Say good-bye and close the link; every stream ends."""
        with uninterrupted:
            self._flush()
            self._end(LinkLost("the link was closed on this side"))
            self._link.close()

    def disown(self) -> None:
        """Leave the connection to the process that made it: after a fork, in the child, where no other thread is alive."""
        self._lock, self._sending = threading.RLock(), threading.Lock()  # those threads may have held them
        self._idle.clear()
        self._mux.outgoing()
        self.error = LinkLost("this connection belongs to the process that made it: after a fork, connect again")
        self._over.set()
        self._link.disown()

    def _check(self) -> None:
        if self.error is not None:
            raise again(self.error)

    def _end(self, error: JmpError) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
            self._over.set()
            self._wake()

    def _wake(self) -> None:
        """Let those go that wait for the thread that reads: one of them may have to read now."""
        for waiter in self._idle:
            waiter.release()
        self._idle.clear()

    def _flush(self) -> None:
        """Send what waits. A thread that finds another one sending leaves its frames to that one."""
        while self._mux.outgoing_bytes and self._sending.acquire(blocking=False):
            try:
                with self._lock:
                    parts = self._mux.outgoing()
                if parts:
                    self._link.send(parts)
            except (LinkLost, ProtocolViolation) as error:
                self._end(error)
                return
            finally:
                self._sending.release()

    def _wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Return, holding ``_lock``, once ``ready()``. The caller holds ``_lock``, once.

        Raises :class:`DeadlinePassed` past ``deadline`` (of ``time.monotonic``). The end of the link makes it return as well.
        """
        while not ready() and self.error is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlinePassed
            if self._reading:
                waiter = threading.Lock()
                waiter.acquire()
                self._idle.append(waiter)
                self._lock.release()
                try:
                    wait(waiter.acquire, True, -1 if left is None else min(left, threading.TIMEOUT_MAX))
                finally:
                    self._lock.acquire()
                    if waiter in self._idle:
                        self._idle.remove(waiter)
            else:
                self._read(left)

    def _read(self, timeout: float | None) -> bool:
        """Read one message, if one comes in time (then True), and act on it.

        The caller holds ``_lock``, which is let go meanwhile.
        """
        self._reading = True
        self._lock.release()
        message: bytes | None = None
        error: JmpError | None = None
        try:
            message = self._link.receive(timeout)
        except (LinkLost, ProtocolViolation) as problem:
            error = problem
        finally:
            self._lock.acquire()
            self._reading = False
            self._wake()
        try:
            if message is not None:
                self._heard = time.monotonic()
                for event in self._mux.receive(message):
                    self._act(event)
        except ProtocolViolation as problem:
            error = problem
        if error is not None:
            self._end(error)
        elif self._mux.outgoing_bytes:
            self._lock.release()
            try:
                self._flush()
            finally:
                self._lock.acquire()
        return message is not None

    def _act(self, event: Event) -> None:
        if isinstance(event, Received):
            if (receiver := self._streams.get(event.stream)) is not None:
                receiver._chunks.append(event.data)
            return
        if isinstance(event, Ended):
            if (ending := self._streams.get(event.stream)) is not None:
                ending._ended = True
            return
        if isinstance(event, Opened):
            self._mux.reset(event.stream, Reset.REFUSED)
            return
        stream = self._streams.get(getattr(event, "stream", 0))
        if stream is None:
            return
        if isinstance(event, Stopped):
            stream._stopped = True
        elif isinstance(event, WasReset):
            stream._reset = event
            del self._streams[event.stream]
        elif not isinstance(event, Credited):
            raise AssertionError(event)

    def _keep(self) -> None:
        while not self._over.wait(KEEP_EVERY):
            with self._lock:
                # All that is there: a PING may be behind a window's worth of data that no thread wants yet.
                while not self._reading and self.error is None and self._read(0):
                    pass
                self._mux.ping()  # the other side hears nothing from a client that only reads
                silent = time.monotonic() - self._heard
                if silent > SILENCE:
                    self._link.abort(f"{self._link.peer} gave no sign of life for {SILENCE:g} s")
                    self._heard = time.monotonic()  # the session may go on over another link
                    while not self._reading and self.error is None and self._read(0):
                        pass
            self._flush()


class BlockingStream:
    """One stream of a :class:`BlockingConnection`. ``deadline`` is in seconds of ``time.monotonic``."""

    # What most streams never change belongs to the class: there is one for each call.
    _front = b""
    _ended = False
    _stopped = False
    _closed = False
    _reset: WasReset | None = None
    _waiting = 0

    def __init__(self, connection: BlockingConnection, number: int) -> None:
        self._connection = connection
        self._mux = connection._mux
        self._number = number
        self._mark = self._mux.position
        self._chunks: deque[bytes] = deque()

    def receive_some(self, max_bytes: int | None = None, *, deadline: float | None = None) -> bytes:
        """Wait for bytes; ``b""`` at their end.

        Raises :class:`StreamReset`, :class:`StreamClosed`, ``LinkLost`` or ``DeadlinePassed``; then nothing is lost.
        """
        if self._front:
            data, self._front = self._front[:max_bytes], b"" if max_bytes is None else self._front[max_bytes:]
            return data
        connection = self._connection
        with connection._lock:
            if not self._chunks:
                self._wait(self._may_receive, deadline)
            if self._closed:
                raise StreamClosed("this stream was closed here")
            if not self._chunks:
                if self._reset is not None:
                    raise StreamReset(self._reset.code, self._reset.detail)
                if not self._ended:
                    connection._check()
                return b""
            data = take(self._chunks, max_bytes)
            owed = self._mux.consumed(self._number, len(data))
        if owed:
            connection._flush()
        return data

    def mark(self) -> None:
        """Note what was sent until now: :meth:`arrived` is about that. At first it is what the stream was opened with."""
        with self._connection._lock:
            self._mark = self._mux.position

    @property
    def arrived(self) -> bool | None:
        """Whether that has reached the other side; None: that is not known."""
        return self._connection._link.arrived(self._mark)

    @property
    def closed(self) -> bool:
        """Whether it was closed or reset on this side."""
        return self._closed

    def unread(self, data: bytes) -> None:
        """Give received bytes back: they are the next to be received."""
        self._front = data + self._front

    def send_all(
        self, data: bytes | bytearray | memoryview, *, end: bool = False, deadline: float | None = None
    ) -> None:
        """Send ``data``, and the end of input if ``end``; waits for credit. Raises as :meth:`receive_some`."""
        connection = self._connection
        rest = memoryview(data if isinstance(data, bytes) else bytes(data))
        while True:
            with connection._lock:
                if len(rest):
                    self._wait(self._may_send, deadline)
                if self._reset is not None:
                    raise StreamReset(self._reset.code, self._reset.detail)
                connection._check()
                if self._closed:
                    raise StreamClosed("this stream was closed here")
                if self._stopped:
                    raise StreamClosed("the other side reads no more from this stream")
                while True:
                    size = min(len(rest), self._mux.credit(self._number), MAX_DATA)
                    piece, rest = rest[:size], rest[size:]
                    if size or end:
                        self._mux.send(self._number, piece, end=end and not len(rest))
                    # What there is credit for leaves in one message, as far as that goes.
                    if not len(rest) or not size or self._mux.outgoing_bytes >= TARGET_MESSAGE:
                        break
            connection._flush()
            if not len(rest):
                return

    def _wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        self._waiting += 1
        try:
            self._connection._wait(ready, deadline)
        finally:
            self._waiting -= 1

    def _may_receive(self) -> bool:
        """Whether receiving can go on, or has to fail."""
        return bool(self._chunks) or self._ended or self._reset is not None or self._closed

    def _may_send(self) -> bool:
        """Whether sending can go on, or has to fail."""
        return self._mux.credit(self._number) > 0 or self._stopped or self._closed or self._reset is not None

    def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        with self._connection._lock:
            self._mux.end(self._number)
        self._connection._flush()

    def close(self) -> None:
        """End sending and reading. What was sent still arrives."""
        with self._connection._lock:
            if self._closed:
                return
            self._mux.end(self._number)
            self._mux.stop(self._number)
            self._leave()
        self._connection._flush()

    def reset(self, code: int = Reset.CANCELLED, detail: bytes = b"") -> None:
        """End the stream at once, both ways. Does nothing to one that is over."""
        with self._connection._lock:
            if self._closed:
                return
            self._mux.reset(self._number, code, detail)
            self._leave()
        if self._mux.outgoing_bytes:
            self._connection._flush()

    def _leave(self) -> None:
        self._closed = True
        self._connection._streams.pop(self._number, None)
        self._connection._wake()
        if self._waiting:  # by reading the link, maybe: the answer to this wakes that thread
            self._mux.ping()
