"""One console, many readers, one writer: what every driver with a console shares.

Theory of operation: the device's bytes are numbered from 0 and the newest of them lie in one buffer. A reader is nothing
but the number of the next byte it wants, so ten readers cost no more memory than one, and attaching with the history
is attaching with a smaller number: no gap and no doubled byte is possible. The buffer keeps the last `ring` bytes for
those who come later, and beyond that whatever the slowest reader still needs, up to `backlog` bytes; a reader further
behind than that is ended, since the device does not wait for anybody.
"""

from __future__ import annotations

import io
import logging
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import trio

from jmp.driver import Driver, Stream, export, exportstream
from jmp.driver.interfaces import Console
from jmp.errors import Busy, ConfigError, DeviceError, JmpError, LabError, UsageError
from jmp_drivers._tasks import open_nursery

_log = logging.getLogger(__name__)

_LEAVING = 0.5  # seconds that a writer who has let go may take to be gone, as one of the same program's does
_TAKEN_OVER = b"\r\n[another client writes to this console now; you go on reading]\r\n"
_LAST_WORDS = 1.0  # seconds that clients have to take the last bytes of a device that has gone away
_MASKED = b"***"
_CHUNK = 64 * 1024  # bytes handed to a client in one go: large enough to be efficient, small enough to stay responsive


@dataclass(eq=False)
class _Reader:
    position: int  # number of the next byte this reader is to get
    limit: int | None = None  # number of the first byte it is not to get; None while the device side is alive
    failure: JmpError | None = None  # what it is told after its last byte
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    place: object | None = None  # in which it writes, or once wrote
    notice: bytes = b""  # what it is told besides the device's bytes


