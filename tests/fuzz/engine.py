"""Runs targets on what was kept and on what comes of changing that: without coverage, so that it is quick and runs anywhere.

``python3 build.py soak --fuzz TARGET|all --minutes N`` guides itself by coverage, see ``__main__``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tests.fuzz.targets import CORPUS, TARGETS

LONGEST = 4096
TELLING = (0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 125, 126, 127, 128, 129, 160, 192, 196, 217, 220, 222, 254, 255)
"""Bytes that mean something: limits of numbers, heads of frames and of msgpack."""
WIDE = (
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\x80" + bytes(7),
    bytes(4),
    b"\r\n",
    b"\x00",
    b"{",
    b"[",
    b": ",
)


def corpus(target: str) -> list[bytes]:
    """What was kept for a target, in an order that does not change."""
    return [file.read_bytes() for file in sorted((CORPUS / target).iterdir())]


def changed(kept: Sequence[bytes], draw: random.Random) -> bytes:
    """One of those, a little different."""
    data = bytearray(draw.choice(kept))
    for _ in range(1 << draw.randrange(4)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0 if data:
                data[at - 1] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[at - 1] = draw.choice(TELLING)
            case 2:
                data[at:at] = bytes([draw.choice(TELLING)])
            case 3:
                data[at:at] = draw.choice(WIDE)
            case 4:
                del data[at : at + 1 + draw.randrange(8)]
            case 5:
                other = draw.choice(kept)
                begin = draw.randrange(len(other) + 1)
                data[at:] = other[begin:]
            case _:
                piece = data[at : at + 1 + draw.randrange(32)]
                data[at:at] = piece * (1 << draw.randrange(7))
    return bytes(data[:LONGEST])


def inputs(target: str, seed: int, count: int) -> Iterator[bytes]:
    """What was kept, whole; then ``count`` changes of it."""
    kept = corpus(target)
    yield from kept
    draw = random.Random(f"{target} {seed}")
    for _ in range(count):
        yield changed(kept, draw)


def run(target: str, seed: int, count: int) -> int:
    """Try them; the number of executions. What a target raises has the input in a note."""
    executions = 0
    for data in inputs(target, seed, count):
        executions += 1
        try:
            TARGETS[target](data)
        except BaseException as error:
            error.add_note(f"fuzz target {target} with {data!r}")
            raise
    return executions
