"""The driver ``qemu`` and the parts of the machine that clients see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import trio

from jmp.driver import ConfigError, DeviceError, Driver, Stream, export
from jmp.driver.interfaces import Console, Network, Power, PowerState
from jmp_drivers._reason import reason
from jmp_drivers._size import parse_size
from jmp_drivers.console import ConsoleOptions
from jmp_drivers.medium import Content, Medium
from jmp_drivers.network import join
from jmp_drivers.qemu.disk import Disk
from jmp_drivers.qemu.machines import Arch, Hardware
from jmp_drivers.qemu.picture import png
from jmp_drivers.qemu.vm import Vm
from jmp_drivers.vnc import VncScreen


@dataclass(kw_only=True)
class Image:
    """The machine's disk."""

    path: Path | None = field(default=None, metadata={"doc": "image file; without it the disk begins blank"})
    format: str = field(default="", metadata={"doc": "QEMU's name of it; default: qcow2 for *.qcow2, else raw"})
    size: int | str = field(default=0, metadata={"doc": "bytes, or 64M, 4G …; default: as the image"})
    writable: bool = field(default=False, metadata={"doc": "change the image itself, not a copy per session"})

    def __post_init__(self) -> None:
        self.bytes = parse_size(self.size) if isinstance(self.size, str) else self.size
        if self.path is None and not self.bytes:
            raise ConfigError("needs 'path' (an image file) or 'size' (of a blank disk)")
        if self.writable and (self.path is None or self.bytes):
            raise ConfigError("a writable disk has a 'path' and no 'size': the image decides")

    def disk(self) -> Disk:
        """A session's disk made from it."""
        return Disk(self.path, format=self.format, size=self.bytes, writable=self.writable)


class Qemu(ConsoleOptions):
    """A virtual machine under QEMU: power, console, monitor, disk, screen, network ports; paused, saved and restored."""

    arch: Arch
    machine: str = field(default="", metadata={"doc": "QEMU's -machine; default: virt, or pc for x86_64"})
    cpu: str = field(default="", metadata={"doc": "QEMU's -cpu; default: one that is fast to emulate"})
    memory: str = field(default="", metadata={"doc": "such as 512M; default: 256M, or what the board has"})
    smp: int | None = field(default=None, metadata={"doc": "number of processors"})
    accel: str = field(default="tcg", metadata={"doc": "tcg emulates; kvm needs the host's own architecture"})
    bios: Path | None = field(default=None, metadata={"doc": "firmware image, such as U-Boot"})
    kernel: Path | None = field(default=None, metadata={"doc": "kernel to start directly"})
    initrd: Path | None = field(default=None, metadata={"doc": "its initial RAM disk"})
    append: str | None = field(default=None, metadata={"doc": "its command line; default: console on the serial port"})
    dtb: Path | None = field(default=None, metadata={"doc": "device tree; default: QEMU makes one"})
    disk: Image | None = field(default=None, metadata={"doc": "the machine's disk"})
    network: bool = field(default=True, metadata={"doc": "a network card behind QEMU's own NAT"})
    forward: dict[str, int] = field(default_factory=dict, metadata={"doc": "child name → TCP port of the guest"})
    vnc: bool = field(default=False, metadata={"doc": "a screen and a keyboard, reached by VNC"})
    args: list[str] = field(default_factory=list, metadata={"doc": "more arguments for QEMU"})
    binary: str = field(default="", metadata={"doc": "QEMU's program; default: that of the architecture"})
    power_on_open: bool = field(default=False, metadata={"doc": "switch on when the session begins"})

    def __post_init__(self) -> None:
        if self.forward and not self.network:
            raise ConfigError("'forward' needs 'network'")
        hardware = Hardware(**{field.name: getattr(self, field.name) for field in fields(Hardware)})
        self._vm = Vm(hardware, binary=self.binary, disk=self.disk.disk() if self.disk else None, hub=self.make_hub())
        self.children["power"] = VmPower(_vm=self._vm)
        self.children["console"] = VmConsole(_vm=self._vm)
        self.children["monitor"] = VmMonitor(_vm=self._vm)
        if self.disk is not None:
            self.children["storage"] = VmStorage(_vm=self._vm)
        if self.vnc:
            self.children["vnc"] = VmVnc(_vm=self._vm)
        for name, port in self.forward.items():
            if name in self.children:
                raise ConfigError(f"forward: {name!r} is the name of another part of the machine; choose one more")
            if not 0 < port < 65536:
                raise ConfigError(f"forward.{name}: port must be 1 to 65535, not {port}")
            self.children[name] = VmPort(_vm=self._vm, _port=port)

    async def open(self) -> None:
        await self._vm.open(self.nursery, self.log, on=self.power_on_open)

    async def close(self) -> None:
        await self._vm.close()

    async def reset(self) -> None:
        """Machine off and the session's changes to its disk dropped; then on again, if it is to be on from the start."""
        await self._vm.reset()
        if self.power_on_open:
            await self._vm.on()

    @export
    async def pause(self) -> None:
        """Let the guest stand still; its clock too."""
        await self._vm.pause()

    @export
    async def resume(self) -> None:
        """Let it go on."""
        await self._vm.resume()

    @export
    async def save(self, name: str) -> None:
        """Save the running machine as a snapshot: memory, devices and disk. One of that name is replaced."""
        await self._vm.save(name)

    @export
    async def restore(self, name: str, paused: bool = False) -> None:
        """Make the machine what it was then, whether it is on or off; paused, it waits for resume."""
        await self._vm.restore(name, paused=paused)

    @export
    async def snapshots(self) -> list[dict[str, Any]]:
        """The session's snapshots: name, and time in seconds since 1970."""
        return self._vm.snapshots()

    @export
    async def forget(self, name: str) -> None:
        """Delete a snapshot, which takes about as much room as the memory in use."""
        await self._vm.forget(name)


