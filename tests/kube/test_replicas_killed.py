"""Three controllers as processes over a real API server: they are killed and stopped while the lab is full, and so is its server.

`JMP_TEST_SCALE=full` is the whole story, of 200 exporters and 500 queued leases; otherwise it is a short one.
"""

from __future__ import annotations

import os
import random
import signal
from bisect import bisect_left, insort
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import trio

from jmp.client.lab import Lab
from jmp.controller.kubernetes import open_store
from jmp.controller.replicas import LOST
from jmp.errors import JmpError
from jmp.link import Link, websocket
from jmp.rpc.call import Caller
from jmp.rpc.reconnect import keep_connected
from jmp.wire.records import Lease, Observed, Phase, State, Want, to_wire
from tests.fakes.kube import Cluster
from tests.fakes.replicas import Replica, admin_token, lab_at, replicas

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Size:
    """Of a story."""

    boards: int
    users: int
    queued: int
    """Leases that are asked for before the first exporter comes; each that is over is followed by another one."""
    seconds: float
    """For which there is trouble,"""
    patience: float
    """and within which all is over then."""


FULL = os.environ.get("JMP_TEST_SCALE") == "full"
SIZE = Size(200, 20, 500, 120.0, 300.0) if FULL else Size(30, 6, 75, LOST + 6, 200.0)
BACK = 10.0
"""Seconds after which the exporters that a killed controller had are back, on a machine that does nothing else."""


