"""Child processes that leave nothing behind, not even when we are killed with -9.

Each command runs in a session and process group of its own, in which a tiny watchdog sits as well: a shell that reads from a
pipe whose other end only we hold. However we end, the kernel closes our end, the watchdog reads end-of-file and kills the
group. (The obvious PR_SET_PDEATHSIG will not do: it fires when the *thread* that forked ends, and Trio forks from
worker threads; besides, it does not reach grandchildren.) The watchdog ignores the polite signals that we send to the
group, so for as long as we hold the pipe the group's number cannot be given to somebody else's processes, and to
signal it is safe even after the command itself is gone.

On Linux we make ourselves the reaper of orphans below us: so we can wait until the last process of a group is gone, and
leave no zombie even where process 1 is no init (many containers). What moves to a session of its own (a daemon) escapes.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from subprocess import DEVNULL
from typing import Protocol

import trio

from jmp.errors import DeviceError
from jmp_drivers._tasks import open_nursery

_log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_DEATH = 2.0  # seconds that SIGKILL may take; only a process stuck in the kernel, on a hung disk say, takes longer

_LINGER = 0.5  # seconds to wait for the rest of the output when a daemon that escaped still holds the pipe

# In a subshell of a subshell, so that the command does not find itself with a child that it never started.
_LEASH = """\
leash=$1; shift
(trap '' HUP INT QUIT TERM; (read -r _; kill -KILL 0) <"/dev/fd/$leash" >/dev/null 2>&1 &)
exec "$@"
"""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


@asynccontextmanager
async def leashed(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: int | HasFileno = DEVNULL,
    stdout: int | HasFileno = DEVNULL,
    stderr: int | HasFileno = DEVNULL,
    pass_fds: Sequence[int] = (),
    grace: float = 5,
) -> AsyncIterator[trio.Process]:
    """Run a command for as long as the body runs; `stdin`, `stdout`, `stderr` are as for ``subprocess.Popen``.

    Yields the command's own process: pid and exit status are its own. At the end of the body, or on cancellation, a command
    that still runs gets SIGTERM, and its whole process group SIGKILL once it has ended or `grace` seconds are over;
    what the command left running is killed too. All of them are gone, and the pipes closed, when the context ends. Raises
    `DeviceError` if the command cannot be started.
    """
    program = _find(argv[0], env, cwd)
    _adopt_orphans()
    with ExitStack() as leash:
        # The read end stays open in the command as well: sh cannot close descriptors above 9, and it does no harm there.
        theirs = _pipe(leash)
        command = ["/bin/sh", "-c", _LEASH, "jmp-leash", str(theirs), program, *argv[1:]]
        try:
            process = await trio.lowlevel.open_process(
                command,
                env=env,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(theirs, *pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"cannot start {argv[0]}: {error.strerror}: {error.filename}") from error
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    _signal_group(process, signal.SIGTERM)
                    with trio.move_on_after(grace):
                        await process.wait()
                _signal_group(process, signal.SIGKILL)
                with trio.move_on_after(_DEATH) as death:
                    await process.wait()
                    await trio.to_thread.run_sync(_reap, process.pid, abandon_on_cancel=True)
                if death.cancelled_caught:
                    _log.warning("process group %d (%s) is not dead %g s after SIGKILL", process.pid, argv[0], _DEATH)
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        await stream.aclose()


async def relay(process: trio.Process, sink: Callable[[str, bytes], Awaitable[None]]) -> int:
    """Hand on what a leashed command writes, as it comes, until it has ended; then kill what it left running.

    `sink` gets ``"stdout"`` or ``"stderr"``, whichever are pipes, and the bytes; while it waits, the command does. Returns the
    exit status as a shell tells it: 128 + n after signal n.
    """
    waiting: dict[str, trio.CancelScope] = {}
    patience = math.inf

    async def pump(name: str, stream: trio.abc.ReceiveStream) -> None:
        while True:
            with trio.move_on_after(patience) as waiting[name]:
                data = await stream.receive_some()
            if waiting[name].cancelled_caught or not data:
                return
            await sink(name, bytes(data))

    async with open_nursery() as nursery:
        if process.stdout is not None:
            nursery.start_soon(pump, "stdout", process.stdout)
        if process.stderr is not None:
            nursery.start_soon(pump, "stderr", process.stderr)
        status = await process.wait()
        _signal_group(process, signal.SIGKILL)
        patience = _LINGER
        for scope in waiting.values():
            scope.deadline = trio.current_time() + patience
    return status if status >= 0 else 128 - status


def _pipe(stack: ExitStack) -> int:
    """A pipe's read end; both ends are closed with the stack."""
    reading, writing = os.pipe()
    stack.callback(os.close, writing)
    stack.callback(os.close, reading)
    return reading


def _find(program: str, env: Mapping[str, str] | None, cwd: str | os.PathLike[str] | None) -> str:
    """The program's path as seen from `cwd`. The leash would report a missing program as exit status 127 only."""
    path = (os.environ if env is None else env).get("PATH", os.defpath)
    found = shutil.which(os.path.join(cwd or "", program) if os.sep in program else program, path=path)
    if found is None:
        raise DeviceError(
            f"cannot start {program}: no such program on the exporter's machine; install it there or correct the path"
        )
    return os.path.abspath(found)


def _signal_group(process: trio.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has killed its own group, watchdog included
        os.killpg(process.pid, number)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(group: int) -> None:
    """Wait until no process of the group is left that is ours to wait for. Blocks."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
