"""Connections to test streams and calls on: in memory, and over real WebSockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from jmp.link import Link, websocket
from jmp.link.memory import MemoryLink, memory_links
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import Role
from jmp.mux.stream import MuxStream, Serve
from tests.fakes.links import certificate, serving

KINDS = ("memory", "unix", "wss")


class Counting(Link):
    """A link that keeps the sizes of the messages it was given."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link
        self.peer = link.peer
        self.sizes: list[int] = []

    def send_nowait(self, parts: Sequence[bytes | memoryview]) -> bool:
        taken = self.link.send_nowait(parts)
        if taken:
            self.sizes.append(sum(map(len, parts)))
        return taken

    async def send(self, parts: Sequence[bytes | memoryview]) -> None:
        await self.link.send(parts)
        self.sizes.append(sum(map(len, parts)))

    async def receive(self) -> bytes:
        return await self.link.receive()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self.link.aclose(code, reason)

    def abort(self, reason: str) -> None:
        self.link.abort(reason)


@asynccontextmanager
async def linked(
    kind: str, directory: Path, handle: Callable[[Link, object], Awaitable[object]]
) -> AsyncIterator[Link]:
    """The dialling end of a link, whose other end ``handle`` has."""
    if kind == "memory":
        left, right = memory_links()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, right, None)
            yield left
            nursery.cancel_scope.cancel()
    else:
        async with serving(kind, directory, handle) as url:
            yield await websocket.connect(url, fingerprint=certificate().fingerprint if kind == "wss" else None)


@asynccontextmanager
async def connections(
    kind: str = "memory", directory: Path = Path(), *, serve: Serve | None = None
) -> AsyncIterator[tuple[Connection, Connection]]:
    """The dialler's and the listener's end; ``serve`` handles the streams that the dialler opens."""
    accepted, accept = trio.open_memory_channel[Connection](1)

    async def handle(link: Link, _: object) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve) as connection:
            await accepted.send(connection)
            await trio.sleep_forever()

    async with linked(kind, directory, handle) as link, multiplex(link, Role.DIALLER) as connection:
        yield connection, await accept.receive()


class Streams:
    """Pairs of streams on connections; entered with ``async with``. ``Streams(…).pair()`` gives (dialler's, listener's)."""

    def __init__(self, kind: str = "memory", directory: Path = Path()) -> None:
        self._opened, self._accept = trio.open_memory_channel[MuxStream](1000)
        self._context = connections(kind, directory, serve=self._opened.send)

    async def __aenter__(self) -> Streams:
        self.dialler, self.listener = await self._context.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return await self._context.__aexit__(*error)  # type: ignore[arg-type]  # as given

    async def pair(self) -> tuple[MuxStream, MuxStream]:
        near = self.dialler.open_stream()
        return near, await self._accept.receive()
