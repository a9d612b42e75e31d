"""A D-Bus of the exporter's machine, or of the device."""

from __future__ import annotations

import os
import re
from dataclasses import field
from pathlib import Path

import trio

from jmp.driver import ConfigError, DeviceError, Stream, export, exportstream
from jmp.driver.interfaces import Network
from jmp_drivers._reason import reason
from jmp_drivers.network import join

_LONGEST_LINE = 16 * 1024
_USER = re.compile(rb"(\0?AUTH EXTERNAL|DATA) [0-9a-fA-F]+\r\n")
_DESCRIPTORS = b"NEGOTIATE_UNIX_FD\r\n"


class DBus(Network):
    """A D-Bus: its socket on the exporter's machine, for programs on the client's.

    A client logs in as the exporter's user, whoever it is on its own machine: by D-Bus' usual way, EXTERNAL, a bus looks at
    who is at the other end of the socket, and that is the exporter. Descriptors cannot be passed, which the client is told.
    """

    path: Path = field(default=Path("/run/dbus/system_bus_socket"), metadata={"doc": "the bus's Unix socket"})

    def __post_init__(self) -> None:
        if not self.path.name:
            raise ConfigError("path: write the path of the bus's socket")

    @exportstream
    async def connect(self, stream: Stream) -> None:
        try:
            bus = await trio.open_unix_socket(self.path)
        except OSError as error:
            raise DeviceError(f"cannot connect to {await self.address()}: {reason(error)}") from error
        async with bus:
            rest = await self._log_in(stream, bus)
            if rest is not None:
                await bus.send_all(rest)
                await join(stream, bus, await self.address())

    @export
    async def address(self) -> str:
        return f"unix:{self.path}"

    async def _log_in(self, stream: Stream, bus: trio.SocketStream) -> bytes | None:
        """Carry the lines of the login, up to BEGIN, changed where need be; what came after it. None: there was no more."""
        pending = b""
        while True:
            line, pending = await _line(stream, pending)
            if not line:
                return None
            if told := _USER.fullmatch(line):
                line = told[1] + b" " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
            elif line == _DESCRIPTORS:
                await stream.send_all(b"ERROR descriptors cannot be passed from one machine to another\r\n")
                continue
            try:
                await bus.send_all(line)
                if line.lstrip(b"\0") == b"BEGIN\r\n":
                    return pending
                await stream.send_all((await _line(bus, b""))[0])
            except trio.BrokenResourceError as error:
                raise DeviceError(f"{await self.address()} broke the connection: {reason(error.__cause__)}") from error


async def _line(stream: trio.abc.ReceiveStream, pending: bytes) -> tuple[bytes, bytes]:
    """The next line with its end, and what came after it; an empty one at the end."""
    while b"\r\n" not in pending:
        data = await stream.receive_some()
        if not data:
            return b"", b""
        pending += bytes(data)
        if len(pending) > _LONGEST_LINE:
            raise DeviceError("this is no client of a D-Bus: its login has no end")
    end = pending.index(b"\r\n") + 2
    return pending[:end], pending[end:]
