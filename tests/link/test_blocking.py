"""Blocking links: with our own listener, and with the threaded server of the package `websockets`."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as their_serve
from websockets.typing import Subprotocol

from jmp.errors import Busy, JmpError, LabError, LinkLost, ProtocolViolation, Refused, Timeout, UsageError
from jmp.link.blocking import BlockingLink, connect
from jmp.link.rfc6455 import Closed, Violation
from jmp.link.websocket import UpgradeRequest, WebSocketLink
from tests.fakes.links import KINDS, certificate, echo, listen, serving

T = TypeVar("T")

HUGE = 8 << 20
"""Longer than any socket's buffers."""


async def in_thread(function: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(function)


def open_link(url: str, **options: str) -> BlockingLink:
    if url.startswith("wss:"):
        options.setdefault("fingerprint", certificate().fingerprint)
    return connect(url, timeout=60, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_both_ways(kind: str, tmp_path: Path) -> None:
    def client() -> None:
        link = open_link(url)
        assert link.peer == (url if kind == "unix" else f"{url}/")
        for size in (0, 1, 125, 126, 65535, 65536, 1 << 20):
            message = random.Random(size).randbytes(size)
            link.send([message[:1], memoryview(message)[1:]])
            assert link.receive(10) == message
        link.send([b"%d" % (number % 10) for number in range(3000)])
        assert link.receive(10) == b"0123456789" * 300
        link.close()
        link.close()

    async with serving(kind, tmp_path) as url:
        await in_thread(client)


@pytest.mark.parametrize("kind", KINDS)
async def test_one_thread_sends_and_one_receives(kind: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)

    def send() -> None:
        for number in range(200):
            link.send([number.to_bytes(4, "big"), data])

    def receive() -> None:
        for number in range(200):
            assert link.receive(10) == number.to_bytes(4, "big") + data

    async with serving(kind, tmp_path) as url:
        link = await in_thread(lambda: open_link(url))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, send)
            nursery.start_soon(in_thread, receive)
        await in_thread(link.close)


@pytest.mark.parametrize("kind", KINDS)
async def test_receiving_within_a_time(kind: str, tmp_path: Path) -> None:
    def client() -> None:
        link = open_link(url)
        assert link.receive(0) is None
        assert link.receive(0.01) is None
        link.send([b"x"])
        assert link.receive() == b"x"
        assert link.receive(0) is None
        link.close()

    async with serving(kind, tmp_path) as url:
        await in_thread(client)


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_at_once_and_later(kind: str, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        with suppress(LinkLost):
            while True:
                message = await link.receive()
                if message == b"later":
                    await trio.sleep(0.01)
                await link.send([message])

    def client() -> None:
        link = open_link(url)
        for message in [b"at once"] * 20 + [b"later"] + [b"at once"] * 20:
            link.send([message])
            assert link.receive() == message
        assert link.receive(0) is None
        assert link.receive(0.001) is None
        link.send([b"later"])
        assert link.receive(10) == b"later"
        link.close()

    async with serving(kind, tmp_path, handler) as url:
        await in_thread(client)


@pytest.mark.parametrize("kind", KINDS)
async def test_close_by_the_client(kind: str, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        with pytest.raises(Closed, match="4001 moved on"):
            await link.receive()
        seen.set()

    def client() -> None:
        link = open_link(url)
        link.close(4001, "moved on")
        for use in (link.receive, lambda: link.send([b"x"])):
            with pytest.raises(LinkLost, match="this side closed"):
                use()

    seen = trio.Event()
    async with serving(kind, tmp_path, handler) as url:
        await in_thread(client)
        await seen.wait()


@pytest.mark.parametrize("kind", KINDS)
async def test_close_by_the_server(kind: str, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        await link.send([b"last words"])
        await link.aclose(1001, "maintenance")

    def client() -> None:
        link = open_link(url)
        assert link.receive(10) == b"last words"
        for use in (link.receive, link.receive, lambda: link.send([b"x"])):
            with pytest.raises(Closed, match="1001 maintenance"):
                use()
        link.close()

    async with serving(kind, tmp_path, handler) as url:
        await in_thread(client)


@pytest.mark.parametrize("deaf", [False, True])
async def test_closing_ends_a_receiving_thread(deaf: bool, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, request: UpgradeRequest) -> None:
        if deaf:
            await trio.sleep_forever()
        await echo(link, request)

    def receive() -> None:
        receiving.set()
        with pytest.raises(LinkLost, match="this side closed" if deaf else "the other side closed"):
            link.receive()

    receiving = threading.Event()
    async with serving("unix", tmp_path, handler) as url:
        link = await in_thread(lambda: open_link(url))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, receive)
            await in_thread(receiving.wait)
            await in_thread(link.close)


async def test_end_without_good_bye(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link._pipe.close()

    def client() -> None:
        link = open_link(url)
        with pytest.raises(LinkLost, match="without a good-bye"):
            link.receive(10)
        with pytest.raises(LinkLost):
            link.send([b"x"])
        link.close()

    async with serving("unix", tmp_path, handler) as url:
        await in_thread(client)


@pytest.mark.parametrize("kind", ["unix", "wss"])
async def test_pong_waits_for_the_message_under_way(kind: str, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link._pipe.write([b"\x89\x04ping" + b"\x82\x02go"])
        await gone.wait()  # by now the sending thread is stuck or about to be, and the other one has seen the ping
        data = bytearray()
        while len(data) < 14 + HUGE + 10:
            data += await link._pipe.receive()
        written.append(bytes(data))

    def receive() -> None:
        assert link.receive(10) == b"go"
        trio.from_thread.run_sync(gone.set)

    gone = trio.Event()
    written: list[bytes] = []
    async with serving(kind, tmp_path, handler) as url:
        link = await in_thread(lambda: open_link(url))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: link.send([bytes(HUGE)]))
            nursery.start_soon(in_thread, receive)
        await in_thread(link.close)
    pong, message = b"\x8a\x84\0\0\0\0ping", b"\x82\xff" + HUGE.to_bytes(8, "big") + bytes(4 + HUGE)
    in_order = written[0][: len(message + pong)] in (message + pong, pong + message)
    assert in_order  # the good-bye may have followed


async def test_ping_is_answered_by_receiving(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link._pipe.write([b"\x89\x04ping"])
        assert await link._pipe.receive() == b"\x8a\x84\0\0\0\0ping"
        await link.send([b"thanks"])
        await link.aclose()

    def client() -> None:
        link = open_link(url)
        assert link.receive(10) == b"thanks"
        link.close()

    async with serving("unix", tmp_path, handler) as url:
        await in_thread(client)


async def test_violation(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link._pipe.write([b"\x83\x00"])
        with pytest.raises(Closed, match="1002"):
            await link.receive()

    def client() -> None:
        link = open_link(url)
        with pytest.raises(Violation, match="opcode 3"):
            link.receive(10)
        with pytest.raises(Violation):
            link.send([b"x"])
        link.close()

    async with serving("unix", tmp_path, handler) as url:
        await in_thread(client)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [Refused("wrong passphrase"), Busy("later"), LabError("not now")])
async def test_refusal(kind: str, error: JmpError, tmp_path: Path) -> None:
    async def authenticate(request: UpgradeRequest) -> UpgradeRequest:
        assert request.token == "s3cret"
        raise error

    def client() -> None:
        with pytest.raises(type(error), match=error.message) as caught:
            open_link(url, token="s3cret")
        assert type(caught.value) is type(error)

    async with serving(kind, tmp_path, authenticate=authenticate) as url:
        await in_thread(client)


async def test_certificates(tmp_path: Path) -> None:
    def client() -> None:
        link = connect(url, ca=tmp_path / "cert.pem", timeout=60)
        link.send([b"x"])
        assert link.receive(10) == b"x"
        link.close()
        with pytest.raises(Refused, match="not trusted"):
            connect(url, token="s3cret", timeout=60)
        with pytest.raises(Refused, match="another one than expected"):
            connect(url, token="s3cret", fingerprint="ab" * 32, timeout=60)
        with pytest.raises(UsageError, match="needs a wss://"):
            connect("unix:/x", fingerprint="ab" * 32)

    async def authenticate(request: UpgradeRequest) -> UpgradeRequest:
        assert request.token is None, "the token was sent"
        return request

    async with serving("wss", tmp_path, authenticate=authenticate) as url:
        await in_thread(client)


async def test_tls_and_plain_mixed_up(tmp_path: Path) -> None:
    async with serving("ws", tmp_path) as url:
        with pytest.raises(ProtocolViolation, match="TLS handshake failed"):
            await in_thread(lambda: connect(url.replace("ws:", "wss:"), timeout=60))


async def test_nothing_answers(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot reach unix:.*No such file"):
        connect(f"unix:{tmp_path}/missing")
    url, listeners = await listen("ws", tmp_path)
    await listeners[0].aclose()
    with pytest.raises(LabError, match=r"cannot reach ws://.*Connection refused"):
        connect(url)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_answer_takes_too_long(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(Timeout, match="did not answer in time"):
        connect(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", timeout=0.02)


def test_with_the_server_of_websockets() -> None:
    def handler(their: ServerConnection) -> None:
        for message in their:
            assert isinstance(message, bytes)
            pong = their.ping(b"between")
            their.send([message[:3], message[3:]])  # as fragments
            assert pong.wait(60)
            if message == b"enough":
                their.close(4002, "enough")

    with their_serve(handler, "127.0.0.1", 0, subprotocols=[Subprotocol("jmp.v1")], compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            link = connect(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout=60)
            for message in (bytes(5), bytes(126), bytes(300_000), b"enough"):
                link.send([message])
                assert link.receive(10) == message
            with pytest.raises(Closed, match="4002 enough"):
                link.receive(10)
            link.close()
            for frames in (b"\x82\x01x", b"\x81\x81\0\0\0\0\xff"):
                link = connect(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout=60)
                link._put([frames])
                with pytest.raises((Closed, ConnectionClosed)):
                    link.receive(10)
                link.close()
        finally:
            server.shutdown()
            thread.join()
