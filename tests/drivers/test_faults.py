"""What every driver does with a wrong configuration and an absent device: one line, and whose fault it is.

A new driver belongs in one of the tables here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from jmp.driver import DeviceError, schema, serve
from jmp.driver.schema import config_schema
from jmp.exporter import config
from tests.fakes.bundled import ROOT, driver_class
from tests.fakes.mqtt import free_port

TYPES = sorted(tomllib.loads((ROOT / "drivers/pyproject.toml").read_text())["project"]["entry-points"]["jmp.drivers"])

ABSENT: dict[str, tuple[dict[str, Any], str, tuple[Any, ...], str]] = {
    "block-device": ({"path": "/dev/jmp-none"}, "size", (), "/dev/jmp-none"),
    "can": ({"channel": "can77"}, "send", (1,), "CAN bus can77"),
    "command-console": ({"command": ["jmp-none"]}, "send", (b"x",), "jmp-none"),
    "command-power": ({"on": ["jmp-none"], "off": ["jmp-none"]}, "on", (), "jmp-none"),
    "container": ({"image": "x", "program": "jmp-none"}, "run", (["true"],), "jmp-none"),
    "doip": ({"host": "127.0.0.1", "unit": 1, "port": "PORT"}, "read", (1,), "127.0.0.1"),
    "gpio": ({"chip": "/dev/gpiochip77"}, "list", (), "/dev/gpiochip77"),
    "gpio-power": ({"chip": "/dev/gpiochip77", "line": 1}, "on", (), "/dev/gpiochip77"),
    "http-power": ({"on": "http://127.0.0.1:PORT/", "off": "http://127.0.0.1:PORT/"}, "on", (), "127.0.0.1"),
    "i2c": ({"bus": 77}, "scan", (), "I2C bus 77"),
    "ipmi-power": ({"host": "127.0.0.1", "port": "PORT", "timeout": 1}, "state", (), "127.0.0.1"),
    "iso-tp": ({"channel": "can77", "tx": 1, "rx": 2}, "send", (b"x",), "CAN bus can77"),
    "modbus": ({"host": "127.0.0.1", "port": "PORT"}, "read", (0,), "127.0.0.1"),
    "mqtt-power": ({"broker": "127.0.0.1:PORT", "command": "x"}, "on", (), "127.0.0.1"),
    "redfish-power": ({"url": "http://127.0.0.1:PORT"}, "on", (), "127.0.0.1"),
    "scpi": ({"host": "127.0.0.1", "port": "PORT"}, "identify", (), "127.0.0.1"),
    "scpi-power": ({"host": "127.0.0.1", "port": "PORT"}, "on", (), "127.0.0.1"),
    "serial": ({"url": "/dev/jmp-none"}, "send", (b"x",), "/dev/jmp-none"),
    "shelly": ({"host": "127.0.0.1:PORT"}, "on", (), "127.0.0.1"),
    "snmp-power": ({"host": "127.0.0.1:PORT", "oid": "1.3.6.1", "timeout": 0.5}, "on", (), "127.0.0.1"),
    "spi": ({"device": "/dev/spidev77.0"}, "transfer", (b"x",), "/dev/spidev77.0"),
    "ssh-power": ({"host": "127.0.0.1", "port": "PORT", "on": "x", "off": "x"}, "on", (), "127.0.0.1"),
    "tasmota": ({"broker": "127.0.0.1:PORT", "topic": "x"}, "on", (), "127.0.0.1"),
    "telnet": ({"host": "127.0.0.1", "port": "PORT"}, "send", (b"x",), "127.0.0.1"),
    "uds": ({"channel": "can77", "tx": 1, "rx": 2}, "read", (1,), "CAN bus can77"),
    "v4l2-camera": ({"device": "/dev/video77"}, "screenshot", (), "/dev/video77"),
    "usb-hub-power": ({"location": "7", "port": 7, "program": "jmp-none"}, "on", (), "jmp-none"),
}
"""Driver → a configuration whose device is absent (PORT is one where nobody listens), a call, and what its error names."""

ELSEWHERE = {
    "command-flasher": "runs its program for each image: tests/drivers/test_flashers.py",
    "conserver": "its own test has a server that is not there",
    "dfu": "as command-flasher",
    "echo": "has no device",
    "esptool": "as command-flasher",
    "fastboot": "as command-flasher",
    "flashrom": "as command-flasher",
    "http-server": "has no device",
    "mock-power": "has no device",
    "nbd": "its own test has a server that is not there",
    "openocd": "as command-flasher",
    "outlets": "has its children's devices",
    "probe-rs": "as command-flasher",
    "pyocd": "as command-flasher",
    "qemu": "tells it of its parts: tests/drivers/test_qemu.py",
    "renode": "its own test has a program that does not start: tests/drivers/test_renode.py",
    "sd-mux": "as block-device",
    "sdwire": "as block-device",
    "shell": "has no device",
    "ssh": "its client is told by OpenSSH: tests/drivers/test_ssh.py",
    "ssh-console": "its own test has a server that is not there",
    "tcp": "a stream is told: tests/drivers/test_network.py",
    "tftp": "has no device",
    "u-boot": "has its console's device",
    "udp": "nobody has to be there",
    "uf2": "its own test has a stick that is not there",
    "unix": "a stream is told: tests/drivers/test_network.py",
    "virtual-board": "has no device",
    "vnc": "a stream is told: tests/drivers/test_vnc.py",
    "wake-on-lan": "nobody confirms its packet",
}


def test_tables_name_drivers_that_there_are() -> None:
    assert set(ABSENT) | set(ELSEWHERE) <= set(TYPES)
    assert not set(ABSENT) & set(ELSEWHERE)


def problems(type_: str, given: dict[str, Any]) -> list[config.Problem]:
    entry = {"type": type_, "config": given}
    document = {"apiVersion": "jmp/v1", "kind": "Exporter", "metadata": {"name": "x"}, "export": {"dut": entry}}
    return config.read_text(yaml.safe_dump(document), Path("x.yaml"), driver_class)[1]


@pytest.mark.parametrize("type_", TYPES)
def test_a_wrong_configuration_is_told_with_its_place(type_: str) -> None:
    found = problems(type_, {"jmp_bogus": 1})
    assert any(problem.where == "export.dut.config.jmp_bogus" and "unknown key" in problem.message for problem in found)
    for key in config_schema(driver_class(type_))["properties"]:
        wrong = problems(type_, {key: [[None]]})
        mine = [problem for problem in wrong if problem.where.startswith(f"export.dut.config.{key}")]
        assert mine, f"{key}: {wrong}"
        for problem in mine:
            assert "\n" not in problem.message
            assert problem.message
            assert problem.line > 1
    for key in config_schema(driver_class(type_))["required"]:
        assert any(key in f"{problem.where} {problem.message}" for problem in problems(type_, {})), key


@pytest.mark.parametrize("type_", sorted(ABSENT))
async def test_an_absent_device_is_told_in_one_line(type_: str) -> None:
    given, method, arguments, names = ABSENT[type_]
    text = yaml.safe_dump(given).replace("PORT", str(free_port()))
    driver, wrong = schema.load(driver_class(type_), yaml.safe_load(text))
    assert driver is not None, wrong
    with trio.fail_after(60):
        async with serve(driver) as client:
            with pytest.raises(DeviceError) as failure:
                await getattr(client, method)(*arguments)
    assert names in failure.value.message
    assert "\n" not in failure.value.message
    assert failure.value.exit_code == 74
    assert "Traceback" not in failure.value.message
