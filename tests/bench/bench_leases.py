"""How fast the lease engine is: `python -m pytest -s tests/bench/bench_leases.py` prints it. Not part of the test suite."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import pytest

from jmp.controller.leases import Engine
from jmp.wire.records import Client, Exporter, Lease, Phase, Policy, State, Want

EXPORTERS = QUEUED = 1000
EVENTS = 200
MODELS = 20
"""Kinds of boards; a request is for one of a kind, of a rack, by name, or for two at once."""


class Lab:
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.random = random.Random(7)
        self.engine = Engine()
        self.engine.put(Policy(name="all", longest=86400.0), self.now)
        for number in range(100):
            self.engine.put(Client(name=f"client-{number}", labels={"team": str(number % 10)}), self.now)
        for number in range(EXPORTERS):
            labels = {"model": str(number % MODELS), "rack": str(number // 50)}
            self.engine.put(Exporter(name=f"board-{number}", labels=labels), self.now)
        for name in self.engine.exporters:
            self.engine.online(name, self.now)
            self.engine.observed(name, None, 0, Phase.IDLE, "", self.now)

    def request(self) -> Lease:
        model = Want(selector=f"model={self.random.randrange(MODELS)}")
        rack = Want(selector=f"rack={self.random.randrange(EXPORTERS // 50)}")
        name = Want(exporter=f"board-{self.random.randrange(EXPORTERS)}")
        wants = self.random.choices([(model,), (rack,), (name,), (Want(),), (model, rack)], [60, 20, 5, 10, 5])[0]
        client = f"client-{self.random.randrange(100)}"
        return self.engine.request(client, wants, float(self.random.randrange(600, 7200)), self.now)

    def turnover(self) -> None:
        """One lease ends; whoever is next has its exporter, and it gets ready."""
        ready = [lease for lease in self.engine.leases.values() if lease.state is State.READY]
        lease = self.random.choice(ready)
        self.times: dict[str, float] = {}
        self.timed("release", lambda: self.engine.release(lease.id, None, "", self.now))
        for held in lease.devices:
            idle = partial(self.engine.observed, held.exporter, lease.id, held.epoch, Phase.IDLE, "", self.now)
            self.timed("idle", idle)
        self.get_ready()

    def timed(self, what: str, do: Callable[[], object]) -> None:
        began = time.perf_counter()
        do()
        self.times[what] = (time.perf_counter() - began) * 1e3

    def get_ready(self) -> None:
        for lease in [lease for lease in self.engine.leases.values() if lease.state is State.PREPARING]:
            for held in lease.devices:
                self.engine.observed(held.exporter, lease.id, held.epoch, Phase.READY, "", self.now)

    def queued(self) -> int:
        return sum(lease.state is State.QUEUED for lease in self.engine.leases.values())


@pytest.fixture(scope="module")
def lab() -> Lab:
    """All exporters in use, and a long queue."""
    lab = Lab()
    for name in lab.engine.exporters:
        lab.engine.request("client-0", [Want(exporter=name)], 3600.0, lab.now)
    lab.get_ready()
    while lab.queued() < QUEUED:
        lab.request()
    lab.engine.take_changes()
    return lab


def shown(what: str, times: list[float]) -> None:
    ordered = sorted(times)
    print(f"\n{what}: median {statistics.median(ordered):.2f} ms, p99 {ordered[len(ordered) * 99 // 100]:.2f} ms")


def test_events(lab: Lab) -> None:
    times: dict[str, list[float]] = {"request": [], "release": [], "idle": []}
    for _ in range(EVENTS):
        lab.now += 1.0
        lab.turnover()
        lab.timed("request", lab.request)
        for what, took in lab.times.items():
            times[what].append(took)
    for what, taken in times.items():
        shown(what, taken)


def test_events_while_an_exporter_is_free(lab: Lab) -> None:
    """One that nobody in the queue may have."""
    lab.engine.put(Exporter(name="odd", labels={"model": "odd"}, disabled="fan"), lab.now)
    lab.engine.online("odd", lab.now)
    lab.engine.observed("odd", None, 0, Phase.IDLE, "", lab.now)
    test_events(lab)


def test_standing(lab: Lab) -> None:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        lab.engine.standing(lab.now)
        times.append((time.perf_counter() - began) * 1e3)
    shown("standing", times)
