"""Flashing by programs of the exporter's machine: what they share, and each of them.

What the client sends is put in a file of its own, the program is run on it, and what that says is handed on as it comes. A
program that fails tells why in its own words; a program that is missing degrades the driver.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import field
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import ClassVar

import trio

from jmp.driver import (
    BadValue,
    Busy,
    ConfigError,
    DeviceError,
    Machine,
    Stream,
    Suggestion,
    export,
    exportstream,
)
from jmp.driver.interfaces import Flasher
from jmp.driver.machine import UsbDevice
from jmp_drivers._process import leashed, relay

_KEPT = 200  # lines of a program's output that are kept for what it says, and for its error
_TOLD = 3  # lines of them that an error tells
_PIECE = 1024 * 1024
_ESPRESSIF = "303a"  # vendor of chips that have USB themselves
_ST_LINKS = ("3744", "3748", "374b", "374d", "374e", "374f", "3752", "3753", "3754", "3755", "3757")
_TROUBLE = re.compile(
    r"error|fail|fatal|cannot|can't|could not|unable|denied|not found|no such|\bno \S.* (?:available|found)", re.I
)


class ProgramFlasher(Flasher):
    """Flashes by a program."""

    program: ClassVar[str]
    package: ClassVar[str] = ""
    """Where the program comes from, as a message says it."""
    has_commands: ClassVar[bool] = False
    """Its first word is a command, and options are that command's."""
    advice: ClassVar[Mapping[str, str]] = {}
    """What to do about what the program says, where it does not say so itself."""

    timeout: float = field(default=600.0, metadata={"doc": "seconds that the program may take"})
    arguments: list[str] = field(
        default_factory=list,
        metadata={"doc": "more arguments, before all others; of pyocd and probe-rs, behind the command"},
    )

    _busy: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")

    def open(self) -> None:
        if shutil.which(self.program, path=self.environment()["PATH"]) is None:
            raise DeviceError(
                f"{self.program} is not installed on the exporter's machine"
                + (f": it is in {self.package}" if self.package else "")
            )

    @abstractmethod
    def command(self, file: Path, target: str) -> Sequence[str]:
        """The arguments that flash a file. Raises `BadValue` for a target that cannot be."""

    @exportstream
    async def flash(self, stream: Stream, target: str = "", name: str = "") -> None:
        with self._alone():
            async with _received(stream, name) as file:
                await self._run(self.command(file, target), stream.send_all)

    async def call(self, *words: str, seconds: float | None = None) -> str:
        """Run the program with these arguments; what it says. Raises `DeviceError` if it fails or is in use by another call."""
        with self._alone():
            return await self._run(words, None, seconds)

    def _alone(self) -> _Alone:
        return _Alone(self)

    async def _run(
        self, words: Sequence[str], sink: Callable[[bytes], Awaitable[None]] | None, seconds: float | None = None
    ) -> str:
        said, shown = _Said(), self._shown()
        seconds = self.timeout if seconds is None else seconds
        until = trio.current_time() + seconds

        async def take(_: str, data: bytes) -> None:
            said.feed(data)
            scope.deadline = min(until, trio.current_time() + self._patience(said.last()))
            if sink is not None:
                await sink(shown(data))

        with trio.move_on_at(until) as scope:
            verb = 1 if self.has_commands else 0
            argv = [self.program, *words[:verb], *self.arguments, *words[verb:]]
            async with leashed(argv, env=self.environment(), stdout=PIPE, stderr=STDOUT) as process:
                status = await relay(process, take)
        if scope.cancelled_caught and self._patience(said.last()) < math.inf:
            raise DeviceError(
                f"no device came within {min(seconds, self._patience(said.last())):g} s: {self.program} says {said.last()};"
                " is it plugged in, and in its boot loader?"
            )
        if scope.cancelled_caught:
            raise DeviceError(f"{self.program} did not end within {seconds:g} s; it said last: {said.last()}")
        if status:
            trouble = said.trouble()
            advice = next((f"; {what}" for says, what in self.advice.items() if says in trouble), "")
            raise DeviceError(f"{self.program} ended with status {status}: {trouble}{advice}")
        return said.text()

    def _patience(self, line: str) -> float:
        """Seconds that the program may take when it has said this last: those of a device's coming if it waits for one."""
        return math.inf

    def _shown(self) -> Callable[[bytes], bytes]:
        """What makes what the program says into what a user is shown. Progress is a figure before a %."""
        return bytes

    def environment(self) -> Mapping[str, str]:
        """In which the program runs. Some are where only root looks for programs."""
        return os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"}


