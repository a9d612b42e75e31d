"""The client of ``jmp.ssh/v1``: commands, files and ports of a device, by this machine's own OpenSSH."""
# ruff: noqa: ASYNC109  # under Trio `timeout` is one more way to say it, for threads the only one

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from jmp.client.network import NetworkClient
from jmp.driver.proxy import ByteStream, ExitStatus, verb
from jmp.errors import DeviceError, Timeout, UsageError

if TYPE_CHECKING:
    from jmp.client.adapters.meter import Meter
    from jmp.client.adapters.openssh import Way
    from jmp.client.adapters.paramiko import Fabric
    from jmp.client.adapters.tunnel import Tunnel
    from jmp.client.storage import Progress


@dataclass(frozen=True)
class Finished:
    """A command that has ended on the device."""

    stdout: str
    stderr: str
    status: int
    """Its exit status; 128 + n after signal n, as the device's shell tells it."""


class SshClient(NetworkClient):
    """A device's SSH server. What this machine's user has configured for ssh is not used; keys of an agent are.

    ``progress`` of ``put`` and ``get`` is called in the caller's thread or task, every fifth of a second and at the end, with the
    bytes done and those in all, as for images. Of what is got these are known after a second, if the device has ls and awk.
    """

    default_verb: ClassVar[str | None] = "login"

    @property
    def _port(self) -> str:
        ports = [child._port for child in self._children.values() if isinstance(child, NetworkClient)]
        return ports[0] if ports else self._node.path

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ByteStream]:
        """One connection to the server, as a byte stream."""
        async with self._backend.open(self._port, "connect", (), {}) as stream:
            yield stream

    async def run(
        self, *command: str, stdin: str | bytes = b"", timeout: float | None = None, check: bool = False
    ) -> Finished:
        """Run a command on the device, and wait for its end: ``dut.ssh.run("uname -a").stdout``.

        One text is for the device's shell; of several, each is one word. With ``check``, a status other than 0 is a DeviceError.
        Given up, or after ``timeout`` seconds (:class:`~jmp.errors.Timeout`), the connection is closed; what the command does
        then is the device's affair, as with ssh.
        """
        async with self._way() as way:
            status, out, err = await self._process(
                [*way.ssh(tty=False), _line(command)],
                way,
                stdin=stdin.encode() if isinstance(stdin, str) else stdin,
                timeout=timeout,
            )
            way.check(status)
        done = Finished(out.decode(errors="replace"), err.decode(errors="replace"), status)
        if check and status:
            said = " | ".join((done.stderr or done.stdout).splitlines()[-3:])
            raise DeviceError(f"{_line(command)!r} ended with status {status}{said and f': {said}'}")
        return done

    @verb(name="run", words=True)
    async def pass_through(
        self, *command: str, tty: Annotated[bool, "give it a terminal, for what draws on one"] = False
    ) -> ExitStatus:
        """Run COMMAND on the device. Its input, output and exit status are those of this command.

        One word is a text for the device's shell; of several, each is one of the command's.
        """
        if not command:
            raise UsageError("run needs a command; without one, login gives a shell")
        async with self._way() as way:
            return await self._inherited([*way.ssh(tty=tty), _line(command)], way)

    @verb
    async def login(self) -> ExitStatus:
        """Log in on the device, with this terminal. Enter ~ . quits, as with ssh."""
        async with self._way() as way:
            return await self._inherited(way.ssh(tty=sys.stdin.isatty()), way)

    @verb
    async def put(self, source: Path | str, target: str = "", *, progress: Progress | None = None) -> None:
        """Copy a file or folder of this machine to the device, by default into the home of who logs in.

        Given up, a part of it may be there.
        """
        from jmp.client.adapters.meter import Meter, size

        path = os.path.join(os.getcwd(), source)
        if not await self._backend.run(os.path.exists, path):
            raise UsageError(f"{source} cannot be copied: there is no such file")
        meter = Meter(progress, total=await self._backend.run(size, path)) if progress is not None else None
        await self._copy(path, f"device:{target}", meter)

    @verb
    async def get(self, source: str, target: Path | str = ".", *, progress: Progress | None = None) -> None:
        """Copy a file or folder of the device to this machine, by default into this folder.

        Given up, a part of it may be here.
        """
        from jmp.client.adapters.meter import Meter

        meter = Meter(progress, source=source) if progress is not None else None
        await self._copy(f"device:{source}", os.path.join(os.getcwd(), target), meter)

    @verb
    def tunnel(self, port: str, listen: str = "127.0.0.1:0") -> Tunnel:
        """Listen on this machine, and connect whoever comes with PORT of the device: 80, or HOST:PORT as seen from it.

        LISTEN is as for forward. In Python: with dut.ssh.tunnel("8080") as bound (async with under Trio).
        """
        from jmp.client.adapters.tunnel import tunnel

        return tunnel(self, port, listen)

    def fabric(self, **options: Any) -> Fabric:
        """A Fabric ``Connection`` to the device, for the block: ``with dut.ssh.fabric() as c: c.run("uname -a")``.

        ``options`` are more of its own. Blocking clients only; Fabric has to be installed (``pip install fabric``).
        """
        from jmp.client.adapters.paramiko import Fabric

        return Fabric(self, options)

    # ---- OpenSSH's programs

    @asynccontextmanager
    async def _way(self, meter: Meter | None = None) -> AsyncIterator[Way]:
        """The device's server in reach of OpenSSH's programs."""
        from jmp.client.adapters.forward import TaskForward, ThreadForward
        from jmp.client.adapters.openssh import way
        from jmp.rpc.blocking import BlockingCaller

        identity = await self._backend.call(self._node.path, "identity", (), {})
        with way(self._node.path or "device", identity) as made:
            open_stream: Callable[[], AbstractAsyncContextManager[ByteStream]]
            open_stream = partial(self._backend.open, self._port, "connect", (), {})
            if meter is not None:
                open_stream = partial(meter.counted, open_stream)
            if isinstance(self._backend, BlockingCaller):
                with ThreadForward(open_stream, made.listen, told=made.failed).running():
                    yield made
            else:
                async with TaskForward(open_stream, made.listen, told=made.failed).running():
                    yield made

    async def _process(
        self, argv: Sequence[str], way: Way, *, stdin: bytes, timeout: float | None
    ) -> tuple[int, bytes, bytes]:
        """Status and output of a program that is run to its end."""
        from jmp.rpc.blocking import BlockingCaller

        late = Timeout(f"{self._node.path or 'device'}: the command did not end within {timeout or 0:g} s")
        if isinstance(self._backend, BlockingCaller):
            try:
                return _run(argv, stdin, way.environment, timeout)
            except subprocess.TimeoutExpired:
                raise late from None
        import trio

        with trio.move_on_after(float("inf") if timeout is None else timeout) as scope:
            done = await trio.run_process(
                argv, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False, env=way.environment
            )
            return done.returncode, done.stdout, done.stderr
        assert scope.cancelled_caught
        raise late

    async def _inherited(self, argv: Sequence[str], way: Way) -> ExitStatus:
        """The status of a program that has this one's terminal, or input and output."""
        sys.stdout.flush()
        status = await self._backend.run(partial(subprocess.call, argv, env=way.environment))
        way.check(status)
        return ExitStatus(status if status >= 0 else 128 - status)

    async def _copy(self, source: str, target: str, meter: Meter | None) -> None:
        async with self._way(meter) as way:
            for older in (False, True):
                argv = [*way.scp(older=older), source, target]
                status, said = await self._scp(argv, way, meter)
                if status == 0:
                    if meter is not None:
                        meter.finish(target)
                    return
                if not way.lacks_sftp(said):
                    break
            way.check(255)
            lines = said.decode(errors="replace").strip().splitlines() or [f"scp ended with status {status}"]
            raise DeviceError(f"{self._node.path or 'device'}: {lines[-1].removeprefix(f'{argv[0]}: ')}")

    async def _scp(self, argv: Sequence[str], way: Way, meter: Meter | None) -> tuple[int, bytes]:
        """Status and complaints of scp."""
        if meter is None:
            status, _, said = await self._process(argv, way, stdin=b"", timeout=None)
            return status, said
        from jmp.client.adapters.meter import run_seen, run_seen_async
        from jmp.rpc.blocking import BlockingCaller

        if isinstance(self._backend, BlockingCaller):
            return run_seen(argv, way, meter)
        return await run_seen_async(argv, way, meter)


def _run(
    argv: Sequence[str], stdin: bytes, environment: dict[str, str] | None, timeout: float | None
) -> tuple[int, bytes, bytes]:
    done = subprocess.run(argv, input=stdin, capture_output=True, env=environment, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def _line(command: Sequence[str]) -> str:
    """A command as ssh takes it."""
    import shlex

    return command[0] if len(command) == 1 else shlex.join(command)
