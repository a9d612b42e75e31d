"""The client of ``jmp.storage/v1``: images from a file to the medium and back.

At most three pieces of an image are in memory. They are read, unpacked and hashed in a thread of their own while the one
before is on its way. Zeros are written like anything else: what the medium held before is not known.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import secrets
import stat
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Final

from jmp.driver.proxy import DriverClient, verb
from jmp.errors import BadValue, DeviceError, UsageError

PIECE: Final = 1024 * 1024
"""Bytes read or written at once."""

Progress = Callable[[int, int | None], None]
"""Takes bytes done and bytes in all, if known. For a packed image these are bytes of the file."""

_MAGIC: Final = {b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst"}
_LONGEST: Final = max(map(len, _MAGIC))


class StorageClient(DriverClient):
    """A device's storage medium."""

    @verb
    async def flash(
        self,
        image: Path | str,
        *,
        offset: int = 0,
        verify: bool = True,
        decompress: bool = True,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Write an image to the medium, from byte OFFSET on; - is standard input.

        An image packed with gzip, xz, bzip2 or (Python 3.14) zstd is unpacked on the way, whatever its name,
        unless decompress is off. Verify compares the medium's own checksum of what was written. The result has
        the number of bytes written, their sha256, and the seconds that all took.

        A file that cannot be read or unpacked is a UsageError. An image that does not fit is a BadValue, and if
        its size is known, as that of a plain file is, nothing has been written then. A medium that holds something
        else afterwards is a DeviceError. A flash that fails or is cancelled leaves what was written until then.
        """
        begin = time.monotonic()
        room = await self._backend.call(self._node.path, "size", (), {}) - offset
        ahead = await self._backend.run(_Ahead, str(image), decompress)
        try:
            source = ahead.source
            if offset < 0 or room < 0 or (source.size or 0) > room:
                raise self._does_not_fit(source, offset, room)
            written = 0
            refusal: UsageError | None = None
            async with self._backend.open(self._node.path, "write", (), {"offset": offset}) as stream:
                try:
                    while piece := await self._backend.run(ahead.next):
                        if written + len(piece) > room:
                            raise self._does_not_fit(source, offset, room)
                        await stream.send_all(piece)
                        written += len(piece)
                        if progress is not None:
                            progress(source.taken, source.total)
                except UsageError as error:  # the image's fault: the medium is left in order, free for another one
                    refusal = error
                await stream.send_eof()
                while await stream.receive_some():  # its end says that everything has been written
                    pass
            if refusal is not None:
                raise refusal
        finally:
            ahead.close()
        checksum = source.checksum.hexdigest()
        if verify:
            await self._verify(checksum, written, offset, f"{self._node.path} does not hold what was written to it")
        return {"bytes": written, "sha256": checksum, "seconds": round(time.monotonic() - begin, 3)}

    @verb
    async def dump(
        self,
        file: Path | str,
        *,
        offset: int = 0,
        size: int | None = None,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Read SIZE bytes (default: all) of the medium, from byte OFFSET on, into a file.

        A name that ends in .gz, .xz, .bz2 or (Python 3.14) .zst has it packed. Verify compares the medium's own
        checksum. The file appears under its name when it is complete: a dump that fails or is cancelled leaves
        none, or the one that was there. The result has bytes, sha256 (before packing) and seconds.

        A file that cannot be written is a UsageError; fewer or other bytes than the medium holds, a DeviceError.
        """
        begin = time.monotonic()
        if size is None:
            size = await self._backend.call(self._node.path, "size", (), {}) - offset
        checksum = hashlib.sha256()
        received = 0
        with ExitStack() as stack:
            sink = await self._backend.run(stack.enter_context, _replacing(str(file)))
            wanted = {"offset": offset, "size": size}
            async with self._backend.open(self._node.path, "read", (), wanted) as stream:
                pieces: list[bytes] = []
                held = 0
                ended = False
                while not ended:
                    data = await stream.receive_some()
                    ended = not data
                    pieces.append(data)
                    held += len(data)
                    if held >= PIECE or ended:
                        await self._backend.run(_store, sink, checksum, pieces)
                        received += held
                        pieces, held = [], 0
                        if progress is not None:
                            progress(received, size)
            if received != size:
                raise DeviceError(f"{self._node.path} gave {received} bytes instead of {size}")
            if verify:
                await self._verify(
                    checksum.hexdigest(), size, offset, f"{self._node.path} gave other bytes than it holds"
                )
            await self._backend.run(stack.pop_all().close)
        return {"bytes": size, "sha256": checksum.hexdigest(), "seconds": round(time.monotonic() - begin, 3)}

    async def _verify(self, checksum: str, size: int, offset: int, what: str) -> None:
        wanted = {"size": size, "offset": offset, "algorithm": "sha256"}
        there = str(await self._backend.call(self._node.path, "digest", (), wanted)).lower()
        if there != checksum:
            raise DeviceError(f"{what}: sha256 {there} there, {checksum} here")

    def _does_not_fit(self, source: _Source, offset: int, room: int) -> BadValue:
        there = f"{self._node.path} has {room + offset} bytes" + (
            f", of which {offset} are before it" if offset else ""
        )
        if offset < 0 or room < 0:
            return BadValue(f"offset {offset} is not on the medium: {self._node.path} has {room + offset} bytes")
        if source.size is not None:
            return BadValue(f"{source.name} does not fit: it has {source.size} bytes and {there}")
        return BadValue(f"{source.name} does not fit: {there}; they hold the beginning of it now")


class _Source:
    """An image file, unpacked if need be."""

    def __init__(self, image: str, decompress: bool) -> None:
        self.name = "standard input" if image == "-" else image
        self.checksum = hashlib.sha256()
        self.total: int | None = None
        self.size: int | None = None
        """Bytes of the image, if known."""
        self._stack = ExitStack()
        with ExitStack() as stack, _reading(self.name):
            if image == "-":
                self._input: IO[bytes] = io.FileIO(sys.stdin.fileno(), closefd=False)
            else:
                self._input = stack.enter_context(open(image, "rb", buffering=0))
            if stat.S_ISREG(os.fstat(self._input.fileno()).st_mode):
                self.total = os.fstat(self._input.fileno()).st_size - self._input.tell()
            self._head = b""
            while len(self._head) < _LONGEST and (more := self._input.read(_LONGEST - len(self._head))):
                self._head += more
            self.taken = 0
            """Bytes of the file that have been used."""
            packed = next((name for magic, name in _MAGIC.items() if self._head.startswith(magic)), "")
            named = image.rpartition(".")[2]
            if decompress and not packed and named in _MAGIC.values():
                raise UsageError(f"{image} is no {named} file; --no-decompress writes it as it is")
            self._content: Any = self
            if decompress and packed:
                self._content = stack.enter_context(_opened(packed, self, "rb", self.name))
            else:
                self.size = self.total
            self._stack = stack.pop_all()

    def read(self, size: int = -1) -> bytes:
        """Packed bytes."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._input.read(size)
        self.taken += len(data)
        return data

    def piece(self) -> bytes:
        """The next bytes of the image, a piece or what there is; ``b""`` at its end."""
        pieces: list[bytes] = []
        left = PIECE
        with _reading(self.name):
            while left and (data := self._content.read(left)):
                pieces.append(data)
                left -= len(data)
        piece = b"".join(pieces)
        self.checksum.update(piece)
        return piece

    def close(self) -> None:
        self._stack.close()


class _Ahead:
    """Reads the next piece of a source in a thread while the last one is being used."""

    def __init__(self, image: str, decompress: bool) -> None:
        self.source = _Source(image, decompress)
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._pieces: SimpleQueue[bytes | BaseException] = SimpleQueue()
        # A daemon, since nothing can end a read from standard input.
        self._thread = threading.Thread(target=self._run, name="jmp-image", daemon=True)
        self._thread.start()
        self._wanted.put(True)

    def next(self) -> bytes:
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        self._wanted.put(True)
        return piece

    def close(self) -> None:
        self._wanted.put(False)
        if self.source.total is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wanted.get():
            try:
                self._pieces.put(self.source.piece())
            except BaseException as error:  # noqa: BLE001  # the thread's root: who asked for the piece gets it
                self._pieces.put(error)
        self.source.close()


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{name} cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno is None:  # bz2 says so
            raise UsageError(f"{name} cannot be unpacked: {error}") from error
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise UsageError(f"{name} cannot be unpacked: {error}") from error


def _opened(packed: str, file: Any, mode: Any, name: str) -> Any:
    """A file object that packs to, or unpacks from, ``file``."""
    if packed == "gz":
        return gzip.GzipFile(filename="", fileobj=file, mode=mode, mtime=0, compresslevel=6)
    if packed == "xz":
        return lzma.LZMAFile(file, mode)
    if packed == "bz2":
        return bz2.BZ2File(file, mode)
    try:
        zstd: Any = import_module("compression.zstd")
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        raise UsageError(
            f"{name}: zstd takes Python 3.14, and this is {version}; use the program: zstd -dc IMAGE | j … flash -"
        ) from None
    return zstd.ZstdFile(file, mode)


@contextmanager
def _replacing(name: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``name`` when the block has succeeded."""
    target = os.path.realpath(name)
    if os.path.exists(target) and not os.path.isfile(target):
        raise UsageError(f"{name} is no file that can be replaced")
    folder, base = os.path.split(target)
    part = os.path.join(folder, f".{base}.{secrets.token_hex(4)}")
    with _writing(name):
        raw = open(part, "xb")  # noqa: SIM115
    try:
        with _writing(name):
            with raw:
                packed = base.rpartition(".")[2]
                if packed in _MAGIC.values():
                    with _opened(packed, raw, "wb", name) as file:
                        yield file
                else:
                    yield raw
            os.replace(part, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{name} cannot be written: {error.strerror or error}") from error


def _store(sink: IO[bytes], checksum: Any, pieces: list[bytes]) -> None:
    for piece in pieces:
        checksum.update(piece)
        sink.write(piece)
