"""What the benches use of Jumpstarter's exporter: the same as devices.py. Run by the Python of its environment."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.streams.stapled import StapledObjectStream
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter.streams.common import create_memory_stream

from tests.bench.payload import ORDER, Checked, blocks, read_order

Stream = StapledObjectStream[bytes]


class BenchDevice(Driver):
    """Answers calls, sends items, and obeys the orders of the payload module."""

    @classmethod
    def client(cls) -> str:
        return "jumpstarter.client.DriverClient"

    @export
    async def echo(self, text: str) -> str:
        return text

    @export
    def echo_blocking(self, text: str) -> str:
        return text

    @export
    async def items(self, text: str, count: float) -> AsyncGenerator[str, None]:
        for _ in range(int(count)):
            yield text

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Stream]:
        near, far = create_memory_stream()
        async with anyio.create_task_group() as group:
            group.start_soon(_obey, near)
            try:
                yield far
            finally:
                group.cancel_scope.cancel()


async def _obey(stream: Stream) -> None:
    async with stream:
        data = await stream.receive()
        while len(data) < ORDER:
            data += await stream.receive()
        (what, size), rest = read_order(data[:ORDER]), data[ORDER:]
        if what == "d":
            for block in blocks(size):
                await stream.send(block)
        elif what == "u":
            checked = Checked(size)
            checked.feed(rest)
            while checked.left:
                checked.feed(await stream.receive())
            await stream.send(b"+")
        else:
            if rest:
                await stream.send(rest)
            async for data in stream:
                await stream.send(data)
