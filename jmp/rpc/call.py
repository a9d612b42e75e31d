"""Makes calls on a connection, under Trio."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import trio

from jmp.errors import Cancelled, JmpError, LinkLost, ProtocolViolation
from jmp.mux.stream import Connection, MuxStream, StreamReset
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
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[ByteStream]:
        """A byte stream of a method, open for the block; left by an exception, it is reset."""
        name = f"{target}.{method}"
        stream = await self._open(target, method, args, kwargs, end=False)
        try:
            answer = _Answer(stream)
            try:
                reply, _ = await answer.next()
            except trio.BrokenResourceError as error:
                raise self._meant(error, name, stream) from _cause(error)
            if reply is not Reply.READY:
                raise ProtocolViolation(f"{name} answered with {reply.name}, not with a byte stream")
            if rest := answer.rest():
                stream.unread(rest)
            yield ByteStream(stream, partial(self._meant, name=name))
            stream.close()
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
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: bool
    ) -> MuxStream:
        """A stream with the request sent."""
        left = trio.current_effective_deadline() - trio.current_time()
        request = Request(target, method, args, kwargs, None if left == math.inf else max(left, 0)).encode()
        if len(request) <= MAX_DATA:
            return self.connection.open_stream(request, end=end)
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
    """A byte stream of a method: a Trio stream, but where another one is broken it raises what :mod:`jmp.errors` has for it."""

    def __init__(self, stream: MuxStream, meant: Callable[[trio.BrokenResourceError], JmpError]) -> None:
        self._stream = stream
        self._meant = meant

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise self._meant(error) from _cause(error)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            raise self._meant(error) from _cause(error)

    async def wait_send_all_might_not_block(self) -> None:
        try:
            await self._stream.wait_send_all_might_not_block()
        except trio.BrokenResourceError as error:
            raise self._meant(error) from _cause(error)

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except trio.BrokenResourceError as error:
            raise self._meant(error) from _cause(error)

    async def aclose(self) -> None:
        await self._stream.aclose()


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
