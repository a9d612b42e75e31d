"""Consoles at a TCP port: telnet spoken with busybox's and inetutils' servers and with ser2net, and raw."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers._process import leashed
from jmp_drivers._telnet import Telnet as Protocol
from jmp_drivers.telnet import Telnet
from tests.fakes.bundled import problems_in
from tests.fakes.ports import free_port

IAC, BREAK, SB, SE, WILL, WONT, DO, DONT = 255, 243, 250, 240, 251, 252, 253, 254


# ---- the protocol


def begun() -> Protocol:
    protocol = Protocol()
    assert protocol.begin() == bytes([IAC, WILL, 0, IAC, DO, 0, IAC, WILL, 3, IAC, DO, 3])
    return protocol


@given(st.binary(), st.data())
def test_every_byte_passes_in_whatever_pieces_it_comes(content: bytes, data: st.DataObject) -> None:
    protocol, binary = begun(), bytes([IAC, DO, 0, IAC, WILL, 0])
    assert protocol.feed(binary) == (b"", b"")
    wire, plain = protocol.encode(content), b""
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        plain += protocol.feed(wire[:size])[0]
        wire = wire[size:]
    assert plain == content


def test_returns_outside_of_binary_mode() -> None:
    protocol = Protocol()
    assert protocol.feed(b"a\r\0b\r\nc\r") == (b"a\rb\r\nc\r", b"")
    assert protocol.feed(b"\0d\0") == (b"d\0", b""), "in two pieces"


def test_options_are_agreed_on_once() -> None:
    protocol = begun()
    assert protocol.feed(bytes([IAC, DO, 3, IAC, WILL, 3]))[1] == b"", "what was asked for is granted"
    assert protocol.feed(bytes([IAC, DO, 3, IAC, WILL, 3]))[1] == b"", "and said again"
    assert protocol.feed(bytes([IAC, WILL, 1]))[1] == bytes([IAC, DO, 1])
    assert protocol.feed(bytes([IAC, WONT, 1]))[1] == bytes([IAC, DONT, 1])
    assert protocol.feed(bytes([IAC, DO, 35, IAC, WILL, 35]))[1] == bytes([IAC, WONT, 35, IAC, DONT, 35])
    assert protocol.feed(bytes([IAC, DONT, 0]))[1] == b"", "refused: nothing to say about it"
    size = bytes([IAC, SB, 31, 0, 80, 0, 24, IAC, SE])
    assert protocol.feed(bytes([IAC, DO, 31]))[1] == bytes([IAC, WILL, 31]) + size
    assert protocol.feed(bytes([IAC, DO, 24]))[1] == bytes([IAC, WILL, 24])
    kind = bytes([IAC, SB, 24, 0]) + b"vt100" + bytes([IAC, SE])
    assert protocol.feed(b"a" + bytes([IAC, SB, 24, 1, IAC, SE]) + b"b") == (b"ab", kind)


@given(st.binary())
def test_nothing_confuses_it(data: bytes) -> None:
    Protocol().feed(data)


# ---- the driver


@asynccontextmanager
async def inetd(command: Sequence[str]) -> AsyncIterator[int]:
    """A port where each connection is a process's standard input and output."""

    async def connected(stream: trio.SocketStream) -> None:
        async with stream:
            with socket.socket(fileno=os.dup(stream.socket.fileno())) as plain:
                plain.setblocking(True)  # both descriptors of it
                await trio.run_process(command, stdin=plain.fileno(), stdout=plain.fileno(), check=False)

    async with tcp_server(connected) as port:
        yield port


@asynccontextmanager
async def tcp_server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def until(stream: Any, sign: bytes) -> bytes:
    seen = b""
    while sign not in seen:
        data = await stream.receive_some()
        assert data, f"the stream ended after {seen!r}"
        seen += data
    return seen