class _Alone:
    """One call at a time has the device."""

    def __init__(self, driver: ProgramFlasher) -> None:
        self._driver = driver

    def __enter__(self) -> None:
        if self._driver._busy:
            raise Busy("another call is at work with this device; wait until it has ended")
        self._driver._busy = True

    def __exit__(self, *_: object) -> None:
        self._driver._busy = False


class _Said:
    """The newest lines that a program has printed. What it printed over (progress) is not among them."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [text for line in lines if (text := _clean(line))]

    def _all(self) -> list[str]:
        return [*self._lines, *filter(None, [_clean(self._rest)])]

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._all())

    def last(self) -> str:
        return (self._all() or ["nothing"])[-1]

    def trouble(self) -> str:
        """The last few lines that tell what went wrong, as far as such can be told from others."""
        lines = [line for line in self._all() if _TROUBLE.search(line)]
        return "; ".join(lines[-_TOLD:]) or self.last()


def _clean(line: bytes) -> str:
    text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text).replace("\b", "").strip()


@asynccontextmanager
async def _received(stream: Stream, name: str) -> AsyncIterator[Path]:
    """What the client sends, in a file whose name ends as the client's does: programs tell formats by that."""
    suffix = "".join(re.findall(r"\.\w+", os.path.basename(name))[-1:]) or ".bin"
    with tempfile.TemporaryDirectory(prefix="jmp-flash-") as folder:
        path = Path(folder, f"image{suffix}")
        async with await trio.open_file(path, "wb") as file:
            async for data in stream:
                await file.write(data)
        yield path


class _Bars:
    """Bars that pyOCD draws character by character where it has no terminal, as it draws them on one: with a figure."""

    WIDTH = 40

    def __init__(self) -> None:
        self._drawing, self._done = False, 0

    def __call__(self, data: bytes) -> bytes:
        shown = b""
        for run in re.findall(rb"=+|[^=]+", data):
            if self._drawing and run.startswith(b"="):
                self._done += len(run)
                percent = 100 * self._done // self.WIDTH
                shown += b"\r[" + (b"=" * self._done).ljust(self.WIDTH) + b"] %d%%" % percent
            else:
                shown += run.removeprefix(b"]") if self._drawing else run
                self._drawing, self._done = run.endswith(b"["), 0
        return shown


