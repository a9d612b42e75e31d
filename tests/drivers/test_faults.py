"""What every driver does with a wrong configuration, an absent device, and one that is lost in use and comes back.

Each time there is one line that says whose fault it is, and what is well again works without a restart. A driver without a row
for each fails here.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from jmp.client.interfaces import client_class
from jmp.driver import DeviceError, schema, serve
from jmp.driver.schema import config_schema
from jmp.exporter import config
from tests.drivers.losses import LOSSES
from tests.fakes.bundled import ROOT, driver_class
from tests.fakes.patience import fails, works
from tests.fakes.ports import free_port

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

NEVER_ABSENT = {
    "command-flasher": "it has a program, whose device is that program's affair",
    "echo": "it has no device",
    "http-server": "it is the server; the device comes to it",
    "mock-power": "it has no device",
    "outlets": "its children have the devices",
    "shell": "it has no device",
    "tftp": "it is the server; the device comes to it",
    "u-boot": "its console has the device",
    "udp": "nobody has to be there",
    "virtual-board": "it is the device",
    "wake-on-lan": "nobody confirms its packet",
}
"""Driver → why its device cannot be absent."""

TESTED_ABSENT = {
    "capture": "test_capture.py::test_what_is_wrong_is_told",
    "command-camera": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "conserver": "test_command_console.py::test_conserver",
    "dbus": "test_dbus.py::test_a_bus_that_is_not_there",
    "device-network": "test_device_network.py::story",
    "dfu": "test_flashers.py::test_dfu_util_without_a_device",
    "esptool": "test_flashers.py::test_esptool_without_a_port",
    "fastboot": "test_flashers.py::test_fastboot_without_a_device_or_a_partition",
    "flashrom": "test_flashers.py::test_flashrom",
    "http-camera": "test_camera.py::test_a_camera_over_http_that_is_ustreamer",
    "nbd": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "openocd": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "probe-rs": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "pyocd": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "qemu": "test_qemu.py::test_one_that_cannot_be_on_from_the_beginning_is_degraded",
    "renode": "test_renode.py::test_failures_are_in_renodes_words",
    "sd-mux": "test_block.py::test_a_card_that_does_not_appear",
    "sdwire": "test_block.py::test_sdwire_without_its_program",
    "ssh": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "ssh-console": "test_command_console.py::test_ssh",
    "tcp": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "uf2": "test_flashers.py::test_uf2",
    "unix": "test_faults.py::test_a_device_that_goes_is_told_and_its_return_suffices",
    "ustreamer": "test_camera.py::test_ustreamer_without_a_camera",
    "vnc": "test_vnc.py::test_a_server_that_goes_is_noticed_and_its_return_too",
    "websocket": "test_websocket.py::test_what_goes_wrong_is_told",
}
"""Driver → the test that has an absent device."""

NEVER_LOST = {
    "echo": "it has no device",
    "http-server": "it is the server; the device comes to it",
    "mock-power": "it has no device",
    "shell": "it has no device",
    "tftp": "it is the server; the device comes to it",
    "u-boot": "its console has the device",
    "udp": "nobody has to be there",
    "virtual-board": "it is the device",
    "wake-on-lan": "nobody confirms its packet",
}
"""Driver → why its device cannot be lost."""

TESTED_LOST = {
    "block-device": "../lab/inside/stick.py::test_a_stick",
    "can": "../lab/inside/can_bus.py::test_an_interface_that_is_absent_goes_down_and_comes_back",
    "capture": "test_device_network.py::story_of_a_capture",
    "command-console": "test_command_console.py::test_its_end_is_told_with_its_last_words_and_it_is_started_again",
    "container": "test_container.py::test_one_that_is_removed_and_those_of_the_dead",
    "device-network": "test_device_network.py::story",
    "gpio": "../lab/inside/gpio_lines.py::test_absent_lost_and_back",
    "gpio-power": "../lab/inside/gpio_lines.py::test_absent_lost_and_back",
    "i2c": "../lab/inside/i2c_bus.py::test_a_bus_that_goes_and_comes_back",
    "iso-tp": "../lab/inside/can_bus.py::test_conversations_outlive_an_interface_that_goes_down",
    "modbus": "test_modbus.py::test_one_that_goes_comes_back",
    "qemu": "../real/test_qemu_uboot.py::test_qemu_killed_from_outside_is_noticed",
    "renode": "test_renode.py::test_a_renode_that_ends_by_itself",
    "serial": "test_serial.py::test_unplugged_in_use_gives_clients_the_last_words_and_one_error_and_the_port_can_return",
    "shelly": "test_shelly.py::test_one_that_goes_away_in_use_is_told_and_its_return_suffices",
    "snmp-power": "test_snmp.py::test_absent_then_there_then_gone_then_back",
    "spi": "../lab/inside/spi_bus.py::test_a_bus_that_goes_and_returns",
    "tasmota": "test_mqtt.py::test_a_plug_that_is_not_there_goes_and_comes_back",
    "telnet": "test_telnet.py::test_absent_and_lost_and_back",
    "uds": "../lab/inside/can_bus.py::test_conversations_outlive_an_interface_that_goes_down",
    "usb-hub-power": "../lab/inside/usb_hub.py::test_a_hub_that_goes_and_comes_back",
    "v4l2-camera": "../lab/inside/cameras.py::test_a_camera_that_is_absent_goes_and_returns",
    "vnc": "test_vnc.py::test_a_server_that_goes_is_noticed_and_its_return_too",
}
"""Driver → the test that takes its device away and gives it back, where that takes more than LOSSES has."""


def test_every_driver_has_a_row_for_each_fault() -> None:
    """What is missing belongs in one of the tables of this file, or in LOSSES."""
    for fault, tables in (
        ("absent", (ABSENT, TESTED_ABSENT, NEVER_ABSENT)),
        ("lost", (LOSSES, TESTED_LOST, NEVER_LOST)),
    ):
        rows = [type_ for table in tables for type_ in table]
        assert sorted(rows) == TYPES, f"{fault}: {set(rows) ^ set(TYPES) or 'twice'}"


def test_tests_that_rows_name_are_there() -> None:
    for named in {*TESTED_ABSENT.values(), *TESTED_LOST.values()}:
        file, _, function = named.partition("::")
        tree = ast.parse((Path(__file__).parent / file).read_text())
        defined = {each.name for each in ast.walk(tree) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
        assert function in defined, named


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
    one_line(failure.value)


@pytest.mark.real
@pytest.mark.parametrize("type_", sorted(LOSSES))
async def test_a_device_that_goes_is_told_and_its_return_suffices(type_: str, tmp_path: Path) -> None:
    with trio.fail_after(600):
        async with LOSSES[type_](tmp_path) as loss, serve(loss.driver, class_of=client_class) as client:

            async def use() -> None:
                await loss.use(client)

            await works(use)
            await loss.take()
            one_line(await fails(use, loss.says))
            await loss.give()
            await works(use)


def one_line(error: DeviceError) -> None:
    """The device is blamed, in one line."""
    assert "\n" not in error.message
    assert error.exit_code == 74
    assert "Traceback" not in error.message
