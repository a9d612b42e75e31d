"""The two callers, of Trio and of threads, behind one face, so that one test suite holds for both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from jmp.driver.proxy import run
from jmp.errors import Timeout
from jmp.link import blocking as links
from jmp.mux.blocking import BlockingConnection
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.mux.stream import Serve
from jmp.rpc import blocking
from jmp.rpc.blocking import BlockingByteStream, BlockingCaller
from jmp.rpc.call import ByteStream, Caller
from tests.fakes.connections import connections
from tests.fakes.links import serving

T = TypeVar("T")
SIDES = ("trio", "threads")


class Bytes(ABC):
    """A byte stream of a method."""

    @abstractmethod
    async def wait_opened(self) -> None: ...
    @abstractmethod
    async def send_all(self, data: bytes) -> None: ...
    @abstractmethod
    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...
    @abstractmethod
    async def send_eof(self) -> None: ...
    @abstractmethod
    async def aclose(self) -> None: ...


class Side(ABC):
    """A caller of the methods of target ``it``."""

    @abstractmethod
    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    @abstractmethod
    def items(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]: ...
    @abstractmethod
    def open(
        self, method: str, *args: Any, ahead: bool = False, **kwargs: Any
    ) -> AbstractAsyncContextManager[Bytes]: ...
    @abstractmethod
    def fail_after(self, seconds: float) -> Any:
        """A context manager; :class:`~jmp.errors.Timeout` is raised past the deadline."""


class TrioSide(Side):
    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self.caller.call("it", method, args, kwargs)

    def items(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return self.caller.items("it", method, args, kwargs)

    @asynccontextmanager
    async def open(self, method: str, *args: Any, ahead: bool = False, **kwargs: Any) -> AsyncIterator[Bytes]:
        async with self.caller.open("it", method, args, kwargs, ahead=ahead) as stream:
            yield Bytes.register(ByteStream) and stream  # type: ignore[misc]  # it is one

    @contextmanager
    def fail_after(self, seconds: float) -> Iterator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError as error:
            raise Timeout("the caller's own") from error


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run in a thread, which is left behind by a test that takes too long."""
    return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


class ThreadBytes(Bytes):
    def __init__(self, stream: BlockingByteStream) -> None:
        self.stream = stream

    async def wait_opened(self) -> None:
        await in_thread(lambda: run(self.stream.wait_opened()))

    async def send_all(self, data: bytes) -> None:
        await in_thread(lambda: run(self.stream.send_all(data)))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await in_thread(lambda: run(self.stream.receive_some(max_bytes)))

    async def send_eof(self) -> None:
        await in_thread(lambda: run(self.stream.send_eof()))

    async def aclose(self) -> None:
        await in_thread(lambda: run(self.stream.aclose()))


class ThreadSide(Side):
    def __init__(self, caller: BlockingCaller) -> None:
        self.caller = caller

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await in_thread(lambda: run(self.caller.call("it", method, args, kwargs)))

    async def items(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(self.caller.items("it", method, args, kwargs)) as items:
            while True:
                try:
                    item = await in_thread(lambda: run(items.__anext__()))
                except StopAsyncIteration:
                    return
                yield item

    @asynccontextmanager
    async def open(self, method: str, *args: Any, ahead: bool = False, **kwargs: Any) -> AsyncIterator[Bytes]:
        context = self.caller.open("it", method, args, kwargs, ahead=ahead)
        stream = await in_thread(lambda: run(context.__aenter__()))
        try:
            yield ThreadBytes(stream)
        except BaseException as error:
            run(context.__aexit__(type(error), error, error.__traceback__))
            raise
        await in_thread(lambda: run(context.__aexit__(None, None, None)))

    def fail_after(self, seconds: float) -> Any:
        return blocking.fail_after(seconds)


@asynccontextmanager
async def calling(side: str, directory: Path, serve: Serve) -> AsyncIterator[Side]:
    """A caller, whose streams ``serve`` answers: in memory for Trio, over a socket for threads."""
    if side == "trio":
        async with connections(serve=serve) as (dialler, _):
            yield TrioSide(Caller(dialler))
        return

    async def handle(link: Any, _: object) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve) as connection:
            await connection.wait_over()

    async with serving("unix", directory, handle) as url:
        connection = BlockingConnection(await in_thread(links.connect, url))
        try:
            yield ThreadSide(BlockingCaller(connection))
        finally:
            with trio.CancelScope(shield=True):
                await in_thread(connection.close)
