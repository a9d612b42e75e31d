"""Renode, played by tests/fakes/fake_renode.py: no package registry has the program itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.renode import Renode
from jmp_drivers.renode.monitor import failure_in
from tests.fakes import fake_renode
from tests.fakes.bundled import problems_in
from tests.fakes.dialogue import Dialogue


@pytest.fixture
def renode(tmp_path: Path) -> str:
    """The program, in a folder whose name has a space in it, beside a platform, a script and firmware."""
    folder = tmp_path / "a lab"
    folder.mkdir()
    program = folder / "renode"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(fake_renode.__file__)} "$@"\n')
    program.chmod(0o755)
    (folder / "board.repl").write_text("cpu: CPU.CortexM\n")
    (folder / "broken.repl").write_text("what?\n")
    (folder / "board.resc").write_text('mach create "scripted"\nsysbus LoadELF $bin\n')
    (folder / "app.elf").write_bytes(b"\x7fELFapp")
    return str(program)


@asynccontextmanager
async def board(renode: str, **config: Any) -> AsyncIterator[tuple[Any, Dialogue]]:
    folder = Path(renode).parent
    given: dict[str, Any] = {
        "platform": str(folder / "board.repl"),
        "firmware": folder / "app.elf",
        "program": renode,
        "timeout": 20.0,
    }
    with trio.fail_after(60):
        async with (
            serve(Renode(**(given | config)), class_of=client_class) as client,
            client.console.connect() as stream,
        ):
            yield client, Dialogue(stream)


def alive() -> list[bytes]:
    place = fake_renode.__file__.encode()
    return [each for path in Path("/proc").glob("[0-9]*/cmdline") if place in (each := path.read_bytes()).split(b"\0")]


async def test_a_board_from_power_on_to_off(renode: str) -> None:
    async with board(renode) as (client, console):
        assert await client.power.state() == "off"
        with pytest.raises(DeviceError, match="the board is off: switch it on first"):
            await client.monitor.execute("peripherals")
        await client.power.on()
        await console.expect("app boots, time 1")
        assert await client.power.state() == "on"
        await console.send("hello\r")
        await console.expect("heard hello")
        assert await client.monitor.execute("sysbus ReadDoubleWord 0x0") == "0x20001000"
        await client.reset()
        await console.expect("app boots, time 2")
        await client.pause()
        await console.send("lost\r")
        await client.resume()
        await client.power.cycle(wait=0)
        await console.expect("app boots, time 1")
        await client.power.off()
        assert not alive()
        await client.power.on()
    assert not alive()


async def test_a_script_and_other_firmware(renode: str, tmp_path: Path) -> None:
    (tmp_path / "other.elf").write_bytes(b"\x7fELFother")
    (tmp_path / "none.elf").write_bytes(b"MZ")
    script = Path(renode).parent / "board.resc"
    async with board(
        renode, platform="", script=script, commands=["sysbus ReadDoubleWord 0x0"], power_on_open=True
    ) as (
        client,
        console,
    ):
        await console.expect("app boots, time 1")
        await client.firmware.flash(tmp_path / "other.elf")
        await console.expect("other boots, time 1")
        with pytest.raises(BadValue, match=r"none\.elf is no ELF file"):
            await client.firmware.flash(tmp_path / "none.elf")
        with pytest.raises(BadValue, match="there is no target"):
            await client.firmware.flash(tmp_path / "other.elf", target="flash0")
        await client.power.cycle(wait=0)
        await console.expect("other boots, time 1")
        for wrong in ("", "start\nquit"):
            with pytest.raises(BadValue, match="one line"):
                await client.monitor.execute(wrong)


async def test_failures_are_in_renodes_words(renode: str) -> None:
    folder = Path(renode).parent
    for config, message in (
        (
            {"args": ["--broken"]},
            r"Renode did not start: it ended \(exit status 1\); System\.Exception: it does not start here",
        ),
        (
            {"platform": str(folder / "broken.repl")},
            "Renode did not set the board up: 'machine LoadPlatformDescription .*There was an error",
        ),
        (
            {"uart": "sysbus.uart7"},
            "'connector Connect sysbus.uart7 jmp-console': Parameters did not match the signature",
        ),
        ({"commands": ["cpu Hop"]}, "'cpu Hop': No such command or device: cpu"),
        ({"program": "jmp-none"}, "cannot start jmp-none: no such program"),
    ):
        async with board(renode, **config) as (client, _):
            with pytest.raises(DeviceError, match=message):
                await client.power.on()
            assert await client.power.state() == "off"
    async with board(renode, power_on_open=True) as (client, _):
        with pytest.raises(DeviceError, match="'hop': No such command or device: hop"):
            await client.monitor.execute("hop")
    given = Renode(platform="x", firmware=folder / "gone.elf")
    async with serve(given) as client:
        with pytest.raises(DeviceError, match=r"gone\.elf does not exist"):
            await client.power.on()


async def test_a_renode_that_ends_by_itself(renode: str) -> None:
    async with board(renode, power_on_open=True) as (client, console):
        await console.expect("app boots, time 1")
        with pytest.raises(DeviceError, match="Renode has ended"):
            await client.monitor.execute("crash")
        await console.expect(r"\[Renode ended by itself \(exit status 3\).*it has crashed\]")
        assert await client.power.state() == "off"
        with pytest.raises(DeviceError, match=r"the board is off: Renode ended by itself .*; switch it on again"):
            await client.pause()
        await client.power.on()
        await console.expect("app boots, time 1")


def test_what_tells_of_a_failure() -> None:
    for failure in (
        "No such command or device: x",
        "x\nError E02: in y",
        "Could not find file",
        "Parameters did not match",
    ):
        assert failure_in(failure)
    for fine in ("", "0x20001000", "Starting emulation...", "12 errors were fixed"):
        assert not failure_in(fine)


def test_configurations_that_cannot_be() -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"platform": "x", "script": Path("x")},
        {"platform": "x", "uart": "uart 0"},
        {"platform": "x", "timeout": 0.0},
        {"platform": "x", "commands": ["a\nb"]},
    ]
    for wrong in cases:
        with pytest.raises(ConfigError):
            Renode(**wrong)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/renode.md") == []
