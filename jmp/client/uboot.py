"""U-Boot on a console: its prompt, commands with their status, its environment, files and kernels by TFTP.

Written once, over the console's client: a blocking client uses it through :class:`~jmp.driver.proxy.Blocking`. A command is
typed, compared with its echo, and only then entered, so that one that suffered on the line is never carried out; its status is
asked for with a line of its own, after the prompt has come back.
"""
# ruff: noqa: ASYNC109  # time-outs are those of the console's expect

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from jmp.driver.proxy import Asynchronous, Blocking, DriverClient, verb
from jmp.errors import ConfigError, DeviceError, NotFound, Timeout, UsageError
from jmp.rpc.blocking import BlockingCaller

if TYPE_CHECKING:
    from jmp.client.console import ConsoleClient
    from jmp.client.files import FilesClient

ECHO_SECONDS: Final = 5.0
"""How long U-Boot may take to echo what was typed at its prompt."""
LOAD_SECONDS: Final = 600.0
"""How long it may take to fetch a file: U-Boot gives up by itself long before, unless the file is large and the network slow."""
TFTP_PORT: Final = 69

_INTERRUPT: Final = "\x03"
_KERNELS: Final = (  # where in the file, what is there, what starts it
    (0x38, b"ARM\x64", "booti"),
    (0x38, b"RSC\x05", "booti"),
    (0x24, b"\x18\x28\x6f\x01", "bootz"),
    (0x00, b"\x27\x05\x19\x56", "bootm"),  # uImage
    (0x00, b"\xd0\x0d\xfe\xed", "bootm"),  # FIT
    (0x202, b"HdrS", "zboot"),
)


@dataclass(frozen=True)
class Settings:
    """What differs between boards."""

    prompt: str = "=> "
    """Regular expression of the prompt, at the beginning of a line."""
    autoboot: str = r"(?i)(?:hit|press)\b.{0,40}\bautoboot|autoboot in \d+"
    """Regular expression of what U-Boot says when it can be interrupted."""
    stop: str = " "
    """What interrupts it."""
    repeat: float = 0.0
    """Seconds between one ``stop`` and the next from power-on, for boards that leave no time; 0: only when it is due."""
    starting: str = r"Starting kernel|## Transferring control"
    """Regular expression of the last that it says when it starts a kernel."""
    boot_timeout: float = 60.0
    """Seconds from power-on to the prompt."""
    timeout: float = 30.0
    """Seconds that a command may take."""
    network: str = "setenv autoload no; dhcp"
    """Command that gets an address, if there is none."""
    tftp_window: int = 0
    """Blocks that it has sent at once by TFTP; 0: as its environment says, which is one."""


@dataclass(frozen=True)
class Result:
    """What came of a command."""

    status: int
    output: str


