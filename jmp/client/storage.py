"""The client of ``jmp.storage/v1``: images from a file or a server to the medium and back.

At most three pieces of an image are in memory, with resume a stretch. They are read, unpacked and hashed in a thread of
their own while the one before is on its way. Zeros are written like anything else, since what the medium held before is not
known, unless a block map says what is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal

from jmp.client.bmap import BlockMap, Part, joined, read_bmap
from jmp.driver.images import MAGIC, PIECE, Ahead, bare, held, is_url, opened, store
from jmp.driver.proxy import DriverClient, verb
from jmp.errors import BadValue, DeviceError, UsageError

Progress = Callable[[int, int | None], None]
"""Takes bytes done and bytes in all, if known. For a packed image these are bytes of the file."""

GAP: Final = 2 * PIECE
"""Bytes between two parts of a block map that are sent rather than a new stream is opened."""


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
        bmap: Annotated[Path | str | None, "block map of the image: only what it lists is written"] = None,
        sha256: Annotated[str | None, "what it has to be, of the file or of what is unpacked from it"] = None,
        resume: Annotated[bool, "leave alone what is there already, of a flash that was interrupted"] = False,
        fetch: Annotated[bool, "let the exporter fetch the URL, instead of this machine"] = False,
        header: Annotated[dict[str, str] | None, "of the request for a URL, 'NAME: VALUE' as well"] = None,
        bearer: Annotated[str | None, "token for a URL; @FILE: what stands there"] = None,
        power: Annotated[str | None, "power driver of the device, which is switched off before"] = None,
        then: Annotated[Literal["off", "on"], "what it is to be afterwards, with power"] = "off",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Write an image to the medium, from byte OFFSET on: a file, - for standard input, http(s):// or s3://BUCKET/KEY.

        An image packed with gzip, xz, bzip2 or zstd is unpacked on the way, whatever its name, unless decompress is off.
        Verify compares the medium's own checksum of what was written. A download that breaks off is taken up again. The
        result has the number of bytes of the image, their sha256, and the seconds that all took; with bmap or resume,
        also the bytes written.

        A file that cannot be read or unpacked, or whose sha256 is another, which is known at its end, is a UsageError, a
        server that fails a LabError. An image that does not fit is a BadValue, and if its size is known, as that of a
        plain file is, nothing has been written then. A medium that holds
        something else afterwards is a DeviceError. A flash that fails or is cancelled leaves what was written until then, and
        the device off.
        """
        begin = time.monotonic()
        headers = _headers(header or {}, bearer)
        if fetch and bmap is not None:
            raise UsageError("what the exporter fetches is written as a whole: bmap does not go with fetch")
        blocks = read_bmap(Path(bmap)) if bmap is not None else None
        expected = _checksum(sha256) if sha256 is not None else None
        async with self._switched_off(power, then):
            if fetch:
                result = await self._fetch(str(image), offset, headers, decompress, resume, progress)
                _compare(expected, bare(str(image)), result.pop("checksums", [result["sha256"]]))
                if verify:
                    await self._verify(result["sha256"], result["bytes"], offset, self._held_else())
            else:
                result = await self._stream(
                    (str(image), decompress, headers), offset, expected, verify, blocks, resume, progress or _nobody
                )
        return result | {"seconds": round(time.monotonic() - begin, 3)}

    async def _stream(
        self,
        image: tuple[str, bool, dict[str, str]],
        offset: int,
        expected: str | None,
        verify: bool,
        blocks: BlockMap | None,
        resume: bool,
        progress: Progress,
    ) -> dict[str, Any]:
        room = await self._backend.call(self._node.path, "size", (), {}) - offset
        parts: list[Part] | None = None
        if blocks is not None:
            parts = joined(await self._missing(blocks, offset) if resume else blocks.parts, GAP)
        async with self._pieces(image, blocks) as pieces:
            source = pieces.source
            size = source.size if blocks is None else blocks.size
            if offset < 0 or room < 0 or (size or 0) > room:
                raise self._does_not_fit(source.name, size, offset, room)
            if resume and parts is None:
                parts = [Part(await self._skip(pieces, offset, room, progress), _END)]
            written: list[tuple[int, int, Any]] = []
            for part in parts if parts is not None else [Part(0, _END)]:
                while pieces.position < part.begin and await pieces.take(part.begin - pieces.position):
                    progress(source.taken, source.total)
                checksum = hashlib.sha256() if parts is not None else None
                written.append(
                    (part.begin, await self._write(pieces, part, offset, room, checksum, progress), checksum)
                )
            while await pieces.take(PIECE):
                progress(source.taken, source.total)
            if blocks is not None and pieces.position != blocks.size:
                raise UsageError(f"{source.name} has {pieces.position} bytes, and its block map is for {blocks.size}")
            _compare(expected, source.name, source.checksums)
        if verify:
            for place, count, run in written:
                here = (run or source.checksum).hexdigest()
                await self._verify(here, count, offset + place, self._held_else())
        result = {"bytes": pieces.position, "sha256": source.checksum.hexdigest()}
        return result if parts is None else result | {"written": sum(count for _, count, _ in written)}

    async def _write(
        self, pieces: _Pieces, part: Part, offset: int, room: int, checksum: Any, progress: Progress
    ) -> int:
        """Write a part of the image, or what there is of it; the number of bytes."""
        refusal: UsageError | None = None
        count = 0
        async with self._backend.open(self._node.path, "write", (), {"offset": offset + part.begin}) as stream:
            try:
                while piece := await pieces.take(part.end - pieces.position):
                    if pieces.position > room:
                        raise self._does_not_fit(pieces.source.name, None, offset, room)
                    await stream.send_all(piece)
                    count += len(piece)
                    if checksum is not None:
                        await self._backend.run(checksum.update, piece)
                    progress(pieces.source.taken, pieces.source.total)
            except UsageError as error:  # the image's fault: the medium is left in order, free for another one
                refusal = error
            await stream.send_eof()
            while await stream.receive_some():  # its end says that everything has been written
                pass
        if refusal is not None:
            raise refusal
        return count

    async def _fetch(
        self,
        url: str,
        offset: int,
        headers: dict[str, str],
        decompress: bool,
        resume: bool,
        progress: Progress | None,
    ) -> dict[str, Any]:
        if not is_url(url):
            raise UsageError(f"the exporter fetches URLs, and {url} is none")
        if "fetch" not in self._node.methods:
            raise UsageError(f"the exporter of {self._node.path} is older than fetch; leave it to this machine")
        wanted = {"url": url, "offset": offset, "headers": headers, "decompress": decompress}
        wanted |= {"resume": True} if resume else {}  # exporters of before do not know it
        result: dict[str, Any] = {}
        async for item in self._backend.items(self._node.path, "fetch", (), wanted):
            if "bytes" in item:
                result = {name: item[name] for name in ("bytes", "sha256", "written", "checksums") if name in item}
            if progress is not None:
                progress(item["taken"], item["total"])
        return result

    async def _skip(self, pieces: _Pieces, offset: int, room: int, progress: Progress) -> int:
        """Pass over what the medium holds already of the image's beginning; how many bytes that are."""

        async def take(limit: int) -> bytes:
            piece = await pieces.take(limit)
            progress(pieces.source.taken, pieces.source.total)
            return piece

        async def digest(size: int, place: int) -> str:
            return await self._digest(size, offset + place)

        there, beyond = await held(take, digest, room, self._backend.run)
        pieces.put_back(beyond)
        return there

    async def _missing(self, blocks: BlockMap, offset: int) -> list[Part]:
        """The parts of a map that the medium does not hold yet."""
        return [
            part
            for part in blocks.parts
            if not part.checksum
            or await self._digest(part.end - part.begin, offset + part.begin, blocks.algorithm) != part.checksum
        ]

    @asynccontextmanager
    async def _pieces(self, image: tuple[str, bool, dict[str, str]], blocks: BlockMap | None) -> AsyncIterator[_Pieces]:
        ahead = await self._backend.run(Ahead, *image)
        try:
            yield _Pieces(ahead, self._backend.run, _Checker(blocks, ahead.source.name) if blocks is not None else None)
        finally:
            ahead.close()

    @asynccontextmanager
    async def _switched_off(self, power: str | None, then: str) -> AsyncIterator[None]:
        if power is not None:
            await self._backend.call(power, "off", (), {})
        yield
        if power is not None and then == "on":
            await self._backend.call(power, "on", (), {})

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

        A name that ends in .gz, .xz, .bz2 or .zst has it packed. Verify compares the medium's own
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
                waiting = 0
                ended = False
                while not ended:
                    data = await stream.receive_some()
                    ended = not data
                    pieces.append(data)
                    waiting += len(data)
                    if waiting >= PIECE or ended:
                        await self._backend.run(store, sink, checksum, pieces)
                        received += waiting
                        pieces, waiting = [], 0
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
        there = await self._digest(size, offset)
        if there != checksum:
            raise DeviceError(f"{what}: sha256 {there} there, {checksum} here")

    async def _digest(self, size: int, offset: int, algorithm: str = "sha256") -> str:
        wanted = {"size": size, "offset": offset, "algorithm": algorithm}
        return str(await self._backend.call(self._node.path, "digest", (), wanted)).lower()

    def _held_else(self) -> str:
        return f"{self._node.path} does not hold what was written to it"

    def _does_not_fit(self, name: str, size: int | None, offset: int, room: int) -> BadValue:
        there = f"{self._node.path} has {room + offset} bytes" + (
            f", of which {offset} are before it" if offset else ""
        )
        if offset < 0 or room < 0:
            return BadValue(f"offset {offset} is not on the medium: {self._node.path} has {room + offset} bytes")
        if size is not None:
            return BadValue(f"{name} does not fit: it has {size} bytes and {there}")
        return BadValue(f"{name} does not fit: {there}; they hold the beginning of it now")


