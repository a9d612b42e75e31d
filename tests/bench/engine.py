"""How fast the lease engine is, as the lab and its queue grow. In seconds of the processor: the rest is waiting for others."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

from jmp.controller.leases import Engine
from jmp.wire.records import Client, Exporter, Lease, Phase, Policy, State, Want
from tests.bench.worker import Figures, Span

MODELS = 20
"""Kinds of boards; a request is for one of a kind, of a rack, by name, or for two at once."""


class Lab:
    """All exporters in use, and a queue as long."""

    def __init__(self, exporters: int) -> None:
        self.now = 1_000_000.0
        self.random = random.Random(7)
        self._exporters = exporters
        self.engine = Engine()
        self.engine.put(Policy(name="all", longest=86400.0), self.now)
        for number in range(100):
            self.engine.put(Client(name=f"client-{number}", labels={"team": str(number % 10)}), self.now)
        for number in range(exporters):
            labels = {"model": str(number % MODELS), "rack": str(number // 50)}
            self.engine.put(Exporter(name=f"board-{number}", labels=labels), self.now)
        for name in self.engine.exporters:
            self.engine.online(name, self.now)
            self.engine.observed(name, None, 0, Phase.IDLE, "", self.now)
        for name in self.engine.exporters:
            self.engine.request("client-0", [Want(exporter=name)], 3600.0, self.now)
        self.get_ready()
        while self.queued() < exporters:
            self.request()
        self.engine.take_changes()

    def request(self) -> Lease:
        model = Want(selector=f"model={self.random.randrange(MODELS)}")
        rack = Want(selector=f"rack={self.random.randrange(max(self._exporters // 50, 1))}")
        name = Want(exporter=f"board-{self.random.randrange(self._exporters)}")
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
        began = time.thread_time()
        do()
        self.times[what] = (time.thread_time() - began) * 1e3

    def get_ready(self) -> None:
        for lease in [lease for lease in self.engine.leases.values() if lease.state is State.PREPARING]:
            for held in lease.devices:
                self.engine.observed(held.exporter, lease.id, held.epoch, Phase.READY, "", self.now)

    def queued(self) -> int:
        return sum(lease.state is State.QUEUED for lease in self.engine.leases.values())


def turnovers(exporters: int, events: int) -> float:
    """Median microseconds in which a lease is released, and the next in line has its exporter."""
    lab = Lab(exporters)
    taken = []
    for _ in range(events):
        lab.now += 1.0
        lab.turnover()
        lab.request()
        lab.engine.take_changes()
        taken.append(lab.times["release"] + lab.times["idle"])
    return statistics.median(taken) * 1e3


def measure(span: Span) -> Figures:
    large = turnovers(span.size(1000, 40), span.size(200, 5))
    small = turnovers(span.size(100, 20), span.size(200, 5))
    return {"release": large, "growth": large / small}
