"""Both callers, of Trio and of threads, against the real answering side: one specification."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.errors import (
    BadValue,
    Busy,
    Cancelled,
    DeviceError,
    DriverError,
    JmpError,
    LinkLost,
    NotFound,
    ProtocolViolation,
    Timeout,
)
from jmp.mux.protocol import WINDOW
from jmp.mux.stream import MuxStream
from jmp.rpc import messages
from jmp.rpc.call import Caller
from jmp.rpc.messages import Kind, Reply, Request
from jmp.rpc.serve import Method, serve
from jmp.wire import codec
from jmp.wire.frames import Reset
from tests.fakes.callers import SIDES, Side, calling
from tests.fakes.connections import connections

pytestmark = pytest.mark.parametrize("side", SIDES)


class It:
    """What is called; it remembers how calls that did not come to their end were ended."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.begun = trio.Event()
        self.given_up = trio.Event()
        self.received = bytearray()
        self.input_over = trio.Event()

    def resolve(self, request: Request) -> Method:
        self.requests.append(request)
        kinds = {"count": Kind.ITEMS, "fail_later": Kind.ITEMS, "echo": Kind.BYTES, "greet": Kind.BYTES}
        function = getattr(self, request.method, None)
        if function is None:
            raise NotFound(f"it has no method {request.method!r}")
        return Method(kinds.get(request.method, Kind.CALL), partial(function, *request.args, **request.kwargs))

    async def same(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [list(args), kwargs]

    async def wait(self) -> None:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.given_up.set()

    async def fail(self, error: Exception) -> None:
        raise error

    async def broken(self) -> None:
        raise RuntimeError("a\nbug")

    async def device(self) -> None:
        raise DeviceError("the board does not answer: is it powered?")

    async def count(self, items: int, size: int = 0) -> AsyncGenerator[Any, None]:
        try:
            for number in range(items):
                yield bytes(size) if size else number
        finally:
            self.given_up.set()

    async def fail_later(self) -> AsyncGenerator[int, None]:
        yield 1
        raise DeviceError("unplugged")

    async def echo(self, stream: MuxStream) -> None:
        try:
            async for data in stream:
                self.received += data
                await stream.send_all(data)
            self.input_over.set()
        except trio.Cancelled:
            self.given_up.set()
            raise

    async def greet(self, name: str, stream: MuxStream) -> None:
        await stream.send_all(f"hello {name}, ".encode())
        await stream.send_all(b"what is it?")
        self.received += await stream.receive_some()
        raise DeviceError("no such door")


@asynccontextmanager
async def it(side: str, directory: Path) -> AsyncIterator[tuple[It, Side]]:
    callee = It()
    async with calling(side, directory, serve(callee.resolve)) as caller:
        yield callee, caller


# ---- one value


async def test_arguments_and_results_arrive_as_they_left(side: str, tmp_path: Path) -> None:
    value: dict[Any, Any] = {
        "n": [None, True, -1, 2**200, 1.5, float("inf")],
        7: (1, (2,), {3}, frozenset({4})),
        "t": [datetime(2026, 1, 2, tzinfo=UTC), timedelta(days=-1, microseconds=3)],
        "b": b"\0\xff",
    }
    async with it(side, tmp_path) as (_, caller):
        assert await caller.call("same", 1, value, x=value, wait=None) == [[1, value], {"x": value, "wait": None}]


async def test_large_requests_and_results(side: str, tmp_path: Path) -> None:
    data = random.Random(7).randbytes(3 * WINDOW)
    async with it(side, tmp_path) as (_, caller):
        assert await caller.call("same", data) == [[data], {}]


async def test_what_cannot_be_carried_is_refused_here(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):
        with pytest.raises(BadValue, match="type object"):
            await caller.call("same", object())
        assert callee.requests == []
        assert await caller.call("same", 1) == [[1], {}]


async def test_many_calls_at_once(side: str, tmp_path: Path) -> None:
    answers: dict[int, Any] = {}
    async with it(side, tmp_path) as (_, caller), trio.open_nursery() as nursery:

        async def call(number: int) -> None:
            answers[number] = await caller.call("same", number)

        for number in range(20):
            nursery.start_soon(call, number)
    assert answers == {number: [[number], {}] for number in range(20)}


# ---- errors


async def test_an_error_arrives_as_its_class(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        with pytest.raises(DeviceError, match=r"^the board does not answer: is it powered\?$"):
            await caller.call("device")
        with pytest.raises(NotFound, match="it has no method 'nothing'"):
            await caller.call("nothing")
        assert await caller.call("same") == [[], {}]


async def test_an_unexpected_exception_is_the_drivers(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        with pytest.raises(DriverError, match=r"^RuntimeError: a bug$") as raised:
            await caller.call("broken")
        assert "in broken" in (raised.value.remote_traceback or "")


async def test_an_error_after_some_items(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        items = caller.items("fail_later")
        assert await anext(items) == 1
        with pytest.raises(DeviceError, match="unplugged"):
            await anext(items)


async def test_an_error_of_a_byte_stream_comes_after_what_was_sent(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        async with caller.open("greet", "you") as stream:
            data = b""
            while not data.endswith(b"?"):
                data += await stream.receive_some()
            assert data == b"hello you, what is it?"
            await stream.send_all(b"x")
            with pytest.raises(DeviceError, match="no such door"):
                await stream.receive_some()
        with pytest.raises(NotFound):
            async with caller.open("nothing"):
                pass


# ---- items


async def test_items_come_in_order_and_end(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        assert [item async for item in caller.items("count", 1000)] == list(range(1000))
        assert [item async for item in caller.items("count", 0)] == []
        assert [len(item) async for item in caller.items("count", 3, size=WINDOW)] == 3 * [WINDOW]


async def test_leaving_items_early_closes_the_generator(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):
        async with aclosing(caller.items("count", 10**9)) as items:
            assert await anext(items) == 0
        await callee.given_up.wait()
        assert await caller.call("same", 1) == [[1], {}]


# ---- byte streams


async def test_bytes_both_ways_with_half_close(side: str, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(WINDOW // 2)
    async with it(side, tmp_path) as (_, caller), caller.open("echo") as stream:
        await stream.send_all(data)
        await stream.send_eof()
        received = bytearray()
        while piece := await stream.receive_some(5000):
            assert len(piece) <= 5000
            received += piece
        assert received == data
        assert await stream.receive_some() == b""


async def test_what_was_sent_before_closing_arrives(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):
        async with caller.open("echo") as stream:
            await stream.send_all(b"last words")
            assert await stream.receive_some() == b"last words"
            await stream.send_eof()
        await callee.input_over.wait()
        assert callee.received == b"last words"


async def test_an_exception_in_the_block_cancels_the_method(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):

        async def go_wrong() -> None:
            async with caller.open("echo") as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await go_wrong()
        await callee.given_up.wait()


# ---- opening a byte stream


def opening(*replies: bytes) -> Callable[[MuxStream], Any]:
    """Answers each stream, once it has brought "early", as ``replies`` say, one by one."""

    async def answer(stream: MuxStream) -> None:
        data = b""
        while not data.endswith(b"early"):
            data += await stream.receive_some()
        for reply in replies:
            await stream.send_all(reply)
            await trio.testing.wait_all_tasks_blocked(0.001)
        await stream.send_eof()

    return answer


READY_IN_MANY_WORDS = codec.encode([int(Reply.READY), None, "added later"])


@pytest.mark.parametrize(
    "replies",
    [
        [messages.READY + b"there"],
        [messages.READY, b"there"],
        [messages.READY[:1], messages.READY[1:], b"th", b"ere"],
        [READY_IN_MANY_WORDS + b"th", b"ere"],
        [READY_IN_MANY_WORDS[:3], READY_IN_MANY_WORDS[3:], b"there"],
    ],
)
@pytest.mark.parametrize("waiting", [False, True])
async def test_sending_does_not_wait_until_the_stream_is_open(
    side: str, waiting: bool, replies: list[bytes], tmp_path: Path
) -> None:
    async with calling(side, tmp_path, opening(*replies)) as caller:
        async with caller.open("m", ahead=True) as stream:
            await stream.send_all(b"early")
            if waiting:
                await stream.wait_opened()
            got = [await stream.receive_some(1) for _ in range(6)]
        assert got == [b"t", b"h", b"e", b"r", b"e", b""]


async def test_who_receives_from_a_stream_that_is_refused_learns_why(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        for wait in ("receive_some", "wait_opened"):
            async with caller.open("nothing", ahead=True) as stream:
                await stream.send_all(b"in vain")
                with pytest.raises(NotFound, match="it has no method 'nothing'"):
                    await getattr(stream, wait)()
                with pytest.raises(NotFound, match="it has no method 'nothing'"):
                    await stream.send_all(b"in vain")
                await stream.aclose()
        assert await caller.call("same") == [[], {}]


async def test_who_only_sends_learns_at_the_end_that_the_stream_was_refused(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):

        async def only_send() -> None:
            async with caller.open("nothing", ahead=True) as stream:
                await stream.send_all(b"in vain")
                await stream.send_eof()

        with pytest.raises(NotFound, match="it has no method 'nothing'"):
            await only_send()


async def test_who_closes_a_stream_does_not_wait_for_its_opening(side: str, tmp_path: Path) -> None:
    async def answer_nothing(stream: MuxStream) -> None:
        await trio.sleep_forever()

    async with calling(side, tmp_path, answer_nothing) as caller, caller.open("m", ahead=True) as stream:
        await stream.aclose()


async def test_a_link_that_is_lost_before_a_stream_is_open(side: str, tmp_path: Path) -> None:
    async with calling(side, tmp_path, hang_up) as caller:
        with pytest.raises(LinkLost, match=r"the link was lost during it\.m: .*; whether it was executed is not known"):
            async with caller.open("m", ahead=True) as stream:
                await stream.receive_some()


# ---- deadlines


async def test_a_deadline_goes_with_the_request_and_cancels_the_method(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):
        with pytest.raises(Timeout), caller.fail_after(0.05):
            await caller.call("wait")
        await callee.given_up.wait()
        assert 0 <= (callee.requests[0].timeout or 9) <= 0.05
        assert await caller.call("same") == [[], {}]
        assert callee.requests[1].timeout is None


async def test_a_deadline_counts_for_items_and_byte_streams(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):
        with pytest.raises(Timeout), caller.fail_after(0.05):
            async with caller.open("echo") as stream:
                await stream.receive_some()
        await callee.given_up.wait()
        callee.given_up = trio.Event()
        with pytest.raises(Timeout), caller.fail_after(0.05):
            async for _ in caller.items("count", 10**9):
                pass
        await callee.given_up.wait()


async def test_the_narrower_of_two_deadlines_counts(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (callee, caller):
        with pytest.raises(Timeout), caller.fail_after(0.05), caller.fail_after(100):
            await caller.call("wait")
        with caller.fail_after(100):
            assert await caller.call("same") == [[], {}]
        assert (callee.requests[0].timeout or 9) <= 0.05


# ---- the other side at fault


Answer = Callable[[MuxStream], Any]


def answering(*replies: bytes, end: bool = True) -> Answer:
    async def answer(stream: MuxStream) -> None:
        for reply in replies:
            await stream.send_all(reply)
        if end:
            await stream.send_eof()
        await trio.sleep_forever()

    return answer


def resetting(code: int, detail: bytes = b"") -> Answer:
    async def answer(stream: MuxStream) -> None:
        stream.reset(code, detail)

    return answer


async def hang_up(stream: MuxStream) -> None:
    await stream._connection.link.aclose(1001, "the exporter is stopping")


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (answering(messages.item(1)), ProtocolViolation, "it.m answered with ITEM, not with one result"),
        (answering(b"\xc1"), ProtocolViolation, "could not be decoded"),
        (answering(b"\x01"), ProtocolViolation, "an answer is no reply"),
        (answering(messages.result(5)[:1]), ProtocolViolation, "ended before its time"),
        (answering(), ProtocolViolation, "ended before its time"),
        (resetting(Reset.REFUSED), Busy, "it.m was refused: too many calls"),
        (resetting(Reset.FAILED, b"\xc1"), Cancelled, "it.m was ended by the other side: FAILED"),
        (resetting(77), Cancelled, "it.m was ended by the other side: 77"),
        (hang_up, LinkLost, "the link was lost during it.m: .*the exporter is stopping"),
    ],
)
async def test_a_peer_at_fault(side: str, answer: Answer, error: type[JmpError], said: str, tmp_path: Path) -> None:
    async with calling(side, tmp_path, answer) as caller:
        with pytest.raises(error, match=said) as raised:
            await caller.call("m")
        assert type(raised.value) is error


async def test_answers_of_another_kind(side: str, tmp_path: Path) -> None:
    async with it(side, tmp_path) as (_, caller):
        with pytest.raises(ProtocolViolation, match=r"it\.same answered with RESULT, not with items"):
            await anext(caller.items("same"))
        with pytest.raises(ProtocolViolation, match=r"it\.same answered with RESULT, not with a byte stream"):
            async with caller.open("same"):
                pass
        with pytest.raises(ProtocolViolation, match=r"it\.echo answered with READY, not with one result"):
            await caller.call("echo")


async def test_no_call_on_a_link_that_is_over(side: str, tmp_path: Path) -> None:
    async with calling(side, tmp_path, hang_up) as caller:
        for _ in range(2):
            with pytest.raises(LinkLost):
                await caller.call("m")


async def test_a_cancelled_caller_cancels_the_method(side: str, tmp_path: Path) -> None:
    callee = It()
    if side == "threads":
        # A thread is not cancelled; it can give its stream up from another one.
        async with calling(side, tmp_path, serve(callee.resolve)) as caller:
            async with caller.open("echo") as stream, trio.open_nursery() as nursery:

                async def wait_for_bytes() -> None:
                    with pytest.raises(Cancelled, match="this stream was closed here"):
                        await stream.receive_some()

                nursery.start_soon(wait_for_bytes)
                stream.stream.reset()  # type: ignore[attr-defined]  # that of threads has it
            await callee.given_up.wait()
        return
    async with connections(serve=serve(callee.resolve)) as (dialler, _), trio.open_nursery() as nursery:
        nursery.start_soon(Caller(dialler).call, "it", "wait", (), {})
        await callee.begun.wait()
        nursery.cancel_scope.cancel()
    assert callee.begun.is_set()
    await callee.given_up.wait()