class Board:
    """An exporter that is quick to get ready and to clean up, and notices whatever it should not be told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.observed = Observed(epoch=0)
        self.grants: list[tuple[int, str]] = []
        self.wrong: list[str] = []
        self.away: list[float] = []
        """How long it was without a controller, each time."""
        self.lost: float | None = None
        self.connected = trio.Event()

    async def attend(self, caller: Caller) -> None:
        """Be connected."""
        registration = {"labels": {"kind": "x"}, "observed": to_wire(self.observed), "tree": {}, "endpoints": []}
        try:
            async with aclosing(caller.items("@lab", "attend", (registration,), {})) as items:
                async for item in items:
                    if self.lost is not None:
                        self.away.append(trio.current_time() - self.lost)
                        self.lost = None
                    self.connected.set()
                    if "desired" in item and self._is_to_be(item["desired"]):
                        await caller.call("@lab", "observe", (to_wire(self.observed),), {})
        finally:
            if self.connected.is_set() and self.lost is None:
                self.lost = trio.current_time()

    def _is_to_be(self, desired: dict[str, Any]) -> bool:
        epoch, grant, now = desired["epoch"], desired["grant"], self.observed
        if epoch < now.epoch:
            return False  # somebody who does not know better yet
        if grant is None:
            self.observed = Observed(epoch=epoch, lease=now.lease)
        elif (epoch, grant["lease"]) != (now.epoch, now.lease):
            # That its epoch was raised it may hear before it hears for whom.
            if before := [lease for number, lease in self.grants if number == epoch]:
                self.wrong.append(f"{grant['lease']} has the epoch {epoch} of {before[0]}")
            if now.phase is not Phase.IDLE:
                self.wrong.append(f"{grant['lease']} is granted while {now.lease} is in use")
            self.grants.append((epoch, grant["lease"]))
            self.observed = Observed(epoch=epoch, lease=grant["lease"], phase=Phase.READY)
        return self.observed != now


@dataclass
class Story:
    """What all have to do with."""

    controllers: list[Replica]
    asked: list[str] = field(default_factory=list)
    over: dict[str, str] = field(default_factory=dict)
    enough: trio.Event = field(default_factory=trio.Event)
    ready: set[Replica] = field(default_factory=set)
    turn: int = 0

    async def dial(self, token: str) -> Link:
        """A link to one of the controllers that answer, as a Service gives it."""
        for _ in self.controllers:
            self.turn += 1
            replica = self.controllers[self.turn % len(self.controllers)]
            if replica in self.ready:
                try:
                    with trio.fail_after(5):
                        return await websocket.connect(replica.url, token=token, ca=self.controllers[0].ca)
                except (JmpError, trio.TooSlowError):
                    continue
        raise JmpError("nobody answers")


class User:
    """Wants some leases at any time, and gives back each as soon as it is ready."""

    def __init__(self, story: Story, token: str, leases: int) -> None:
        self._story = story
        self._token = token
        self._leases = leases
        self._mine: list[str] = []
        self.asked = trio.Event()

    async def run(self) -> None:
        """Until there is enough, and all are over."""
        while self._mine or not self._story.enough.is_set():
            try:
                async with lab_at(partial(self._story.dial, self._token)) as lab, trio.open_nursery() as nursery:
                    for id in list(self._mine):
                        nursery.start_soon(self._see_through, nursery, lab, id)
                    while len(self._mine) < self._leases and not self._story.enough.is_set():
                        nursery.start_soon(self._see_through, nursery, lab, await self._ask(lab))
                    self.asked.set()
            except* JmpError:
                await trio.sleep(0.1)  # its controller is gone, or does not know of a lease yet

    async def _ask(self, lab: Lab) -> str:
        id = (await lab.acquire([Want(selector="kind=x")], 5.0)).id
        self._mine.append(id)
        self._story.asked.append(id)
        return id

    async def _see_through(self, nursery: trio.Nursery, lab: Lab, id: str) -> None:
        async with aclosing(lab.watch(id)) as watching:
            async for standing in watching:
                if standing.lease.state is State.READY:
                    await lab.release(id)
                elif standing.lease.state is State.ENDED:
                    self._story.over[id] = standing.lease.reason
        self._mine.remove(id)
        if not self._story.enough.is_set():
            nursery.start_soon(self._see_through, nursery, lab, await self._ask(lab))


async def trouble(cluster: Cluster, story: Story, boards: list[Board]) -> int:
    """Kill one after the other; stop one for longer than it takes to be given up; kill the API server in between."""
    chance = random.Random(4)
    stopped, *others = story.controllers
    began, kills, on_foot = trio.current_time(), 0, False
    story.ready.discard(stopped)  # it would not be ready
    stopped.signal(signal.SIGSTOP)
    while trio.current_time() < began + SIZE.seconds or on_foot is False:
        await trio.sleep(chance.uniform(1, 4))
        victim = chance.choice(others)
        await replace(story, victim)
        kills += 1
        if not on_foot and trio.current_time() > began + LOST + 4:
            on_foot = True
            stopped.signal(signal.SIGCONT)
            story.ready.add(stopped)
            others = story.controllers
            cluster.kill_api()
            await trio.to_thread.run_sync(cluster.start)
    for victim in story.controllers:
        await replace(story, victim)
        kills += 1
    return kills


async def replace(story: Story, victim: Replica) -> None:
    """Kill a controller, and start it again."""
    story.ready.discard(victim)
    victim.kill()
    await trio.to_thread.run_sync(victim.start)
    story.ready.add(victim)


async def test_nothing_is_granted_twice_nor_lost(cluster: Cluster, tmp_path: Path) -> None:
    access = cluster.namespace()
    with replicas(cluster, access, tmp_path, "abc") as controllers:
        story = Story(controllers, ready=set(controllers))
        boards = [Board(f"board-{number}") for number in range(SIZE.boards)]
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + SIZE.seconds + SIZE.patience
            admin = await admin_token(access)
            tokens: dict[str, str] = {}
            users: list[User] = []
            async with lab_at(partial(story.dial, admin)) as boss:
                await abreast(partial(make, boss, "exporter", tokens), [board.name for board in boards])
                await abreast(partial(make, boss, "client", tokens), [f"user-{n}" for n in range(SIZE.users)])
            async with trio.open_nursery() as busy:
                for number in range(SIZE.users):
                    users.append(User(story, tokens[f"user-{number}"], SIZE.queued // SIZE.users))
                    busy.start_soon(users[-1].run)
                for user in users:
                    await user.asked.wait()
                asked = trio.current_time()
                for board in boards:
                    nursery.start_soon(keep_connected, partial(story.dial, tokens[board.name]), board.attend)
                for board in boards:
                    await board.connected.wait()
                connected = trio.current_time()
                kills = await trouble(cluster, story, boards)
                troubled, done = trio.current_time(), len(story.over)
                story.enough.set()
            rest = len(story.over) - done, trio.current_time() - troubled
            nursery.cancel_scope.cancel()
    async with open_store(access) as store:
        leases = {record.id: record for _, _, record in await store.load() if isinstance(record, Lease)}
    away = sorted(seconds for board in boards for seconds in board.away)
    print(f"\n{SIZE.boards} exporters connected in {connected - asked:.1f} s, {SIZE.queued} leases queued at any time")
    print(
        f"{kills} kills, one stopped for {LOST + 4:.0f} s, the API server killed: {done} leases in {troubled - connected:.0f} s"
    )
    print(f"then, undisturbed: {rest[0]} leases in {rest[1]:.1f} s, {rest[0] / max(rest[1], 0.1):.0f}/s")
    print(f"exporters without a controller: {len(away)} times, median {median(away):.2f} s, longest {away[-1]:.2f} s")
    assert set(story.asked) == story.over.keys(), "not all came to an end in time"
    assert [board.wrong for board in boards if board.wrong] == []
    given = [(held.exporter, held.epoch) for lease in leases.values() for held in lease.devices]
    assert len(set(given)) == len(given)
    mine = [leases[id] for id in story.asked]
    assert all(lease.granted is not None and lease.ended is not None for lease in mine)
    late = overtaken(mine)
    print(f"order: {sum(map(bool, late))} of {len(late)} leases were overtaken, none by more than {max(late)} others")
    assert max(late) == 0
    assert not FULL or away[-1] < BACK


def overtaken(leases: list[Lease]) -> list[int]:
    """For each lease how many were granted before it that were asked for after it; those of one commit are granted at once."""
    by_time = sorted(leases, key=lambda lease: (lease.granted or 0.0, lease.number))
    before: list[int] = []
    found = []
    for lease in by_time:
        found.append(len(before) - bisect_left(before, lease.number))
        insort(before, lease.number)
    return found


async def make(boss: Lab, kind: str, tokens: dict[str, str], name: str) -> None:
    await boss.call("create", kind, name, {"labels": {"kind": "x"}})
    tokens[name] = (await boss.call("issue", name, kind))["token"]


async def abreast(do: Callable[[str], Any], names: list[str]) -> None:
    """Do it for all, some at a time."""
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:
            await do(name)

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(work)
