"""Durations and moments as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from jmp.errors import BadValue

UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
LONGEST: Final = 36525 * 86400.0
"""What is longer is a slip of the keyboard, and past what clocks and calendars can tell."""


def parse(text: str) -> float:
    """Seconds in ``1h30m``, ``90s``, ``2d``, ``1.5h``. Raises ``BadValue``, also for a bare number: its unit would be a guess."""
    match = re.fullmatch(r"(?:\d+(?:\.\d+)?[dhms])+", text.strip())
    pieces = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text) if match else []
    order = [list(UNITS).index(unit) for _, unit in pieces]
    if not pieces or order != sorted(set(order)):
        raise BadValue(f"{text!r} is no duration: write it as 90s, 15m, 1h30m or 2d")
    seconds = sum(float(number) * UNITS[unit] for number, unit in pieces)
    if seconds > LONGEST:
        raise BadValue(f"{text.strip():.20}… is longer than a hundred years")
    return seconds


def text(seconds: float) -> str:
    """A duration for people, its two largest units: ``1h 30m``, ``45s``, ``2d``."""
    rest = round(abs(seconds))
    words = []
    for unit, size in UNITS.items():
        count, rest = divmod(rest, int(size))
        if count:
            words.append(f"{count}{unit}")
    return ("-" if seconds < 0 and words else "") + " ".join(words[:2] or ["0s"])


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of ``+2h``, ``14:30`` (the next one), ``2026-11-24T14:30`` (local, unless it says its zone).

    ``now`` is seconds since the epoch. Raises ``BadValue``.
    """
    word = text.strip()
    if word.startswith("+"):
        return now + parse(word[1:])
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", word):
            clock = datetime.strptime(word, "%H:%M").time()
            today = datetime.fromtimestamp(now).astimezone()
            then = datetime.combine(today.date(), clock).astimezone()
            if then.timestamp() <= now:
                then = datetime.combine(today.date() + timedelta(days=1), clock).astimezone()
            return then.timestamp()
        return datetime.fromisoformat(word).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise BadValue(f"{text!r} is no time: write it as +2h, 14:30 or 2026-11-24T14:30") from None
