"""Block maps, as ``bmaptool create`` writes them: which parts of an image have to be written, and their checksums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from jmp.errors import UsageError


@dataclass(frozen=True)
class Part:
    """A part of an image that has to be written."""

    begin: int
    end: int
    checksum: str = ""
    """In hexadecimal; "" if the map has none."""


@dataclass(frozen=True)
class BlockMap:
    """What a map says."""

    size: int
    """Bytes of the image."""
    algorithm: str
    parts: Sequence[Part]
    """In order, and not overlapping."""


def read_bmap(path: Path) -> BlockMap:
    """The map in a file. Raises UsageError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return parse_bmap(text)
    except (ValueError, ElementTree.ParseError) as error:
        raise UsageError(f"{path} is no block map: {error}") from error


def parse_bmap(text: bytes) -> BlockMap:
    """The map in a file's content. Raises ValueError or ElementTree.ParseError."""
    if b"<!ENTITY" in text:
        raise ValueError("it has entities of its own")
    root = ElementTree.fromstring(text)
    if root.tag != "bmap":
        raise ValueError(f"it begins with <{root.tag}>")
    version = root.get("version", "")
    if version.partition(".")[0] not in ("1", "2"):
        raise ValueError(f"version {version!r} is not known")
    size, block = _number(root, "ImageSize"), _number(root, "BlockSize")
    algorithm = (root.findtext("ChecksumType") or "sha1").strip()
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        raise ValueError(f"checksums of type {algorithm!r} are not known")
    parts: list[Part] = []
    for item in root.iterfind("BlockMap/Range"):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", item.text or "")
        if match is None:
            raise ValueError(f"range {item.text!r} is not known")
        begin, end = int(match[1]) * block, min((int(match[2] or match[1]) + 1) * block, size)
        if not (parts[-1].end if parts else 0) <= begin < end:
            raise ValueError(f"range {item.text!r} is out of order")
        parts.append(Part(begin, end, (item.get("chksum") or item.get("sha1") or "").lower()))
    return BlockMap(size, algorithm, parts)


def joined(parts: Sequence[Part], gap: int) -> list[Part]:
    """The same with parts that are no more than ``gap`` bytes apart as one, without checksums."""
    runs: list[Part] = []
    for part in parts:
        if runs and part.begin - runs[-1].end <= gap:
            runs[-1] = Part(runs[-1].begin, part.end)
        else:
            runs.append(Part(part.begin, part.end))
    return runs


def _number(root: ElementTree.Element, name: str) -> int:
    text = (root.findtext(name) or "").strip()
    if not text.isdigit() or (int(text) == 0 and name == "BlockSize"):
        raise ValueError(f"{name} is {text!r}")
    return int(text)
