"""Sizes as people write them."""

from __future__ import annotations

import re

from jmp.driver import ConfigError


def parse_size(text: str) -> int:
    """``64M`` → bytes; units are powers of 1024. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"{text!r} is no size; write for example 64M or 4G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")
