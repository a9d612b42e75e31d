"""Consoles at a TCP port: telnet, and bytes as they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import field
from typing import ClassVar

import trio

from jmp.driver import ConfigError, DeviceError, Service, Suggestion, export
from jmp_drivers._reason import reason
from jmp_drivers._telnet import Telnet as Protocol
from jmp_drivers.console import HubConsole

_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Half a minute of a silent network, and a terminal server counts as gone: seconds, seconds, tries."""


class Telnet(HubConsole):
    """A console at a TCP port that speaks telnet: of a terminal server (conserver, ser2net, Cisco, …), or of the device itself.

    With ``raw`` the port speaks no telnet: bytes are passed as they are. The connection is kept for the whole session; when it
    is lost, it is made again.
    """

    host: str
    port: int = 23
    raw: bool = field(default=False, metadata={"doc": "no telnet, but bytes as they are"})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that connecting may take"})

    services: ClassVar[tuple[str, ...]] = ("_telnet._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        port = {} if service.port == 23 else {"port": service.port}
        yield Suggestion("console", {"host": service.address, **port}, service.about("telnet"), service.at(23))

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"port must be 1 to 65535, not {self.port}")
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        super().__post_init__()
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._target = f"{'tcp' if self.raw else 'telnet'}://{host}:{self.port}"
        self._sending = trio.Lock()

    async def open(self) -> None:
        self._hub.open_log()
        try:
            with trio.fail_after(self.timeout):
                self._stream = await trio.open_tcp_stream(self.host, self.port)
        except trio.TooSlowError:
            raise DeviceError(f"cannot connect to {self._target}: no answer within {self.timeout:g} s") from None
        except OSError as error:
            raise DeviceError(f"cannot connect to {self._target}: {reason(error)}") from error
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                self._stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._protocol = Protocol()
        self.nursery.start_soon(self._keep_reading)

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)
        self._hub.end()

    async def _keep_reading(self) -> None:
        why = "it closed the connection"
        try:
            if not self.raw:
                await self._send(self._protocol.begin())
            async for data in self._stream:
                plain, answer = (bytes(data), b"") if self.raw else self._protocol.feed(bytes(data))
                if plain:
                    self._hub.feed(plain)
                if answer:
                    await self._send(answer)
        except trio.ClosedResourceError:
            return
        except trio.BrokenResourceError as error:
            why = reason(error.__cause__)
        await self._gone(f"{self._target} is gone: {why}")

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)

    async def _write(self, data: bytes) -> None:
        try:
            await self._send(data if self.raw else self._protocol.encode(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise DeviceError(f"{self._target} is gone: {reason(error.__cause__ or error)}") from error

    @export
    async def send_break(self) -> None:
        """Send telnet's break; a terminal server makes one on the line of it."""
        if self.raw:
            raise DeviceError(f"{self._target} is raw: there is no break but with telnet")
        await self._send(self._protocol.send_break())
