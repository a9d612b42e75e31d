"""A TFTP server for the device."""

from __future__ import annotations

import os
import socket
from dataclasses import field
from typing import Any, ClassVar

import trio

from jmp.driver import ConfigError, DeviceError, UsageError
from jmp_drivers import _tftp
from jmp_drivers._reason import reason
from jmp_drivers.file_server import FileServer

_PORT = 69
_AT_ONCE = 64  # transfers; boards are fewer, and each holds a port and a file
_PACKET = 65536


class Tftp(FileServer):
    """A TFTP server, from which the device fetches files of the lease: kernels, device trees, images.

    It sends files and takes none. Block sizes, windows and sizes are negotiated. Port 69 takes an exporter that runs as root
    or has CAP_NET_BIND_SERVICE.
    """

    scheme: ClassVar[str] = "tftp"

    port: int = field(
        default=_PORT, metadata={"doc": "UDP port; few devices can ask for another one than 69, 0 is a free one"}
    )
    retries: int = field(default=5, metadata={"doc": "how often a block is sent again before the device is given up"})

    _socket: trio.socket.SocketType | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be 0 to 65535, not {self.port}")
        if self.retries < 0:
            raise ConfigError(f"retries must be 0 or more, not {self.retries}")

    async def open(self) -> None:
        self._socket = await self._bound(self.port)
        try:
            await super().open()
        except BaseException:
            self._socket.close()
            raise
        self.nursery.start_soon(self._listen, self._socket)

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        await super().close()

    def authority(self) -> str:
        port = self.port if self._socket is None else self._socket.getsockname()[1]
        return self.reached() + ("" if port == _PORT else f":{port}")

    async def _bound(self, port: int) -> trio.socket.SocketType:
        try:
            found = await trio.socket.getaddrinfo(self.host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            made = trio.socket.socket(family, kind, protocol)
            try:
                await made.bind(address)
            except BaseException:
                made.close()
                raise
        except OSError as error:
            raise DeviceError(f"cannot listen at udp:{self.host}:{port}: {reason(error)}") from error
        return made

    async def _listen(self, listening: trio.socket.SocketType) -> None:
        serving = trio.CapacityLimiter(_AT_ONCE)
        devices: set[Any] = set()
        while True:
            try:
                packet, device = await listening.recvfrom(_PACKET)
            except trio.ClosedResourceError:
                return
            except OSError:  # the answer to an earlier packet that nobody took
                continue
            # A request that comes again is that of a device whose answer is on its way.
            if device not in devices and serving.available_tokens:
                devices.add(device)
                self.nursery.start_soon(self._serve, packet, device, serving, devices)

    async def _serve(self, packet: bytes, device: Any, serving: trio.CapacityLimiter, devices: set[Any]) -> None:
        try:
            async with serving:
                with await self._bound(0) as port:
                    await port.connect(device)
                    await self._answer(packet, device[0], port)
        except (OSError, DeviceError) as error:
            self.log.warning("TFTP: %s: %s", device[0], reason(error))
        finally:
            devices.discard(device)

    async def _answer(self, packet: bytes, device: str, port: trio.socket.SocketType) -> None:
        try:
            request = _tftp.parse_request(packet)
            if request.opcode is not _tftp.Opcode.READ:
                await port.send(_tftp.error(_tftp.ErrorCode.REFUSED, "files are served here and not taken"))
                return
            await self._send(request, device, port)
        except UsageError as error:
            self.log.info("TFTP: %s: %s", device, error.message)
            await port.send(_tftp.error(_tftp.ErrorCode.NOT_FOUND, error.message))
        except DeviceError as error:
            self.log.warning("TFTP: %s: %s", device, error.message)
            await port.send(_tftp.error(_tftp.ErrorCode.OTHER, error.message))
        except _tftp.Malformed as error:
            self.log.info("TFTP: %s: %s", device, error)
            await port.send(_tftp.error(_tftp.ErrorCode.ILLEGAL, str(error)))

    async def _send(self, request: _tftp.Request, device: str, port: trio.socket.SocketType) -> None:
        with self.opened(request.name) as file:
            size = os.fstat(file.fileno()).st_size
            terms = _tftp.negotiate(request.options, size)
            sending = _tftp.Sending(size, terms)
            tries = 0
            while not sending.over:
                for block, place in sending.due():
                    if block:
                        # Not in a thread: a block is small, and most often in memory.
                        await port.send(_tftp.data(block, os.pread(file.fileno(), terms.block, place)))
                    else:
                        await port.send(_tftp.answer(terms.accepted))
                with trio.move_on_after(terms.timeout) as patience:
                    while not sending.take(await port.recv(_PACKET)) and not sending.over:
                        pass
                tries = tries + 1 if patience.cancelled_caught else 0
                if tries > self.retries:
                    self.log.warning("TFTP: %s stopped fetching %s", device, request.name)
                    return
            self.log.info("TFTP: %s has fetched %s, %d bytes", device, request.name, size)
