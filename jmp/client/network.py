"""The clients of ``jmp.network/v1`` and ``jmp.datagram/v1``: a driver's port as a port on this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from jmp.driver.proxy import ByteStream, DriverClient, verb
from jmp.errors import BadValue, ProtocolViolation, UsageError

if TYPE_CHECKING:
    from socket import socket as Socket

    from jmp.client.adapters.forward import Forward
    from jmp.client.adapters.sockets import Held

IDLE_SECONDS: Final = 60.0
"""A forwarded program's silence that ends its stream: more than the keep-alive of what runs over UDP for hours."""
MAX_DATAGRAM: Final = 0xFFFF
_HEAD: Final = 2


class NetworkClient(DriverClient):
    """A port of the device. ``connect()`` is one connection to it, as a byte stream."""

    @verb
    def forward(self, listen: str = "127.0.0.1:0") -> Forward:
        """Listen on this machine, and connect whoever comes to the device's port.

        LISTEN is HOST:PORT (port 0: one that is free), PORT on 127.0.0.1, or unix:PATH. Any number of connections
        is served at once. One that fails is closed, and a warning (logger jmp.forward) says why. At the end those
        still open are cut off.

        In Python: with dut.ssh.forward() as bound (async with under Trio); bound.host, bound.port, bound.path, and
        all of it by str(bound).
        """
        from jmp.client.adapters.forward import Forward, TaskForward, ThreadForward

        open_stream = partial(self._backend.open, self._port, "connect", (), {}, ahead=True)
        by_threads, by_tasks = ThreadForward(open_stream, listen), TaskForward(open_stream, listen)
        return Forward(self._backend, self._port, by_threads, by_tasks)

    def socket(self) -> Held[Socket]:
        """One connection as a socket of the system, for libraries that want one: ``with dut.net.socket() as sock``.

        ``sock.makefile("rwb")`` is a file. What breaks the connection is raised at the end of the block. For threads only.
        """
        from jmp.client.adapters.sockets import Held, connected

        return Held(self._backend, partial(connected, self.connect))

    @property
    def _port(self) -> str:
        """The driver whose port it is."""
        return self._node.path


class DatagramClient(DriverClient):
    """A port of the device that takes and sends datagrams."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Datagrams]:
        """A way to the port, as it is for one sender: ``send(data)``, ``receive()``, and iteration over what comes."""
        async with self._backend.open(self._node.path, "connect", (), {}) as stream:
            yield Datagrams(stream)

    @verb
    def forward(self, listen: str = "127.0.0.1:0", *, idle: float = IDLE_SECONDS) -> Forward:
        """Listen for datagrams on this machine, and exchange them with the device's port.

        LISTEN is HOST:PORT (port 0: one that is free) or PORT on 127.0.0.1. Any number of programs may send; each
        gets the answers to its own datagrams, until nothing has come or gone for IDLE seconds. In Python as the
        forward of a stream port.
        """
        from jmp.client.adapters.datagrams import TaskForward, ThreadForward
        from jmp.client.adapters.forward import Forward

        if not idle > 0:
            raise UsageError(f"idle must be more than 0 seconds, not {idle:g}")
        open_stream = partial(self._backend.open, self._node.path, "connect", (), {}, ahead=True)
        by_threads, by_tasks = ThreadForward(open_stream, listen, idle), TaskForward(open_stream, listen, idle)
        return Forward(self._backend, self._node.path, by_threads, by_tasks)


def pack(datagram: bytes) -> bytes:
    """A datagram as it is on a stream: its length (16 bit, big-endian) and its bytes."""
    return len(datagram).to_bytes(_HEAD, "big") + datagram


class Unpacker:
    """The datagrams in a stream's bytes."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The datagrams that ``data`` completes."""
        self._pending += data
        while len(self._pending) >= _HEAD:
            end = _HEAD + int.from_bytes(self._pending[:_HEAD], "big")
            if len(self._pending) < end:
                return
            datagram = bytes(self._pending[_HEAD:end])
            del self._pending[:end]
            yield datagram

    def end(self) -> None:
        """The stream has ended. Raises :class:`~jmp.errors.ProtocolViolation` in the middle of a datagram."""
        if self._pending:
            raise ProtocolViolation("a stream of datagrams ended in the middle of one")


class Datagrams:
    """Datagrams on a driver's byte stream. One task or thread may send while another one receives."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._unpacker = Unpacker()
        self._received: deque[bytes] = deque()

    async def send(self, datagram: bytes) -> None:
        """Send one, of at most 65 535 bytes; the port's own limit may be lower."""
        if len(datagram) > MAX_DATAGRAM:
            raise BadValue(f"a datagram has at most {MAX_DATAGRAM} bytes, this one has {len(datagram)}")
        await self._stream.send_all(pack(datagram))

    async def receive(self) -> bytes | None:
        """The next one, which may be empty; None when the port gives no more."""
        while not self._received:
            data = await self._stream.receive_some()
            if not data:
                self._unpacker.end()
                return None
            self._received += self._unpacker.feed(data)
        return self._received.popleft()

    def __aiter__(self) -> Datagrams:
        return self

    async def __anext__(self) -> bytes:
        datagram = await self.receive()
        if datagram is None:
            raise StopAsyncIteration
        return datagram
