"""Sizes as people write them."""

from __future__ import annotations

import re

from jmp.driver import ConfigError


def show_size(size: int) -> str:
    """Bytes → ``30.7 GB``, as makers of disks count."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def parse_size(text: str) -> int:
    """``64M`` → bytes; units are powers of 1024. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"{text!r} is no size; write for example 64M or 4G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")
