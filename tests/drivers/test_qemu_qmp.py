from __future__ import annotations

import json
import math
import os
import socket
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import BadValue, DeviceError, NotFound
from jmp_drivers.qemu.qmp import MAX_LINE, Event, Failure, Greeting, Protocol, Qmp, Reply

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'
)
RESET = b'{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "RESET", "data": {"guest": true}}\r\n'

# ---- the protocol without I/O


def test_commands_are_numbered_json_lines() -> None:
    protocol = Protocol()
    first, line = protocol.command("stop")
    second, other = protocol.command("eject", {"id": "cd0", "force": True})
    assert json.loads(line) == {"execute": "stop", "arguments": {}, "id": first}
    assert json.loads(other) == {"execute": "eject", "arguments": {"id": "cd0", "force": True}, "id": second}
    assert first != second
    assert line.endswith(b"\n")


@pytest.mark.parametrize("value", [b"bytes", math.nan, {1, 2}])
def test_arguments_must_be_json(value: object) -> None:
    with pytest.raises(BadValue, match="arguments of qom-set"):
        Protocol().command("qom-set", {"value": value})


def test_every_kind_of_message() -> None:
    lines = (
        GREETING
        + RESET
        + b'{"return": {"status": "running"}, "id": 1}\r\n'
        + b'{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}\r\n'
        + b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'
    )
    assert Protocol().receive(lines) == [
        Greeting("7.2.22"),
        Event("RESET", {"guest": True}, 1700000000.25),
        Reply(1, {"status": "running"}),
        Failure(2, "CommandNotFound", "The command x has not been found"),
        Failure(None, "GenericError", "JSON parse error"),
    ]


@given(st.data())
def test_messages_may_arrive_in_any_pieces(data: st.DataObject) -> None:
    lines = GREETING + RESET + RESET
    protocol = Protocol()
    messages = []
    while lines:
        size = data.draw(st.integers(1, len(lines)))
        messages += protocol.receive(lines[:size])
        lines = lines[size:]
    assert [type(message) for message in messages] == [Greeting, Event, Event]


@pytest.mark.parametrize("line", [b"hello\n", b"\xff\n", b"[]\n", b"{}\n", b'{"QMP": 1}\n', b'{"return": 1}\n'])
def test_what_is_not_qmp_is_an_error_of_the_device(line: bytes) -> None:
    with pytest.raises(DeviceError, match="not QMP"):
        Protocol().receive(line)


def test_a_line_has_a_limit() -> None:
    with pytest.raises(DeviceError, match="line of more than"):
        Protocol().receive(b" " * (MAX_LINE + 1))


# ---- on a socket: these tests play QEMU


class Peer:
    """QEMU's end of the connection, in the hands of a test."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._input = b""

    async def command(self) -> tuple[str, int]:
        while b"\n" not in self._input:
            self._input += await self.stream.receive_some()
        line, self._input = self._input.split(b"\n", 1)
        message = json.loads(line)
        return message["execute"], message["id"]

    async def say(self, **message: object) -> None:
        await self.stream.send_all(json.dumps(message).encode() + b"\r\n")


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Qmp, Peer, list[Event]]]:
    ours, theirs = socket.socketpair()
    events: list[Event] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            peer = Peer(theirs)
            qmp = Qmp(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), events.append)
            nursery.start_soon(qmp.run)
            async with peer.stream:
                yield qmp, peer, events


async def test_the_handshake_comes_first() -> None:
    async with connected() as (qmp, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(qmp.negotiate)
        await peer.stream.send_all(GREETING)
        name, id = await peer.command()
        assert name == "qmp_capabilities"
        await peer.say(**{"return": {}, "id": id})


async def test_replies_find_their_callers_in_any_order() -> None:
    answers: dict[str, str] = {}

    async def ask(name: str) -> None:
        answers[name] = await qmp.execute(name)

    async with connected() as (qmp, peer, events), trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(ask, name)
        asked = [await peer.command() for _ in range(3)]
        await peer.stream.send_all(RESET)
        for name, id in reversed(asked):
            await peer.say(**{"return": name.upper(), "id": id})
    assert answers == {"a": "A", "b": "B", "c": "C"}
    assert [event.name for event in events] == ["RESET"]


@pytest.mark.parametrize(("kind", "error"), [("GenericError", DeviceError), ("CommandNotFound", NotFound)])
async def test_errors_are_told_apart(kind: str, error: type[Exception]) -> None:
    async with connected() as (qmp, peer, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(error, match="eject"):
                await qmp.execute("eject")

        nursery.start_soon(ask)
        _, id = await peer.command()
        await peer.say(id=id, error={"class": kind, "desc": "Device 'cd0' is locked"})


async def test_the_end_of_qemu_fails_what_waits_and_what_comes_later() -> None:
    async with connected() as (qmp, peer, _):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(DeviceError, match="QEMU ended before it answered stop"):
                    await qmp.execute("stop")

            nursery.start_soon(ask)
            await peer.command()
            await peer.stream.aclose()
        with pytest.raises(DeviceError, match="QEMU ended before it answered cont"):
            await qmp.execute("cont")


async def test_a_caller_that_gives_up_does_not_disturb_the_next() -> None:
    async with connected() as (qmp, peer, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(qmp.execute, "slow")
            _, slow = await peer.command()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await qmp.execute("quick") == 2

            nursery.start_soon(ask)
            _, quick = await peer.command()
            await peer.say(**{"return": 1, "id": slow})
            await peer.say(**{"return": 2, "id": quick})


async def test_a_descriptor_travels_with_its_command() -> None:
    reading, writing = os.pipe()
    async with connected() as (qmp, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(qmp.pass_descriptor, "pipe", writing)
        data, rights, _, _ = await peer.stream.socket.recvmsg(1, socket.CMSG_SPACE(4))
        peer._input = data
        name, id = await peer.command()
        assert name == "getfd"
        await peer.say(**{"return": {}, "id": id})
        received = array("i", rights[0][2])[0]
        os.write(received, b"through")
    assert os.read(reading, 100) == b"through"
    for descriptor in (reading, writing, received):
        os.close(descriptor)
