"""Jumpstarter's clients at work: the same as jmp_worker does. Run by the Python of its environment."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from jumpstarter.client import client_from_path
from jumpstarter.common import ExporterStatus
from jumpstarter.exporter import Session
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_network.adapters import TcpPortforwardAdapter
from jumpstarter_driver_network.driver import TcpNetwork
from jumpstarter_driver_opendal.driver import Opendal

from tests.bench.payload import MIB, TEXT, Checked, blocks, order, write_image
from tests.bench.target import used
from tests.bench.worker import Figures, Measurement, Span, answer, p50, rate, repeated, repeated_async

ABREAST = 100


async def serve(folder: Path, port: int) -> None:
    """Be an exporter; print where."""
    from tests.bench.jumpstarter_device import BenchDevice

    children = {
        "device": BenchDevice(),
        "port": TcpNetwork(host="127.0.0.1", port=port),
        "disk": Opendal(scheme="fs", kwargs={"root": str(folder)}),
    }
    with Session(root_device=Composite(children=children)) as session:
        async with session.serve_unix_async() as path:
            session.update_status(ExporterStatus.LEASE_READY)
            print(path, flush=True)
            await anyio.sleep_forever()


class Client:
    """Measures at the exporter that answers at ``path``."""

    def __init__(self, path: str, folder: Path) -> None:
        self._path = path
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
    async def _asynchronous(self) -> AsyncIterator[Any]:
        async with BlockingPortal() as portal:
            with ExitStack() as stack:
                async with client_from_path(self._path, portal, stack, allow=[], unsafe=True) as client:
                    yield client

    @contextmanager
    def _blocking(self) -> Iterator[Any]:
        with start_blocking_portal() as portal, ExitStack() as stack:
            opening = client_from_path(self._path, portal, stack, allow=[], unsafe=True)
            with portal.wrap_async_context_manager(opening) as client:
                yield client

    async def call(self, span: Span) -> Figures:
        async with self._asynchronous() as dut:
            taken = await repeated_async(partial(_echo, dut.device, "echo"), span)
        return {"rate": rate(taken), "p50": p50(taken)}

    async def call_thread(self, span: Span) -> Figures:
        async with self._asynchronous() as dut:
            return {"rate": rate(await repeated_async(partial(_echo, dut.device, "echo_blocking"), span))}

    async def call_abreast(self, span: Span) -> Figures:
        async with self._asynchronous() as dut:

            async def all_at_once() -> None:
                async with anyio.create_task_group() as group:
                    for _ in range(ABREAST):
                        group.start_soon(_echo, dut.device, "echo")

            return {"rate": ABREAST * rate(await repeated_async(all_at_once, span))}

    def call_sync(self, span: Span) -> Figures:
        with self._blocking() as dut:

            def call() -> None:
                if dut.device.call("echo", TEXT) != TEXT:
                    raise ValueError("another text came back")

            taken = repeated(call, span)
        return {"rate": rate(taken), "p50": p50(taken)}

    async def items(self, span: Span) -> Figures:
        count = span.size(3000, 100)
        async with self._asynchronous() as dut:
            async for _ in dut.device.streamingcall_async("items", TEXT, span.size(500, 10)):
                pass
            began = time.perf_counter()
            got = 0
            async for item in dut.device.streamingcall_async("items", TEXT, count):
                got += item == TEXT
            seconds = time.perf_counter() - began
        return {"rate": _all(got, count) / seconds}

    def items_sync(self, span: Span) -> Figures:
        count = span.size(2000, 100)
        with self._blocking() as dut:
            for _ in dut.device.streamingcall("items", TEXT, span.size(300, 10)):
                pass
            began = time.perf_counter()
            got = sum(item == TEXT for item in dut.device.streamingcall("items", TEXT, count))
            seconds = time.perf_counter() - began
        return {"rate": _all(got, count) / seconds}

    async def bytes(self, span: Span) -> Figures:
        size = span.size(128 * MIB, MIB)
        async with self._asynchronous() as dut:
            for warm in (True, False):
                some = MIB if warm else size
                async with dut.device.stream_async("connect") as stream:
                    await stream.send(order("u", some))
                    began = time.perf_counter()
                    for block in blocks(some):
                        await stream.send(block)
                    await stream.receive()
                    up = some / (time.perf_counter() - began) / 1e6
                async with dut.device.stream_async("connect") as stream:
                    await stream.send(order("d", some))
                    began = time.perf_counter()
                    checked = Checked(some)
                    while checked.left:
                        checked.feed(await stream.receive())
                    down = some / (time.perf_counter() - began) / 1e6
        return {"up": up, "down": down}

    async def open(self, span: Span) -> Figures:
        async with self._asynchronous() as dut:

            async def once() -> None:
                async with dut.device.stream_async("connect") as stream:
                    await stream.send(order("e") + b"x")
                    if await stream.receive() != b"x":
                        raise ValueError("another byte came back")

            return {"rate": rate(await repeated_async(once, span))}

    def forward(self, span: Span) -> Figures:
        with self._blocking() as dut, TcpPortforwardAdapter(client=dut.port) as (_, port):
            return used(port, span)

    def flash(self, span: Span) -> Figures:
        size = span.size(128 * MIB, MIB)
        image, copy = self._folder / "image", self._folder / "copy"
        write_image(image, size)
        with self._blocking() as dut:
            began = time.perf_counter()
            dut.disk.write_from_path("disk", str(image))
            self._same(dut, image)
            flash = size / (time.perf_counter() - began) / 1e6
            began = time.perf_counter()
            dut.disk.read_into_path("disk", str(copy))
            self._same(dut, copy)
            dump = size / (time.perf_counter() - began) / 1e6
        if copy.read_bytes() != image.read_bytes():
            raise ValueError("other bytes were read back than were written")
        return {"flash": flash, "dump": dump}

    def _same(self, dut: Any, path: Path) -> None:
        """Compare checksums, as jmp does in these operations."""
        with path.open("rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
        if dut.disk.hash("disk") != here:
            raise ValueError("the medium holds something else")


async def _echo(device: Any, method: str) -> None:
    if await device.call_async(method, TEXT) != TEXT:
        raise ValueError("another text came back")


def _all(got: int, count: int) -> int:
    if got != count:
        raise ValueError(f"{got} items of {count} came")
    return got


def _run(measure: Callable[[Span], Awaitable[Figures]]) -> Measurement:
    return lambda span: anyio.run(measure, span)


def main() -> None:
    match sys.argv[1:]:
        case ["serve", folder, port]:
            anyio.run(serve, Path(folder), int(port))
        case [path, folder]:
            answer(Client(path, Path(folder)).measurements())


if __name__ == "__main__":
    main()
