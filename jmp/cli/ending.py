"""How a command is made to end whose session is over: as Ctrl-C would first, so that pytest still prints its report."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple


class Step(NamedTuple):
    """A signal, and the seconds in which the command may then end by itself."""

    signal: signal.Signals
    seconds: float
    below: bool = True
    """Also for the processes below it."""


POLITE: Final = (Step(signal.SIGINT, 10.0), Step(signal.SIGTERM, 5.0), Step(signal.SIGKILL, math.inf))
PROMPT: Final = (Step(signal.SIGTERM, 20.0, below=False), Step(signal.SIGKILL, math.inf))
"""For the prompt, which goes at once, having ended its own command so."""


def tell(pid: int, step: Step) -> None:
    """Send a process the signal of a step, and those below it that a terminal would send it to: the ones of its process group.

    Where the system does not say which those are, it gets it alone.
    """
    with suppress(ProcessLookupError):
        group = os.getpgid(pid)
        for each in [pid, *(_below(pid) if step.below else ())]:
            with suppress(ProcessLookupError, PermissionError):
                if os.getpgid(each) == group:
                    os.kill(each, step.signal)


def _below(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, file.read_text().split()):
                yield child
                yield from _below(child)
