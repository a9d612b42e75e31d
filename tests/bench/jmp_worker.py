"""jmp's clients at work on the bench devices, over whatever link they are told to use."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from jmp.client.connect import Dial, open_blocking, open_trio
from jmp.client.lab import open_lab
from tests.bench.payload import MIB, TEXT, Checked, blocks, order, write_image
from tests.bench.target import used
from tests.bench.worker import Figures, Measurement, Span, answer, p50, rate, repeated, repeated_async

ABREAST = 100


class Client:
    """Measures at the exporter that ``dial`` leads to; it is asked anew for each connection."""

    def __init__(self, dial: Callable[[], Dial], folder: Path) -> None:
        self._dial = dial
        self._folder = folder

    def measurements(self) -> dict[str, Measurement]:
        asynchronous = {
            "call-async": self.call,
            "call-100": self.call_abreast,
            "call-thread": self.call_thread,
            "items-async": self.items,
            "bytes": self.bytes,
            "open": self.open,
        }
        return {
            **{name: _run(measure) for name, measure in asynchronous.items()},
            "call-sync": self.call_sync,
            "items-sync": self.items_sync,
            "forward": self.forward,
            "flash": self.flash,
        }

    @asynccontextmanager
    async def _trio(self) -> AsyncIterator[Any]:
        async with open_trio(await trio.to_thread.run_sync(self._dial), wait=None) as device:
            yield device

    @contextmanager
    def _blocking(self) -> Iterator[Any]:
        with open_blocking(self._dial(), wait=None) as device:
            yield device

    # ---- calls

    async def call(self, span: Span) -> Figures:
        async with self._trio() as dut:
            taken = await repeated_async(lambda: _echo(dut.device.echo), span)
        return {"rate": rate(taken), "p50": p50(taken)}

    async def call_thread(self, span: Span) -> Figures:
        async with self._trio() as dut:
            return {"rate": rate(await repeated_async(lambda: _echo(dut.device.echo_blocking), span))}

    async def call_abreast(self, span: Span) -> Figures:
        async with self._trio() as dut:

            async def all_at_once() -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(ABREAST):
                        nursery.start_soon(_echo, dut.device.echo)

            return {"rate": ABREAST * rate(await repeated_async(all_at_once, span))}

    def call_sync(self, span: Span) -> Figures:
        with self._blocking() as dut:

            def call() -> None:
                if dut.device.echo(TEXT) != TEXT:
                    raise ValueError("another text came back")

            taken = repeated(call, span)
        return {"rate": rate(taken), "p50": p50(taken)}

    # ---- items

    async def items(self, span: Span) -> Figures:
        count = span.size(300_000, 100)
        async with self._trio() as dut:
            async for _ in dut.device.items(TEXT, span.size(1000, 10)):
                pass
            began = time.perf_counter()
            got = 0
            async for item in dut.device.items(TEXT, count):
                got += item == TEXT
            seconds = time.perf_counter() - began
        return {"rate": _all(got, count) / seconds}

    def items_sync(self, span: Span) -> Figures:
        count = span.size(300_000, 100)
        with self._blocking() as dut:
            for _ in dut.device.items(TEXT, span.size(1000, 10)):
                pass
            began = time.perf_counter()
            got = sum(item == TEXT for item in dut.device.items(TEXT, count))
            seconds = time.perf_counter() - began
        return {"rate": _all(got, count) / seconds}

    # ---- bytes

    async def bytes(self, span: Span) -> Figures:
        size = span.size(256 * MIB, MIB)
        async with self._trio() as dut:
            for warm in (True, False):
                some = MIB if warm else size
                async with dut.device.connect() as stream:
                    await stream.send_all(order("u", some))
                    began = time.perf_counter()
                    for block in blocks(some):
                        await stream.send_all(block)
                    await stream.receive_some()
                    up = some / (time.perf_counter() - began) / 1e6
                async with dut.device.connect() as stream:
                    await stream.send_all(order("d", some))
                    began = time.perf_counter()
                    checked = Checked(some)
                    while checked.left:
                        checked.feed(await stream.receive_some())
                    down = some / (time.perf_counter() - began) / 1e6
        return {"up": up, "down": down}

    async def open(self, span: Span) -> Figures:
        async with self._trio() as dut:

            async def once() -> None:
                async with dut.device.connect() as stream:
                    await stream.send_all(order("e") + b"x")
                    if await stream.receive_some() != b"x":
                        raise ValueError("another byte came back")

            return {"rate": rate(await repeated_async(once, span))}

    def forward(self, span: Span) -> Figures:
        with self._blocking() as dut, dut.port.forward() as bound:
            return used(bound.port, span)

    def flash(self, span: Span) -> Figures:
        size = span.size(128 * MIB, MIB)
        image, copy = self._folder / "image", self._folder / "copy"
        write_image(image, size)
        with self._blocking() as dut:
            began = time.perf_counter()
            dut.disk.flash(image)
            flash = size / (time.perf_counter() - began) / 1e6
            began = time.perf_counter()
            dut.disk.dump(copy, size=size)
            dump = size / (time.perf_counter() - began) / 1e6
        if copy.read_bytes() != image.read_bytes():
            raise ValueError("other bytes were read back than were written")
        return {"flash": flash, "dump": dump}


async def _echo(method: Callable[[str], Awaitable[str]]) -> None:
    if await method(TEXT) != TEXT:
        raise ValueError("another text came back")


def _all(got: int, count: int) -> int:
    if got != count:
        raise ValueError(f"{got} items of {count} came")
    return got


def _run(measure: Callable[[Span], Awaitable[Figures]]) -> Measurement:
    return lambda span: trio.run(measure, span)


def by_router(lease: str) -> Dial:
    """The way to a leased device through the lab's router, which is where the controller is."""
    from jmp.client.config import current

    config = current()
    with open_lab(config) as lab:
        answer = lab.meet(lease, None, "router")
    (endpoint,) = answer["endpoints"]
    return Dial(
        endpoint.get("url") or config.endpoint, answer["token"], endpoint.get("fingerprint"), config.tls.ca, True
    )


def main(way: str, folder: Path) -> None:
    dial = (lambda: Dial(way)) if ":" in way else (lambda: by_router(way))
    answer(Client(dial, folder).measurements(), ready=os.getpid())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
