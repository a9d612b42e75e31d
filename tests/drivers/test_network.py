from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, UsageError, serve
from jmp_drivers.network import Echo, Tcp, Udp, Unix
from tests.fakes.bundled import problems_in
from tests.fakes.ports import free_port

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def tcp_server(handler: Handler) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def converse(client: Any, data: bytes = b"", *, end: bool = False) -> bytes:
    """All that one connection answers."""
    async with client.connect() as stream:
        await stream.send_all(data)
        if end:
            await stream.send_eof()
        return await read_all(stream)


async def send_and_end(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def answer_after_the_end(stream: trio.SocketStream) -> None:
    """Reads until the client's half-close, and only then answers: fails unless half-close is carried both ways."""
    data = await read_all(stream)
    await stream.send_all(data[::-1])


async def test_tcp_carries_bytes_and_half_close_both_ways() -> None:
    with trio.fail_after(60):
        async with tcp_server(answer_after_the_end) as port, serve(Tcp(host="127.0.0.1", port=port)) as client:
            assert await client.address() == f"tcp:127.0.0.1:{port}"
            for question in (b"first", b"second connection"):
                assert await converse(client, question, end=True) == question[::-1]


async def test_tcp_target_that_ends_first_still_listens() -> None:
    heard, hear = trio.open_memory_channel[bytes](1)

    async def say_then_listen(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")
        await stream.send_eof()
        await heard.send(await read_all(stream))

    with trio.fail_after(60):
        async with (
            tcp_server(say_then_listen) as port,
            serve(Tcp(host="127.0.0.1", port=port)) as client,
            client.connect() as stream,
        ):
            assert await read_all(stream) == b"bye"
            await stream.send_all(b"one more thing")
            await stream.send_eof()
            assert await hear.receive() == b"one more thing"


async def test_a_name_leads_to_any_of_its_addresses() -> None:
    """The server is on 127.0.0.1 only; localhost may well be ::1 first."""
    with trio.fail_after(60):
        async with tcp_server(answer_after_the_end) as port, serve(Tcp(host="localhost", port=port)) as client:
            assert await converse(client, b"abc", end=True) == b"cba"


async def test_megabytes_pass_unchanged_while_the_reader_is_slow() -> None:
    data = os.urandom(4 * 1024 * 1024)

    async def mirror(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    with trio.fail_after(60):
        async with (
            tcp_server(mirror) as port,
            serve(Tcp(host="127.0.0.1", port=port)) as client,
            client.connect() as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(send_and_end, stream, data)
            assert await read_all(stream) == data


async def test_client_that_leaves_closes_the_connection() -> None:
    closed = trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await read_all(stream)
        closed.set()

    with trio.fail_after(60):
        async with tcp_server(watch) as port, serve(Tcp(host="127.0.0.1", port=port)) as client:
            async with client.connect() as stream:
                await stream.send_all(b"hello")
            await closed.wait()


async def test_refused_connection_names_the_target() -> None:
    port = free_port()
    with trio.fail_after(60):
        async with serve(Tcp(host="127.0.0.1", port=port)) as client:
            with pytest.raises(DeviceError, match=rf"^cannot connect to tcp:127\.0\.0\.1:{port}: Connection refused$"):
                await converse(client)


async def test_unknown_name_is_told() -> None:
    with trio.fail_after(60):
        async with serve(Tcp(host="no-such-host.invalid", port=1)) as client:
            with pytest.raises(DeviceError, match=r"^cannot connect to tcp:no-such-host\.invalid:1: .*[nN]ame"):
                await converse(client)


async def test_reset_by_the_target_is_told() -> None:
    async def slam(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    with trio.fail_after(60):
        async with tcp_server(slam) as port, serve(Tcp(host="127.0.0.1", port=port)) as client:
            with pytest.raises(DeviceError, match=r"^tcp:.* broke the connection: Connection reset by peer$"):
                await converse(client, b"x")


async def test_unix(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listening.bind(str(path))
    listening.listen()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer_after_the_end, [trio.SocketListener(listening)])
            async with serve(Unix(path=path)) as client:
                assert await client.address() == f"unix:{path}"
                assert await converse(client, b"abc", end=True) == b"cba"
            nursery.cancel_scope.cancel()


async def test_missing_unix_socket_is_told(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(Unix(path=tmp_path / "gone")) as client:
            with pytest.raises(DeviceError, match=r"cannot connect to unix:.*/gone: No such file or directory"):
                await converse(client)


def framed(*datagrams: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(datagram)) + datagram for datagram in datagrams)


async def read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"the stream ended after {bytes(data)!r}"
        data += chunk
    return bytes(data)


@asynccontextmanager
async def udp_echo(address: str = "127.0.0.1") -> AsyncIterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    async def run() -> None:
        while True:
            data, sender = await port.recvfrom(65536)
            await port.sendto(data[::-1], sender)

    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as port:
        await port.bind((address, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield port.getsockname()[1]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_udp_keeps_the_bounds_of_datagrams(address: str) -> None:
    with trio.fail_after(60):
        async with udp_echo(address) as port, serve(Udp(host=address, port=port)) as client:
            assert await client.address() == f"udp:{f'[{address}]' if ':' in address else address}:{port}"
            async with client.connect() as stream:
                for byte in framed(b"abc", b"", b"defg"):  # however the stream is cut
                    await stream.send_all(bytes([byte]))
                answer = framed(b"cba", b"", b"gfed")
                assert await read_exactly(stream, len(answer)) == answer
                big = os.urandom(40_000)
                await stream.send_all(framed(big))
                assert await read_exactly(stream, 2 + len(big)) == framed(big[::-1])
                await stream.send_eof()
                assert await stream.receive_some() == b""


async def test_udp_survives_that_nobody_listens_yet() -> None:
    with trio.fail_after(60):
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as target:
            await target.bind(("127.0.0.1", 0))
            port = target.getsockname()[1]
        async with serve(Udp(host="127.0.0.1", port=port)) as client, client.connect() as stream:
            for _ in range(3):
                await stream.send_all(framed(b"lost"))
            with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as target:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                await target.bind(("127.0.0.1", port))
                received = b""
                while received != b"found":
                    await stream.send_all(framed(b"found"))
                    received, sender = await target.recvfrom(100)
                await target.sendto(b"hello", sender)
                assert await read_exactly(stream, 7) == framed(b"hello")


async def test_udp_errors_are_the_callers_own() -> None:
    with trio.fail_after(60):
        async with udp_echo() as port, serve(Udp(host="127.0.0.1", port=port)) as client:
            with pytest.raises(BadValue, match="a datagram of 65535 bytes is too long"):
                await converse(client, framed(b"x" * 65535))
            with pytest.raises(UsageError, match="ended in the middle of a datagram"):
                await converse(client, framed(b"abc")[:-1], end=True)


async def test_echo() -> None:
    with trio.fail_after(60):
        async with serve(Echo()) as client:
            assert await client.address() == "echo"
            async with client.connect() as stream:
                await stream.send_all(b"hello")
                assert await read_exactly(stream, 5) == b"hello"
                await stream.send_eof()
                assert await stream.receive_some() == b""


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_port_must_be_one(port: int) -> None:
    for kind in (Tcp, Udp):
        with pytest.raises(ConfigError, match=f"port must be 1 to 65535, not {port}"):
            kind(host="localhost", port=port)


def test_documented_configuration_is_valid() -> None:
    assert problems_in("docs/drivers/network.md") == []
