"""Driver types by name: from entry points of installed distributions, of which these tests have some of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmp.driver import plugins
from jmp.driver.plugins import driver_class, driver_names, driver_package
from jmp.errors import ConfigError, NotFound

MODULE = """\
from jmp.driver import Driver

class Thing(Driver):
    "A thing."

nothing = 5
"""
ENTRY_POINTS = """\
[jmp.drivers]
x-thing = x_drivers:Thing
x-five = x_drivers:nothing
x-missing = x_drivers:Missing
x-needs = x_needs:Thing
x-broken = x_drivers.deeper:Thing
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that brings drivers, good and bad ones."""
    (tmp_path / "x_drivers.py").write_text(MODULE)
    (tmp_path / "x_needs.py").write_text("import x_is_not_installed\n")
    info = tmp_path / "x_drivers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: x-drivers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    plugins._table.cache_clear()
    yield
    plugins._table.cache_clear()
    for name in ("x_drivers", "x_needs"):
        sys.modules.pop(name, None)


def test_a_driver_of_any_distribution() -> None:
    assert driver_class("x-thing").__name__ == "Thing"
    assert driver_package("x-thing") == "x-drivers"
    assert {"x-thing", "mock-power", "qemu"} <= set(driver_names())
    assert driver_names() == sorted(driver_names())
    assert driver_class("mock-power").__name__ == "MockPower"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("x-thin", NotFound, "there is no driver of type 'x-thin' (did you mean 'x-thing'?)"),
        (
            "bench-fan",
            NotFound,
            f"there is no driver of type 'bench-fan'; jmp driver list tells those that there are, and one of another"
            f" package has to be installed for {sys.executable}",
        ),
        ("x-five", ConfigError, "entry point 'x-five' (x_drivers:nothing) is no driver class"),
        ("x-missing", ConfigError, "entry point 'x-missing' (x_drivers:Missing) leads nowhere: "),
        (
            "x-needs",
            ConfigError,
            "driver 'x-needs' needs x_is_not_installed: install x-drivers with the extra that brings it",
        ),
        ("x-broken", ConfigError, "driver 'x-broken' needs x_drivers.deeper: install x-drivers"),
    ],
)
def test_what_cannot_be_used(name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        driver_class(name)
    assert type(raised.value) is error
    assert str(raised.value).startswith(said)


def test_a_driver_that_is_not_there_comes_from_nowhere() -> None:
    assert driver_package("x-nothing") == ""
