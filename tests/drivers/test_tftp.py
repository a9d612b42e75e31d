"""Files for a device by TFTP: fetched by curl, by tftp-hpa's program, and by hand where a packet has to get lost."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp.errors import NotFound, UsageError
from jmp_drivers import _tftp
from jmp_drivers.tftp import Tftp
from tests.fakes.bundled import problems_in


@asynccontextmanager
async def server(**config: Any) -> AsyncIterator[Any]:
    with trio.fail_after(600):
        async with serve(Tftp(**{"host": "127.0.0.1", "port": 0, **config}), class_of=client_class) as client:
            yield client


async def fetch(*argv: str) -> tuple[int, bytes]:
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode, done.stdout


def port_of(address: str) -> int:
    return int(address.rstrip("/").rpartition(":")[2])


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 200_000])
@pytest.mark.parametrize("block", [512, 1468])
async def test_curl_gets_what_the_client_put(tmp_path: Path, size: int, block: int) -> None:
    (tmp_path / "zImage").write_bytes(content := os.urandom(size))
    async with server() as client:
        url = await client.put(tmp_path / "zImage", name="boot/zImage")
        assert url == await client.address() + "boot/zImage"
        assert await fetch("curl", "-s", "--tftp-blksize", str(block), url) == (0, content)
        assert await client.list() == {"boot/zImage": size}


async def test_a_client_without_options_gets_more_blocks_than_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content := os.urandom(1 << 16) * 513)
    async with server(root=tmp_path) as client:
        host, port = "127.0.0.1", str(port_of(await client.address()))
        done, _ = await fetch("tftp", "-m", "binary", host, port, "-c", "get", "image", str(tmp_path / "got"))
        assert done == 0
        assert (tmp_path / "got").read_bytes() == content


async def come(port: trio.socket.SocketType, *packets: bytes) -> None:
    """Wait for packets. What comes before them was sent again, since they took their time here."""
    seen: list[bytes] = []
    while seen[-len(packets) :] != [*packets]:
        seen.append(await port.recv(600))


async def test_what_gets_lost_is_sent_again_and_what_comes_twice_is_not(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a" * 8 + b"b" * 8 + b"c")
    async with server(root=tmp_path) as client:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as port:
            await port.bind(("127.0.0.1", 0))
            request = b"\0\1f\0octet\0blksize\0008\0windowsize\0002\0timeout\0001\0tsize\0000\0"
            await port.sendto(request, ("127.0.0.1", port_of(await client.address())))
            answer, peer = await port.recvfrom(600)
            assert answer == _tftp.answer({"tsize": "17", "blksize": "8", "windowsize": "2", "timeout": "1"})
            await port.sendto(b"\0\4\0\0", peer)
            first, second, third = _tftp.data(1, b"a" * 8), _tftp.data(2, b"b" * 8), _tftp.data(3, b"c")
            await come(port, first, second)
            await port.sendto(b"\0\4\0\0", peer)  # once more: nothing comes of it until the time is over
            await come(port, first, second)
            await port.sendto(b"\0\4\0\1", peer)  # the second of the window was lost
            await come(port, second, third)
            await port.sendto(b"\0\4\0\3", peer)


async def test_refusals_say_why(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "secret")
    async with server(root=tmp_path / "root", limit=10) as client:
        where = ("127.0.0.1", port_of(await client.address()))
        for packet, refusal in [
            (b"\0\1no\0octet\0", _tftp.error(_tftp.ErrorCode.NOT_FOUND, "there is no file 'no' here")),
            (b"\0\1link\0octet\0", _tftp.error(_tftp.ErrorCode.NOT_FOUND, "there is no file 'link' here")),
            (b"\0\1../secret\0octet\0", b"\0\5\0\1'../secret' cannot be the name of a file\0"),
            (b"\0\2up\0octet\0", _tftp.error(_tftp.ErrorCode.REFUSED, "files are served here and not taken")),
            (b"\0\1f\0mail\0", _tftp.error(_tftp.ErrorCode.ILLEGAL, "mode 'mail' is not known here")),
            (b"junk", _tftp.error(_tftp.ErrorCode.ILLEGAL, "this is no request for a file")),
        ]:
            with trio.socket.socket(type=socket.SOCK_DGRAM) as port:
                await port.sendto(packet, where)
                assert await port.recv(600) == refusal
        (tmp_path / "big").write_bytes(bytes(11))
        with pytest.raises(BadValue, match="big does not fit: files of a session have 10 bytes at most"):
            await client.put(tmp_path / "big")
        with pytest.raises(UsageError, match="absent cannot be read: No such file or directory"):
            await client.put(tmp_path / "absent")
        assert await client.list() == {"link": 1}


async def test_files_are_replaced_taken_back_and_removed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/f").write_text("the exporter's")
    (tmp_path / "f").write_text("mine")
    async with server(root=tmp_path / "root") as client:
        url = await client.put(tmp_path / "f")
        assert await fetch("curl", "-s", url) == (0, b"mine")
        assert await client.get("f", tmp_path / "back") == 4
        assert (tmp_path / "back").read_text() == "mine"
        await client.remove("f")
        assert await fetch("curl", "-s", url) == (0, b"the exporter's")
        with pytest.raises(BadValue, match="f is a file of the exporter: it cannot be removed"):
            await client.remove("f")
        with pytest.raises(NotFound, match="there is no file 'gone' here"):
            await client.get("gone", tmp_path / "gone")
        assert not (tmp_path / "gone").exists()


async def test_files_are_gone_with_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "held"))
    (tmp_path / "held").mkdir()
    (tmp_path / "f").write_text("mine")
    async with server() as client:
        await client.put(tmp_path / "f")
        assert list((tmp_path / "held").rglob("f"))
    assert not list((tmp_path / "held").iterdir())


async def test_a_port_that_is_taken_degrades_the_driver_until_it_is_free() -> None:
    with trio.socket.socket(type=socket.SOCK_DGRAM) as other:
        await other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        async with server(port=port) as client:
            with pytest.raises(DeviceError, match=f"cannot listen at udp:127.0.0.1:{port}: Address already in use"):
                await client.list()
            other.close()
            while True:
                try:
                    assert await client.list() == {}
                    break
                except DeviceError:
                    await trio.sleep(0.05)


def test_wrong_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="port must be 0 to 65535, not 65536"):
        Tftp(port=65536)
    with pytest.raises(ConfigError, match="limit must be at least 1 byte, not 0"):
        Tftp(limit=0)
    with pytest.raises(ConfigError, match="retries must be 0 or more, not -1"):
        Tftp(retries=-1)


async def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with server(root=tmp_path / "gone") as client:
        with pytest.raises(DeviceError, match=f"root: there is no folder {tmp_path}/gone"):
            await client.list()


def test_documented_configuration_is_valid() -> None:
    assert problems_in("docs/drivers/files.md") == []


def test_programs_are_there() -> None:
    assert run(["tftp", "-V"], capture_output=True, check=True).stdout.startswith(b"tftp-hpa")
