"""TFTP as bytes and numbers (RFC 1350, 2347, 2348, 2349, 7440): the side of a server that sends files."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_HEAD = struct.Struct(">HH")
_BLOCKS = 1 << 16  # block numbers begin again after so many


class Opcode(enum.IntEnum):
    READ = 1
    WRITE = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OPTIONS = 6


class ErrorCode(enum.IntEnum):
    OTHER = 0
    NOT_FOUND = 1
    REFUSED = 2
    ILLEGAL = 4


class Malformed(Exception):
    """A packet that is none, or has no place here."""


@dataclass(frozen=True)
class Request:
    """What begins a transfer. Both modes are served alike: bytes as they are."""

    opcode: Opcode
    name: str
    options: Mapping[str, str]


def parse_request(packet: bytes) -> Request:
    """Raises `Malformed`."""
    opcode = int.from_bytes(packet[:2], "big")
    parts = packet[2:].split(b"\0")
    if opcode not in (Opcode.READ, Opcode.WRITE) or len(parts) < 3 or parts.pop() or not parts[0]:
        raise Malformed("this is no request for a file")
    name, mode, *rest = (part.decode("utf-8", "replace") for part in parts)
    if mode.lower() not in ("octet", "netascii"):
        raise Malformed(f"mode {mode!r} is not known here")
    pairs = zip(rest[::2], rest[1::2], strict=False)
    return Request(Opcode(opcode), name, {key.lower(): value for key, value in pairs})


@dataclass(frozen=True)
class Terms:
    """How a transfer goes."""

    block: int = 512
    """Bytes in a block."""
    window: int = 1
    """Blocks sent before one is acknowledged."""
    timeout: float = 1.0
    """Seconds until what was not acknowledged is sent again."""
    accepted: Mapping[str, str] = field(default_factory=dict)
    """The options as the server answers them; none: there is no such answer."""


def negotiate(options: Mapping[str, str], size: int) -> Terms:
    """What the server makes of the options it is asked for; those it does not know, or that make no sense, it leaves out."""
    accepted: dict[str, str] = {}
    if "tsize" in options and size:  # curl takes 0 for an error
        accepted["tsize"] = str(size)
    for name, low, high in (("blksize", 8, 65464), ("windowsize", 1, 64), ("timeout", 1, 255)):
        value = options.get(name, "")
        if (
            value.isascii()
            and value.isdecimal()
            and int(value) >= low
            and not (name == "timeout" and int(value) > high)
        ):
            accepted[name] = str(min(int(value), high))
    return Terms(
        int(accepted.get("blksize", 512)),
        int(accepted.get("windowsize", 1)),
        float(accepted.get("timeout", 1)),
        accepted,
    )


class Sending:
    """Which blocks of a file are to be sent. They count from 1; the last one is shorter than the others, or empty."""

    def __init__(self, size: int, terms: Terms) -> None:
        self._terms = terms
        self._last = size // terms.block + 1
        self._acknowledged = 0 if not terms.accepted else -1  # the answer to the options is block 0

    @property
    def over(self) -> bool:
        """Whether the last block was acknowledged."""
        return self._acknowledged == self._last

    def due(self) -> Iterator[tuple[int, int]]:
        """Block and its place in the file, for all that are to be sent now; block 0 is the answer to the options."""
        if self._acknowledged < 0:
            yield 0, 0
            return
        for block in range(self._acknowledged + 1, min(self._acknowledged + self._terms.window, self._last) + 1):
            yield block, (block - 1) * self._terms.block

    def take(self, packet: bytes) -> bool:
        """Take what the receiver sent; whether something is due because of it.

        What has been acknowledged before is not sent again for that alone: each copy would make two of all that follows.
        Raises `Malformed` if the receiver gives up, or is none.
        """
        if len(packet) < _HEAD.size:
            raise Malformed("a packet without an end")
        opcode, number = _HEAD.unpack_from(packet)
        if opcode == Opcode.ERROR:
            raise Malformed(packet[_HEAD.size :].rstrip(b"\0").decode("utf-8", "replace") or f"error {number}")
        if opcode != Opcode.ACK:
            raise Malformed("this is no acknowledgement")
        step = (number - self._acknowledged) % _BLOCKS
        if not 0 < step <= len(list(self.due())):
            return False
        self._acknowledged += step
        return not self.over


def data(block: int, content: bytes) -> bytes:
    return _HEAD.pack(Opcode.DATA, block % _BLOCKS) + content


def answer(accepted: Mapping[str, str]) -> bytes:
    """The answer to a request's options."""
    texts = b"".join(f"{name}\0{value}\0".encode() for name, value in accepted.items())
    return Opcode.OPTIONS.to_bytes(2, "big") + texts


def error(code: ErrorCode, message: str) -> bytes:
    return _HEAD.pack(Opcode.ERROR, code) + message.encode() + b"\0"
