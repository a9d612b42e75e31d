"""A listening exporter: one user at a time, a line of those who wait, who is let in, how it stops, what strangers may send."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jmp.errors import Busy, LabError, LinkLost, ProtocolViolation, Refused
from jmp.exporter import serve
from jmp.link.address import parse
from jmp.link.rfc6455 import ClientHandshake, Closed, Codec
from jmp.link.websocket import UpgradeRequest
from jmp.mux.protocol import MAX_STREAMS, VERSION, WINDOW, Mux, Role
from jmp.mux.stream import StreamReset
from jmp.rpc.messages import Request
from jmp.wire.frames import MAX_DATA, Kind, Reset, pack
from tests.fakes.exporters import Lamp, begin, bench, connected, exporting, lamp
from tests.fakes.links import certificate, dial


@pytest.fixture(autouse=True)
def journal() -> Iterator[list[str]]:
    Lamp.journal.clear()
    yield Lamp.journal
    Lamp.journal.clear()


# ---- one user at a time


async def test_nothing_is_used_before_a_session_was_begun(tmp_path: Path, journal: list[str]) -> None:
    async with exporting(tmp_path, bench(tmp_path)) as (url, _), connected(url) as (_, caller):
        for target, method in (("lamp", "on"), ("@session", "report"), ("@session", "reset")):
            with pytest.raises(Refused, match=r"no session was begun on this link: call @session\.begin first"):
                await caller.call(target, method, (), {})
        assert journal == []
        assert (await begin(caller, "me"))["name"] == "bench"
        await lamp(caller, "on")


async def test_the_second_one_is_told_who_has_it(tmp_path: Path) -> None:
    async with (
        exporting(tmp_path, bench(tmp_path)) as (url, _),
        connected(url) as (_, first),
        connected(url) as (_, second),
    ):
        await begin(first, "ann@desk")
        with pytest.raises(Busy, match=r"^bench is in use by ann@desk since \d{4}-\d\d-\d\d \d\d:\d\d$"):
            await begin(second, "bob@desk")
        with pytest.raises(Busy, match="in use by ann@desk"):
            await begin(second, "bob@desk", wait=0.01)
        with pytest.raises(Refused):
            await lamp(second, "on")
        await lamp(first, "on")


async def test_begin_twice_is_the_same_session(tmp_path: Path, journal: list[str]) -> None:
    async with exporting(tmp_path, bench(tmp_path)) as (url, _), connected(url) as (_, caller):
        await begin(caller, "me")
        await lamp(caller, "on")
        await begin(caller, "me")
        assert await lamp(caller, "state") is True
        assert journal == ["open"]


async def test_those_who_wait_are_served_in_turn_each_with_new_drivers(tmp_path: Path, journal: list[str]) -> None:
    served: list[str] = []
    async with exporting(tmp_path, bench(tmp_path)) as (url, exporter), trio.open_nursery() as nursery:

        async def wait(name: str) -> None:
            async with connected(url) as (_, caller):
                await begin(caller, name, wait=None)
                served.append(name)
                assert await lamp(caller, "state") is False
                await lamp(caller, "on")

        async with connected(url) as (_, first):
            await begin(first, "first")
            for number, name in enumerate("abc", 1):
                nursery.start_soon(wait, name)
                while exporter._slot.statistics().tasks_waiting < number:
                    await trio.lowlevel.checkpoint()
            async with connected(url) as (_, late):
                with pytest.raises(Busy, match=r"in use by first since .*, 3 waiting$"):
                    await begin(late, "late")
    assert served == ["a", "b", "c"]
    assert journal == 4 * ["open", "close"]


async def test_who_leaves_the_line_loses_the_place(tmp_path: Path) -> None:
    async with exporting(tmp_path, bench(tmp_path)) as (url, exporter), connected(url) as (_, first):
        await begin(first, "first")
        async with connected(url) as (_, second):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(begin, second, "second", None)
                    while not exporter._slot.statistics().tasks_waiting:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            while exporter._slot.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
        await lamp(first, "on")


async def test_a_client_that_is_killed_loses_the_device(tmp_path: Path, journal: list[str]) -> None:
    config = bench(tmp_path)
    async with exporting(tmp_path, config) as (url, _):
        program = (
            "import jmp, os, signal\n"
            f"with jmp.connect({url!r}) as dut:\n"
            "    dut.lamp.on()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        killed = await trio.run_process([sys.executable, "-c", program], check=False)
        assert killed.returncode == -signal.SIGKILL
        async with connected(url) as (_, caller):
            await begin(caller, "next", wait=60)
            assert await lamp(caller, "state") is False
    assert journal == ["open", "close", "open", "close"]


async def test_a_failing_hook_is_told_to_who_wanted_the_device_and_the_next_may_try(tmp_path: Path) -> None:
    config = bench(tmp_path, "hooks:\n  beforeLease: {script: 'exit 3', onFailure: endLease}\n")
    async with exporting(tmp_path, config) as (url, _), connected(url) as (_, caller):
        for _ in range(2):
            with pytest.raises(LabError, match=r"^hook beforeLease failed with exit status 3$"):
                await begin(caller, "me")


# ---- who is let in


@asynccontextmanager
async def guarded(directory: Path, passphrase: str = "open sesame") -> AsyncIterator[str]:
    """An exporter behind TLS and a passphrase."""
    context = certificate().context(directory)
    async with exporting(directory, bench(directory), "127.0.0.1:0", passphrase=passphrase, tls=context) as (url, _):
        yield url


async def test_the_passphrase_lets_in(tmp_path: Path) -> None:
    async with (
        guarded(tmp_path) as url,
        connected(url, token="open sesame", fingerprint=certificate().fingerprint) as (_, caller),
    ):
        await begin(caller, "me")
        await lamp(caller, "on")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "a passphrase is needed: --passphrase-file or JMP_PASSPHRASE"),
        ({"token": ""}, "a passphrase is needed: --passphrase-file or JMP_PASSPHRASE"),
        ({"token": "open"}, "the passphrase is wrong"),
        (
            {"token": "open sesame", "fingerprint": 64 * "0"},
            "the server's certificate is another one than expected; its",
        ),
        ({"token": "open sesame", "fingerprint": None}, "the server's certificate is not trusted: .*its fingerprint"),
    ],
)
async def test_who_is_not_let_in_is_told_why(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    async def enter(url: str) -> None:
        async with connected(url, **{"fingerprint": certificate().fingerprint, **options}):
            pass

    async with guarded(tmp_path) as url:
        with pytest.raises(Refused, match=f"^{said}"):
            await enter(url)


async def test_a_passphrase_of_any_script() -> None:
    check = serve.passphrase_check("пароль")
    with pytest.raises(Refused, match="wrong"):
        await check(UpgradeRequest("peer", "parole", {}))
    assert await check(UpgradeRequest("peer", "пароль", {})) == "peer"


# ---- listening


async def test_an_address_in_use(tmp_path: Path) -> None:
    (listener,) = await serve.listen("127.0.0.1:0")
    with listener.socket:
        address = serve.address_of(listener)
        with pytest.raises(
            LabError, match=f"^cannot listen at {address}: the address is in use: stop what listens there"
        ):
            await serve.listen(address)
    (unix,) = await serve.listen(f"unix:{tmp_path}/sock")
    with unix.socket:
        assert serve.address_of(unix) == f"unix:{tmp_path}/sock"
        with pytest.raises(LabError, match="the address is in use"):
            await serve.listen(f"unix:{tmp_path}/sock")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("unix:/proc/no/such/sock", "cannot listen at unix:/proc/no/such/sock: No such file or directory"),
        (f"unix:{'x' * 200}", "too long"),
        ("192.0.2.1:0", "cannot listen at 192.0.2.1:0: Cannot assign requested address"),
        ("no.such.host.invalid:0", "cannot listen at no.such.host.invalid:0: "),
    ],
)
async def test_an_address_that_cannot_be_had(address: str, said: str) -> None:
    with pytest.raises(LabError, match=said):
        await serve.listen(address)


async def test_a_socket_file_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "sock"
    (listener,) = await serve.listen(f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    listener.socket.close()  # as a kill does: the file stays
    (listener,) = await serve.listen(f"unix:{path}")
    listener.socket.close()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(LabError, match="the address is in use"):
        await serve.listen(f"unix:{tmp_path}/precious")
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.parametrize("kind", ["file", "abstract"])
async def test_readiness_is_told_to_the_service_manager(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "notify") if kind == "file" else f"@{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        async with exporting(tmp_path, bench(tmp_path)):
            assert manager.recv(100) == b"READY=1"


async def test_no_service_manager_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    serve.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    serve.notify("READY=1")


# ---- how it stops


async def test_once(tmp_path: Path, journal: list[str]) -> None:
    listeners = await serve.listen(f"unix:{tmp_path}/sock")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve.serve_exporter(bench(tmp_path), listeners, [], once=True))
        async with connected(f"unix:{tmp_path}/sock") as (waiting, _):
            async with connected(f"unix:{tmp_path}/sock") as (_, caller):
                await begin(caller, "me")
            assert "1001 the exporter is stopping" in (await waiting.wait_over()).message
    assert journal == ["open", "close"]


async def test_a_stopping_exporter_ends_its_session_in_order_and_says_so(tmp_path: Path, journal: list[str]) -> None:
    config = bench(tmp_path, f"hooks:\n  afterLease: {{script: 'echo $JMP_CLIENT > {tmp_path}/after'}}\n")
    said: list[str] = []

    async def use(url: str, started: trio.Event) -> None:
        async with connected(url) as (_, caller):
            await begin(caller, "me@here")
            started.set()
            with pytest.raises(LinkLost) as raised:
                await lamp(caller, "wait")
            said.append(raised.value.message)

    async with trio.open_nursery() as nursery, exporting(tmp_path, config) as (url, _):
        started = trio.Event()
        nursery.start_soon(use, url, started)
        await started.wait()
    assert journal == ["open", "close"]
    assert (tmp_path / "after").read_text() == "me@here\n"
    assert said == [
        "the link was lost during lamp.wait: the other side closed the connection: 1001 the exporter is stopping;"
        " whether it was executed is not known"
    ]


PROGRAM = "import sys; from jmp.cli import main; sys.exit(main())"


async def test_term_ends_a_process_with_status_0(tmp_path: Path) -> None:
    bench(tmp_path)
    (tmp_path / "bench.yaml").write_text(
        "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: bench}\nexport: {power: {type: mock-power}}\n"
        f"hooks: {{afterLease: {{script: 'echo ended > {tmp_path}/after'}}}}\n"
    )
    environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        await manager.bind(str(tmp_path / "notify"))
        argv = [sys.executable, "-c", PROGRAM, "exporter", "serve", "bench.yaml", "--listen", f"unix:{tmp_path}/sock"]
        process = await trio.lowlevel.open_process(argv, cwd=tmp_path, env=environ, stderr=subprocess.PIPE)
        try:
            assert await manager.recv(100) == b"READY=1"
            async with connected(f"unix:{tmp_path}/sock") as (connection, caller):
                await begin(caller, "me")
                process.send_signal(signal.SIGTERM)
                assert (await connection.wait_over()).message.endswith("1001 the exporter is stopping")
            assert await manager.recv(100) == b"STOPPING=1"
            assert await process.wait() == 0
            assert process.stderr is not None
            log = b"".join([piece async for piece in process.stderr]).decode()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()
    assert "stopping: SIGTERM" in log
    assert "Traceback" not in log
    assert (tmp_path / "after").read_text() == "ended\n"
    assert not (tmp_path / "sock").exists()


# ---- strangers, and those who are let in and misbehave


noise = random.Random(4711)
TOKEN = "open sesame"
HELLO = pack(Kind.HELLO, 0, {"version": list(VERSION), "agent": "test"})


class Rogue:
    """A client that was let in, and sends messages of its own making."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._codec = Codec(client=True, max_message=1 << 24)

    async def send(self, *parts: bytes) -> None:
        for buffer in self._codec.encode(parts):
            await self._stream.send_all(buffer)

    async def send_raw(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def close_code(self) -> int:
        """Read to the end; the code with which the exporter closes."""
        try:
            while True:
                while self._codec.next_message() is not None:
                    pass
                data = await self._stream.receive_some()
                assert data, "there was no good-bye"
                self._codec.feed(data)
        except Closed as closed:
            return closed.close_code


@asynccontextmanager
async def rogue(url: str) -> AsyncIterator[Rogue]:
    stream = await dial(url)
    async with stream:
        handshake = ClientHandshake("bench", token=TOKEN)
        await stream.send_all(handshake.request)
        while handshake.feed(await stream.receive_some(1)) is None:
            pass
        yield Rogue(stream)


async def answer(url: str, request: bytes) -> bytes:
    """What comes back when one just sends bytes."""
    async with await dial(url) as stream:
        received = bytearray()
        with suppress(trio.BrokenResourceError):
            await stream.send_all(request)
            async for data in stream:
                received += data
        return bytes(received)


async def random_bytes(url: str) -> None:
    assert (await answer(url, noise.randbytes(100_000)))[:12] in (b"HTTP/1.1 400", b"")


async def plain_http(url: str) -> None:
    said = await answer(url, b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")


async def endless_head(url: str) -> None:
    assert (await answer(url, b"GET / HTTP/1.1\r\nX: " + 20_000 * b"x")).startswith(b"HTTP/1.1 431 ")


async def another_path(url: str) -> None:
    handshake = ClientHandshake("bench", "/admin", token=TOKEN)
    assert (await answer(url, handshake.request)).startswith(b"HTTP/1.1 404 ")


async def another_subprotocol(url: str) -> None:
    request = ClientHandshake("bench", token=TOKEN).request.replace(b"jmp.v1", b"jmp.v9")
    said = await answer(url, request)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.endswith(b"this jmp speaks the WebSocket subprotocol jmp.v1 only")


async def wrong_passphrase(url: str) -> None:
    assert (await answer(url, ClientHandshake("bench", token="x").request)).startswith(b"HTTP/1.1 401 ")


def closed_with(code: int, *messages: bytes) -> Callable[[str], Awaitable[None]]:
    async def attack(url: str) -> None:
        async with rogue(url) as link:
            for message in messages:
                with suppress(trio.BrokenResourceError):
                    await link.send(message)
            assert await link.close_code() == code

    return attack


async def oversized_message(url: str) -> None:
    async with rogue(url) as link:
        await link.send_raw(bytes([0x82, 0xFF]) + (1 << 40).to_bytes(8, "big") + bytes(4))
        assert await link.close_code() == 1009


async def text_message(url: str) -> None:
    async with rogue(url) as link:
        await link.send_raw(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
        assert await link.close_code() == 1003


async def half_a_message(url: str) -> None:
    async with rogue(url) as link:
        await link.send_raw(bytes([0x82, 0xFF]) + (500_000).to_bytes(8, "big") + bytes(1004))


async def kinds_of_later_versions(url: str) -> None:
    """Passed over: the call after it is answered."""
    async with rogue(url) as link:
        later = [b"\x93" + bytes([99, 0]) + b"\xc0", b"\x92\x63\xcd\x30\x39"]
        await link.send(HELLO, *later, pack(Kind.PING, 0, b"still there?"), pack(Kind.GOAWAY, 0, 0, "bye"))
        await link.send(pack(Kind.END, 7))
        assert await link.close_code() == 1002  # stream 7 was never opened


async def more_streams_than_allowed(url: str) -> None:
    async with connected(url, token=TOKEN) as (connection, caller):
        streams = [connection.open_stream(b"\xc4") for _ in range(MAX_STREAMS + 50)]
        with pytest.raises(StreamReset) as raised:
            await streams[-1].receive_some()
        assert raised.value.code == Reset.REFUSED
        for stream in streams:
            stream.reset()
        with pytest.raises(Refused):
            await caller.call("lamp", "on", (), {})


async def more_bytes_than_allowed(url: str) -> None:
    """A stream that oversteps its window is reset, and its link goes on."""
    mux = Mux(Role.DIALLER)
    async with rogue(url) as link:
        number = mux.open(b"\xc6\x04\x00\x00\x00")  # a value of 64 MiB is on its way
        await link.send(*(bytes(part) for part in mux.outgoing()))
        for _ in range(3 * WINDOW // MAX_DATA):
            await link.send(pack(Kind.DATA, number, bytes(MAX_DATA), False))
        await link.send(pack(Kind.DATA, number + 2, b"", False))
        assert await link.close_code() == 1002


async def calls_that_are_none(url: str) -> None:
    async with connected(url, token=TOKEN) as (connection, _):
        for request in (b"\xc1", noise.randbytes(1000), b"\x00", Request("lamp", "on", (), {}).encode()[:-1]):
            with pytest.raises(StreamReset):
                await connection.open_stream(request, end=True).receive_some()


async def hostile_requests(url: str) -> None:
    async with connected(url, token=TOKEN) as (_, caller):
        for target, method in (("@session", "__init__"), ("lamp", "_exporter"), ("..", ""), ("@" * 1000, "x" * 1000)):
            with pytest.raises(Refused):
                await caller.call(target, method, (), {})


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


ATTACKS: dict[str, Callable[[str], Awaitable[None]]] = {
    "random bytes": random_bytes,
    "plain http": plain_http,
    "endless head": endless_head,
    "another path": another_path,
    "another subprotocol": another_subprotocol,
    "wrong passphrase": wrong_passphrase,
    "garbage frames": closed_with(1002, b"\xc1garbage"),
    "no hello": closed_with(1002, pack(Kind.PING, 0, b"")),
    "version": closed_with(1002, pack(Kind.HELLO, 0, {"version": [9, 0]})),
    "half a frame": closed_with(1002, HELLO + b"\x94\x01"),
    "deep nesting": closed_with(1002, nested(100_000)),
    "stream ids": closed_with(1002, HELLO + pack(Kind.OPEN, 2, b"", False)),
    "stream ids again": closed_with(1002, HELLO + 2 * pack(Kind.OPEN, 1, b"", False)),
    "credit": closed_with(1002, HELLO + pack(Kind.OPEN, 1, b"", False) + pack(Kind.CREDIT, 1, 2**62)),
    "no reader": closed_with(1009, bytes(2 << 20)),
    "oversized message": oversized_message,
    "text message": text_message,
    "half a message": half_a_message,
    "later kinds": kinds_of_later_versions,
    "many streams": more_streams_than_allowed,
    "many bytes": more_bytes_than_allowed,
    "no calls": calls_that_are_none,
    "hostile requests": hostile_requests,
}


@asynccontextmanager
async def with_somebody_at_work(directory: Path) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """An exporter with a passphrase, and a check that the session there is goes on undisturbed."""
    options = {"passphrase": TOKEN, "address": "127.0.0.1:0"}
    async with (
        exporting(directory, bench(directory), **options) as (url, _),
        connected(url, token=TOKEN) as (_, caller),
    ):
        await begin(caller, "me")
        await lamp(caller, "on")
        async with caller.open("lamp", "echo", (), {}) as echo:

            async def undisturbed() -> None:
                data = noise.randbytes(50_000)
                await echo.send_all(data)
                received = bytearray()
                while len(received) < len(data):
                    received += await echo.receive_some()
                assert received == data
                assert await lamp(caller, "state") is True

            yield url, undisturbed


@pytest.mark.parametrize("attack", ATTACKS)
async def test_hostile_input_is_refused_and_disturbs_nobody(
    attack: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_somebody_at_work(tmp_path) as (url, undisturbed):
        for _ in range(2):
            await ATTACKS[attack](url)
            await undisturbed()
    assert not [record for record in caplog.records if record.exc_info]


async def test_it_costs_no_memory(tmp_path: Path) -> None:
    async with with_somebody_at_work(tmp_path) as (url, undisturbed):

        async def each_once() -> None:
            for attack in ATTACKS.values():
                await attack(url)
            await undisturbed()

        tracemalloc.start()
        try:
            await each_once()
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(3):
                await each_once()
            while tracemalloc.get_traced_memory()[0] - before > 1 << 20:  # connections may still be about to end
                gc.collect()
                await trio.lowlevel.checkpoint()
        finally:
            tracemalloc.stop()


async def test_those_who_do_not_say_who_they_are_disturb_nobody_who_is_there(tmp_path: Path) -> None:
    async with with_somebody_at_work(tmp_path) as (url, undisturbed):
        address = parse(url)
        strangers = [await trio.open_tcp_stream(address.host, address.port) for _ in range(70)]
        for stranger in strangers:
            await stranger.send_all(b"GET / HTTP/1.1\r\n")
        await undisturbed()
        for stranger in strangers:
            await stranger.aclose()
        async with connected(url, token=TOKEN) as (_, caller):
            with pytest.raises(Busy):
                await begin(caller, "another")


async def test_a_client_of_another_version_is_told_which_side_to_update(tmp_path: Path) -> None:
    async with with_somebody_at_work(tmp_path) as (url, _), rogue(url) as link:
        await link.send(pack(Kind.HELLO, 0, {"version": [0, 9]}))
        with pytest.raises(ProtocolViolation, match="update the other side"):
            Mux(Role.LISTENER).receive(pack(Kind.HELLO, 0, {"version": [0, 9]}))
        assert await link.close_code() == 1002


async def test_a_peer_that_never_reads_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One who asks for answers and lets them pile up."""
    async with with_somebody_at_work(tmp_path) as (url, undisturbed), rogue(url) as link:
        await link.send(HELLO)
        ping = pack(Kind.PING, 0, bytes(64 * 1024))

        async def ask() -> None:
            while True:
                await link.send(*15 * [ping])

        with pytest.raises(trio.BrokenResourceError):
            await ask()
        await undisturbed()
    assert "asks for answers without reading them" in caplog.text


async def test_who_listens_may_have_as_many_connections_as_the_system_lets_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        for listener in await serve.listen("127.0.0.1:0"):
            await listener.aclose()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