class VmPower(Power):
    """The machine's power: on starts QEMU, off ends it."""

    _vm: Vm

    async def on(self) -> None:
        """Switch on; the console shows everything from the first byte of the boot."""
        await self._vm.on()

    async def off(self, graceful: float = 0) -> None:
        """Switch off. With graceful, press the power button first and give the guest so many seconds to shut down."""
        await self._vm.off(graceful)

    async def state(self) -> PowerState:
        """Off also when the guest has switched itself off, or QEMU has died."""
        return "on" if self._vm.is_on else "off"


class VmConsole(Console):
    """The machine's first serial port; stays attached when the machine is switched off and on."""

    _vm: Vm

    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        await self._vm.hub.serve(stream, self._vm.type, replay=replay, write=write, take_over=take_over)

    async def history(self) -> bytes:
        return self._vm.hub.history()

    async def send(self, data: bytes) -> None:
        await self._vm.type(data)

    @export
    async def send_break(self) -> None:
        """Send a break, for Linux's magic SysRq say."""
        await self._vm.running().qmp.execute("chardev-send-break", {"id": "serial"})


class VmMonitor(Driver):
    """QEMU's monitor: whatever QMP, its machine protocol, can do."""

    _vm: Vm

    @export
    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a QMP command and return its value."""
        return await self._vm.running().qmp.execute(command, arguments)

    @export
    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What QEMU reports from now on: RESET, SHUTDOWN and so on.

        Each is a dict of event (its name), data, and time in seconds since 1970.
        """
        async for event in self._vm.events():
            yield {"event": event.name, "data": event.data, "time": event.when}

    @export
    async def status(self) -> str:
        """What the guest does: running, paused, … (see QMP's query-status), or off."""
        if not self._vm.is_on:
            return "off"
        status: dict[str, str] = await self._vm.running().qmp.execute("query-status")
        return status["status"]

    @export(name="reset")
    async def press_reset(self) -> None:
        """Press the reset button."""
        await self._vm.running().qmp.execute("system_reset")

    @export
    async def screendump(self) -> bytes:
        """The screen, as a PNG file."""
        qemu = self._vm.running()
        try:
            picture = await qemu.screendump()
        except DeviceError as error:
            raise DeviceError(f"{error.message} ('vnc: true' gives the machine a screen)") from error
        return await trio.to_thread.run_sync(png, picture)


class VmStorage(Medium):
    """The machine's disk, while the machine is off."""

    noun = "disk"

    _vm: Vm

    def opened(self, *, writing: bool) -> AbstractAsyncContextManager[Content]:
        return self._vm.opened_disk()

    async def size(self) -> int:
        """Size of the disk in bytes, also while the machine is on."""
        return self._vm.disk_size


class VmVnc(VncScreen):
    """The machine's screen, keyboard and pointer, as a VNC server too."""

    _vm: Vm

    async def _open_stream(self) -> trio.abc.Stream:
        return await self._vm.running().open_vnc()

    async def address(self) -> str:
        """It has none: nobody but clients of this driver can connect."""
        return "QEMU's VNC server"


class VmPort(Network):
    """A TCP port of the guest, by way of QEMU's NAT."""

    _vm: Vm
    _port: int

    async def connect(self, stream: Stream) -> None:
        target = await self.address()
        try:
            connection = await trio.open_tcp_stream("127.0.0.1", self._vm.running().ports[self._port])
        except OSError as error:
            raise DeviceError(f"cannot connect to {target}: {reason(error)}") from error
        await join(stream, connection, target)

    async def address(self) -> str:
        """Changes each time that the machine is switched on."""
        return f"tcp:127.0.0.1:{self._vm.running().ports[self._port]}"
