"""A disk that an NBD server has: nbdkit, qemu-nbd, a SAN."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import trio

from jmp.driver import ConfigError, DeviceError
from jmp_drivers._nbd import Nbd
from jmp_drivers._reason import reason
from jmp_drivers.medium import Content, Medium

PORT = 10809
_PATIENCE = 10.0  # seconds until a server has to answer


class NbdStorage(Medium):
    """A disk that an NBD server has, such as nbdkit or qemu-nbd."""

    noun: ClassVar[str] = "disk"

    url: str = field(metadata={"doc": "nbd://HOST[:PORT][/EXPORT], or nbd+unix:///[EXPORT]?socket=PATH"})

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self._export = unquote(parts.path.removeprefix("/"))
        self._socket = parse_qs(parts.query).get("socket", [""])[0]
        try:
            self._host, self._port = parts.hostname or "", parts.port or PORT
        except ValueError as error:
            raise ConfigError(f"url: {error}") from error
        if not (parts.scheme == "nbd" and self._host) and not (parts.scheme == "nbd+unix" and self._socket):
            raise ConfigError(
                f"url: {self.url!r} is neither nbd://HOST[:PORT]/EXPORT nor nbd+unix:///EXPORT?socket=PATH"
            )

    async def open(self) -> None:
        async with self.opened(writing=False):
            pass

    @asynccontextmanager
    async def opened(self, *, writing: bool) -> AsyncIterator[Content]:
        with trio.move_on_after(_PATIENCE) as scope:
            try:
                stream: trio.SocketStream = (
                    await trio.open_unix_socket(self._socket)
                    if self._socket
                    else await trio.open_tcp_stream(self._host, self._port)
                )
            except OSError as error:
                raise DeviceError(f"cannot connect to {self.url}: {reason(error)}") from error
            nbd = Nbd(stream)
            try:
                await nbd.negotiate(self._export)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        if scope.cancelled_caught:
            raise DeviceError(f"{self.url} did not answer within {_PATIENCE:g} s")
        try:
            if writing and nbd.read_only:
                raise DeviceError(f"{self.url} can only be read: its server says so")
            yield nbd
            await nbd.disconnect()
        finally:
            await trio.aclose_forcefully(stream)