class UBoot(Asynchronous):
    """U-Boot on a console that is attached. Its methods are coroutines under Trio and plain methods in a blocking client."""

    def __init__(self, console: Any, settings: Settings, files: FilesClient | None = None) -> None:
        self.console = console
        """The console, to ``expect`` and ``send`` besides."""
        self.settings = settings
        self._files = files
        self._prompt = rf"(?:^|\r?\n|\r){settings.prompt}"

    async def interrupt(self, *, timeout: float | None = None) -> None:
        """Get to the prompt: wait for the countdown and stop it, unless U-Boot is at its prompt already.

        Raises Timeout, with the last lines, if it does not come. A system that has booted is not disturbed but for a Ctrl-C.
        """
        settings = self.settings
        left = settings.boot_timeout if timeout is None else timeout
        await self._send(_INTERRUPT)
        patterns = [self._prompt, settings.autoboot]
        while True:
            pause = min(settings.repeat or left, left)
            try:
                which = await self._expect(patterns, pause)
            except Timeout:
                left -= pause
                if left <= 0:
                    raise
                await self._send(settings.stop)
                continue
            if which == 0:
                break
            await self._send(settings.stop)
        # What was typed too much, and answers to it, are behind us when this comes back.
        await self._ask_status()

    async def execute(self, command: str, *, timeout: float | None = None) -> Result:
        """Run a command: its status and what it printed.

        U-Boot must be at its prompt. Needs its hush shell, as nearly all have it. One that does not come back to the prompt in
        time is interrupted and raises Timeout.
        """
        output = await self._enter(command, self.settings.timeout if timeout is None else timeout)
        return Result(await self._ask_status(), output)

    async def run(self, command: str, *, timeout: float | None = None) -> str:
        """What a command prints. Raises DeviceError, with its status and output, unless the status is 0."""
        result = await self.execute(command, timeout=timeout)
        if result.status:
            last = result.output.strip().splitlines()[-1:] or ["it printed nothing"]
            raise DeviceError(f"U-Boot: {command!r} ended with status {result.status}: {last[0].strip()}")
        return result.output

    async def env(self) -> dict[str, str]:
        """The whole environment."""
        listed = re.sub(r"\nEnvironment size: .*\s*\Z", "\n", await self.run("printenv"))
        # All at once they come with line ends and backslashes inside of them escaped, one at a time they do not.
        lines = re.findall(r"((?:\\[\s\S]|[^\\\n])+)", listed)
        pairs = (re.sub(r"\\([\s\S])", r"\1", line).partition("=") for line in lines)
        return {name: value for name, equals, value in pairs if equals}

    async def env_get(self, name: str) -> str:
        """The value of an environment variable. Raises NotFound if there is none."""
        result = await self.execute(f"printenv {_word(name)}")
        value = result.output.strip("\n").partition("=")[2]
        if result.status:
            raise NotFound(f"U-Boot has no environment variable {name!r}")
        return value

    async def env_set(self, name: str, value: str = "") -> None:
        """Set an environment variable, or delete it, if the value is empty. It is forgotten at the next reset unless saved."""
        await self.run(f"setenv {_word(name)} {_word(value)}" if value else f"setenv {_word(name)}")

    async def env_save(self) -> None:
        """Save the environment, so that it is there after a reset."""
        await self.run("saveenv")

    async def load(
        self, file: Path | str, address: str = "${loadaddr}", *, name: str | None = None, verify: bool = True
    ) -> int:
        """Put FILE where U-Boot can fetch it, let it fetch it by TFTP to ADDRESS, and compare checksums; its size in bytes.

        Served under its own name unless NAME is given. Needs the child ``tftp``.
        """
        if self._files is None:
            raise ConfigError("U-Boot has no TFTP server here: give it a child 'tftp' in the exporter's configuration")
        name = name or Path(file).name
        url = urlsplit(await self._files.put(file, name=name))
        if not re.search(r"^ipaddr=.", (await self.execute("printenv ipaddr")).output, re.MULTILINE):
            await self.run(self.settings.network)
        if (url.port or TFTP_PORT) != TFTP_PORT:
            await self.env_set("tftpdstp", str(url.port))
        if self.settings.tftp_window:
            await self.env_set("tftpwindowsize", str(self.settings.tftp_window))
        said = await self.run(f"tftpboot {address} {_word(f'{url.hostname}:{name}')}", timeout=LOAD_SECONDS)
        match = re.search(r"Bytes transferred = (\d+)", said)
        if match is None:
            raise DeviceError(f"U-Boot did not fetch {name}: {_last_lines(said)}")
        size = int(match[1])
        if verify:
            await self._verify(self._files, Path(file), address, size)
        return size

    async def boot(
        self,
        kernel: Path | str | None = None,
        *,
        initrd: Path | str | None = None,
        dtb: Path | str | None = None,
        args: str | None = None,
        command: str = "",
    ) -> str:
        """Start a kernel that is fetched by TFTP; without one, what U-Boot would have booted (``boot``). What it said until then.

        ARGS are the kernel's command line; without a device tree it gets U-Boot's own. COMMAND (booti, bootz, bootm …) is told by
        the kernel's first bytes. Raises DeviceError if U-Boot comes back to its prompt instead.
        """
        if args is not None:
            await self.env_set("bootargs", args)
        line = command or "boot"
        if kernel is not None:
            line = command or _boot_command(Path(kernel))
            await self.load(kernel, "${kernel_addr_r}")
            disk = "-"
            if initrd is not None:
                disk = f"${{ramdisk_addr_r}}:{await self.load(initrd, '${ramdisk_addr_r}'):x}"
            tree = "${fdtcontroladdr}"
            if dtb is not None:
                tree = "${fdt_addr_r}"
                await self.load(dtb, tree)
            line = f"{line} ${{kernel_addr_r}} {disk} {tree}"
        await self._type(line)
        await self._send("\r")
        which = await self._expect([self.settings.starting, self._prompt], self.settings.boot_timeout)
        said: str = self.console.before.replace("\r\n", "\n").lstrip("\n")
        if which == 1:
            raise DeviceError(f"U-Boot did not boot: {_last_lines(said)}")
        return said

    async def reset(self, *, interrupt: bool = True) -> None:
        """Restart the board, and come back to the prompt unless INTERRUPT is off."""
        await self._type("reset")
        await self._send("\r")
        if interrupt:
            # Not by interrupt(): its Ctrl-C would come before the reset, and the old prompt be taken for the new one.
            which = await self._expect([self.settings.autoboot, self._prompt], self.settings.boot_timeout)
            if which == 0:
                await self._send(self.settings.stop)
                await self._expect(self._prompt, self.settings.boot_timeout)
            await self._ask_status()

    async def _verify(self, files: FilesClient, file: Path, address: str, size: int) -> None:
        result = await self.execute(f"crc32 {address} {size:x}")
        there = re.search(r"==> ([0-9a-f]{8})", result.output)
        if result.status or there is None:
            return  # built without it
        here = await files._backend.run(_crc32, file)
        if int(there[1], 16) != here:
            raise DeviceError(f"U-Boot fetched something else than {file}: crc32 {there[1]} there, {here:08x} here")

    async def _enter(self, command: str, timeout: float) -> str:
        """Type a command, and what it printed until the prompt came back."""
        if not command.strip() or "\n" in command or "\r" in command:
            raise UsageError(f"a command for U-Boot is one line that is not empty, not {command!r}")
        await self._type(command)
        await self._send("\r")
        try:
            await self._expect(self._prompt, timeout)
        except Timeout as error:
            await self._give_up()
            raise Timeout(
                f"U-Boot: {command!r} had not ended after {timeout:g} s, and was interrupted; {error.message.partition('; ')[2]}"
            ) from None
        said: str = self.console.before.replace("\r\n", "\n")
        return said.removeprefix("\n") + ("\n" if said.strip("\n") else "")

    async def _type(self, line: str) -> None:
        await self._send(line)
        try:
            await _settled(self.console.expect_exact(line, timeout=ECHO_SECONDS))
        except Timeout as error:
            await self._give_up()
            raise DeviceError(
                f"U-Boot did not echo {line!r}: it is not at its prompt (interrupt it first), or the line loses characters; "
                + error.message.partition("; ")[2]
            ) from None

    async def _ask_status(self) -> int:
        """The last command's status. Leaves U-Boot at its prompt, with nothing behind it."""
        await self._type("echo jmp=$?")
        await self._send("\r")
        await self._expect(r"[\r\n]jmp=(\S+)", ECHO_SECONDS)
        said = self.console.match[1]
        await self._expect(self._prompt, ECHO_SECONDS)
        if not said.isdigit():
            raise DeviceError("this U-Boot tells no status of commands: it is built without its hush shell")
        return int(said)

    async def _give_up(self) -> None:
        """Interrupt what is being typed or goes on, and see it end."""
        with suppress(Timeout):
            await self._send(_INTERRUPT)
            await self._expect(self._prompt, ECHO_SECONDS)

    async def _send(self, text: str) -> None:
        await _settled(self.console.send(text))

    async def _expect(self, patterns: Any, timeout: float) -> int:
        which: int = await _settled(self.console.expect(patterns, timeout=timeout))
        return which


