"""How far a copy by scp is, for who asked to be told: scp itself tells only a terminal.

All goes through this process, so it counts what is carried, which is little more than the files.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from jmp.client.adapters.openssh import Way
from jmp.driver.proxy import ByteStream

if TYPE_CHECKING:
    from jmp.client.storage import Progress

LOOK_SECONDS: Final = 0.2
"""How often it is told how far a copy is."""
_LOOKS_UNASKED: Final = 5
"""After so many looks it is worth while to ask the device how much there is to copy."""
_GREETING: Final = 8 * 1024
"""About as many bytes go before those of files; when they are exceeded, no password is asked for any more."""
_SUM: Final = "LC_ALL=C ls -lnRH -- {} 2>/dev/null | awk '/^-/ {{ sum += $5 }} END {{ printf \"%.0f\", sum }}'"


class Meter:
    """Counts, for one copy in one direction."""

    def __init__(self, progress: Progress, *, total: int | None = None, source: str = "") -> None:
        """``total`` bytes are sent; or, without it, ``source`` of the device is received."""
        self._progress = progress
        self._total = total
        self._source = source
        self._sent = 0
        self._received = 0
        self._looks = 0
        self._asked: subprocess.Popen[bytes] | None = None

    @asynccontextmanager
    async def counted(
        self, opening: Callable[[], AbstractAsyncContextManager[ByteStream]]
    ) -> AsyncIterator[ByteStream]:
        """The stream that is opened; what it carries counts."""
        async with opening() as stream:
            yield _Counted(stream, self)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the copy goes on: nothing that asks the device is left afterwards."""
        self._sent = self._received = self._looks = 0
        try:
            yield
        finally:
            if self._asked is not None:
                self._asked.kill()
                self._asked.communicate()
                self._asked = None

    def look(self, way: Way) -> None:
        """Tell how far it is; to be called every `LOOK_SECONDS`."""
        self._looks += 1
        if self._looks == _LOOKS_UNASKED and self._source:
            self._ask(way)
        if self._asked is not None and self._asked.poll() is not None:
            told = self._asked.communicate()[0].strip()
            self._asked = None
            self._total = int(told) if told.isdigit() and int(told) else None
        if self._done:
            self._progress(self._done, None if self._total is None else max(self._done, self._total))

    def finish(self, copied: str) -> None:
        """Tell that all is done. ``copied`` is where it may be on this machine."""
        total = self._total
        if total is None:
            total = os.path.getsize(copied) if os.path.isfile(copied) else self._done
        self._progress(total, total)

    @property
    def _done(self) -> int:
        return max(0, (self._received if self._source else self._sent) - _GREETING)

    def _ask(self, way: Way) -> None:
        source = self._source.removeprefix("~/") or "."  # both are the home of who logs in
        self._asked = subprocess.Popen(
            [*way.ssh(tty=False), _SUM.format(shlex.quote(source))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=way.environment,
        )


class _Counted:
    """A byte stream, of tasks or of threads."""

    def __init__(self, stream: Any, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)
        self._meter._sent += len(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data: bytes = await self._stream.receive_some(max_bytes)
        self._meter._received += len(data)
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def size(path: str) -> int:
    """Bytes of a file, or of those in a folder."""
    if not os.path.isdir(path):
        return _bytes(path)
    return sum(_bytes(os.path.join(where, name)) for where, _, names in os.walk(path) for name in names)


def _bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # scp will tell


def run_seen(argv: Sequence[str], way: Way, meter: Meter) -> tuple[int, bytes]:
    """Status and complaints of scp, which blocks; the meter is looked at in the meantime."""
    with (
        meter.running(),
        subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=way.environment
        ) as process,
    ):
        try:
            while True:
                try:
                    _, said = process.communicate(timeout=LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    meter.look(way)
                else:
                    return process.returncode, said
        except BaseException:
            process.kill()
            raise


async def run_seen_async(argv: Sequence[str], way: Way, meter: Meter) -> tuple[int, bytes]:
    """The same under Trio."""
    import trio

    from jmp.groups import ungrouped

    async def look() -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            meter.look(way)

    with meter.running():
        async with ungrouped(trio.open_nursery)() as nursery:
            nursery.start_soon(look)
            done = await trio.run_process(
                argv, stdin=b"", capture_stdout=True, capture_stderr=True, check=False, env=way.environment
            )
            nursery.cancel_scope.cancel()
    return done.returncode, done.stderr
