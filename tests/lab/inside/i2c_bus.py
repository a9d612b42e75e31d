"""An I2C bus of the kernel's, with devices at 0x20 and 0x50 that are memory; by i2c-tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from jmp.driver import BadValue, DeviceError, serve
from jmp_drivers.i2c import I2c
from tests.fakes.patience import fails, works


async def test_a_bus() -> None:
    with trio.fail_after(240):
        async with serve(I2c(bus=0, timeout=60)) as bus:
            assert await bus.scan() == [0x20, 0x50]
            await bus.write(0x50, 0x10, 0xAB)
            assert await bus.read(0x50, 0x10) == 0xAB
            await bus.write(0x20, 0x02, 0xBEEF, size="word")
            assert await bus.read(0x20, 0x02, size="word") == 0xBEEF
            with pytest.raises(DeviceError, match="I2C bus 0: no device answers"):
                await bus.read(0x33, 0)
            with pytest.raises(DeviceError, match=r"I2C bus 0: .*transfers"):  # this one cannot
                await bus.transfer(0x50, b"\x10", 1)
            for wrong in ((0x80, 0), (0x50, 0x100)):
                with pytest.raises(BadValue, match="must be"):
                    await bus.read(*wrong)
        async with serve(I2c(bus=0, addresses=[0x20], timeout=60)) as bus:
            assert await bus.scan() == [0x20]
            with pytest.raises(BadValue, match="0x50 is not among those of the configuration: 0x20"):
                await bus.read(0x50, 0)
        async with serve(I2c(bus=7)) as bus:
            with pytest.raises(DeviceError, match="there is no I2C bus 7; present: /dev/i2c-0"):
                await bus.scan()


async def test_a_bus_that_goes_and_comes_back() -> None:
    module = Path(os.environ["KERNEL"], "i2c-stub.ko")
    with trio.fail_after(240):
        async with serve(I2c(bus=0, timeout=60)) as bus:
            assert await bus.scan() == [0x20, 0x50]
            await trio.run_process(["rmmod", "i2c_stub"])
            await fails(bus.scan, "there is no I2C bus 0|No such file or directory")
            await trio.run_process(["insmod", str(module), "chip_addr=0x20,0x50"])
            assert await works(bus.scan) == [0x20, 0x50]
