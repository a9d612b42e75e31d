"""docs/drivers.md is what the drivers say, and its examples can be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from runpy import run_path
from typing import Any

from jmp.driver.plugins import driver_class, driver_names
from jmp.driver.schema import config_schema
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


def test_keys_in_the_tables_of_pages_are_those_of_the_drivers() -> None:
    known, checked = set(driver_names()), 0
    for page in sorted((ROOT / "docs/drivers").glob("*.md")):
        drivers: list[str] = []
        of_page: list[str] = []
        in_keys = False
        for line in page.read_text().splitlines():
            if line.startswith("#"):
                drivers = [word for word in re.split(r"[#:, `]+", line) if word in known] or of_page
                of_page = of_page or drivers
            in_keys = line.startswith("| key |") or (in_keys and line.startswith("|"))
            for key in re.findall(r"`(\w+)`", line.split("|")[1]) if in_keys else ():
                checked += 1
                assert any(key in _keys(config_schema(driver_class(name))) for name in drivers), f"{page.name}: {line}"
    assert checked > 150


def _keys(schema: Any) -> Iterator[str]:
    """The names of all values of a schema, those within others, too."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from _keys(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _keys(value)


def test_every_key_of_a_driver_stands_in_its_guide() -> None:
    pages = [page.read_text() for page in sorted((ROOT / "docs/drivers").glob("*.md"))]
    missing = []
    for name in driver_names():
        guides = [page for page in pages if re.search(rf"^ *type: {name}$|^#.*\b{name}\b", page, re.MULTILINE)]
        said = {
            word for page in guides for code in re.findall(r"`([^`\n]+)`", page) for word in re.findall(r"\w+", code)
        }
        missing += [f"{name}: {key}" for key in _keys(config_schema(driver_class(name))) if key not in said]
        assert guides, f"no page of docs/drivers tells of {name}"
    assert missing == []
