"""Consoles that a program gives: any command, ssh, conserver's client."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

import trio

from jmp.driver import ConfigError, DeviceError, export
from jmp_drivers._terminal import Terminal, on_terminal
from jmp_drivers.console import HubConsole

_LAST = 300  # characters of what a program said last that an error quotes
_GRACE = 2.0  # seconds that a program gets to end


class ProgramConsole(HubConsole):
    """What a program says on a terminal of its own is the console. When it ends, it is started again."""

    async def open(self) -> None:
        self._hub.open_log()
        self._terminal: Terminal | None = None
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._last: deque[str] = deque(maxlen=_LAST)
        await self.nursery.start(self._run)

    async def close(self) -> None:
        self._scope.cancel()
        await self._over.wait()
        self._hub.end()

    @abstractmethod
    def _command(self, folder: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command, and what it gets besides the exporter's environment; files of its own go to ``folder``."""

    def _cwd(self) -> Path | None:
        return None

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        """The program from start to end; raises `DeviceError` if it cannot be started."""
        why = ""
        try:
            with self._scope, tempfile.TemporaryDirectory(prefix="jmp-console-") as folder:
                argv, variables = self._command(Path(folder))
                env = {"TERM": "vt100"} | dict(os.environ) | dict(variables)
                async with on_terminal(argv, self._heard, env=env, cwd=self._cwd(), grace=_GRACE) as terminal:
                    self._terminal = terminal
                    task_status.started()
                    why = self._end(await terminal.run())
        finally:
            self._terminal = None
            self._over.set()
        if why:
            await self._gone(why)

    def _heard(self, data: bytes) -> None:
        self._last.extend(data.decode(errors="replace"))
        self._hub.feed(data)

    def _end(self, status: int) -> str:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        lines = [line.strip() for line in "".join(self._last).splitlines() if line.strip()]
        return f"{self._name()} ended with {how}{f': {lines[-1]}' if lines else ''}"

    @abstractmethod
    def _name(self) -> str:
        """The program, as a message names it."""

    async def _write(self, data: bytes) -> None:
        try:
            if self._terminal is None:
                raise trio.ClosedResourceError
            await self._terminal.write(data)
        except trio.ClosedResourceError:
            raise DeviceError(f"{self._name()} has ended") from None


class CommandConsole(ProgramConsole):
    """A console that a command of the exporter's machine gives: ``ipmitool sol activate``, ``virsh console``, ``docker attach``.

    The command is a list of arguments, or a text for ``sh``. It has a terminal of its own, and is started again when it ends.
    """

    command: str | list[str]
    env: dict[str, str] = field(
        default_factory=dict, metadata={"secret": True, "doc": "variables to add to the exporter's environment"}
    )
    cwd: Path | None = field(default=None, metadata={"doc": "folder in which it runs"})

    def __post_init__(self) -> None:
        if not self.command:
            raise ConfigError("command: it is empty")
        super().__post_init__()

    def _command(self, folder: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        return (["/bin/sh", "-c", self.command] if isinstance(self.command, str) else self.command), self.env

    def _cwd(self) -> Path | None:
        return self.cwd

    def _name(self) -> str:
        return f"the command {self.command.split()[0] if isinstance(self.command, str) else self.command[0]}"


class SshConsole(ProgramConsole):
    """A console behind SSH: of a terminal server, a BMC, or a program on another machine (``picocom``, ``tio``).

    The exporter's ``ssh`` logs in and runs ``command``, or what that user gets without. Key and password stay with the exporter.
    """

    host: str
    port: int = 22
    user: str = "root"
    key: Path | None = field(default=None, metadata={"doc": "file of the private key, without a passphrase"})
    password: str = field(default="", metadata={"secret": True, "doc": "the user's password"})
    host_keys: list[str] = field(
        default_factory=list, metadata={"doc": "public keys of the server, as 'TYPE KEY'; without any, it may have any"}
    )
    command: str = field(default="", metadata={"doc": "what to run there; default: a login"})

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"port must be 1 to 65535, not {self.port}")
        for name in ("host", "user"):
            if getattr(self, name).startswith("-") or not getattr(self, name):
                raise ConfigError(f"{name}: {getattr(self, name)!r} cannot be one")
        super().__post_init__()

    def _command(self, folder: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        if self.key is not None and not self.key.is_file():
            raise DeviceError(f"cannot read the key {self.key}: there is no such file")
        known = folder / "known_hosts"
        known.write_text("".join(f"console {key}\n" for key in self.host_keys))
        options = {
            "HostKeyAlias": "console",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes" if self.host_keys else "no",
            "UpdateHostKeys": "no",
            "ControlPath": "none",
            "LogLevel": "ERROR",
            "EscapeChar": "none",  # every byte is for the console
            "ServerAliveInterval": "10",
            "ConnectTimeout": "10",
        }
        variables: dict[str, str] = {}
        if self.key is not None:
            options |= {"IdentityFile": str(self.key), "IdentitiesOnly": "yes"}
        if self.password:
            ask = folder / "ask"
            ask.write_text('#!/bin/sh\nprintf "%s\\n" "$JMP_SSH_PASSWORD"\n')
            ask.chmod(0o700)
            options["NumberOfPasswordPrompts"] = "1"
            variables = {
                "JMP_SSH_PASSWORD": self.password,
                "SSH_ASKPASS": str(ask),
                "SSH_ASKPASS_REQUIRE": "force",
            }
        else:
            options["BatchMode"] = "yes"
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        line = ["ssh", "-F", "/dev/null", "-tt", *given, "-p", str(self.port), "-l", self.user, "--", self.host]
        return [*line, *([self.command] if self.command else [])], variables

    def _name(self) -> str:
        return f"ssh to {self.user}@{self.host}"


class Conserver(ProgramConsole):
    """A console of a conserver, reached by its client, the program ``console`` (Debian's package conserver-client).

    It attaches for reading and writing, in place of who does unless ``polite``.
    """

    console: str = field(metadata={"doc": "its name there"})
    host: str = field(default="console", metadata={"doc": "the machine of the conserver"})
    port: int = field(default=782, metadata={"doc": "its port"})
    user: str = field(default="", metadata={"doc": "who logs in; default: the exporter's user"})
    encrypted: bool = field(default=True, metadata={"doc": "insist on TLS; off: take what the server offers"})
    polite: bool = field(default=False, metadata={"doc": "only look while somebody else writes"})

    def __post_init__(self) -> None:
        if not self.console or self.console.startswith("-"):
            raise ConfigError(f"console: {self.console!r} cannot be the name of one")
        if not 0 < self.port < 65536:
            raise ConfigError(f"port must be 1 to 65535, not {self.port}")
        super().__post_init__()

    def _command(self, folder: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        if shutil.which("console") is None:
            raise DeviceError(
                "the program console is not installed on the exporter's machine: on Debian it is in the package conserver-client"
            )
        line = ["console", "-n", "-C", "/dev/null", "-M", self.host, "-p", str(self.port), "-e", _ESCAPE_NAMED]
        line += ["-l", self.user] if self.user else []
        line += [] if self.encrypted else ["-E", "-U"]
        return [*line, "-a" if self.polite else "-f", self.console], {}

    def _name(self) -> str:
        return f"the client of conserver {self.host}"

    @export
    async def send_break(self) -> None:
        """Let conserver send its break."""
        await self._write(_ESCAPE + b"l0")


# Two characters that no console is likely to be sent one after the other: what follows them is for conserver.
_ESCAPE = b"\x1f\x1e"
_ESCAPE_NAMED = "^_^^"
