"""Pictures as PNG files."""

from __future__ import annotations

import struct
import zlib

_LEVEL = 3  # of compression: screens are plain, and who waits for one is waiting


def png(width: int, height: int, rgb: bytes | bytearray) -> bytes:
    """A picture of three bytes a pixel, row by row from the top, as a PNG file."""
    row = 3 * width
    # Each row of a PNG begins with the number of its filter; 0 is none.
    rows = b"".join(b"\0" + rgb[start : start + row] for start in range(0, row * height, row))
    properties = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, the standard's only methods
    parts = [(b"IHDR", properties), (b"IDAT", zlib.compress(rows, _LEVEL)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
