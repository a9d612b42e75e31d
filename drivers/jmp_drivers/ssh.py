"""A device's SSH server, for the client's own ssh."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

import trio

from jmp.driver import ConfigError, DeviceError, Service, Stream, Suggestion, export, exportstream
from jmp.driver.interfaces import Ssh as SshInterface
from jmp_drivers.network import Tcp


class Ssh(SshInterface):
    """A device's SSH server: commands, files, ports and terminals by the client's own ssh.

    It is at ``host``, or behind the network port that is its child, such as that of a virtual machine. ``key`` and ``password``
    reach whoever holds the device: use ones that are good for it alone. Without any, the client's own keys are tried.
    """

    host: str = field(default="", metadata={"doc": "name or address; without it, a child is the port"})
    port: int = 22
    user: str = field(default="root", metadata={"doc": "who logs in"})
    key: Path | None = field(default=None, metadata={"doc": "file of the private key, without a passphrase"})
    password: str = field(default="", metadata={"secret": True, "doc": "the user's password"})
    host_keys: list[str] = field(
        default_factory=list, metadata={"doc": "public keys of the server, as 'TYPE KEY'; without any, it may have any"}
    )
    timeout: float = field(default=10.0, metadata={"doc": "seconds that connecting may take"})

    services: ClassVar[tuple[str, ...]] = ("_ssh._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        port = {} if service.port == 22 else {"port": service.port}
        config: dict[str, object] = {"host": service.address, **port}
        yield Suggestion(
            "ssh", config, service.about("SSH"), service.at(22), note="say who logs in: user, key or password"
        )

    def __post_init__(self) -> None:
        self._target = Tcp(host=self.host, port=self.port, timeout=self.timeout)
        if not re.fullmatch(r"[^\s-]\S*", self.user):
            raise ConfigError(f"user: {self.user!r} is no user's name")
        for each in self.host_keys:
            if len(each.split()) < 2:
                raise ConfigError(f"host_keys: {each!r} is no public key; write TYPE KEY, as in a file *.pub")

    async def open(self) -> None:
        await self._read_key()

    async def _read_key(self) -> str:
        if self.key is None:
            return ""
        try:
            return await trio.Path(self.key).read_text()
        except (OSError, UnicodeError) as error:
            raise DeviceError(f"cannot read the key {self.key}: {getattr(error, 'strerror', None) or error}") from error

    @exportstream
    async def connect(self, stream: Stream) -> None:
        if not self.host:
            raise DeviceError("it has neither a host nor a child that is its port: correct its configuration")
        await self._target.connect(stream)

    @export
    async def address(self) -> str:
        return await self._target.address() if self.host else "its child's"

    @export
    async def identity(self) -> dict[str, Any]:
        return {
            "user": self.user,
            "key": await self._read_key(),
            "password": self.password,
            "host_keys": [" ".join(each.split()[:2]) for each in self.host_keys],
        }
