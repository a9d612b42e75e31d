"""QEMU's machine protocol (QMP): JSON lines over a socket.

`Protocol` is the protocol without I/O: bytes in, messages out. `Qmp` puts it on a Trio socket: one reader task, any number of
callers. The dialogue: QEMU greets, we send ``qmp_capabilities``, from then on each command gets one reply with the command's
id (in any order), and events arrive in between.
"""

from __future__ import annotations

import json
import socket
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import trio

from jmp.errors import BadValue, DeviceError, JmpError, NotFound

MAX_LINE = 16 * 1024 * 1024
"""Bytes; the longest reply known, ``query-qmp-schema``, has a quarter of a megabyte."""


@dataclass(frozen=True)
class Greeting:
    """The first line: QEMU is there."""

    version: str


@dataclass(frozen=True)
class Reply:
    """A command's result."""

    id: int
    value: Any


@dataclass(frozen=True)
class Failure:
    """A command's error; `kind` is QEMU's class of it, in practice ``GenericError`` or ``CommandNotFound``."""

    id: int | None
    kind: str
    text: str


@dataclass(frozen=True)
class Event:
    """Something happened in QEMU by itself, at `when` (seconds since 1970)."""

    name: str
    data: dict[str, Any]
    when: float


Message = Greeting | Reply | Failure | Event


class Protocol:
    """Both directions of one QMP connection, as bytes."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._last_id = 0

    def command(self, name: str, arguments: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """A command's id and the line to send. Raises `BadValue` if JSON has no way to write the arguments."""
        self._last_id += 1
        message = {"execute": name, "arguments": dict(arguments or {}), "id": self._last_id}
        try:
            return self._last_id, json.dumps(message, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise BadValue(f"arguments of {name}: {error}; QMP takes what JSON can express") from error

    def receive(self, data: bytes | bytearray) -> list[Message]:
        """The messages that are complete with `data`, oldest first. Raises `DeviceError` for what is not QMP."""
        self._input += data
        *lines, rest = self._input.split(b"\n")
        if len(rest) > MAX_LINE:
            raise DeviceError(f"QEMU's monitor sent a line of more than {MAX_LINE} bytes")
        self._input = bytearray(rest)
        return [_parse(bytes(line)) for line in lines if line.strip()]


def _parse(line: bytes) -> Message:
    try:
        match json.loads(line):
            case {"QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": micro}}}}:
                return Greeting(f"{major}.{minor}.{micro}")
            case {"return": value, "id": int(id)}:
                return Reply(id, value)
            case {"error": {"class": str(kind), "desc": str(text)}} as message:
                return Failure(message.get("id"), kind, text)
            case {"event": str(name), "timestamp": {"seconds": seconds, "microseconds": micros}} as message:
                return Event(name, message.get("data", {}), seconds + micros / 1e6)
    except ValueError:  # not JSON
        pass
    raise DeviceError(f"QEMU's monitor sent something that is not QMP: {line[:200]!r}")


@dataclass(eq=False)
class _Call:
    done: trio.Event = field(default_factory=trio.Event)
    answer: Reply | Failure | None = None  # None when done: the connection has ended


class Qmp:
    """A QMP connection over a Unix socket; `run` must be running for anything to be answered.

    `on_event` is called with each event in the reader task and must not wait. Any number of tasks may `execute` at once.
    """

    def __init__(self, stream: trio.SocketStream, on_event: Callable[[Event], None]) -> None:
        self._stream = stream
        self._on_event = on_event
        self._protocol = Protocol()
        self._calls: dict[int, _Call] = {}
        self._jobs: dict[str, trio.Event] = {}  # set once it has ended
        self._names = count(1)
        self._greeted = trio.Event()
        self._ended = False
        self._sending = trio.Lock()
        self._passing = trio.Lock()

    async def run(self) -> None:
        """Read until QEMU closes the connection, then fail what still waits for a reply. The socket is closed at the end."""
        try:
            async with self._stream:
                async for data in self._stream:
                    for message in self._protocol.receive(data):
                        self._handle(message)
        except trio.BrokenResourceError:  # QEMU was killed while it had unread input
            pass
        finally:
            self._ended = True
            self._greeted.set()
            for call in self._calls.values():
                call.done.set()
            for ended in self._jobs.values():
                ended.set()

    async def negotiate(self) -> None:
        """Wait for QEMU's greeting and enter command mode. Raises `DeviceError` if QEMU ends before."""
        await self._greeted.wait()
        await self.execute("qmp_capabilities")

    async def execute(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command and return its value.

        Raises `NotFound` for an unknown command, `BadValue` for arguments that are no JSON, `DeviceError` for the errors
        that QEMU reports and if QEMU ends. When cancelled, QEMU still carries the command out and its reply is dropped.
        """
        return await self._call(name, arguments, None)

    async def run_job(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Run a command that starts a job of QEMU's, until that has ended. Raises what `execute` does.

        When cancelled, QEMU still carries the job out.
        """
        job = f"{name}-{next(self._names)}"
        ended = self._jobs[job] = trio.Event()
        try:
            await self.execute(name, {**arguments, "job-id": job})
            await ended.wait()
            (mine,) = [each for each in await self.execute("query-jobs") if each["id"] == job]
            await self.execute("job-dismiss", {"id": job})
        finally:
            del self._jobs[job]
        if "error" in mine:
            raise DeviceError(f"QEMU's {name} failed: {mine['error']}")

    async def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of a file descriptor, under a name that the next command refers to."""
        # QEMU keeps only the descriptors that came last until a command takes them: one at a time.
        async with self._passing:
            await self._call("getfd", {"fdname": name}, descriptor)

    async def _call(self, name: str, arguments: Mapping[str, Any] | None, descriptor: int | None) -> Any:
        id, line = self._protocol.command(name, arguments)
        call = self._calls[id] = _Call()
        try:
            await self._send(line, descriptor)
            if not self._ended:
                await call.done.wait()
        finally:
            del self._calls[id]
        match call.answer:
            case Reply(value=value):
                return value
            case Failure() as failure:
                raise _error(name, failure)
            case None:
                raise DeviceError(f"QEMU ended before it answered {name}")

    async def _send(self, line: bytes, descriptor: int | None) -> None:
        # Shielded: half a line would spoil every later command. QEMU always reads its monitor; if it is stuck, it gets
        # killed, and that ends the wait as well.
        with trio.CancelScope(shield=True):
            async with self._sending:
                try:
                    if descriptor is not None:
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
                        await self._stream.socket.sendmsg([line[:1]], [rights])
                        line = line[1:]
                    await self._stream.send_all(line)
                except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                    self._ended = True  # what arrived before still gets read, this call gets no answer

    def _handle(self, message: Message) -> None:
        match message:
            case Greeting():
                self._greeted.set()
            case Event():
                if message.name == "JOB_STATUS_CHANGE" and message.data["status"] == "concluded":
                    self._jobs.get(message.data["id"], trio.Event()).set()
                self._on_event(message)
            case Reply(id=id) | Failure(id=int(id)):
                if call := self._calls.get(id):  # else its caller has been cancelled
                    call.answer = message
                    call.done.set()
            case Failure():
                raise DeviceError(f"QEMU's monitor did not understand us: {message.text}")


def _error(command: str, failure: Failure) -> JmpError:
    if failure.kind == "CommandNotFound":
        return NotFound(f"QEMU has no command {command}; query-commands lists them")
    return DeviceError(f"QEMU refused {command}: {failure.text}")
