"""How calls are answered: what becomes of the method when the caller, the link or the session goes, and what callers learn."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from jmp.errors import (
    Cancelled,
    DeviceError,
    DriverError,
    JmpError,
    LinkLost,
    NotFound,
    ProtocolViolation,
    Timeout,
    UsageError,
)
from jmp.link.memory import memory_links
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import WINDOW, Role
from jmp.mux.stream import MuxStream, StreamReset
from jmp.rpc import messages
from jmp.rpc.call import Caller
from jmp.rpc.later import Later
from jmp.rpc.messages import Kind, Reply, Request
from jmp.rpc.serve import Method, serve, waits_for_nothing
from jmp.wire import codec
from jmp.wire.frames import Reset
from tests.fakes.connections import connections


@asynccontextmanager
async def answered_by(
    function: Callable[..., Any], kind: Kind = Kind.CALL, *, tracebacks: bool = True
) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connection on which every call is answered by ``function``; both its ends."""

    def resolve(request: Request) -> Method:
        return Method(kind, partial(function, *request.args))

    async with connections(serve=serve(resolve, tracebacks=tracebacks)) as ends:
        yield ends


def request(*args: object, timeout: float | None = None) -> bytes:
    return Request("it", "does", args, {}, timeout).encode()


async def all_of(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def failure(stream: trio.abc.ReceiveStream) -> JmpError:
    """The error with which a stream is reset."""
    with pytest.raises(StreamReset) as raised:
        await all_of(stream)
    assert raised.value.code == Reset.FAILED
    error = messages.revive(raised.value.detail)
    assert error is not None
    return error


async def nothing() -> None:
    pass


# ---- what is no call


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "a stream ended before its request did"),
        (request()[:-1], "a stream ended before its request did"),
        (b"\xc1", "a value could not be decoded"),
        (codec.encode("hello"), "a call does not begin with a request"),
        (codec.encode(["it", "does", [], {}, {"timeout": -1}]), "timeout is no number of seconds"),
        (b"\x95\xc1", "could not be decoded"),
    ],
)
async def test_what_is_no_call_is_told_so_and_others_go_on(sent: bytes, said: str) -> None:
    async with answered_by(nothing) as (dialler, _):
        error = await failure(dialler.open_stream(sent, end=True))
        assert type(error) is ProtocolViolation
        assert said in error.message
        await Caller(dialler).call("it", "does", (), {})


async def test_a_request_may_come_in_pieces() -> None:
    async def sized(data: bytes) -> int:
        return len(data)

    async with answered_by(sized) as (dialler, _):
        stream = dialler.open_stream()
        for byte in request(b"12345"):
            await stream.send_all(bytes([byte]))
        assert codec.decode(await all_of(stream)) == [Reply.RESULT, 5]


async def test_what_cannot_be_resolved() -> None:
    def resolve(request: Request) -> Method:
        raise NotFound(f"there is no {request.target}.{request.method}")

    async with connections(serve=serve(resolve)) as (dialler, _):
        with pytest.raises(NotFound, match=r"there is no it\.does"):
            await Caller(dialler).call("it", "does", (), {})


# ---- giving up


