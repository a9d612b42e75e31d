"""A pseudo-terminal of this machine for a remote console, so that any program for serial ports can use it.

Theory of operation: programs open the slave half; this side reads and writes the master half. It also keeps a slave of its own
open, for without any the master only fails, and settings would be lost between two programs. So that it knows whether
another one is open it watches the slave's path (inotify): while no program has it open, or when the last one has closed it, what
the device says is dropped, as a serial line without a listener does. While one has it open nothing is dropped: a program that
reads slowly slows the stream down, and one that writes fast waits for the device. A program's baud rate and modem lines stay
here.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import termios
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jmp.client.blocks import EitherBlock
from jmp.driver.proxy import Blocking
from jmp.errors import Cancelled, JmpError, LabError, UsageError
from jmp.rpc.blocking import BlockingCaller

if TYPE_CHECKING:
    from jmp.client.console import ConsoleClient

_PIECE: Final = 64 * 1024
_IN_CLOSE: Final = 0x08 | 0x10  # IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
_IN_OPEN: Final = 0x20
_EVENT: Final = struct.Struct("iIII")  # struct inotify_event, without a name: watched is no directory


class Pty(EitherBlock[str, str]):
    """A console's pty for as long as the block lasts: ``with`` for threads, ``async with`` for Trio. Entering gives its path.

    Raises :class:`~jmp.errors.UsageError` if the link cannot be made. What ended the console meanwhile is raised by leaving the
    block, unless that raises something itself.
    """

    def __init__(self, client: ConsoleClient, *, link: str | None, replay: bool) -> None:
        self._client = client
        self._link = Path(link) if link is not None else None
        self._connect: Callable[[], AbstractAsyncContextManager[Any]] = lambda: client.connect(replay=replay)
        self._over = threading.Event()

    def __enter__(self) -> str:
        if not isinstance(self._client._backend, BlockingCaller):
            raise UsageError("a pty of a device that is used with Trio is entered with `async with`")
        return super().__enter__()

    def describe(self, path: str) -> str:
        """What the command line says on a terminal."""
        return f"{self._client._node.path or 'the console'} is {path}"

    def wait(self) -> None:
        """Block until the console has ended."""
        self._over.wait()

    # ---- threads

    @contextmanager
    def _by_threads(self) -> Iterator[str]:
        with _Line.opened(self._link) as line, Blocking(self._connect()) as stream:
            woken, wake = os.pipe()
            shovels = [
                _Shovel(lambda: _to_program(stream, line, woken), self._over),
                _Shovel(lambda: _from_program(stream, line, woken), self._over),
            ]
            try:
                yield line.path
            finally:
                os.close(wake)
                stream.reset()
                for shovel in shovels:
                    shovel.join()
                os.close(woken)
            for shovel in shovels:
                if shovel.error is not None:
                    raise shovel.error

    # ---- Trio

    @asynccontextmanager
    async def _by_tasks(self) -> AsyncIterator[str]:
        import trio

        failure: JmpError | None = None

        async def until_it_ends(carry: Callable[[Any, _Line], Any], stream: Any, line: _Line) -> None:
            nonlocal failure
            try:
                await carry(stream, line)
            except JmpError as error:
                failure = failure or error
            finally:
                self._over.set()

        with _Line.opened(self._link) as line:
            async with self._connect() as stream, trio.open_nursery() as nursery:
                tasks = _Tasks()
                for carry in (tasks.to_program, tasks.from_program, tasks.watch):
                    nursery.start_soon(until_it_ends, carry, stream, line)
                try:
                    yield line.path
                finally:
                    nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


class _Line:
    """The pty and who has it open. Decides; does not wait. Any thread may use it."""

    def __init__(self) -> None:
        self.master, self._slave = os.openpty()
        self.path = os.ttyname(self._slave)
        os.set_blocking(self.master, False)
        tty.setraw(self._slave, termios.TCSANOW)
        self.events = _inotify(self.path)
        self._opened = 0
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def opened(cls, link: Path | None) -> Iterator[_Line]:
        line = cls()
        try:
            if link is not None:
                _make_link(link, line.path)
            try:
                yield line
            finally:
                if link is not None and link.is_symlink() and os.readlink(link) == line.path:
                    link.unlink()
        finally:
            for descriptor in (line.master, line._slave, line.events):
                os.close(descriptor)

    def is_open(self) -> bool:
        """Whether a program has it open now. If one has left since the last look, what it did not read is gone."""
        with self._lock:
            while True:
                try:
                    events = os.read(self.events, 4096)
                except BlockingIOError:
                    return self._opened > 0
                for at in range(0, len(events), _EVENT.size):
                    mask = _EVENT.unpack_from(events, at)[1]
                    if mask & _IN_OPEN:
                        self._opened += 1
                    elif mask & _IN_CLOSE:
                        self._opened -= 1
                        if self._opened == 0:
                            termios.tcflush(self._slave, termios.TCIFLUSH)
                            tty.setraw(self._slave, termios.TCSANOW)

    def write(self, data: memoryview) -> memoryview:
        """Give the programs what they take now; what is left."""
        if not self.is_open():
            return data[len(data) :]
        try:
            return data[os.write(self.master, data) :]
        except BlockingIOError:
            return data

    def read(self) -> bytes:
        """What programs have written, ``b""`` if nothing."""
        try:
            return os.read(self.master, _PIECE)
        except BlockingIOError:
            return b""


# ---- threads


class _Shovel(threading.Thread):
    """Runs one direction until it ends, and keeps what ended it."""

    def __init__(self, carry: Callable[[], None], over: threading.Event) -> None:
        super().__init__(name="jmp-pty", daemon=True)
        self._carry = carry
        self._over = over
        self.error: JmpError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._carry()
        except Cancelled:
            pass  # by this side
        except JmpError as error:
            self.error = error
        finally:
            self._over.set()


def _ready(woken: int, *wanted: tuple[int, int]) -> bool:
    """Wait for one of the descriptors; False once ``woken`` has ended."""
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    for descriptor, event in wanted:
        poll.register(descriptor, event)
    return all(descriptor != woken for descriptor, _ in poll.poll())


def _to_program(stream: Any, line: _Line, woken: int) -> None:
    while data := stream.receive_some(_PIECE):
        rest = memoryview(data)
        while rest := line.write(rest):
            if not _ready(woken, (line.master, select.POLLOUT), (line.events, select.POLLIN)):
                return


def _from_program(stream: Any, line: _Line, woken: int) -> None:
    while _ready(woken, (line.master, select.POLLIN), (line.events, select.POLLIN)):
        line.is_open()
        if data := line.read():
            stream.send_all(data)


# ---- Trio


class _Tasks:
    """The same as tasks."""

    def __init__(self) -> None:
        import trio

        self._waiting = trio.CancelScope()  # for a program that takes nothing

    async def to_program(self, stream: Any, line: _Line) -> None:
        import trio

        while data := await stream.receive_some(_PIECE):
            rest = memoryview(data)
            while rest := line.write(rest):
                with trio.CancelScope() as self._waiting:
                    await trio.lowlevel.wait_writable(line.master)

    async def from_program(self, stream: Any, line: _Line) -> None:
        import trio

        while True:
            await trio.lowlevel.wait_readable(line.master)
            if data := line.read():
                await stream.send_all(data)

    async def watch(self, _: Any, line: _Line) -> None:
        import trio

        while True:
            await trio.lowlevel.wait_readable(line.events)
            if not line.is_open():
                self._waiting.cancel()


def _make_link(link: Path, path: str) -> None:
    try:
        if link.is_symlink() and not link.exists():
            link.unlink()  # left behind by one that was killed
        link.symlink_to(path)
    except FileExistsError:
        raise UsageError(f"{link} exists: remove it, or choose another link") from None
    except OSError as error:
        raise UsageError(f"cannot make the link {link}: {error.strerror}") from error


def _inotify(path: str) -> int:
    """A descriptor that tells of every opening and closing of ``path``."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_OPEN | _IN_CLOSE) < 0:
        raise LabError(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
    return descriptor
