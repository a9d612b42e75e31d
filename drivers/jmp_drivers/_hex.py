"""Bytes in calls, as programs and as people write them."""

from __future__ import annotations

from jmp.driver import BadValue

Data = str | bytes
"""Bytes; or as text hexadecimal digits, as on a command line: ``0102ff``, ``01 02 ff``."""


def to_bytes(data: Data) -> bytes:
    """Raises `BadValue`."""
    if isinstance(data, bytes):
        return data
    try:
        return bytes.fromhex(data.replace(":", " ").replace("_", " "))
    except ValueError:
        raise BadValue(f"data as text is pairs of hexadecimal digits, as in 0102ff, not {data[:40]!r}") from None
