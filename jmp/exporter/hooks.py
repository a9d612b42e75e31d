"""Scripts that the exporter runs around a lease (in local mode: around a session)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
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
    argv = [hook.interpreter, str(hook.file)] if hook.file is not None else [hook.interpreter, "-c", hook.script or ""]
    try:
        process = await trio.lowlevel.open_process(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise HookFailed(f"hook {name} cannot be run: {hook.interpreter}: {error.strerror}", hook) from error
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
