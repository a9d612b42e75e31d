"""Outlets of a PDU that speaks SNMP, by the programs of net-snmp."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import Literal

import trio

from jmp.driver import ConfigError, DeviceError, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers._process import leashed, relay
from jmp_drivers._readings import Metered

_OID = re.compile(r"\.?\d+(\.\d+)+")
_PLAIN = re.compile(r"[^\s\"#\\]+(?: [^\s\"#\\]+)*")  # what the configuration file of net-snmp can hold within quotes


@dataclass(frozen=True)
class Measure:
    """One thing that the PDU measures."""

    oid: str
    scale: float = field(default=1.0, metadata={"doc": "what the PDU's number is multiplied by"})


class SnmpPower(Metered, Power):
    """An outlet of a PDU that speaks SNMP, worked by `snmpset` and `snmpget` (Debian's package snmp).

    Setting `oid` to the integer `on_value` or `off_value` switches the outlet. `state_oid` (`oid` itself unless given) tells
    whether it is on. Opening it asks for the state, so a PDU that is not there degrades the driver. Community and passphrases
    go to the programs in a file that only the exporter's user can read.
    """

    host: str = field(metadata={"doc": "name or address; with `:PORT` unless it is 161"})
    oid: str = field(metadata={"doc": "what is set, as numbers, such as 1.3.6.1.4.1.318.1.1.4.4.2.1.3.4"})
    on_value: int = field(default=1, metadata={"doc": "switches on; also read as that unless `state_on` is given"})
    off_value: int = field(default=2, metadata={"doc": "switches off; also read as that unless `state_off` is given"})
    state_oid: str | None = None
    state_on: int | None = None
    state_off: int | None = None
    measures: dict[str, Measure] = field(
        default_factory=dict, metadata={"doc": "what it measures: name (voltage, current, power, …) → {oid, scale}"}
    )
    version: Literal["1", "2c", "3"] = "2c"
    community: str = field(default="private", metadata={"secret": True, "doc": "of versions 1 and 2c"})
    user: str | None = field(default=None, metadata={"doc": "of version 3"})
    auth: Literal["MD5", "SHA", "SHA-256", "SHA-512"] = "SHA"
    auth_passphrase: str | None = field(default=None, metadata={"secret": True})
    privacy: Literal["DES", "AES"] = "AES"
    privacy_passphrase: str | None = field(default=None, metadata={"secret": True})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that an answer may take"})

    def __post_init__(self) -> None:
        oids = {"oid": self.oid, "state_oid": self.state_oid or self.oid}
        oids |= {f"measures.{name}.oid": measure.oid for name, measure in self.measures.items()}
        for key, oid in oids.items():
            if _OID.fullmatch(oid) is None:
                raise ConfigError(f"{key}: {oid!r} is not made of numbers with dots between them")
        if re.fullmatch(r"[A-Za-z0-9][^\s/]*|\[[0-9A-Fa-f:]+\](:\d+)?", self.host) is None:
            raise ConfigError("host must be a name or address, or HOST:PORT")
        if self.on_value == self.off_value:
            raise ConfigError("on_value and off_value must differ")
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        if (self.version == "3") != (self.user is not None):
            raise ConfigError("user is needed for version 3, and for no other")
        if self.privacy_passphrase is not None and self.auth_passphrase is None:
            raise ConfigError("privacy_passphrase needs an auth_passphrase")
        self._arguments, self._settings = self._options()
        self._asking = trio.Lock()  # a request beside another one that sets something confuses agents

    def _options(self) -> tuple[list[str], str]:
        """How the programs are to ask: their arguments, and what they read from a file: the secrets."""
        options = ["-v", self.version]
        secrets = {}
        if self.user is None:
            secrets["defCommunity"] = self.community
        else:
            known = (self.auth_passphrase is not None) + (self.privacy_passphrase is not None)
            options += ["-u", self.user, "-l", ("noAuthNoPriv", "authNoPriv", "authPriv")[known]]
            if self.auth_passphrase is not None:
                options += ["-a", self.auth]
                secrets["defAuthPassphrase"] = self.auth_passphrase
            if self.privacy_passphrase is not None:
                options += ["-x", self.privacy]
                secrets["defPrivPassphrase"] = self.privacy_passphrase
        if not all(_PLAIN.fullmatch(text) for text in (*secrets.values(), self.user or "-")):
            raise ConfigError('user, community and passphrases must not be empty nor hold quotes, "#" or backslashes')
        return options, "".join(f'{key} "{value}"\n' for key, value in secrets.items()) + "mibs :\n"

    async def open(self) -> None:
        await self.state()

    @export
    async def on(self) -> None:
        await self._run("snmpset", self.oid, "i", str(self.on_value))

    @export
    async def off(self) -> None:
        await self._run("snmpset", self.oid, "i", str(self.off_value))

    @export
    async def state(self) -> PowerState:
        value = await self._number(self.state_oid or self.oid)
        if value == (self.on_value if self.state_on is None else self.state_on):
            return "on"
        return "off" if value == (self.off_value if self.state_off is None else self.state_off) else "unknown"

    @export
    async def reading(self) -> dict[str, float]:
        """What it measures, by the names in its configuration."""
        if not self.measures:
            raise DeviceError(
                "nothing is known that the PDU measures: name it in the exporter's configuration (measures)"
            )
        return {
            name: round(await self._number(measure.oid) * measure.scale, 6) for name, measure in self.measures.items()
        }

    async def _number(self, oid: str) -> float:
        text = (await self._run("snmpget", oid)).strip().strip('"')
        try:
            return float(text)
        except ValueError:
            raise DeviceError(f"PDU {self.host}: {oid} is no number but {text!r}") from None

    async def _run(self, program: str, *arguments: str) -> str:
        """What the program printed; it asks twice at most and is ended when the time is over."""
        output = {"stdout": bytearray(), "stderr": bytearray()}

        async def keep(stream: str, data: bytes) -> None:
            output[stream] += data

        async with self._asking:
            with TemporaryDirectory(prefix="jmp-snmp-") as folder:
                settings = Path(folder) / "snmp.conf"
                (Path(folder) / "cert_indexes").mkdir()  # the programs tell it when they make it
                settings.touch(mode=0o600)
                settings.write_text(self._settings)
                env = os.environ | {"SNMPCONFPATH": folder, "SNMP_PERSISTENT_DIR": folder}
                argv = [
                    program,
                    *self._arguments,
                    "-Oqv",
                    "-r",
                    "1",
                    "-t",
                    f"{self.timeout / 2:g}",
                    self.host,
                    *arguments,
                ]
                with trio.move_on_after(self.timeout + 1) as scope:  # it counts itself; this is for a name server, say
                    async with leashed(argv, env=env, stdout=PIPE, stderr=PIPE) as process:
                        status = await relay(process, keep)
        said = " ".join(output["stderr"].decode(errors="replace").split())
        if scope.cancelled_caught or "Timeout:" in said:
            raise DeviceError(
                f"PDU {self.host}: no answer within {self.timeout:g} s; it may be off, or not know the community or user"
            )
        text = output["stdout"].decode(errors="replace")
        if status != 0 or text.startswith("No Such"):
            why = re.search(r"Reason: (\([^)]*\)|.*?)(?= Failed object|$)", said)
            raise DeviceError(f"PDU {self.host}: {(why[1] if why else said or text.strip()) or f'{program} failed'}")
        return text
