"""JPEG pictures one after the other, whatever stands between them: MJPEG over HTTP, and as cameras' programs write it."""

from __future__ import annotations

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_BARE = frozenset({0x01, _SOI, *range(0xD0, 0xD8)})  # markers without a length
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # frame headers: height and width are in them
LONGEST = 32 * 1024 * 1024
"""Bytes of a picture; what is longer is none."""


class Pictures:
    """Cuts a stream into its pictures."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._at = 0  # how far the picture at the beginning has been looked through
        self._scanning = False  # it is among the coded pixels, which have no length

    def feed(self, data: bytes) -> list[bytes]:
        """The pictures that ``data`` completes. Raises ValueError for one that has no end."""
        self._pending += data
        found = []
        while (end := self._end()) is not None:
            found.append(bytes(self._pending[:end]))
            del self._pending[:end]
            self._at, self._scanning = 0, False
        if len(self._pending) > LONGEST:
            raise ValueError(f"there is no end of a picture within {LONGEST} bytes")
        return found

    def _end(self) -> int | None:
        """Where the first picture ends; what stands before it is dropped."""
        if self._at == 0:
            start = self._pending.find(b"\xff\xd8\xff")
            if start < 0:
                del self._pending[:-2]
                return None
            del self._pending[:start]
            self._at = 2
        while self._at + 2 <= len(self._pending):
            if self._scanning:
                # Among pixels, a byte FF stands before 00 or a restart marker; before anything else it ends them.
                mark = self._pending.find(b"\xff", self._at)
                if mark < 0 or mark + 1 >= len(self._pending):
                    self._at = len(self._pending) if mark < 0 else mark
                    return None
                following = self._pending[mark + 1]
                if following == 0 or 0xD0 <= following <= 0xD7:
                    self._at = mark + 2
                    continue
                self._at, self._scanning = mark, False
                if following == _EOI:
                    return mark + 2
            marker = self._pending[self._at + 1]
            if self._pending[self._at] != 0xFF:
                self._at += 1  # fill bytes, or rubbish: look on
            elif marker == _EOI:
                return self._at + 2
            elif marker == 0xFF:
                self._at += 1
            elif marker in _BARE:
                self._at += 2
            elif self._at + 4 > len(self._pending):
                return None
            else:
                length = int.from_bytes(self._pending[self._at + 2 : self._at + 4], "big")
                self._at += 2 + length
                self._scanning = marker == _SOS
        return None


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a JPEG picture. Raises ValueError if it is none."""
    at = 2
    while at + 9 <= len(picture) and picture[at] == 0xFF:
        marker = picture[at + 1]
        if marker in _SIZES:
            return int.from_bytes(picture[at + 7 : at + 9], "big"), int.from_bytes(picture[at + 5 : at + 7], "big")
        at += 2 if marker in _BARE else 2 + int.from_bytes(picture[at + 2 : at + 4], "big")
    raise ValueError("it is no JPEG picture")
