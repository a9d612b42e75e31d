"""OpenSSH's programs on the way to a device's server.

They reach it by a Unix socket in a folder that only this user can enter, so nobody else on this machine can connect: a
ProxyCommand, this Python with five lines, hands them the connected socket (ProxyUseFdpass) and is gone. Key, password and
host keys are in that folder too, and gone with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from jmp.errors import DeviceError, JmpError, ProtocolViolation, UsageError

_PASS: Final = (
    "import socket,sys;"
    "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
    "socket.send_fds(socket.socket(fileno=1),[b'.'],[s.fileno()])"
)
_PASSWORD: Final = "JMP_SSH_PASSWORD"
ALIVE_SECONDS: Final = 15
"""After three times as long without an answer a server is given up."""


class Way:
    """A way to the server, and what its user is known by."""

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any]) -> None:
        self.listen = f"unix:{folder / 'port'}"
        """Where connections to the server are to be accepted."""
        self.user = str(identity.get("user", ""))
        self.password = str(identity.get("password", ""))
        self.host_keys = [str(each) for each in identity.get("host_keys", ())]
        self.key_file: Path | None = None
        self.environment: dict[str, str] | None = None
        """None: this process's own."""
        self._name = name
        self._said = folder / "said"
        self._failures: list[JmpError] = []
        known = folder / "known_hosts"
        known.write_text("".join(f"device {key}\n" for key in self.host_keys))
        proxy = [sys.executable, "-IS", "-c", _PASS, str(folder / "port")]
        self._options = {
            "ProxyCommand": shlex.join(proxy).replace("%", "%%"),
            "ProxyUseFdpass": "yes",
            "HostKeyAlias": "device",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes" if self.host_keys else "no",
            "UpdateHostKeys": "no",
            "ControlPath": "none",
            "ServerAliveInterval": str(ALIVE_SECONDS),
            "LogLevel": "ERROR",
        }
        if self.user:
            self._options["User"] = self.user
        if key := str(identity.get("key", "")):
            self.key_file = folder / "key"
            self.key_file.write_text(key if key.endswith("\n") else f"{key}\n")
            self.key_file.chmod(0o600)
            self._options |= {"IdentityFile": str(self.key_file), "IdentitiesOnly": "yes"}
        if self.password:
            ask = folder / "ask"
            ask.write_text(f'#!/bin/sh\nprintf "%s\\n" "${_PASSWORD}"\n')
            ask.chmod(0o700)
            self.environment = os.environ | {
                _PASSWORD: self.password,
                "SSH_ASKPASS": str(ask),
                "SSH_ASKPASS_REQUIRE": "force",
            }
            self._options["NumberOfPasswordPrompts"] = "1"

    def ssh(self, *options: str, tty: bool) -> list[str]:
        """The command line up to the command. With ``tty`` the command has a terminal, and what is missing is asked for there."""
        self._said.write_bytes(b"")
        asking = [] if tty or self.password else ["-o", "BatchMode=yes"]
        terminal = "-tt" if tty else "-T"
        return [_program("ssh"), *self._common(), *asking, "-E", str(self._said), terminal, *options, "device"]

    def scp(self, *, older: bool) -> list[str]:
        """The command line up to what is to be copied; ``older``: by a program of the device's instead of by SFTP."""
        self._said.write_bytes(b"")
        return [_program("scp"), *self._common(), "-r", "-p", *(["-O"] if older else [])]

    def _common(self) -> list[str]:
        return [
            "-F",
            "/dev/null",
            *(word for name, value in self._options.items() for word in ("-o", f"{name}={value}")),
        ]

    def failed(self, _: object, error: JmpError) -> None:
        """A connection to the server could not be made, or broke."""
        self._failures.append(error)

    def lacks_sftp(self, said: bytes) -> bool:
        """Whether SFTP was what scp failed for."""
        return not self._failures and (b"subsystem request failed" in said or b"Connection closed" in said)

    def check(self, status: int) -> None:
        """Raise what kept ssh, rather than its command, from working: its status is 255 then."""
        if status != 255:
            return
        if self._failures:
            raise self._failures[0]
        said = self._said.read_text(errors="replace").strip().splitlines()
        if said:
            raise DeviceError(f"{self._name}: {said[-1].strip().removeprefix('device: ')}")


@contextmanager
def way(name: str, identity: object) -> Iterator[Way]:
    """A way for the length of a block. ``identity`` is what the driver tells; ``name``, the driver's, is for messages."""
    if not isinstance(identity, Mapping):
        raise ProtocolViolation(f"{name} told no identity")
    with tempfile.TemporaryDirectory(prefix="jmp-ssh-") as folder:
        yield Way(Path(folder), name, identity)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} is not installed on this machine: on Debian it is in the package openssh-client")
    return found
