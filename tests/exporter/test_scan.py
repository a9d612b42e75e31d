"""What is plugged in becomes a configuration: drivers suggest themselves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from jmp.driver import Driver, Machine, Suggestion
from jmp.exporter import config, scan
from jmp_drivers.block import BlockDevice, SdMux
from jmp_drivers.flashers import Dfu, Esptool, Fastboot, OpenOcd, Uf2
from jmp_drivers.serial import Serial
from jmp_drivers.v4l2 import V4l2Camera
from tests.fakes.bundled import driver_class
from tests.fakes.machine import Files

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]
FTDI = {
    "idVendor": "0403",
    "idProduct": "6001",
    "manufacturer": "FTDI",
    "product": "FT232R USB UART",
    "serial": "A9YXYZ",
}
BY_ID = "usb-FTDI_FT232R_USB_UART_A9YXYZ-if00-port0"


class Lamp(Driver):
    """A lamp of somebody else's, on a USB port."""

    port: str
    colours: list[str] | None = None

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/bus/usb/devices/*"):
            usb = machine.usb(place)
            if usb is not None and (usb.vendor_id, usb.product_id) == ("1234", "0001"):
                yield Suggestion("lamp", {"port": usb.port}, str(usb), f"usb:{usb.port}", note="red: it is hot")


class Broken(Driver):
    """Cannot even look."""

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        raise RuntimeError("no such\nluck")


@pytest.fixture
def machine(tmp_path: Path) -> Files:
    return Files(tmp_path / "machine")


def look(files: Files, **drivers: type[Driver]) -> list[scan.Found]:
    return scan.scan(Machine(files.root), drivers, failed=lambda driver, error: pytest.fail(f"{driver}: {error}"))


def jmp(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*JMP, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_serial_ports_have_the_names_that_stay(machine: Files) -> None:
    machine.tty("ttyUSB0", machine.usb("1-1.2", **FTDI), by_id=BY_ID)
    machine.tty("ttyACM0", machine.usb("1-1.10", idVendor="1d6b", idProduct="0104"))
    machine.tty("ttyS0", "sys/devices/pnp0/00:04")
    machine.write("sys/class/tty/console/active", "tty0 ttyS0\n")  # the kernel's own
    machine.tty("ttyS1", "sys/devices/pnp0/00:05")
    machine.write("sys/devices/pnp0/00:05/tty/ttyS1/type", "0\n")  # a place without a chip
    machine.tty("ttyAMA0", "sys/devices/platform/3f201000.serial")
    machine.link("sys/devices/platform/3f201000.serial/driver", "sys/bus/amba/drivers/uart-pl011")
    machine.write("sys/bus/amba/drivers/uart-pl011/uevent")
    (machine.root / "sys/class/tty/tty0").mkdir()  # no device behind it
    machine.write("dev/tty0")
    found = look(machine, serial=Serial)
    assert [(each.name, each.suggestion.config["url"], each.suggestion.about) for each in found] == [
        ("console", "/dev/ttyACM0", "USB device (1d6b:0104), USB port 1-1.10"),
        ("console-2", "/dev/ttyAMA0", "serial port of this machine (uart-pl011)"),
        (
            "console-3",
            f"/dev/serial/by-id/{BY_ID}",
            "FTDI FT232R USB UART (0403:6001), serial number A9YXYZ, USB port 1-1.2",
        ),
    ]


def test_a_driver_of_any_distribution_takes_part(machine: Files, tmp_path: Path) -> None:
    machine.link("sys/bus/usb/devices/1-3", machine.usb("1-3", idVendor="1234", idProduct="0001").rpartition("/")[0])
    drivers = {"lamp": Lamp, "broken": Broken, "serial": Serial}
    failures: dict[str, str] = {}
    found = scan.scan(
        Machine(machine.root),
        drivers,
        reserved={"lamp"},
        failed=lambda name, error: failures.update({name: str(error)}),
    )
    assert failures == {"broken": "no such\nluck"}
    text = scan.proposal(found, "bench")
    assert text.endswith(
        "export:\n  # USB device (1234:0001), USB port 1-3: usb:1-3\n  # red: it is hot\n"
        "  lamp-2:\n    type: lamp\n    config:\n      port: 1-3\n"
    )
    assert config.read_text(text, tmp_path / "bench.yaml", drivers, reserved={"lamp"})[1] == []


def test_disks_that_are_plugged_in_but_none_of_the_machines(machine: Files) -> None:
    stick = machine.usb("1-4", idVendor="0781", idProduct="5581", product="Ultra")
    machine.disk("sdb", stick, sectors=60_000_000, removable=True, by_id="usb-Ultra-0:0")
    machine.disk(
        "sdc", machine.usb("1-5", idVendor="0bda", idProduct="9210"), sectors=0, removable=True
    )  # no card in it
    machine.disk("sda", "sys/devices/pci0000:00/ata1", sectors=500_000_000, removable=False)
    (found,) = look(machine, **{"block-device": BlockDevice, "sd-mux": SdMux})
    assert (found.type, found.entry()["storage"]["config"]) == (
        "block-device",
        {"path": "/dev/disk/by-id/usb-Ultra-0:0"},
    )
    assert found.comment()[0] == "Ultra (0781:5581), USB port 1-4, 30.7 GB: /dev/sdb"
    machine.write("sys/class/block/sdb/size", "16384")
    (found,) = look(machine, **{"block-device": BlockDevice})
    assert found.comment()[0] == "Ultra (0781:5581), USB port 1-4, 8.4 MB: /dev/sdb"


def test_cameras_are_what_gives_pictures(machine: Files) -> None:
    """A USB camera has a second node, for what it says of its pictures; a codec of the machine's has one that takes pictures."""
    usb = machine.usb("1-6", idVendor="046d", idProduct="082d", product="HD Pro Webcam C920", serial="1234")
    for number, (place, index, can) in enumerate(
        [
            (usb, 0, ":capture:"),
            (usb, 1, ":"),
            ("sys/devices/platform/codec", 0, ":video_output:"),
            ("sys/devices/platform/unicam", 0, None),
        ]
    ):
        node = f"{place}/video4linux/video{number}"
        machine.write(f"{node}/index", f"{index}\n")
        machine.write(f"{node}/dev", f"81:{number}\n")
        machine.write(f"{node}/name", "unicam\n")
        machine.link(f"sys/class/video4linux/video{number}", node)
        machine.write(f"dev/video{number}")
        if can is not None:
            machine.write(f"run/udev/data/c81:{number}", f"E:ID_V4L_VERSION=2\nE:ID_V4L_CAPABILITIES={can}\n")
    machine.link("dev/v4l/by-id/usb-046d_C920-video-index0", "dev/video0")
    found = look(machine, camera=V4l2Camera)
    assert [(each.suggestion.config["device"], each.suggestion.about) for each in found] == [
        (
            "/dev/v4l/by-id/usb-046d_C920-video-index0",
            "HD Pro Webcam C920 (046d:082d), serial number 1234, USB port 1-6",
        ),
        ("/dev/video3", "unicam"),
    ]


def test_what_can_be_flashed_over_usb(machine: Files) -> None:
    def plug(port: str, *, kind: str = "ff0000", interface: str = "", **attributes: str) -> str:
        place = machine.usb(port, **attributes)
        names = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")
        for name, digits in zip(names, (kind[:2], kind[2:4], kind[4:]), strict=True):
            machine.write(f"{place}/{name}", digits + "\n")
        machine.write(f"{place}/interface", interface + "\n")
        machine.link(f"sys/bus/usb/devices/{port}", place.rpartition("/")[0])
        machine.link(f"sys/bus/usb/devices/{port}:1.0", place)
        return place

    plug("1-1", kind="fe0102", idVendor="0483", idProduct="df11", product="STM32 BOOTLOADER", serial="2061")
    plug("1-2", kind="fe0101", idVendor="1209", idProduct="0001")
    plug("1-3", kind="ff4203", idVendor="18d1", idProduct="4ee0", product="Fastboot", serial="FB1")
    plug("1-4", kind="ff4201", idVendor="18d1", idProduct="4ee7", product="adb")
    plug("1-5", idVendor="0483", idProduct="374b", product="STM32 STLink", serial="066B")
    plug(
        "1-6",
        idVendor="2e8a",
        idProduct="000c",
        product="Debug Probe",
        interface="CMSIS-DAP v2 Interface",
        serial="E66",
    )
    plug("1-7", idVendor="1366", idProduct="0101", product="J-Link", serial="0682")
    esp = plug("1-8", kind="020201", idVendor="303a", idProduct="1001", product="USB JTAG/serial debug unit")
    machine.tty("ttyACM0", esp, by_id="usb-Espressif_USB_JTAG_serial-if00")
    machine.disk(
        "sdb", machine.usb("1-9", idVendor="2e8a", idProduct="0003", product="RP2 Boot"), sectors=9, removable=True
    )
    machine.link("dev/disk/by-label/RPI-RP2", "dev/sdb")
    machine.link("dev/disk/by-label/data", "dev/sdb")
    found = look(machine, dfu=Dfu, fastboot=Fastboot, openocd=OpenOcd, esptool=Esptool, uf2=Uf2)
    assert [(each.type, each.suggestion.config) for each in found] == [
        ("dfu", {"device": "0483:df11", "serial": "2061"}),
        ("dfu", {"device": "1209:0001"}),
        ("esptool", {"port": "/dev/serial/by-id/usb-Espressif_USB_JTAG_serial-if00"}),
        ("fastboot", {"serial": "FB1"}),
        ("openocd", {"config": ["interface/stlink.cfg"], "commands": ["adapter serial 066B"]}),
        ("openocd", {"config": ["interface/cmsis-dap.cfg"], "commands": ["adapter serial E66"]}),
        ("openocd", {"config": ["interface/jlink.cfg"], "commands": ["adapter serial 0682"]}),
        ("uf2", {"path": "/dev/disk/by-label/RPI-RP2"}),
    ]
    assert found[1].suggestion.note.startswith("it runs its firmware now")
    assert config.read_text(scan.proposal(found, "bench"), Path("bench.yaml"), driver_class)[1] == []


def test_links_out_of_the_root_are_not_followed(machine: Files) -> None:
    machine.link("dev/serial/by-id/usb-x", "/dev/null")
    assert Machine(machine.root).resolve("/dev/serial/by-id/usb-x") == "/dev/serial/by-id/usb-x"


def test_command_line(machine: Files, tmp_path: Path) -> None:
    nothing = jmp("scan", "--root", machine.root)
    assert (nothing.returncode, nothing.stdout, nothing.stderr.count("\n")) == (74, "", 1)
    machine.tty("ttyUSB0", machine.usb("1-1.2", **FTDI), by_id=BY_ID)
    proposed = jmp("scan", "--root", machine.root, "--name", "bench7")
    assert proposed.returncode == 0, proposed.stderr
    file = tmp_path / "bench7.yaml"
    file.write_text(proposed.stdout)
    assert (checked := jmp("exporter", "check", file)).returncode == 0, checked.stderr
    assert "name: bench7\n" in proposed.stdout
    assert (
        "  # FTDI FT232R USB UART (0403:6001), serial number A9YXYZ, USB port 1-1.2: /dev/ttyUSB0\n" in proposed.stdout
    )
    assert config.read(file, driver_class)[1] == []
    listed = json.loads(jmp("scan", "--root", machine.root, "-o", "json").stdout)
    assert [(each["name"], each["type"], each["device"]) for each in listed] == [("console", "serial", "/dev/ttyUSB0")]
    assert jmp("scan", "--root", machine.root, "-o", "name").stdout == "console\n"
    assert jmp("scan", "--root", machine.root, "-o", "table").stdout.startswith("console\tserial\t/dev/ttyUSB0\tFTDI")
    assert jmp("scan", "--root", tmp_path / "nowhere").returncode == 64
    both = jmp("scan", "--watch", "--network")
    assert (both.returncode, both.stderr.count("\n"), "without it" in both.stderr) == (64, 1, True)
    assert jmp("scan", "--name", "a b").returncode == 64


class Lines:
    """The lines of a stream, one by one."""

    def __init__(self, stream: trio.abc.ReceiveStream | None) -> None:
        assert stream is not None
        self._stream = stream
        self._text = ""

    async def next(self) -> str:
        while "\n" not in self._text:
            data = await self._stream.receive_some()
            assert data, f"it ended after {self._text!r}"
            self._text += data.decode()
        line, _, self._text = self._text.partition("\n")
        return line


async def test_what_appears_and_goes_is_told(machine: Files) -> None:
    machine.tty("ttyACM0", machine.usb("1-2", idVendor="1d6b", idProduct="0104"))
    command = [*JMP, "scan", "--watch", "--root", str(machine.root)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(partial(trio.run_process, command, check=False, **pipes))
            told, news = Lines(process.stdout), Lines(process.stderr)
            assert await news.next() == "watching; there is already: /dev/ttyACM0"
            machine.tty("ttyUSB0", machine.usb("1-1.2", **FTDI))
            assert await told.next() == "# appeared: /dev/ttyUSB0"
            assert (await told.next()).startswith("  # FTDI FT232R USB UART")
            assert [await told.next() for _ in range(4)] == [
                "  console-2:",
                "    type: serial",
                "    config:",
                "      url: /dev/ttyUSB0",
            ]
            (machine.root / "dev/ttyACM0").unlink()
            assert await told.next() == "# gone: /dev/ttyACM0"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
