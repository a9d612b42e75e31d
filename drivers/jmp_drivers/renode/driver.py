"""The driver ``renode``, and the parts of the board that clients see."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import tempfile
import tty
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import field
from pathlib import Path
from subprocess import PIPE, STDOUT

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Stream, export, exportstream
from jmp.driver.interfaces import Console, Flasher, Power, PowerState
from jmp_drivers._process import leashed
from jmp_drivers._tasks import open_nursery
from jmp_drivers.console import ConsoleOptions
from jmp_drivers.renode.monitor import Monitor, failure_in

_READ = 64 * 1024
_WORDS = 5  # lines that Renode said last, for the message of its end
_GRACE = 3.0  # seconds that it has to end in order
_LOOK = 0.05  # seconds between two tries to connect: nothing tells when it listens
_BOARD = "board"  # the machine's name, unless a script gives it one
_ELF = b"\x7fELF"


class Renode(ConsoleOptions):
    """A board that Renode simulates: power, the console of a serial port, firmware, and Renode's monitor.

    It is described by a ``script`` of Renode's (``.resc``), which finds the firmware as its variable ``$bin``, or by a
    ``platform`` (``.repl``), into which the firmware is loaded. On starts Renode, off ends it.
    """

    script: Path | None = field(default=None, metadata={"doc": "a .resc file that makes the board"})
    platform: str = field(
        default="", metadata={"doc": "in its place, a .repl file, or one of Renode's own as platforms/boards/….repl"}
    )
    firmware: Path | None = field(
        default=None, metadata={"doc": "an ELF file that the board runs, until one is flashed"}
    )
    uart: str = field(default="sysbus.uart0", metadata={"doc": "the serial port that is the console; empty: none"})
    commands: list[str] = field(default_factory=list, metadata={"doc": "of the monitor, before the board starts"})
    args: list[str] = field(default_factory=list, metadata={"doc": "more arguments for Renode"})
    program: str = field(default="renode", metadata={"doc": "Renode's program"})
    timeout: float = field(default=60.0, metadata={"doc": "seconds that starting, and a command, may take"})
    power_on_open: bool = field(default=False, metadata={"doc": "switch on when the session begins"})

    def __post_init__(self) -> None:
        if (self.script is None) == (not self.platform):
            raise ConfigError("needs 'script' (a .resc file) or 'platform' (a .repl file)")
        if self.uart and not re.fullmatch(r"[A-Za-z_][\w.]*", self.uart):
            raise ConfigError(f"uart: {self.uart!r} cannot be the name of a serial port; write sysbus.uart0")
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        if any(not command.strip() or not command.isprintable() for command in self.commands):
            raise ConfigError("commands: each is one line")
        self._hub = self.make_hub()
        self._monitor: Monitor | None = None  # while it is on
        self._descriptor: int | None = None  # of the console
        self._life = trio.CancelScope()
        self._ended = trio.Event()
        self._switching = trio.Lock()
        self._is_open = False
        self._off = "its session has not begun"  # why it is off
        self._flashed: Path | None = None
        self.children["power"] = RenodePower(_board=self)
        self.children["monitor"] = RenodeMonitor(_board=self)
        self.children["firmware"] = RenodeFirmware(_board=self)
        if self.uart:
            self.children["console"] = RenodeConsole(_board=self)

    async def open(self) -> None:
        try:
            for what in (self.script, self.firmware):
                if what is not None and not what.is_file():
                    raise DeviceError(f"{what} does not exist: correct its place in the configuration")
            self._hub.open_log()
            self._folder = tempfile.TemporaryDirectory(prefix="jmp-renode-")
            self._flashed = None
            self._is_open, self._off = True, "switch it on first"
            if self.power_on_open:
                await self._on()
        except BaseException as error:
            if self._is_open:
                self._folder.cleanup()
            self._is_open = False
            self._off = error.message if isinstance(error, DeviceError) else self._off
            raise

    async def close(self) -> None:
        self._is_open = False
        await self._off_now()
        self._hub.end()
        self._folder.cleanup()

    @export
    async def pause(self) -> None:
        """Let the board stand still; its clock too."""
        await self._order("pause")

    @export
    async def resume(self) -> None:
        """Let it go on."""
        await self._order("start")

    @export(name="reset")
    async def press_reset(self) -> None:
        """Press its reset button."""
        await self._order("machine Reset")

    # ---- on and off

    async def _on(self) -> None:
        async with self._switching:
            if not self._is_open:
                raise DeviceError(f"the board is off: {self._off}")
            if self._monitor is None:
                await self.nursery.start(self._live)

    async def _off_now(self) -> None:
        async with self._switching:
            if self._monitor is not None:
                self._life.cancel()
                await self._ended.wait()

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        """Renode, from start to end. Raises nothing once the board runs."""
        end = ""
        self._ended = trio.Event()
        try:
            with trio.CancelScope() as self._life:
                async with self._renode() as (monitor, process, said):
                    try:
                        await self._within(self._set_up(monitor))
                        async with self._connected():
                            await self._within(_checked(monitor, "start"))
                            self._monitor = monitor
                            task_status.started()
                            await process.wait()
                    except DeviceError as error:
                        raise DeviceError(
                            "; ".join([f"Renode did not set the board up: {error.message}", *said])
                        ) from error
                end = "; ".join([f"Renode ended by itself ({_end(process)})", *said])
        finally:
            self._monitor = None
            self._off = f"{end}; switch it on again" if end else "switch it on first"
            self._ended.set()
        if end:
            self.log.warning("%s", end)
            self._hub.feed(f"\r\n[{end}]\r\n".encode())

    @asynccontextmanager
    async def _renode(self) -> AsyncIterator[tuple[Monitor, trio.Process, deque[str]]]:
        """Renode itself, its monitor, and what it says. Raises `DeviceError` if it does not start."""
        said: deque[str] = deque(maxlen=_WORDS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        line = [self.program, "--disable-gui", "--plain", "--hide-analyzers", "--port", str(port), *self.args]
        async with open_nursery() as nursery, leashed(line, stdout=PIPE, stderr=STDOUT, grace=_GRACE) as process:
            assert process.stdout is not None
            nursery.start_soon(self._log_words, process.stdout, said)
            stream: trio.SocketStream | None = None
            with trio.move_on_after(self.timeout):
                while stream is None and process.poll() is None:
                    try:
                        stream = await trio.open_tcp_stream("127.0.0.1", port)
                    except OSError:
                        await trio.sleep(_LOOK)
            if stream is None:
                why = "its monitor does not answer" if process.poll() is None else f"it ended ({_end(process)})"
                raise DeviceError("; ".join([f"Renode did not start: {why}", *said]))
            async with stream:
                yield Monitor(stream), process, said

    async def _log_words(self, stream: trio.abc.ReceiveStream, said: deque[str]) -> None:
        rest = b""
        with suppress(trio.ClosedResourceError):  # Renode has been ended
            async for data in stream:
                *lines, rest = (rest + bytes(data)).split(b"\n")
                for line in lines:
                    if text := line.decode(errors="replace").strip():
                        self.log.info("%s", text)
                        said.append(text)

    async def _set_up(self, monitor: Monitor) -> None:
        await monitor.ready()
        firmware = self._flashed or self.firmware
        if self.script is not None:
            if firmware is not None:
                await _checked(monitor, f"$bin={_path(firmware)}")
            await _checked(monitor, f"include {_path(self.script)}")
        else:
            own = await trio.Path(self.platform).is_file()
            await _checked(monitor, f'mach create "{_BOARD}"')
            platform = _path(Path(self.platform)) if own else f"@{self.platform}"
            await _checked(monitor, f"machine LoadPlatformDescription {platform}")
            if firmware is not None:
                await _checked(monitor, f"sysbus LoadELF {_path(firmware)}")
        if self.uart:
            await _checked(monitor, f'emulation CreateUartPtyTerminal "jmp-console" "{self._place}" true')
            await _checked(monitor, f"connector Connect {self.uart} jmp-console")
        for command in self.commands:
            await _checked(monitor, command)

    async def _within(self, work: Awaitable[object]) -> None:
        with trio.move_on_after(self.timeout) as patience:
            await work
        if patience.cancelled_caught:
            raise DeviceError(f"it took more than {self.timeout:g} s")

    # ---- the console

    @property
    def _place(self) -> Path:
        """Where Renode puts a link to its pty."""
        return Path(self._folder.name, "console")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """Attached to the console's pty, whose other end is Renode's."""
        if not self.uart:
            yield
            return
        try:
            descriptor = os.open(self._place, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"it has made no console: {error.strerror}") from error
        try:
            tty.setraw(descriptor)
            async with open_nursery() as nursery:
                nursery.start_soon(self._read, descriptor)
                self._descriptor = descriptor
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._descriptor = None
            self._take(descriptor)
            os.close(descriptor)

    async def _read(self, descriptor: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            if not self._take(descriptor):
                return

    def _take(self, descriptor: int) -> bool:
        """Hand on what is there; False once there will be no more."""
        with suppress(BlockingIOError):
            try:
                while data := os.read(descriptor, _READ):
                    self._hub.feed(data)
            except BlockingIOError:
                return True
            except OSError:  # EIO: Renode's end is closed
                pass
        return False

    async def _type(self, data: bytes) -> None:
        """Send to the console. Of a board that is off nobody listens: as with a real one, no error."""
        rest = memoryview(data)
        while rest and self._descriptor is not None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._descriptor)
        await trio.lowlevel.checkpoint()

    # ---- the monitor

    async def _order(self, command: str) -> str:
        """What a command of the monitor prints. Raises `DeviceError` if that is a failure."""
        if self._monitor is None:
            raise DeviceError(f"the board is off: {self._off}")
        with trio.move_on_after(self.timeout):
            return await _checked(self._monitor, command)
        raise DeviceError(f"Renode did not answer {command!r} within {self.timeout:g} s; it goes on with it")


async def _checked(monitor: Monitor, command: str) -> str:
    printed = await monitor.execute(command)
    if failure := failure_in(printed):
        raise DeviceError(f"{command!r}: {failure}")
    return printed


def _end(process: trio.Process) -> str:
    status = process.returncode or 0
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _path(path: Path) -> str:
    """A file's name, as the monitor reads one."""
    return "@" + str(path.absolute()).replace(" ", "\\ ")


