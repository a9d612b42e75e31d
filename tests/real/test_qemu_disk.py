"""The machine's disk, through the driver and QEMU's own tools."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import serve
from jmp.errors import BadValue, Busy, DeviceError
from jmp_drivers.qemu import Qemu
from jmp_drivers.qemu.driver import Image

pytestmark = pytest.mark.real

MIB = 1 << 20


@asynccontextmanager
async def machine(disk: Image, **config: Any) -> AsyncIterator[Any]:
    with trio.fail_after(600):
        async with serve(Qemu(arch="arm64", disk=disk, **config)) as client:
            yield client


async def write(client: Any, data: bytes, offset: int = 0) -> None:
    async with client.storage.write(offset=offset) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def read(client: Any, **place: int) -> bytes:
    data = bytearray()
    async with client.storage.read(**place) as stream:
        async for piece in stream:
            data += piece
    return bytes(data)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a, disk.img"  # a comma has a meaning to QEMU
    path.write_bytes(os.urandom(3 * MIB))
    return path


async def test_a_blank_disk_is_written_and_read() -> None:
    data = os.urandom(3 * MIB + 17)  # neither a multiple of the block size nor of the pieces it travels in
    async with machine(Image(size="64M")) as client:
        assert await client.storage.size() == 64 * MIB
        assert await read(client, offset=0, size=1000) == bytes(1000)
        await write(client, data, offset=512)
        assert await read(client, offset=512, size=len(data)) == data
        assert await read(client, offset=512 + 1000, size=10) == data[1000:1010]
        assert await client.storage.digest(len(data), 512) == hashlib.sha256(data).hexdigest()
        assert await client.storage.digest(0) == hashlib.sha256(b"").hexdigest()
        whole = bytes(512) + data + bytes(64 * MIB - len(data) - 512)
        assert await client.storage.digest(algorithm="md5") == hashlib.md5(whole).hexdigest()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_a_session_does_not_change_the_image(image: Path, format: str) -> None:
    content = content_of(image)
    if format == "qcow2":
        image = convert(image)
    before = content_of(image)
    async with machine(Image(path=image)) as client:
        assert await read(client) == content
        await write(client, b"mine", offset=MIB)
        assert (
            await read(client, offset=MIB - 2, size=8) == content[MIB - 2 : MIB] + b"mine" + content[MIB + 4 : MIB + 6]
        )
    assert content_of(image) == before
    async with machine(Image(path=image)) as client:
        assert await client.storage.digest() == hashlib.sha256(content).hexdigest()


async def test_reset_forgets_what_the_session_changed(image: Path) -> None:
    driver = Qemu(arch="arm64", disk=Image(path=image))
    with trio.fail_after(600):
        async with serve(driver) as client:
            await write(client, b"mine")
            await driver.reset()
            assert await client.storage.digest() == hashlib.sha256(content_of(image)).hexdigest()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_a_writable_image_is_changed(image: Path, format: str) -> None:
    content = content_of(image)
    if format == "qcow2":
        image = convert(image)
    async with machine(Image(path=image, writable=True)) as client:
        await write(client, b"mine")
    async with machine(Image(path=image)) as client:
        assert await read(client) == b"mine" + content[4:]
    if format == "raw":
        assert content_of(image) == b"mine" + content[4:]


async def test_an_image_can_be_given_more_room(image: Path) -> None:
    async with machine(Image(path=image, size="8M")) as client:
        assert await client.storage.size() == 8 * MIB
        await write(client, b"end", offset=8 * MIB - 3)
        assert await read(client, offset=0, size=3 * MIB) == content_of(image)


async def test_places_outside_the_disk_are_refused() -> None:
    async with machine(Image(size="1M")) as client:
        with pytest.raises(BadValue, match="bytes 1000000 to 1100000 are not within the disk, which has 1048576"):
            await client.storage.digest(100000, 1000000)
        with pytest.raises(BadValue, match="not within the disk"):
            await read(client, offset=2 * MIB)
        with pytest.raises(BadValue, match="not within the disk"):
            await read(client, offset=-1)
        with pytest.raises(BadValue, match="no algorithm 'crc'"):
            await client.storage.digest(algorithm="crc")
        with pytest.raises(BadValue, match="no algorithm 'shake_128'"):
            await client.storage.digest(algorithm="shake_128")


async def test_more_than_fits_is_refused() -> None:
    async with machine(Image(size="1M")) as client:
        with pytest.raises(DeviceError, match="the disk is full: it has 1048576 bytes"):
            await write(client, bytes(MIB + 1))
        await write(client, bytes(MIB))


async def test_the_disk_belongs_to_one_at_a_time() -> None:
    async with machine(Image(size="1M")) as client:
        async with client.storage.write() as stream:
            await stream.send_all(b"one")
            with pytest.raises(Busy, match="in use by another call"):
                await client.storage.digest()
            with pytest.raises(Busy, match="switch on when that has ended"):
                await client.power.on()
            await stream.send_eof()
            await stream.receive_some()
        await client.power.on()
        with pytest.raises(DeviceError, match="the machine is on: switch it off to get at its disk"):
            await client.storage.digest()
        assert await client.storage.size() == MIB
        await client.power.off()
        assert await read(client, offset=0, size=4) == b"one\0"


async def test_a_writer_that_gives_up_leaves_the_disk_free() -> None:
    async with machine(Image(size="1M")) as client:
        async with trio.open_nursery() as nursery, client.storage.write() as stream:
            await stream.send_all(b"one")
            nursery.cancel_scope.cancel()
        await client.power.on()
        await client.power.off()


async def test_an_image_that_is_in_use_elsewhere_says_so(image: Path) -> None:
    async with machine(Image(path=image, writable=True)) as first, machine(Image(path=image, writable=True)) as second:
        await first.power.on()
        with pytest.raises(DeviceError, match=r'QEMU did not start: .*Failed to get "write" lock'):
            await second.power.on()
        with pytest.raises(DeviceError, match=r'cannot open the disk image: .*Failed to get "write" lock'):
            await second.storage.digest()


async def test_a_broken_image_says_so(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"not qcow2 at all")
    async with machine(Image(path=path)) as client:
        with pytest.raises(DeviceError, match=r"qemu-img create failed: .*not in qcow2 format"):
            await client.power.on()


async def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with machine(Image(size="1M")) as client:
        await write(client, b"mine")
        await client.power.on()
        assert not os.listdir(tmp_path), "what has no name cannot be left behind"


def content_of(image: Path) -> bytes:
    return image.read_bytes()


def convert(image: Path) -> Path:
    """The same disk as a qcow2 file."""
    converted = image.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, converted], check=True)
    return converted
