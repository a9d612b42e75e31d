"""Network ports that the exporter can reach: TCP, Unix sockets and UDP, and one that echoes."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Stream, UsageError, export, exportstream, overflow
from jmp.driver.interfaces import Datagram, Network
from jmp_drivers._reason import reason
from jmp_drivers._tasks import open_nursery

_LENGTH = struct.Struct(">H")
_MAX_DATAGRAM = 0xFFFF
_PIECE = 256 * 1024  # bytes read at once: as many as leave in one message


class Tcp(Network):
    """A TCP port that the exporter can reach. Each stream is a connection of its own; half-close is carried both ways."""

    host: str
    port: int
    timeout: float = field(default=10.0, metadata={"doc": "seconds that connecting may take"})

    def __post_init__(self) -> None:
        _check_port(self.port)

    @exportstream
    async def connect(self, stream: Stream) -> None:
        target = await self.address()
        try:
            with trio.fail_after(self.timeout):
                connection = await trio.open_tcp_stream(self.host, self.port)
        except trio.TooSlowError:
            raise DeviceError(f"cannot connect to {target}: no answer within {self.timeout:g} s") from None
        except OSError as error:
            raise DeviceError(f"cannot connect to {target}: {reason(error)}") from error
        await join(stream, connection, target)

    @export
    async def address(self) -> str:
        return f"tcp:{_host(self.host)}:{self.port}"


class Unix(Network):
    """A Unix socket on the exporter's machine. Each stream is a connection of its own; half-close is carried both ways."""

    path: Path

    @exportstream
    async def connect(self, stream: Stream) -> None:
        target = await self.address()
        try:
            connection = await trio.open_unix_socket(self.path)
        except OSError as error:
            raise DeviceError(f"cannot connect to {target}: {reason(error)}") from error
        await join(stream, connection, target)

    @export
    async def address(self) -> str:
        return f"unix:{self.path}"


class Udp(Datagram):
    """A UDP port that the exporter can reach. Each stream has a local port of its own until the client ends its input."""

    host: str
    port: int

    def __post_init__(self) -> None:
        _check_port(self.port)

    @exportstream
    async def connect(self, stream: Stream) -> None:
        port = await self._open_port()
        with port:
            async with open_nursery() as nursery:
                nursery.start_soon(_datagrams_to_client, port, stream)
                await _datagrams_to_target(stream, port)
                nursery.cancel_scope.cancel()

    async def _open_port(self) -> trio.socket.SocketType:
        try:
            found = await trio.socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, address = found[0]
            port = trio.socket.socket(family, kind, protocol)
            try:
                await port.connect(address)
            except BaseException:
                port.close()
                raise
        except OSError as error:
            raise DeviceError(f"cannot send to {await self.address()}: {reason(error)}") from error
        return port

    @export
    async def address(self) -> str:
        return f"udp:{_host(self.host)}:{self.port}"


class Echo(Network):
    """Sends back what it gets: for tests, demos and load."""

    @exportstream
    async def connect(self, stream: Stream) -> None:
        async for data in stream:
            await stream.send_all(data)

    @export
    async def address(self) -> str:
        return "echo"


async def join(stream: Stream, connection: trio.SocketStream, target: str) -> None:
    """Carry bytes both ways, with each side's end of output, until both have ended; then close the connection.

    Holds one piece per direction at most. A client that is gone ends it at once. Raises `DeviceError` if the connection
    breaks.
    """

    async def outward() -> None:
        async for data in overflow(stream, connection):
            with _breaking(target):
                await connection.send_all(data)
        with _breaking(target):
            await connection.send_eof()

    async with connection, open_nursery() as nursery:
        nursery.start_soon(outward)
        while True:
            with _breaking(target):
                data = await connection.receive_some(_PIECE)
            if not data:
                break
            await stream.send_all(data)
        await stream.send_eof()


@contextmanager
def _breaking(target: str) -> Iterator[None]:
    """Blames the target for an error of its connection: the client's stream raises the same one."""
    try:
        yield
    except trio.BrokenResourceError as error:
        raise DeviceError(f"{target} broke the connection: {reason(error.__cause__)}") from error


async def _datagrams_to_target(stream: Stream, port: trio.socket.SocketType) -> None:
    pending = bytearray()
    async for data in stream:
        pending += data
        while len(pending) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(pending)[0]
            if len(pending) < end:
                break
            datagram = bytes(pending[_LENGTH.size : end])
            del pending[:end]
            try:
                await port.send(datagram)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise BadValue(f"a datagram of {len(datagram)} bytes is too long to send") from error
                # Anything else is the fate of one datagram: nobody listens (yet), no route (yet).
    if pending:
        raise UsageError("the stream ended in the middle of a datagram")


async def _datagrams_to_client(port: trio.socket.SocketType, stream: Stream) -> None:
    while True:
        try:
            datagram = await port.recv(_MAX_DATAGRAM)
        except OSError:  # the answer to an earlier datagram that nobody took
            continue
        await stream.send_all(_LENGTH.pack(len(datagram)) + datagram)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_port(port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"port must be 1 to 65535, not {port}")
