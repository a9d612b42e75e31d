"""Pictures as clients compare them: read, cut, compared, written. Pure.

PNG files as screens give them are read here; all others by Pillow, where that is installed (extra ``video``).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from jmp.errors import UsageError

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Bytes of a pixel, by a PNG's colour type, of 8 bits each."""


@dataclass(frozen=True)
class Region:
    """A part of a picture."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Region:
        """``X,Y,WIDTH,HEIGHT``. Raises :class:`~jmp.errors.UsageError`."""
        try:
            region = cls(*map(int, text.split(",")))
        except (TypeError, ValueError):
            raise UsageError(f"{text!r} is no part of a picture: write X,Y,WIDTH,HEIGHT") from None
        if region.x < 0 or region.y < 0 or region.width <= 0 or region.height <= 0:
            raise UsageError(f"{text!r} is no part of a picture: it has no pixels, or lies before its begin")
        return region

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True)
class Picture:
    """Three bytes a pixel, row by row from the top."""

    width: int
    height: int
    rgb: bytes

    def cut(self, region: Region) -> Picture:
        """A part of it. Raises :class:`~jmp.errors.UsageError` if that is not within."""
        if region.x + region.width > self.width or region.y + region.height > self.height:
            raise UsageError(
                f"the part {region} is not within the picture, which is {self.width} x {self.height} pixels"
            )
        row, left, right = 3 * self.width, 3 * region.x, 3 * (region.x + region.width)
        starts = range(region.y * row, (region.y + region.height) * row, row)
        return Picture(
            region.width, region.height, b"".join(self.rgb[start + left : start + right] for start in starts)
        )

    def png(self) -> bytes:
        """It as a PNG file."""
        row = 3 * self.width
        rows = b"".join(b"\0" + self.rgb[start : start + row] for start in range(0, len(self.rgb), row))
        properties = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        parts = ((b"IHDR", properties), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return _PNG + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )


@dataclass(frozen=True)
class Difference:
    """What distinguishes two pictures of one size."""

    pixels: int
    """How many differ."""
    total: int
    region: Region | None
    """The smallest rectangle that holds them all."""
    shown: Picture
    """The second picture in grey, and what differs in red."""

    @property
    def share(self) -> float:
        """Of all pixels, 0 to 1."""
        return self.pixels / self.total

    def __str__(self) -> str:
        return f"{self.pixels} of {self.total} pixels differ ({self.share:.2%}), all within {self.region}"


def compare(expected: Picture, actual: Picture, tolerance: int) -> Difference:
    """Pixels differ if one of their channels does by more than ``tolerance``. The pictures must have one size."""
    width, height = actual.width, actual.height
    row = 3 * width
    differing: dict[int, list[int]] = {}
    for y in range(height):
        one, other = (picture.rgb[y * row : (y + 1) * row] for picture in (expected, actual))
        if one != other:
            columns = {
                index // 3
                for index, (a, b) in enumerate(zip(one, other, strict=True))
                if a != b and abs(a - b) > tolerance
            }
            if columns:
                differing[y] = sorted(columns)
    region = None
    if differing:
        left = min(columns[0] for columns in differing.values())
        right = max(columns[-1] for columns in differing.values())
        top, bottom = min(differing), max(differing)
        region = Region(left, top, right - left + 1, bottom - top + 1)
    return Difference(
        sum(map(len, differing.values())), width * height, region, _shown(actual, differing) if differing else actual
    )


def _shown(actual: Picture, differing: dict[int, list[int]]) -> Picture:
    # Green stands for brightness well enough, and the halves are those above black that one can tell red from.
    grey = actual.rgb[1::3].translate(bytes(64 + value // 2 for value in range(256)))
    rgb = bytearray(len(actual.rgb))
    for channel in range(3):
        rgb[channel::3] = grey
    for y, columns in differing.items():
        for x in columns:
            start = 3 * (y * actual.width + x)
            rgb[start : start + 3] = b"\xff\0\0"
    return Picture(actual.width, actual.height, bytes(rgb))


def read(data: bytes, name: str) -> Picture:
    """A picture file. Raises :class:`~jmp.errors.UsageError`, with its ``name``, for what is none or needs Pillow."""
    if data.startswith(_PNG):
        try:
            picture = _read_png(data)
        except (struct.error, zlib.error, IndexError, ValueError) as error:
            raise UsageError(f"{name} is a broken PNG file: {error}") from error
        if picture is not None:
            return picture
    return _read_other(data, name)


def _read_png(data: bytes) -> Picture | None:
    """None if it is of a kind that is left to Pillow."""
    position, packed, palette = len(_PNG), b"", b""
    header: tuple[int, ...] = ()
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", content)
        elif kind == b"PLTE":
            palette = content
        elif kind == b"IDAT":
            packed += content
        position += length + 12
    if not header:
        raise ValueError("it has no header")
    width, height, bits, kind_of_colour, _, _, interlaced = header
    if bits != 8 or interlaced or kind_of_colour not in _CHANNELS:
        return None
    size = _CHANNELS[kind_of_colour]
    plain = _unfiltered(zlib.decompress(packed), width * size, height, size)
    if kind_of_colour == 3:
        channels = [plain.translate(palette[channel::3].ljust(256, b"\0")) for channel in range(3)]
    elif size <= 2:
        channels = [plain[::size]] * 3
    else:
        channels = [plain[channel::size] for channel in range(3)]
    rgb = bytearray(3 * width * height)
    for channel in range(3):
        rgb[channel::3] = channels[channel]
    return Picture(width, height, bytes(rgb))


def _unfiltered(rows: bytes, row: int, height: int, size: int) -> bytes:
    """What the filters of a PNG's rows were put on; ``row`` and ``size`` are bytes of a row and of a pixel."""
    if len(rows) != height * (row + 1):
        raise ValueError("its rows are not complete")
    out = bytearray()
    above = bytes(row)
    for start in range(0, len(rows), row + 1):
        kind, line = rows[start], bytearray(rows[start + 1 : start + 1 + row])
        if kind == 1:
            for i in range(size, row):
                line[i] = (line[i] + line[i - size]) & 255
        elif kind == 2:
            line = bytearray((a + b) & 255 for a, b in zip(line, above, strict=True))
        elif kind == 3:
            for i in range(row):
                left = line[i - size] if i >= size else 0
                line[i] = (line[i] + (left + above[i]) // 2) & 255
        elif kind == 4:
            for i in range(row):
                left, corner = (line[i - size], above[i - size]) if i >= size else (0, 0)
                line[i] = (line[i] + _paeth(left, above[i], corner)) & 255
        elif kind:
            raise ValueError(f"filter {kind} is none")
        above = bytes(line)
        out += line
    return bytes(out)


def _paeth(left: int, above: int, corner: int) -> int:
    """Of the three the one nearest to left + above - corner."""
    by_left, by_above, by_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    if by_left <= by_above and by_left <= by_corner:
        return left
    return above if by_above <= by_corner else corner


def _read_other(data: bytes, name: str) -> Picture:
    from importlib import import_module
    from io import BytesIO

    try:
        pillow = import_module("PIL.Image")
    except ImportError:
        raise UsageError(
            f"{name} is no PNG file of 8 bits, not interlaced: all others are read by Pillow, which is not installed here "
            "(pip install pillow; Debian's python3-pil)"
        ) from None
    try:
        with pillow.open(BytesIO(data)) as opened:
            image = opened.convert("RGB")
            return Picture(image.width, image.height, image.tobytes())
    except OSError as error:
        raise UsageError(f"{name} is no picture: {error}") from error
