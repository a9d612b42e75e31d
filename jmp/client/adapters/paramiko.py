"""Fabric, which is Paramiko, on a device's SSH server. Both are the extra ``ssh``."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jmp.client.blocks import Block
from jmp.driver.proxy import Blocking
from jmp.errors import UsageError
from jmp.rpc.blocking import BlockingCaller

if TYPE_CHECKING:
    from jmp.client.ssh import SshClient


class Fabric(Block[Any]):
    """A Fabric ``Connection`` for the length of a ``with`` block; it is open already, and closed at the end."""

    def __init__(self, client: SshClient, options: dict[str, Any]) -> None:
        self._client = client
        self._options = options

    def __enter__(self) -> Any:
        if not isinstance(self._client._backend, BlockingCaller):
            raise UsageError("Fabric blocks, so it needs a blocking client: with jmp.connect()")
        return super().__enter__()

    @contextmanager
    def _by_threads(self) -> Iterator[Any]:
        try:
            fabric, paramiko = import_module("fabric"), import_module("paramiko")
        except ImportError:
            raise UsageError("Fabric is not installed here: pip install fabric (Debian's python3-fabric)") from None
        with Blocking(self._client._way()) as way, socket.socket(socket.AF_UNIX) as port:
            port.connect(way.listen.removeprefix("unix:"))
            given: dict[str, Any] = {"sock": port, "password": way.password or None, "look_for_keys": not way.key_file}
            if way.key_file is not None:
                given |= {"key_filename": str(way.key_file), "allow_agent": False}
            name = self._client._node.path or "device"
            quiet = {"load_ssh_configs": False, "run": {"in_stream": False}}  # a test has no input that could be read
            config = fabric.Config(overrides=quiet)
            options = {"user": way.user or None, "config": config} | self._options
            options["connect_kwargs"] = given | options.get("connect_kwargs", {})
            with fabric.Connection(name, **options) as connection:
                for key in way.host_keys:
                    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{name} {key}")
                    connection.client.get_host_keys().add(name, entry.key.get_name(), entry.key)
                if way.host_keys:
                    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
                try:
                    connection.open()
                except Exception:
                    way.check(255)
                    raise
                yield connection
