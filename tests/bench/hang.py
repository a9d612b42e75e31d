"""What one exporter that hangs costs the others. Rounds with and without it alternate: the ratio holds on busy machines."""

from __future__ import annotations

import signal
import statistics
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

from jmp.client.lab import open_lab
from jmp.wire.records import Want
from tests.bench.scale import joined
from tests.bench.worker import Figures, Span
from tests.fakes.lab import served_lab

ROUNDS: Final = 4
TURNS: Final = 100
"""In a round, which has to be over before the exporter that hangs is taken for offline."""


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
        hanging = served.add_exporter("one").process
        served.add_exporter("two")
        stack.callback(hanging.send_signal, signal.SIGCONT)
        with open_lab(joined(served, "alice")) as lab:
            for _ in range(span.size(ROUNDS, 1)):
                for number, taken in times.items():
                    hanging.send_signal(number)
                    taken += [turn(lab) for _ in range(span.size(TURNS, 3))]
    well, hung = (statistics.quantiles(taken, n=100)[98] for taken in times.values())
    return {"ratio": hung / well}
