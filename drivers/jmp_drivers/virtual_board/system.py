"""What the running system knows of itself: its facts, its boot log and its files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jmp_drivers.virtual_board.image import BUILT_IN, Image

KERNEL = "6.12.0-virtual"
BUILD = "#1 SMP PREEMPT Thu Jan  1 00:00:00 UTC 2026"
MEMORY_KIB = 512 * 1024
FREE_KIB = 473_216
CARD = "/dev/mmcblk0"
BOOTARGS = "console=ttyAMA0,115200 root=/dev/mmcblk0 rootwait"


@dataclass
class System:
    """Facts that the firmware, the kernel and the shell share. All times are in seconds."""

    hostname: str = "virtual"
    password: str = ""
    card_size: int = 64 * 1024 * 1024
    boot_time: float = 2.0
    epoch: float = 0.0
    """Wall-clock time (since 1970, UTC) when ``now`` was 0."""
    now: float = 0.0
    """The board's own clock; whoever runs the board sets it."""
    started: float = 0.0
    """When the kernel took over."""
    image: Image = BUILT_IN
    user: str = ""
    """Who is logging in."""
    environment: dict[str, str] = field(default_factory=dict)
    """The firmware's variables, as they are since the last reset."""

    @property
    def uptime(self) -> float:
        return self.now - self.started

    @property
    def wall_clock(self) -> float:
        return self.epoch + self.now

    @property
    def bootargs(self) -> str:
        return self.environment.get("bootargs", "")


def kernel_log(system: System) -> list[tuple[float, str]]:
    """The kernel's messages with their time stamps."""
    size = f"{system.card_size / 2**30:.2f} GiB" if system.card_size >= 2**30 else f"{system.card_size / 2**20:.1f} MiB"
    return [
        (0.000000, "Booting Linux on physical CPU 0x0000000000 [0x410fd034]"),
        (0.000000, f"Linux version {KERNEL} (build@virtual) (gcc 14.2.0, GNU ld 2.43) {BUILD}"),
        (0.000000, "Machine model: jmp virtual board"),
        (0.000000, "Memory limit: none; 524288K of system RAM at 0x40000000"),
        (0.000000, "psci: PSCIv1.1 detected in firmware"),
        (0.000000, f"Kernel command line: {system.bootargs}"),
        (0.000012, "sched_clock: 56 bits at 62MHz, resolution 16ns, wraps every 4398046511096ns"),
        (0.004107, "Console: colour dummy device 80x25"),
        (0.008214, f"Memory: {FREE_KIB}K/{MEMORY_KIB}K available"),
        (0.012288, "Calibrating delay loop (skipped), value calculated using timer frequency"),
        (0.043911, "smp: Bringing up secondary CPUs ..."),
        (0.051277, "CPU1: Booted secondary processor 0x0000000001 [0x410fd034]"),
        (0.052004, "smp: Brought up 1 node, 2 CPUs"),
        (0.083500, "devtmpfs: initialized"),
        (0.117312, "NET: Registered PF_NETLINK/PF_ROUTE protocol family"),
        (0.201956, "clocksource: Switched to clocksource arch_sys_counter"),
        (0.288416, "NET: Registered PF_INET protocol family"),
        (0.391822, "workingset: timestamp_bits=46 max_order=17 bucket_order=0"),
        (0.513709, "9000000.serial: ttyAMA0 at MMIO 0x9000000 (irq = 13, base_baud = 0) is a PL011"),
        (0.520114, "printk: console [ttyAMA0] enabled"),
        (0.702233, "mmc0: new high speed SDHC card at address 0001"),
        (0.711640, f"mmcblk0: mmc0:0001 VIRT {size}"),
        (0.803381, "virtual-eth 9010000.ethernet eth0: link up, 1000 Mbps full duplex"),
        (0.914407, "rtc-virtual 9020000.rtc: setting system clock"),
        (1.107958, "EXT4-fs (mmcblk0): mounted filesystem with ordered data mode"),
        (1.121643, "VFS: Mounted root (ext4 filesystem) on device 179:0."),
        (1.204871, "Run /sbin/init as init process"),
        (1.398420, "random: crng init done"),
    ]


def stamped(stamp: float, text: str) -> bytes:
    """One message as the kernel shows it."""
    return f"[{stamp:12.6f}] {text}\n".encode()


def _os_release(system: System) -> str:
    image = system.image
    return (
        f'NAME="{image.name}"\nID={image.name.lower()}\nVERSION_ID="{image.version}"\n'
        f'PRETTY_NAME="{image.name} {image.version}"\n'
    )


def _cpuinfo(system: System) -> str:
    return "\n".join(
        f"processor\t: {cpu}\nBogoMIPS\t: 125.00\nFeatures\t: fp asimd crc32\nCPU implementer\t: 0x41\n"
        "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd03\nCPU revision\t: 4\n"
        for cpu in range(2)
    )


def _meminfo(system: System) -> str:
    return (
        f"MemTotal:       {MEMORY_KIB:8} kB\nMemFree:        {FREE_KIB:8} kB\n"
        f"MemAvailable:   {FREE_KIB:8} kB\nSwapTotal:      {0:8} kB\nSwapFree:       {0:8} kB\n"
    )


def _version(system: System) -> str:
    return f"Linux version {KERNEL} (build@virtual) (gcc 14.2.0, GNU ld 2.43) {BUILD}\n"


FILES: dict[str, Callable[[System], str]] = {
    "/dev/null": lambda system: "",
    "/etc/hostname": lambda system: f"{system.hostname}\n",
    "/etc/os-release": _os_release,
    "/proc/cmdline": lambda system: f"{system.bootargs}\n",
    "/proc/cpuinfo": _cpuinfo,
    "/proc/meminfo": _meminfo,
    "/proc/uptime": lambda system: f"{system.uptime:.2f} {2 * system.uptime:.2f}\n",
    "/proc/version": _version,
}
"""Every file but the card itself: path → its text."""


def date(system: System) -> str:
    """The date as date(1) shows it in the C locale; not by strftime(), which follows the exporter's locale."""
    moment = time.gmtime(system.wall_clock)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[moment.tm_wday]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[moment.tm_mon - 1]
    return f"{day} {month} {moment.tm_mday:2} {time_of_day(system)} UTC {moment.tm_year}"


def time_of_day(system: System) -> str:
    moment = time.gmtime(system.wall_clock)
    return f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
