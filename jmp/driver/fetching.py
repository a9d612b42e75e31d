"""A medium is written with an image that the exporter itself fetches: what ``Storage.fetch`` does."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import trio

from jmp.driver.driver import in_thread
from jmp.driver.images import Ahead, held, is_url
from jmp.driver.tree import ThreadStream
from jmp.errors import BadValue, UsageError

if TYPE_CHECKING:
    from jmp.driver.interfaces import Storage


async def fetched(
    medium: Storage, url: str, offset: int, headers: Mapping[str, str], decompress: bool, resume: bool
) -> AsyncIterator[dict[str, Any]]:
    """Write the image at ``url`` to a medium. Items are ``{"taken", "total"}``; the last one has ``bytes``, ``sha256`` and
    ``written``.
    """
    if not is_url(url) or url.startswith("s3:"):
        raise UsageError(f"{url!r} is nothing that an exporter fetches: http://… or https://…")
    job = _Job(medium, url, offset, headers, decompress, resume)
    medium.nursery.start_soon(job.run)
    try:
        async for item in job.items:
            yield item
    finally:
        await job.end()
    if job.failure is not None:
        raise job.failure
    yield job.result


class _Job:
    """One image on its way, in a task of its own: a generator must not hold a nursery while it is suspended."""

    def __init__(
        self, medium: Storage, url: str, offset: int, headers: Mapping[str, str], decompress: bool, resume: bool
    ) -> None:
        self._medium = medium
        self._image = (url, decompress, headers)
        self._offset = offset
        self._resume = resume
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._send, self.items = trio.open_memory_channel[dict[str, Any]](1)
        self.failure: Exception | None = None
        self.result: dict[str, Any] = {}

    async def run(self) -> None:
        try:
            with self._scope, self._send:
                await self._write()
        except Exception as error:  # noqa: BLE001  # the task's root: who asked for the image gets it
            self.failure = error
        finally:
            self._ended.set()

    async def end(self) -> None:
        """Give up, unless it is over; returns once the medium is left alone."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _write(self) -> None:
        room = await self._medium.invoke("size") - self._offset
        if self._offset < 0 or room < 0:
            raise BadValue(f"offset {self._offset} is not on the medium, which has {room + self._offset} bytes")
        ahead = await trio.to_thread.run_sync(Ahead, *self._image)
        try:
            if (ahead.source.size or 0) > room:
                raise BadValue(
                    f"{ahead.source.name} does not fit: it has {ahead.source.size} bytes, and there is room for {room}"
                )
            stream = _Arriving(ahead, self._tell)
            there = 0
            if self._resume:
                there, beyond = await held(stream.receive_some, self._digest, room, trio.to_thread.run_sync)
                stream.put_back(beyond)
            offset = self._offset + there
            if inspect.iscoroutinefunction(self._medium.write):
                await self._medium.write(stream, offset=offset)
            else:
                await in_thread(self._medium.write, ThreadStream(stream), offset=offset)
        finally:
            ahead.close()
        source = ahead.source
        self.result = {"bytes": stream.count, "sha256": source.checksum.hexdigest(), "written": stream.count - there}
        self.result |= {"taken": source.taken, "total": source.total, "checksums": source.checksums}

    async def _digest(self, size: int, place: int) -> str:
        return str(await self._medium.invoke("digest", size, self._offset + place)).lower()

    def _tell(self, taken: int, total: int | None) -> None:
        try:
            self._send.send_nowait({"taken": taken, "total": total})
        except trio.WouldBlock:  # whoever looks is slower than the image: the next one will do
            pass
        except trio.BrokenResourceError:
            pass


class _Arriving(trio.abc.HalfCloseableStream):
    """An image as a client would send it."""

    def __init__(self, ahead: Ahead, tell: Any) -> None:
        self.count = 0
        self._ahead = ahead
        self._tell = tell
        self._rest = memoryview(b"")

    def put_back(self, pieces: list[bytes]) -> None:
        """Give these, which were received last, once more."""
        self._rest = memoryview(b"".join(pieces) + self._rest)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes == 0:
            return b""
        if not self._rest:
            self._rest = memoryview(await trio.to_thread.run_sync(self._ahead.next, abandon_on_cancel=True))
            self.count += len(self._rest)
            self._tell(self._ahead.source.taken, self._ahead.source.total)
        size = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        pass

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
