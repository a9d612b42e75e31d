"""Interface id → the client class that this side has for it.

Only code installed here is ever loaded, and of other distributions only what this side allows: the environment variable
``JMP_CLIENT_PACKAGES`` names, separated by commas, the distributions whose ``jmp.clients`` entry points may be used. For an
id that nothing here knows, the generic client serves.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Final

from jmp.client.table import BUILTIN
from jmp.driver.proxy import ClientClass, DriverClient
from jmp.errors import ConfigError

ALLOWED: Final = "JMP_CLIENT_PACKAGES"


@cache
def client_class(interface: str) -> ClientClass | None:
    """The class for an interface id, None for the generic one.

    Raises :class:`~jmp.errors.ConfigError` if an allowed distribution's class cannot be loaded.
    """
    if interface in BUILTIN:
        module, _, name = BUILTIN[interface].partition(":")
        built_in: ClientClass = getattr(import_module(module), name)
        return built_in
    allowed = {name.strip() for name in os.environ.get(ALLOWED, "").split(",")} - {""}
    if not allowed:
        return None
    from importlib.metadata import entry_points  # costs more than all of the above

    for point in entry_points(group="jmp.clients", name=interface):
        if point.dist is None or point.dist.name not in allowed:
            continue
        try:
            loaded = point.load()
        except ImportError as error:
            raise ConfigError(f"client class {point.value} for {interface} cannot be imported: {error}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, DriverClient)):
            raise ConfigError(f"client class {point.value} for {interface} is no DriverClient")
        return loaded
    return None
