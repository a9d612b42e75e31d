"""Disks, cards and NBD exports: loop devices, real file systems, nbdkit and qemu-nbd."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import BadValue, Busy, ConfigError, DeviceError, Driver, serve
from jmp_drivers.block import BlockDevice, SdMux, SdWire
from jmp_drivers.nbd import NbdStorage

pytestmark = pytest.mark.real

MIB = 1 << 20


@asynccontextmanager
async def served(driver: Driver) -> AsyncIterator[Any]:
    with trio.fail_after(60):
        async with serve(driver, class_of=client_class) as client:
            yield client


@contextmanager
def loop_device(file: Path, *options: str) -> Iterator[Path]:
    """A real block device with the file's content."""
    command = ["losetup", "--find", "--show", *options, str(file)]
    device = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(16 * MIB))
    return path


@pytest.fixture
def device(disk: Path) -> Iterator[Path]:
    with loop_device(disk) as path:
        yield path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(5 * MIB + 512))
    return path


async def test_a_disk_is_flashed_read_back_and_dumped(device: Path, disk: Path, image: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    async with served(BlockDevice(path=device, max_size="16M")) as client:
        assert await client.size() == 16 * MIB
        result = await client.flash(image, offset=MIB)
        assert result["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
        await client.dump(tmp_path / "copy")
        with pytest.raises(BadValue, match=r"bytes 16777217 to 16777216 are not within the device"):
            async with client.read(offset=16 * MIB + 1) as stream:
                await stream.receive_some()
    content = image.read_bytes()
    assert (tmp_path / "copy").read_bytes() == before[:MIB] + content + before[MIB + len(content) :]


async def test_what_is_in_use_is_not_written(device: Path, image: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "a place"):
        async with served(BlockDevice(path=device)) as client:
            with pytest.raises(DeviceError, match=f"is in use: {device} is mounted at {tmp_path}/a place; unmount it"):
                await client.flash(image)
            assert len(await client.digest()) == 64, "reading does no harm"


async def test_what_another_program_has_is_not_written(device: Path, image: Path) -> None:
    async with served(BlockDevice(path=device)) as client:
        await client.flash(image)
        held = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(DeviceError, match="is in use: another program has it open"):
                await client.flash(image)
        finally:
            os.close(held)


async def test_another_disk_than_was_meant_is_refused(device: Path, image: Path) -> None:
    async with served(BlockDevice(path=device, max_size=MIB)) as client:
        with pytest.raises(DeviceError, match="has 16777216 bytes, more than max_size"):
            await client.flash(image)


async def test_one_call_at_a_time(device: Path) -> None:
    async with served(BlockDevice(path=device)) as client, client.write() as stream:
        await stream.send_all(b"x")
        with pytest.raises(Busy, match="the device is in use by another call"):
            await client.digest()


async def test_a_disk_that_is_not_there_is_waited_for(tmp_path: Path, device: Path) -> None:
    path = tmp_path / "by-id"
    driver = BlockDevice(path=path)
    async with served(driver) as client:
        with pytest.raises(DeviceError, match="by-id: No such file or directory; is it plugged in"):
            await client.size()
        path.symlink_to(device)
        while True:  # it is tried again after a second
            try:
                assert await client.size() == 16 * MIB
                break
            except DeviceError:
                await trio.sleep(0.1)


async def test_what_is_no_disk(tmp_path: Path, image: Path) -> None:
    async with served(BlockDevice(path=image)) as client:
        with pytest.raises(DeviceError, match="image is no block device"):
            await client.size()
    (tmp_path / "empty").touch()
    with loop_device(tmp_path / "empty") as device:
        async with served(BlockDevice(path=device)) as client:
            with pytest.raises(DeviceError, match="has no medium in it"):
                await client.size()
    with pytest.raises(ConfigError, match="path must begin with /dev, not 'sdb'"):
        BlockDevice(path=Path("sdb"))


@pytest.fixture
def mux(tmp_path: Path, device: Path) -> SdMux:
    """A multiplexer that is a link: the card is there, or it is not."""
    note = f"echo {{}} >> {tmp_path}/log"
    return SdMux(
        path=tmp_path / "card",
        to_host=f"{note.format('host')}; ln -s {device} {tmp_path}/card",
        to_device=["sh", "-c", f"{note.format('device')}; rm -f {tmp_path}/card"],
    )


async def test_a_card_goes_to_the_host_for_flashing_and_back(mux: SdMux, image: Path, tmp_path: Path) -> None:
    async with served(mux) as client:
        assert await client.where() == "device"
        result = await client.flash(image)
        assert result["bytes"] == image.stat().st_size
        assert await client.where() == "device"
        await client.host()
        assert (await client.where(), (tmp_path / "card").is_block_device()) == ("host", True)
        await client.flash(image)
        assert await client.where() == "host"
        await client.device()
        await client.host()
    assert (tmp_path / "log").read_text().split() == [
        *("device", "host", "device", "host", "device", "host", "device"),  # opened, size, write, verified
        *("host", "device", "host", "device"),  # kept there once, and at the end of the session
    ]


async def test_a_card_that_does_not_appear(mux: SdMux, image: Path) -> None:
    mux.to_host, mux.patience = "true", 2
    async with served(mux) as client:
        with pytest.raises(DeviceError, match=r"the card did not appear within 2 s: .*No such file"):
            await client.flash(image)
        assert await client.where() == "device"


async def test_a_multiplexer_that_fails(mux: SdMux, image: Path) -> None:
    mux.to_host = "echo 'no such mux' >&2; exit 3"
    async with served(mux) as client:
        with pytest.raises(DeviceError, match="to_host: ended with status 3: no such mux"):
            await client.flash(image)
        mux.to_host, mux.patience = "exec sleep 60", 2
        with pytest.raises(DeviceError, match=r"to_host: /bin/sh did not end within 2 s"):
            await client.flash(image)


async def test_sdwire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Path, image: Path) -> None:
    """What the program is told; it has no device here."""
    program = tmp_path / "sd-mux-ctrl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with served(SdWire(path=device, serial="sd-wire_11")) as client:
        await client.host()
    assert (tmp_path / "told").read_text().splitlines() == [
        "--device-serial=sd-wire_11 --dut",
        "--device-serial=sd-wire_11 --ts",
        "--device-serial=sd-wire_11 --dut",
    ]


async def test_sdwire_without_its_program(tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with served(SdWire(path=device, serial="x")) as client:
        with pytest.raises(DeviceError, match="cannot start sd-mux-ctrl: no such program"):
            await client.size()


@contextmanager
def server(path: Path, *command: str | Path) -> Iterator[str]:
    """A server that is handed a socket which listens already, as systemd does it; the URL's beginning."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&{listener.fileno()}'
        with subprocess.Popen(["bash", "-c", script, "bash", *command], pass_fds=[listener.fileno()]) as process:
            try:
                yield f"nbd+unix:///%s?socket={path}"
            finally:
                process.terminate()


@contextmanager
def nbdkit(tmp_path: Path, *words: str) -> Iterator[str]:
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "nbd"
    with server(path, "nbdkit", "--foreground", *words) as url:
        yield url % ""


@contextmanager
def mounted(device: Path, place: Path) -> Iterator[None]:
    """A new file system on the device, in use."""
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    place.mkdir()
    subprocess.run(["mount", device, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


async def test_nbdkit_is_flashed_and_what_it_says_is_told(tmp_path: Path, image: Path) -> None:
    log = tmp_path / "log"
    with nbdkit(tmp_path, "--filter=log", "memory", "16M", f"logfile={log}") as url:
        async with served(NbdStorage(url=url)) as client:
            assert await client.size() == 16 * MIB
            result = await client.flash(image, offset=512)
            assert result["bytes"] == image.stat().st_size
            with pytest.raises(BadValue, match="does not fit"):
                await client.flash(image, offset=15 * MIB)
    said = log.read_text()
    assert "Write" in said
    assert "Flush" in said


async def test_an_nbd_server_that_does_not_let_one_write(tmp_path: Path, image: Path) -> None:
    with nbdkit(tmp_path, "-r", "memory", "16M") as url:
        async with served(NbdStorage(url=url)) as client:
            with pytest.raises(DeviceError, match="can only be read: its server says so"):
                await client.flash(image)
            assert await client.digest() == hashlib.sha256(bytes(16 * MIB)).hexdigest()
    full = ("--filter=error", "memory", "16M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    with nbdkit(tmp_path, *full) as url:
        async with served(NbdStorage(url=url)) as client:
            with pytest.raises(DeviceError, match="No space left on device at byte 0"):
                await client.flash(image)


async def test_an_export_of_qemu_nbd_by_name(tmp_path: Path, disk: Path) -> None:
    options = ("--persistent", "--shared=2", "-f", "raw", "-x", "the disk")
    with server(tmp_path / "nbd", "qemu-nbd", *options, disk) as url:
        async with served(NbdStorage(url=url % "the%20disk")) as client:
            assert await client.digest() == hashlib.sha256(disk.read_bytes()).hexdigest()
        async with served(NbdStorage(url=url % "none")) as client:
            with pytest.raises(DeviceError, match="refuses to open 'none'"):
                await client.size()


async def test_no_nbd_server() -> None:
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with served(NbdStorage(url=f"nbd://127.0.0.1:{port}/x")) as client:
            with pytest.raises(DeviceError, match=r"cannot connect to nbd://127.0.0.1:.*: Connection refused"):
                await client.size()


@pytest.mark.parametrize("url", ["http://a/b", "nbd://", "nbd+unix:///x", "nbd://host:999999/"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="url: "):
        NbdStorage(url=url)