class RenodePower(Power):
    """The board's power: on starts Renode, off ends it."""

    _board: Renode = field(repr=False)

    async def on(self) -> None:
        await self._board._on()

    async def off(self) -> None:
        await self._board._off_now()

    async def state(self) -> PowerState:
        return "off" if self._board._monitor is None else "on"


class RenodeMonitor(Driver):
    """Renode's monitor: whatever its commands can do, to memory, registers, sensors, time."""

    _board: Renode = field(repr=False)

    @export
    async def execute(self, command: str) -> str:
        """Run a command; what it prints. One that prints of a failure is an error."""
        return await self._board._order(command)


class RenodeFirmware(Flasher):
    """What the board runs."""

    _board: Renode = field(repr=False)

    async def flash(self, stream: Stream, target: str = "", name: str = "") -> None:
        """Run what the client sends, an ELF file, from now to the session's end. A board that is on is switched off and on."""
        board = self._board
        if target:
            raise BadValue("an ELF file says itself where it goes: there is no target")
        path = Path(board._folder.name, f"firmware-{secrets.token_hex(4)}.elf")
        async with await trio.open_file(path, "wb") as file:
            async for data in stream:
                await file.write(data)
        async with await trio.open_file(path, "rb") as file:
            if await file.read(len(_ELF)) != _ELF:
                raise BadValue(f"{name or 'the image'} is no ELF file")
        board._flashed = path
        if board._monitor is not None:
            await board._off_now()
            await board._on()
        await stream.send_all(b"the board runs it\n" if board._monitor else b"the board will run it when it is on\n")


class RenodeConsole(Console):
    """The board's serial port; stays attached when it is switched off and on."""

    _board: Renode = field(repr=False)

    @exportstream
    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        await self._board._hub.serve(stream, self._board._type, replay=replay, write=write, take_over=take_over)

    @export
    async def history(self) -> bytes:
        return self._board._hub.history()

    @export
    async def send(self, data: bytes) -> None:
        await self._board._type(data)
