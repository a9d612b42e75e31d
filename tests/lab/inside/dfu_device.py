"""A device in DFU mode that is plugged in by USB/IP, and dfu-util."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from usbip.classes.device import DFU
from usbip.device import USBDevice

from jmp.client.interfaces import client_class
from jmp.driver import DeviceError, Machine, serve
from jmp_drivers.flashers import Dfu
from tests.fakes.patience import works


class Flash:
    """What the device keeps."""

    name = "flash0"
    i_string = 0

    def __init__(self) -> None:
        self.data = b""
        self.length = 0
        self.done = 0

    def begin_download(self) -> None:
        self.data = b""

    def write(self, offset: int, data: bytes) -> None:
        self.data = self.data[:offset].ljust(offset, b"\xff") + bytes(data)
        self.length = len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def finish_download(self) -> None:
        self.done += 1


@pytest.fixture
def flash() -> Flash:
    kept = Flash()
    device = USBDevice(0x1209, 0x0002, manufacturer="Lab", product="DFU DUT", serial="D1")
    device.add(DFU(targets=[kept], winusb=False))
    device.plug()
    attach = ["usbip", "attach", "-r", "127.0.0.1", "-b", "1-1"]
    while subprocess.run(attach, capture_output=True, check=False).returncode:
        pass  # it does not listen yet
    return kept


async def test_a_device_is_flashed(flash: Any, tmp_path: Path) -> None:
    (tmp_path / "fw.bin").write_bytes(os.urandom(20_000))
    with trio.fail_after(240):
        async with serve(Dfu(device="1209:0002", alt="0", leave=False), class_of=client_class) as client:

            async def there() -> None:
                if not await client.list():
                    raise DeviceError("not yet")

            await works(there)
            (found,) = Dfu.suggest(Machine())
            assert found.config == {"device": "1209:0002", "serial": "D1"}
            assert "Lab DFU DUT (1209:0002), serial number D1, USB port " in found.about
            shown: list[tuple[int, int | None]] = []
            await client.flash(tmp_path / "fw.bin", progress=lambda *at: shown.append(at))
            assert flash.data == (tmp_path / "fw.bin").read_bytes()
            assert flash.done == 1
            assert shown[-1] == (20_000, 20_000)
            with pytest.raises(DeviceError, match="dfu-util ended with status"):
                await client.flash(tmp_path / "fw.bin", target="7")
