"""Serial ports: any device path, and any URL that pyserial knows."""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Callable, Iterator
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Literal

import serial
import trio
from serial.tools import list_ports
from serial.urlhandler import protocol_socket

from jmp.driver import BadValue, ConfigError, DeviceError, Machine, Suggestion, export
from jmp_drivers.console import HubConsole

_READ = 64 * 1024
_READ_TIMEOUT = 1.0  # seconds a reader thread may go on after its port was closed; only some URL handlers need it

_PARITY = {
    "none": serial.PARITY_NONE,
    "even": serial.PARITY_EVEN,
    "odd": serial.PARITY_ODD,
    "mark": serial.PARITY_MARK,
    "space": serial.PARITY_SPACE,
}
_LONGEST_BREAK = 60.0  # seconds
# What pyserial raises for a port that does not do as it is told; SerialException is an OSError.
_FAILURES = (OSError, ValueError, termios.error)


class Serial(HubConsole):
    """A serial port: a console with many readers and one writer.

    ``url`` is a device path (best one below /dev/serial/by-id, which stays the same when ports are renumbered) or a URL of
    pyserial: ``rfc2217://host:port``, ``socket://host:port``, ``hwgrep://pattern``, ``loop://`` and so on.
    """

    url: str
    baudrate: int = 115200
    bytesize: Literal[5, 6, 7, 8] = 8
    parity: Literal["none", "even", "odd", "mark", "space"] = "none"
    stopbits: float = 1
    rtscts: bool = False
    xonxoff: bool = False
    initial_dtr: bool | None = field(default=None, metadata={"key": "dtr", "doc": "DTR once open; on if not given"})
    initial_rts: bool | None = field(default=None, metadata={"key": "rts", "doc": "RTS once open; on if not given"})
    cps: float | None = field(default=None, metadata={"doc": "characters per second to send at most"})

    def __post_init__(self) -> None:
        if self.baudrate <= 0:
            raise ConfigError(f"baudrate must be above 0, not {self.baudrate}")
        if self.stopbits not in (1, 1.5, 2):
            raise ConfigError(f"stopbits must be 1, 1.5 or 2, not {self.stopbits:g}")
        if self.rtscts and self.xonxoff:
            raise ConfigError("rtscts and xonxoff exclude each other: choose one flow control")
        if self.cps is not None and self.cps <= 0:
            raise ConfigError(f"cps must be above 0, not {self.cps:g}")
        super().__post_init__()
        self._sending = trio.Lock()
        self._next_send = -float("inf")

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        consoles = machine.text("/sys/class/tty/console/active").split()
        for place in machine.glob("/sys/class/tty/*/device"):
            port = place.split("/")[-2]
            absent = machine.text(f"/sys/class/tty/{port}/type") == "0"  # a port of the board's that has no chip
            if absent or port in consoles or not machine.exists(f"/dev/{port}"):
                continue
            url = machine.link_to(f"/dev/{port}", "/dev/serial/by-id/*")
            about = machine.about(place, "serial port of this machine")
            yield Suggestion("console", {"url": url}, about, f"/dev/{port}")

    # ---- life

    async def open(self) -> None:
        self._hub.open_log()
        # Not abandoned if the session ends meanwhile: `close` is to find the port and close it.
        self._port = await trio.to_thread.run_sync(self._open_port)
        self._closing = False
        self._reader_done = trio.Event()
        self._descriptor = _descriptor(self._port)
        self.nursery.start_soon(self._keep_reading)

    def _open_port(self) -> serial.Serial:
        try:
            port = serial.serial_for_url(
                self.url,
                do_not_open=True,
                exclusive=True,
                baudrate=self.baudrate,
                bytesize=self.bytesize,
                parity=_PARITY[self.parity],
                stopbits=self.stopbits,
                rtscts=self.rtscts,
                xonxoff=self.xonxoff,
                timeout=_READ_TIMEOUT,
                inter_byte_timeout=0,  # VMIN 1: a read without data then fails with EAGAIN; nothing means end of file
            )
            if isinstance(port, protocol_socket.Serial):  # what a terminal server says first is not to be dropped
                vars(port)["reset_input_buffer"] = lambda: None
            if self.initial_dtr is not None:
                port.dtr = self.initial_dtr
            if self.initial_rts is not None:
                port.rts = self.initial_rts
            port.open()
        except _FAILURES as error:
            raise DeviceError(f"serial port {self.url}: {_explain(error, self.url)}") from error
        return port

    async def close(self) -> None:
        self._closing = True
        if self._descriptor is not None:
            trio.lowlevel.notify_closing(self._descriptor)
            await self._reader_done.wait()
        elif hasattr(self._port, "cancel_read"):
            self._port.cancel_read()
            await self._reader_done.wait()
        # Abandoned if it takes too long: the kernel waits half a minute for a port whose flow control holds output back.
        await trio.to_thread.run_sync(self._port.close, abandon_on_cancel=True)
        await self._reader_done.wait()
        self._hub.end()

    async def reset(self) -> None:
        """Back to the configured baud rate and, where they are configured, DTR and RTS."""
        await self.set_baudrate(self.baudrate)
        if self.initial_dtr is not None:
            await self.set_dtr(self.initial_dtr)
        if self.initial_rts is not None:
            await self.set_rts(self.initial_rts)

    # ---- from the device: this task alone reads from the port

    async def _keep_reading(self) -> None:
        reason = "it was unplugged or closed by the other side"
        try:
            if self._descriptor is not None:
                await self._read_descriptor(self._descriptor)
            else:
                await trio.to_thread.run_sync(self._read_in_thread, limiter=trio.CapacityLimiter(1))
        except OSError as error:
            reason = _explain(error, self.url)
        except trio.ClosedResourceError:
            pass
        finally:
            self._reader_done.set()
        if not self._closing:
            reason = f"serial port {self.url} is gone: {reason}"
            await self._gone(reason)

    async def _read_descriptor(self, descriptor: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            try:
                data = os.read(descriptor, _READ)
            except BlockingIOError:
                continue
            if not data:
                return
            self._hub.feed(data)

    def _read_in_thread(self) -> None:
        while not self._closing:
            data = self._port.read(1)
            if data:
                data += self._port.read(self._port.in_waiting)
                trio.from_thread.run_sync(self._hub.feed, bytes(data))

    # ---- to the device

    async def _write(self, data: bytes) -> None:
        """Hand all of data to the port, at most `cps` bytes per second. Cancelled, an unknown part of it was sent."""
        async with self._sending:
            try:
                if self.cps is None:
                    await self._write_now(data)
                    return
                for index in range(len(data)):
                    await trio.sleep_until(self._next_send)
                    self._next_send = max(self._next_send, trio.current_time()) + 1 / self.cps
                    await self._write_now(data[index : index + 1])
            except OSError as error:
                raise DeviceError(f"serial port {self.url}: {_explain(error, self.url)}") from error

    async def _write_now(self, data: bytes) -> None:
        if self._descriptor is None:
            await trio.to_thread.run_sync(self._port.write, data, abandon_on_cancel=True)
            return
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._descriptor)

    async def _configure(self, change: Callable[[], None]) -> None:
        """Change a setting of the port, in a thread: on USB that is a conversation with the device."""
        try:
            await trio.to_thread.run_sync(change)
        except ValueError as error:
            raise BadValue(f"serial port {self.url}: {error}") from error
        except _FAILURES as error:
            raise DeviceError(f"serial port {self.url}: {_explain(error, self.url)}") from error

    # ---- what clients call

    @export(name="baudrate")
    async def set_baudrate(self, value: int | None = None) -> int:
        """Change the baud rate, until the port is opened again; tells the rate that is in force."""
        if value is not None:
            await self._configure(partial(setattr, self._port, "baudrate", value))
        return int(self._port.baudrate)

    @export
    async def send_break(self, duration: float = 0.25) -> None:
        """Hold the line in break condition for so many seconds."""
        if not 0 < duration <= _LONGEST_BREAK:
            raise BadValue(f"duration must be more than 0 and at most {_LONGEST_BREAK:g} seconds, not {duration:g}")
        async with self._sending:
            await self._configure(partial(setattr, self._port, "break_condition", True))
            try:
                await trio.sleep(duration)
            finally:
                with trio.CancelScope(shield=True):
                    await self._configure(partial(setattr, self._port, "break_condition", False))

    @export(name="dtr")
    async def set_dtr(self, value: bool) -> None:
        """Set the line DTR."""
        await self._configure(partial(setattr, self._port, "dtr", value))

    @export(name="rts")
    async def set_rts(self, value: bool) -> None:
        """Set the line RTS."""
        await self._configure(partial(setattr, self._port, "rts", value))


