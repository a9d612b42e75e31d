"""Wake-on-LAN: machines that are started by a packet in their network."""

from __future__ import annotations

import re
import socket
from dataclasses import field

import trio

from jmp.driver import ConfigError, DeviceError, UsageError, check_seconds, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers._reason import reason
from jmp_drivers.power import CommandPower


class WakeOnLan(Power):
    """A machine that a packet in its network switches on, and a command switches off.

    Nobody confirms the packet: ``on`` succeeds once it is sent. Without a ``state`` command, the last order that succeeded is
    what is told.
    """

    mac: str = field(metadata={"doc": "address of the machine's network port, such as 52:54:00:12:34:56"})
    broadcast: str = field(default="255.255.255.255", metadata={"doc": "address that the packet is sent to"})
    port: int = field(default=9, metadata={"doc": "UDP port that it is sent to"})
    off_command: str | list[str] | None = field(
        default=None, metadata={"key": "off", "doc": "command of the exporter's machine; without it, `off` is refused"}
    )
    state_command: str | list[str] | None = field(
        default=None, metadata={"key": "state", "doc": "command of the exporter's machine that prints on or off"}
    )
    timeout: float = field(default=30.0, metadata={"doc": "seconds that a command may take"})

    def __post_init__(self) -> None:
        if re.fullmatch(r"[0-9A-Fa-f]{2}(?:([:-]?)[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}", self.mac) is None:
            raise ConfigError(f"mac: {self.mac!r} is no network address; it looks like 52:54:00:12:34:56")
        if not 0 < self.port < 65536:
            raise ConfigError(f"port must be 1 to 65535, not {self.port}")
        self._packet = b"\xff" * 6 + bytes.fromhex(re.sub("[:-]", "", self.mac)) * 16
        self._ordered: PowerState = "unknown"
        self._commands = CommandPower(
            on_command="false",  # never run
            off_command="false" if self.off_command is None else self.off_command,
            state_command=self.state_command,
            timeout=self.timeout,
        )

    @export
    async def on(self) -> None:
        """Send the packet that starts the machine."""
        try:
            found = await trio.socket.getaddrinfo(self.broadcast, self.port, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, address = found[0]
            with trio.socket.socket(family, kind, protocol) as port:
                port.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                await port.sendto(self._packet, address)
        except OSError as error:
            raise DeviceError(f"cannot send to {self.broadcast} port {self.port}: {reason(error)}") from error
        self._ordered = "on"

    @export
    async def off(self) -> None:
        if self.off_command is None:
            raise UsageError("a packet cannot switch a machine off: give the exporter a command for 'off'")
        self._ordered = "unknown"  # until it has succeeded
        await self._commands.off()
        self._ordered = "off"

    @export
    async def cycle(self, wait: float = 1.0) -> None:
        check_seconds("wait", wait)
        if self.off_command is None:
            await self.off()
        await super().cycle(wait)

    @export
    async def state(self) -> PowerState:
        return self._ordered if self.state_command is None else await self._commands.state()
