from __future__ import annotations

import struct
import zlib

import pytest

from jmp.errors import DeviceError
from jmp_drivers.qemu.picture import png

RED_GREEN_OVER_BLUE_WHITE = b"\xff\x00\x00\x00\xff\x00" + b"\x00\x00\xff\xff\xff\xff"


def test_pixels_survive() -> None:
    picture = png(b"P6\n2 2\n255\n" + RED_GREEN_OVER_BLUE_WHITE)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    chunks = {}
    position = 8
    while position < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, position)
        data = picture[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", picture, position + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        position += length + 12
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert rows == b"\0" + RED_GREEN_OVER_BLUE_WHITE[:6] + b"\0" + RED_GREEN_OVER_BLUE_WHITE[6:]


@pytest.mark.parametrize("data", [b"", b"P5\n2 2\n255\n....", b"P6\n2 2\n255\n..."])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(DeviceError, match="screendump"):
        png(data)
