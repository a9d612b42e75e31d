"""A device's console or screen in the browser, for the time of a block."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from jmp.client.adapters.forward import Forward, Open, TaskForward, ThreadForward
from jmp.client.adapters.listen import Bound, listening, parse
from jmp.driver.proxy import Backend
from jmp.errors import JmpError, UsageError

if TYPE_CHECKING:
    from jmp.client.web.server import Page, Server

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class At:
    """Where the page is; as text, its address."""

    url: str

    def __str__(self) -> str:
        return self.url


class Web(Forward):
    """A page for the block: ``with dut.console.web() as page: open(page.url)``, ``async with`` under Trio.

    ``ways``: how the page may open its stream, "" as the user has asked for it.
    """

    def __init__(
        self, backend: Backend, path: str, page: Page, ways: Mapping[str, Open], listen: str, browser: bool
    ) -> None:
        if parse(listen).host not in _LOOPBACK:
            raise UsageError(
                f"cannot serve a page at {listen}: only this machine may reach it; write PORT, or 127.0.0.1:PORT"
            )
        common = _Common(page, ways, listen, browser)
        super().__init__(backend, path, _ByThreads(common), _ByTasks(common))

    def describe(self, bound: Any) -> str:
        return f"{bound} is {self._path}; Ctrl-C ends it"


@dataclass
class _Common:
    page: Page
    ways: Mapping[str, Open]
    listen: str
    browser: bool
    errors: dict[object, JmpError] = field(default_factory=dict)
    """What has ended connections, by the address of the server's end of each."""

    def told(self, peer: object, error: JmpError) -> None:
        self.errors[peer] = error

    def server(self, bound: Bound, folder: str) -> Server:
        from jmp.client.web.server import Server

        ports = {way: f"{folder}/{way or 'stream'}" for way in self.ways}
        return Server(self.page, bound, ports, lambda peer: self.errors.pop(peer, None))

    def show(self, server: Server) -> At:
        if self.browser:
            import webbrowser

            webbrowser.open(server.url)
        return At(server.url)


class _ByThreads:
    """The server has a thread, and Trio, of its own."""

    def __init__(self, common: _Common) -> None:
        self._common = common

    @contextmanager
    def running(self) -> Iterator[At]:
        common = self._common
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jmp-web-"))
            for way, open_stream in common.ways.items():
                forward = ThreadForward(open_stream, f"unix:{folder}/{way or 'stream'}", told=common.told)
                stack.enter_context(forward.running())
            sock, bound = stack.enter_context(listening(common.listen))
            server = common.server(bound, folder)
            stack.enter_context(_in_thread(server, sock))
            yield common.show(server)


@contextmanager
def _in_thread(server: Server, sock: socket.socket) -> Iterator[None]:
    import trio

    started: SimpleQueue[Callable[[], None]] = SimpleQueue()

    async def main() -> None:
        with trio.CancelScope() as scope:
            token = trio.lowlevel.current_trio_token()
            started.put(partial(token.run_sync_soon, scope.cancel))
            await server.serve(sock.dup())

    thread = threading.Thread(target=trio.run, args=(main,), name="jmp-web", daemon=True)
    thread.start()
    end = started.get()
    try:
        yield
    finally:
        end()
        thread.join()


class _ByTasks:
    def __init__(self, common: _Common) -> None:
        self._common = common

    @asynccontextmanager
    async def running(self) -> AsyncIterator[At]:
        import trio

        common = self._common
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jmp-web-"))
            for way, open_stream in common.ways.items():
                forward = TaskForward(open_stream, f"unix:{folder}/{way or 'stream'}", told=common.told)
                await stack.enter_async_context(forward.running())
            sock, bound = await trio.to_thread.run_sync(stack.enter_context, listening(common.listen))
            async with trio.open_nursery() as nursery:
                server = common.server(bound, folder)
                nursery.start_soon(server.serve, sock.dup())
                yield common.show(server)
                nursery.cancel_scope.cancel()
