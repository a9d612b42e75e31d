"""The client of ``jmp.console/v1``: attach, expect, a terminal on it, a local pty for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, Final

from jmp.driver.proxy import ByteStream, DriverClient, verb
from jmp.errors import UsageError

if TYPE_CHECKING:
    from jmp.client.adapters.expect import Expecting
    from jmp.client.adapters.pty import Pty
    from jmp.client.adapters.sockets import Held
    from jmp.client.uboot import UBoot
    from jmp.client.web.page import Web

taps: Final[list[Callable[[str, bytes], None]]] = []
"""Called with the driver's path and every piece of output that consoles of this process receive, in the receiving thread."""


class ConsoleClient(DriverClient):
    """A device's console. Any number of clients read it; one at a time writes."""

    default_verb: ClassVar[str | None] = "interact"

    @asynccontextmanager
    async def connect(
        self, replay: bool = True, write: bool = True, take_over: bool = False
    ) -> AsyncIterator[ByteStream]:
        """The console as a byte stream: first the newest of what came before (``replay``), then what comes from now on.

        With ``write`` this is the console's one writer until the block is left. Receiving raises
        :class:`~jmp.errors.Busy` if there is another one; with ``take_over`` the other one does, once it sends something.
        """
        options = {"replay": replay, "write": write}
        if take_over:  # exporters that are older than it are not told of it
            options["take_over"] = True
        async with self._backend.open(self._node.path, "connect", (), options) as stream:
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

    def u_boot(self, **settings: Any) -> AbstractAsyncContextManager[UBoot]:
        """U-Boot on this console, for a block: ``with dut.console.u_boot() as u: u.interrupt(); u.run("version")``.

        The settings are those of :class:`jmp.client.uboot.Settings`. Where the exporter has a driver ``u-boot``, it knows them.
        """
        from jmp.client.uboot import Settings, attached

        return attached(self, Settings(**settings))

    @verb
    def pty(self, *, link: str | None = None, replay: bool = False) -> Pty:
        """A pseudo-terminal of this machine that is the console, for programs that want a serial port.

        ``with dut.console.pty() as path`` (``async with`` under Trio); ``link`` is a symbolic link to make to it. Programs may
        open and close it as they like; while none has it open, output is dropped, as a serial line does.
        """
        from jmp.client.adapters.pty import Pty

        return Pty(self, link=link, replay=replay)

    def serial(self, *, replay: bool = False, take_over: bool = False, **options: Any) -> Held[Any]:
        """The console as a port of pyserial, for libraries that want one: ``with dut.console.serial(timeout=1) as port``.

        ``options`` are those of ``serial.Serial``. A baud rate that is given is set at the device's line, as are DTR, RTS and
        breaks later on, where the driver can. For threads only.
        """
        from jmp.client.adapters.sockets import Held, serial_port

        return Held(self._backend, partial(serial_port, self, replay=replay, take_over=take_over, options=options))

    @verb
    def web(
        self,
        listen: str = "127.0.0.1:0",
        *,
        watch: Annotated[bool, "only look"] = False,
        take_over: Annotated[bool, "write in place of the client that does; it goes on looking"] = False,
        browser: Annotated[bool, "open it there"] = False,
    ) -> Web:
        """The console in a browser of this machine, at an address that is printed and that nobody can guess.

        LISTEN is PORT or HOST:PORT of this machine, 0 one that is free. Each page is a client of its own. While another client
        writes, a page only looks, and has a button with which it writes in its place. In Python: with dut.console.web() as page
        (async with under Trio); page.url.
        """
        from jmp.client.web.page import Web
        from jmp.client.web.server import Page

        page = Page("console", self._node.path or "console", watch)
        ways = {"": partial(self.connect, write=not watch, take_over=take_over)}
        if not watch:
            ways |= {"watch": partial(self.connect, write=False), "write": partial(self.connect, take_over=True)}
        return Web(self._backend, self._node.path, page, ways, listen, browser)

    @verb
    async def interact(
        self,
        *,
        watch: Annotated[bool, "only look"] = False,
        take_over: Annotated[bool, "write in place of the client that does; it goes on looking"] = False,
        replay: Annotated[bool, "begin with what came before"] = True,
        escape: Annotated[str, "the key that, with Ctrl, begins a command"] = "]",
        idle: Annotated[float, "seconds of silence that end it, once piped input has ended"] = 1.0,
        timestamps: Annotated[bool, "begin each line with the time at which it came here"] = False,
    ) -> None:
        """Use the console in this terminal. Ctrl-] q quits, Ctrl-] ? helps: with breaks, the power, and the time of each line.

        Input from a pipe or file is sent; output is shown until there has been none for a while. Blocking clients only.
        """
        from jmp.rpc.blocking import BlockingCaller

        if not isinstance(self._backend, BlockingCaller):
            raise UsageError("interact takes a terminal for itself, so it needs a blocking client: with jmp.connect()")
        from jmp.client.adapters.terminal import interact

        interact(
            self,
            watch=watch,
            take_over=take_over,
            replay=replay,
            escape=escape,
            idle=idle,
            timestamps=timestamps,
        )

    def _power(self) -> str | None:
        """The path of the switch that belongs to the console: the one beside it, else the device's only one."""
        beside, _, _ = self._node.path.rpartition(".")
        switches = [node.path for node in self._node.root.walk() if node.interface == "jmp.power/v1"]
        near = [path for path in switches if path.rpartition(".")[0] == beside]
        return next((found[0] for found in (near, switches) if len(found) == 1), None)

    @verb
    async def pipe(self, *, replay: Annotated[bool, "begin with what came before"] = True) -> None:
        """Write what the console says to standard output, as it is, until it ends. Sends nothing."""
        import sys

        async with self.connect(replay=replay, write=False) as stream:
            while data := await stream.receive_some():
                await self._backend.run(_write, sys.stdout.buffer, data)


def _write(target: BinaryIO, data: bytes) -> None:
    target.write(data)
    target.flush()


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
