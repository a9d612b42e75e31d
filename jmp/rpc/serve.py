"""Answers the calls that come in on a connection."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from contextvars import copy_context
from dis import get_instructions
from functools import cache, partial
from time import perf_counter
from types import CodeType
from typing import Any, Final, NamedTuple

import trio

from jmp.errors import BadValue, Cancelled, DriverError, JmpError, ProtocolViolation, Timeout
from jmp.mux.stream import MuxStream, Serve, StreamStopped
from jmp.rpc import messages
from jmp.rpc.later import Later
from jmp.rpc.messages import Kind, Request
from jmp.wire import codec
from jmp.wire.frames import MAX_DATA, Reset

log = logging.getLogger("jmp.rpc")


class Method(NamedTuple):
    """How to carry out one call, its arguments bound. Asynchronous whatever the driver's own method is.

    ``CALL``: ``await function()`` is the result. ``ITEMS``: ``function()`` is an asynchronous generator of items, closed when the
    caller gives up. ``BYTES``: ``await function(stream)``; the stream ends when it returns.
    """

    kind: Kind
    function: Callable[..., Any]
    begun: Callable[[trio.CancelScope], Callable[[], JmpError | None]] = lambda scope: lambda: None
    """Is told when the function begins, with the scope that it runs in, and may cancel that. What it gives is called when the
    function is over, however long its items or bytes took: the error, if the scope was cancelled for one."""
    at_once: bool = False
    """It is a coroutine function that waits for nothing (:func:`waits_for_nothing`): it needs no task, and nobody is told.

    Its result may be a :class:`~jmp.rpc.later.Later`: then the answer goes when that is known. A caller that gives up meanwhile
    does not cancel what will make it known.
    """


def waits_for_nothing(function: Callable[..., Any]) -> bool:
    """Whether ``function`` is a coroutine function whose code holds no ``await`` in any form: it cannot be suspended."""
    code: CodeType | None = getattr(function, "__code__", None)
    return code is not None and _runs_through(code)


@cache  # by the code, which is there once, and not by a method, which would keep its driver
def _runs_through(code: CodeType) -> bool:
    is_coroutine = bool(code.co_flags & inspect.CO_COROUTINE)
    return is_coroutine and not any(instruction.opname == "SEND" for instruction in get_instructions(code))


Resolve = Callable[[Request], Method]
"""Finds what carries out a request, having checked that the caller may do that and that the arguments fit; raises
:class:`~jmp.errors.JmpError` otherwise."""


Note = Callable[[Request, str, float], None]
"""Told of each call that is over: the request, how it ended ("ok", "cancelled", or its error's code and text), the seconds."""


Around = Callable[[MuxStream], AbstractContextManager[object]]
"""What surrounds the answer to a stream."""


About = Callable[[], AbstractContextManager[object]]
"""What surrounds an answer that takes no waiting, instead."""


def _nothing(_: MuxStream) -> AbstractContextManager[object]:
    return nullcontext()


class Answering:
    """Answers streams; made by :func:`serve`."""

    def __init__(
        self, resolve: Resolve, tracebacks: bool, note: Note | None, around: Around, about: About | None
    ) -> None:
        self._about = about
        self._resolve = resolve
        self._tracebacks = tracebacks
        self._note = note
        self._around = around

    async def __call__(self, stream: MuxStream) -> None:
        await self._in_task(_Call(stream, self._resolve))

    def at_once(self, stream: MuxStream) -> Serve | None:
        """Answer a call that came whole, of a method that waits for nothing; for others, give what answers in a task."""
        call = _Call(stream, self._resolve)
        try:
            if not call.prepare_now():
                return self
            assert call.method is not None
            if call.method.at_once and stream.ended:
                # In a context of its own, as a task has: what the method sets there ends with it.
                copy_context().run(self._now, call)
                if call.later is not None:
                    assert call.request is not None
                    if call.request.timeout is not None:  # somebody has to mind the time
                        return lambda _: self._in_task(call)
                    call.later.listen(partial(self._later, call))
                    return None
                if call.reply is None:
                    if self._note is not None and call.request is not None:
                        self._note(call.request, OK, trio.current_time() - call.begun)
                    return None
            elif call.method.kind is Kind.BYTES and not call.early:
                # To a caller that waits it is open while it gets its task: to them, that is one turn of the other side less.
                call.told_ready = stream.send_nowait(messages.READY)
        except Exception as error:  # noqa: BLE001  # a call's root, see below
            self._over(call, self._failed(call, error))
            return None
        return lambda _: self._in_task(call)

    def _now(self, call: _Call) -> None:
        if self._about is None:
            call.run_now()
        else:
            with self._about():
                call.run_now()

    def _later(self, call: _Call, known: Later[object]) -> None:
        """Answer a call whose result is known by now."""
        try:
            call.answer_now(known.result())
            if call.reply is not None:
                call.stream.hand_over(lambda _: self._in_task(call))
                return
            result = OK
        except Exception as error:  # noqa: BLE001  # a call's root, see below
            result = self._failed(call, error)
        self._over(call, result)

    async def _in_task(self, call: _Call) -> None:
        result = CANCELLED
        try:
            with self._around(call.stream):
                result = await call.run()
        except Exception as error:  # noqa: BLE001  # a call's root: whatever a driver raises is the caller's answer
            result = self._failed(call, error)
        finally:
            self._over(call, result)

    def _failed(self, call: _Call, error: Exception) -> str:
        stream = call.stream
        gone = (trio.BrokenResourceError, trio.ClosedResourceError) if stream.broken else StreamStopped
        return CANCELLED if _only_of(gone, error) else call.fail(_only(error), self._tracebacks)

    def _over(self, call: _Call, result: str) -> None:
        call.stream.reset(Reset.CANCELLED, _SESSION_OVER)  # does nothing once the stream is closed
        if self._note is not None and call.request is not None:
            self._note(call.request, result, trio.current_time() - call.begun)


def serve(
    resolve: Resolve,
    *,
    tracebacks: bool = True,
    note: Note | None = None,
    around: Around = _nothing,
    about: About | None = None,
) -> Answering:
    """A handler for :func:`jmp.mux.connection.multiplex` that answers each stream as one call, inside of ``around(stream)``.

    An answer that takes no waiting, which nothing can interrupt, is made inside of ``about()`` instead.

    A caller that resets its stream, or whose link ends, cancels the method; one that closes it learns nothing more of what
    becomes of the method. When the handler itself is cancelled, the caller learns that the session is over.

    What takes no waiting takes no task either: a call that came whole, of a method that waits for nothing, is answered in the
    turn in which it came.
    """
    return Answering(resolve, tracebacks, note, around, about)


OK: Final = "ok"
CANCELLED: Final = "cancelled"
_SESSION_OVER: Final = messages.describe(Cancelled("the session ended before the call did"))
_SHORT: Final = 4096
_GATHERED: Final = MAX_DATA
"""Bytes of items that leave together at most."""
_GATHER_SECONDS: Final = 0.005
"""How long an item may be kept for others to leave with it; it is not kept while its method waits for anything."""


class _Call:
    """One stream being answered."""

    def __init__(self, stream: MuxStream, resolve: Resolve) -> None:
        self.stream = stream
        self.begun = stream.heard
        self.request: Request | None = None
        self.method: Method | None = None
        self.reply: bytes | None = None
        """An answer that has still to be sent."""
        self.later: Later[object] | None = None
        """A result that has still to come."""
        self.told_ready = False
        self.early = False
        """The caller has sent bytes with its request: it does not wait until the stream is open."""
        self._resolve = resolve

    @property
    def _name(self) -> str:
        return "a call" if self.request is None else f"{self.request.target}.{self.request.method}"

    def prepare_now(self) -> bool:
        """Find what carries out a call whose request came in one piece; False: it did not. Raises what is wrong with it."""
        data = self.stream.take_nowait()
        if not data:
            return False
        if len(data) <= _SHORT and self.stream.ended:
            try:
                value = codec.decode(data)  # as nearly always
            except ProtocolViolation:
                pass  # less or more, or wrong: below it is looked at closely
            else:
                self._prepare(value)
                return True
        decoder = codec.Decoder(messages.MAX_VALUE)
        decoder.feed(data)
        for value in decoder:
            if rest := decoder.tail():
                self.early = True
                self.stream.unread(rest)
            self._prepare(value)
            return True
        self.stream.unread(data)
        return False

    def _prepare(self, value: object) -> Method:
        self.request = Request.decode(value)
        self.method = self._resolve(self.request)
        return self.method

    def run_now(self) -> None:
        """Carry out a call whose method waits for nothing."""
        assert self.method is not None
        coroutine = self.method.function()
        try:
            coroutine.send(None)
        except StopIteration as done:
            value = done.value
        else:
            coroutine.close()
            raise RuntimeError(f"{self._name} waited, other than its code said")
        if isinstance(value, Later):
            self.later = value
        else:
            self.answer_now(value)

    def answer_now(self, value: object) -> None:
        """Answer with a result; :attr:`reply` is left if that takes waiting."""
        self.reply = self._encoded(messages.result, value)
        if self.stream.finish_nowait(self.reply):
            self.reply = None

    async def run(self) -> str:
        """How it ended."""
        if self.reply is not None:
            await self._answer(self.reply)
            return OK
        method = self.method or self._prepare(await self._request())
        assert self.request is not None
        timeout = math.inf if self.request.timeout is None else self.request.timeout
        self.stream.scope = scope = trio.CancelScope(deadline=self.begun + timeout)
        over = method.begun(scope)
        error: JmpError | None = None
        with scope:
            try:
                if method.kind is Kind.CALL:
                    value: Any = self.later or await method.function()
                    if isinstance(value, Later):
                        value = await value.wait()
                    self.stream.scope = None  # it has happened: the answer is to be sent
                elif method.kind is Kind.ITEMS:
                    async with aclosing(method.function()) as items:
                        value = await self._send_items(items)
                else:
                    # It leaves with what the method sends at once, or else by itself when that waits for the first time.
                    if not self.told_ready and not self.stream.send_nowait(messages.READY, soon=True):
                        await self.stream.send_all(messages.READY)
                    await method.function(self.stream)
            finally:
                error = over()
            if method.kind is Kind.CALL:
                await self._answer(self._encoded(messages.result, value))
            elif method.kind is Kind.ITEMS:
                await self._answer(value + messages.END)
            else:
                self.stream.close()
        if scope.cancelled_caught and error is not None:
            raise error
        if scope.cancelled_caught and not self.stream.broken:
            raise Timeout(f"{self._name} did not finish within {timeout:g} s")
        return CANCELLED if scope.cancelled_caught else OK

    async def _request(self) -> object:
        decoder = codec.Decoder(messages.MAX_VALUE)
        while data := await self.stream.receive_some():
            decoder.feed(data)
            for value in decoder:
                self.stream.unread(decoder.tail())
                return value
        raise ProtocolViolation("a stream ended before its request did")

    async def _send_items(self, items: AsyncGenerator[object, None]) -> bytes:
        """Send items as they come; those that come without any waiting leave together. Returns what is left to be sent."""
        gathered = bytearray()
        first = 0.0
        try:
            while True:
                step = items.__anext__()
                try:
                    try:
                        trap = step.send(None)
                    except StopIteration as done:
                        value = done.value
                    else:
                        # A stream that is over must not keep the step, which waits, from being taken up again.
                        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                            self.stream.send_soon(bytes(gathered))
                        gathered.clear()
                        value = await _Resumed(step, trap)
                except StopAsyncIteration:
                    return bytes(gathered)
                now = perf_counter()
                if not gathered:
                    first = now
                gathered += self._encoded(messages.item, value)
                if len(gathered) >= _GATHERED or now - first > _GATHER_SECONDS:
                    data = bytes(gathered)
                    gathered.clear()
                    await self.stream.send_all(data)
        except BaseException:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self.stream.send_soon(bytes(gathered))  # these did come
            raise

    def _encoded(self, reply: Callable[[Any], bytes], value: object) -> bytes:
        try:
            return reply(value)
        except BadValue as error:  # not the caller's fault
            raise DriverError(f"{self._name} has a result that is none: {error.message}") from error

    async def _answer(self, reply: bytes) -> None:
        if not self.stream.send_nowait(reply, end=True):
            await self.stream.send_last(reply)
        self.stream.close()

    def fail(self, error: BaseException, tracebacks: bool) -> str:
        """Let the caller know; nothing waits here, since the error may be that of a caller who does not read."""
        if not isinstance(error, JmpError):
            log.error("%s raised %s", self._name, type(error).__name__, exc_info=error)
        self.stream.reset(Reset.FAILED, messages.describe(error, tracebacks=tracebacks))
        return f"{error.code}: {error.message}" if isinstance(error, JmpError) else f"{type(error).__name__}: {error}"


class _Resumed:
    """Awaits what has been begun by hand, and waits for ``trap``."""

    def __init__(self, step: Any, trap: object) -> None:
        self._step = step
        self._trap = trap

    def __await__(self) -> Generator[Any, Any, Any]:
        trap = self._trap
        while True:
            try:
                try:
                    sent = yield trap
                except BaseException as error:  # noqa: BLE001  # passed on, whatever it is
                    trap = self._step.throw(error)
                else:
                    trap = self._step.send(sent)
            except StopIteration as done:
                return done.value


def _only_of(kinds: type[Exception] | tuple[type[Exception], ...], error: Exception) -> bool:
    """Whether ``error`` is one of ``kinds``, or a group of nothing else."""
    return isinstance(error, kinds) or (isinstance(error, ExceptionGroup) and error.split(kinds)[1] is None)


def _only(error: BaseException) -> BaseException:
    """The one exception in a group of one, as nurseries raise it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
