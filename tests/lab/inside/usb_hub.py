"""The port of a USB hub that can switch it, by uhubctl itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from jmp.driver import DeviceError, serve
from jmp_drivers.uhubctl import UsbHubPower
from tests.fakes.patience import fails, works

# A hub that rests wakes up with its ports on.
CONTROL = Path("/sys/bus/usb/devices/usb1/power/control")


async def test_a_port_is_switched() -> None:
    CONTROL.write_text("on")
    with trio.fail_after(240):
        async with serve(UsbHubPower(location="1", port=1, timeout=60)) as power:
            assert await power.state() == "on"
            await power.off()  # which asks the hub whether it is
            await power.on()
            assert await power.state() == "on"
        for location, port, message in (
            ("4-1", 1, "there is no USB hub at 4-1 that can switch its ports"),
            ("1", 7, "USB hub 1 has no port 7"),
        ):
            async with serve(UsbHubPower(location=location, port=port, timeout=60)) as power:
                with pytest.raises(DeviceError, match=message):
                    await power.on()
        async with serve(UsbHubPower(location="1", port=1, program="uhubctl-none")) as power:
            with pytest.raises(DeviceError, match="cannot start uhubctl-none: no such program"):
                await power.on()


async def test_a_hub_that_goes_and_comes_back() -> None:
    CONTROL.write_text("on")
    with trio.fail_after(240):
        async with serve(UsbHubPower(location="1", port=1, timeout=60)) as power:
            assert await power.state() == "on"
            host = Path("/sys/bus/usb/devices/usb1").resolve().parent
            driver = (host / "driver").resolve()
            (driver / "unbind").write_text(host.name)
            await fails(power.state, "there is no USB hub at 1 that can switch its ports")
            (driver / "bind").write_text(host.name)
            await works(power.state)
