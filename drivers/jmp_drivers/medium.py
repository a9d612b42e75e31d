"""Storage by what can be read and written at offsets: what disks, cards and NBD exports share."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import field
from typing import ClassVar, Protocol

import trio

from jmp.driver import BadValue, Busy, DeviceError, Stream
from jmp.driver.interfaces import Storage

CHUNK = 1024 * 1024
"""Bytes read or written at once."""

_RELEASE = 1.0  # seconds that a call which was just given up has to let go


class Content(Protocol):
    """An open medium. One task at a time."""

    size: int
    """Bytes."""

    async def read(self, offset: int, length: int) -> bytes:
        """At most `CHUNK` bytes. Raises `DeviceError` if they cannot be read."""

    async def write(self, offset: int, data: bytes) -> None:
        """At most `CHUNK` bytes. Raises `DeviceError` if they cannot be written."""

    async def flush(self) -> None:
        """Make what was written survive."""


class Medium(Storage):
    """Reads and writes whatever `opened` gives."""

    noun: ClassVar[str] = "medium"
    """What messages call it."""

    _used: bool = field(init=False, default=False)
    _released: trio.lowlevel.ParkingLot = field(init=False, default_factory=lambda: trio.lowlevel.ParkingLot())

    @abstractmethod
    def opened(self, *, writing: bool) -> AbstractAsyncContextManager[Content]:
        """The medium for one call. Raises `DeviceError` if it cannot be had."""

    @asynccontextmanager
    async def _opened(self, *, writing: bool = False) -> AsyncIterator[Content]:
        with trio.move_on_after(_RELEASE):
            while self._used:
                await self._released.park()
        if self._used:
            raise Busy(f"the {self.noun} is in use by another call; wait until it has ended")
        self._used = True
        try:
            async with self.opened(writing=writing) as content:
                yield content
        finally:
            self._used = False
            self._released.unpark()

    async def write(self, stream: Stream, offset: int = 0) -> None:
        async with self._opened(writing=True) as content:
            self._end(offset, None, content.size)
            pending = bytearray()
            ended = False
            while not ended or pending:
                while not ended and len(pending) < CHUNK:
                    data = await stream.receive_some()
                    ended = not data
                    pending += data
                piece = bytes(pending[:CHUNK])
                if offset + len(piece) > content.size:
                    raise DeviceError(f"the {self.noun} is full: it has {content.size} bytes")
                if piece:
                    await content.write(offset, piece)
                offset += len(piece)
                del pending[: len(piece)]
            await content.flush()

    async def read(self, stream: Stream, offset: int = 0, size: int | None = None) -> None:
        async with self._opened() as content:
            async for data in self._pieces(content, offset, size):
                await stream.send_all(data)

    async def size(self) -> int:
        async with self._opened() as content:
            return content.size

    async def digest(self, size: int | None = None, offset: int = 0, algorithm: str = "sha256") -> str:
        digest = _new_digest(algorithm)
        async with self._opened() as content:
            async for data in self._pieces(content, offset, size):
                await trio.to_thread.run_sync(digest.update, data)
        return digest.hexdigest()

    def _end(self, offset: int, size: int | None, total: int) -> int:
        """Where the range ends. Raises `BadValue` unless it lies within `total` bytes."""
        end = total if size is None else offset + size
        if not 0 <= offset <= end <= total:
            raise BadValue(f"bytes {offset} to {end} are not within the {self.noun}, which has {total}")
        return end

    async def _pieces(self, content: Content, offset: int, size: int | None) -> AsyncIterator[bytes]:
        end = self._end(offset, size, content.size)
        while offset < end:
            data = await content.read(offset, min(CHUNK, end - offset))
            yield data
            offset += len(data)


def _new_digest(algorithm: str) -> hashlib._Hash:
    try:
        digest = hashlib.new(algorithm)
    except ValueError:
        digest = None
    if digest is None or not digest.digest_size:  # SHAKE, whose length would be one more argument
        raise BadValue(f"no algorithm {algorithm!r} here; take sha256, sha512, blake2b, md5 …")
    return digest
