"""Outlets of PDUs, and whatever else switches, that take commands over SSH."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from tempfile import TemporaryDirectory

from jmp.driver import ConfigError, DeviceError
from jmp_drivers._command import run_command
from jmp_drivers.power import CommandedPower

_FAILED = 255  # exit status of ssh itself, see ssh(1)


class SshPower(CommandedPower):
    """An outlet of a PDU that takes commands over SSH, by the program ``ssh``.

    A command is what one would type there. With ``prompt: true`` it is typed at the prompt of a PDU that has no other way in,
    followed by ``leave``. It has succeeded if it ends with exit status 0 and prints no ``failure``. ``state`` must print
    something in which ``on_pattern`` or ``off_pattern`` is found. ``{wait}`` in ``cycle`` is the time to stay off, in seconds.
    """

    host: str = field(metadata={"doc": "name or address, or a name in the exporter's ssh_config"})
    port: int | None = field(default=None, metadata={"doc": "if it is not 22"})
    user: str | None = None
    identity: Path | None = field(default=None, metadata={"doc": "file with the private key"})
    password: str | None = field(default=None, metadata={"secret": True, "doc": "for a PDU that takes no key"})
    host_key: str | None = field(
        default=None, metadata={"doc": "the PDU's own, as in `ssh-ed25519 AAAA…`; otherwise known_hosts has it"}
    )
    options: list[str] = field(
        default_factory=list,
        metadata={"doc": "of ssh -o, as in `KexAlgorithms=+diffie-hellman-group14-sha1` for an old PDU"},
    )
    prompt: bool = field(default=False, metadata={"doc": "type the command at the PDU's prompt"})
    leave: str = field(default="exit", metadata={"doc": "with `prompt`, what ends the session"})
    failure: str = field(default="", metadata={"doc": "text in the output that means that it failed"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host or self.host.startswith("-"):
            raise ConfigError("host must be a name or address")

    async def _run(self, name: str, command: str | list[str], allow: float = 0, **variables: str) -> str:
        text = command if isinstance(command, str) else shlex.join(command)
        text = text.replace("{wait}", variables.get("JMP_WAIT", ""))
        what = f"the command for {name!r} at {self.host}"
        with self._settings() as (options, env):
            argv = ["ssh", "-T", *options, "--", self.host, *([] if self.prompt else [text])]
            typed = f"{text}\n{self.leave}\n" if self.prompt else None
            ran = await run_command(what, argv, self.timeout + allow, env=env, stdin=typed)
        if ran.status == _FAILED:
            raise DeviceError(f"cannot reach {self.host} by ssh{ran.complaint()}")
        if ran.status != 0 and not self.prompt:
            raise DeviceError(f"{what} failed with exit status {ran.status}{ran.complaint()}")
        if self.failure and self.failure in ran.output + ran.errors:
            lines = (ran.output + ran.errors).splitlines()
            (line, *_) = (line.strip() for line in lines if self.failure in line)
            raise DeviceError(f"{what} failed: {line}")
        return ran.output

    @contextmanager
    def _settings(self) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Options and environment of ssh; what they point to is gone afterwards."""
        options = [
            "-o",
            f"ConnectTimeout={max(1, round(self.timeout))}",
            "-o",
            f"BatchMode={'no' if self.password else 'yes'}",
        ]
        env = dict(os.environ)
        with TemporaryDirectory(prefix="jmp-ssh-") as folder:
            if self.port is not None:
                options += ["-p", str(self.port)]
            if self.user is not None:
                options += ["-l", self.user]
            if self.identity is not None:
                options += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
            if self.host_key is not None:
                known = Path(folder, "known_hosts")
                known.write_text(f"jmp {self.host_key}\n")
                options += [
                    "-o",
                    f"UserKnownHostsFile={known}",
                    "-o",
                    "HostKeyAlias=jmp",
                    "-o",
                    "StrictHostKeyChecking=yes",
                ]
            if self.password is not None:
                ask = Path(folder, "ask")
                ask.write_text("#!/bin/sh\nprintf '%s\\n' \"$JMP_SSH_PASSWORD\"\n")
                ask.chmod(0o700)
                env |= {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "JMP_SSH_PASSWORD": self.password}
                options += ["-o", "NumberOfPasswordPrompts=1", "-o", "PubkeyAuthentication=no"]
            for option in self.options:
                options += ["-o", option]
            yield options, env