class Hub:
    """Hands a device's console output to any number of clients and lets one of them write.

    `ring` is how many of the newest bytes a late reader gets, `log` a file to which all output is appended (with
    `timestamps`, each line begins with the UTC time of its first byte). Where `log_size` bytes would be exceeded the file
    becomes FILE.1, the one before that FILE.2 and so on up to `log_kept`. Wherever one of `secrets` comes, *** is shown and
    logged. `backlog` is how many bytes a reader may be behind on top of the ring before it is ended. All methods belong to the
    Trio thread.
    """

    def __init__(
        self,
        *,
        ring: int = 256 * 1024,
        log: Path | None = None,
        timestamps: bool = False,
        log_size: int | None = None,
        log_kept: int = 5,
        secrets: Collection[str] = (),
        backlog: int = 8 * 1024 * 1024,
    ) -> None:
        self._ring = ring
        self._backlog = backlog
        self._buffer = bytearray()
        self._total = 0  # bytes ever fed: the number of the byte after the buffer's last one
        self._readers: set[_Reader] = set()
        self._news = trio.lowlevel.ParkingLot()
        self._departures = trio.lowlevel.ParkingLot()
        self._writer: object | None = None  # whose place it is to write
        self._log = None if log is None else _LogFile(log, timestamps, log_size, log_kept)
        self._mask = _Mask(secrets) if secrets else None

    def feed(self, data: bytes) -> None:
        """Take bytes that came from the device. Never waits, whatever the readers do."""
        if self._mask is not None:
            data = self._mask.feed(data)
        self._buffer += data
        self._total += len(data)
        if self._log is not None:
            self._log.write(data)
        keep = self._total - self._ring
        for reader in list(self._readers):
            if self._total - reader.position > self._ring + self._backlog:
                self._drop(reader)
            else:
                keep = min(keep, reader.position)
        surplus = keep - (self._total - len(self._buffer))
        if surplus > 0:
            del self._buffer[:surplus]  # moves a pointer, not the bytes
        self._news.unpark_all()

    def history(self) -> bytes:
        """The newest bytes, at most `ring` of them."""
        return self._slice(max(self._total - self._ring, 0), self._ring)

    def end(self, reason: str | None = None) -> None:
        """End every client that is attached now, after it has received what was fed before; close the log file.

        With a reason they get ``DeviceError(reason)``, without one their streams end in peace. The hub stays usable:
        a device that comes back is fed into it again and its history goes on.
        """
        for reader in self._readers:
            if reader.limit is None:
                reader.limit = self._total
                reader.failure = None if reason is None else DeviceError(reason)
        self._news.unpark_all()
        if self._log is not None:
            self._log.close()

    async def deserted(self) -> None:
        """Wait until no client is attached."""
        while self._readers:
            await self._departures.park()

    def open_log(self) -> None:
        """Open the log file now, if one is configured, rather than at the first byte. Raises `DeviceError`."""
        if self._log is not None:
            self._log.open()

    @contextmanager
    def writing(self, *, take_over: bool = False) -> Iterator[object]:
        """Be the console's one writer; gives the place, which is `_writer` until it is taken over.

        With `take_over`, whoever wrote until then is told so at once, in between what the console says. Raises `Busy` if
        somebody else is the writer, unless `take_over`.
        """
        if self._writer is not None and not take_over:
            raise Busy(
                "another client is writing to this console; attach read-only (write=False), write in its place "
                "(take_over=True) or wait until it ends"
            )
        for reader in self._readers:
            if self._writer is not None and reader.place is self._writer:
                reader.notice = _TAKEN_OVER
        self._news.unpark_all()
        place = self._writer = object()
        try:
            yield place
        finally:
            if self._writer is place:
                self._writer = None
                self._departures.unpark_all()

    async def serve(
        self,
        stream: trio.abc.HalfCloseableStream,
        send: Callable[[bytes], Awaitable[None]],
        *,
        replay: bool,
        write: bool,
        take_over: bool = False,
    ) -> None:
        """Run one attached client until it is gone or `end` is called; the stream stays open for the caller to close.

        The client gets every byte fed from now on, with `replay` the history before that. What it sends goes to `send`,
        one piece at a time, and waits while `send` does; its end of input gives up the writer's place but not the
        reading. With `take_over` it writes in the place of whoever did: that client is told, goes on reading, and is ended
        with `Busy` at what it sends next. Raises `Busy` as well if `write` is asked for while somebody else goes on writing,
        `UsageError` if a read-only client sends something or wants to take over, `DeviceError` as given to `end`, `LabError` if
        the client falls too far behind, and whatever `send` raises.
        """
        if take_over and not write:
            raise UsageError("one who only reads the console (write=False) has nothing to take over")
        reader = _Reader(position=max(self._total - self._ring, 0) if replay else self._total)
        with ExitStack() as writer:
            if write:
                with trio.move_on_after(0 if take_over else _LEAVING):
                    while self._writer is not None:
                        await self._departures.park()
                reader.place = writer.enter_context(self.writing(take_over=take_over))
            self._readers.add(reader)
            try:
                with reader.scope:
                    async with open_nursery() as nursery:
                        nursery.start_soon(self._collect, reader, stream, send, writer)
                        await self._deliver(reader, stream)
                        nursery.cancel_scope.cancel()
            finally:
                self._readers.discard(reader)
                self._departures.unpark_all()
        if reader.failure is not None:
            raise reader.failure

    async def _collect(
        self,
        reader: _Reader,
        stream: trio.abc.ReceiveStream,
        send: Callable[[bytes], Awaitable[None]],
        writer: ExitStack,
    ) -> None:
        """Pass on what the client sends, until its end of input."""
        while True:
            try:
                data = await stream.receive_some()
            except trio.BrokenResourceError:  # the client is gone
                reader.scope.cancel()
                return
            if not data:
                writer.close()
                return
            if reader.place is None:
                raise UsageError("this client is attached to the console read-only; attach with write=True to send")
            if reader.place is not self._writer:
                raise Busy("another client has taken this console over; attach again to read on, or to take it back")
            await send(bytes(data))

    async def _deliver(self, reader: _Reader, stream: trio.abc.SendStream) -> None:
        """Send the reader its bytes, until it has all that are meant for it or the client is gone."""
        while True:
            if reader.notice:
                chunk, reader.notice = reader.notice, b""
                try:
                    await stream.send_all(chunk)
                except trio.BrokenResourceError:
                    return
            end = self._total if reader.limit is None else reader.limit
            chunk = self._slice(reader.position, min(end - reader.position, _CHUNK))
            if chunk:
                reader.position += len(chunk)
                try:
                    await stream.send_all(chunk)
                except trio.BrokenResourceError:
                    return
            elif reader.limit is not None:
                return
            else:
                await self._news.park()

    def _drop(self, reader: _Reader) -> None:
        """End a reader that is too far behind. It is stuck in a send: do not wait for that."""
        reader.failure = LabError(
            f"this console client was {self._total - reader.position} bytes behind the device and has been ended; "
            "read faster, or attach again to continue from the history"
        )
        self._readers.discard(reader)
        reader.scope.cancel()

    def _slice(self, position: int, size: int) -> bytes:
        start = position - (self._total - len(self._buffer))
        with memoryview(self._buffer) as view:  # bytes(self._buffer[…]) would copy twice
            return bytes(view[start : start + size])


