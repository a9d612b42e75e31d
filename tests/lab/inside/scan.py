"""jmp scan on a machine with devices, and while they are plugged in and out."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from jmp.driver import DeviceError, Machine
from jmp.driver.plugins import driver_class, driver_names
from jmp.exporter import config, scan
from tests.exporter.test_scan import JMP, Lines
from tests.fakes.patience import works

UDC = Path("/sys/kernel/config/usb_gadget/dut/UDC")


async def disk() -> None:
    size = Path("/sys/class/block/sda/size")
    if not Path("/dev/sda").exists() or size.read_text() == "0\n":
        raise DeviceError("not yet")


async def test_what_is_plugged_in() -> None:
    command = [*JMP, "scan", "--watch", "-o", "table"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with trio.fail_after(240):
        await works(disk)  # disks are found a moment after they are plugged in
        drivers = {name: driver_class(name) for name in driver_names()}
        text = scan.proposal(scan.scan(Machine(), drivers, failed=lambda *failure: pytest.fail(str(failure))), "lab")
        assert "  # Lab Virtual DUT (1d6b:0104), serial number LAB0001, USB port 1-1\n" in text
        for entry in (
            "camera:\n    type: v4l2-camera\n    config:\n      device: /dev/video0\n",
            "can:\n    type: can\n    config:\n      channel: vcan0\n",
            "console:\n    type: serial\n    config:\n      url: /dev/ttyACM0\n",
            "gpio:\n    type: gpio\n    config:\n      chip: /dev/gpiochip0\n",
            "i2c:\n    type: i2c\n    config:\n      bus: 0\n",
            "spi:\n    type: spi\n    config:\n      device: /dev/spidev0.0\n",
            "storage:\n    type: block-device\n    config:\n      path: /dev/sda\n",
        ):
            assert f"  {entry}" in text
        assert config.read_text(text, Path("lab.yaml"), driver_class)[1] == []
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(partial(trio.run_process, command, check=False, **pipes))
            told, news = Lines(process.stdout), Lines(process.stderr)
            assert "/dev/ttyACM0" in await news.next()
            UDC.write_text("\n")
            while not (line := await told.next()).startswith("gone\tconsole\tserial\t/dev/ttyACM0"):
                assert line.startswith("gone\t")
            UDC.write_text("dummy_udc.0")
            while not (line := await told.next()).startswith("appeared\tconsole\tserial\t/dev/ttyACM0"):
                assert line.startswith(("gone\t", "appeared\t"))  # what went with it may be told of later
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
