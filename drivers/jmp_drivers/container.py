"""Containers as devices: power, console and commands, by podman or docker."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Stream, export, exportstream
from jmp.driver.interfaces import Console, Power, PowerState
from jmp_drivers._command import Ran, run_command
from jmp_drivers._terminal import Terminal, on_terminal
from jmp_drivers.console import ConsoleOptions

_OWNER = "jmp.owner"  # label of our containers: the exporter's process
_LOOK = 0.05  # seconds between two looks whether it runs: the engine tells in no other way
_LAST = 300  # characters of what the engine said last that an error quotes


class Container(ConsoleOptions):
    """A container: its power, the console of its first process, and commands in it.

    Every session has a new one, made of the image when it begins and removed at its end. It is off until it is switched on.
    """

    image: str = field(metadata={"doc": "what it is made of; fetched if the engine has not got it and can"})
    command: list[str] = field(
        default_factory=list, metadata={"doc": "its first process; the image's own, unless given"}
    )
    options: list[str] = field(
        default_factory=list, metadata={"doc": "of `podman create`, as in `--publish=127.0.0.1:8080:80`"}
    )
    program: str | list[str] = field(
        default="podman", metadata={"doc": "`podman` or `docker`, with options of its own"}
    )
    timeout: float = field(default=30.0, metadata={"doc": "seconds that an order may take"})
    fetch_timeout: float = field(
        default=600.0, metadata={"doc": "seconds that making it may take, with fetching the image"}
    )

    def __post_init__(self) -> None:
        if not self.image or self.image.startswith("-"):
            raise ConfigError("image must be the name of an image")
        if not self.program:
            raise ConfigError("program must be podman or docker")
        self._engine = [self.program] if isinstance(self.program, str) else list(self.program)
        self._name = f"jmp-{secrets.token_hex(6)}"
        self._made = False
        self.children["power"] = ContainerPower(_container=self)
        self.children["console"] = ContainerConsole(_container=self)
        self._hub = self.make_hub()
        self._terminal: Terminal | None = None
        self._attached = trio.CancelScope()
        self._detached = trio.Event()
        self._detached.set()
        self._said: deque[str] = deque(maxlen=_LAST)

    async def open(self) -> None:
        self._hub.open_log()
        await self._remove_orphans()
        argv = ["create", "--tty", "--interactive", f"--name={self._name}", f"--label={_OWNER}={os.getpid()}"]
        ran = await self._run([*argv, *self.options, self.image, *self.command], self.fetch_timeout)
        if ran.status != 0:
            raise DeviceError(f"the container cannot be made of {self.image}{_complaint(ran)}")
        self._made = True

    async def close(self) -> None:
        self._made = False
        await self._detach()
        self._hub.end()
        await self._run(["kill", self._name], self.timeout)  # podman's rm would be polite for ten seconds
        await self._run(["rm", "--force", self._name], self.timeout)

    async def _remove_orphans(self) -> None:
        """Those of exporters that were killed."""
        label = f'index .Labels "{_OWNER}"' if "podman" in self._engine[0] else f'.Label "{_OWNER}"'
        form = f"{{{{.ID}}}} {{{{{label}}}}}"
        ran = await self._run(["ps", "--all", f"--filter=label={_OWNER}", f"--format={form}"], self.timeout)
        for line in ran.output.splitlines():
            number, _, owner = line.partition(" ")
            if owner.isdigit() and not _is_alive(int(owner)):
                await self._run(["rm", "--force", number], self.timeout)

    @export
    async def pause(self) -> None:
        """Stop all its processes where they are."""
        await self._order("pause", self._name)

    @export
    async def resume(self) -> None:
        """Let its processes go on after a pause."""
        await self._order("unpause", self._name)

    @export
    async def run(self, command: list[str]) -> dict[str, Any]:
        """Run a command in it: its `stdout` and `stderr`, the last 64 KiB of each, and its `exit_code`."""
        if not command:
            raise BadValue("there is no command")
        if await self.state() != "on":
            raise DeviceError("the container is not running: switch it on first")
        ran = await self._run(["exec", self._name, *command], self.timeout)
        return {"stdout": ran.output, "stderr": ran.errors, "exit_code": ran.status}

    async def state(self) -> PowerState:
        if not self._made:
            raise DeviceError("there is no container: see what its driver says (jmp shell, help)")
        ran = await self._run(["inspect", "--format={{.State.Running}} {{.State.Paused}}", self._name], self.timeout)
        if ran.status != 0:
            self.lost(f"the container is gone{_complaint(ran)}")
            raise DeviceError(f"the container is gone{_complaint(ran)}")
        return "on" if "true" in ran.output else "off"

    # ---- its terminal

    async def _start(self) -> None:
        """Start it with its terminal here. Raises `DeviceError`."""
        await self._detach()
        self._attached, self._detached = trio.CancelScope(), trio.Event()
        self._said.clear()
        self.nursery.start_soon(self._attach)
        with trio.move_on_after(self.timeout):
            while not self._detached.is_set():
                if await self.state() == "on":
                    return
                await trio.sleep(_LOOK)
            if not any("Error" in line for line in self._said_lines()):
                return  # it has done its work already
        last = self._said_lines()[-1:]
        raise DeviceError(f"the container does not start{f': {last[0]}' if last else ''}")

    def _said_lines(self) -> list[str]:
        return [line.strip() for line in "".join(self._said).splitlines() if line.strip()]

    async def _detach(self) -> None:
        self._attached.cancel()
        await self._detached.wait()

    async def _attach(self) -> None:
        argv = [*self._engine, "start", "--attach", "--interactive", self._name]
        try:
            with self._attached:
                async with on_terminal(argv, self._heard) as terminal:
                    self._terminal = terminal
                    await terminal.run()
        finally:
            self._terminal = None
            self._detached.set()

    def _heard(self, data: bytes) -> None:
        self._said.extend(data.decode(errors="replace"))
        self._hub.feed(data)

    async def _type(self, data: bytes) -> None:
        try:
            if self._terminal is None:
                raise trio.ClosedResourceError
            await self._terminal.write(data)
        except trio.ClosedResourceError:
            raise DeviceError("the container is not running: switch it on first") from None

    # ---- the engine

    async def _order(self, *arguments: str) -> None:
        ran = await self._run(list(arguments), self.timeout)
        if ran.status != 0:
            raise DeviceError(f"{self._engine[0]} {arguments[0]} failed{_complaint(ran)}")

    async def _run(self, arguments: Sequence[str], seconds: float) -> Ran:
        return await run_command(f"{self._engine[0]} {arguments[0]}", [*self._engine, *arguments], seconds)


def _is_alive(process: int) -> bool:
    return os.path.exists(f"/proc/{process}")


def _complaint(ran: Ran) -> str:
    said = ran.complaint()
    return said.replace("Error: ", "", 1) if said else f": exit status {ran.status}"


class ContainerPower(Power):
    """Starts the container, and kills it."""

    _container: Container = field(repr=False)

    @export
    async def on(self) -> None:
        if await self._container.state() == "off":
            await self._container._start()

    @export
    async def off(self) -> None:
        if await self._container.state() == "on":
            await self._container._order("kill", self._container._name)
            await self._container._detach()

    @export
    async def state(self) -> PowerState:
        return await self._container.state()


class ContainerConsole(Console):
    """The terminal of its first process; stays attached when the container is switched off and on."""

    _container: Container = field(repr=False)

    @exportstream
    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        container = self._container
        await container._hub.serve(stream, container._type, replay=replay, write=write, take_over=take_over)

    @export
    async def history(self) -> bytes:
        return self._container._hub.history()

    @export
    async def send(self, data: bytes) -> None:
        await self._container._type(data)
