"""Wake-on-LAN, held against the packet of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import DeviceError, UsageError, schema, serve
from jmp_drivers.wake_on_lan import WakeOnLan

MAC = "52:54:00:12:34:56"


async def test_packet_is_the_one_that_wakeonlan_sends() -> None:
    with trio.fail_after(60), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as listener:
        await listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        await trio.run_process(["wakeonlan", "-i", "127.0.0.1", "-p", str(port), MAC], capture_stdout=True)
        expected = await listener.recv(4096)
        for mac in (MAC, MAC.replace(":", "-"), MAC.replace(":", "")):
            async with serve(WakeOnLan(mac=mac, broadcast="127.0.0.1", port=port)) as power:
                assert await power.state() == "unknown"
                await power.on()
                assert await listener.recv(4096) == expected
                assert await power.state() == "on"


async def test_commands_switch_it_off_and_tell_its_state(tmp_path: Path) -> None:
    driver = WakeOnLan(
        mac=MAC,
        broadcast="127.0.0.1",
        off_command=f"echo off > {tmp_path}/state",
        state_command=f"cat {tmp_path}/state",
    )
    with trio.fail_after(60):
        async with serve(driver) as power:
            with pytest.raises(DeviceError, match="the command for 'state' failed with exit status 1"):
                await power.state()
            await power.off()
            assert await power.state() == "off"


async def test_without_a_command_it_cannot_be_switched_off() -> None:
    with trio.fail_after(60):
        async with serve(WakeOnLan(mac=MAC, broadcast="127.0.0.1")) as power:
            for call in (power.off, power.cycle):
                with pytest.raises(UsageError, match="give the exporter a command for 'off'"):
                    await call()


async def test_unknown_network_is_told() -> None:
    with trio.fail_after(60):
        async with serve(WakeOnLan(mac=MAC, broadcast="nowhere.invalid")) as power:
            with pytest.raises(DeviceError, match=r"^cannot send to nowhere\.invalid port 9: "):
                await power.on()


@pytest.mark.parametrize(
    "config",
    [{}, {"mac": "52:54:00:12:34"}, {"mac": "52:54-00:12:34:56"}, {"mac": MAC, "port": 0}, {"mac": MAC, "off": []}],
)
def test_configuration_is_checked(config: dict[str, Any]) -> None:
    driver, problems = schema.load(WakeOnLan, config)
    assert driver is None
    assert problems
