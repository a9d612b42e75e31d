"""What one exporter that hangs costs the others. Rounds with and without it alternate: the ratio holds on busy machines."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

from jmp.client.lab import open_lab
from jmp.wire.records import Want
from tests.bench.lab import first_line, started
from tests.bench.scale import joined
from tests.bench.worker import Figures, Span
from tests.fakes.lab import ServedLab, served_lab

ROUNDS: Final = 4
TURNS: Final = 100
"""In a round, which has to be over before the exporter that hangs is taken for offline."""


@contextmanager
def exporter(served: ServedLab, folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """An exporter as a process of its own, which logs nothing: who reads its log would have to keep up."""
    place = folder / name
    place.mkdir()
    environ = served.environment("admin", PYTHONPATH=os.environ["PYTHONPATH"])
    with started("exporters", place, "mock", name, env=environ) as process:
        first_line(process)
        yield process


def turn(lab: Any) -> float:
    """Seconds from asking for the exporter that is well to having it; it is released again."""
    began = perf_counter()
    lease = lab.acquire([Want(exporter="two")], 60.0)
    lab.wait_granted(lease.id)
    took = perf_counter() - began
    lab.release(lease.id)
    for standing in lab.watch(lease.id):
        if standing.lease.state == "ended":
            break
    return took


def measure(span: Span) -> Figures:
    times: dict[int, list[float]] = {signal.SIGCONT: [], signal.SIGSTOP: []}
    with TemporaryDirectory() as folder, served_lab(Path(folder)) as served, ExitStack() as stack:
        served.add_client("alice")
        hanging = stack.enter_context(exporter(served, Path(folder), "one"))
        stack.enter_context(exporter(served, Path(folder), "two"))
        stack.callback(hanging.send_signal, signal.SIGCONT)
        with open_lab(joined(served, "alice")) as lab:
            for _ in range(span.size(ROUNDS, 1)):
                for number, taken in times.items():
                    hanging.send_signal(number)
                    taken += [turn(lab) for _ in range(span.size(TURNS, 3))]
    well, hung = (statistics.quantiles(taken, n=100)[98] for taken in times.values())
    return {"ratio": hung / well}
