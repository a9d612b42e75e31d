"""Makes calls on a connection, under Trio."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import trio

from jmp.errors import Cancelled, JmpError, LinkLost, ProtocolViolation
from jmp.mux.connection import Connection
from jmp.mux.stream import MuxStream, StreamReset
from jmp.rpc import messages
from jmp.rpc.messages import Reply, Request
from jmp.wire import codec
from jmp.wire.frames import MAX_DATA

T = TypeVar("T")


class Caller:
    """Calls methods of the other side of ``connection``.

    All raise what the method raised there, as the class of :mod:`jmp.errors` that its code names, and
    :class:`~jmp.errors.LinkLost` if the link ends first, which says whether the method was begun. A cancelled caller cancels the
    method. The deadline of the surrounding cancel scope goes with the request.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def call(self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value that a unary method returns."""
        stream = await self._open(target, method, args, kwargs, end=True)
        try:
            data = await stream.next_piece()
            reply, value = messages.whole(data) or await _Answer(stream).next(data)
        except trio.BrokenResourceError as error:
            raise self._meant(error, f"{target}.{method}", stream) from _cause(error)
        finally:
            stream.reset()  # does nothing to a stream that is over
        if reply is not Reply.RESULT:
            raise ProtocolViolation(f"{target}.{method} answered with {reply.name}, not with one result")
        return value

    async def items(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """The items of a streaming method. Close the generator (``aclosing``) to cancel the method early."""
        name = f"{target}.{method}"
        async with self._begin(target, method, args, kwargs, end=True) as stream:
            answer = _Answer(stream)
            asked: MuxStream | None = stream
            while True:
                with self._translated(name, asked):
                    await answer.more()
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
    ) -> AsyncIterator[ByteStream]:
        """A byte stream of a method, open for the block; left by an exception, it is reset.

        ``ahead``: the block begins when the method has been asked for, and what it sends goes out behind that. When a refusal is
        raised then, :class:`ByteStream` says; one that nobody has learned of in the block is raised by its end.
        """
        stream = await self._open(target, method, args, kwargs, end=False, soon=ahead)
        try:
            opening = ByteStream(stream, f"{target}.{method}", self._meant)
            if not ahead:
                await opening.wait_opened()
            yield opening
            await opening._end()
        finally:
            stream.reset()  # does nothing to a stream that is over

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run local work that blocks, in a worker thread."""
        return await trio.to_thread.run_sync(function, *args)

    @asynccontextmanager
    async def _begin(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: bool
    ) -> AsyncIterator[MuxStream]:
        """A stream with the request sent; reset if the block leaves it open."""
        stream = await self._open(target, method, args, kwargs, end=end)
        try:
            yield stream
        finally:
            stream.reset()  # does nothing to a stream that is over

    async def _open(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: bool, soon: bool = False
    ) -> MuxStream:
        """A stream with the request sent."""
        left = trio.current_effective_deadline() - trio.current_time()
        request = Request(target, method, args, kwargs, None if left == math.inf else max(left, 0)).encode()
        if len(request) <= MAX_DATA:
            return self.connection.open_stream(request, end=end, soon=soon)
        stream = self.connection.open_stream(request[:MAX_DATA])
        try:
            with self._translated(f"{target}.{method}"):
                send = stream.send_last if end else stream.send_all
                await send(request[MAX_DATA:])
        except BaseException:
            stream.reset()
            raise
        stream.mark()
        return stream

    @contextmanager
    def _translated(self, name: str, asked: MuxStream | None = None) -> Iterator[None]:
        """``asked``: nothing has come in answer yet."""
        try:
            yield
        except trio.BrokenResourceError as error:
            raise self._meant(error, name, asked) from _cause(error)

    def _meant(self, error: trio.BrokenResourceError, name: str, asked: MuxStream | None = None) -> JmpError:
        if isinstance(error, StreamReset):
            return messages.from_reset(name, error.code, error.detail)
        lost = self.connection.error
        if lost is None:
            return Cancelled(f"{name}: {error}")
        fate = "" if asked is None else f"; {messages.FATES[asked.arrived]}"
        return LinkLost(f"the link was lost during {name}: {lost.message}{fate}")


def _cause(error: trio.BrokenResourceError) -> trio.BrokenResourceError | None:
    return None if isinstance(error, StreamReset) else error  # the reset says it all itself


class ByteStream(trio.abc.HalfCloseableStream):
    """A byte stream of a method: a Trio stream, but where another one is broken it raises what :mod:`jmp.errors` has for it.

    That goes for one that the other side refuses to open, too: whoever receives learns that, and whoever sends once it is known.
    """

    def __init__(self, stream: MuxStream, name: str, meant: Meant) -> None:
        self._stream = stream
        self._name = name
        self._meant = meant
        self._answer: _Answer | None = _Answer(stream)
        """Until the other side has said that the stream is open."""
        stream.take = self._take_ready

    def _take_ready(self, data: bytes) -> int:
        """Hear that it is open, without a turn of the task that waits for what follows."""
        self._stream.take = None
        if not data.startswith(messages.READY):
            return 0
        self._answer = None
        return len(messages.READY)

    @property
    def opened(self) -> bool:
        """Whether the other side has said that the method has begun."""
        return self._answer is None

    async def wait_opened(self) -> None:
        """Wait until the other side has begun the method; raises why it does not. Receiving does this by itself."""
        if self._answer is None:
            await trio.lowlevel.checkpoint()
            return
        self._stream.take = None
        try:
            reply, _ = await self._answer.next()
        except trio.BrokenResourceError as error:
            raise self._error(error) from _cause(error)
        if reply is not Reply.READY:
            raise ProtocolViolation(f"{self._name} answered with {reply.name}, not with a byte stream")
        rest, self._answer = self._answer.rest(), None
        if rest:
            self._stream.unread(rest)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise self._error(error) from _cause(error)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
            if self._answer is not None:  # it did not come as it usually does
                self._stream.unread(data)
                await self.wait_opened()
                data = await self._stream.receive_some(max_bytes)
            return data
        except trio.BrokenResourceError as error:
            raise self._error(error) from _cause(error)

    async def wait_send_all_might_not_block(self) -> None:
        try:
            await self._stream.wait_send_all_might_not_block()
        except trio.BrokenResourceError as error:
            raise self._error(error) from _cause(error)

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except trio.BrokenResourceError as error:
            raise self._error(error) from _cause(error)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _end(self) -> None:
        """Close it, known to have been opened unless it was closed before. Another task that still receives learns it itself."""
        if self._answer is not None and not self._stream.closed and not self._stream.receiving:
            await self.wait_opened()
        self._stream.close()

    def _error(self, error: trio.BrokenResourceError) -> JmpError:
        return self._meant(error, self._name, None if self._answer is None else self._stream)


Meant = Callable[[trio.BrokenResourceError, str, MuxStream | None], JmpError]


class _Answer:
    """The replies on a stream."""

    def __init__(self, stream: MuxStream) -> None:
        self._stream = stream
        self._decoder = codec.Decoder(messages.MAX_VALUE)

    async def next(self, data: bytes | None = None) -> tuple[Reply, Any]:
        """The next reply. ``data`` has been received already."""
        while True:
            self._feed(await self._stream.next_piece() if data is None else data)
            for value in self._decoder:
                return messages.read(value)
            data = None

    async def more(self) -> None:
        """Wait for what :meth:`ready` can be made of."""
        self._feed(await self._stream.next_piece())

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