class CommandFlasher(ProgramFlasher):
    """Flashes by any program that takes a file: avrdude, stm32flash, uuu, bossac …"""

    flash_command: list[str] = field(
        metadata={
            "key": "command",
            "doc": "the program and its arguments; {file} is the image, {target} what --target says",
        }
    )
    target: str = field(default="", metadata={"doc": "what {target} is unless the client says otherwise"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.flash_command or not any("{file}" in word for word in self.flash_command):
            raise ConfigError("command must be a program and its arguments, with {file} among them")
        self.program = self.flash_command[0]  # type: ignore[misc]

    def command(self, file: Path, target: str) -> Sequence[str]:
        chosen = target or self.target
        return [word.replace("{file}", str(file)).replace("{target}", chosen) for word in self.flash_command[1:]]


class Fastboot(ProgramFlasher):
    """An Android boot loader, or U-Boot that speaks the same, by ``fastboot``."""

    program = "fastboot"
    package = "Debian's fastboot"

    serial: str = field(default="", metadata={"doc": "of the device, or tcp:HOST[:PORT], udp:…; default: the only one"})
    partition: str = field(default="", metadata={"doc": "that is flashed unless the client says another"})
    patience: float = field(
        default=30.0, metadata={"doc": "seconds until the device has to be there, and that commands may take but flash"}
    )

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.usb_interfaces("ff4203"):
            if usb := machine.usb(place):
                yield Suggestion("fastboot", {"serial": usb.serial} if usb.serial else {}, str(usb), f"usb:{usb.port}")

    def command(self, file: Path, target: str) -> Sequence[str]:
        partition = target or self.partition
        if not partition:
            raise BadValue("fastboot needs a partition: --target boot")
        return [*self._device(), "flash", _plain(partition, "partition"), str(file)]

    @export
    async def getvar(self, name: str) -> str:
        """A variable of the boot loader: product, version, max-download-size …"""
        said = await self.call(*self._device(), "getvar", _plain(name, "variable"), seconds=self.patience)
        match = re.search(rf"^{re.escape(name)}:[ ]?(.*)$", said, re.MULTILINE)
        if match is None:
            raise DeviceError(f"fastboot tells no {name!r}: {' '.join(said.partition(chr(10))[0].split())}")
        return match[1].strip()

    @export
    async def erase(self, partition: str) -> None:
        """Erase a partition."""
        await self.call(*self._device(), "erase", _plain(partition, "partition"))

    @export
    async def reboot(self, mode: str = "") -> None:
        """Restart the device, or into a MODE: bootloader, recovery, fastboot."""
        await self.call(*self._device(), "reboot", *([_plain(mode, "mode")] if mode else []), seconds=self.patience)

    @export
    async def set_active(self, slot: str) -> None:
        """Boot from this slot from now on."""
        await self.call(*self._device(), f"--set-active={_plain(slot, 'slot')}", seconds=self.patience)

    @export
    async def oem(self, *words: str) -> str:
        """A command of the manufacturer's; what it says."""
        return await self.call(*self._device(), "oem", *words)

    @exportstream
    async def boot(self, stream: Stream, name: str = "") -> None:
        """Start a kernel or boot image that the client sends, without flashing it."""
        with self._alone():
            async with _received(stream, name) as file:
                await self._run([*self._device(), "boot", str(file)], stream.send_all)

    def _device(self) -> list[str]:
        return ["-s", self.serial] if self.serial else []

    def _patience(self, line: str) -> float:
        return self.patience if line.startswith("< waiting for") else math.inf


class Dfu(ProgramFlasher):
    """A USB device in DFU mode, by ``dfu-util``."""

    program = "dfu-util"
    package = "Debian's dfu-util"

    device: str = field(
        default="", metadata={"doc": "VENDOR:PRODUCT in hexadecimal; default: the only one in DFU mode"}
    )
    serial: str = field(default="", metadata={"doc": "serial number, where there are several"})
    alt: str = field(
        default="", metadata={"doc": "alternate setting, by number or name, unless the client says another"}
    )
    address: str = field(default="", metadata={"doc": "of DfuSe devices (STM32), such as 0x08000000:leave"})
    leave: bool = field(default=True, metadata={"doc": "restart the device afterwards"})

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.usb_interfaces("fe01"):
            if usb := machine.usb(place):
                serial = {"serial": usb.serial} if usb.serial else {}
                runs = machine.text(f"{place}/bInterfaceProtocol") == "01"
                note = "it runs its firmware now: detach brings it into DFU mode" if runs else ""
                device = f"{usb.vendor_id}:{usb.product_id}"
                yield Suggestion("dfu", {"device": device, **serial}, str(usb), f"usb:{usb.port}", note=note)

    def command(self, file: Path, target: str) -> Sequence[str]:
        alt = target or self.alt
        return [
            *self._device(),
            *(["--alt", alt] if alt else []),
            *(["--dfuse-address", self.address] if self.address else []),
            *(["--reset"] if self.leave else []),
            "--download",
            str(file),
        ]

    @export(name="list")
    async def devices(self) -> list[str]:
        """The devices in DFU mode, as dfu-util tells them."""
        said = await self.call("--list", seconds=30)
        return [line for line in said.splitlines() if line.startswith("Found")]

    @export
    async def detach(self) -> None:
        """Bring a device that runs its firmware into DFU mode."""
        await self.call(*self._device(), "--detach", seconds=30)

    def _device(self) -> list[str]:
        return [
            *(["--device", self.device] if self.device else []),
            *(["--serial", self.serial] if self.serial else []),
        ]


class Esptool(ProgramFlasher):
    """A chip of Espressif's, by its ROM boot loader and ``esptool``."""

    program = "esptool"
    package = "Debian's esptool, or PyPI's"

    port: str = field(metadata={"doc": "serial port, best by its name below /dev/serial/by-id, or a pyserial URL"})
    chip: str = field(default="auto", metadata={"doc": "esp32, esp32s3, esp8266 …; auto: it is asked"})
    baud: int = field(default=460800, metadata={"doc": "bits per second while it is flashed"})
    address: str = field(default="0x0", metadata={"doc": "where an image goes unless the client says otherwise"})
    before: str = field(
        default="default_reset", metadata={"doc": "how it gets into its boot loader, as esptool's --before"}
    )
    after: str = field(default="hard_reset", metadata={"doc": "what becomes of it afterwards, as esptool's --after"})
    stub: bool = field(default=True, metadata={"doc": "flash by esptool's own loader instead of the ROM's"})
    options: list[str] = field(default_factory=list, metadata={"doc": "of write_flash, such as --flash_size 4MB"})

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/class/tty/*/device"):
            usb, port = machine.usb(place), f"/dev/{place.split('/')[-2]}"
            if usb is not None and usb.vendor_id == _ESPRESSIF and machine.exists(port):
                stable = machine.link_to(port, "/dev/serial/by-id/*")
                yield Suggestion("flasher", {"port": stable}, str(usb), port)

    def command(self, file: Path, target: str) -> Sequence[str]:
        address = target or self.address
        if not re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", address):
            raise BadValue(f"an address is a number, such as 0x10000, not {address!r}")
        return [*self._device(), "write_flash", *self.options, address, str(file)]

    @export
    async def erase(self) -> None:
        """Erase the whole flash."""
        await self.call(*self._device(), "erase_flash")

    @export
    async def info(self) -> str:
        """What the chip is, as esptool tells it."""
        return await self.call(*self._device(), "flash_id", seconds=60)

    @exportstream
    async def dump(self, stream: Stream, offset: int = 0, size: int = 0x400000) -> None:
        """Read SIZE bytes of the flash, from byte OFFSET on."""
        await _dumped(self, stream, lambda file: [*self._device(), "read_flash", str(offset), str(size), file])

    def _device(self) -> list[str]:
        words = ["--chip", self.chip, "--port", self.port, "--baud", str(self.baud)]
        return [*words, "--before", self.before, "--after", self.after, *([] if self.stub else ["--no-stub"])]


class OpenOcd(ProgramFlasher):
    """A microcontroller behind a debug probe, by ``openocd``."""

    program = "openocd"
    package = "Debian's openocd"
    advice: ClassVar[Mapping[str, str]] = {
        "open failed": "is the debug probe plugged in, and may the exporter's user open it?"
    }

    config: list[str] = field(metadata={"doc": "files of OpenOCD: interface/stlink.cfg, target/stm32f4x.cfg …"})
    commands: list[str] = field(
        default_factory=list, metadata={"doc": "commands after those, such as adapter speed 1000"}
    )
    address: str = field(default="", metadata={"doc": "where an image goes that is a plain binary file"})

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/bus/usb/devices/*"):
            usb = machine.usb(place) if machine.text(f"{place}/idVendor") else None
            if usb is not None and (interface := _probe(machine, usb)):
                config: dict[str, object] = {"config": [f"interface/{interface}.cfg"]}
                if usb.serial.isalnum():
                    config["commands"] = [f"adapter serial {usb.serial}"]
                note = "add the file of what it debugs, such as target/stm32f4x.cfg"
                yield Suggestion("debugger", config, str(usb), f"usb:{usb.port}", note=note)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.config and not self.commands:
            raise ConfigError("config needs a file, or commands a command: OpenOCD has to know probe and target")

    def command(self, file: Path, target: str) -> Sequence[str]:
        address = target or self.address
        if address and not re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", address):
            raise BadValue(f"an address is a number, such as 0x08000000, not {address!r}")
        return [*self._setup(), "-c", f"program {{{file}}} {address} verify reset exit"]

    @export
    async def run(self, *commands: str) -> str:
        """Run OpenOCD's commands, one after another, after init; what it says."""
        words = [word for command in ("init", *commands, "shutdown") for word in ("-c", command)]
        return await self.call(*self._setup(), *words)

    @export
    async def reset(self, mode: str = "run") -> None:
        """Reset the target, and let it run, halt, or be initialised (init)."""
        if mode not in ("run", "halt", "init"):
            raise BadValue(f"mode must be run, halt or init, not {mode!r}")
        await self.run(f"reset {mode}")

    def _setup(self) -> list[str]:
        ports = [word for name in ("gdb", "tcl", "telnet") for word in ("-c", f"{name}_port disabled")]
        files = [word for file in self.config for word in ("-f", file)]
        return [*ports, *files, *(word for command in self.commands for word in ("-c", command))]


class PyOcd(ProgramFlasher):
    """A Cortex-M behind a debug probe, by ``pyocd``."""

    program = "pyocd"
    package = "PyPI's pyocd"
    has_commands = True

    target: str = field(
        default="", metadata={"doc": "as pyocd names it, such as stm32f407vg; default: as the probe says"}
    )
    probe: str = field(default="", metadata={"doc": "unique ID of the probe, where there are several"})
    address: str = field(default="", metadata={"doc": "where an image goes that is a plain binary file"})

    def command(self, file: Path, target: str) -> Sequence[str]:
        address = target or self.address
        return ["flash", *self._device(), *(["--base-address", address] if address else []), str(file)]

    @export
    async def erase(self) -> None:
        """Erase the whole flash."""
        await self.call("erase", *self._device(), "--chip")

    @export(name="reset")
    async def press_reset(self) -> None:
        """Reset the target."""
        await self.call("reset", *self._device(), seconds=60)

    def _shown(self) -> Callable[[bytes], bytes]:
        return _Bars()

    def _device(self) -> list[str]:
        return [
            "--no-wait",
            *(["--target", self.target] if self.target else []),
            *(["--uid", self.probe] if self.probe else []),
        ]


class ProbeRs(ProgramFlasher):
    """A microcontroller behind a debug probe, by ``probe-rs``."""

    program = "probe-rs"
    package = "the probe-rs project"
    has_commands = True

    chip: str = field(metadata={"doc": "as probe-rs names it, such as STM32F407VGTx"})
    probe: str = field(default="", metadata={"doc": "VENDOR:PRODUCT[:SERIAL] of the probe, where there are several"})
    address: str = field(default="", metadata={"doc": "where an image goes that is a plain binary file"})

    def command(self, file: Path, target: str) -> Sequence[str]:
        address = target or self.address
        kinds = {".hex": "hex", ".bin": "bin", ".uf2": "uf2"}
        kind = ["--binary-format", kinds[file.suffix]] if file.suffix in kinds else []
        return ["download", *self._device(), *kind, *(["--base-address", address] if address else []), str(file)]

    @export
    async def erase(self) -> None:
        """Erase the whole flash."""
        await self.call("erase", *self._device())

    @export(name="reset")
    async def press_reset(self) -> None:
        """Reset the target."""
        await self.call("reset", *self._device(), seconds=60)

    def _device(self) -> list[str]:
        return ["--non-interactive", "--chip", self.chip, *(["--probe", self.probe] if self.probe else [])]


class Flashrom(ProgramFlasher):
    """An SPI flash chip behind a programmer, by ``flashrom``. An image has as many bytes as the chip."""

    program = "flashrom"
    package = "Debian's flashrom"
    advice: ClassVar[Mapping[str, str]] = {
        "Programmer initialization failed": "is the programmer there, and may the exporter's user open it?"
    }

    programmer: str = field(metadata={"doc": "as flashrom's --programmer: ch341a_spi, linux_spi:dev=/dev/spidev0.0 …"})
    chip: str = field(default="", metadata={"doc": "the chip, where several are like it"})

    def command(self, file: Path, target: str) -> Sequence[str]:
        region = ["--ifd", "--image", target] if target else []
        return [*self._device(), *region, "--write", str(file)]

    @export
    async def erase(self) -> None:
        """Erase the whole chip."""
        await self.call(*self._device(), "--erase")

    @export
    async def info(self) -> str:
        """The chip that is found."""
        return await self.call(*self._device(), "--flash-name")

    @exportstream
    async def dump(self, stream: Stream) -> None:
        """Read the whole chip."""
        await _dumped(self, stream, lambda file: [*self._device(), "--read", file])

    def _device(self) -> list[str]:
        return ["--programmer", self.programmer, *(["--chip", self.chip] if self.chip else [])]


class Uf2(ProgramFlasher):
    """A board whose boot loader shows up as a disk that UF2 files are copied to (RP2040, SAMD, nRF52), by ``mcopy``."""

    program = "mcopy"
    package = "Debian's mtools"

    path: Path = field(metadata={"doc": "the disk, such as /dev/disk/by-label/RPI-RP2"})
    patience: float = field(default=20.0, metadata={"doc": "seconds until it has to be there"})

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for path in machine.glob("/dev/disk/by-label/*"):
            name = path.rpartition("/")[2]
            if name in ("RPI-RP2", "RP2350") or name.endswith("BOOT"):
                about = machine.about(
                    f"/sys/class/block/{machine.resolve(path).rpartition('/')[2]}", "boot loader's disk"
                )
                yield Suggestion("flasher", {"path": path}, about, path)

    def command(self, file: Path, target: str) -> Sequence[str]:
        with file.open("rb") as image:
            head = image.read(8)
        if head != b"UF2\nWQ]\x9e":
            raise BadValue("the image is no UF2 file")
        return ["-o", "-i", str(self.path), str(file), "::/JMP.UF2"]

    @exportstream
    async def flash(self, stream: Stream, target: str = "", name: str = "") -> None:
        with self._alone():
            async with _received(stream, name) as file:
                words = self.command(file, target)
                await self._there()
                try:
                    await self._run(words, stream.send_all)
                except DeviceError:
                    if self.path.exists():
                        raise
                    # The board starts its new firmware with the last block, whether or not the copying has ended.
                    await stream.send_all(b"the board has taken its disk away, as it does when it has all\n")

    @export
    async def info(self) -> str:
        """What the boot loader tells of itself (INFO_UF2.TXT)."""
        await self._there()
        with self._alone(), tempfile.TemporaryDirectory(prefix="jmp-flash-") as folder:
            file = Path(folder, "info")
            await self._run(["-n", "-i", str(self.path), "::/INFO_UF2.TXT", str(file)], None)
            return await trio.Path(file).read_text(errors="replace")

    async def _there(self) -> None:
        with trio.move_on_after(self.patience):
            while not self.path.exists():  # noqa: ASYNC110  # nobody tells: udev's news take a library of its own
                await trio.sleep(0.1)
            return
        raise DeviceError(f"{self.path} is not there: is the board in its boot loader?")


def _probe(machine: Machine, usb: UsbDevice) -> str:
    """OpenOCD's name of a debug probe; empty for what is none."""
    if usb.vendor_id == "0483" and usb.product_id in _ST_LINKS:
        return "stlink"
    if usb.vendor_id == "1366" and "J-Link" in usb.product:
        return "jlink"
    # A probe of ARM's kind says so in its name, or in that of an interface.
    names = [
        usb.product,
        *(machine.text(f"{place}/interface") for place in machine.glob(f"/sys/bus/usb/devices/{usb.port}:*")),
    ]
    return "cmsis-dap" if any("CMSIS-DAP" in name for name in names) else ""


def _plain(word: str, what: str) -> str:
    """A word that a program cannot take for an option."""
    if not re.fullmatch(r"\w[\w.:-]*", word):
        raise BadValue(f"{word!r} cannot be the name of a {what}")
    return word


async def _dumped(driver: ProgramFlasher, stream: Stream, words: Callable[[str], Sequence[str]]) -> None:
    """Send what a program reads into a file."""
    with driver._alone(), tempfile.TemporaryDirectory(prefix="jmp-flash-") as folder:
        path = Path(folder, "image.bin")
        await driver._run(words(str(path)), None)
        async with await trio.open_file(path, "rb") as file:
            while data := await file.read(_PIECE):
                await stream.send_all(data)
