"""One session's virtual machine: a disk, a console, and a QEMU process whenever it is switched on.

Each time it is switched on, one task (`_live`) runs QEMU from its start to its end, whoever ends it: we, the guest, or a crash.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from enum import Enum
from typing import Any

import trio

from jmp.errors import Busy, DeviceError, JmpError, LabError
from jmp_drivers._nbd import Nbd
from jmp_drivers.console import Hub
from jmp_drivers.qemu.disk import Disk
from jmp_drivers.qemu.emulator import Emulator, emulator
from jmp_drivers.qemu.machines import DEFAULTS, Hardware
from jmp_drivers.qemu.program import require
from jmp_drivers.qemu.qmp import Event
from jmp_drivers.qemu.snapshots import Snapshots

EVENT_BACKLOG = 1000
"""Events that a listener may be behind."""

RELEASE = 1.0
"""Seconds that the disk may stay in use before others are refused: a call that was just given up takes a moment to let go."""


class State(Enum):
    """What the machine does. The disk can be used from outside only while nothing else goes on."""

    OFF = "off"
    STARTING = "being switched on"
    ON = "on"
    STOPPING = "being switched off"
    DISK = "off, and its disk is in use"


_LEGAL = {
    State.OFF: {State.STARTING, State.DISK},
    State.STARTING: {State.ON, State.OFF},
    State.ON: {State.STOPPING, State.OFF},
    State.STOPPING: {State.OFF},
    State.DISK: {State.OFF},
}


class Vm:
    """See the module. All methods belong to the Trio thread."""

    def __init__(self, hardware: Hardware, *, binary: str, disk: Disk | None, hub: Hub) -> None:
        self._disk = disk
        self._snapshots = Snapshots(disk)
        self._snapping = trio.Lock()
        self.hub = hub
        """The serial console; it goes on when the machine is switched off and on again, like a cable that stays plugged in."""
        self._hardware = hardware
        self._binary = binary
        self._log = logging.getLogger(__name__)
        self._nursery: trio.Nursery | None = None  # while it is open
        self._state = State.OFF
        self._changed = trio.lowlevel.ParkingLot()
        self._emulator: Emulator | None = None
        self._reason = "it is not open"  # why it cannot be used now
        self._last_shutdown: Event | None = None
        self._listeners: set[trio.MemorySendChannel[Event]] = set()

    # ---- the session

    async def open(self, nursery: trio.Nursery, log: logging.Logger, *, on: bool = False) -> None:
        """Begin a session: disk unchanged, machine off, or `on`. Raises `DeviceError` for what is missing."""
        self._log = log
        with ExitStack() as on_failure:
            on_failure.callback(self._forget)
            try:
                self._check_files()
                self.hub.open_log()
                if self._disk is not None:
                    await self._disk.prepare()
                self._snapshots.prepare()
                self._nursery = nursery
                self._reason = "switch it on first"
                if on:
                    await self.on()
            except DeviceError as error:
                self._reason = error.message
                raise
            on_failure.pop_all()

    def _check_files(self) -> None:
        self._find_binary()
        for option in ("bios", "kernel", "initrd", "dtb"):
            file = getattr(self._hardware, option)
            if file is not None and not file.is_file():
                raise DeviceError(f"{option} image {file} does not exist: install it or correct '{option}'")

    def _forget(self) -> None:
        self._nursery = None
        self._snapshots.discard()
        if self._disk is not None:
            self._disk.discard()

    async def close(self) -> None:
        """End QEMU. The session's changes to the disk are gone."""
        self._nursery = None
        await self.off()
        self._reason = "its session has ended"
        self._forget()
        self.hub.end()

    async def reset(self) -> None:
        """Switch off and forget what the session has changed on the disk, and saved. Raises `Busy` while the disk is in use."""
        await self._disk_released()
        await self.off()
        self._snapshots.prepare()
        if self._disk is not None:
            with self._using_disk():
                await self._disk.prepare()

    def _find_binary(self) -> str:
        defaults = DEFAULTS[self._hardware.arch]
        return require(self._binary or defaults.binary, defaults.package)

    # ---- power

    @property
    def is_on(self) -> bool:
        return self._state in (State.ON, State.STOPPING)

    async def on(self, *, paused: bool = False) -> None:
        """Start QEMU, unless it runs. Returns when its monitor answers, while the guest begins to boot, or `paused` before that.

        Raises `DeviceError` with QEMU's own words if it does not start, `Busy` while the disk is in use. When cancelled, QEMU
        is ended again.
        """
        await self._disk_released()
        await self._settled()
        if self._state is State.ON:
            return
        if self._state is State.DISK:
            raise Busy("the machine's disk is being read or written; switch on when that has ended")
        if self._nursery is None:
            raise self._off_error()
        self._enter(State.STARTING)
        await self._nursery.start(self._live, paused)

    async def off(self, graceful: float = 0) -> None:
        """End QEMU, if it runs. With `graceful`, press the power button and give the guest that many seconds before.

        When cancelled, it goes off all the same, unless the guest still had time.
        """
        await self._settled()
        if graceful and self._emulator is not None:
            await self._press_power_button(self._emulator, graceful)
        if self._state is State.ON and self._emulator is not None:
            self._enter(State.STOPPING)
            self._emulator.stop()
        await self._settled()

    async def _press_power_button(self, emulator: Emulator, patience: float) -> None:
        with trio.move_on_after(patience) as scope:
            with suppress(DeviceError):  # QEMU ended before it answered
                await emulator.qmp.execute("system_powerdown")
            while self._emulator is emulator:
                await self._changed.park()
        if scope.cancelled_caught:
            self._log.warning("the guest did not shut down within %g s: switching it off", patience)

    async def _settled(self) -> None:
        while self._state in (State.STARTING, State.STOPPING):
            await self._changed.park()

    def _enter(self, state: State) -> None:
        if state not in _LEGAL[self._state]:
            raise RuntimeError(f"a machine that is {self._state.value} cannot become {state.value}")
        self._state = state
        self._changed.unpark_all()

    async def _live(self, paused: bool, task_status: trio.TaskStatus[None]) -> None:
        """QEMU from start to end. Raises nothing once it has started."""
        self._last_shutdown = None
        qemu = None
        try:
            async with emulator(
                self._hardware,
                self._disk,
                binary=self._find_binary(),
                paused=paused,
                inherits=self._snapshots.descriptors,
                feed=self.hub.feed,
                on_event=self._on_event,
                log=self._log,
            ) as qemu:
                self._emulator = qemu
                self._enter(State.ON)
                task_status.started()
                await qemu.until_end()
            end = qemu.end
        except JmpError as error:
            if qemu is None:
                raise
            end = error.message
        finally:
            self._emulator = None
            stopping = self._state is State.STOPPING
            self._enter(State.OFF)
        self._reason = "switch it on first"
        if not stopping:
            self._tell(end)

    def _tell(self, end: str) -> None:
        """Say, wherever somebody looks, why the machine went off without our doing."""
        if self._last_shutdown is not None and self._last_shutdown.data.get("guest"):
            end = "the guest switched the machine off"
            self._log.info("%s", end)
        else:
            self._log.warning("%s", end)
            self._reason = f"{end}; switch it on again"
        self.hub.feed(f"\r\n[{end}]\r\n".encode())

    # ---- what it does at another time

    async def pause(self) -> None:
        """Let the guest stand still."""
        await self.running().qmp.execute("stop")

    async def resume(self) -> None:
        """Let it go on."""
        await self.running().qmp.execute("cont")

    def snapshots(self) -> list[dict[str, Any]]:
        """Name and time (seconds since 1970) of each, oldest first."""
        return self._snapshots.listed()

    async def save(self, name: str) -> None:
        """Save memory, devices and disk. Raises `DeviceError` if the machine is off or QEMU cannot."""
        async with self._snapping:
            await self._snapshots.save(self.running().qmp, name)

    async def restore(self, name: str, *, paused: bool = False) -> None:
        """Make the machine what it was, on or off; `paused` it does not go on from there.

        Raises `BadValue` if there is no such snapshot. A machine whose state cannot be loaded goes off.
        """
        self._snapshots.check(name)
        async with self._snapping:
            await self.on(paused=True)
            qmp = self.running().qmp
            await qmp.execute("stop")
            try:
                await self._snapshots.load(qmp, name)
            except DeviceError:
                await self.off()
                raise
            self.hub.feed(f"\r\n[back at the snapshot {name}]\r\n".encode())
            if not paused:
                await qmp.execute("cont")

    async def forget(self, name: str) -> None:
        """Delete a snapshot. Raises `BadValue` if there is none, `DeviceError` if the machine is off."""
        self._snapshots.check(name)
        async with self._snapping:
            await self._snapshots.forget(self.running().qmp, name)

    # ---- what is reached while it is on

    def running(self) -> Emulator:
        """The running QEMU. Raises `DeviceError` if the machine is off, with the reason."""
        if self._emulator is None:
            raise self._off_error()
        return self._emulator

    def _off_error(self) -> DeviceError:
        return DeviceError(f"the virtual machine is off: {self._reason}")

    async def type(self, data: bytes) -> None:
        """Send to the serial console. Of a machine that is off nobody listens: as with a real one, no error."""
        if self._emulator is not None:
            await self._emulator.type(data)

    async def events(self) -> AsyncIterator[Event]:
        """What QEMU reports from now on, over all the times it is switched on."""
        sending, receiving = trio.open_memory_channel[Event](EVENT_BACKLOG)
        self._listeners.add(sending)
        try:
            async for event in receiving:
                yield event
        finally:
            self._listeners.discard(sending)
        raise LabError(f"this listener was more than {EVENT_BACKLOG} events behind and has been ended; read faster")

    def _on_event(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            self._last_shutdown = event
        for listener in list(self._listeners):
            try:
                listener.send_nowait(event)
            except trio.WouldBlock:
                self._listeners.discard(listener)
                listener.close()

    # ---- the disk

    async def _disk_released(self) -> None:
        with trio.move_on_after(RELEASE):
            while self._state is State.DISK:
                await self._changed.park()

    @contextmanager
    def _using_disk(self) -> Iterator[Disk]:
        if self._state is State.DISK:
            raise Busy("the machine's disk is in use by another call; wait until it has ended")
        if self._state is not State.OFF:
            raise DeviceError(f"the machine is {self._state.value}: switch it off to get at its disk")
        if self._nursery is None or self._disk is None:
            raise self._off_error()
        self._enter(State.DISK)
        try:
            yield self._disk
        finally:
            self._enter(State.OFF)

    @property
    def disk_size(self) -> int:
        """Bytes. Raises `DeviceError` if the machine is not ready."""
        if self._nursery is None or self._disk is None:
            raise self._off_error()
        return self._disk.size

    @asynccontextmanager
    async def opened_disk(self) -> AsyncIterator[Nbd]:
        """The disk's content. Raises `DeviceError` while the machine is on, `Busy` while another call uses the disk."""
        await self._disk_released()
        await self._settled()
        with self._using_disk() as disk:
            async with disk.opened() as nbd:
                yield nbd
