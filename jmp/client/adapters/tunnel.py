"""A port that a device's SSH server can reach, as a port on this machine: OpenSSH's own forwarding (``ssh -L``)."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from jmp.client.adapters.forward import Forward
from jmp.client.adapters.listen import Bound, listening
from jmp.client.adapters.listen import parse as parse_listen
from jmp.driver.proxy import Blocking
from jmp.errors import DeviceError, LinkLost, UsageError

if TYPE_CHECKING:
    from jmp.client.adapters.openssh import Way
    from jmp.client.ssh import SshClient

GRACE: Final = 5.0
"""Seconds that ssh may take to end."""
_READY: Final = b"ready\n"


class Tunnel(Forward):
    """As a :class:`~jmp.client.adapters.forward.Forward`, of a port beyond the server."""

    def __init__(self, client: SshClient, target: str, listen: str) -> None:
        self._threads = _ByThreads(client, target, listen)
        super().__init__(client._backend, client._node.path, self._threads, _ByTasks(client, target, listen))
        self._target = target

    def describe(self, bound: Bound) -> str:
        return f"listening on {bound} → {self._target} of {self._path}"

    def wait(self) -> None:
        """Block until the connection to the server is over, and raise :class:`~jmp.errors.LinkLost` then."""
        self._threads.wait()
        raise LinkLost(f"the connection is over, and so is the tunnel to {self._target}")


def tunnel(client: SshClient, port: str, listen: str) -> Tunnel:
    """Raises :class:`~jmp.errors.UsageError` for what is no port or no address."""
    host, _, number = str(port).rpartition(":")
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        raise UsageError(f"{port!r} is no port of the device: write PORT or HOST:PORT")
    parse_listen(listen)
    return Tunnel(client, f"{host or 'localhost'}:{number}", listen)


def _command(way: Way, target: str, listen: str) -> tuple[list[str], Bound]:
    """ssh, and where it listens: its own way to find a free port is none, so one that is free now is chosen."""
    with listening(listen) as (_, bound):
        pass
    here = bound.path or (f"[{bound.host}]:{bound.port}")
    # The local command runs once ssh listens.
    ready = ("-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=printf '{_READY.decode().strip()}\\n'")
    return way.ssh("-N", "-o", "ExitOnForwardFailure=yes", *ready, "-L", f"{here}:{target}", tty=False), bound


class _ByThreads:
    def __init__(self, client: SshClient, target: str, listen: str) -> None:
        self._client = client
        self._target = target
        self._listen = listen
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[Bound]:
        with Blocking(self._client._way()) as way:
            argv, bound = _command(way, self._target, self._listen)
            with subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=way.environment
            ) as process:
                self._process = process
                try:
                    assert process.stdout is not None
                    if process.stdout.readline() != _READY:
                        process.wait()
                        raise _failure(way, self._target)
                    yield bound
                finally:
                    process.terminate()
                    try:
                        process.wait(GRACE)
                    except subprocess.TimeoutExpired:
                        process.kill()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()


class _ByTasks:
    def __init__(self, client: SshClient, target: str, listen: str) -> None:
        self._client = client
        self._target = target
        self._listen = listen

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bound]:
        import trio

        async with self._client._way() as way:
            argv, bound = await trio.to_thread.run_sync(_command, way, self._target, self._listen)
            process = await trio.lowlevel.open_process(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=way.environment
            )
            try:
                assert process.stdout is not None
                said = b""
                while not said.endswith(b"\n") and (data := await process.stdout.receive_some()):
                    said += data
                if said != _READY:
                    raise _failure(way, self._target)
                yield bound
            finally:
                with trio.CancelScope(shield=True):
                    process.terminate()
                    with trio.move_on_after(GRACE):
                        await process.wait()
                    process.kill()
                    await process.wait()
                    if process.stdout is not None:
                        await process.stdout.aclose()


def _failure(way: Way, target: str) -> DeviceError:
    way.check(255)
    return DeviceError(f"no tunnel to {target} could be made")
