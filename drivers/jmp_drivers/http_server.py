"""An HTTP server for the device."""

from __future__ import annotations

import os
import re
from dataclasses import field
from functools import partial
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import h11
import trio

from jmp.driver import ConfigError, DeviceError, UsageError
from jmp_drivers._reason import reason
from jmp_drivers.file_server import FileServer

_PIECE = 256 * 1024  # bytes read and sent at once
_AT_ONCE = 64  # connections; each holds a thread's time and a file
_SILENCE = 60.0  # seconds that a device may be silent, or not take what it asked for


class HttpServer(FileServer):
    """An HTTP server, from which the device fetches files of the lease: images, packages, updates.

    ``GET`` and ``HEAD``, with ranges, so that a download can be resumed.
    """

    scheme: ClassVar[str] = "http"

    port: int = field(default=8080, metadata={"doc": "TCP port; 0: one that is free"})

    _bound: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be 0 to 65535, not {self.port}")

    async def open(self) -> None:
        await super().open()
        try:
            listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        except OSError as error:
            await super().close()
            raise DeviceError(f"cannot listen at tcp:{self.host}:{self.port}: {reason(error)}") from error
        self._bound = listeners[0].socket.getsockname()[1]
        serving = trio.CapacityLimiter(_AT_ONCE)
        self.nursery.start_soon(trio.serve_listeners, partial(self._serve, serving), listeners)

    def authority(self) -> str:
        port = self._bound or self.port
        return self.reached() + ("" if port == 80 else f":{port}")

    async def _serve(self, serving: trio.CapacityLimiter, stream: trio.SocketStream) -> None:
        device = stream.socket.getpeername()[0]
        async with stream, serving:
            connection = h11.Connection(h11.SERVER)
            try:
                while (request := await _next(stream, connection)) is not None:
                    await self._answer(request, device, stream, connection)
                    if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                        return
                    connection.start_next_cycle()
            except (h11.ProtocolError, trio.TooSlowError, trio.BrokenResourceError) as error:
                self.log.info("HTTP: %s: %s", device, error)

    async def _answer(
        self, request: h11.Request, device: str, stream: trio.SocketStream, connection: h11.Connection
    ) -> None:
        async def refuse(status: int, why: str, *headers: tuple[str, str]) -> None:
            self.log.info("HTTP: %s: %s %s: %d %s", device, method, name, status, why)
            body = f"{why}\n".encode()
            head = [("Content-Length", str(len(body))), ("Content-Type", "text/plain"), *headers]
            await _send(stream, connection, h11.Response(status_code=status, headers=head))
            if method != "HEAD":
                await _send(stream, connection, h11.Data(data=body))
            await _send(stream, connection, h11.EndOfMessage())

        method = request.method.decode("ascii")
        name = unquote(urlsplit(request.target.decode("ascii")).path)
        if method not in ("GET", "HEAD"):
            await refuse(405, "files are served here and not taken", ("Allow", "GET, HEAD"))
            return
        try:
            with self.opened(name) as file:
                size = os.fstat(file.fileno()).st_size
                asked = dict(request.headers).get(b"range", b"").decode("ascii")
                begin, end = _range(asked, size)
                if begin > end:
                    await refuse(416, "the file has no such range", ("Content-Range", f"bytes */{size}"))
                    return
                part = (begin, end) != (0, size)
                head = [("Content-Length", str(end - begin)), ("Content-Type", "application/octet-stream")]
                head += [("Accept-Ranges", "bytes")]
                head += [("Content-Range", f"bytes {begin}-{end - 1}/{size}")] if part else []
                await _send(stream, connection, h11.Response(status_code=206 if part else 200, headers=head))
                place = begin
                while place < end and method == "GET":
                    data = await trio.to_thread.run_sync(os.pread, file.fileno(), min(_PIECE, end - place), place)
                    if not data:
                        raise DeviceError(f"{name} has become shorter")
                    await _send(stream, connection, h11.Data(data=data))
                    place += len(data)
                await _send(stream, connection, h11.EndOfMessage())
                if method == "GET":
                    self.log.info("HTTP: %s has fetched %s, %d bytes", device, name, end - begin)
        except UsageError as error:
            await refuse(404, error.message)
        except DeviceError as error:
            self.log.warning("HTTP: %s: %s", device, error.message)
            if connection.our_state is h11.SEND_RESPONSE:
                await refuse(500, error.message)


async def _next(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """The next request, its body read and dropped; None at the end of the device's output."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            with trio.fail_after(_SILENCE):
                connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.ConnectionClosed):
            return None


async def _send(stream: trio.SocketStream, connection: h11.Connection, event: h11.Event) -> None:
    data = connection.send(event)
    if data:
        with trio.fail_after(_SILENCE):
            await stream.send_all(data)


def _range(asked: str, size: int) -> tuple[int, int]:
    """Begin and end of the bytes that a ``Range`` header asks for, all if it is none; an end before the begin: there are none."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if match is None or not (match[1] or match[2]):
        return 0, size
    if not match[1]:
        return (max(size - int(match[2]), 0), size) if int(match[2]) else (1, 0)
    begin = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    return (begin, end) if begin < end else (1, 0)
