"""The driver's configuration, and what it says when something is missing. Boots are in tests/real."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import serve
from jmp.errors import ConfigError, DeviceError
from jmp_drivers._size import parse_size
from jmp_drivers.qemu import Qemu
from jmp_drivers.qemu.driver import Image
from tests.fakes.bundled import ROOT, problems_in


def test_parts_of_the_machine_are_children() -> None:
    assert sorted(Qemu(arch="arm64").children) == ["console", "monitor", "power"]
    full = Qemu(arch="arm64", vnc=True, disk=Image(size="1M"), forward={"ssh": 22, "web": 80})
    assert sorted(full.children) == ["console", "monitor", "power", "ssh", "storage", "vnc", "web"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"forward": {"ssh": 22}, "network": False}, "'forward' needs 'network'"),
        ({"forward": {"power": 22}}, "'power' is the name of another part"),
        ({"forward": {"ssh": 0}}, "port must be 1 to 65535, not 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Qemu(arch="arm64", **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "needs 'path'"),
        ({"writable": True, "size": "1M"}, "a writable disk has a 'path' and no 'size'"),
        ({"writable": True, "path": Path("x"), "size": 1}, "a writable disk has a 'path' and no 'size'"),
        ({"size": "many"}, "'many' is no size; write for example 64M"),
    ],
)
def test_a_disk_is_an_image_or_blank(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Image(**config)


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64k", 65536), ("64M", 64 << 20), ("4 GiB", 4 << 30)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text.replace(" ", "")) == size


async def refusal(driver: Qemu) -> str:
    """What a client hears that wants to switch the machine on."""
    with trio.fail_after(60):
        async with serve(driver) as client:
            assert await client.power.state() == "off"
            with pytest.raises(DeviceError) as caught:
                await client.power.on()
            return caught.value.message


async def test_a_missing_qemu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    message = await refusal(Qemu(arch="riscv64"))
    assert (
        "qemu-system-riscv64 is not installed on the exporter's machine: on Debian it is in the package qemu-system-misc"
        in message
    )


async def test_a_missing_image_is_named(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.touch(0o755)
    bios = tmp_path / "u-boot.bin"
    message = await refusal(Qemu(arch="arm64", binary=str(program), bios=bios))
    assert f"bios image {bios} does not exist" in message


async def test_a_missing_disk_is_named(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.touch(0o755)
    disk = tmp_path / "disk.img"
    message = await refusal(Qemu(arch="arm64", binary=str(program), disk=Image(path=disk)))
    assert f"disk image {disk} does not exist" in message


async def test_a_program_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'no such machine' >&2\nexit 1\n")
    program.chmod(0o755)
    message = await refusal(Qemu(arch="arm64", binary=str(program)))
    assert message == "QEMU did not start: no such machine"


@pytest.mark.real
async def test_one_that_cannot_be_on_from_the_beginning_is_degraded(tmp_path: Path) -> None:
    driver = Qemu(arch="arm64", binary="/bin/false", disk=Image(size="1M"), power_on_open=True)
    assert await refusal(driver) == "the virtual machine is off: QEMU did not start: it ended (exit status 1)"


async def test_a_machine_that_is_off_says_so() -> None:
    with trio.fail_after(60):
        async with serve(Qemu(arch="arm64", binary="/bin/true", vnc=True, forward={"ssh": 22})) as client:
            assert await client.monitor.status() == "off"
            for call in (
                client.monitor.reset,
                client.monitor.screendump,
                client.ssh.address,
                client.console.send_break,
            ):
                with pytest.raises(DeviceError, match="the virtual machine is off: switch it on first"):
                    await call()
            await client.console.send(b"nobody listens\r")
            await client.power.off()


DOC = "docs/drivers/qemu.md"


@pytest.mark.parametrize("path", [DOC, "jmp/examples/qemu-uboot.yaml", "jmp/examples/qemu-linux.yaml"])
def test_documented_configurations_are_valid(path: str) -> None:
    assert problems_in(path) == []


def test_every_key_is_documented() -> None:
    text = (ROOT / DOC).read_text().partition("## Configuration")[2].partition("## ")[0]
    machine, disk = text.split("`disk` has:")
    for table, config in ((machine, Qemu), (disk, Image)):
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)
        assert set(re.findall(r"\w+", " ".join(rows))) == {field.name for field in fields(config) if field.init}
