"""Servers' BMCs: sushy-tools' emulator speaks Redfish, OpenIPMI's simulator IPMI."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest
import trio

from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers.bmc import IpmiPower, RedfishPower
from tests.fakes.ports import free_port

BMC = """\
name "bmc"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{folder}/chassis"
  user 1 true "" "none" user 10 none md2 md5 straight
  user 2 true "lab" "s3cret" admin 10 none md2 md5 straight
"""
CHASSIS = """\
#!/bin/sh
case "$1 $2" in
"get power") echo "power:$(cat {folder}/power)" ;;
"set power") echo "$3" > {folder}/power ;;
esac
"""


@asynccontextmanager
async def sushy(folder: Path, port: int) -> AsyncIterator[None]:
    """The emulator, whose server does nothing but remember."""
    (folder / "emulator.conf").write_text(
        f"SUSHY_EMULATOR_STATE_DIR = '{folder}'\nSUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\n"
    )
    argv = [str(Path(sys.executable).with_name("sushy-emulator")), "--fake", "--config", str(folder / "emulator.conf")]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, argv, stdout=PIPE, stderr=STDOUT, check=False)
        process: trio.Process = await nursery.start(run)
        assert process.stdout is not None
        said = b""
        while b"Running on" not in said:
            said += await process.stdout.receive_some() or pytest.fail(f"it ended: {said.decode()}")
        nursery.start_soon(_drain, process.stdout)
        yield
        process.kill()
        nursery.cancel_scope.cancel()


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass


@asynccontextmanager
async def ipmi_sim(folder: Path, port: int) -> AsyncIterator[Path]:
    """The simulator; yields the file with its server's state."""
    (folder / "lan.conf").write_text(BMC.format(port=port, folder=folder))
    (folder / "bmc.emu").write_text(
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n"
    )
    (folder / "chassis").write_text(CHASSIS.format(folder=folder))
    (folder / "chassis").chmod(0o700)
    power = folder / "power"
    if not power.exists():
        power.write_text("0\n")
    (folder / "saved").mkdir(exist_ok=True)
    argv = ["ipmi_sim", "-c", f"{folder}/lan.conf", "-f", f"{folder}/bmc.emu", "-s", f"{folder}/saved"]
    async with trio.open_nursery() as nursery:
        # It ends with its input.
        process: trio.Process = await nursery.start(
            partial(trio.run_process, argv, stdin=PIPE, stdout=PIPE, stderr=STDOUT, check=False)
        )
        assert process.stdout is not None
        nursery.start_soon(_drain, process.stdout)
        await _answers(port)
        yield power
        process.kill()
        nursery.cancel_scope.cancel()


async def _answers(port: int) -> None:
    """Wait until the simulator does: to pings of ASF, which need no login."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", port))
        while True:
            with suppress(ConnectionRefusedError), trio.move_on_after(0.05):
                await sock.send(b"\x06\x00\xff\x06\x00\x00\x11\xbe\x80\x00\x00\x00")
                await sock.recv(1000)
                return
            await trio.sleep(0.01)


async def test_redfish(tmp_path: Path) -> None:
    with trio.fail_after(600):
        port = free_port()
        bmc: dict[str, Any] = {"url": f"http://127.0.0.1:{port}", "timeout": 60}
        async with serve(RedfishPower(**bmc)) as power:
            with pytest.raises(DeviceError, match=r"GET /redfish/v1/Systems at http://.*: Connection refused"):
                await power.on()
        async with sushy(tmp_path, port):
            async with serve(RedfishPower(**bmc)) as power:
                assert await power.state() == "off"
                await power.on()
                assert await power.state() == "on"
                await power.on()
                await power.cycle(wait=0)
                await power.off()
                assert await power.state() == "off"
                with pytest.raises(DeviceError, match="measures no power"):
                    await power.reading()
            async with serve(RedfishPower(**bmc, system="nine")) as power:
                with pytest.raises(DeviceError, match=r"GET /redfish/v1/Systems/nine at .*nine"):
                    await power.on()


async def test_ipmi(tmp_path: Path) -> None:
    with trio.fail_after(600):
        port = free_port()
        bmc: dict[str, Any] = {"host": "127.0.0.1", "port": port, "username": "lab"}
        async with serve(IpmiPower(**bmc, password="s3cret", timeout=1)) as power:
            with pytest.raises(DeviceError, match=r"status at 127\.0\.0\.1 did not end within 1 s"):
                await power.on()
        async with ipmi_sim(tmp_path, port) as state:
            async with serve(IpmiPower(**bmc, password="s3cret", timeout=32)) as power:
                assert await power.state() == "off"
                await power.on()
                assert state.read_text() == "1\n"
                assert await power.state() == "on"
                await power.off()
                assert state.read_text() == "0\n"
                with pytest.raises(DeviceError, match=r"BMC 127\.0\.0\.1: .*DCMI"):
                    await power.reading()
            async with serve(IpmiPower(**bmc, password="wr0ng", timeout=32)) as power:
                with pytest.raises(DeviceError, match="does not take this username and password") as failure:
                    await power.on()
                assert "wr0ng" not in failure.value.message


@pytest.mark.parametrize("url", ["bmc.lab", "ftp://bmc.lab", "http://", "http://lab:secret@bmc.lab"])
def test_wrong_url(url: str) -> None:
    with pytest.raises(ConfigError, match="url must be") as failure:
        RedfishPower(url=url)
    assert "secret" not in failure.value.message
