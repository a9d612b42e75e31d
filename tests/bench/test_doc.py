"""docs/performance.md names rows that exist, with the bars that they have."""

from __future__ import annotations

import re

import build
from tests.bench.table import ROWS, number

TEXT = (build.ROOT / "docs/performance.md").read_text()


def test_rows_of_the_document_exist_with_their_bars() -> None:
    known = {row.name: row for row in ROWS}
    found = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]*) \|$", TEXT, re.MULTILINE)
    assert len(found) > 30
    for name, bars in found:
        assert name in known
        wanted = [number(bar.factor) + ("×" if bar.to else "") for bar in known[name].bars]
        assert re.findall(r"bar ([\d.]+×?)", bars) == wanted, name


def test_every_row_is_in_the_document() -> None:
    assert {row.name for row in ROWS} <= set(re.findall(r"`([\w-]+)`", TEXT))
