"""An SPI bus of the lab machine: chip 0 sends back what it gets, chip 1 is a memory with the commands of SPI flash."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from jmp.driver import BadValue, DeviceError, serve
from jmp_drivers.spi import Spi
from tests.fakes.patience import fails, works

WIRE, MEMORY = Path("/dev/spidev0.0"), Path("/dev/spidev0.1")


async def test_a_chip() -> None:
    with trio.fail_after(240):
        async with serve(Spi(device=WIRE)) as wire:
            assert await wire.transfer(bytes(range(256)) * 16) == bytes(range(256)) * 16
            assert await wire.transfer("01 02 ff") == b"\x01\x02\xff"
            with pytest.raises(BadValue, match="1 to 4096 bytes go in one transfer, not 4097"):
                await wire.transfer(bytes(4097))
            with pytest.raises(BadValue, match="count must be 1 or more"):
                await wire.read(0)
        for mode in (0, 3):
            async with serve(Spi(device=MEMORY, mode=mode, speed=5_000_000)) as memory:
                assert await memory.read(3, "9f") == b"\xef\x40\x10"
                await memory.transfer("06")
                assert await memory.read(1, "05") == b"\x02"
                await memory.transfer(b"\x02\x00\x01\x00" + bytes([mode, 7, 8]))
                assert await memory.read(3, "03000100") == bytes([mode, 7, 8])
                await memory.transfer("04")
                await memory.transfer("02000100ff")
                assert await memory.read(1, "03000100") == bytes([mode]), "it is not writable any more"
        async with serve(Spi(device=MEMORY, mode=1)) as memory:
            assert await memory.read(3, "9f") == b"\xff\xff\xff", "a chip that does not understand"


async def test_what_cannot_be() -> None:
    with trio.fail_after(240):
        async with serve(Spi(device=WIRE, lsb_first=True)) as chip:
            with pytest.raises(DeviceError, match=r"SPI device /dev/spidev0\.0: its bus cannot do this mode or speed"):
                await chip.transfer("01")
        async with serve(Spi(device=Path("/dev/null"))) as chip:
            with pytest.raises(DeviceError, match="SPI device /dev/null: it is no spidev"):
                await chip.transfer("01")
        async with serve(Spi(device=Path("/dev/spidev7.0"))) as chip:
            present = r"there is none; present: /dev/spidev0\.0, /dev/spidev0\.1"
            with pytest.raises(DeviceError, match=present):
                await chip.transfer("01")


async def test_a_bus_that_goes_and_returns() -> None:
    driver = "/sys/bus/platform/drivers/spi-lab"
    with trio.fail_after(240):
        async with serve(Spi(device=WIRE)) as wire:
            assert await wire.transfer("01") == b"\x01"
            Path(driver, "unbind").write_text("spi-lab")
            await fails(lambda: wire.transfer("01"), r"SPI device /dev/spidev0\.0: (it is gone|there is none)")
            Path(driver, "bind").write_text("spi-lab")
            assert await works(lambda: wire.transfer("02")) == b"\x02"