_END: Final = 1 << 63


class _Pieces:
    """An image, as many bytes at a time as one wants."""

    def __init__(self, ahead: Ahead, run: Callable[..., Any], checker: _Checker | None) -> None:
        self.source = ahead.source
        self.position = 0
        """Bytes of the image that have been taken."""
        self._ahead = ahead
        self._run = run
        self._checker = checker
        self._rest = b""
        self._again: deque[bytes] = deque()

    def put_back(self, pieces: list[bytes]) -> None:
        """Take these, which were taken last, once more."""
        if self._rest:
            pieces = [*pieces, self._rest]
            self.position += len(self._rest)
            self._rest = b""
        self.position -= sum(map(len, pieces))
        self._again.extend(pieces)

    async def take(self, limit: int) -> bytes:
        """At most ``limit`` bytes; ``b""`` at the end of the image, or for a limit of 0."""
        if limit <= 0:
            return b""
        if not self._rest and self._again:
            self._rest = self._again.popleft()
        elif not self._rest:
            self._rest = await self._run(self._ahead.next)
            if self._checker is not None:
                await self._run(self._checker.feed, self._rest)
        data = self._rest[:limit]
        self._rest = self._rest[limit:]
        self.position += len(data)
        return data


class _Checker:
    """Compares an image with its block map while it is read."""

    def __init__(self, blocks: BlockMap, name: str) -> None:
        self._blocks = blocks
        self._name = name
        self._parts = iter(blocks.parts)
        self._position = 0
        self._next()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Raises UsageError where they are not those that the map is about."""
        view = memoryview(piece)
        while self._part is not None and self._part.begin < self._position + len(view):
            begin = max(self._part.begin - self._position, 0)
            end = min(self._part.end - self._position, len(view))
            self._checksum.update(view[begin:end])
            if self._part.end > self._position + len(view):
                break
            if self._part.checksum and self._checksum.hexdigest() != self._part.checksum:
                raise UsageError(
                    f"{self._name} is not the image that its block map is for: bytes {self._part.begin} to "
                    f"{self._part.end} are others"
                )
            self._next()
        self._position += len(view)

    def _next(self) -> None:
        self._part: Part | None = next(self._parts, None)
        self._checksum = hashlib.new(self._blocks.algorithm)


def _nobody(done: int, total: int | None) -> None:
    """Looks at no progress."""


def _checksum(text: str) -> str:
    """A sha256 as its publisher writes it. Raises ``UsageError``."""
    digits = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise UsageError(f"sha256 {text!r} is no checksum: 64 hexadecimal digits are needed")
    return digits


def _compare(expected: str | None, image: str, checksums: list[str]) -> None:
    """Raise ``UsageError`` if an image is another than was expected."""
    if expected is not None and expected not in checksums:
        there = ", unpacked from a file with ".join(checksums)
        raise UsageError(f"{image} is another image than it should be: its sha256 is {there}, not {expected}")


def _headers(given: Mapping[str, str], bearer: str | None) -> dict[str, str]:
    """Of a request. Raises UsageError, in which no value is shown."""
    headers = dict(given)
    if any(not name or set(name + value) & {"\n", "\r"} for name, value in headers.items()):
        raise UsageError("a header is NAME and VALUE, in one line")
    if bearer is not None:
        if bearer.startswith("@"):
            try:
                bearer = Path(bearer[1:]).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"the token in {bearer[1:]} cannot be read: {getattr(error, 'strerror', error)}"
                ) from error
        headers["Authorization"] = f"Bearer {bearer.strip()}"
    return headers


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
                if packed in MAGIC.values():
                    with opened(packed, raw, "wb", name) as file:
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
