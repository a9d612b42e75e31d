"""Flashing by programs: the real ones, against what speaks their protocols where no device can be had."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import BadValue, Busy, ConfigError, DeviceError, Driver, serve
from jmp.errors import UsageError
from jmp_drivers.flashers import (
    CommandFlasher,
    Dfu,
    Esptool,
    Fastboot,
    Flashrom,
    OpenOcd,
    ProbeRs,
    ProgramFlasher,
    PyOcd,
    Uf2,
)
from tests.fakes.stm32 import Jtag, Probe

pytestmark = pytest.mark.real


@asynccontextmanager
async def served(driver: Driver) -> AsyncIterator[Any]:
    with trio.fail_after(60):
        async with serve(driver, class_of=client_class) as client:
            yield client


@asynccontextmanager
async def device(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A device at a TCP port of loopback."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.img"
    path.write_bytes(os.urandom(100_000))
    return path


async def dumped(client: Any, **options: Any) -> bytes:
    data = b""
    async with client.dump(**options) as stream:
        while piece := await stream.receive_some():
            data += piece
    return data


# ---- fastboot


class BootLoader:
    """Fastboot over TCP, as AOSP's fastboot/README.md has it: packets of eight bytes of length and what they hold."""

    def __init__(self) -> None:
        self.partitions: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        received = bytearray()

        async def take(size: int) -> bytes:
            while len(received) < size:
                received.extend(await stream.receive_some() or b"")
                if not received:
                    raise EOFError
            data = bytes(received[:size])
            del received[:size]
            return data

        async def say(text: str) -> None:
            await stream.send_all(struct.pack(">Q", len(text)) + text.encode())

        try:
            await stream.send_all(b"FB01")
            await take(4)
            loaded = b""
            while True:
                command = (await take(struct.unpack(">Q", await take(8))[0])).decode()
                verb, _, argument = command.partition(":")
                self.asked.append(command)
                if verb == "getvar":
                    known = {"product": "labdut", "max-download-size": "0x1000000", "slot-count": "2"}
                    await say("OKAY" + known[argument] if argument in known else "FAILno such variable")
                elif verb == "download":
                    size, loaded = int(argument, 16), b""
                    await say(f"DATA{size:08x}")
                    while len(loaded) < size:
                        loaded += await take(struct.unpack(">Q", await take(8))[0])
                    await say("OKAY")
                elif verb == "flash" and argument == "locked":
                    await say("FAILpartition is locked")
                elif verb == "flash":
                    self.partitions[argument] = loaded
                    await say("INFOwriting flash")
                    await say("OKAY")
                elif verb in ("reboot", "erase", "boot", "set_active"):
                    await say("OKAY")
                else:
                    await say("FAILunknown command")
        except (EOFError, trio.BrokenResourceError):
            return


