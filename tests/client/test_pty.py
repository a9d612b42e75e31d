"""A remote console as a local pty, used by pyserial and socat."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import serial
import trio

from jmp.client.adapters.pty import Pty
from jmp.client.interfaces import client_class
from jmp.driver import Stream, serve
from jmp.driver.interfaces import Console
from jmp.errors import DeviceError, UsageError


class Loop(Console):
    """Sends back what it gets, and ``end`` ends it."""

    def __post_init__(self) -> None:
        self._received = b""

    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        async for data in stream:
            if bytes(data).endswith(b"end"):
                raise DeviceError("the loop was unplugged")
            await stream.send_all(data)

    def history(self) -> bytes:
        return b""

    def send(self, data: bytes) -> None:
        pass


@pytest.fixture
async def device() -> AsyncIterator[Any]:
    async with serve(Loop(), class_of=client_class) as client:
        yield client


def exchange(path: str, data: bytes) -> bytes:
    with serial.Serial(path, 115200, timeout=60) as port:
        port.write(data)
        return bytes(port.read(len(data)))


ALL_BYTES = bytes(range(256))


def test_programs_come_and_go() -> None:
    with serve(Loop(), class_of=client_class) as console, console.pty() as path:
        for _ in range(3):
            assert exchange(path, ALL_BYTES) == ALL_BYTES


async def test_programs_come_and_go_under_trio(device: Any) -> None:
    with trio.fail_after(60):
        async with device.pty() as path:
            for _ in range(3):
                assert await trio.to_thread.run_sync(exchange, path, ALL_BYTES) == ALL_BYTES


MUCH = os.urandom(1 << 20)


def through_socat(path: str) -> bytes:
    """A megabyte there and back: far more than pty, stream and device hold together, unless each waits for the next one."""
    return subprocess.run(
        ["socat", "-t", "20", "STDIO", f"{path},raw,echo=0,readbytes={len(MUCH)}"],
        input=MUCH,
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout


def test_a_megabyte_both_ways_through_socat() -> None:
    with serve(Loop(), class_of=client_class) as console, console.pty() as path:
        assert through_socat(path) == MUCH


async def test_a_megabyte_both_ways_through_socat_under_trio(device: Any) -> None:
    with trio.fail_after(60):
        async with device.pty() as path:
            assert await trio.to_thread.run_sync(through_socat, path) == MUCH


def test_the_link_goes_with_it_and_takes_the_place_of_a_dangling_one(tmp_path: Path) -> None:
    link = tmp_path / "ttyBOARD"
    link.symlink_to("/dev/pts/there-is-none")
    with serve(Loop(), class_of=client_class) as console:
        with console.pty(link=str(link)) as path:
            assert os.readlink(link) == path
            assert exchange(str(link), b"hello") == b"hello"
        assert not link.is_symlink()
        link.write_text("mine")
        with pytest.raises(UsageError, match="exists: remove it"), console.pty(link=str(link)):
            pass
        assert link.read_text() == "mine"


def unplug(held: Pty, path: str) -> None:
    with serial.Serial(path) as port:
        port.write(b"end")
        held.wait()


def test_what_ended_the_console_is_told() -> None:
    with serve(Loop(), class_of=client_class) as console:
        held = console.pty()
        with pytest.raises(DeviceError, match="unplugged"), held as path:
            unplug(held, path)


async def test_what_ended_the_console_is_told_under_trio(device: Any) -> None:
    with trio.fail_after(60):
        held = device.pty()
        with pytest.raises(DeviceError, match="unplugged"):
            async with held as path:
                await trio.to_thread.run_sync(unplug, held, path)
