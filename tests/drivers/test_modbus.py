"""Modbus: pymodbus's own server, over TCP and over a serial line made of two ptys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.modbus import Modbus, Register
from tests.fakes.patience import fails, works
from tests.fakes.ports import free_port

SERVER = """
import asyncio, sys
from pymodbus.server import ModbusTcpServer, ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice
from tests.fakes.ports import free_port

async def main(where):
    device = SimDevice(1, [SimData(0, count=32, values=0, datatype=DataType.REGISTERS)])
    if where.isdigit():
        server = ModbusTcpServer(context=device, address=("127.0.0.1", int(where)))
        ready = server.listen()
        await ready
    else:
        server = ModbusSerialServer(context=device, port=where, baudrate=19200)
        await server.listen()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


@contextmanager
def device(where: str | int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVER, str(where)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_registers_by_address_and_by_name() -> None:
    registers = {
        "voltage": Register(0, scale=0.1),
        "offset": Register(1, form="i16"),
        "energy": Register(2, form="u32", order="little"),
        "level": Register(4, form="f32"),
    }
    with (
        device(port := free_port()),
        serve(Modbus(host="127.0.0.1", port=port, registers=registers, timeout=60)) as client,
    ):
        client.write(10, [1, 2, 65535])
        assert client.read(10, 3) == [1, 2, 65535]
        client.set("voltage", 230.4)
        client.set("offset", -5)
        client.set("energy", 100_000)
        client.set("level", 0.5)
        assert client.read(0, 6) == [2304, 65531, 0x86A0, 0x0001, 0x3F00, 0]
        assert client.get("voltage") == 230.4
        assert client.reading() == {"voltage": 230.4, "offset": -5, "energy": 100_000, "level": 0.5}
        assert next(iter(client.readings(interval=0.01)))["level"] == 0.5
        with pytest.raises(DeviceError, match=r"Modbus device 127\.0\.0\.1:\d+ \(unit 1\): it has no such address"):
            client.read(100)
        with pytest.raises(BadValue, match="cannot hold -1: it is u32"):
            client.set("energy", -1)
        with pytest.raises(BadValue, match="did you mean 'voltage'"):
            client.get("voltag")
        with pytest.raises(BadValue, match="0 to 65535"):
            client.write(0, [65536])
        with pytest.raises(BadValue, match="1 to 2000"):
            client.read(0, 0)


def test_on_a_line(tmp_path: Path) -> None:
    ends = [tmp_path / name for name in ("one", "two")]
    links = [f"pty,raw,echo=0,link={end}" for end in ends]
    with subprocess.Popen(["socat", "-d", "-d", *links], stderr=subprocess.PIPE, text=True) as line:
        try:
            assert line.stderr is not None
            while "starting data transfer" not in line.stderr.readline():
                pass
            with device(str(ends[0])), serve(Modbus(serial=str(ends[1]), timeout=60)) as client:
                client.write(3, [7])
                assert client.read(3) == [7]
        finally:
            line.kill()


def test_absent_and_lost() -> None:
    port = free_port()
    with (
        serve(Modbus(host="127.0.0.1", port=port)) as client,
        pytest.raises(DeviceError, match="cannot be connected to"),
    ):
        client.read(0)
    with device(port) as process, serve(Modbus(host="127.0.0.1", port=port, timeout=60)) as client:
        assert client.read(0) == [0]
        process.kill()
        process.wait()
        with pytest.raises(DeviceError, match="Modbus device"):
            client.read(0)


async def test_one_that_goes_comes_back() -> None:
    port = free_port()
    with trio.fail_after(60):
        async with serve(Modbus(host="127.0.0.1", port=port, timeout=60)) as client:
            with device(port):
                assert await works(lambda: client.read(0)) == [0]
            await fails(lambda: client.read(0), r"Modbus device 127\.0\.0\.1:\d+ \(unit 1\)")
            with device(port):
                assert await works(lambda: client.read(0)) == [0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "either host or serial"),
        ({"host": "a", "serial": "b"}, "either host or serial"),
        ({"host": "a", "unit": 256}, "unit must be"),
    ],
)
def test_wrong_configuration(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Modbus(**config)
    with pytest.raises(ConfigError, match="address must be"):
        Register(70_000)
