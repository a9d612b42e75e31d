"""Screens that are VNC servers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, JmpError, Service, Stream, Suggestion, check_seconds
from jmp.driver.interfaces import Vnc as VncInterface
from jmp_drivers import _keys
from jmp_drivers._png import png
from jmp_drivers._reason import reason
from jmp_drivers._rfb import Button, Rfb, welcome
from jmp_drivers.network import Tcp, Unix, join

T = TypeVar("T")
Buttons = Literal["left", "middle", "right"]


class VncScreen(VncInterface):
    """What every driver of a VNC server shares: it says how to connect. One connection is made when first needed, and kept."""

    _timeout: float = field(init=False, default=10.0)
    """Seconds that the server may take to answer."""
    _link: _Link | None = field(init=False, default=None)

    @abstractmethod
    async def _open_stream(self) -> trio.abc.Stream:
        """A new connection to the server. Raises `DeviceError`."""

    def _password(self) -> str:
        return ""

    async def connect(self, stream: Stream) -> None:
        """One connection to the VNC server itself."""
        connection = await self._open_stream()
        assert isinstance(connection, trio.SocketStream)
        await join(stream, connection, await self.invoke("address"))

    async def view(self, stream: Stream) -> None:
        password = self._password()
        if not password:
            await self.connect(stream)  # if the server wants one after all, the viewer can ask
            return
        connection = await self._open_stream()
        assert isinstance(connection, trio.SocketStream)
        address = await self.invoke("address")
        async with connection:
            try:
                with trio.fail_after(self._timeout):
                    await Rfb(connection, address).log_in(password)
            except trio.TooSlowError:
                raise DeviceError(f"{address} did not answer within {self._timeout:g} s") from None
            await connection.send_all(await welcome(stream))
            await join(stream, connection, address)

    # ---- the screen

    async def screenshot(self) -> bytes:
        """The screen now, as a PNG file."""
        link = await self._linked()
        width, height, pixels = await link.answer(link.rfb.screen, self._timeout)
        return await trio.to_thread.run_sync(png, width, height, pixels)

    async def frames(self, interval: float = 0.2) -> AsyncIterator[bytes]:
        check_seconds("interval", interval)
        link = await self._linked()
        shown = b""
        width, height, pixels = await link.answer(link.rfb.screen, self._timeout)
        while True:
            number, since = link.rfb.generation, trio.current_time()
            frame = await trio.to_thread.run_sync(png, width, height, pixels)
            if frame != shown:  # servers tell of changes that are none
                shown = frame
                yield frame
            await trio.sleep_until(since + interval)
            await link.answer(partial(link.rfb.changed, number))
            width, height, pixels = link.rfb.picture()

    async def size(self) -> list[int]:
        rfb = (await self._linked()).rfb
        return [rfb.width, rfb.height]

    # ---- keyboard and pointer

    async def type(self, text: str, interval: float = 0.02) -> None:
        check_seconds("interval", interval)
        strokes = [_keys.of_character(each) for each in text]
        await self._strike(strokes, hold=0, interval=interval)

    async def press(self, *keys: str, hold: float = 0.05) -> None:
        check_seconds("hold", hold)
        await self._strike([_keys.of_combination(each) for each in keys], hold=hold, interval=hold)

    async def _strike(self, strokes: Sequence[Sequence[int]], *, hold: float, interval: float) -> None:
        """Keys of a stroke go down in order and up in the opposite one; cancelled, none stays down."""
        rfb = (await self._linked()).rfb
        for stroke in strokes:
            down: list[int] = []
            try:
                for keysym in stroke:
                    await rfb.key(keysym, down=True)
                    down.append(keysym)
                await trio.sleep(hold)
            finally:
                with trio.CancelScope(shield=True):
                    for keysym in reversed(down):
                        await rfb.key(keysym, down=False)
            await trio.sleep(interval)

    async def move(self, x: int, y: int) -> None:
        await (await self._pointing(x, y)).point(x, y)

    async def click(self, x: int, y: int, button: Buttons = "left", count: int = 1) -> None:
        rfb = await self._pointing(x, y)
        for _ in range(count):
            await self._hold(rfb, Button[button.upper()], (x, y), (x, y))

    async def drag(self, x: int, y: int, to_x: int, to_y: int, button: Buttons = "left") -> None:
        rfb = await self._pointing(x, y)
        await self._pointing(to_x, to_y)
        await self._hold(rfb, Button[button.upper()], (x, y), (to_x, to_y))

    async def scroll(self, steps: int) -> None:
        rfb = (await self._linked()).rfb
        for _ in range(abs(steps)):
            await self._hold(rfb, Button.WHEEL_DOWN if steps > 0 else Button.WHEEL_UP, rfb.pointer, rfb.pointer)

    async def _hold(self, rfb: Rfb, button: Button, first: tuple[int, int], last: tuple[int, int]) -> None:
        await rfb.point(*first)
        await rfb.point(*first, button)
        try:
            await trio.sleep(0.02)  # some programs overlook a button that goes down and up in one instant
            if last != first:
                await rfb.point(*last, button)
        finally:
            with trio.CancelScope(shield=True):
                await rfb.point(*last)

    async def _pointing(self, x: int, y: int) -> Rfb:
        rfb = (await self._linked()).rfb
        if not (0 <= x < rfb.width and 0 <= y < rfb.height):
            raise BadValue(f"{x}, {y} is not on the screen, which is {rfb.width} x {rfb.height} pixels")
        return rfb

    # ---- the connection

    async def _linked(self) -> _Link:
        """The connection; made again if it has ended."""
        if self._link is None or self._link.failure is not None:
            self._link = _Link()
            self.nursery.start_soon(self._keep, self._link)
        link = self._link
        await link.ready.wait()
        if link.failure is not None:
            raise link.failure
        return link

    async def _keep(self, link: _Link) -> None:
        """Connect, and follow the server until the connection ends; tell whoever waits for it why."""
        failure: JmpError = DeviceError("the connection to the screen has ended")
        try:
            with trio.fail_after(self._timeout):
                stream = await self._open_stream()
            async with stream:
                link.rfb = Rfb(stream, await self.invoke("address"))
                with trio.fail_after(self._timeout):
                    await link.rfb.negotiate(self._password())
                link.ready.set()
                await link.rfb.run()
        except trio.TooSlowError:
            failure = DeviceError(f"{await self.invoke('address')} did not answer within {self._timeout:g} s")
        except JmpError as error:
            failure = error
        finally:
            link.end(failure)


class _Link:
    """A connection to the server: not made yet, in use, or over."""

    rfb: Rfb

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.failure: JmpError | None = None
        """Why it is over."""
        self._waiting: set[trio.CancelScope] = set()

    def end(self, failure: JmpError) -> None:
        self.failure = failure
        self.ready.set()
        for scope in self._waiting:
            scope.cancel()

    async def answer(self, ask: Callable[[], Awaitable[T]], seconds: float = math.inf) -> T:
        """What the server answers; raises why it does not."""
        if self.failure is not None:
            raise self.failure
        with trio.move_on_after(seconds) as scope:
            self._waiting.add(scope)
            try:
                return await ask()
            finally:
                self._waiting.discard(scope)
        raise self.failure or DeviceError(f"the screen sent no picture within {seconds:g} s")


class Vnc(VncScreen):
    """A VNC server: a device's own, or that of a BMC, a KVM switch, a desktop.

    It is at ``host`` and ``port``, or at the Unix socket ``path``. It may ask for a password (VNC's own kind, of which eight
    characters count) or for nothing.
    """

    host: str = ""
    port: int = 5900
    path: Path | None = field(default=None, metadata={"doc": "Unix socket of the exporter's machine, in place of host"})
    password: str = field(default="", metadata={"secret": True})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that connecting, and a picture, may take"})

    services: ClassVar[tuple[str, ...]] = ("_rfb._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        port = {} if service.port == 5900 else {"port": service.port}
        yield Suggestion("screen", {"host": service.address, **port}, service.about("VNC"), service.at(5900))

    def __post_init__(self) -> None:
        if bool(self.host) == (self.path is not None):
            raise ConfigError("needs either 'host' or 'path': where the server is")
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        self._timeout = self.timeout
        self._target = Unix(path=self.path) if self.path is not None else Tcp(host=self.host, port=self.port)

    def _password(self) -> str:
        return self.password

    async def _open_stream(self) -> trio.abc.Stream:
        try:
            if self.path is not None:
                return await trio.open_unix_socket(self.path)
            return await trio.open_tcp_stream(self.host, self.port)
        except OSError as error:
            raise DeviceError(f"cannot connect to {await self.address()}: {reason(error)}") from error

    async def address(self) -> str:
        return await self._target.address()
