"""Links over real sockets: with ourselves, with peers that misbehave, and with trio-websocket."""

from __future__ import annotations

import functools
import logging
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio_websocket
from trio.testing import wait_all_tasks_blocked

from jmp.errors import Busy, ConfigError, JmpError, LabError, LinkLost, ProtocolViolation, Refused, UsageError
from jmp.link import sources, websocket
from jmp.link.rfc6455 import MAX_HEAD, ClientHandshake, Closed, Codec, Violation
from jmp.link.sources import BURST
from jmp.link.websocket import UpgradeRequest, WebSocketLink, connect
from tests.fakes.links import (
    KINDS,
    certificate,
    dial,
    echo,
    listen,
    read_all,
    read_exactly,
    serving,
    upgraded,
)

Connect = Callable[..., Awaitable[WebSocketLink]]

HUGE = 8 << 20
"""Longer than any socket's buffers."""


async def open_link(url: str, **options: str | int) -> WebSocketLink:
    if url.startswith("wss:"):
        options.setdefault("fingerprint", certificate().fingerprint)
    return await connect(url, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_both_ways(kind: str, tmp_path: Path) -> None:
    messages = [random.Random(size).randbytes(size) for size in (0, 1, 125, 126, 65535, 65536, 1 << 20)]
    async with serving(kind, tmp_path) as url:
        link = await open_link(url)
        assert link.peer == (url if kind == "unix" else f"{url}/")
        for message in messages:
            assert link.send_nowait([message[:1], memoryview(message)[1:]])
            assert await link.receive() == message
            await link.send([message])
            assert await link.receive() == message
        await link.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_many_parts_in_one_message(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as url:
        link = await open_link(url)
        await link.send([b"%d" % (number % 10) for number in range(3000)])
        assert await link.receive() == b"0123456789" * 300
        await link.aclose()


async def test_messages_that_were_read_together(tmp_path: Path) -> None:
    async with serving("unix", tmp_path, lambda link, _: link.send_each([b"one", b"", b"three"])) as url:
        link = await connect(url)
        assert await link.receive() == b"one"
        assert [link.receive_nowait(), link.receive_nowait()] == [b"", b"three"]
        with pytest.raises(Closed):
            await link.receive()
        await link.aclose()


async def test_several_messages_to_one_that_does_not_read(tmp_path: Path) -> None:
    messages = [bytes([number]) * (1 << 20) for number in range(20)]
    got: list[bytes] = []

    async def handler(link: WebSocketLink, _: object) -> None:
        await wait_all_tasks_blocked()
        while len(got) < len(messages):
            got.append(await link.receive())

    with trio.fail_after(60):
        async with serving("unix", tmp_path, handler) as url:
            link = await connect(url)
            await link.send_each(messages[:10])
            await link.send_each(messages[10:])
            with pytest.raises(Closed):
                await link.receive()
            with pytest.raises(LinkLost):
                await link.send_each(messages)
            await link.aclose()
    assert got == messages


@pytest.mark.parametrize("kind", KINDS)
async def test_full_speed_both_ways_at_once(kind: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    async with serving(kind, tmp_path) as url:
        link = await open_link(url)

        async def send() -> None:
            for number in range(200):
                if not link.send_nowait([number.to_bytes(4, "big"), data]):
                    await link.send([number.to_bytes(4, "big"), data])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for number in range(200):
                assert await link.receive() == number.to_bytes(4, "big") + data
        await link.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_close_by_the_client(kind: str, tmp_path: Path) -> None:
    seen = trio.Event()

    async def handler(link: WebSocketLink, _: object) -> None:
        with pytest.raises(Closed, match="4001 moved on") as closed:
            await link.receive()
        assert closed.value.close_code == 4001
        with pytest.raises(Closed):
            link.send_nowait([b"x"])
        seen.set()

    async with serving(kind, tmp_path, handler) as url:
        link = await open_link(url)
        await link.aclose(4001, "moved on")
        await link.aclose()
        await seen.wait()
        with pytest.raises(LinkLost):
            await link.receive()
        with pytest.raises(LinkLost):
            link.send_nowait([b"x"])
        with pytest.raises(LinkLost):
            await link.send([b"x"])


@pytest.mark.parametrize("kind", KINDS)
async def test_close_by_the_server_after_a_message(kind: str, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        await link.send([b"last words"])
        await link.aclose(1001, "maintenance")

    async with serving(kind, tmp_path, handler) as url:
        link = await open_link(url)
        assert await link.receive() == b"last words"
        with pytest.raises(Closed, match="1001 maintenance"):
            await link.receive()
        await link.aclose()


async def test_close_while_another_task_receives(tmp_path: Path) -> None:
    async with serving("unix", tmp_path) as url:
        link = await connect(url)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(Closed):
                    await link.receive()

            await wait_all_tasks_blocked()
            await link.aclose()


@pytest.mark.parametrize("kind", ["unix", "ws"])
async def test_closing_is_bounded_and_can_be_cancelled(kind: str, tmp_path: Path) -> None:
    async def deaf(link: WebSocketLink, _: object) -> None:
        await trio.sleep_forever()

    async with serving(kind, tmp_path, deaf) as url:
        link = await open_link(url)
        assert link.send_nowait([bytes(HUGE)])
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(LinkLost, match="this side closed"):
                    await link.receive()

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(LinkLost, match="this side closed"):
                    await link.send([b"x"])

            await wait_all_tasks_blocked()
            with trio.move_on_after(0) as scope:
                await link.aclose()
            assert scope.cancelled_caught


async def test_end_without_good_bye(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        with pytest.raises(LinkLost, match="without a good-bye"):
            await link.receive()
        seen.set()

    seen = trio.Event()
    async with serving("unix", tmp_path, handler) as url:
        stream = await upgraded(url)
        await stream.aclose()
        await seen.wait()


async def test_sending_to_one_that_is_gone(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link.send_nowait([b"still readable"])
        link._pipe.close()

    async with serving("unix", tmp_path, handler) as url:
        link = await connect(url)
        with pytest.raises(LinkLost):  # noqa: PT012, the first ones may fit into the socket
            while True:
                await link.send([bytes(HUGE)])
        assert await link.receive() == b"still readable"
        with pytest.raises(LinkLost):
            await link.receive()
        await link.aclose()


# What is written waits for a slow reader, in order and whole.


async def silent(link: WebSocketLink, _: object) -> None:
    """A handler that does nothing until its link is cut."""
    await trio.sleep_forever()


def frames_of(data: bytes, *, max_message: int = HUGE) -> list[bytes]:
    """All messages in what a server sent."""
    codec = Codec(client=True, max_message=max_message)
    codec.feed(data)
    messages = []
    while (message := codec.next_message()) is not None:
        messages.append(message)
    return messages


async def test_rest_is_written_without_further_calls(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        assert link.send_nowait([bytes(HUGE)])
        assert not link.send_nowait([b"x"])
        await trio.sleep_forever()

    async with serving("unix", tmp_path, handler) as url:
        stream = await upgraded(url)
        assert len(await read_exactly(stream, 10 + HUGE)) == 10 + HUGE
        await stream.aclose()


async def test_cancelled_send_neither_splits_nor_breaks(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        await link.send([bytes(HUGE)])
        with trio.move_on_after(0.01) as scope:
            await link.send([b"never sent"])
        assert scope.cancelled_caught
        jammed.set()
        await link.send([b"next"])
        await trio.sleep_forever()

    jammed = trio.Event()
    async with serving("unix", tmp_path, handler) as url:
        stream = await upgraded(url)
        await jammed.wait()
        assert frames_of(await read_exactly(stream, 10 + HUGE + 6)) == [bytes(HUGE), b"next"]
        await stream.aclose()


@pytest.mark.parametrize("kind", ["unix", "ws"])
async def test_pong_waits_for_the_message_under_way(kind: str, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link.send_nowait([bytes(HUGE)])
        message = await link.receive()
        jammed.set()
        await link.send([message])
        await trio.sleep_forever()

    jammed = trio.Event()
    async with serving(kind, tmp_path, handler) as url:
        stream = await upgraded(url)
        # A ping between the fragments of a message.
        await stream.send_all(b"\x02\x82\0\0\0\0fr" + b"\x89\x84\0\0\0\0ping" + b"\x80\x82\0\0\0\0ag")
        await jammed.wait()
        data = await read_exactly(stream, 10 + HUGE + 6 + 6)
        assert data[:2] == b"\x82\x7f"
        assert data[10 + HUGE :] == b"\x8a\x04ping\x82\x04frag"
        await stream.aclose()


async def test_ping_is_answered_at_once(tmp_path: Path) -> None:
    async with serving("unix", tmp_path) as url:
        stream = await upgraded(url)
        await stream.send_all(
            b"\x89\x84\x01\x02\x03\x04" + bytes(a ^ b for a, b in zip(b"ping", b"\1\2\3\4", strict=True))
        )
        assert await read_exactly(stream, 6) == b"\x8a\x04ping"
        await stream.aclose()


async def test_cancelled_receive_loses_nothing(tmp_path: Path) -> None:
    async with serving("unix", tmp_path) as url:
        link = await connect(url)
        with trio.move_on_after(0.01):
            await link.receive()
        await link.send([b"one"])
        assert await link.receive() == b"one"
        await link.aclose()


# Peers that break the rules.


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x82\x01x", 1002),
        (b"\x81\x81\0\0\0\0x", 1003),
        (b"\x82\xff" + (1 << 21).to_bytes(8, "big") + bytes(50), 1009),
    ],
)
async def test_violation_is_answered_with_its_code(frames: bytes, code: int, tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        with pytest.raises(Violation):
            await link.receive()
        with pytest.raises(Violation):
            await link.receive()
        with pytest.raises(Violation):
            link.send_nowait([b"x"])
        await link.aclose()
        seen.set()

    seen = trio.Event()
    async with serving("ws", tmp_path, handler) as url:
        stream = await upgraded(url)
        await stream.send_all(frames + bytes(100_000))
        assert await read_exactly(stream, 4) == b"\x88\x02" + code.to_bytes(2, "big")
        await stream.aclose()
        await seen.wait()


async def test_what_follows_a_violation_is_read_at_leisure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.1)
    sent = 0
    async with serving("unix", tmp_path) as url:
        stream = await upgraded(url)
        await stream.send_all(b"\x81\x81\0\0\0\0x")
        try:
            while True:
                await stream.send_all(bytes(1000))
                sent += 1000
        except trio.BrokenResourceError:
            pass
        await stream.aclose()
    assert sent < 4 << 20, "what two sockets hold and some pieces, not 0.1 s of what the machine can"


async def test_limit_for_messages(tmp_path: Path) -> None:
    async with serving("unix", tmp_path, max_message=1000) as url:
        link = await connect(url)
        await link.send([bytes(1000)])
        assert len(await link.receive()) == 1000
        await link.send([bytes(1001)])
        with pytest.raises(Closed, match="1009"):
            await link.receive()
        await link.aclose()


# The opening handshake.


@pytest.mark.parametrize("kind", KINDS)
async def test_token_and_headers_reach_authenticate(kind: str, tmp_path: Path) -> None:
    async def authenticate(request: UpgradeRequest) -> UpgradeRequest:
        assert "s3cret" not in repr(request)
        requests.append(request)
        return request

    requests: list[UpgradeRequest] = []
    async with serving(kind, tmp_path, authenticate=authenticate) as url:
        for options in ({"token": "s3cret", "headers": [("Jmp-Extra", "1")]}, {}):
            link = await open_link(url, **options)  # type: ignore[arg-type]
            await link.aclose()
    assert [request.token for request in requests] == ["s3cret", None]
    assert requests[0].headers["jmp-extra"] == "1"
    assert requests[0].peer.startswith("unix:/" if kind == "unix" else "127.0.0.1:")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [Refused("wrong passphrase"), Busy("später"), LabError("not now")])
async def test_refusal_reaches_the_client(
    kind: str, error: JmpError, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def authenticate(_: UpgradeRequest) -> UpgradeRequest:
        raise error

    async with serving(kind, tmp_path, authenticate=authenticate) as url:
        with pytest.raises(type(error), match=error.message) as caught:
            await open_link(url, token="s3cret")
        assert type(caught.value) is type(error)
        stream = await upgraded_or_not(url) if kind != "wss" else b""
        assert b"s3cret" not in stream
    assert any(error.message in record.message for record in caplog.records)
    assert "s3cret" not in caplog.text


async def upgraded_or_not(url: str) -> bytes:
    """The whole answer to a request without a token."""
    stream = await dial(url)
    async with stream:
        await stream.send_all(ClientHandshake("localhost").request)
        return await read_all(stream)


async def test_failing_authentication_is_logged_and_ends_one_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def authenticate(request: UpgradeRequest) -> UpgradeRequest:
        if request.token == "crash":
            raise ValueError("a defect")
        return request

    async with serving("unix", tmp_path, authenticate=authenticate) as url:
        with pytest.raises(LinkLost):
            await connect(url, token="crash")
        link = await connect(url)
        await link.aclose()
    assert "a defect" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: \xc3\xbc..\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"400"),
        (b"\0\1\2\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (ClientHandshake("x", "/other").request, b"404"),
        (ClientHandshake("x").request.replace(b"jmp.v1", b"chat"), b"400"),
        (ClientHandshake("x").request.replace(b"Host: x", b"Host: \xff"), b"400"),
        (ClientHandshake("x").request.replace(b"Host: x", b"Host: x\r\nSec-WebSocket-Extensions: \xff"), b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEAD, b"431"),
    ],
)
async def test_bad_requests(request_: bytes, status: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving("unix", tmp_path) as url, await dial(url) as stream:
        await stream.send_all(request_)
        assert (await read_exactly(stream, 12)) == b"HTTP/1.1 " + status
    assert not [record for record in caplog.records if record.levelno > logging.WARNING], caplog.text


async def test_random_requests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    randomly = random.Random(4711)
    whole = ClientHandshake("x", token="t").request
    async with serving("unix", tmp_path) as url:
        for _ in range(100):
            request = bytearray(whole)
            for _ in range(randomly.randint(1, 3)):
                request[randomly.randrange(len(request) - 4)] = randomly.randrange(256)
            async with await dial(url) as stream:
                await stream.send_all(request)
                assert (await read_exactly(stream, 9)) == b"HTTP/1.1 "
        link = await connect(url)
        await link.aclose()
    assert not [record for record in caplog.records if record.levelno > logging.WARNING], caplog.text


async def test_half_a_handshake(tmp_path: Path) -> None:
    async with serving("unix", tmp_path) as url:
        for size in (0, 1, 100):
            async with await dial(url) as stream:
                await stream.send_all(ClientHandshake("x").request[:size])
        link = await connect(url)
        await link.aclose()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_slow_handshake(kind: str, sent: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(kind, tmp_path, handshake_seconds=0.05) as url, await dial(url) as stream:
        await stream.send_all(sent if kind != "wss" else b"\x16\x03\x01"[: len(sent)])
        assert await stream.receive_some() == b""
    assert "took over 0.05 s" in caplog.text


async def test_strangers_are_few(tmp_path: Path) -> None:
    async with serving("unix", tmp_path, max_strangers=2, max_waiting=1) as url:
        known = [await connect(url) for _ in range(3)]
        strangers = [await dial(url) for _ in range(2)]
        await wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:

            async def wait_in_line() -> None:
                known.append(await connect(url))

            nursery.start_soon(wait_in_line)
            await wait_all_tasks_blocked(0.01)
            async with await dial(url) as one_too_many:
                assert await one_too_many.receive_some() == b""
            assert len(known) == 3, "it waits for its turn"
            for stream in strangers:
                await stream.send_all(b"nonsense\r\n\r\n")
                await read_all(stream)
                await stream.aclose()
        for link in known:
            await link.aclose()


async def refuse(request: UpgradeRequest) -> UpgradeRequest:
    """Let in nobody but those who say "right"."""
    if request.token == "busy":
        raise Busy("not now")
    if request.token != "right":
        raise Refused("the token is wrong")
    return request


async def dial_from(url: str, address: str) -> trio.SocketStream:
    """Connect from one of this machine's addresses."""
    host, _, port = url.removeprefix("ws://").partition(":")
    sock = trio.socket.socket()
    await sock.bind((address, 0))
    await sock.connect((host, int(port)))
    return trio.SocketStream(sock)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure a second, so that even a busy machine has them faster."""
    monkeypatch.setattr(sources, "_EACH", 1.0)
    monkeypatch.setattr(sources, "_FREE", BURST + 0.5)


@pytest.mark.usefixtures("slow")
async def test_an_address_that_fails_again_and_again_waits_and_others_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answered = 0

    async def fail(url: str) -> None:
        nonlocal answered
        async with await dial_from(url, "127.0.0.2") as stream:
            await stream.send_all(ClientHandshake("x", token="wrong").request)
            assert (await read_all(stream)).startswith(b"HTTP/1.1 401")
            answered += 1

    async with (
        serving("ws", tmp_path, authenticate=refuse, handshake_seconds=1000) as url,
        trio.open_nursery() as nursery,
    ):
        for _ in range(BURST + 1):
            await fail(url)
        assert "too many connections from there failed" in caplog.text
        for _ in range(80):
            nursery.start_soon(fail, url)
        link = await connect(url, token="right")
        await link.send([b"here"])
        assert await link.receive() == b"here"
        await link.aclose()
        assert answered < BURST + 40, "one a second"
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("slow")
async def test_more_than_can_wait_are_closed_at_once(tmp_path: Path) -> None:
    async def fail(url: str) -> bytes:
        async with await dial_from(url, "127.0.0.2") as stream:
            try:
                await stream.send_all(ClientHandshake("x", token="wrong").request)
                return await read_all(stream)
            except trio.BrokenResourceError:
                return b""

    async with serving("ws", tmp_path, authenticate=refuse, handshake_seconds=0.3) as url:
        assert all([await fail(url) for _ in range(BURST + 1)])
        assert await fail(url) == b""


async def test_nobody_pays_for_what_is_the_servers_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving("ws", tmp_path, authenticate=refuse) as url:
        for _ in range(2 * BURST):
            with pytest.raises(Busy):
                await connect(url, token="busy")
            async with await dial(url):  # as those do who look whether anybody listens
                pass
    assert "too many connections" not in caplog.text


@pytest.mark.usefixtures("slow")
async def test_who_breaks_the_rules_has_failed_though_it_was_let_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving("ws", tmp_path) as url:
        while "too many connections from there failed" not in caplog.text:
            stream = await upgraded(url)
            await stream.send_all(b"\x81\x81\0\0\0\0x")
            await read_exactly(stream, 4)
            await stream.aclose()
            assert len(caplog.records) < 5 * BURST


async def test_frames_sent_with_the_request(tmp_path: Path) -> None:
    async with serving("unix", tmp_path) as url, await dial(url) as stream:
        handshake = ClientHandshake("x")
        await stream.send_all(handshake.request + b"\x82\x85\0\0\0\0early")
        rest = b""
        while b"early" not in rest:
            rest += handshake.feed(await stream.receive_some()) or b""
        assert rest == b"\x82\x05early"


async def test_frames_sent_with_the_response(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        link.send_nowait([b"hello"])
        await link.aclose()

    async with serving("ws", tmp_path, handler) as url:
        link = await connect(url)
        assert await link.receive() == b"hello"
        await link.aclose()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ProtocolViolation),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolViolation),
        (b"", LinkLost),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", LabError),
    ],
)
async def test_something_else_answers(answer: bytes, error: type[JmpError], tmp_path: Path) -> None:
    url, listeners = await listen("unix", tmp_path)

    async def other(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, other, listeners)
            with pytest.raises(error):
                await connect(url)
            nursery.cancel_scope.cancel()


async def test_nothing_answers(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot reach unix:/.*: No such file"):
        await connect(f"unix:{tmp_path}/missing")
    url, listeners = await listen("ws", tmp_path)
    await listeners[0].aclose()
    with pytest.raises(LabError, match=r"cannot reach ws://127\.0\.0\.1:\d+/: Connection refused"):
        await connect(url)


async def test_cancelled_connect_leaves_nothing_open(tmp_path: Path) -> None:
    async def authenticate(request: UpgradeRequest) -> UpgradeRequest:
        asked.set()
        await trio.sleep_forever()
        return request

    asked = trio.Event()
    async with serving("unix", tmp_path, authenticate=authenticate) as url, trio.open_nursery() as nursery:
        nursery.start_soon(connect, url)
        await asked.wait()
        nursery.cancel_scope.cancel()


# A handler's failure is its own.


@pytest.mark.parametrize("group", [False, True])
async def test_failing_handler(group: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(link: WebSocketLink, request: UpgradeRequest) -> None:
        if request.token is None:
            await echo(link, request)
            return
        error = LinkLost("lost it") if request.token == "lost" else ValueError("a defect")
        raise ExceptionGroup("both", [error, error]) if group else error

    caplog.set_level(logging.INFO)
    async with serving("unix", tmp_path, handler) as url:
        for token in ("lost", "crash"):
            link = await connect(url, token=token)
            with pytest.raises(Closed, match="1011 internal error"):
                await link.receive()
            await link.aclose()
        link = await connect(url)
        await link.send([b"still serving"])
        assert await link.receive() == b"still serving"
        await link.aclose()
    lost, crash = (record for record in caplog.records if record.name == "jmp.link.websocket")
    assert (lost.levelname, lost.message.count("lost it"), lost.exc_info) == ("INFO", 1 + group, None)
    assert crash.levelname == "ERROR"
    assert crash.exc_info is not None


# TLS.


async def test_certificate_of_a_known_ca(tmp_path: Path) -> None:
    async with serving("wss", tmp_path) as url:
        for name in (url, url.replace("127.0.0.1", "localhost")):
            link = await connect(name, ca=tmp_path / "cert.pem")
            await link.send([b"x"])
            assert await link.receive() == b"x"
            await link.aclose()


async def test_certificate_must_be_trusted(tmp_path: Path) -> None:
    async def authenticate(_: UpgradeRequest) -> UpgradeRequest:
        raise AssertionError("the token was sent")

    async with serving("wss", tmp_path, authenticate=authenticate) as url:
        with pytest.raises(Refused, match="not trusted"):
            await connect(url, token="s3cret")
        with pytest.raises(Refused, match=f"another one than expected; its fingerprint is {certificate().fingerprint}"):
            await connect(url, token="s3cret", fingerprint="ab" * 32)


async def test_fingerprint_in_other_spellings(tmp_path: Path) -> None:
    digits = certificate().fingerprint.upper()
    async with serving("wss", tmp_path) as url:
        link = await connect(url, fingerprint="SHA256:" + ":".join(digits[at : at + 2] for at in range(0, 64, 2)))
        await link.aclose()


async def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a wss://"):
        await connect("ws://127.0.0.1:1", fingerprint="ab" * 32)
    async with serving("wss", tmp_path) as url:
        with pytest.raises(UsageError, match="not a SHA-256 fingerprint"):
            await connect(url, fingerprint="abcd")
        with pytest.raises(ConfigError, match="cannot read the CA certificates"):
            await connect(url, ca=tmp_path / "missing.pem")


async def test_tls_to_a_plain_listener_and_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving("ws", tmp_path) as url:
        with pytest.raises(ProtocolViolation, match="TLS handshake failed"):
            await connect(url.replace("ws:", "wss:"))
    (tmp_path / "two").mkdir()
    async with serving("wss", tmp_path / "two") as url:
        with pytest.raises((LinkLost, ProtocolViolation)):
            await connect(url.replace("wss:", "ws:"))
    assert not [record for record in caplog.records if record.levelno > logging.WARNING], caplog.text


async def test_garbage_in_the_middle_of_tls(tmp_path: Path) -> None:
    async with serving("wss", tmp_path) as url:
        link = await open_link(url)
        link._pipe._tls, tls = None, link._pipe._tls
        link._pipe.write([b"\x17\x03\x03\x00\x05junk!"])
        link._pipe._tls = tls
        with pytest.raises((LinkLost, ProtocolViolation)):
            await link.receive()
        await link.aclose()


# trio-websocket.


async def test_with_the_server_of_trio_websocket(tmp_path: Path) -> None:
    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        assert request.proposed_subprotocols == ("jmp.v1",)
        their = await request.accept(subprotocol="jmp.v1")
        for _ in range(3):
            await their.send_message(await their.get_message())
        await their.ping(b"are you there")  # returns when the pong has come
        await their.aclose(4002, "enough")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                functools.partial(trio_websocket.serve_websocket, handler, "127.0.0.1", 0, ssl_context=None)
            )
            link = await connect(f"ws://127.0.0.1:{server.port}")
            for size in (5, 126, 300_000):
                await link.send([bytes(size)])
                assert await link.receive() == bytes(size)
            with pytest.raises(Closed, match="4002 enough"):
                await link.receive()
            await link.aclose()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def their_client(url: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    async with await dial(url) as stream, trio.open_nursery() as nursery:
        yield await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/", subprotocols=["jmp.v1"])
        nursery.cancel_scope.cancel()


async def test_with_the_client_of_trio_websocket(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        await echo(link, _)
        done.set()

    done = trio.Event()
    async with serving("ws", tmp_path, handler) as url, their_client(url) as their:
        assert their.subprotocol == "jmp.v1"
        for size in (5, 126, 300_000):
            await their.send_message(bytes(size))
            assert await their.get_message() == bytes(size)
        await their.ping(b"x")
        await their.aclose(4003, "done")
        await done.wait()


async def test_text_from_trio_websocket(tmp_path: Path) -> None:
    async def handler(link: WebSocketLink, _: object) -> None:
        with pytest.raises(Violation):
            await link.receive()

    async with serving("ws", tmp_path, handler) as url, their_client(url) as their:
        await their.send_message("text")
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await their.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1003


def test_the_handshakes_library_is_loaded_by_who_is_called_on() -> None:
    code = "import sys, jmp.link.websocket; assert not {'wsproto', 'h11'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
