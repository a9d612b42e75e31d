"""Pictures of the screen: from the format that every QEMU writes to the one that everybody reads."""

from __future__ import annotations

import re
import struct
import zlib

from jmp.errors import DeviceError


def png(ppm: bytes) -> bytes:
    """A binary PPM file (8 bits a channel) as a PNG file. Raises `DeviceError` if it is something else."""
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", ppm)
    if header is None:
        raise DeviceError("QEMU's screendump is no PPM picture")
    width, height = int(header[1]), int(header[2])
    row = 3 * width
    if len(ppm) != header.end() + row * height:
        raise DeviceError("QEMU's screendump is incomplete")
    # Each row of a PNG begins with the number of its filter; 0 is none.
    rows = b"".join(b"\0" + ppm[start : start + row] for start in range(header.end(), len(ppm), row))
    properties = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, the standard's only methods
    parts = [(b"IHDR", properties), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
