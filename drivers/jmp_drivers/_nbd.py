"""The client side of NBD, in which nbdkit, qemu-nbd and ``qemu-storage-daemon`` hand out disks.

Only what is needed here: one export, one request at a time. The numbers are those of the specification, doc/proto.md of
the NetworkBlockDevice project.
"""

from __future__ import annotations

import os
import struct

import trio

from jmp.errors import DeviceError

CHUNK = 1024 * 1024
"""Bytes of a request that are always acceptable to a server, which may refuse more than 32 MiB."""

# Handshake
_NBDMAGIC, _IHAVEOPT, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO = 7
_REP_ACK, _REP_INFO = 1, 3
_INFO_EXPORT = 0
_FLAG_READ_ONLY, _FLAG_SEND_FLUSH = 2, 4
# Transmission
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3

_GREETING = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, flags
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, reply type, length
_EXPORT = struct.Struct(">HQH")  # information type, size, flags
_REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
_REPLY = struct.Struct(">IIQ")  # magic, error, cookie


class Nbd:
    """A disk image behind a connected NBD server. One task at a time; a cancelled request leaves the connection unusable."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.size = 0
        """Bytes, known after `negotiate`."""
        self.read_only = False
        self._flushes = False

    async def negotiate(self, export: str) -> None:
        """Open the export. Raises `DeviceError` if the server does not have it or speaks something else."""
        magic, options, _ = _GREETING.unpack(await self._receive(_GREETING.size))
        if (magic, options) != (_NBDMAGIC, _IHAVEOPT):
            raise DeviceError("the disk server does not speak NBD")
        name = export.encode()
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)  # no further information wanted
        await self._send(
            struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES)
            + struct.pack(">QII", _IHAVEOPT, _OPT_GO, len(option))
            + option
        )
        while True:
            magic, _, kind, length = _OPTION_REPLY.unpack(await self._receive(_OPTION_REPLY.size))
            payload = await self._receive(length)
            if magic != _REPLY_MAGIC or kind not in (_REP_ACK, _REP_INFO):
                raise DeviceError(f"the disk server refuses to open {export!r}: {payload.decode(errors='replace')}")
            if kind == _REP_ACK:
                return
            if payload[:2] == struct.pack(">H", _INFO_EXPORT):
                _, self.size, flags = _EXPORT.unpack(payload)
                self.read_only = bool(flags & _FLAG_READ_ONLY)
                self._flushes = bool(flags & _FLAG_SEND_FLUSH)

    async def read(self, offset: int, length: int) -> bytes:
        """At most `CHUNK` bytes. Raises `DeviceError` if they cannot be read."""
        await self._request(_READ, offset, length)
        return await self._receive(length)

    async def write(self, offset: int, data: bytes) -> None:
        """At most `CHUNK` bytes. Raises `DeviceError` if they cannot be written, a full host disk included."""
        await self._request(_WRITE, offset, len(data), data)

    async def flush(self) -> None:
        """Make what was written survive."""
        if self._flushes:  # a server without it has nothing to flush
            await self._request(_FLUSH, 0, 0)

    async def disconnect(self) -> None:
        """Take leave; the server answers by closing."""
        await self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))

    async def _request(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        await self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, kind, 0, offset, length))
        await self._send(data)
        magic, error, _ = _REPLY.unpack(await self._receive(_REPLY.size))
        if magic != _SIMPLE_REPLY_MAGIC:
            raise DeviceError("the disk server does not speak NBD")
        if error:  # NBD's numbers are those of Linux
            raise DeviceError(f"disk image: {os.strerror(error)} at byte {offset}")

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise DeviceError("the disk server went away") from error

    async def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = await self._stream.receive_some(length - len(data))
            except trio.BrokenResourceError as error:
                raise DeviceError("the disk server went away") from error
            if not piece:
                raise DeviceError("the disk server went away")
            data += piece
        return bytes(data)
