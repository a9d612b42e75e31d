"""What the benches use of jmp's exporter: drivers that answer at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from jmp.driver import Driver, Stream, export, exportstream
from tests.bench.payload import ORDER, Checked, blocks, read_order

NOISE = bytes(4096)
"""What a console says: bytes that are no key."""
NOISE_RATE = 1_000_000
"""Bytes a second."""


class BenchDevice(Driver):
    """Answers calls, sends items, and obeys the orders of :mod:`tests.bench.payload`."""

    @export
    async def echo(self, text: str) -> str:
        """The text."""
        return text

    @export
    def echo_blocking(self, text: str) -> str:
        """The text, from a plain method: it runs in a worker thread."""
        return text

    @export
    async def items(self, text: str, count: int) -> AsyncIterator[str]:
        """The text, many times."""
        for _ in range(count):
            yield text

    @exportstream
    async def connect(self, stream: Stream) -> None:
        data = await stream.receive_some()
        while len(data) < ORDER:
            data += await stream.receive_some()
        (what, size), rest = read_order(bytes(data[:ORDER])), data[ORDER:]
        if what == "d":
            for block in blocks(size):
                await stream.send_all(block)
        elif what == "u":
            checked = Checked(size)
            checked.feed(bytes(rest))
            while checked.left:
                checked.feed(bytes(await stream.receive_some()))
            await stream.send_all(b"+")
        else:
            if rest:
                await stream.send_all(rest)
            async for data in stream:
                await stream.send_all(data)


class BenchConsole(Driver):
    """A console that is never silent, and echoes every key at once."""

    @exportstream
    async def connect(self, stream: Stream) -> None:
        keys, pressed = trio.open_memory_channel[bytes](16)

        async def listen() -> None:
            async with keys:
                async for data in stream:
                    await keys.send(bytes(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            due = trio.current_time()
            while True:
                key = None
                try:
                    with trio.move_on_at(due):
                        try:
                            key = pressed.receive_nowait()  # also when it is behind with its noise
                        except trio.WouldBlock:
                            key = await pressed.receive()
                except trio.EndOfChannel:
                    break
                if key is None:  # what it could not say in time is not made up for
                    due = max(due, trio.current_time() - 0.1) + len(NOISE) / NOISE_RATE
                await stream.send_all(key or NOISE)