def _last_lines(said: str) -> str:
    """The end of what was said."""
    return "; ".join([line.strip() for line in said.splitlines() if line.strip()][-4:]) or "it said nothing"


class UBootClient(DriverClient):
    """U-Boot on the console of a board."""

    def attach(self) -> AbstractAsyncContextManager[UBoot]:
        """U-Boot, and its console for oneself, for a block: ``with dut.u_boot.attach() as u: u.interrupt()``."""
        return self._attached()

    @asynccontextmanager
    async def _attached(self) -> AsyncIterator[UBoot]:
        settings: Mapping[str, Any] = await self._backend.call(self._node.path, "settings", (), {})
        known = {key: value for key, value in settings.items() if key in Settings.__dataclass_fields__}
        files: Any = self._children.get("tftp")
        async with attached(self._child("console", "jmp.console/v1"), Settings(**known), files) as u_boot:
            yield u_boot

    @verb
    async def interrupt(self, *, cycle: Annotated[bool, "switch the board off and on first"] = False) -> None:
        """Get to U-Boot's prompt: stop the countdown, unless it is there already."""
        async with self._attached() as u_boot:
            if cycle:
                power: Any = self._child("power", "jmp.power/v1")
                await self._backend.call(power._node.path, "cycle", (), {})
            await u_boot.interrupt()

    @verb
    async def run(self, command: str, *, timeout: float | None = None) -> str:
        """What a command at U-Boot's prompt prints. One that fails is a DeviceError, with its status."""
        async with self._attached() as u_boot:
            return (await u_boot.run(command, timeout=timeout)).rstrip("\n")

    @verb
    async def env(self) -> dict[str, str]:
        """The whole environment."""
        async with self._attached() as u_boot:
            return await u_boot.env()

    @verb
    async def env_get(self, name: str) -> str:
        """The value of an environment variable."""
        async with self._attached() as u_boot:
            return await u_boot.env_get(name)

    @verb
    async def env_set(self, name: str, value: str = "", *, save: bool = False) -> None:
        """Set an environment variable, or delete it, if there is no VALUE. With SAVE it is there after a reset, too."""
        async with self._attached() as u_boot:
            await u_boot.env_set(name, value)
            if save:
                await u_boot.env_save()

    @verb
    async def env_save(self) -> None:
        """Save the environment, so that it is there after a reset."""
        async with self._attached() as u_boot:
            await u_boot.env_save()

    @verb
    async def load(self, file: Path | str, address: str = "${loadaddr}") -> int:
        """Let U-Boot fetch FILE by TFTP to ADDRESS in its memory, and compare checksums. Its size in bytes."""
        async with self._attached() as u_boot:
            return await u_boot.load(file, address)

    @verb
    async def boot(
        self,
        kernel: Path | str | None = None,
        *,
        initrd: Path | str | None = None,
        dtb: Path | str | None = None,
        args: Annotated[str | None, "the kernel's command line"] = None,
        command: Annotated[str, "what starts it; told by the kernel's first bytes"] = "",
    ) -> None:
        """Start a kernel that U-Boot fetches by TFTP, with its files; without one, what it would have booted."""
        async with self._attached() as u_boot:
            await u_boot.boot(kernel, initrd=initrd, dtb=dtb, args=args, command=command)

    @verb
    async def reset(self, *, interrupt: Annotated[bool, "come back to the prompt"] = True) -> None:
        """Restart the board from U-Boot's prompt."""
        async with self._attached() as u_boot:
            await u_boot.reset(interrupt=interrupt)

    def _child(self, name: str, interface: str) -> Any:
        child = self._children.get(name)
        if child is None or child._node.interface != interface:
            raise ConfigError(
                f"{self._node.path} has no {name} here: give it a child {name!r} ({interface}) in the exporter's "
                f"configuration, such as {name}: {{ref: board.{name}}}"
            )
        return child