class _Mask:
    """Replaces secrets in what passes. What may be a secret's beginning is kept back until what follows has told."""

    def __init__(self, secrets: Collection[str]) -> None:
        self._secrets = sorted((each.encode() for each in secrets), key=len, reverse=True)  # the longest one counts
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be shown now."""
        shown = bytearray()
        rest = self._held + data
        while True:
            whole, begun = self._pattern.search(rest), self._begun(rest)
            if whole is None or begun <= whole.start():
                self._held = rest[begun:]
                return bytes(shown + rest[:begun])
            shown += rest[: whole.start()] + _MASKED
            rest = rest[whole.end() :]

    def _begun(self, text: bytes) -> int:
        """From where on the text may become a secret; its length if nowhere."""
        for start in range(max(len(text) - len(self._secrets[0]) + 1, 0), len(text)):
            end = text[start:]
            if any(each.startswith(end) and each != end for each in self._secrets):
                return start
        return len(text)


class _LogFile:
    """Appends a console's output to a file. A full disk ends the logging and not the console."""

    def __init__(self, path: Path, timestamps: bool, size: int | None, kept: int) -> None:
        self._path = path
        self._timestamps = timestamps
        self._size = size
        self._kept = kept
        self._file: io.FileIO | None = None
        self._failed = False
        self._in_line = False

    def open(self) -> None:
        """Open the file unless it is open; raises `DeviceError`."""
        if self._file is None:
            try:
                self._file = io.FileIO(self._path, "ab")
            except OSError as error:
                raise DeviceError(f"cannot write the console log {self._path}: {error.strerror}") from error

    def write(self, data: bytes) -> None:
        if self._failed:
            return
        try:
            if self._timestamps:
                data = self._stamped(data)
            self.open()
            assert self._file is not None
            if self._size is not None and 0 < self._file.tell() > self._size - len(data):
                self._rotate(self._file)
            self._file.write(data)
        except (OSError, DeviceError) as error:
            self._failed = True
            _log.warning("console log %s ends here: %s", self._path, error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._failed = False

    def _rotate(self, full: io.FileIO) -> None:
        full.close()
        self._file = None
        older = [self._path, *(self._path.with_name(f"{self._path.name}.{n + 1}") for n in range(self._kept))]
        for source, target in reversed(list(pairwise(older))):
            if source.exists():
                source.replace(target)
        self._path.unlink(missing_ok=True)  # only if none is kept
        self.open()

    def _stamped(self, data: bytes) -> bytes:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode()
        out = bytearray()
        for line in io.BytesIO(data):  # splits at \n only, unlike splitlines()
            if not self._in_line:
                out += stamp
            out += line
            self._in_line = not line.endswith(b"\n")
        return bytes(out)


class ConsoleOptions(Driver):
    """The configuration of whatever has a console."""

    history_size: int = field(default=256 * 1024, metadata={"doc": "bytes that a late reader still gets"})
    log_file: Path | None = field(default=None, metadata={"doc": "file to which all output is appended"})
    log_timestamps: bool = field(default=False, metadata={"doc": "begin each line of the file with the UTC time"})
    log_size: int | None = field(
        default=None, metadata={"doc": "bytes at which the file becomes FILE.1, that one FILE.2 …"}
    )
    log_kept: int = field(default=5, metadata={"doc": "how many such older files are kept"})
    secrets: list[str] = field(
        default_factory=list, metadata={"secret": True, "doc": "texts that are shown and logged as ***"}
    )

    def make_hub(self) -> Hub:
        """A hub as it is configured. Raises `ConfigError`."""
        if self.history_size < 0:
            raise ConfigError(f"history_size must be 0 or more, not {self.history_size}")
        if self.log_size is not None and self.log_size <= 0:
            raise ConfigError(f"log_size must be above 0, not {self.log_size}")
        if self.log_kept < 0:
            raise ConfigError(f"log_kept must be 0 or more, not {self.log_kept}")
        if not all(self.secrets):
            raise ConfigError("secrets: one of them is empty")
        return Hub(
            ring=self.history_size,
            log=self.log_file,
            timestamps=self.log_timestamps,
            log_size=self.log_size,
            log_kept=self.log_kept,
            secrets=self.secrets,
        )


class HubConsole(ConsoleOptions, Console):
    """A console on a hub: a driver says how bytes are written, and feeds ``_hub`` with what comes."""

    def __post_init__(self) -> None:
        self._hub = self.make_hub()

    @abstractmethod
    async def _write(self, data: bytes) -> None:
        """Hand all of data to the device. Raises `DeviceError`."""

    async def _gone(self, reason: str) -> None:
        """The device is lost: clients get what came before, in as long as that may take, and then the reason."""
        self._hub.end(reason)
        with trio.move_on_after(_LAST_WORDS):
            await self._hub.deserted()
        self.lost(reason)

    @exportstream
    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        await self._hub.serve(stream, self._write, replay=replay, write=write, take_over=take_over)

    @export
    async def history(self) -> bytes:
        return self._hub.history()

    @export
    async def send(self, data: bytes) -> None:
        await self._write(data)
