"""Pictures of the screen: from the format that every QEMU writes to the one that everybody reads."""

from __future__ import annotations

import re

from jmp.errors import DeviceError
from jmp_drivers import _png


def png(ppm: bytes) -> bytes:
    """A binary PPM file (8 bits a channel) as a PNG file. Raises `DeviceError` if it is something else."""
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", ppm)
    if header is None:
        raise DeviceError("QEMU's screendump is no PPM picture")
    width, height = int(header[1]), int(header[2])
    if len(ppm) != header.end() + 3 * width * height:
        raise DeviceError("QEMU's screendump is incomplete")
    return _png.png(width, height, ppm[header.end() :])
