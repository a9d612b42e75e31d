"""Interface id → the client class that this side has for it.

Only code installed here is ever loaded, and of other distributions only what this side allows: the environment variable
``JMP_CLIENT_PACKAGES`` names, separated by commas, the distributions whose ``jmp.clients`` entry points may be used. For an
id that nothing here knows, the generic client serves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Final

from jmp.driver.proxy import ClientClass, DriverClient
from jmp.errors import ConfigError

BUILTIN: Final[Mapping[str, str]] = {
    "jmp.capture/v1": "jmp.client.capture:CaptureClient",
    "jmp.console/v1": "jmp.client.console:ConsoleClient",
    "jmp.datagram/v1": "jmp.client.network:DatagramClient",
    "jmp.files/v1": "jmp.client.files:FilesClient",
    "jmp.flasher/v1": "jmp.client.flasher:FlasherClient",
    "jmp.network/v1": "jmp.client.network:NetworkClient",
    "jmp.ssh/v1": "jmp.client.ssh:SshClient",
    "jmp.storage/v1": "jmp.client.storage:StorageClient",
    "jmp.video/v1": "jmp.client.video:VideoClient",
    "jmp.vnc/v1": "jmp.client.video:VncClient",
    "jmp.u-boot/v1": "jmp.client.uboot:UBootClient",
}
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
