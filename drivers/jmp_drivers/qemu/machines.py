"""What QEMU's command line is made of: the defaults of each architecture, and the line itself, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Arch = Literal["arm", "arm64", "x86_64", "riscv64"]


@dataclass(frozen=True)
class Defaults:
    """What an architecture gets unless the configuration says otherwise."""

    binary: str
    package: str  # Debian's, for the message when the binary is missing
    machine: str
    cpu: str
    console: str  # Linux's name of the first serial port
    screen: tuple[str, ...]  # devices that `vnc` adds on the machines of `_VIRTIO`


_VIRTIO_SCREEN = ("virtio-gpu-pci", "virtio-keyboard-pci", "virtio-tablet-pci")

DEFAULTS: Mapping[Arch, Defaults] = {
    "arm": Defaults("qemu-system-arm", "qemu-system-arm", "virt", "cortex-a15", "ttyAMA0", _VIRTIO_SCREEN),
    # Not "max": its pointer authentication makes emulation slow, and its 52-bit addresses stop older kernels and U-Boot.
    "arm64": Defaults("qemu-system-aarch64", "qemu-system-arm", "virt", "cortex-a57", "ttyAMA0", _VIRTIO_SCREEN),
    # Not "q35": U-Boot finds no Ethernet device on it.
    "x86_64": Defaults("qemu-system-x86_64", "qemu-system-x86", "pc", "max", "ttyS0", ("VGA", "virtio-tablet-pci")),
    "riscv64": Defaults("qemu-system-riscv64", "qemu-system-misc", "virt", "rv64", "ttyS0", _VIRTIO_SCREEN),
}

MEMORY = "256M"
"""What a machine gets that has no size of its own: enough for a boot loader and for a small Linux."""

# How virtio devices are attached, by family of machine. All others are boards with disk and network interfaces of their own.
# Where there is a choice, not PCI: U-Boot reads a wrong MAC address there.
_VIRTIO = {"virt": "device", "microvm": "device", "pc": "pci", "q35": "pci"}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The virtual machine as configured; the fields are described with the driver's."""

    arch: Arch
    machine: str = ""
    cpu: str = ""
    memory: str = ""
    smp: int | None = None
    accel: str = "tcg"
    bios: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    dtb: Path | None = None
    append: str | None = None
    network: bool = True
    forward: Mapping[str, int]
    vnc: bool = False
    args: Sequence[str] = ()


def command_line(
    hardware: Hardware,
    *,
    serial: int,
    monitor: int,
    disk: Mapping[str, str] | None = None,
    binary: str = "",
    paused: bool = False,
) -> list[str]:
    """The command that starts QEMU; `serial` and `monitor` are the descriptors of its ends of two socket pairs.

    `disk` holds the options of its ``-drive``: file and format. `paused`, it waits for the monitor's ``cont``.
    """
    defaults = DEFAULTS[hardware.arch]
    machine = hardware.machine or defaults.machine
    virtio = _VIRTIO.get(machine.split(",")[0].split("-")[0])
    cpu = hardware.cpu or (defaults.cpu if hardware.accel == "tcg" else "host")

    line = [binary or defaults.binary, "-nodefaults", "-no-user-config"]
    line += ["-machine", machine, "-accel", hardware.accel]
    # A board knows which processor and how much memory it carries; some refuse anything else.
    if hardware.cpu or virtio:
        line += ["-cpu", cpu]
    if hardware.memory or virtio:
        line += ["-m", hardware.memory or MEMORY]
    if hardware.smp is not None:
        line += ["-smp", str(hardware.smp)]
    line += ["-chardev", f"socket,id=serial,fd={serial}", "-serial", "chardev:serial"]
    line += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]

    for option in ("bios", "kernel", "initrd", "dtb"):
        if (file := getattr(hardware, option)) is not None:
            line += [f"-{option}", str(file)]
    if hardware.kernel is not None:
        line += ["-append", f"console={defaults.console}" if hardware.append is None else hardware.append]

    if disk is not None:
        drive = _options(id="disk", **disk)
        if virtio:
            line += ["-drive", f"if=none,{drive}", "-device", f"virtio-blk-{virtio},drive=disk"]
        else:
            line += ["-drive", drive]

    if hardware.network:
        # Port 0: the system chooses one that is free, and QEMU's monitor tells which. No race for a port, on loopback only.
        user = ",".join(["user,id=net", *(f"hostfwd=tcp:127.0.0.1:0-:{port}" for port in hardware.forward.values())])
        if virtio:
            no_boot_rom = ",romfile=" if virtio == "pci" else ""
            line += ["-netdev", user, "-device", f"virtio-net-{virtio},netdev=net{no_boot_rom}"]
        else:
            line += ["-nic", user]

    if hardware.vnc:
        line += ["-vnc", "none"]  # there is a server, but it listens nowhere: its clients come through the monitor
        if virtio:
            line += [word for device in defaults.screen for word in ("-device", device)]
    else:
        line += ["-display", "none"]
    if paused:
        line += ["-S"]
    return [*line, *hardware.args]


def forwarded_ports(table: str) -> dict[int, int]:
    """Guest port → our port on 127.0.0.1, from what the monitor's ``info usernet`` prints."""
    ports = {}
    for row in table.splitlines():
        match row.split():
            case ["TCP[HOST_FORWARD]", _, "127.0.0.1", ours, _, guests, *_]:
                ports[int(guests)] = int(ours)
    return ports


def _options(**values: str) -> str:
    # In a QEMU option a comma ends the value, unless it is doubled.
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items())
