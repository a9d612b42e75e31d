"""One history of a simulated lab, from its seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio
from trio.testing import MockClock

from jmp.controller.lab import Lab
from jmp.errors import JmpError
from jmp.exporter.lab import LabExporter
from jmp.router.serve import Router
from jmp.wire.records import Phase, State, Want
from tests.sim import roles
from tests.sim.model import check
from tests.sim.users import FAILURES, User, config_of
from tests.sim.world import Event, Process, World

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


def simulate(seed: int, bug: Bug = nullcontext) -> Outcome:
    """Run one history to its end, and say what was wrong with it; with ``bug`` in the product meanwhile."""
    world = World(seed)
    with bug(), world.laws():
        trio.run(_live, world, clock=MockClock(autojump_threshold=0))
    records = world.machine("controller").disk["records"]
    return Outcome(seed, [*world.findings, *check(world.history, records)], world.history)


async def _live(world: World) -> None:
    rng = world.rng
    exporters = ["one", "two"][: rng.choice((1, 1, 2))]
    routers = ["here", "there"][: rng.choice((1, 2))]
    clients = ["ada", "bob", "eve"][: rng.choice((2, 2, 3))]
    seconds = rng.choice(FAULTS_FOR)
    roles.format_disk(world, [*clients, AUDITOR], exporters, routers)
    mains: dict[str, Callable[[Process], Any]] = {"controller": roles.controller}
    mains |= dict.fromkeys(routers, roles.router)
    mains |= {name: partial(roles.exporter, direct=rng.random() < 0.5) for name in exporters}

    async def use(process: Process) -> None:
        others = [name for name in clients if name != process.name]
        await User(process, seconds, others, exporters).run()
        process.about = GONE
        await trio.sleep_forever()

    mains |= dict.fromkeys(clients, use)
    async with trio.open_nursery() as nursery:
        for name, main in mains.items():
            nursery.start_soon(world.keep, name, main, nursery)
        await _break(world, list(mains), seconds)
        world.mend_all()
        await _settle(world, exporters, routers, clients)
        await _prove(world, exporters)
        await trio.sleep(1)  # disks come to rest
        for name in mains:
            if (process := world.alive(name)) is not None:
                process.die()
        nursery.cancel_scope.cancel()


async def _break(world: World, machines: list[str], seconds: float) -> None:
    rng = world.rng
    async with trio.open_nursery() as nursery:
        for _ in range(rng.choice((0, 2, 4, 8))):
            nursery.start_soon(_fault, world, machines, rng.random() * seconds)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()


async def _fault(world: World, machines: list[str], when: float) -> None:
    rng = world.rng
    await trio.sleep(when)
    kind = rng.choice(("kill", "kill", "kill", "power", "stop", "cut", "cut", "stall", "part", "slow", "clock", "full"))
    name = rng.choice([*machines, "controller", *(name for name in machines if name in ("one", "two"))])
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


async def _settle(world: World, exporters: list[str], routers: list[str], clients: list[str]) -> None:
    """Wait until all is over that the users have begun."""
    with trio.move_on_after(RECOVERY):
        while not _is_quiet(world, exporters, routers, clients):  # noqa: ASYNC110  # too many things to wait for
            await trio.sleep(5)
        return
    world.found(f"not all was over {RECOVERY:g} s after the last fault")


def _is_quiet(world: World, exporters: list[str], routers: list[str], clients: list[str]) -> bool:
    controller = world.alive("controller")
    if controller is None or not isinstance(lab := controller.about, Lab):
        return False
    if any((client := world.alive(name)) is None or client.about is not GONE for name in clients):
        return False
    if lab.view.active or lab.routers.keys() < set(routers):
        return False
    for name in routers:
        process = world.alive(name)
        if process is None or not isinstance(role := process.about, Router) or not role.connected:
            return False
    for name in exporters:
        process = world.alive(name)
        if process is None or not isinstance(exporter := process.about, LabExporter):
            return False
        if exporter.hold is not None and exporter.hold.phase is not Phase.IDLE:
            return False
        if name not in lab.engine._free:
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
