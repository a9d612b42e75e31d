"""What one exporter that hangs costs the others: `python -m pytest -s tests/bench/bench_lab.py`. Not part of the test suite.

Rounds with and without it alternate within one run, so that the ratio holds on slow and on busy machines.
"""

from __future__ import annotations

import signal
import statistics
from contextlib import ExitStack
from pathlib import Path

from jmp.client.lab import open_lab
from tests.e2e.test_lab import MOCK, add_exporter, lab, place, run, server
from tests.e2e.test_lab_faults import client, turn

__all__ = ["place"]

ROUNDS = 4
TURNS = 100
"""In a round, which has to be over before the exporter that hangs is taken for offline."""


def test_one_that_hangs(place: Path) -> None:
    with lab(place), ExitStack() as stack:
        processes = {}
        for name in ("one", "two"):
            add_exporter(name, MOCK.format(name=name))
            serve = f"jmp exporter serve ./{name}.yaml"
            processes[name] = stack.enter_context(server(serve, place / f"{name}.log", f"exporter {name} serves"))
        stack.callback(processes["one"].send_signal, signal.SIGCONT)
        run("jmp config client use alice; until [ $(jmp get exporters | grep -c free) = 2 ]; do :; done")
        times: dict[str, list[float]] = {"all well": [], "one hangs": []}
        with open_lab(client("alice")) as mine:
            for _ in range(ROUNDS):
                for what, number in (("all well", signal.SIGCONT), ("one hangs", signal.SIGSTOP)):
                    processes["one"].send_signal(number)
                    times[what] += [turn(mine) * 1000 for _ in range(TURNS)]
        p99 = {what: statistics.quantiles(taken, n=100)[98] for what, taken in times.items()}
        for what, taken in times.items():
            print(
                f"\nacquire, {what}: median {statistics.median(taken):.1f} ms, p99 {p99[what]:.1f} ms, n={len(taken)}"
            )
        print(f"p99: {p99['one hangs'] / p99['all well']:.2f} of that without")
