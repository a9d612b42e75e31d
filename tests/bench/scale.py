"""A large lab: many exporters over real links, all in this process; the controller is one of its own.

Twice as many leases are asked for as there are devices. Both processes share the machine, so a controller alone does better.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
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
from tests.bench.lab import resident
from tests.bench.worker import Figures, Span
from tests.fakes.lab import MOCK_POWER, ServedLab, served_lab

ABREAST: Final = 32
"""How many calls are under way at once."""
LISTINGS: Final = 30
ANY: Final = [Want(selector="board=mock")]


def measure(span: Span, exporters: int) -> Figures:
    with TemporaryDirectory() as folder, served_lab(Path(folder)) as lab:
        lab.add_client("alice")
        return trio.run(_measure, lab, joined(lab, "admin"), joined(lab, "alice"), span.size(exporters, 5))


def joined(lab: ServedLab, user: str) -> ClientConfig:
    return Store(lab.directory / "home" / user / "config/jmp/clients", "Client").load(user)


async def _measure(served: ServedLab, admin: ClientConfig, alice: ClientConfig, count: int) -> Figures:
    figures: Figures = {}
    async with trio.open_nursery() as exporters:
        await _in_use(served, admin, alice, exporters, count, figures)
        began = perf_counter()
        served.kill()
        await trio.to_thread.run_sync(served.start)
        async with open_lab_trio(admin) as again:
            await _connected(again)
        figures["again"] = perf_counter() - began
        exporters.cancel_scope.cancel()
    return figures


async def _in_use(
    served: ServedLab, admin: ClientConfig, alice: ClientConfig, exporters: trio.Nursery, count: int, figures: Figures
) -> None:
    tokens: dict[str, str] = {}
    async with open_lab_trio(admin) as by_admin, open_lab_trio(alice) as lab:

        async def add(number: int) -> None:
            name = f"e{number}"
            await by_admin.call("create", "exporter", name, {})
            tokens[name] = (await by_admin.call("issue", name, "exporter"))["token"]

        await abreast(add, range(count))
        before = resident(served.pid)
        for name, token in tokens.items():
            exporters.start_soon(exporter(served, admin, name, token).run)
        await _connected(lab)
        figures["exporter"] = (resident(served.pid) - before) / 1024 / count

        async def acquire(_: int) -> None:
            await lab.acquire(ANY, 3600.0)

        figures["acquire"] = await abreast(acquire, range(2 * count))
        while sum(lease["state"] == "ready" for lease in await lab.call("leases")) < count:  # noqa: ASYNC110
            await trio.sleep(0.1)
        figures["listing"] = await listing(lab, "exporters")

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

        figures["turn"] = await abreast(turn, range(count))


def exporter(served: ServedLab, admin: ClientConfig, name: str, token: str) -> LabExporter:
    path = served.directory / f"{name}.yaml"
    path.write_text(MOCK_POWER.format(name=name, board="mock"))
    config = configuration.load(path, driver_class)

    async def dial() -> websocket.WebSocketLink:
        return await websocket.connect(admin.endpoint, token=token, ca=admin.tls.ca)

    return LabExporter(config, Memory.load(served.directory / f"{name}.json"), dial, endpoint=admin.endpoint)


async def _connected(lab: Lab) -> None:
    while any(one["state"] == "offline" for one in await lab.call("exporters")):  # noqa: ASYNC110  # answers are in seconds
        await trio.sleep(0.1)


async def abreast(do: Callable[[Any], Awaitable[None]], items: Any) -> float:
    """Do it for all, some at a time; how many a second."""
    waiting = iter(items)
    done = 0

    async def work() -> None:
        nonlocal done
        for item in waiting:
            await do(item)
            done += 1

    began = perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(ABREAST):
            nursery.start_soon(work)
    return done / (perf_counter() - began)


async def listing(lab: Lab, what: str) -> float:
    """Median milliseconds."""
    taken = []
    for _ in range(LISTINGS):
        began = perf_counter()
        await lab.call(what)
        taken.append(perf_counter() - began)
    return statistics.median(taken) * 1e3
