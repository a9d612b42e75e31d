"""The client of ``jmp.console/v1``: attach, expect, a terminal on it, a local pty for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from jmp.driver.proxy import ByteStream, DriverClient

if TYPE_CHECKING:
    from jmp.client.adapters.expect import Expecting
    from jmp.client.adapters.pty import Pty

taps: Final[list[Callable[[str, bytes], None]]] = []
"""Called with the driver's path and every piece of output that consoles of this process receive, in the receiving thread."""


class ConsoleClient(DriverClient):
    """A device's console. Any number of clients read it; one at a time writes."""

    default_verb: ClassVar[str | None] = "interact"

    @asynccontextmanager
    async def connect(self, replay: bool = True, write: bool = True) -> AsyncIterator[ByteStream]:
        """The console as a byte stream: first the newest of what came before (``replay``), then what comes.

        With ``write`` this is the console's one writer until the block is left. Receiving raises
        :class:`~jmp.errors.Busy` if there is another one.
        """
        async with self._backend.open(self._node.path, "connect", (), {"replay": replay, "write": write}) as stream:
            yield _Tapped(stream, self._node.path)

    def expect(
        self,
        *,
        timeout: float | None = 30.0,
        prompt: str | None = None,
        replay: bool = False,
        encoding: str | None = "utf-8",
        errors: str = "replace",
    ) -> Expecting:
        """Talk to the console with pexpect: ``with dut.console.expect() as c: c.expect("login: "); c.sendline("root")``.

        The same with ``async with`` and ``await`` under Trio. ``timeout`` (seconds; None: no limit) and ``prompt`` (for
        ``run``) are defaults that each call can override. Output counts from now on, or with ``replay`` from what is kept
        of the past. ``encoding`` None: bytes instead of text. See :mod:`jmp.client.adapters.expect`.
        """
        from jmp.client.adapters.expect import Expecting

        return Expecting(self, replay=replay, timeout=timeout, prompt=prompt, encoding=encoding, errors=errors)

    def pty(self, *, link: str | None = None, replay: bool = False) -> Pty:
        """A pseudo-terminal of this machine that is the console, for programs that want a serial port.

        ``with dut.console.pty() as path`` (``async with`` under Trio); ``link`` is a symbolic link to make to it. Programs may
        open and close it as they like; while none has it open, output is dropped, as a serial line does.
        """
        from jmp.client.adapters.pty import Pty

        return Pty(self, link=link, replay=replay)


class _Tapped:
    """A console's byte stream whose output goes to :data:`taps` as well; otherwise the stream it wraps."""

    def __init__(self, stream: ByteStream, path: str) -> None:
        self._stream = stream
        self._path = path

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        if data:
            for tap in list(taps):
                tap(self._path, bytes(data))
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.receive_some():
            yield data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._stream, name)
