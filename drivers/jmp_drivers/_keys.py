"""Names of keys → the numbers that X11, and so VNC, has for them (keysyms)."""

from __future__ import annotations

from jmp.driver.schema import did_you_mean
from jmp.errors import BadValue

SHIFT = 0xFFE1
NAMED = {
    "backspace": 0xFF08,
    "tab": 0xFF09,
    "enter": 0xFF0D,
    "return": 0xFF0D,
    "pause": 0xFF13,
    "scroll-lock": 0xFF14,
    "esc": 0xFF1B,
    "escape": 0xFF1B,
    "home": 0xFF50,
    "left": 0xFF51,
    "up": 0xFF52,
    "right": 0xFF53,
    "down": 0xFF54,
    "page-up": 0xFF55,
    "page-down": 0xFF56,
    "end": 0xFF57,
    "print": 0xFF61,
    "insert": 0xFF63,
    "menu": 0xFF67,
    "num-lock": 0xFF7F,
    "shift": SHIFT,
    "ctrl": 0xFFE3,
    "control": 0xFFE3,
    "caps-lock": 0xFFE5,
    "meta": 0xFFE7,
    "alt": 0xFFE9,
    "super": 0xFFEB,
    "win": 0xFFEB,
    "altgr": 0xFE03,
    "delete": 0xFFFF,
    "del": 0xFFFF,
    "space": 0x20,
    "plus": 0x2B,
    **{f"f{number}": 0xFFBD + number for number in range(1, 25)},
}
_SHIFTED = frozenset('~!@#$%^&*()_+{}|:"<>?') | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CONTROL = {"\n": 0xFF0D, "\r": 0xFF0D, "\t": 0xFF09, "\b": 0xFF08, "\x1b": 0xFF1B, "\x7f": 0xFFFF}


def of_character(character: str) -> list[int]:
    """The keys that write a character, in the order in which they go down: Shift, if a US keyboard needs it, comes first."""
    code = ord(character)
    if character in _CONTROL:
        return [_CONTROL[character]]
    if code < 0x20:
        raise BadValue(f"no key writes {character!r}; press('ctrl+{chr(code + 0x60)}') presses one")
    keysym = code if code < 0x7F or 0xA0 <= code < 0x100 else 0x01000000 | code
    return [SHIFT, keysym] if character in _SHIFTED else [keysym]


def of_combination(text: str) -> list[int]:
    """The keys of ``ctrl+alt+delete``, in that order. Raises `BadValue` for a name that is none."""
    keys = []
    for name in text.split("+"):
        known = NAMED.get(name.strip().lower().replace("_", "-"))
        if known is not None:
            keys.append(known)
        elif len(name.strip()) == 1:
            keys.append(of_character(name.strip())[-1])
        else:
            raise BadValue(f"there is no key {name!r}{did_you_mean(name.lower(), NAMED)}")
    return keys
