"""The driver: what clients see of the virtual board."""

from __future__ import annotations

import math
import re
import time
from dataclasses import field
from pathlib import Path

import trio

from jmp.driver import ConfigError, Stream, export, exportstream
from jmp.driver.interfaces import Console, Network, Power, PowerState
from jmp_drivers.console import ConsoleOptions
from jmp_drivers.virtual_board import web
from jmp_drivers.virtual_board.board import Board
from jmp_drivers.virtual_board.card import Card
from jmp_drivers.virtual_board.machine import Machine
from jmp_drivers.virtual_board.system import System


class BoardPower(Power):
    """Power supply of the virtual board."""

    _machine: Machine

    @export
    async def on(self) -> None:
        self._machine.power(True)

    @export
    async def off(self) -> None:
        self._machine.power(False)

    @export
    async def state(self) -> PowerState:
        return "on" if self._machine.is_on else "off"


class BoardConsole(Console):
    """Serial console of the virtual board."""

    _machine: Machine

    @exportstream
    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        await self._machine.hub.serve(stream, self._machine.type, replay=replay, write=write, take_over=take_over)

    @export
    async def history(self) -> bytes:
        return self._machine.hub.history()

    @export
    async def send(self, data: bytes) -> None:
        await self._machine.type(data)


class BoardHttp(Network):
    """HTTP port of the virtual board: / tells its hostname, uptime and image."""

    _machine: Machine
    _system: System

    @exportstream
    async def connect(self, stream: Stream) -> None:
        with self._machine.connection():
            received = bytearray()
            while not web.complete(received):
                data = await stream.receive_some()
                if not data:
                    break
                received += data
            if received:
                self._system.now = trio.current_time()
                await stream.send_all(web.respond(received, self._system))

    @export
    async def address(self) -> str:
        return f"{self._system.hostname}:80"


class BoardEcho(Network):
    """Echo port of the virtual board: sends back what it gets."""

    _machine: Machine
    _system: System

    @exportstream
    async def connect(self, stream: Stream) -> None:
        with self._machine.connection():
            async for data in stream:
                await stream.send_all(data)

    @export
    async def address(self) -> str:
        return f"{self._system.hostname}:7"


class VirtualBoard(ConsoleOptions):
    """A simulated Linux board: power, console, storage and network, without any hardware."""

    hostname: str = "virtual"
    password: str = field(default="", metadata={"doc": "root's password; empty: none is asked for"})
    boot_time: float = field(default=2.0, metadata={"doc": "seconds from power-on to the login prompt"})
    baud: int | None = field(
        default=None, metadata={"doc": "speed of the console in bits per second; fast if not given"}
    )
    size: int = field(default=64 * 1024 * 1024, metadata={"doc": "bytes of the SD card"})
    image: Path | None = field(
        default=None, metadata={"doc": "file that holds the card's content; a fresh card each session if not given"}
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", self.hostname):
            raise ConfigError(f"hostname must be letters, digits and inner hyphens, at most 63, not {self.hostname!r}")
        if not 0 <= self.boot_time < math.inf:
            raise ConfigError(f"boot_time must be 0 or more seconds, not {self.boot_time:g}")
        if self.baud is not None and self.baud <= 0:
            raise ConfigError(f"baud must be above 0, not {self.baud}")
        self._system = System(hostname=self.hostname, password=self.password, boot_time=self.boot_time)
        self._card = Card(capacity=self.size, image=self.image)
        self._machine = machine = Machine(Board(self._system, self.baud), self._card, self.make_hub())
        self.children |= {
            "power": BoardPower(_machine=machine),
            "console": BoardConsole(_machine=machine),
            "storage": self._card,
            "network": BoardHttp(_machine=machine, _system=self._system),
            "echo": BoardEcho(_machine=machine, _system=self._system),
        }

    async def open(self) -> None:
        self._machine.hub.open_log()
        self._system.card_size = self._card.capacity
        self._system.epoch = time.time() - trio.current_time()
        self.nursery.start_soon(self._machine.run)

    async def close(self) -> None:
        self._machine.power(False)
        self._machine.hub.end()

    async def reset(self) -> None:
        """Off; the card keeps its content."""
        self._machine.power(False)
