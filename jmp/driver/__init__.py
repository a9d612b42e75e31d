"""All that a driver author imports, and what runs drivers: nothing here knows of the network.

``driver``      ``Driver``, ``@export``, ``@exportstream``: a driver is one class
``interfaces``  one abstract class per capability (``jmp.power/v1``, …): what a client may rely on
``schema``      type hints ↔ schemas that travel; the checks made against them
``tree``        runs a tree of drivers: opens, degrades, retries, closes; finds what a call names; makes the report
``proxy``       the generic client of a driver, made from the report
``plugins``     driver types and client classes by name, from entry points
``testing``     ``serve``: a driver in-process, for its tests
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio.abc import HalfCloseableStream as Stream

from jmp.driver.driver import Driver, cancelled, export, exportstream, sleep
from jmp.errors import BadValue, Busy, ConfigError, DeviceError, JmpError, UsageError

if TYPE_CHECKING:
    from jmp.driver.testing import serve

__all__ = [
    "BadValue",
    "Busy",
    "ConfigError",
    "DeviceError",
    "Driver",
    "JmpError",
    "Stream",
    "UsageError",
    "cancelled",
    "export",
    "exportstream",
    "serve",
    "sleep",
]


def __getattr__(name: str) -> object:
    if name == "serve":  # brings a client along, which no exporter needs
        from jmp.driver.testing import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
