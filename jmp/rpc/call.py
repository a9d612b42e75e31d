"""Makes calls on a connection, under Trio."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from jmp.errors import Cancelled, JmpError, LinkLost, ProtocolViolation
from jmp.mux.stream import Connection, MuxStream, StreamReset
from jmp.rpc import messages
from jmp.rpc.messages import Reply, Request
from jmp.wire import codec
from jmp.wire.frames import MAX_DATA


class Caller:
    """Calls methods of the other side of ``connection``.

    All raise what the method raised there, as the class of :mod:`jmp.errors` that its code names, and
    :class:`~jmp.errors.LinkLost` if the link ends first. A cancelled caller cancels the method. The deadline of the
    surrounding cancel scope goes with the request.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value that a unary method returns."""
        async with self._begin(target, method, args, kwargs, end=True) as stream:
            reply, value = await _Answer(stream).next()
        if reply is not Reply.RESULT:
            raise ProtocolViolation(f"{target}.{method} answered with {reply.name}, not with one result")
        return value

    async def items(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """The items of a streaming method. Close the generator (``aclosing``) to cancel the method early."""
        async with self._begin(target, method, args, kwargs, end=True) as stream:
            answer = _Answer(stream)
            while True:
                reply, value = await answer.next()
                if reply is Reply.END:
                    return
                if reply is not Reply.ITEM:
                    raise ProtocolViolation(f"{target}.{method} answered with {reply.name}, not with items")
                yield value

    @asynccontextmanager
    async def open(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[ByteStream]:
        """A byte stream of a method, open for the block; left by an exception, it is reset."""
        async with self._begin(target, method, args, kwargs, end=False) as stream:
            answer = _Answer(stream)
            reply, _ = await answer.next()
            if reply is not Reply.READY:
                raise ProtocolViolation(f"{target}.{method} answered with {reply.name}, not with a byte stream")
            stream.unread(answer.rest())
            yield ByteStream(stream)
            await stream.aclose()

    @asynccontextmanager
    async def _begin(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: bool
    ) -> AsyncIterator[MuxStream]:
        left = trio.current_effective_deadline() - trio.current_time()
        request = Request(target, method, args, kwargs, None if left == math.inf else max(left, 0)).encode()
        whole = len(request) <= MAX_DATA
        stream = self._connection.open_stream(request[:MAX_DATA], end=end and whole)
        try:
            if not whole:
                send = stream.send_last if end else stream.send_all
                await send(request[MAX_DATA:])
            yield stream
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise failure(error, f"{target}.{method}", self._connection.error) from error
        finally:
            stream.reset()  # does nothing to a stream that is over


class ByteStream(trio.abc.HalfCloseableStream):
    """A byte stream of a method: a Trio stream whose errors are those of :mod:`jmp.errors`."""

    def __init__(self, stream: MuxStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except StreamReset as error:
            raise messages.revive(error.detail) or error from None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._stream.receive_some(max_bytes)
        except StreamReset as error:
            raise messages.revive(error.detail) or error from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Answer:
    """The replies on a stream."""

    def __init__(self, stream: MuxStream) -> None:
        self._stream = stream
        self._decoder = codec.Decoder(messages.MAX_VALUE)

    async def next(self) -> tuple[Reply, Any]:
        while True:
            for value in self._decoder:
                return messages.read(value)
            data = await self._stream.receive_some()
            if not data:
                raise ProtocolViolation("an answer ended before its time")
            self._decoder.feed(data)

    def rest(self) -> bytes:
        """The raw bytes that came with the last reply."""
        return self._decoder.tail()


def failure(error: BaseException, name: str, link_error: JmpError | None) -> JmpError:
    """What a broken stream of the call ``name`` means to the caller."""
    if isinstance(error, StreamReset):
        return messages.revive(error.detail) or Cancelled(f"{name} was ended by the other side: {error}")
    if link_error is not None:
        return LinkLost(f"the link was lost during {name}: {link_error.message}")
    return Cancelled(f"{name}: {error}")
