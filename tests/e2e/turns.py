"""``python -m tests.e2e.turns FILE jmp's arguments``: jmp, which tells on SIGUSR2 how long the rounds of its loop took.

In seconds of processor time; between two of them everybody who had something to do has had a turn.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import trio

from jmp.cli import main


class Rounds(trio.abc.Instrument):
    """Measures the rounds of a loop."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began = 0.0
        self._took: list[float] = []

    def after_io_wait(self, timeout: float) -> None:
        """A round begins."""
        self._began = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        """It is over."""
        self._took.append(time.thread_time() - self._began)

    def tell(self, *_: Any) -> None:
        """Write down what there is, and begin anew."""
        took, self._took = self._took[1:], []
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(took))
        new.replace(self._file)


if __name__ == "__main__":
    rounds = Rounds(Path(sys.argv.pop(1)))
    signal.signal(signal.SIGUSR2, rounds.tell)
    vars(trio)["run"] = functools.partial(trio.run, instruments=[rounds])
    sys.exit(main())
