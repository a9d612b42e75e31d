"""Answers the calls that come in on a connection."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import trio

from jmp.errors import BadValue, Cancelled, DriverError, JmpError, ProtocolViolation, Timeout
from jmp.mux.stream import MuxStream, StreamStopped
from jmp.rpc import messages
from jmp.rpc.messages import Kind, Request
from jmp.wire import codec
from jmp.wire.frames import Reset

log = logging.getLogger("jmp.rpc")


class Method(NamedTuple):
    """How to carry out one call, its arguments bound. Asynchronous whatever the driver's own method is.

    ``CALL``: ``await function()`` is the result. ``ITEMS``: ``function()`` is an asynchronous generator of items, closed when the
    caller gives up. ``BYTES``: ``await function(stream)``; the stream ends when it returns.
    """

    kind: Kind
    function: Callable[..., Any]


Resolve = Callable[[Request], Method]
"""Finds what carries out a request, having checked that the caller may do that and that the arguments fit; raises
:class:`~jmp.errors.JmpError` otherwise."""


Note = Callable[[Request, str, float], None]
"""Told of each call that is over: the request, how it ended ("ok", "cancelled", or its error's code and text), the seconds."""


def serve(
    resolve: Resolve, *, tracebacks: bool = True, note: Note | None = None
) -> Callable[[MuxStream], Awaitable[None]]:
    """A handler for :func:`jmp.mux.stream.multiplex` that answers each stream as one call.

    A caller that resets its stream, or whose link ends, cancels the method; one that closes it learns nothing more of what
    becomes of the method. When the handler itself is cancelled, the caller learns that the session is over.
    """

    async def handle(stream: MuxStream) -> None:
        call = _Call(stream)
        begun = trio.current_time()
        result = CANCELLED
        try:
            result = await call.run(resolve)
        except Exception as error:  # noqa: BLE001  # a call's root: whatever a driver raises is the caller's answer
            if not _only_of(
                (trio.BrokenResourceError, trio.ClosedResourceError) if stream.broken else StreamStopped, error
            ):
                result = call.fail(_only(error), tracebacks)
        finally:
            stream.reset(Reset.CANCELLED, _SESSION_OVER)  # does nothing once the stream is closed
            if note is not None and call.request is not None:
                note(call.request, result, trio.current_time() - begun)

    return handle


OK: Final = "ok"
CANCELLED: Final = "cancelled"
_SESSION_OVER: Final = messages.describe(Cancelled("the session ended before the call did"))


class _Call:
    """One stream being answered."""

    def __init__(self, stream: MuxStream) -> None:
        self._stream = stream
        self._name = "a call"
        self._ready = False
        self.request: Request | None = None

    async def run(self, resolve: Resolve) -> str:
        """How it ended."""
        self.request = request = await self._request()
        self._name = f"{request.target}.{request.method}"
        timeout = math.inf if request.timeout is None else request.timeout
        self._stream.scope = scope = trio.CancelScope(deadline=trio.current_time() + timeout)
        with scope:
            method = resolve(request)
            if method.kind is Kind.CALL:
                value = await method.function()
                self._stream.scope = None  # it has happened: the answer is to be sent
                await self._answer(self._encoded(messages.result, value))
            elif method.kind is Kind.ITEMS:
                async with aclosing(method.function()) as items:
                    async for value in items:
                        await self._stream.send_all(self._encoded(messages.item, value))
                await self._answer(messages.END)
            else:
                await self._stream.send_all(messages.READY)
                self._ready = True
                await method.function(self._stream)
                await self._stream.aclose()
        if scope.cancelled_caught and not self._stream.broken:
            raise Timeout(f"{self._name} did not finish within {timeout:g} s")
        return CANCELLED if scope.cancelled_caught else OK

    async def _request(self) -> Request:
        decoder = codec.Decoder(messages.MAX_VALUE)
        while data := await self._stream.receive_some():
            decoder.feed(data)
            for value in decoder:
                self._stream.unread(decoder.tail())
                return Request.decode(value)
        raise ProtocolViolation("a stream ended before its request did")

    def _encoded(self, reply: Callable[[Any], bytes], value: object) -> bytes:
        try:
            return reply(value)
        except BadValue as error:  # not the caller's fault
            raise DriverError(f"{self._name} has a result that is none: {error.message}") from error

    async def _answer(self, reply: bytes) -> None:
        await self._stream.send_last(reply)
        await self._stream.aclose()

    def fail(self, error: BaseException, tracebacks: bool) -> str:
        """Let the caller know; nothing waits here, since the error may be that of a caller who does not read."""
        if not isinstance(error, JmpError):
            log.error("%s raised %s", self._name, type(error).__name__, exc_info=error)
        self._stream.reset(Reset.FAILED, messages.describe(error, tracebacks=tracebacks))
        return f"{error.code}: {error.message}" if isinstance(error, JmpError) else f"{type(error).__name__}: {error}"


def _only_of(kinds: type[Exception] | tuple[type[Exception], ...], error: Exception) -> bool:
    """Whether ``error`` is one of ``kinds``, or a group of nothing else."""
    return isinstance(error, kinds) or (isinstance(error, ExceptionGroup) and error.split(kinds)[1] is None)


def _only(error: BaseException) -> BaseException:
    """The one exception in a group of one, as nurseries raise it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
