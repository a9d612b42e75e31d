"""``serve``: a driver in this process, behind the real wire, for its tests."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import trio

from jmp.driver.driver import Driver
from jmp.driver.proxy import Blocking, ClientClass, DriverClient, build, read_report
from jmp.driver.tree import Node, Tree
from jmp.link import Link, websocket
from jmp.link.blocking import connect
from jmp.link.memory import memory_links
from jmp.mux.blocking import BlockingConnection
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.blocking import BlockingCaller
from jmp.rpc.call import Caller
from jmp.rpc.messages import Request
from jmp.rpc.serve import Method
from jmp.rpc.serve import serve as serve_calls


class serve:  # used like a function
    """Serve ``driver`` and yield its client: ``with serve(MyDriver()) as client`` blocks, ``async with`` is for Trio.

    The driver is open, or degraded, when the block is entered, and closed when it has been left. ``class_of`` an interface id
    is the client class to use instead of the generic one.
    """

    def __init__(
        self, driver: Driver, *, class_of: Callable[[str], ClientClass | None] = lambda interface: None
    ) -> None:
        self._tree = Tree(Node.of(driver))
        self._class_of = class_of
        self._stack = ExitStack()
        self._async_stack = AsyncExitStack()

    async def __aenter__(self) -> Any:
        client = self._client()
        return await self._async_stack.enter_async_context(client)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._async_stack.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[DriverClient]:
        async with self._tree.running():
            here, there = memory_links()
            async with (
                multiplex(there, Role.LISTENER, serve=serve_calls(self._resolve)),
                multiplex(here, Role.DIALLER) as connection,
            ):
                yield build(Caller(connection), read_report(self._tree.report()), self._class_of)

    def __enter__(self) -> Any:
        directory = self._stack.enter_context(TemporaryDirectory(prefix="jmp-"))
        url = f"unix:{Path(directory) / 'driver.sock'}"
        ready: SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.CancelScope] | BaseException] = SimpleQueue()
        thread = threading.Thread(target=self._run, args=(url, ready), name="jmp-serve")
        thread.start()
        self._stack.callback(thread.join)
        started = ready.get()
        if isinstance(started, BaseException):
            self._stack.close()
            raise started
        token, scope = started
        self._stack.callback(lambda: token.run_sync_soon(scope.cancel))
        connection = BlockingConnection(connect(url))
        self._stack.callback(connection.close)
        return Blocking(build(BlockingCaller(connection), read_report(self._tree.report()), self._class_of))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _run(self, url: str, ready: SimpleQueue[Any]) -> None:
        try:
            trio.run(self._serve, url, ready)
        except BaseException as error:  # noqa: BLE001  # the thread's root: the waiting test gets it
            ready.put(error)

    async def _serve(self, url: str, ready: SimpleQueue[Any]) -> None:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await sock.bind(url.removeprefix("unix:"))
        sock.listen()
        with trio.CancelScope() as scope:
            async with self._tree.running():
                ready.put((trio.lowlevel.current_trio_token(), scope))
                await websocket.serve([trio.SocketListener(sock)], _anybody, self._serve_link)

    async def _serve_link(self, link: Link, _: object) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve_calls(self._resolve)) as connection:
            await connection.wait_over()

    def _resolve(self, request: Request) -> Method:
        return self._tree.method(request.target, request.method, request.args, request.kwargs)


async def _anybody(_: websocket.UpgradeRequest) -> None:
    return None
