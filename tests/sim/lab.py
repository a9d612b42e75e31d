"""One history of a simulated lab, from its seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final

import trio
from trio.testing import MockClock

from jmp.controller import sqlite
from jmp.controller.lab import Lab
from jmp.errors import JmpError
from jmp.exporter.lab import LabExporter
from jmp.router.serve import Router
from jmp.wire.records import Phase, State, Want
from tests.sim import disk, roles
from tests.sim.cluster import Cluster, SimulatedPool
from tests.sim.model import Records, check
from tests.sim.users import FAILURES, User, config_of
from tests.sim.world import CLUSTER, Event, Main, Process, Turns, World, replaced

FAULTS_FOR: Final = (5.0, 8.0, 12.0, 25.0)
"""Seconds for which users come and things break: one of these."""
RECOVERY: Final = 6000.0
"""Seconds after that, within which all requests and holds have to be over: an hour more than any limit, since the controller's
clock may have been set back by one."""
PROOF: Final = 120.0
"""Seconds within which everybody can use everything again when nothing is broken any more."""
AUDITOR: Final = "auditor"
GONE: Final = object()
"""What a client's process is about when it has done what it came for."""


@dataclass
class Outcome:
    """What came of a seed."""

    seed: int
    findings: list[str]
    history: list[Event] = field(repr=False)

    @property
    def digest(self) -> str:
        """Two histories of the same digest are the same."""
        return hashlib.sha256("\n".join(map(str, self.history)).encode()).hexdigest()


Bug = Callable[[], AbstractContextManager[object]]


class Site(StrEnum):
    """Where the controllers of a lab keep its records, and so how many there are."""

    DISK = "disk"
    """One, on a disk that is a dictionary."""
    SQLITE = "sqlite"
    """One, with the real store, on files."""
    CLUSTER = "cluster"
    """Several, in a Kubernetes cluster."""


SITES: Final = (Site.DISK, Site.DISK, Site.DISK, Site.SQLITE, Site.CLUSTER)
"""Those of the seeds, in turn."""


def simulate(seed: int, bug: Bug = nullcontext, site: Site | None = None) -> Outcome:
    """Run one history to its end, and say what was wrong with it; with ``bug`` in the product meanwhile.

    ``site``: have it in a lab of that kind, and not in the one that is the seed's.
    """
    world = World(seed)
    with bug(), world.laws(), replaced(sqlite, "Worker", disk.Inline):
        clock = MockClock(autojump_threshold=0)
        records = trio.run(_live, world, site or SITES[seed % len(SITES)], clock=clock, instruments=[Turns(world)])
    return Outcome(seed, [*world.findings, *check(world.history, records)], world.history)


@dataclass
class Cast:
    """Who is there, by the names of their machines."""

    controllers: list[str]
    exporters: list[str]
    routers: list[str]
    clients: list[str]
    cluster: Cluster | None


async def _live(world: World, site: Site) -> Records:
    rng = world.rng
    exporters = ["one", "two"][: rng.choice((1, 1, 2))]
    routers = ["here", "there"][: rng.choice((1, 2))]
    clients = ["ada", "bob", "eve", "joe"][: rng.choice((2, 2, 3)) + (site is Site.CLUSTER)]
    seconds = rng.choice(FAULTS_FOR)
    records = roles.records_of([*clients, AUDITOR], exporters, routers)
    if site is Site.CLUSTER:
        cluster = Cluster(world)
        cluster.format(records)
        controllers = ["first", "second", "third"][: rng.choice((2, 2, 3))]
        mains: dict[str, Main] = dict.fromkeys(controllers, partial(roles.replica, cluster=cluster))
        cast = Cast(controllers, exporters, routers, clients, cluster)
    elif site is Site.SQLITE:
        world.machine("controller").disk["files"] = disk.format_files(records)
        mains = {"controller": roles.embedded}
        cast = Cast(["controller"], exporters, routers, clients, None)
    else:
        roles.format_disk(world, records)
        mains = {"controller": roles.controller}
        cast = Cast(["controller"], exporters, routers, clients, None)
    mains |= dict.fromkeys(routers, roles.router)
    mains |= {name: partial(roles.exporter, direct=rng.random() < 0.5) for name in exporters}

    async def use(process: Process) -> None:
        others = [name for name in clients if name != process.name]
        await User(process, seconds, others, exporters, several=cast.cluster is not None).run()
        process.about = GONE
        await trio.sleep_forever()

    mains |= dict.fromkeys(clients, use)
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        for name, main in mains.items():
            nursery.start_soon(world.keep, name, main, nursery)
        await _break(world, cast, list(mains), seconds)
        world.mend_all()
        if cast.cluster is not None:
            cast.cluster.mend()
        await _settle(world, cast)
        await _prove(world, exporters)
        await trio.sleep(1)  # disks come to rest
        for name in mains:
            if (process := world.alive(name)) is not None:
                process.die()
        nursery.cancel_scope.cancel()
    if cast.cluster is not None:
        return cast.cluster.records
    kept = world.machine("controller").disk
    return disk.records_in(kept["files"]) if site is Site.SQLITE else kept["records"]


