"""Files for a device by HTTP, fetched by curl."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers.http_server import HttpServer


@asynccontextmanager
async def server(**config: Any) -> AsyncIterator[Any]:
    with trio.fail_after(60):
        async with serve(HttpServer(**{"host": "127.0.0.1", "port": 0, **config}), class_of=client_class) as client:
            yield client


async def curl(*arguments: str) -> tuple[str, bytes]:
    """Status and body."""
    argv = ["curl", "-s", "-w", "%{stderr}%{http_code}", *arguments]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    return done.stderr.decode(), done.stdout


@pytest.mark.parametrize("size", [0, 1, 700_000])
async def test_curl_gets_what_the_client_put(tmp_path: Path, size: int) -> None:
    (tmp_path / "an image").write_bytes(content := os.urandom(size))
    async with server() as client:
        assert (await client.put(tmp_path / "an image", name="50% off?")).endswith("/50%25%20off%3F")
        url = await client.put(tmp_path / "an image", name="//boot//an image")
        assert url == await client.address() + "boot/an%20image"
        assert await curl(url) == ("200", content)
        await client.put(tmp_path / "an image")
        url = await client.address() + "an%20image"
        assert await curl(url) == ("200", content)
        assert await curl(url, url) == ("200200", content * 2)  # over one connection
        status, head = await curl("-I", url)
        assert (status, f"content-length: {size}" in head.decode().lower()) == ("200", True)


async def test_a_download_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    (tmp_path / "part").write_bytes(b"0123")
    async with server() as client:
        url = await client.put(tmp_path / "f")
        assert await curl("-C", "-", "-o", str(tmp_path / "part"), url) == ("206", b"")
        assert (tmp_path / "part").read_bytes() == b"0123456789"
        assert await curl("-r", "2-4", url) == ("206", b"234")
        assert await curl("-r", "-3", url) == ("206", b"789")
        assert await curl("-r", "8-20", url) == ("206", b"89")
        assert await curl("-r", "10-", url) == ("416", b"the file has no such range\n")


async def test_refusals_say_why(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    async with server() as client:
        url = await client.put(tmp_path / "f")
        base = await client.address()
        assert await curl(base + "no") == ("404", b"there is no file '/no' here\n")
        assert await curl("--path-as-is", base + "../f") == ("404", b"'/../f' cannot be the name of a file\n")
        assert await curl(base) == ("404", b"'/' cannot be the name of a file\n")
        assert await curl("-T", str(tmp_path / "f"), url) == ("405", b"files are served here and not taken\n")
        async with await trio.open_tcp_stream("127.0.0.1", int(base.rstrip("/").rpartition(":")[2])) as stream:
            await stream.send_all(b"no HTTP at all\r\n\r\n")
            assert await stream.receive_some() == b""
        assert await curl(url) == ("200", b"mine")


async def test_a_port_that_is_taken_degrades_the_driver() -> None:
    with trio.socket.socket(type=socket.SOCK_STREAM) as other:
        await other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with server(port=port) as client:
            with pytest.raises(DeviceError, match=f"cannot listen at tcp:127.0.0.1:{port}: Address already in use"):
                await client.list()


def test_wrong_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="port must be 0 to 65535, not -1"):
        HttpServer(port=-1)


async def test_the_address_for_the_device_can_be_another() -> None:
    async with server(advertise="192.168.7.1") as client:
        assert (await client.address()).startswith("http://192.168.7.1:")
