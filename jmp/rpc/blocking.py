"""Makes calls on a blocking connection: :class:`jmp.rpc.call.Caller` for threads.

The methods are coroutines only so that client classes are written once; they never suspend (see
:class:`jmp.driver.proxy.Blocking`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from jmp.errors import Cancelled, JmpError, LinkLost, ProtocolViolation, Timeout
from jmp.link.interrupts import uninterrupted
from jmp.mux.blocking import BlockingConnection, BlockingStream, DeadlinePassed, StreamClosed, StreamReset
from jmp.rpc import messages
from jmp.rpc.messages import Reply, Request
from jmp.wire import codec
from jmp.wire.frames import MAX_DATA

T = TypeVar("T")

_deadline: ContextVar[float | None] = ContextVar("jmp_deadline", default=None)


@contextmanager
def fail_after(seconds: float) -> Iterator[None]:
    """Blocking calls begun inside raise :class:`~jmp.errors.Timeout`, and are cancelled, once ``seconds`` have passed in all."""
    mine = time.monotonic() + seconds
    outer = _deadline.get()
    token = _deadline.set(mine if outer is None else min(mine, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


class BlockingCaller:
    """Calls methods of the other side of ``connection``; raises as :class:`jmp.rpc.call.Caller` does."""

    def __init__(self, connection: BlockingConnection) -> None:
        self._connection = connection

    async def call(self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream: BlockingStream | None = None
        with uninterrupted:
            try:
                stream = self._open(target, method, args, kwargs, end=True)
                data = stream.receive_some(deadline=_deadline.get())
                reply, value = messages.whole(data) or _Answer(stream).next(data)
            except _TRANSLATED as error:
                raise _meant(error, f"{target}.{method}", stream) from _cause(error)
            finally:
                if stream is not None:
                    stream.reset()  # does nothing to a stream that is over
        if reply is not Reply.RESULT:
            raise ProtocolViolation(f"{target}.{method} answered with {reply.name}, not with one result")
        return value

    async def items(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        name = f"{target}.{method}"
        with self._begin(target, method, args, kwargs, end=True) as stream:
            answer = _Answer(stream)
            asked: BlockingStream | None = stream
            while True:
                with _translated(name, asked):
                    answer.more()
                asked = None
                for reply, value in answer.ready():
                    if reply is Reply.END:
                        return
                    if reply is not Reply.ITEM:
                        raise ProtocolViolation(f"{name} answered with {reply.name}, not with items")
                    yield value

    @asynccontextmanager
    async def open(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, ahead: bool = False
    ) -> AsyncIterator[BlockingByteStream]:
        with self._begin(target, method, args, kwargs, end=False) as stream:
            opening = BlockingByteStream(stream, f"{target}.{method}")
            if not ahead:
                await opening.wait_opened()
            yield opening
            opening._end()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run local work that blocks: here it may."""
        return function(*args)

    @contextmanager
    def _begin(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: bool
    ) -> Iterator[BlockingStream]:
        """A stream with the request sent; reset if the block leaves it open."""
        stream: BlockingStream | None = None
        try:
            with _translated(f"{target}.{method}"):
                stream = self._open(target, method, args, kwargs, end=end)
            yield stream
        finally:
            if stream is not None:
                with uninterrupted:
                    stream.reset()  # does nothing to a stream that is over

    def _open(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: bool
    ) -> BlockingStream:
        """A stream with the request sent."""
        deadline = _deadline.get()
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        request = Request(target, method, args, kwargs, timeout).encode()
        if len(request) <= MAX_DATA:
            return self._connection.open_stream(request, end=end)
        stream = self._connection.open_stream(request[:MAX_DATA])
        try:
            stream.send_all(request[MAX_DATA:], end=end, deadline=deadline)
        except BaseException:
            stream.reset()
            raise
        stream.mark()
        return stream