class Endless:
    """A method that ends only when it is cancelled."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.ended = trio.Event()

    async def call(self, *args: object) -> None:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()

    async def items(self) -> AsyncGenerator[int, None]:
        yield 1
        await self.call()


@pytest.mark.parametrize("kind", Kind)
async def test_a_reset_cancels_the_method(kind: Kind) -> None:
    endless = Endless()
    async with answered_by(endless.items if kind is Kind.ITEMS else endless.call, kind) as (dialler, _):
        stream = dialler.open_stream(request(), end=kind is not Kind.BYTES)
        await endless.begun.wait()
        stream.reset()
        await endless.ended.wait()


@pytest.mark.parametrize("kind", Kind)
async def test_the_end_of_the_link_cancels_the_method(kind: Kind) -> None:
    endless = Endless()
    async with answered_by(endless.items if kind is Kind.ITEMS else endless.call, kind) as (dialler, _):
        dialler.open_stream(request(), end=True)
        await endless.begun.wait()
        await dialler.link.aclose()
        await endless.ended.wait()


async def test_the_end_of_the_session_cancels_the_method_and_its_caller_is_told() -> None:
    endless = Endless()
    session = trio.CancelScope()

    async def handle(stream: MuxStream) -> None:
        with session:
            await serve(lambda _: Method(Kind.CALL, endless.call))(stream)

    async with connections(serve=handle) as (dialler, _):
        stream = dialler.open_stream(request(), end=True)
        await endless.begun.wait()
        session.cancel()
        with pytest.raises(StreamReset) as raised:
            await all_of(stream)
        error = messages.from_reset("it.does", raised.value.code, raised.value.detail)
        assert (type(error), error.message) == (Cancelled, "the session ended before the call did")


async def test_a_side_that_stops_says_so_to_those_who_wait() -> None:
    endless = Endless()
    here, there = memory_links()
    answer = serve(lambda _: Method(Kind.CALL, endless.call))
    async with multiplex(here, Role.DIALLER) as dialler, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(LinkLost, match=r"the link was lost during it\.does: .*: 1001 the exporter is stopping"):
                await Caller(dialler).call("it", "does", (), {})

        async with multiplex(there, Role.LISTENER, serve=answer) as listener:
            listener.farewell = (1001, "the exporter is stopping")
            nursery.start_soon(wait)
            await endless.begun.wait()
        assert endless.ended.is_set()


async def test_a_caller_who_leaves_at_once_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    endless = Endless()
    async with answered_by(endless.call) as (dialler, listener):
        dialler.open_stream(request(), end=True).reset()
        await dialler.open_stream(request(), end=True).aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert listener._streams.keys() <= {3}
    assert caplog.records == []


async def test_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    endless = Endless()
    async with answered_by(endless.call) as (dialler, _):
        error = await failure(dialler.open_stream(request(timeout=3), end=True))
        assert trio.current_time() == pytest.approx(3)
        assert type(error) is Timeout
        assert error.message == "it.does did not finish within 3 s"
        assert endless.ended.is_set()


@pytest.mark.parametrize("kind", [Kind.ITEMS, Kind.BYTES])
async def test_a_deadline_of_what_is_never_read(kind: Kind, autojump_clock: trio.testing.MockClock) -> None:
    async def flood() -> AsyncGenerator[bytes, None]:
        while True:
            yield bytes(WINDOW)

    async def pour(stream: MuxStream) -> None:
        while True:
            await stream.send_all(bytes(WINDOW))

    async with answered_by(flood if kind is Kind.ITEMS else pour, kind) as (dialler, _):
        stream = dialler.open_stream(request(timeout=3), end=True)
        await trio.sleep(4)
        assert type(await failure(stream)) is Timeout


async def test_a_device_that_cancels_is_not_its_caller() -> None:
    """A scope of the method's own is none of anybody's business."""

    async def patient() -> str:
        with trio.move_on_after(0):
            await trio.sleep_forever()
        return "fine"

    async with answered_by(patient) as (dialler, _):
        assert await Caller(dialler).call("it", "does", (), {}) == "fine"


# ---- what callers learn


async def raised(problem: BaseException, *, tracebacks: bool = True) -> JmpError:
    async def fail() -> None:
        raise problem

    async with answered_by(fail, tracebacks=tracebacks) as (dialler, _):
        return await failure(dialler.open_stream(request(), end=True))


async def test_errors_of_ours_are_not_logged_and_others_are(caplog: pytest.LogCaptureFixture) -> None:
    error = await raised(DeviceError("unplugged"))
    assert (type(error), error.message) == (DeviceError, "unplugged")
    assert caplog.records == []
    error = await raised(OSError(5, "I/O error"))
    assert (type(error), error.message) == (DriverError, "OSError: [Errno 5] I/O error")
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "it.does raised OSError")


async def test_the_one_error_in_a_group_counts() -> None:
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [UsageError("not so")])])
    assert type(await raised(group)) is UsageError
    assert type(await raised(ExceptionGroup("two", [UsageError("a"), UsageError("b")]))) is DriverError


async def test_a_stream_of_the_devices_that_broke_is_not_the_callers() -> None:
    error = await raised(trio.BrokenResourceError("device's own"))
    assert (type(error), error.message) == (DriverError, "BrokenResourceError: device's own")


async def test_tracebacks_can_be_kept_back() -> None:
    assert (await raised(ValueError("secret path"))).remote_traceback is not None
    assert (await raised(ValueError("secret path"), tracebacks=False)).remote_traceback is None


@pytest.mark.parametrize(("kind", "value"), [(Kind.CALL, object()), (Kind.ITEMS, object())])
async def test_a_result_that_cannot_be_carried_is_said_to_be_so(kind: Kind, value: object) -> None:
    async def result() -> object:
        return value

    async def items() -> AsyncGenerator[object, None]:
        yield value

    async with answered_by(items if kind is Kind.ITEMS else result, kind) as (dialler, _):
        error = await failure(dialler.open_stream(request(), end=True))
        assert type(error) is DriverError
        assert error.message.startswith("it.does has a result that is none: a value of type object cannot be carried")


# ---- streams of values and of bytes


async def test_items_are_made_as_they_are_read() -> None:
    made = 0

    async def items() -> AsyncGenerator[bytes, None]:
        nonlocal made
        while True:
            made += 1
            yield bytes(WINDOW // 4)

    async with answered_by(items, Kind.ITEMS) as (dialler, _):
        dialler.open_stream(request(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        assert made <= 5


async def test_bytes_that_came_with_the_request_are_the_first() -> None:
    async def shout(stream: MuxStream) -> None:
        async for data in stream:
            await stream.send_all(data.upper())

    async with answered_by(shout, Kind.BYTES) as (dialler, _):
        stream = dialler.open_stream(request() + b"with it, ")
        await stream.send_last(b"after it")
        assert await all_of(stream) == messages.READY + b"WITH IT, AFTER IT"


async def test_what_a_method_sends_at_once_leaves_with_the_word_that_it_has_begun() -> None:
    async def greet(stream: MuxStream) -> None:
        await stream.send_all((await stream.receive_some()).upper())
        await stream.receive_some()

    async with answered_by(greet, Kind.BYTES) as (dialler, _):
        stream = dialler.open_stream(request() + b"hello")
        assert await stream.receive_some() == messages.READY + b"HELLO"
        silent = dialler.open_stream(request())
        assert await silent.receive_some() == messages.READY


async def test_a_byte_stream_ends_with_its_method_though_the_caller_goes_on_sending() -> None:
    async with answered_by(lambda stream: stream.send_all(b"enough"), Kind.BYTES) as (dialler, _):
        stream = dialler.open_stream(request())
        assert await all_of(stream) == messages.READY + b"enough"
        with pytest.raises(trio.BrokenResourceError, match="reads no more"):
            await stream.send_all(b"x")


async def test_a_method_that_meets_a_caller_who_has_closed(caplog: pytest.LogCaptureFixture) -> None:
    closed = trio.Event()
    met: list[str] = []

    async def late(stream: MuxStream) -> None:
        await closed.wait()
        try:
            await stream.send_all(b"x")
        except trio.BrokenResourceError as error:
            met.append(str(error))
            raise

    async with answered_by(late, Kind.BYTES) as (dialler, _):
        stream = dialler.open_stream(request())
        await stream.receive_some()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        closed.set()
        await trio.testing.wait_all_tasks_blocked()
    assert met == ["the other side reads no more from this stream"]
    assert caplog.records == []


async def test_a_method_with_tasks_that_all_meet_a_caller_who_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def both_ways(stream: MuxStream) -> None:
        async def send() -> None:
            with trio.CancelScope(shield=True):  # so that both tasks fail
                await ended.wait()
                await stream.send_all(b"x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            begun.set()
            with trio.CancelScope(shield=True):
                try:
                    await all_of(stream)
                finally:
                    ended.set()

    async with answered_by(both_ways, Kind.BYTES) as (dialler, _):
        stream = dialler.open_stream(request())
        await begun.wait()
        stream.reset()
        await ended.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert caplog.records == []


async def test_both_sides_may_call() -> None:
    async def twice(value: int) -> int:
        return 2 * value

    answer: Callable[[MuxStream], Awaitable[None]] = serve(lambda r: Method(Kind.CALL, partial(twice, *r.args)))
    here, there = memory_links()
    async with (
        multiplex(here, Role.DIALLER, serve=answer) as dialler,
        multiplex(there, Role.LISTENER, serve=answer) as listener,
    ):
        assert await Caller(dialler).call("it", "does", (2,), {}) == 4
        assert await Caller(listener).call("it", "does", (3,), {}) == 6
        await here.aclose()
        with pytest.raises(LinkLost):
            await Caller(listener).call("it", "does", (3,), {})


# ---- what takes no waiting takes no task


async def echoed(value: object) -> object:
    return value


async def refused(value: object) -> None:
    raise DeviceError(f"not {value}")


async def waits(value: object) -> object:
    await trio.lowlevel.checkpoint()
    return value


async def loops(values: AsyncGenerator[int, None]) -> list[int]:
    return [value async for value in values]


class Blocker:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def enters(self) -> None:
        async with self:
            pass

    async def bound(self) -> str:
        return "bound"


@pytest.mark.parametrize(
    ("function", "nothing_waited_for"),
    [
        (echoed, True),
        (refused, True),
        (Blocker().bound, True),
        (waits, False),
        (loops, False),
        (Blocker().enters, False),
        (len, False),
        (lambda: 1, False),
        (partial(echoed, 1), False),
    ],
)
async def test_what_waits_for_nothing(function: Callable[..., Any], nothing_waited_for: bool) -> None:
    assert waits_for_nothing(function) is nothing_waited_for


asked_by: ContextVar[str] = ContextVar("asked_by", default="nobody")


@asynccontextmanager
async def at_once(
    function: Callable[..., Any], notes: list[tuple[str, str]]
) -> AsyncIterator[tuple[Connection, Connection, list[str]]]:
    """Calls of what waits for nothing; and the names of the tasks that carried them out."""
    tasks: list[str] = []

    @contextmanager
    def around(_: MuxStream | None = None) -> Iterator[None]:
        tasks.append(trio.lowlevel.current_task().name)
        yield

    def resolve(request: Request) -> Method:
        return Method(Kind.CALL, partial(function, *request.args), at_once=True)

    def note(request: Request, result: str, _: float) -> None:
        notes.append((request.method, result))

    answer = serve(resolve, around=around, about=around, note=note)
    async with connections(serve=answer) as (dialler, listener):
        yield dialler, listener, tasks


async def test_no_task_is_made_for_what_waits_for_nothing() -> None:
    notes: list[tuple[str, str]] = []
    async with at_once(echoed, notes) as (dialler, listener, tasks):
        assert await Caller(dialler).call("it", "does", ("this",), {}) == "this"
        assert dialler._mux.streams == listener._mux.streams == 0
        assert len(tasks) == 1
        assert "_read" in tasks[0]
    assert notes == [("does", "ok")]


async def test_what_fails_at_once_is_told_as_ever() -> None:
    notes: list[tuple[str, str]] = []
    async with at_once(refused, notes) as (dialler, _, _tasks):
        for _ in range(2):
            with pytest.raises(DeviceError, match="not this"):
                await Caller(dialler).call("it", "does", ("this",), {})
        with pytest.raises(DriverError, match="TypeError"):
            await Caller(dialler).call("it", "does", (), {})
    assert notes[0] == ("does", "device: not this")
    assert len(notes) == 3


async def test_what_a_method_sets_in_its_context_stays_there() -> None:
    async def asks(name: str) -> str:
        before = asked_by.get()
        asked_by.set(name)
        return before

    async with at_once(asks, []) as (dialler, _, _tasks):
        assert [await Caller(dialler).call("it", "does", (name,), {}) for name in "ab"] == ["nobody", "nobody"]


async def test_a_large_result_at_once_waits_for_its_reader_in_a_task() -> None:
    async def large(size: int) -> bytes:
        return bytes(size)

    async with at_once(large, []) as (dialler, _, _tasks):
        assert await Caller(dialler).call("it", "does", (3 * WINDOW,), {}) == bytes(3 * WINDOW)


async def test_one_who_says_that_he_waits_for_nothing_and_does() -> None:
    async with at_once(waits, []) as (dialler, _, _tasks):
        with pytest.raises(DriverError, match="waited, other than its code said"):
            await Caller(dialler).call("it", "does", ("this",), {})


# ---- results that come later


class Promised:
    """A method whose results come later."""

    def __init__(self) -> None:
        self.asked: list[Later[object]] = []

    async def __call__(self) -> Later[object]:
        self.asked.append(Later())
        return self.asked[-1]


async def test_what_comes_later_is_answered_then_without_a_task() -> None:
    promised, notes, answers = Promised(), list[tuple[str, str]](), list[object]()

    async def call(caller: Caller) -> None:
        answers.append(await caller.call("it", "does", (), {}))

    async with at_once(promised, notes) as (dialler, listener, tasks), trio.open_nursery() as nursery:
        nursery.start_soon(call, Caller(dialler))
        nursery.start_soon(call, Caller(dialler))
        await trio.testing.wait_all_tasks_blocked()
        assert not notes
        promised.asked[1].resolve("second")
        await trio.testing.wait_all_tasks_blocked()
        assert answers == ["second"]
        promised.asked[0].then(lambda value: answers.append(f"heard of {value}"))
        promised.asked[0].resolve("first")
        await trio.testing.wait_all_tasks_blocked()
        assert answers == ["second", "heard of first", "first"]
        assert listener._mux.streams == 0
        assert all("_read" in task for task in tasks)
    assert notes == [("does", "ok")] * 2


@pytest.mark.parametrize(
    ("error", "told"), [(DeviceError("not this"), DeviceError), (ValueError("what?"), DriverError)]
)
async def test_what_fails_later_is_told_then(error: Exception, told: type[Exception]) -> None:
    promised = Promised()
    async with at_once(promised, []) as (dialler, _, _tasks):
        stream = dialler.open_stream(request(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        promised.asked[0].fail(error)
        assert isinstance(await failure(stream), told)


async def test_a_caller_who_gives_up_hears_no_more() -> None:
    promised, notes = Promised(), list[tuple[str, str]]()
    async with at_once(promised, notes) as (dialler, listener, _):
        with trio.move_on_after(0.01):
            await Caller(dialler).call("it", "does", (), {})
        stream = dialler.open_stream(request(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        for later in promised.asked:
            later.resolve(1)
        assert listener._mux.streams == 0
    assert [result for _, result in notes][-1] == "cancelled"


async def test_what_comes_too_late_is_told_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with at_once(Promised(), []) as (dialler, _, _tasks):
        error = await failure(dialler.open_stream(request(timeout=2.0), end=True))
    assert isinstance(error, Timeout)
    assert trio.current_time() == pytest.approx(2.0)


async def test_large_results_that_come_later_wait_for_their_reader() -> None:
    promised, size = Promised(), 3 * WINDOW
    async with at_once(promised, []) as (dialler, _, _tasks):
        stream = dialler.open_stream(request(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        promised.asked[0].resolve(bytes(size))
        assert len(await all_of(stream)) > size


async def test_what_comes_later_in_a_task() -> None:
    async with answered_by(promised := Promised()) as (dialler, _):
        stream = dialler.open_stream(request(), end=True)
        await trio.testing.wait_all_tasks_blocked()
        promised.asked[0].resolve(7)
        promised.asked[0].fail(ValueError("too late"))
        assert messages.read(codec.decode(await all_of(stream))) == (Reply.RESULT, 7)


# ---- items leave together


async def test_items_that_are_ready_together_leave_together() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        for number in range(1000):
            yield number

    async with answered_by(numbers, Kind.ITEMS) as (dialler, _):
        stream = dialler.open_stream(request(), end=True)
        pieces = [piece async for piece in stream]
    assert len(pieces) < 20  # more than one only where the machine was slow
    values = codec.Decoder(1 << 20)
    values.feed(b"".join(pieces))
    assert [messages.read(value) for value in values] == [
        *((Reply.ITEM, number) for number in range(1000)),
        (Reply.END, None),
    ]


async def test_no_item_is_kept_while_its_method_waits() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        await trio.sleep_forever()

    async with answered_by(numbers, Kind.ITEMS) as (dialler, _):
        items = Caller(dialler).items("it", "does", (), {})
        async with aclosing(items):
            assert [await anext(items), await anext(items)] == [1, 2]


async def test_items_before_an_error_arrive() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        yield 1
        await trio.lowlevel.checkpoint()
        yield 2
        raise DeviceError("no more")

    async with answered_by(numbers, Kind.ITEMS) as (dialler, _):
        items = Caller(dialler).items("it", "does", (), {})
        assert [await anext(items), await anext(items)] == [1, 2]
        with pytest.raises(DeviceError, match="no more"):
            await anext(items)


async def test_items_before_a_pause_wait_for_credit_without_their_method() -> None:
    going_on = trio.Event()

    async def blocks() -> AsyncGenerator[bytes, None]:
        for _ in range(14):
            yield bytes(74_000)  # which leaves less credit than the last one takes
        yield b"z" * 60_000
        going_on.set()
        await trio.sleep_forever()

    async with answered_by(blocks, Kind.ITEMS) as (dialler, _):
        items = Caller(dialler).items("it", "does", (), {})
        async with aclosing(items):
            await trio.testing.wait_all_tasks_blocked()
            assert await anext(items) == bytes(74_000)
            await going_on.wait()
            while await anext(items) != b"z" * 60_000:
                pass