async def test_fastboot(image: Path) -> None:
    loader = BootLoader()
    async with (
        device(loader.serve) as port,
        served(Fastboot(serial=f"tcp:127.0.0.1:{port}", partition="boot")) as client,
    ):
        result = await client.flash(image)
        assert result["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
        await client.flash(image, target="system_a")
        assert loader.partitions == {"boot": image.read_bytes(), "system_a": image.read_bytes()}
        assert await client.getvar("product") == "labdut"
        await client.set_active("a")
        await client.erase("cache")
        await client.reboot()
        assert {"set_active:a", "erase:cache", "reboot"} <= set(loader.asked)
        with pytest.raises(DeviceError, match=r"fastboot ended with status 1: .*partition is locked"):
            await client.flash(image, target="locked")
        with pytest.raises(DeviceError, match=r"fastboot tells no 'nope': .*no such variable"):
            await client.getvar("nope")
        with pytest.raises(DeviceError, match=r"status 1: .*unknown command"):
            await client.oem("unlock")
        with pytest.raises(BadValue, match="'--wipe' cannot be the name of a partition"):
            await client.erase("--wipe")
        with pytest.raises(UsageError, match="none cannot be read"):
            await client.flash("none")


async def test_fastboot_without_a_device_or_a_partition(image: Path) -> None:
    async with served(Fastboot(serial="nobody", patience=2)) as client:
        with pytest.raises(BadValue, match="fastboot needs a partition: --target boot"):
            await client.flash(image)
        waiting = (
            r"no device came within 2 s: fastboot says < waiting for .* >; is it plugged in, and in its boot loader\?"
        )
        with pytest.raises(DeviceError, match=waiting):
            await client.getvar("product")
        with pytest.raises(DeviceError, match=waiting):  # though flashing itself may take its ten minutes
            await client.flash(image, target="boot")


# ---- esptool


class Rom:
    """An ESP32's boot loader in ROM, and the one that esptool loads in its place: SLIP packets, as the manual of its serial
    protocol has them."""

    REGISTERS: ClassVar[dict[int, int]] = {0x40001000: 0x00F01D83}  # which chip it is
    SYNC, READ_REG, FLASH_BEGIN, FLASH_DATA, FLASH_MD5 = 0x08, 0x0A, 0x02, 0x03, 0x13
    MEM_BEGIN, MEM_END, DEFL_BEGIN, DEFL_DATA = 0x05, 0x06, 0x10, 0x11

    def __init__(self) -> None:
        self.flash = bytearray(b"\xff" * (1 << 20))
        self.lossy = False
        self.replaced = False
        """The loader of esptool's runs."""
        self._begin = 0
        self._unpacked = zlib.decompressobj()

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        async for data in stream:
            received += data
            while received.count(b"\xc0") >= 2:
                _, packet, received = received.split(b"\xc0", 2)
                if not packet:
                    received = b"\xc0" + received
                    continue
                for answer in self._answers(packet.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")):
                    escaped = answer.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
                    await stream.send_all(b"\xc0" + escaped + b"\xc0")

    def _answers(self, packet: bytes) -> list[bytes]:
        _, command, _, _ = struct.unpack("<BBHI", packet[:8])
        body, value, data = packet[8:], 0, b""
        more: list[bytes] = []
        if command == self.SYNC:
            self.replaced = False
            return [struct.pack("<BBHI", 1, command, 4, 0x20120707) + bytes(4)] * 8
        if command == self.READ_REG:
            value = self.REGISTERS.get(struct.unpack("<I", body[:4])[0], 0)
        elif command in (self.FLASH_BEGIN, self.DEFL_BEGIN):
            self._begin = struct.unpack("<IIII", body[:16])[3]
            self._unpacked = zlib.decompressobj()
        elif command == self.FLASH_DATA:
            size, number = struct.unpack("<II", body[:8])
            self._write(self._begin + number * size, body[16 : 16 + size])
        elif command == self.DEFL_DATA:
            written = self._unpacked.decompress(body[16 : 16 + struct.unpack("<I", body[:4])[0]])
            self._write(self._begin, written)
            self._begin += len(written)
        elif command == self.FLASH_MD5:
            place, size = struct.unpack("<II", body[:8])
            digest = hashlib.md5(self.flash[place : place + size])
            data = digest.digest() if self.replaced else digest.hexdigest().encode()
        status = bytes(2 if self.replaced else 4)
        if command == self.MEM_END and struct.unpack("<I", body[:4])[0] == 0:
            self.replaced, more = True, [b"OHAI"]
        return [struct.pack("<BBHI", 1, command, len(data + status), value) + data + status, *more]

    def _write(self, place: int, data: bytes) -> None:
        self.flash[place : place + len(data)] = bytes(len(data)) if self.lossy else data


@pytest.mark.parametrize("stub", [True, False])
async def test_esptool(image: Path, stub: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    rom = Rom()
    async with device(rom.serve) as port:
        plain: dict[str, Any] = {"chip": "esp32", "stub": False, "before": "no_reset", "after": "no_reset"}
        how = {} if stub else plain
        chip = Esptool(port=f"socket://127.0.0.1:{port}", options=["--flash_size", "1MB"], **how)
        async with served(chip) as client:
            shown: list[tuple[int, int | None]] = []
            await client.flash(image, target="0x1000", progress=lambda *at: shown.append(at))
            assert rom.replaced == stub
            assert rom.flash[0x1000 : 0x1000 + 100_000] == image.read_bytes()
            assert shown[-1] == (100_000, 100_000)
            with pytest.raises(BadValue, match="an address is a number, such as 0x10000, not 'boot'"):
                await client.flash(image, target="boot")
            rom.lossy = True
            with pytest.raises(DeviceError, match=r"esptool ended with status \d: .*(?i:MD5|digest).*"):
                await client.flash(image, target="0x1000")


async def test_esptool_without_a_port(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    async with served(Esptool(port="/dev/ttyNONE")) as client:
        with pytest.raises(DeviceError, match=r"esptool ended with status \d: .*ttyNONE"):
            await client.flash(image)


# ---- flashrom

CHIP = "MX25L6436E/MX25L6445E/MX25L6465E/MX25L6473E/MX25L6473F"


async def test_flashrom(tmp_path: Path) -> None:
    """Its programmer "dummy" emulates a chip, whose content is a file."""
    chip, image = tmp_path / "chip", tmp_path / "image.bin"
    image.write_bytes(os.urandom(8 << 20))
    driver = Flashrom(programmer=f"dummy:emulate=MX25L6436,image={chip}", chip=CHIP)
    async with served(driver) as client:
        await client.flash(image)
        assert chip.read_bytes() == image.read_bytes()
        assert await dumped(client) == image.read_bytes()
        assert "Macronix" in await client.info()
        image.write_bytes(b"short")
        with pytest.raises(DeviceError, match=r"flashrom ended with status \d: .*(?i:size|image)"):
            await client.flash(image)
    async with served(Flashrom(programmer="dummy", chip=CHIP)) as client:
        with pytest.raises(DeviceError, match=r"flashrom ended with status \d: No EEPROM/flash device found"):
            await client.erase()


async def test_a_probe_or_programmer_that_is_not_there(image: Path) -> None:
    """Where the program says no more than that it failed, what to do is added."""
    async with served(Flashrom(programmer="ch341a_spi")) as client:
        with pytest.raises(DeviceError, match=r"initialization failed.*; is the programmer there, and may"):
            await client.flash(image)
    async with served(OpenOcd(config=["interface/stlink.cfg", "target/stm32f4x.cfg"])) as client:
        with pytest.raises(DeviceError, match=r"open failed.*; is the debug probe plugged in, and may"):
            await client.flash(image, target="0x08000000")


# ---- OpenOCD


@pytest.fixture
async def jtag(tmp_path: Path) -> AsyncIterator[Jtag]:
    """The chip, and what a user would have of the probe's in a file: OpenOCD's own files and drivers do the rest."""
    made = Jtag()
    async with device(made.serve) as port:
        (tmp_path / "probe.cfg").write_text(
            f"adapter driver remote_bitbang\nremote_bitbang host 127.0.0.1\nremote_bitbang port {port}\n"
            "transport select jtag\nreset_config srst_only\nset WORKAREASIZE 0\n"
        )
        yield made


def openocd(tmp_path: Path, **more: Any) -> OpenOcd:
    return OpenOcd(config=[str(tmp_path / "probe.cfg"), "target/stm32f1x.cfg"], **more)


async def test_openocd_flashes_a_chip(jtag: Jtag, tmp_path: Path) -> None:
    image = tmp_path / "firmware.bin"
    image.write_bytes(os.urandom(200))
    async with served(openocd(tmp_path, address="0x08000000")) as client:
        result = await client.flash(image)
        assert result["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
        assert jtag.chip.flash[:200] == image.read_bytes()
        assert jtag.chip.running
        await client.flash(image, target="0x08000400")
        assert jtag.chip.flash[0x400:][:200] == image.read_bytes()
        with pytest.raises(DeviceError, match=r"openocd ended with status 1: .*(?i:flash|0x20000000)"):
            await client.flash(image, target="0x30000000")
        jtag.chip.worn_out = True
        with pytest.raises(DeviceError, match=r"openocd ended with status 1: .*Verify Failed"):
            await client.flash(image)
        with pytest.raises(BadValue, match="an address is a number"):
            await client.flash(image, target="boot")


async def test_openocd_says_what_it_finds(jtag: Jtag, tmp_path: Path) -> None:
    async with served(openocd(tmp_path)) as client:
        assert "0x3ba00477" in await client.run("scan_chain")
        await client.reset("halt")
        assert not jtag.chip.running
        before = jtag.chip.resets
        await client.reset()
        assert (jtag.chip.running, jtag.chip.resets > before) == (True, True)
        with pytest.raises(BadValue, match="mode must be run, halt or init, not 'off'"):
            await client.reset("off")
    async with served(OpenOcd(config=["interface/none.cfg"])) as client:
        with pytest.raises(DeviceError, match=r"openocd ended with status 1: .*Can't find interface/none\.cfg"):
            await client.run()
    async with served(OpenOcd(config=[str(tmp_path / "probe.cfg"), "target/stm32f4x.cfg"])) as client:
        assert "UNEXPECTED" in await client.run()


# ---- pyOCD


async def test_pyocd_flashes_a_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ST's algorithm, which pyOCD loads into the chip's memory, and which is executed there."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    image, probe = tmp_path / "firmware.bin", Probe()
    image.write_bytes(os.urandom(5000))
    async with device(probe.serve) as port:
        how = PyOcd(target="stm32f103rc", probe=f"remote:127.0.0.1:{port}", arguments=["-O", "smart_flash=false"])
        async with served(how) as client:
            shown: list[tuple[int, int | None]] = []
            await client.flash(image, progress=lambda *at: shown.append(at))
            assert len(shown) > 2, shown  # of erasing, and of writing
            assert shown[-1] == (5000, 5000)
            assert probe.chip.flash[:5000] == image.read_bytes()
            assert probe.chip.running
            await client.erase()
            assert probe.chip.flash == b"\xff" * len(probe.chip.flash)
    async with served(how) as client:
        with pytest.raises(DeviceError, match=r"pyocd ended with status 1: .*[Cc]onnection refused"):
            await client.reset()


# ---- UF2


async def test_uf2(tmp_path: Path) -> None:
    """A disk with a FAT file system, as boot loaders show it; mtools look at what was copied."""
    disk = tmp_path / "RPI-RP2"
    subprocess.run(["mformat", "-C", "-i", disk, "-f", "1440", "-v", "RPI-RP2", "::"], check=True)  # noqa: ASYNC221
    (tmp_path / "info").write_text("UF2 Bootloader v3.0\r\n")
    subprocess.run(["mcopy", "-i", disk, tmp_path / "info", "::/INFO_UF2.TXT"], check=True)  # noqa: ASYNC221
    firmware = tmp_path / "blink.uf2"
    firmware.write_bytes(b"UF2\nWQ]\x9e" + os.urandom(504))
    async with served(Uf2(path=disk)) as client:
        assert await client.info() == "UF2 Bootloader v3.0\n"
        for _ in range(2):  # a loader that keeps the file has it already
            await client.flash(firmware)
        done = await trio.run_process(["mtype", "-i", str(disk), "::/JMP.UF2"], capture_stdout=True)
        assert done.stdout == firmware.read_bytes()
        (tmp_path / "blink.elf").write_bytes(b"\x7fELF")
        with pytest.raises(BadValue, match="the image is no UF2 file"):
            await client.flash(tmp_path / "blink.elf")
    disk.write_bytes(bytes(1024))
    async with served(Uf2(path=disk)) as client:
        with pytest.raises(DeviceError, match=r"mcopy ended with status 1: .*Cannot initialize"):
            await client.flash(firmware)
    async with served(Uf2(path=tmp_path / "none", patience=0.1)) as client:
        with pytest.raises(DeviceError, match="none is not there: is the board in its boot loader"):
            await client.flash(firmware)


# ---- what they share, and those whose program has nothing to talk to here


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program of that name, which notes its arguments."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/told\n{script}\n')
    path.chmod(0o755)


async def test_dfu_util_without_a_device(image: Path) -> None:
    async with served(Dfu(device="1209:2444")) as client:
        with pytest.raises(DeviceError, match=r"dfu-util ended with status \d+: .*(?i:no dfu capable usb device)"):
            await client.flash(image)


@pytest.mark.parametrize(
    ("driver", "target", "words"),
    [
        pytest.param(
            Dfu(device="0483:df11", alt="0", address="0x08000000:leave"),
            "1",
            "--device 0483:df11 --alt 1 --dfuse-address 0x08000000:leave --reset --download FILE.bin",
            id="dfu",
        ),
        pytest.param(
            PyOcd(target="stm32f407vg", probe="066D", arguments=["--frequency", "1M"]),
            "0x8000000",
            "flash --frequency 1M --no-wait --target stm32f407vg --uid 066D --base-address 0x8000000 FILE.bin",
            id="pyocd",
        ),
        pytest.param(
            ProbeRs(chip="STM32F407VGTx", arguments=["--connect-under-reset"]),
            "",
            "download --connect-under-reset --non-interactive --chip STM32F407VGTx --binary-format bin FILE.bin",
            id="probe-rs",
        ),
        pytest.param(
            CommandFlasher(flash_command=["avrdude", "-p", "{target}", "-U", "flash:w:{file}:r"], target="m328p"),
            "",
            "-p m328p -U flash:w:FILE.bin:r",
            id="command-flasher",
        ),
    ],
)
async def test_what_programs_are_told(
    driver: ProgramFlasher, target: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins that show progress as the real ones do, for programs without a device here."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = 'printf "Download [==  ] 50%%\\rDownload [====] 100%%\\n"'
    stand_in(tmp_path, driver.program, script)
    (tmp_path / "blink.bin").write_bytes(bytes(1000))
    async with served(driver) as client:
        shown: list[tuple[int, int | None]] = []
        await client.flash(tmp_path / "blink.bin", target=target, progress=lambda *at: shown.append(at))
        assert shown[-1] == (1000, 1000)
        told = re.sub(r"/\S+/image\.bin", "FILE.bin", " ".join((tmp_path / "told").read_text().split()))
        assert told == words
        stand_in(tmp_path, driver.program, 'echo "Error: no probe" >&2; echo "see the log"; exit 3')
        with pytest.raises(DeviceError, match=f"{driver.program} ended with status 3: Error: no probe"):
            await client.flash(tmp_path / "blink.bin")


async def test_a_program_that_is_missing_degrades_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with served(ProbeRs(chip="x")) as client:
        with pytest.raises(
            DeviceError, match="probe-rs is not installed on the exporter's machine: it is in the probe-rs project"
        ):
            await client.erase()


async def test_one_at_a_time_and_what_is_given_up_is_ended(tmp_path: Path, image: Path) -> None:
    driver = CommandFlasher(
        flash_command=["sh", "-c", f"echo $$ > {tmp_path}/pid; echo begun; exec sleep 60", "{file}"]
    )
    async with served(driver) as client, client._backend.open("", "flash", (), {}) as stream:
        await stream.send_eof()
        assert await stream.receive_some() == b"begun\n"
        with pytest.raises(Busy, match="another call is at work with this device"):
            await client.flash(image)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    driver = CommandFlasher(flash_command=["sh", "-c", "echo working; exec sleep 60", "{file}"], timeout=2)
    async with served(driver) as client:
        with pytest.raises(DeviceError, match=r"sh did not end within 2 s; it said last: working"):
            await client.flash(image)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CommandFlasher(flash_command=["avrdude"]), r"with \{file\} among them"),
        (lambda: Fastboot(timeout=0), "timeout must be more than 0 seconds"),
        (lambda: OpenOcd(config=[]), "OpenOCD has to know probe and target"),
    ],
)
def test_configuration(make: Callable[[], Driver], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
