"""A USB stick: flashed, pulled out, plugged in again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import DeviceError, serve
from jmp_drivers.block import BlockDevice
from tests.fakes.patience import works

GADGET = Path("/sys/kernel/config/usb_gadget/dut/UDC")
STICK = Path("/dev/sda")


async def gone() -> None:
    if STICK.exists():
        raise DeviceError("not yet")


async def test_a_stick(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 20))
    with trio.fail_after(240):
        async with serve(BlockDevice(path=STICK, max_size="8M"), class_of=client_class) as client:
            await works(client.size)
            result = await client.flash(image)
            assert result["bytes"] == 1 << 20
            assert Path("/run/stick").read_bytes()[: 1 << 20] == image.read_bytes(), "it is on the medium"

            GADGET.write_text("\n")
            await works(gone)
            with pytest.raises(DeviceError, match="/dev/sda: No such file or directory; is it plugged in"):
                await client.flash(image)

            GADGET.write_text("dummy_udc.0\n")
            await works(client.size)
            await client.flash(image)
