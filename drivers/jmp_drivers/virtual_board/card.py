"""The board's SD card: a sparse file, of which no more than one piece at a time is in memory."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import TypeVar

import trio

from jmp.driver import BadValue, Busy, ConfigError, DeviceError, Stream, export, exportstream
from jmp.driver.interfaces import Storage
from jmp_drivers.virtual_board.image import SECTOR

PIECE = 1024 * 1024
"""Bytes read or written at once: enough to be fast, and little to hold for each client."""

T = TypeVar("T")


class Card(Storage):
    """SD card of the virtual board; it can be written at any time, and the board sees that at its next boot."""

    capacity: int = 64 * 1024 * 1024
    image: Path | None = None
    _file: io.FileIO | None = field(init=False, default=None)
    _writing: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.capacity < SECTOR:
            raise ConfigError(f"size must be at least {SECTOR} bytes, not {self.capacity}")

    async def open(self) -> None:
        """Open the image file, or make a temporary one; a shorter one grows to the configured size, without using disk."""
        self._file = await trio.to_thread.run_sync(self._open)

    def _open(self) -> io.FileIO:
        try:
            if self.image is None:
                descriptor, path = tempfile.mkstemp(prefix="jmp-virtual-board-")
                file = io.FileIO(descriptor, "r+b")
                os.unlink(path)
            else:
                file = io.FileIO(os.open(self.image, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
            self.capacity = max(self.capacity, os.fstat(file.fileno()).st_size)
            file.truncate(self.capacity)
        except OSError as error:
            raise DeviceError(f"card image {self.image or tempfile.gettempdir()}: {error.strerror}") from error
        except EOFError:
            raise DeviceError(f"card image {self.image}: somebody made it shorter than {self.capacity} bytes") from None
        return file

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def contents(self, offset: int, size: int) -> bytes:
        """At least one and at most ``size`` bytes from ``offset`` on. Raises ``DeviceError``."""
        return await self._run(_piece, size, offset)

    @exportstream
    async def write(self, stream: Stream, offset: int = 0) -> None:
        self._inside(offset)
        with self._only_writer():
            pending = bytearray()
            async for data in stream:
                pending += data
                if offset + len(pending) > self.capacity:
                    raise BadValue(f"the image does not fit: the card has {self.capacity} bytes")
                if len(pending) >= PIECE:
                    offset = await self._store(pending, offset)
            await self._store(pending, offset)

    async def _store(self, data: bytearray, offset: int) -> int:
        """Write and clear ``data``; returns where it ends. A cancelled write is carried to its end."""
        while data:
            written = await self._run(os.pwrite, data, offset)
            del data[:written]
            offset += written
        return offset

    @exportstream
    async def read(self, stream: Stream, offset: int = 0, size: int | None = None) -> None:
        end = self._inside(offset, size)
        while offset < end:
            data = await self.contents(offset, min(PIECE, end - offset))
            await stream.send_all(data)
            offset += len(data)

    @export
    async def size(self) -> int:
        return self.capacity

    @export
    async def digest(self, size: int | None = None, offset: int = 0, algorithm: str = "sha256") -> str:
        end = self._inside(offset, size)
        if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
            known = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))
            raise BadValue(f"unknown algorithm {algorithm!r}: one of {', '.join(known)}")
        checksum = hashlib.new(algorithm)
        while offset < end:
            offset += await self._run(_digest_piece, checksum, offset, min(PIECE, end - offset))
        return checksum.hexdigest()

    def _inside(self, offset: int, size: int | None = None) -> int:
        """The end of a range, which must lie on the card. Raises ``BadValue``."""
        end = self.capacity if size is None else offset + size
        if not 0 <= offset <= end <= self.capacity:
            asked = f"offset {offset}" if size is None else f"offset {offset}, size {size}"
            raise BadValue(f"{asked}: not on the card, which has {self.capacity} bytes")
        return end

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        if self._writing:
            raise Busy("another client is writing to this card; wait until it has finished")
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        """Call ``function(descriptor, …)`` in a thread. It is never abandoned, so the file is not closed under it."""
        if self._file is None:
            raise DeviceError("the board has no card: its image could not be opened")
        try:
            return await trio.to_thread.run_sync(function, self._file.fileno(), *args)
        except OSError as error:
            raise DeviceError(f"card image {self.image or tempfile.gettempdir()}: {error.strerror}") from error
        except EOFError:
            raise DeviceError(f"card image {self.image}: somebody made it shorter than {self.capacity} bytes") from None


def _digest_piece(descriptor: int, checksum: hashlib._Hash, offset: int, size: int) -> int:
    data = _piece(descriptor, size, offset)
    checksum.update(data)
    return len(data)


def _piece(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if size and not data:
        raise EOFError
    return data
