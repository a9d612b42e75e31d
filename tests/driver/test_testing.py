"""``serve``: a driver in-process behind the real wire, for threads and for Trio."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import field
from datetime import timedelta
from typing import Any, Literal

import pytest
import trio
import trio.testing

from jmp.driver import BadValue, DeviceError, Driver, DriverClient, Stream, export, exportstream, serve
from jmp.driver.tree import ThreadStream
from jmp.errors import DriverError, NotFound


class Child(Driver):
    @export
    async def name(self) -> str:
        return "child"


class Board(Driver):
    """A board with everything."""

    interface = "x.board/v1"
    speed: int = 1
    _journal: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.children["first-child"] = Child()

    def open(self) -> None:
        if self.speed < 0:
            raise DeviceError("no board: plug it in")
        self._journal.append("open")

    async def close(self) -> None:
        self._journal.append("close")

    @export
    def add(self, a: int, b: int = 1, *, mode: Literal["fast", "slow"] = "fast") -> Any:
        """Adds them."""
        return a + b, mode, timedelta(seconds=self.speed)

    @export
    async def readings(self, count: int) -> AsyncIterator[float]:
        for number in range(count):
            yield number / 2

    @export
    def plain_readings(self, count: int) -> Iterator[int]:
        yield from range(count)

    @export
    def bug(self) -> None:
        raise KeyError("what")

    @exportstream
    async def echo(self, stream: Stream, greeting: str = "", *, twice: bool = False) -> None:
        await stream.send_all(greeting.encode() * (1 + twice))
        async for data in stream:
            await stream.send_all(data)

    @exportstream
    def plain_echo(self, stream: ThreadStream, greeting: str = "") -> None:
        stream.send_all(greeting.encode())
        for data in stream:
            stream.send_all(bytes(data))


def read_all(stream: Any) -> bytes:
    return b"".join(iter(stream.receive_some, b""))


def test_for_threads() -> None:
    board = Board(speed=7)
    with serve(board) as client:
        assert client.add(2) == (3, "fast", timedelta(seconds=7))
        assert client.add(b=2, a=2, mode="slow")[:2] == (4, "slow")
        assert list(client.readings(3)) == [0, 0.5, 1]
        assert list(client.plain_readings(3)) == [0, 1, 2]
        assert client.first_child.name() == "child"
        for echo in (client.echo, client.plain_echo):
            with echo("hi, ") as stream:
                stream.send_all(b"you")
                stream.send_eof()
                assert read_all(stream) == b"hi, you"
        with client.echo("ab", twice=True) as stream:
            assert stream.receive_some(4) == b"abab"
        assert board._journal == ["open"]
    assert board._journal == ["open", "close"]


async def test_for_trio() -> None:
    board = Board()
    with trio.fail_after(60):
        await use_under_trio(board)
    assert board._journal == ["open", "close"]


async def use_under_trio(board: Board) -> None:
    async with serve(board) as client:
        assert (await client.add(2))[0] == 3
        assert [item async for item in client.readings(3)] == [0, 0.5, 1]
        assert await client.first_child.name() == "child"
        async with client.plain_echo(greeting="hi, ") as stream:
            await stream.send_all(b"you")
            await stream.send_eof()
            assert b"".join([piece async for piece in stream]) == b"hi, you"
        assert board._journal == ["open"]


def test_errors_are_those_that_a_client_gets() -> None:
    with serve(Board()) as client:
        with pytest.raises(BadValue, match="argument 'a': expected int, got"):
            client.add("two")
        with pytest.raises(BadValue, match="missing argument 'a'"):
            client.add()
        with pytest.raises(DriverError, match="KeyError: 'what'") as raised:
            client.bug()
        assert "in bug" in (raised.value.remote_traceback or "")
        with pytest.raises(AttributeError, match="did you mean 'add'"):
            client.ad()


def test_a_degraded_driver_can_be_asked_why() -> None:
    board = Board(speed=-1)
    with serve(board) as client, pytest.raises(DeviceError, match="the driver is degraded: no board: plug it in"):
        client.add(1)
    assert board._journal == []


def test_a_client_class_of_ones_own() -> None:
    class BoardClient(DriverClient):
        async def double(self, value: int) -> int:
            total: int = (await self._backend.call(self._node.path, "add", (value, value), {}))[0]
            return total

    with serve(Board(), class_of={"x.board/v1": BoardClient}.get) as client:
        assert client.double(4) == 8
        assert client.first_child.name() == "child"


def test_what_the_test_raises_comes_out_and_the_driver_is_closed() -> None:
    board = Board()

    def use() -> None:
        with serve(board) as client:
            client.add(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert board._journal == ["open", "close"]
    assert not [thread for thread in threading.enumerate() if thread.name == "jmp-serve"]


async def test_under_trio_it_comes_out_as_it_was_raised() -> None:
    board = Board()

    async def use() -> None:
        async with serve(board) as client:
            await client.add(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert board._journal == ["open", "close"]


async def test_for_trio_cancelled() -> None:
    board = Board()
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with serve(board):
            scope.cancel()
            await trio.sleep_forever()
    assert board._journal == ["open", "close"]


def test_threads_share_a_client() -> None:
    with serve(Board()) as client:
        sums: list[int] = []
        threads = [threading.Thread(target=lambda: sums.append(client.add(1)[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == 8 * [2]


def test_a_method_that_is_gone_is_not_found() -> None:
    """A client made from an old report."""
    with serve(Board()) as client:
        method = client.add
        method._wrapped.__name__ = "ad"
        with pytest.raises(NotFound, match="has no method 'ad'"):
            method(1)
