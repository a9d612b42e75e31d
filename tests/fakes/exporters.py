"""An exporter of one's own, with a device that tells what is done with it."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import trio

from jmp.driver import DeviceError, Driver, Stream, export, exportstream
from jmp.errors import JmpError
from jmp.exporter import config as configuration
from jmp.exporter import serve
from jmp.exporter.config import ExporterConfig
from jmp.link import websocket
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller


class Lamp(Driver):
    """A lamp."""

    journal: ClassVar[list[str]] = []
    """What was done with all lamps."""
    lit: bool = False
    counted: int = 0

    def open(self) -> None:
        self.journal.append("open")

    async def close(self) -> None:
        self.journal.append("close")

    async def reset(self) -> None:
        self.lit = False

    @export
    async def on(self) -> None:
        """Light it."""
        self.lit = True

    @export
    async def state(self) -> bool:
        """Whether it is lit."""
        return self.lit

    @export
    async def count(self) -> int:
        """How often this was called."""
        self.counted += 1
        return self.counted

    @export
    async def unplug(self, reason: str) -> None:
        """Pull the plug."""
        self.lost(reason)
        await trio.sleep_forever()

    @export
    async def wait(self) -> None:
        """Never return."""
        await trio.sleep_forever()

    @exportstream
    async def echo(self, stream: Stream) -> None:
        """Send back what comes."""
        async for data in stream:
            await stream.send_all(data)


class Broken(Driver):
    """A device that is not there."""

    async def open(self) -> None:
        raise DeviceError("there is no such device: plug it in")


DRIVERS: dict[str, type[Driver]] = {"lamp": Lamp, "broken": Broken}


def bench(directory: Path, more: str = "", *, export: str = "lamp: {type: lamp}") -> ExporterConfig:
    """The configuration of an exporter called bench; ``more`` is added to it."""
    path = directory / "bench.yaml"
    head = "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: bench, labels: {board: lamp}}\n"
    path.write_text(f"{head}export:\n  {export}\n{textwrap.dedent(more)}")
    return configuration.load(path, DRIVERS)


@asynccontextmanager
async def exporting(
    directory: Path, config: ExporterConfig, address: str = "", **options: Any
) -> AsyncIterator[tuple[str, serve.Exporter]]:
    """Serve it at a Unix socket, or at ``address``; its URL and itself. It stops at the end of the block."""
    address = address or f"unix:{directory / 'exporter.sock'}"
    listeners = await serve.listen(address)
    local = address.startswith("unix:")
    where = serve.address_of(listeners[0])
    url = where if local else f"{'wss' if options.get('tls') else 'ws'}://{where}"

    async def run(task_status: trio.TaskStatus[serve.Exporter]) -> None:
        sides = (listeners, []) if local else ([], listeners)
        await serve.serve_exporter(config, *sides, task_status=task_status, **options)

    async with trio.open_nursery() as nursery:
        exporter = await nursery.start(run)
        yield url, exporter
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[tuple[Connection, Caller]]:
    """A client's connection, without a session."""
    link = await websocket.connect(url, **options)
    async with multiplex(link, Role.DIALLER) as connection:
        yield connection, Caller(connection)


async def begin(caller: Caller, who: str, wait: float | None = 0.0) -> dict[str, Any]:
    """Begin a session; the report."""
    report: dict[str, Any] = await caller.call("@session", "begin", (), {"who": who, "wait": wait})
    return report


async def lamp(caller: Caller, method: str, *args: object) -> Any:
    """Call a method of the lamp."""
    return await caller.call("lamp", method, args, {})


def only(error: BaseException) -> JmpError:
    """The one error in a group."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, JmpError)
    return error
