"""Driver types and client classes by name, from the entry points of installed distributions.

Loading code is a decision of this side's only: nothing the other side names is ever imported. ``jmp.drivers`` maps the
``type`` in an exporter's configuration to a driver class; ``jmp.clients`` maps an interface id to a client class.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from jmp.driver.driver import Driver
from jmp.driver.schema import did_you_mean
from jmp.errors import ConfigError, NotFound

DRIVERS = "jmp.drivers"
CLIENTS = "jmp.clients"


@cache
def _table(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def driver_names() -> list[str]:
    """The driver types that are installed."""
    return sorted(_table(DRIVERS))


def driver_class(name: str) -> type[Driver]:
    """The driver registered as ``name``.

    Raises :class:`~jmp.errors.NotFound` with the nearest name, :class:`~jmp.errors.ConfigError` if its code cannot be imported.
    """
    point = _table(DRIVERS).get(name)
    if point is None:
        near = did_you_mean(name, driver_names())
        raise NotFound(f"there is no driver of type {name!r}{near if 'did you mean' in near else _elsewhere()}")
    try:
        loaded = point.load()
    except ImportError as error:
        package = point.dist.name if point.dist else "its package"
        raise ConfigError(
            f"driver {name!r} needs {error.name or error}: install {package} with the extra that brings it"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"entry point {name!r} ({point.value}) leads nowhere: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Driver)):
        raise ConfigError(f"entry point {name!r} ({point.value}) is no driver class")
    return loaded


def _elsewhere() -> str:
    """Where a driver has to be that is not here: a package is easily installed for another Python than the one that runs jmp."""
    return f"; jmp driver list tells those that there are, and one of another package has to be installed for {sys.executable}"


def driver_package(name: str) -> str:
    """The distribution that a driver type comes from; access policies name it."""
    point = _table(DRIVERS).get(name)
    return point.dist.name if point is not None and point.dist is not None else ""
