"""docs/drivers.md is what the drivers say, and its examples can be loaded."""

from __future__ import annotations

from runpy import run_path

from tests.fakes.bundled import ROOT, problems_in


def test_page_is_fresh() -> None:
    made = run_path(str(ROOT / "drivers/reference.py"))["render"]()
    assert (ROOT / "docs/drivers.md").read_text() == made, "make it again: python3 drivers/reference.py"


def test_examples_are_valid() -> None:
    assert problems_in("docs/drivers.md") == []


def test_rows_of_a_table_have_its_columns() -> None:
    cells = 0
    for line in (ROOT / "docs/drivers.md").read_text().splitlines():
        if line.startswith("|"):
            cells = cells or line.count("|")
            assert line.count("|") == cells, line
        else:
            cells = 0
