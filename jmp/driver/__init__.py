"""All that a driver author imports, and what runs drivers: nothing here knows of the network.

``driver``      ``Driver``, ``@export``, ``@exportstream``: a driver is one class
``interfaces``  one abstract class per capability (``jmp.power/v1``, …): what a client may rely on
``schema``      type hints ↔ schemas that travel; the checks made against them
``tree``        runs a tree of drivers: opens, degrades, retries, closes; finds what a call names; makes the report
``proxy``       the generic client of a driver, made from the report
``machine``     what is plugged into a machine, for drivers that suggest themselves
``direct``      ``overflow``: from a stream to a socket by the shortest way
``plugins``     driver types and client classes by name, from entry points
``testing``     ``serve``: a driver in-process, for its tests
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream as Stream

    from jmp.driver.direct import overflow
    from jmp.driver.driver import Driver, cancelled, check_seconds, export, exportstream, sleep
    from jmp.driver.machine import Machine, Service, Suggestion
    from jmp.driver.proxy import DriverClient, verb
    from jmp.driver.testing import serve
    from jmp.errors import BadValue, Busy, ConfigError, DeviceError, JmpError, UsageError

__all__ = [
    "BadValue",
    "Busy",
    "ConfigError",
    "DeviceError",
    "Driver",
    "DriverClient",
    "JmpError",
    "Machine",
    "Service",
    "Stream",
    "Suggestion",
    "UsageError",
    "cancelled",
    "check_seconds",
    "export",
    "exportstream",
    "overflow",
    "serve",
    "sleep",
    "verb",
]

_WHERE = {
    **dict.fromkeys(("Driver", "cancelled", "check_seconds", "export", "exportstream", "sleep"), "jmp.driver.driver"),
    **dict.fromkeys(("DriverClient", "verb"), "jmp.driver.proxy"),
    **dict.fromkeys(("Machine", "Service", "Suggestion"), "jmp.driver.machine"),
    "overflow": "jmp.driver.direct",
    "serve": "jmp.driver.testing",
}


def __getattr__(name: str) -> object:
    # Late, because the client side uses this package too, and must start without Trio.
    if name == "Stream":
        return import_module("trio.abc").HalfCloseableStream
    if name in __all__:
        return getattr(import_module(_WHERE.get(name, "jmp.errors")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
