"""Scripts that the exporter runs around a lease (in local mode: around a session)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Final

import trio

from jmp.errors import LabError
from jmp.exporter.config import Hook

KILL_AFTER: Final = 5.0
"""Seconds between asking a hook to end (TERM) and ending it (KILL)."""

Print = Callable[[str, bytes], None]
"""Takes what a hook printed: its source (``beforeLease``) and some bytes."""


class HookFailed(LabError):
    """A hook failed, or took longer than its timeout."""

    def __init__(self, message: str, hook: Hook) -> None:
        super().__init__(message)
        self.hook = hook


async def run_hook(name: str, hook: Hook, environ: Mapping[str, str], output: Print) -> None:
    """Run one hook to its end; ``output`` gets what it prints, as it comes.

    Raises :class:`HookFailed` if it fails or takes longer than its timeout. However this is left, nothing of the
    hook runs on: its whole process group gets TERM, and KILL once it has ended or 5 seconds later. It is at its end when the
    process that was started is, whatever that has left in the background.
    """
    with ExitStack() as stack:
        program = "/bin/sh"
        try:
            argv, passed = _command(hook, stack)
            program = argv[0]
            process = await trio.lowlevel.open_process(
                argv,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=passed,
            )
        except OSError as error:
            raise HookFailed(
                f"hook {name} cannot be run: {error.filename or program}: {error.strerror}", hook
            ) from error
    assert process.stdout is not None
    try:
        with trio.move_on_after(hook.timeout.total_seconds()) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_print, name, process.stdout, output)
                await process.wait()
                await _end(process)  # what it has left holds the other end of its output
    finally:
        await _end(process)
    if scope.cancelled_caught:
        raise HookFailed(f"hook {name} did not end within {hook.timeout.total_seconds():g} s", hook)
    if process.returncode:
        raise HookFailed(f"hook {name} failed with exit status {process.returncode}", hook)


def _command(hook: Hook, stack: ExitStack) -> tuple[list[str], tuple[int, ...]]:
    """What to start, and the descriptors that it gets; those are open as long as ``stack``. Raises ``OSError``."""
    if hook.file is not None:
        with hook.file.open("rb") as file:
            first = file.readline(256).decode("utf-8", "replace")
        return [*_interpreter(hook, first), str(hook.file)], ()
    script = hook.script or ""
    found = _interpreter(hook, script.partition("\n")[0])
    if hook.interpreter is not None or not script.startswith("#!"):
        return [*found, "-c", script], ()
    # Not every interpreter has an option for that, and all can read a file.
    descriptor = os.memfd_create("hook")
    stack.callback(os.close, descriptor)
    with open(descriptor, "w", closefd=False) as file_of_script:
        file_of_script.write(script)
    return [*found, f"/proc/self/fd/{descriptor}"], (descriptor,)


def _interpreter(hook: Hook, first: str) -> list[str]:
    if hook.interpreter is not None:
        return [hook.interpreter]
    words = first.removeprefix("#!").split(maxsplit=1) if first.startswith("#!") else []
    return [word.strip() for word in words] or ["/bin/sh"]


async def _print(name: str, printed: trio.abc.ReceiveStream, output: Print) -> None:
    async with printed:
        async for data in printed:
            output(name, bytes(data))


async def _end(process: trio.Process) -> None:
    """End what is left of the process group."""
    with trio.CancelScope(shield=True):
        _signal(process.pid, signal.SIGTERM)
        with trio.move_on_after(KILL_AFTER):
            await process.wait()
        _signal(process.pid, signal.SIGKILL)
        await process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing of it is left, or only zombies are
        os.killpg(group, number)
