"""Commands of the exporter's machine, chosen in its configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import MethodType
from typing import Any

import trio

from jmp.driver import ConfigError, JmpError, UsageError
from jmp.driver.driver import Export, export_of
from jmp.driver.interfaces import Output
from jmp.driver.interfaces import Shell as ShellInterface
from jmp.errors import Timeout
from jmp_drivers._process import leashed, relay
from jmp_drivers._tasks import open_nursery


@dataclass(frozen=True)
class Command:
    """One command: a text for the interpreter."""

    command: str
    description: str = field(default="", metadata={"doc": "help text of the method"})
    timeout: float | None = field(default=None, metadata={"doc": "seconds after which it is ended"})
    cwd: Path | None = field(default=None, metadata={"doc": "folder in which it runs"})
    env: dict[str, str] = field(
        default_factory=dict, metadata={"doc": "variables to add to the exporter's environment"}
    )
    interpreter: str = field(default="sh", metadata={"doc": "program that is given -c, the text, the name, arguments"})


class Shell(ShellInterface):
    """Runs commands that the exporter's configuration allows; each is a method.

    Arguments reach the command as ``"$1"``, ``"$2"`` … and are never made part of its text. Its output is streamed as it
    comes, at last its exit status (128 + n after signal n). It is ended, with every process that it started, when the
    caller gives up, its time is over or the session ends: SIGTERM, and 5 seconds later SIGKILL.
    """

    commands: dict[str, str | Command]

    def __post_init__(self) -> None:
        self._commands: dict[str, Command] = {}
        for key, value in self.commands.items():
            name = key.replace("-", "_")
            command = Command(value) if isinstance(value, str) else value
            if not name.isidentifier() or name.startswith("_"):
                raise ConfigError(f"commands: {key!r} cannot be the name of a method: use letters, digits and hyphens")
            if name in self._commands:
                raise ConfigError(f"commands: {key!r} is there twice, with hyphens and underscores alike")
            if not command.command.strip():
                raise ConfigError(f"commands: {key!r} is empty")
            self._commands[name] = command

    def exports(self) -> dict[str, Export]:
        methods = {name: self._method(name, command) for name, command in self._commands.items()}
        return super().exports() | methods

    def _method(self, name: str, command: Command) -> Export:
        async def run(self: Shell, *args: str, stdin: bytes = b"") -> Output:
            job = _Job(name, command, args, stdin)
            self.nursery.start_soon(job.run)
            try:
                async for item in job.items:
                    yield item
            finally:
                await job.end()
            if job.failure is not None:
                raise job.failure

        return export_of(name, MethodType(run, self), doc=command.description or f"Run: {command.command.strip()}")


class _Job:
    """A command at work, in a task of its own: a generator must not hold a nursery while it is suspended."""

    def __init__(self, name: str, command: Command, args: Sequence[str], stdin: bytes) -> None:
        if any("\0" in argument for argument in args):
            raise UsageError("an argument must not contain a NUL character")
        self._name = name
        self._command = command
        self._args = args
        self._stdin = stdin
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._send, self.items = trio.open_memory_channel[dict[str, Any]](0)
        self.failure: JmpError | None = None

    async def run(self) -> None:
        try:
            with self._scope, self._send:
                await self._run_for(self._command.timeout)
        except JmpError as error:
            self.failure = error
        finally:
            self._ended.set()

    async def end(self) -> None:
        """End the command if it still runs; returns once all its processes are gone."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _run_for(self, seconds: float | None) -> None:
        with trio.move_on_after(math.inf if seconds is None else seconds) as scope:
            status = await self._run_process()
        if scope.cancelled_caught:
            raise Timeout(f"{self._name} did not end within {seconds:g} s and was ended")
        await self._send.send({"exit_code": status})

    async def _run_process(self) -> int:
        command = self._command
        async with leashed(
            [command.interpreter, "-c", command.command, self._name, *self._args],
            env=os.environ | command.env,
            cwd=command.cwd,
            stdin=PIPE if self._stdin else DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        ) as process:
            async with open_nursery() as nursery:
                if process.stdin is not None:
                    nursery.start_soon(self._feed, process.stdin)
                status = await relay(process, lambda name, data: self._send.send({name: data}))
                nursery.cancel_scope.cancel()
            return status

    async def _feed(self, stdin: trio.abc.SendStream) -> None:
        try:
            await stdin.send_all(self._stdin)
        except trio.BrokenResourceError:  # the command does not read all of it: its own affair
            pass
        finally:
            await stdin.aclose()
