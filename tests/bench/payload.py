"""What is sent in the benches, and how what arrives is checked: the same for all who take part. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
TEXT = "0123456789abcdef" * 4
"""The argument of a call, and each item of a stream: 64 characters."""
BLOCK = random.Random(7).randbytes(64 * 1024)
"""The bytes that byte streams carry, over and over."""
ORDER = 16
"""Bytes of the order with which a byte stream begins."""


def order(what: str, size: int = 0) -> bytes:
    """What the other end is to do: ``u`` read so many bytes, check them, and answer one byte; ``d`` send as many; ``e`` echo."""
    return f"{what}{size:015d}".encode()


def read_order(data: bytes) -> tuple[str, int]:
    text = data.decode()
    return text[0], int(text[1:])


def blocks(size: int) -> Iterator[bytes]:
    """``size`` bytes (a whole number of blocks) in the pieces in which they are sent."""
    assert size % len(BLOCK) == 0
    for _ in range(size // len(BLOCK)):
        yield BLOCK


class Checked:
    """Takes what arrives, in any pieces, and compares every byte with what was sent."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._at = 0
        self._twice = BLOCK + BLOCK

    def feed(self, data: bytes) -> None:
        """Raises ``ValueError`` for a wrong byte, and for one too many."""
        self.left -= len(data)
        for begin in range(0, len(data), len(BLOCK)):
            piece = data[begin : begin + len(BLOCK)]
            if piece != self._twice[self._at : self._at + len(piece)]:
                raise ValueError("other bytes arrived than were sent")
            self._at = (self._at + len(piece)) % len(BLOCK)
        if self.left < 0:
            raise ValueError("more bytes arrived than were sent")


def write_image(path: Path, size: int) -> None:
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            for _ in range(size // len(BLOCK)):
                file.write(BLOCK)
