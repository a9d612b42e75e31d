"""Disks and cards of the exporter's machine, and cards behind a multiplexer."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import field
from fcntl import ioctl
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import ClassVar, Literal, TypeVar

import trio

from jmp.driver import ConfigError, DeviceError, Machine, Suggestion, export
from jmp_drivers._process import leashed, relay
from jmp_drivers._size import parse_size, show_size
from jmp_drivers.medium import Content, Medium

T = TypeVar("T")

_REREAD_PARTITIONS = 0x125F  # BLKRRPART, linux/fs.h
_AGAIN = 0.2  # seconds between looks at a card reader: a card that comes gives no event that every reader has


class _Disk:
    """An open block device."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.size = os.lseek(descriptor, 0, os.SEEK_END)
        self._descriptor = descriptor
        self._name = name

    async def read(self, offset: int, length: int) -> bytes:
        data = await self._run(os.pread, length, offset)
        if not data:
            raise DeviceError(f"{self._name} ends at byte {offset}: has it been taken out?")
        return data

    async def write(self, offset: int, data: bytes) -> None:
        while data:
            written = await self._run(os.pwrite, data, offset)
            data = data[written:]
            offset += written

    async def flush(self) -> None:
        await self._run(os.fsync)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        """Call ``function(descriptor, …)`` in a thread, which is never abandoned."""
        try:
            return await trio.to_thread.run_sync(function, self._descriptor, *args)
        except OSError as error:
            raise DeviceError(f"{self._name}: {error.strerror}") from error