@asynccontextmanager
async def attached(
    console: ConsoleClient, settings: Settings, files: FilesClient | None = None
) -> AsyncIterator[UBoot]:
    """U-Boot on any console, for a block. What the console said before is not looked at."""
    from jmp.client.adapters.expect import Console, TrioConsole

    options: dict[str, Any] = {
        "timeout": settings.timeout,
        "prompt": None,
        "encoding": "utf-8",
        "errors": "replace",
    }
    name = console._node.path or "console"
    async with console.connect(replay=False) as stream:
        if isinstance(console._backend, BlockingCaller):
            yield UBoot(Console(Blocking(stream), name, **options), settings, files)
        else:
            yield UBoot(TrioConsole(stream, name, **options), settings, files)


async def _settled(value: Any) -> Any:
    """The value, awaited if it has to be: the console may be one for threads or one for tasks."""
    return await value if inspect.isawaitable(value) else value


def _word(text: str) -> str:
    """Text as one word for U-Boot's shell, whatever is in it."""
    if "\n" in text or "\r" in text:
        raise UsageError(f"U-Boot's command line takes no line ends, as in {text!r}")
    return "'" + re.sub(r"[\\']", r"'\\\g<0>'", text) + "'"  # its shell takes backslashes between quotes for its own


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _boot_command(kernel: Path) -> str:
    try:
        with kernel.open("rb") as file:
            head = file.read(0x210)
    except OSError as error:
        raise UsageError(f"{kernel} cannot be read: {error.strerror}") from error
    for place, magic, command in _KERNELS:
        if head[place : place + len(magic)] == magic:
            return command
    raise UsageError(
        f"{kernel} is no kernel that is known here (Image, zImage, uImage, FIT); say the command that starts it"
    )
