"""The inside of a process that measures: it is told what, one at a time, and answers with figures. Standard library only."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping

Figures = dict[str, float]
Measurement = Callable[["Span"], Figures]


class Span:
    """How long to measure: ``warm`` seconds that do not count, then ``seconds``; ``scale`` is for what is measured by size."""

    def __init__(self, short: bool) -> None:
        self.short = short
        self.warm = 0.0 if short else 0.2
        self.seconds = 0.02 if short else 0.8

    def size(self, full: int, short: int) -> int:
        return short if self.short else full


def repeated(step: Callable[[], object], span: Span) -> list[float]:
    """Seconds that each of many turns took."""
    until = time.perf_counter() + span.warm
    while time.perf_counter() < until:
        step()
    taken = []
    now = time.perf_counter()
    until = now + span.seconds
    while now < until:
        step()
        before, now = now, time.perf_counter()
        taken.append(now - before)
    return taken


async def repeated_async(step: Callable[[], Awaitable[object]], span: Span) -> list[float]:
    """The same for coroutines."""
    until = time.perf_counter() + span.warm
    while time.perf_counter() < until:
        await step()
    taken = []
    now = time.perf_counter()
    until = now + span.seconds
    while now < until:
        await step()
        before, now = now, time.perf_counter()
        taken.append(now - before)
    return taken


def rate(taken: list[float]) -> float:
    """Turns per second, by their median: a mean also tells what else the machine was doing."""
    return 1 / statistics.median(taken)


def p50(taken: list[float]) -> float:
    """Median, in microseconds."""
    return statistics.median(taken) * 1e6


def answer(measurements: Mapping[str, Measurement], *, ready: object = None) -> None:
    """Answer until the input ends. Whatever else the process prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": ready}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        reply: dict[str, object]
        try:
            reply = {"figures": measurements[asked["what"]](Span(asked["short"]))}
        except Exception:  # noqa: BLE001  # the process's root: who asked shows it
            reply = {"failed": traceback.format_exc()}
        print(json.dumps(reply), file=out, flush=True)
