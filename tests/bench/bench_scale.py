"""A large lab: `JMP_BENCH_EXPORTERS=1000 python -m pytest -s tests/bench/bench_scale.py`. No part of the test suite.

The controller is a process of its own, the exporters are all in this one, over real links; twice as many leases are asked for as
there are devices. Both share the machine, so the controller alone does better than this shows.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import trio

from jmp.client.config import ClientConfig, Store
from jmp.client.lab import Lab, open_lab_trio
from jmp.driver.plugins import driver_class
from jmp.exporter import config as configuration
from jmp.exporter.lab import LabExporter, Memory
from jmp.link import websocket
from jmp.wire.records import State, Want
from tests.fakes.lab import MOCK_POWER, ServedLab, served_lab

EXPORTERS: Final = int(os.environ.get("JMP_BENCH_EXPORTERS", "50"))
ABREAST: Final = 32
"""How many calls are under way at once."""
LISTINGS: Final = 30
ANY: Final = [Want(selector="board=mock")]


def test_large(tmp_path: Path) -> None:
    with served_lab(tmp_path) as lab:
        lab.add_client("alice")
        print(f"\n{EXPORTERS} exporters, {os.cpu_count()} cores")
        trio.run(bench, lab, joined(lab, "admin"), joined(lab, "alice"))


def joined(lab: ServedLab, user: str) -> ClientConfig:
    return Store(lab.directory / "home" / user / "config/jmp/clients", "Client").load(user)


async def bench(served: ServedLab, admin: ClientConfig, alice: ClientConfig) -> None:
    async with trio.open_nursery() as exporters:
        await in_use(served, admin, alice, exporters)
        began = perf_counter()
        served.kill()
        await trio.to_thread.run_sync(served.start)
        print(f"controller killed and started again: {perf_counter() - began:.2f} s")
        async with open_lab_trio(admin) as again:
            await connected(again)
        print(f"all connected again: {perf_counter() - began:.2f} s")
        exporters.cancel_scope.cancel()


async def in_use(served: ServedLab, admin: ClientConfig, alice: ClientConfig, exporters: trio.Nursery) -> None:
    tokens: dict[str, str] = {}
    async with open_lab_trio(admin) as by_admin, open_lab_trio(alice) as lab:

        async def add(number: int) -> None:
            name = f"e{number}"
            await by_admin.call("create", "exporter", name, {})
            tokens[name] = (await by_admin.call("issue", name, "exporter"))["token"]

        await abreast("exporters added", add, range(EXPORTERS))
        began = perf_counter()
        for name, token in tokens.items():
            exporters.start_soon(exporter(served, admin, name, token).run)
        await connected(lab)
        print(f"all connected: {perf_counter() - began:.2f} s")
        memory(served, "with all connected")

        async def acquire(_: int) -> None:
            await lab.acquire(ANY, 3600.0)

        began = perf_counter()

        await abreast("leases asked for, and durable", acquire, range(2 * EXPORTERS))
        while sum(lease["state"] == "ready" for lease in await lab.call("leases")) < EXPORTERS:  # noqa: ASYNC110
            await trio.sleep(0.1)
        print(f"half of them ready: {perf_counter() - began:.2f} s after the first was asked for")
        for what in ("exporters", "leases"):
            await listing(lab, what)
        memory(served, "with all queued")

        async def ready(lease: str) -> None:
            async with aclosing(lab.watch(lease)) as watching:
                async for standing in watching:
                    if standing.lease.state is State.READY:
                        return

        found = await lab.call("leases")
        held = [lease["id"] for lease in found if lease["state"] == "ready"]
        queued = sorted((lease for lease in found if lease["state"] == "queued"), key=lambda lease: lease["position"])

        async def turn(number: int) -> None:
            await lab.release(held[number])
            await ready(queued[number]["id"])

        await abreast("released, and the next in line ready", turn, range(EXPORTERS))
        memory(served, "at the end")


def exporter(served: ServedLab, admin: ClientConfig, name: str, token: str) -> LabExporter:
    path = served.directory / f"{name}.yaml"
    path.write_text(MOCK_POWER.format(name=name, board="mock"))
    config = configuration.load(path, driver_class)

    async def dial() -> websocket.WebSocketLink:
        return await websocket.connect(admin.endpoint, token=token, ca=admin.tls.ca)

    return LabExporter(config, Memory.load(served.directory / f"{name}.json"), dial, endpoint=admin.endpoint)


async def connected(lab: Lab) -> None:
    while any(one["state"] == "offline" for one in await lab.call("exporters")):  # noqa: ASYNC110  # answers are in seconds
        await trio.sleep(0.1)


async def abreast(what: str, do: Callable[[Any], Awaitable[None]], items: Any) -> None:
    """Do it for all, some at a time; print the rate and how long one took."""
    waiting = iter(items)
    taken: list[float] = []

    async def work() -> None:
        for item in waiting:
            began = perf_counter()
            await do(item)
            taken.append(perf_counter() - began)

    began = perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(ABREAST):
            nursery.start_soon(work)
    seconds = perf_counter() - began
    print(
        f"{what}: {len(taken) / seconds:.0f}/s, p50 {at(taken, 50):.1f} ms, p99 {at(taken, 99):.1f} ms, n={len(taken)}"
    )


async def listing(lab: Lab, what: str) -> None:
    taken = []
    for _ in range(LISTINGS):
        began = perf_counter()
        found = await lab.call(what)
        taken.append(perf_counter() - began)
    print(f"listing of {len(found)} {what}: p50 {at(taken, 50):.1f} ms, p99 {at(taken, 99):.1f} ms")


def at(seconds: list[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1] * 1000


def memory(served: ServedLab, when: str) -> None:
    assert served._controller is not None
    status = Path(f"/proc/{served._controller.process.pid}/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"controller's memory {when}: {kib / 1024:.0f} MiB")
