"""What the board's card holds: the firmware looks at its first sector only."""

from __future__ import annotations

import re
from dataclasses import dataclass

SECTOR = 512
MAGIC = b"#!jmp-image"
_FIELD = re.compile(r"(name|version)=([\w.+~:-]{1,64})", re.ASCII)


@dataclass(frozen=True)
class Image:
    """The operating system that boots, as /etc/os-release shows it."""

    name: str
    version: str


BUILT_IN = Image("virtual-linux", "1.0")
"""What boots from a blank card."""


def header(image: Image) -> bytes:
    """The line with which a card image begins."""
    return MAGIC + f" name={image.name} version={image.version}\n".encode()


def parse(sector: bytes) -> Image | None:
    """The image that begins with this first sector; None: it is not blank, and no image either.

    The header is one line in the first sector, for example ``#!jmp-image name=demo version=2.1``; name and version are
    up to 64 of ``A-Z a-z 0-9 _ . + ~ : -``, further words are ignored. Zeros, or nothing, are a blank card.
    """
    if not sector.strip(b"\0"):
        return BUILT_IN
    line, newline, _ = sector[:SECTOR].partition(b"\n")
    magic, *words = line.split(b" ")
    if magic != MAGIC or not newline:
        return None
    found = [_FIELD.fullmatch(word.decode("ascii", "replace")) for word in words]
    fields = {match[1]: match[2] for match in found if match}
    return Image(fields["name"], fields["version"]) if fields.keys() == {"name", "version"} else None
