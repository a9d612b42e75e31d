"""A program on a terminal of its own, which passes every byte as it is."""

from __future__ import annotations

import os
import tty
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager

import trio

from jmp_drivers._process import leashed

_READ = 64 * 1024


class Terminal:
    """Our end of it, made by :func:`on_terminal`."""

    def __init__(self, process: trio.Process, master: int, heard: Callable[[bytes], None]) -> None:
        self._process = process
        self._master = master
        self._heard = heard
        self.closed = False

    async def run(self) -> int:
        """Hand on what the program says, until it has ended; its status as `subprocess` has it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._process.wait()
            # We hold the terminal's other end as well, so it does not end: what has been said is there already.
            nursery.cancel_scope.cancel()
        self._take()
        return self._process.returncode or 0

    async def write(self, data: bytes) -> None:
        """Type something. Raises `trio.ClosedResourceError` if the program has ended."""
        rest = memoryview(data)
        while rest:
            if self.closed:
                raise trio.ClosedResourceError
            try:
                rest = rest[os.write(self._master, rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._master)
        await trio.lowlevel.checkpoint()

    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._master)
            self._take()

    def _take(self) -> None:
        """Hand on all that is there."""
        while True:
            try:
                data = os.read(self._master, _READ)
            except OSError:  # there is no more now
                return
            self._heard(data)

    def _close(self) -> None:
        self.closed = True
        trio.lowlevel.notify_closing(self._master)


@asynccontextmanager
async def on_terminal(
    argv: Sequence[str],
    heard: Callable[[bytes], None],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    grace: float = 5,
) -> AsyncIterator[Terminal]:
    """A command on a terminal, for as long as the body runs; the rest is as for `leashed`."""
    with ExitStack() as stack:
        master, slave = os.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        tty.setraw(slave)
        os.set_blocking(master, False)
        async with leashed(argv, env=env, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, grace=grace) as process:
            terminal = Terminal(process, master, heard)
            try:
                yield terminal
            finally:
                terminal._close()