async def _break(world: World, cast: Cast, machines: list[str], seconds: float) -> None:
    rng = world.rng
    async with trio.open_nursery() as nursery:
        for _ in range(rng.choice((0, 2, 4, 8))):
            nursery.start_soon(_fault, world, cast, machines, rng.random() * seconds)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()


ANYWHERE: Final = ("kill", "kill", "kill", "power", "stop", "pause", "cut", "cut", "stall", "part", "slow", "clock")
IN_ITS_CLUSTER: Final = (
    "restart",
    "far",
    "late",
    "late",
    "slow",
    "unanswered",
    "half-done",
    "half-done",
    "half-done",
    "overdue",
    "overdue",
    "overdue",
)


async def _fault(world: World, cast: Cast, machines: list[str], when: float) -> None:
    rng = world.rng
    await trio.sleep(when)
    cluster = cast.cluster
    if cluster is not None and rng.random() < 0.4:
        await _fault_in(cluster, rng.choice(cast.controllers))
        return
    kind = rng.choice((*ANYWHERE, *(("full",) if cluster is None else ())))
    name = rng.choice([*machines, *cast.controllers, *cast.exporters])
    process = world.alive(name)
    if kind in ("kill", "power", "stop"):
        if process is None:
            return
        world.note(name, "stopped" if kind == "stop" else "killed", kind)
        process.stop() if kind == "stop" else process.die(silently=kind == "power")
        if kind != "stop" and rng.random() < 0.3:  # and again, as soon as it is back
            await trio.sleep(rng.random() * 4)
            if (process := world.alive(name)) is not None:
                world.note(name, "killed", kind)
                process.die()
    elif kind == "pause":
        if process is None or name in cast.exporters:  # what runs at an exporter would not end in time
            return
        world.note(name, "pauses")
        process.pause()
        await trio.sleep(rng.choice((0.5, 5.0, 20.0)))
        world.note(name, "goes-on")
        process.resume()
    elif kind in ("cut", "stall"):
        cables = [cable for cable in world.cables if not cable.over]
        if not cables:
            return
        cable = rng.choice(cables)
        world.note(cable.dialler.name, kind, cable.listener.name)
        if kind == "cut":
            cable.near.cut()
        else:
            end = rng.choice((cable.near, cable.far))
            end.stall()
            await trio.sleep(rng.choice((0.5, 5.0, 20.0)))
            cable.resume()
    elif kind == "part":
        other = rng.choice([machine for machine in machines if machine != name])
        world.note(name, "part", other)
        world.part(name, other)
        await trio.sleep(rng.choice((0.5, 5.0, 20.0)))
        world.note(name, "mend", other)
        world.mend(name, other)
    elif kind == "full":
        world.note("controller", "full")
        world.machine("controller").disk["full"] = True
        await trio.sleep(rng.choice((0.5, 5.0, 20.0)))
        world.note("controller", "room")
        world.machine("controller").disk.pop("full", None)
    elif kind == "slow":
        for cable in world.cables_of(process) if process is not None else ():
            cable.near.delay = cable.far.delay = rng.random() * 3
    else:
        by = rng.choice((-3600.0, -30.0, 30.0, 3600.0))
        world.note(name, "clock", by)
        world.machine(name).offset += by


