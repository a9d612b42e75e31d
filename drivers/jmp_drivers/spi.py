"""Chips on SPI buses of the exporter's machine, through the kernel's spidev."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Machine, Suggestion, export
from jmp_drivers._hex import Data, to_bytes

# linux/spi/spidev.h and linux/spi/spi.h
_CS_HIGH, _LSB_FIRST = 0x04, 0x08
_BUFFER = 4096  # bytes of a message, unless the module was told otherwise
_GONE = (errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN)


class _Transfer(ctypes.Structure):
    """One piece of a message (struct spi_ioc_transfer)."""

    _fields_ = (
        ("tx_buf", ctypes.c_uint64),
        ("rx_buf", ctypes.c_uint64),
        ("len", ctypes.c_uint32),
        ("speed_hz", ctypes.c_uint32),
        ("delay_usecs", ctypes.c_uint16),
        ("bits_per_word", ctypes.c_uint8),
        ("cs_change", ctypes.c_uint8),
        ("nbits_and_delay", ctypes.c_uint8 * 4),
    )


def _write_request(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | ord("k") << 8 | number  # _IOW


_MESSAGE = _write_request(0, ctypes.sizeof(_Transfer))
_BITS = _write_request(3, 1)
_SPEED = _write_request(4, 4)
_MODE = _write_request(5, 4)


class Spi(Driver):
    """A chip on an SPI bus of the exporter's machine: bytes are exchanged with it, by the kernel's spidev."""

    interface: ClassVar[str | None] = "jmp.spi/v1"

    device: Path = field(metadata={"doc": "such as /dev/spidev0.1: bus 0, chip select 1"})
    speed: int = field(default=1_000_000, metadata={"doc": "clock in Hz; a bus takes the nearest below that it has"})
    mode: Literal[0, 1, 2, 3] = field(default=0, metadata={"doc": "polarity (2) and phase (1) of the clock"})
    lsb_first: bool = field(default=False, metadata={"doc": "the lowest bit of a byte goes first"})
    cs_high: bool = field(default=False, metadata={"doc": "the chip is selected by a high level"})

    def __post_init__(self) -> None:
        if not 0 < self.speed < 1 << 32:
            raise ConfigError(f"speed must be 1 Hz or more, not {self.speed}")

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/class/spidev/spidev*"):
            device = f"/dev/{place.rpartition('/')[2]}"
            if machine.exists(device):
                bus, _, chip = device.removeprefix("/dev/spidev").partition(".")
                about = f"SPI bus {bus}, chip select {chip}"
                yield Suggestion(
                    "spi", {"device": device}, about, device, note="set speed and mode as its chip has them"
                )

    def open(self) -> None:
        with self._told():
            self._descriptor = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        mode = self.mode | _CS_HIGH * self.cs_high | _LSB_FIRST * self.lsb_first
        try:
            for request, value in ((_MODE, mode.to_bytes(4, "little")), (_BITS, b"\x08"), (_SPEED, self._speed())):
                with self._told():
                    fcntl.ioctl(self._descriptor, request, value)
        except DeviceError:
            os.close(self._descriptor)
            raise

    def _speed(self) -> bytes:
        return self.speed.to_bytes(4, "little")

    def close(self) -> None:
        os.close(self._descriptor)

    @export
    async def transfer(self, data: Data) -> bytes:
        """Send bytes; as many come back, each while one of them is sent."""
        sent = to_bytes(data)
        return await self._exchange(sent, len(sent))

    @export
    async def read(self, count: int, command: Data = b"") -> bytes:
        """Send a command, then read so many bytes, while the chip stays selected."""
        sent = to_bytes(command)
        if count < 1:
            raise BadValue(f"count must be 1 or more, not {count}")
        return (await self._exchange(sent, len(sent) + count))[len(sent) :]

    async def _exchange(self, sent: bytes, size: int) -> bytes:
        longest = int(Machine().text("/sys/module/spidev/parameters/bufsiz") or _BUFFER)
        if not 0 < size <= longest:
            raise BadValue(
                f"1 to {longest} bytes go in one transfer, not {size} (spidev.bufsiz on the exporter's machine)"
            )
        # Not left alone when it is given up: nobody else may close the descriptor, or talk in between, before it has ended.
        with self._told():
            return await trio.to_thread.run_sync(self._message, sent, size)

    def _message(self, sent: bytes, size: int) -> bytes:
        out = ctypes.create_string_buffer(sent, size)  # zeros after what is sent
        back = ctypes.create_string_buffer(size)
        piece = _Transfer(tx_buf=ctypes.addressof(out), rx_buf=ctypes.addressof(back), len=size)
        fcntl.ioctl(self._descriptor, _MESSAGE, piece)
        return back.raw

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DeviceError:
        match error.errno:
            case errno.ENOENT:
                there = ", ".join(Machine().glob("/dev/spidev*"))
                why = f"there is none; {f'present: {there}' if there else 'is spidev on for it in the device tree?'}"
            case errno.EINVAL:
                why = "its bus cannot do this mode or speed"
            case errno.ENOTTY:
                why = "it is no spidev"
            case number if number in _GONE:
                why = "it is gone"
                self.lost(f"SPI device {self.device}: {why}")
            case _:
                why = error.strerror or str(error)
        return DeviceError(f"SPI device {self.device}: {why}")
