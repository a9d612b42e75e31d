"""One command, run to its end within a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryFile

import trio

from jmp.driver import DeviceError
from jmp_drivers._process import leashed, relay

_KEPT = 64 * 1024  # bytes of a command's output that are looked at: its end


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    status: int
    output: str
    errors: str

    def complaint(self) -> str:
        """The last lines of its standard error, as the end of a message; empty if it printed none."""
        said = " | ".join(line.strip() for line in self.errors.splitlines()[-3:] if line.strip())
        return said and f": {said}"


async def run_command(
    what: str,
    argv: Sequence[str],
    seconds: float,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> Ran:
    """Run a command. Cancelled or out of time, it and all its processes are ended.

    Raises `DeviceError`, which says ``what`` did not end, or that the program cannot be started.
    """
    output = {"stdout": bytearray(), "stderr": bytearray()}

    async def keep(stream: str, data: bytes) -> None:
        output[stream] += data
        del output[stream][:-_KEPT]

    with TemporaryFile() as given:
        given.write((stdin or "").encode())
        given.seek(0)
        source = given if stdin is not None else DEVNULL
        with trio.move_on_after(seconds) as scope:
            async with leashed(argv, env=env, cwd=cwd, stdin=source, stdout=PIPE, stderr=PIPE) as process:
                status = await relay(process, keep)
    if scope.cancelled_caught:
        raise DeviceError(f"{what} did not end within {seconds:g} s")
    return Ran(status, *(output[name].decode(errors="replace") for name in ("stdout", "stderr")))