class BlockingByteStream:
    """A byte stream of a method, as :class:`jmp.rpc.call.ByteStream` is. One thread may send while another one receives."""

    def __init__(self, stream: BlockingStream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._answer: _Answer | None = _Answer(stream)
        """Until the other side has said that the stream is open."""
        self._receiving = threading.Lock()
        """Held by who waits for that."""

    @property
    def opened(self) -> bool:
        """Whether the other side has said that the method has begun."""
        return self._answer is None

    async def wait_opened(self) -> None:
        """Wait until the other side has begun the method; raises why it does not. Receiving does this by itself."""
        with uninterrupted, self._receiving:
            self._wait_opened()

    def _wait_opened(self) -> None:
        if self._answer is None:
            return
        with self._translated():
            reply, _ = self._answer.next()
        if reply is not Reply.READY:
            raise ProtocolViolation(f"{self._name} answered with {reply.name}, not with a byte stream")
        self._stream.unread(self._answer.rest())
        self._answer = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, waiting for the other side to keep up."""
        with self._translated():
            self._stream.send_all(data, deadline=_deadline.get())

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; ``b""`` at the end of the stream."""
        if self._answer is not None:
            await self.wait_opened()
        with self._translated():
            return self._stream.receive_some(max_bytes, deadline=_deadline.get())

    async def send_eof(self) -> None:
        """Tell the other side that nothing more will come."""
        with uninterrupted:
            self._stream.send_eof()

    async def aclose(self) -> None:
        """End the stream. Another thread that waits for it gets ``Cancelled``."""
        with uninterrupted:
            self._stream.close()

    def reset(self) -> None:
        """End the stream at once, both ways, as leaving its block by an exception does. Any thread may call this."""
        with uninterrupted:
            self._stream.reset()

    def _end(self) -> None:
        """Close it, known to have been opened unless it was closed before. Another thread that receives learns it itself."""
        with uninterrupted:
            if self._answer is not None and not self._stream.closed and self._receiving.acquire(blocking=False):
                try:
                    self._wait_opened()
                finally:
                    self._receiving.release()
            self._stream.close()

    def _translated(self) -> AbstractContextManager[None]:
        return _translated(self._name, None if self._answer is None else self._stream)


class _Answer:
    """The replies on a stream."""

    def __init__(self, stream: BlockingStream) -> None:
        self._stream = stream
        self._decoder = codec.Decoder(messages.MAX_VALUE)

    def next(self, data: bytes | None = None) -> tuple[Reply, Any]:
        """The next reply. ``data`` has been received already."""
        while True:
            self._feed(self._stream.receive_some(deadline=_deadline.get()) if data is None else data)
            for value in self._decoder:
                return messages.read(value)
            data = None

    def more(self) -> None:
        """Wait for what :meth:`ready` can be made of."""
        self._feed(self._stream.receive_some(deadline=_deadline.get()))

    def _feed(self, data: bytes) -> None:
        if not data:
            raise ProtocolViolation("an answer ended before its time")
        self._decoder.feed(data)

    def ready(self) -> Iterator[tuple[Reply, Any]]:
        """The replies that have come."""
        return map(messages.read, self._decoder)

    def rest(self) -> bytes:
        """The raw bytes that came with the last reply."""
        return self._decoder.tail()


@contextmanager
def _translated(name: str, asked: BlockingStream | None = None) -> Iterator[None]:
    """Uninterrupted, and what the connection raises is told as one of the callers of ``name`` is to know it.

    ``asked``: nothing has come in answer yet.
    """
    with uninterrupted:
        try:
            yield
        except _TRANSLATED as error:
            raise _meant(error, name, asked) from _cause(error)


_TRANSLATED: Final = (StreamReset, StreamClosed, LinkLost, DeadlinePassed)


def _meant(error: Exception, name: str, asked: BlockingStream | None) -> JmpError:
    if isinstance(error, StreamReset):
        return messages.from_reset(name, error.code, error.detail)
    if isinstance(error, LinkLost):
        fate = "" if asked is None else f"; {messages.FATES[asked.arrived]}"
        return LinkLost(f"the link was lost during {name}: {error.message}{fate}")
    if isinstance(error, StreamClosed):
        return Cancelled(f"{name}: {error}")
    return Timeout(f"{name} did not finish in the time given")


def _cause(error: Exception) -> Exception | None:
    return error if isinstance(error, LinkLost) else None  # the others say it all themselves
