"""One QEMU process, from its start to its end, and the wires to it.

QEMU gets descriptors instead of names: its ends of the socket pairs for the serial port and the monitor, and memory to
draw the screen into. So the first byte of a boot cannot be lost, there is nothing to connect to that could be late, nobody
else can connect, and nothing stays behind. The exception are forwarded ports, which are TCP on loopback.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import count

import trio

from jmp.errors import DeviceError
from jmp_drivers._process import leashed
from jmp_drivers._tasks import open_nursery
from jmp_drivers.qemu.disk import Disk
from jmp_drivers.qemu.machines import Hardware, command_line, forwarded_ports
from jmp_drivers.qemu.program import while_alive
from jmp_drivers.qemu.qmp import Event, Qmp

START_TIMEOUT = 30.0
"""Seconds until QEMU's monitor answers; a tenth of one is usual, and guests of many gigabytes on busy hosts take some."""

STOP_GRACE = 5.0
"""Seconds for QEMU to write its disk caches back before it is killed: half of what a driver's close has."""


class Emulator:
    """A running QEMU; made by `emulator`."""

    def __init__(self, process: trio.Process, qmp: Qmp, serial: trio.SocketStream, screen: int) -> None:
        self.process = process
        self.qmp = qmp
        self.ports: Mapping[int, int] = {}
        """Guest port → our port on 127.0.0.1."""
        self.end = ""
        """How the process ended and what it last said, once the context is over."""
        self._serial = serial
        self._screen = screen  # has the same number in QEMU
        self._drawing = trio.Lock()
        self._typing = trio.Lock()
        self._names = count(1)
        self._stop = trio.Event()

    def stop(self) -> None:
        """Let `until_end` return."""
        self._stop.set()

    async def until_end(self) -> None:
        """Wait until the process has ended, or `stop`."""
        async with while_alive(self.process):
            await self._stop.wait()

    async def type(self, data: bytes) -> None:
        """Send to the serial port; waits while the guest does not read. What a machine that goes off has not read is lost."""
        async with self._typing:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._serial.send_all(data)

    async def screendump(self) -> bytes:
        """The screen as a PPM file. Raises `DeviceError` if there is none."""
        async with self._drawing:
            await self.qmp.execute("screendump", {"filename": f"/proc/self/fd/{self._screen}"})
            return os.pread(self._screen, os.fstat(self._screen).st_size, 0)

    async def open_vnc(self) -> trio.SocketStream:
        """A new connection to the VNC server."""
        stream, theirs = _socket_pair()
        with theirs:
            name = f"vnc{next(self._names)}"
            try:
                await self.qmp.pass_descriptor(name, theirs.fileno())
                await self.qmp.execute("add_client", {"protocol": "vnc", "fdname": name, "skipauth": True})
            except (DeviceError, trio.Cancelled):
                stream.socket.close()
                raise
        return stream

    async def _greet(self, forward: Collection[int]) -> str:
        """Wait for the monitor, and ask it for the forwarded ports. Returns what went wrong, rather than raise it."""
        problem = "it ended"
        with trio.move_on_after(START_TIMEOUT) as patience:
            async with while_alive(self.process):
                try:
                    await self.qmp.negotiate()
                    table = await self.qmp.execute("human-monitor-command", {"command-line": "info usernet"})
                    self.ports = forwarded_ports(table)
                    problem = "" if self.ports.keys() >= set(forward) else f"no forwarded ports: {table.strip()}"
                except DeviceError as error:
                    problem = error.message
        return f"no answer within {START_TIMEOUT:g} s" if patience.cancelled_caught else problem


@asynccontextmanager
async def emulator(
    hardware: Hardware,
    disk: Disk | None,
    *,
    binary: str,
    paused: bool = False,
    inherits: Sequence[int] = (),
    feed: Callable[[bytes], None],
    on_event: Callable[[Event], None],
    log: logging.Logger,
) -> AsyncIterator[Emulator]:
    """Run QEMU for as long as the body runs; entered once its monitor answers, while the guest begins to boot.

    `paused`, the guest does not begin before the monitor's ``cont``. QEMU gets the descriptors that it `inherits`, by the same
    numbers. `feed` gets what comes from the serial port, to the very last byte unless cancelled. Raises `DeviceError`, with
    QEMU's own words, if it does not start.
    """
    complaints: deque[str] = deque(maxlen=20)
    with ExitStack() as stack, ExitStack() as theirs:
        screen = os.memfd_create("screen")
        stack.callback(os.close, screen)
        serial, serial_theirs = _socket_pair()
        monitor, monitor_theirs = _socket_pair()
        errors, errors_theirs = os.pipe()
        stack.callback(serial.socket.close)
        stack.callback(monitor.socket.close)
        theirs.enter_context(serial_theirs)
        theirs.enter_context(monitor_theirs)
        theirs.callback(os.close, errors_theirs)
        qmp = Qmp(monitor, on_event)
        drive = disk.options if disk else None
        line = command_line(
            hardware,
            binary=binary,
            serial=serial_theirs.fileno(),
            monitor=monitor_theirs.fileno(),
            disk=drive,
            paused=paused,
        )
        inherited = [serial_theirs.fileno(), monitor_theirs.fileno(), screen, *inherits]
        inherited += disk.descriptors if disk else ()
        log.debug("starting %s", shlex.join(line))

        # The readers end by themselves, with the last of QEMU's processes: then they have read all there was to read.
        async with open_nursery() as readers:
            readers.start_soon(_read_serial, serial, feed)
            readers.start_soon(_read_errors, trio.lowlevel.FdStream(errors), complaints, log)
            readers.start_soon(qmp.run)
            async with leashed(line, pass_fds=inherited, stderr=errors_theirs, grace=STOP_GRACE) as process:
                theirs.close()
                running = Emulator(process, qmp, serial, screen)
                if not (problem := await running._greet(hardware.forward.values())):
                    yield running
        running.end = "; ".join([f"QEMU ended by itself ({_end(process)})", *complaints])
        if problem:
            raise DeviceError(f"QEMU did not start: {'; '.join(complaints) or f'{problem} ({_end(process)})'}")


async def _read_serial(serial: trio.SocketStream, feed: Callable[[bytes], None]) -> None:
    with suppress(trio.BrokenResourceError):  # it ended without having read all that was typed
        async for data in serial:
            feed(bytes(data))


async def _read_errors(errors: trio.lowlevel.FdStream, complaints: deque[str], log: logging.Logger) -> None:
    rest = b""
    async with errors:
        async for data in errors:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").strip()
                log.info("%s", text)
                complaints.append(text)


def _end(process: trio.Process) -> str:
    status = process.returncode or 0
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _socket_pair() -> tuple[trio.SocketStream, socket.socket]:
    """Our end and the other's."""
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs
