"""A CAN bus: frames out and in."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import field
from typing import Any, ClassVar, Literal

import can
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Machine, Suggestion, check_seconds, export
from jmp_drivers._hex import Data, to_bytes

_UNREAD = 10_000  # frames that a watcher may leave unread
_SLICE = (
    0.5  # seconds that a reading thread is deaf to the end of the session; only adapters without a descriptor need it
)

Scalar = str | int | float | bool


class CanOptions(Driver):
    """The configuration of whatever is on a CAN bus."""

    adapter: str = field(
        default="socketcan",
        metadata={"key": "interface", "doc": "python-can's name of the adapter: socketcan, slcan, pcan, …"},
    )
    channel: str = field(default="can0", metadata={"doc": "which one: can0, /dev/ttyUSB0, …"})
    bitrate: int | None = field(
        default=None, metadata={"doc": "bit/s; for socketcan it is set outside: ip link set can0 type can bitrate …"}
    )
    fd: bool = field(default=False, metadata={"doc": "CAN FD: frames of up to 64 bytes"})
    options: dict[str, Scalar] = field(default_factory=dict, metadata={"doc": "what else python-can's adapter takes"})

    def __post_init__(self) -> None:
        if self.bitrate is not None and self.bitrate <= 0:
            raise ConfigError(f"bitrate must be more than 0, not {self.bitrate}")
        if self.adapter not in can.interfaces.VALID_INTERFACES:
            known = ", ".join(sorted(can.interfaces.VALID_INTERFACES))
            raise ConfigError(f"interface {self.adapter!r} is none of python-can's: {known}")

    @property
    def _name(self) -> str:
        return f"CAN bus {self.channel} ({self.adapter})"

    def _bus_failed(self, error: BaseException) -> None:
        """The bus is gone: so is the driver, until it can be opened again. From any thread."""
        self.lost(f"{self._name}: {_explain(error)}")

    def _open_bus(self) -> can.BusABC:
        """Blocks. Raises `DeviceError`."""
        options: dict[str, Any] = dict(self.options) | ({"bitrate": self.bitrate} if self.bitrate is not None else {})
        if self.fd:
            options["fd"] = True
        try:
            if self.adapter == "socketcan":
                socket.if_nametoindex(self.channel)  # or else python-can leaves its socket to the garbage collector
            return can.Bus(interface=self.adapter, channel=self.channel, **options)
        except (can.CanError, OSError, ImportError, NotImplementedError, ValueError, TypeError) as error:
            raise DeviceError(f"{self._name}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "No such device" in text or "no interface with this name" in text:
        return "there is no such interface (ip link shows those that there are)"
    if "Address family not supported" in text:
        return "this machine's kernel has no CAN"
    if "Network is down" in text:
        return "the interface is down (ip link set up)"
    return text


class Can(CanOptions):
    """A CAN bus: frames are sent, received, repeated and watched."""

    interface: ClassVar[str | None] = "jmp.can/v1"

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/class/net/*"):
            if machine.text(f"{place}/type") == "280":  # linux/if_arp.h: ARPHRD_CAN
                name = place.rpartition("/")[2]
                about = machine.about(f"{place}/device", "CAN interface")
                yield Suggestion(
                    "can", {"channel": name}, about, name, note="bit rate: ip link set … type can bitrate …"
                )

    async def open(self) -> None:
        self._bus = await trio.to_thread.run_sync(self._open_bus)
        self._closing = threading.Event()
        self._read_all = trio.Event()
        self._watchers: set[trio.MemorySendChannel[can.Message]] = set()
        self._repeated: dict[int, can.CyclicSendTaskABC] = {}
        try:
            descriptor = self._bus.fileno()
        except (NotImplementedError, OSError):
            descriptor = -1
        self._descriptor = descriptor
        self.nursery.start_soon(self._keep_reading)

    async def close(self) -> None:
        self._closing.set()
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
        await self._read_all.wait()
        await trio.to_thread.run_sync(self._bus.shutdown)

    @export
    async def send(
        self, id: int, data: Data = b"", extended: bool | None = None, fd: bool = False, remote: bool = False
    ) -> None:
        """Send a frame. An id above 0x7ff is an extended one unless told otherwise."""
        await self._send(self._frame(id, data, extended, fd=fd, remote=remote))

    @export
    async def repeat(self, id: int, data: Data = b"", period: float = 0.1, extended: bool | None = None) -> None:
        """Send a frame again and again, every so many seconds, until `stop` or the end of the session.

        Again for the same id replaces it.
        """
        if not 0.001 <= period < math.inf:
            raise BadValue(f"period must be 0.001 seconds or more, not {period:g}")
        frame = self._frame(id, data, extended)
        await self.stop(id)
        try:
            self._repeated[id] = self._bus.send_periodic(frame, period)
        except (can.CanError, OSError) as error:
            raise self._failed(error) from error

    @export
    async def stop(self, id: int | None = None) -> None:
        """Repeat a frame no longer, or none at all."""
        for number in [id] if id is not None else list(self._repeated):
            if (task := self._repeated.pop(number, None)) is not None:
                await trio.to_thread.run_sync(task.stop)

    @export
    async def watch(self, id: int | None = None, mask: int = 0x1FFFFFFF) -> AsyncIterator[dict[str, Any]]:
        """The frames that come: all, or those whose id is `id` in the bits of `mask`."""
        async with self._hearing() as frames:
            async for frame in frames:
                if id is None or frame.arbitration_id & mask == id & mask:
                    yield _told(frame)
            raise DeviceError(f"more than {_UNREAD} frames were not read")

    @export
    async def request(
        self, id: int, data: Data, answer: int, seconds: float = 1.0, extended: bool | None = None
    ) -> bytes:
        """Send a frame, and wait so many seconds for one with the id `answer`: its data."""
        check_seconds("seconds", seconds)
        frame = self._frame(id, data, extended)
        async with self._hearing() as frames:
            await self._send(frame)
            with trio.move_on_after(seconds):
                async for each in frames:
                    if each.arbitration_id == answer:
                        return bytes(each.data)
        raise DeviceError(f"{self._name}: nothing with the id {answer:#x} came within {seconds:g} s")

    # ---- within

    def _frame(
        self, id: int, data: Data, extended: bool | None, *, fd: bool = False, remote: bool = False
    ) -> can.Message:
        if fd and not self.fd:
            raise BadValue("the bus is not configured for CAN FD: fd: true")
        content = to_bytes(data)
        try:
            return can.Message(
                arbitration_id=id,
                data=content,
                is_extended_id=id > 0x7FF if extended is None else extended,
                is_fd=fd,
                is_remote_frame=remote,
                check=True,
            )
        except ValueError as error:
            raise BadValue(f"no frame can be so: {error}") from error

    async def _send(self, frame: can.Message) -> None:
        try:
            await trio.to_thread.run_sync(self._bus.send, frame, 1.0)
        except (can.CanError, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> DeviceError:
        failure = DeviceError(f"{self._name}: {_explain(error)}")
        if any(sign in str(error) for sign in ("No such device", "Network is down")):
            self.lost(failure.message)
        return failure

    def _hearing(self) -> _Hearing:
        return _Hearing(self._watchers)

    async def _keep_reading(self) -> None:
        try:
            if self._descriptor >= 0:
                while True:
                    await trio.lowlevel.wait_readable(self._descriptor)
                    while (frame := self._bus.recv(0)) is not None:
                        self._take(frame)
            else:
                await trio.to_thread.run_sync(self._read_in_thread, limiter=trio.CapacityLimiter(1))
        except trio.ClosedResourceError:
            pass
        except (can.CanError, OSError) as error:
            self._bus_failed(error)
        finally:
            self._read_all.set()

    def _read_in_thread(self) -> None:
        while not self._closing.is_set():
            frame = self._bus.recv(_SLICE)
            if frame is not None:
                trio.from_thread.run_sync(self._take, frame)

    def _take(self, frame: can.Message) -> None:
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(frame)
            except trio.WouldBlock:
                self._watchers.discard(watcher)
                watcher.close()


class _Hearing:
    """The frames that come while the block runs."""

    def __init__(self, watchers: set[trio.MemorySendChannel[can.Message]]) -> None:
        self._watchers = watchers

    async def __aenter__(self) -> trio.MemoryReceiveChannel[can.Message]:
        self._send, receive = trio.open_memory_channel[can.Message](_UNREAD)
        self._watchers.add(self._send)
        return receive

    async def __aexit__(self, *_: object) -> Literal[False]:
        self._watchers.discard(self._send)
        return False


def _told(frame: can.Message) -> dict[str, Any]:
    """A frame as clients get it: only what is so."""
    flags = {
        "extended": frame.is_extended_id,
        "fd": frame.is_fd,
        "remote": frame.is_remote_frame,
        "error": frame.is_error_frame,
    }
    return {
        "id": frame.arbitration_id,
        "data": bytes(frame.data),
        "time": frame.timestamp,
        **{name: True for name, is_so in flags.items() if is_so},
    }