def _descriptor(port: serial.Serial) -> int | None:
    """The port's descriptor, if bytes can be read from and written to it without pyserial: eight times as fast."""
    plain = type(port).read is serial.Serial.read and type(port).write is serial.Serial.write
    return port.fileno() if plain or isinstance(port, protocol_socket.Serial) else None


def _explain(error: BaseException, url: str) -> str:
    """One line on what is wrong and what to do. pyserial packs several messages into one."""
    code = getattr(error, "errno", None) or (error.args[0] if error.args and isinstance(error.args[0], int) else None)
    match code:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return f"no such device; {_present(url)}"
        case errno.EACCES | errno.EPERM:
            return "permission denied; the exporter's user must be in the group that owns it (often dialout)"
        case errno.EAGAIN | errno.EBUSY:
            return "another program is using it"
        case errno.ENOTTY:
            return "it has no such line or setting (a pseudo-terminal has no modem lines)"
        case errno.EINVAL:
            return "it does not support these settings"
        case errno.EOPNOTSUPP:
            return "it does not support this, as USB devices that are only like a serial port do not"
        case int():
            return os.strerror(code)
        case _:
            return str(error)


def _present(url: str) -> str:
    """Which ports there are, named in the way in which the missing one is."""
    folder = Path(url).parent
    if folder.parent == Path("/dev/serial") and folder.is_dir():
        ports = [str(path) for path in folder.iterdir()]
    else:
        ports = [port.device for port in list_ports.comports()]
    return f"present: {', '.join(sorted(ports))}" if ports else "there are no serial ports on this machine"