class BlockDevice(Medium):
    """A disk, a USB stick or a card in a reader of the exporter's machine.

    What is mounted or otherwise in use is not touched. What is written is read back from the device itself.
    """

    noun: ClassVar[str] = "device"

    path: Path = field(metadata={"doc": "best a name below /dev/disk/by-id or by-path, which stays the same"})
    max_size: int | str | None = field(
        default=None, metadata={"doc": "a device with more bytes (or 64G, …) is refused: it is another one"}
    )

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise ConfigError(f"path must begin with /dev, not {str(self.path)!r}")
        self._limit = (
            math.inf
            if self.max_size is None
            else (parse_size(self.max_size) if isinstance(self.max_size, str) else self.max_size)
        )

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/class/block/*"):
            name = place.rpartition("/")[2]
            sectors = int(machine.text(f"{place}/size") or 0)  # 0: gone, or a reader without a card
            whole = not machine.exists(f"{place}/partition") and sectors > 0
            # The machine's own disks are neither.
            plugged = machine.text(f"{place}/removable") == "1" or machine.usb(place) is not None
            if whole and plugged and machine.exists(f"/dev/{name}"):
                path = machine.link_to(f"/dev/{name}", "/dev/disk/by-id/*")
                about = f"{machine.about(place, 'removable disk')}, {show_size(sectors * 512)}"
                note = "what is flashed replaces its content"
                yield Suggestion("storage", {"path": path}, about, f"/dev/{name}", note=note)

    async def open(self) -> None:
        if isinstance(problem := await trio.to_thread.run_sync(self._look), str):
            raise DeviceError(problem)

    @asynccontextmanager
    async def opened(self, *, writing: bool) -> AsyncIterator[Content]:
        descriptor = await trio.to_thread.run_sync(self._open, writing)
        try:
            yield _Disk(descriptor, str(self.path))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_close, descriptor, writing)

    def _look(self) -> str | None:
        """What is wrong with it, if anything."""
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            return f"{self.path}: {error.strerror}; is it plugged in?"
        return None if stat.S_ISBLK(mode) else f"{self.path} is no block device"

    def _open(self, writing: bool) -> int:
        if problem := self._look():
            raise DeviceError(problem)
        try:
            descriptor = os.open(self.path, os.O_CLOEXEC | (os.O_RDWR | os.O_EXCL if writing else os.O_RDONLY))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceError(f"{self.path} is in use: {_users(self.path.resolve())}") from error
            raise DeviceError(f"{self.path}: {error.strerror}") from error
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if not size:
                raise DeviceError(f"{self.path} has no medium in it")
            if size > self._limit:
                raise DeviceError(f"{self.path} has {size} bytes, more than max_size: it is another one than was meant")
            if not writing:  # what is in memory tells nothing of what the device holds
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


class SdMux(BlockDevice):
    """A card that a multiplexer, worked by commands, gives to the exporter's machine or to the device under test.

    Reading and writing switch it to the exporter's machine and back. ``host`` keeps it there until ``device``.
    """

    noun: ClassVar[str] = "card"

    to_host: str | list[str] = field(metadata={"doc": "command that gives the card to the exporter's machine"})
    to_device: str | list[str] = field(metadata={"doc": "command that gives it to the device under test"})
    patience: float = field(default=20.0, metadata={"doc": "seconds until the card has to appear, and for a command"})

    _kept: bool = field(init=False, default=False)
    _where: Literal["host", "device", "unknown"] = field(init=False, default="unknown")
    _card_size: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("to_host", "to_device"):
            if not getattr(self, key):
                raise ConfigError(f"{key} must not be empty")
        if not 0 < self.patience < math.inf:
            raise ConfigError(f"patience must be more than 0 seconds, not {self.patience:g}")

    async def open(self) -> None:
        await self._switch("device")

    async def close(self) -> None:
        if self._where != "device":
            await self._switch("device")

    @asynccontextmanager
    async def opened(self, *, writing: bool) -> AsyncIterator[Content]:
        try:
            await self._to_host()
            async with super().opened(writing=writing) as content:
                self._card_size = content.size
                yield content
        finally:
            if not self._kept:
                with trio.CancelScope(shield=True):
                    await self._switch("device")

    async def size(self) -> int:
        """Size of the card in bytes."""
        return self._card_size or await super().size()

    @export
    async def host(self) -> None:
        """Give the card to the exporter's machine, and keep it there."""
        async with self._opened():
            self._kept = True

    @export
    async def device(self) -> None:
        """Give the card to the device under test."""
        self._kept = False
        async with self._opened():  # which gives it back at its end
            pass

    @export
    async def where(self) -> Literal["host", "device", "unknown"]:
        """Where the card is: at the host or the device."""
        return self._where

    async def _to_host(self) -> None:
        if self._where != "host":
            await self._switch("host")
        with trio.move_on_after(self.patience):
            while True:
                try:
                    os.close(await trio.to_thread.run_sync(self._open, False))
                    return
                except DeviceError as error:
                    problem = error.message
                await trio.sleep(_AGAIN)
        raise DeviceError(f"the card did not appear within {self.patience:g} s: {problem}")

    async def _switch(self, side: Literal["host", "device"]) -> None:
        command = self.to_host if side == "host" else self.to_device
        self._where = "unknown"
        said: list[bytes] = []

        async def keep(_: str, data: bytes) -> None:
            said.append(data)

        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        with trio.move_on_after(self.patience) as scope:
            async with leashed(argv, stdout=PIPE, stderr=STDOUT) as process:
                status = await relay(process, keep)
        if scope.cancelled_caught:
            raise DeviceError(f"to_{side}: {argv[0]} did not end within {self.patience:g} s")
        if status:
            last = b"".join(said).decode(errors="replace").strip().splitlines()[-1:]
            raise DeviceError(f"to_{side}: ended with status {status}: {last[0] if last else 'it said nothing'}")
        self._where = side


class SdWire(SdMux):
    """An SDWire, or another card multiplexer that ``sd-mux-ctrl`` knows."""

    serial: str = field(metadata={"doc": "its serial number, as `sd-mux-ctrl --list` shows it"})
    to_host: str | list[str] = field(init=False, default="")
    to_device: str | list[str] = field(init=False, default="")

    def __post_init__(self) -> None:
        program = ["sd-mux-ctrl", f"--device-serial={self.serial}"]
        self.to_host, self.to_device = [*program, "--ts"], [*program, "--dut"]
        super().__post_init__()


def _close(descriptor: int, written: bool) -> None:
    if written:
        with suppress(OSError):  # it has none, or is no disk that has
            ioctl(descriptor, _REREAD_PARTITIONS)
    os.close(descriptor)


def _users(device: Path) -> str:
    """Who has the device, or a part of it."""
    own = Path("/sys/class/block", device.name)
    names = {device.name, *(each.parent.name for each in own.glob("*/partition"))}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, *_ = line.split(" ")
        if source.startswith("/dev/") and Path(source).resolve().name in names:
            return f"{source} is mounted at {place.encode().decode('unicode_escape')}; unmount it first"
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        if Path(line.split()[0]).name in names:
            return f"{line.split()[0]} is used for swapping"
    holders = [each.name for name in names for each in Path("/sys/class/block", name, "holders").glob("*")]
    return f"{', '.join(holders)} is made of it" if holders else "another program has it open"