@pytest.mark.parametrize("server", [["busybox", "telnetd", "-i", "-l"], ["/usr/sbin/telnetd", "-h", "-E"]])
async def test_telnet_servers(server: list[str], tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\nPS1='ready> ' exec sh -i\n")
    shell.chmod(0o755)
    with trio.fail_after(60):
        async with (
            inetd([*server, str(shell)]) as port,
            serve(Telnet(host="127.0.0.1", port=port)) as console,
            console.connect() as stream,
        ):
            await until(stream, b"ready> ")
            await stream.send_all(b"stty -echo; stty size; echo $TERM; echo $((6*7))\r")
            said = await until(stream, b"42\r\n")
            assert b"\xff" not in said
            assert b"\0" not in said
            assert b"24 80" in said or b"0 0" in said, "busybox asks for no size while it has not been told"
            # Every byte, IAC among them, to the program and back.
            await stream.send_all(b"stty raw; printf go; exec cat\r")
            await until(stream, b"go")
            everything = bytes(range(1, 256))
            await stream.send_all(everything)
            assert await until(stream, b"\xfe\xff") == everything


@pytest.mark.parametrize("raw", [False, True], ids=["telnet", "raw"])
async def test_ser2net(tmp_path: Path, raw: bool) -> None:
    port = free_port()
    (tmp_path / "cf").write_text(
        f"%YAML 1.1\n---\nconnection: &dut\n  accepter: {'' if raw else 'telnet,'}tcp,127.0.0.1,{port}\n"
        "  connector: echo\n  options:\n    max-connections: 3\n"
    )
    everything = bytes(range(256)) * 4
    with trio.fail_after(60):
        async with leashed(["ser2net", "-n", "-c", str(tmp_path / "cf")]):
            await listening(port)
            async with serve(Telnet(host="127.0.0.1", port=port, raw=raw)) as console, console.connect() as stream:
                await stream.send_all(everything)
                got = b""
                while len(got) < len(everything):
                    got += await stream.receive_some()
                assert got == everything
                if raw:
                    with pytest.raises(DeviceError, match="there is no break but with telnet"):
                        await console.send_break()


async def listening(port: int) -> None:
    """Wait until somebody listens there, without a connection, which ser2net would have to end before the next one."""
    sign = f":{port:04X} 00000000:0000 0A "
    while sign not in Path("/proc/net/tcp").read_text():  # noqa: ASYNC110  # another process does it
        await trio.sleep(0.02)


async def test_break_is_telnets() -> None:
    heard, hear = trio.open_memory_channel[bytes](100)

    async def tell(stream: trio.SocketStream) -> None:
        async for data in stream:
            await heard.send(bytes(data))

    with trio.fail_after(60):
        async with tcp_server(tell) as port, serve(Telnet(host="127.0.0.1", port=port)) as console:
            assert await hear.receive() == Protocol().begin()
            await console.send_break()
            assert await hear.receive() == bytes([IAC, BREAK])


async def test_absent_and_lost_and_back() -> None:
    leave = trio.Event()

    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello ")
            await leave.wait()

    absent = free_port()
    with trio.fail_after(60):
        async with serve(Telnet(host="127.0.0.1", port=absent)) as console:
            with pytest.raises(
                DeviceError, match=rf"cannot connect to telnet://127\.0\.0\.1:{absent}: Connection refused"
            ):
                await console.history()
        async with tcp_server(greet) as port, serve(Telnet(host="127.0.0.1", port=port, raw=True)) as console:
            async with console.connect() as stream:
                await until(stream, b"hello")
                leave.set()
                with pytest.raises(DeviceError, match="is gone: it closed the connection"):
                    await until(stream, b"never")
            leave = trio.Event()
            while b"hello hello" not in await history(console):  # noqa: ASYNC110  # no event tells of it
                await trio.sleep(0.05)


async def history(console: Any) -> bytes:
    try:
        return bytes(await console.history())
    except DeviceError:
        return b""


def test_configurations_that_cannot_be() -> None:
    cases: list[dict[str, Any]] = [{"port": 0}, {"port": 70000}, {"timeout": 0}]
    for wrong in cases:
        with pytest.raises(ConfigError):
            Telnet(host="h", **wrong)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/consoles.md") == []