async def _fault_in(cluster: Cluster, name: str) -> None:
    """Something between the API server and one of the controllers, or all."""
    world, rng = cluster.world, cluster.world.rng
    kind = rng.choice(IN_ITS_CLUSTER)
    seconds = rng.choice((0.5, 8.0, 20.0))
    world.note(name, kind, CLUSTER, seconds)
    if kind == "restart":
        if cluster.up:
            await cluster.restart(min(seconds, 5.0))
    elif kind == "far":
        await _be_far(world, name, seconds)
    elif kind == "half-done":
        cluster.traps.append(partial(_trip, seconds))
    elif kind == "overdue":
        cluster.snares.append(partial(_hold_up, rng.choice((5.0, 8.0, 20.0))))
    elif (pool := cluster.pools.get(name)) is not None:
        if kind == "late":
            pool.late = rng.choice(("", "deviceleases", "exporters", "controllerreplicas"))
            pool.late_until = trio.current_time() + seconds
        elif kind == "slow":
            pool.lag = rng.choice((0.2, 1.0, 5.0))
        else:
            pool.drops += rng.choice((1, 3))


async def _be_far(world: World, name: str, seconds: float) -> None:
    """Do not reach the API server for a while."""
    world.part(name, CLUSTER)
    await trio.sleep(seconds)
    world.mend(name, CLUSTER)


async def _trip(seconds: float, pool: SimulatedPool) -> None:
    """Whoever has done half of a grant does not go on with it for a while, or never."""
    process, world = pool.process, pool.process.world
    kind = world.rng.choice(("far", "pause", "kill"))
    world.note(process.name, "killed" if kind == "kill" else kind, "half-done", seconds)
    if kind == "kill":
        process.die()
    elif kind == "far":
        await _be_far(world, process.name, seconds)
    else:
        process.pause()
        await trio.sleep(seconds)
        process.resume()


async def _hold_up(seconds: float, pool: SimulatedPool) -> None:
    """What would make a grant whole is under way for a while; whoever sent it waits, stands still, or is dead."""
    process, world = pool.process, pool.process.world
    kind = world.rng.choice(("waits", "pause", "kill", "kill", "kill"))
    world.note(process.name, "killed" if kind == "kill" else kind, "overdue", seconds)
    if kind == "kill":
        process.die()
    elif kind == "pause":
        process.pause()
    await trio.sleep(seconds)
    if kind == "pause":
        process.resume()


async def _settle(world: World, cast: Cast) -> None:
    """Wait until all is over that the users have begun."""
    with trio.move_on_after(RECOVERY):
        while not _is_quiet(world, cast):  # noqa: ASYNC110  # too many things to wait for
            await trio.sleep(5)
        return
    world.found(f"not all was over {RECOVERY:g} s after the last fault")


def _is_quiet(world: World, cast: Cast) -> bool:
    labs: list[Lab] = []
    for name in cast.controllers:
        if (controller := world.alive(name)) is None or not isinstance(lab := controller.about, Lab):
            return False
        labs.append(lab)
    if any((client := world.alive(name)) is None or client.about is not GONE for name in cast.clients):
        return False
    if any(lab.view.active for lab in labs) or {name for lab in labs for name in lab.routers} < set(cast.routers):
        return False
    for name in cast.routers:
        process = world.alive(name)
        if process is None or not isinstance(role := process.about, Router) or not role.connected:
            return False
    for name in cast.exporters:
        process = world.alive(name)
        if process is None or not isinstance(exporter := process.about, LabExporter):
            return False
        if exporter.hold is not None and exporter.hold.phase is not Phase.IDLE:
            return False
        if any(name not in lab.engine._free for lab in labs):
            return False
    return True


async def _prove(world: World, exporters: list[str]) -> None:
    """Everything works again: a lease of each exporter, one after another, with no mistake forgiven."""
    process = world.machine(AUDITOR).process = Process(world, world.machine(AUDITOR))

    async def use(process: Process) -> None:
        user = User(process, 0.0, [], exporters)
        for name in exporters:
            try:
                with trio.fail_after(PROOF):
                    await _prove_one(user, name)
            except* FAILURES as errors:
                world.found(f"{name} cannot be used when nothing is wrong any more: {errors.exceptions[0]!r}")

    await process.run(use)


async def _prove_one(user: User, name: str) -> None:
    from jmp.client.lab import open_lab_trio

    async with open_lab_trio(config_of(AUDITOR)) as lab:
        lease = await lab.acquire([Want(exporter=name)], 60.0)
        await user.granted(lab, lease.id)
        await user.use_one(lab, lease.id, name)
        await user.release(lab, lease.id)
        async for standing in lab.watch(lease.id):
            if standing.lease.state is State.ENDED:
                return
    raise JmpError(f"lease {lease.id} did not end")
