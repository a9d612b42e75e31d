"""The lease engine under whatever clients, exporters, admins and time may do, in any order."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jmp.controller.leases import ACTIVE, LEGAL, Engine
from jmp.controller.sqlite import SqliteStore
from jmp.controller.store import Change, Store
from jmp.errors import JmpError
from jmp.wire.records import Client, Exporter, Lease, Observed, Phase, Policy, State, Want

CLIENTS = ("ada", "bob", "cy")
EXPORTERS = {"x1": {"kind": "x"}, "x2": {"kind": "x"}, "y1": {"kind": "y"}, "y2": {"kind": "y", "rack": "a"}}
SELECTORS = ("", "kind=x", "kind=y", "rack=a", "!rack")
WANTS = st.one_of(
    st.sampled_from(SELECTORS).map(lambda text: Want(selector=text)),
    st.sampled_from(sorted(EXPORTERS)).map(lambda name: Want(exporter=name)),
)
POLICIES = [
    Policy(name="all", longest=4000.0),
    Policy(name="ada", clients="name=ada", manage=True, priority=5),
    Policy(name="y", clients="name=cy", exporters="kind=y", longest=9000.0),
]
Snapshot = dict[tuple[str, str], Any]


class Laboratory(RuleBasedStateMachine):
    """An engine, exporters that do what it wants of them sooner or later, and a clock."""

    steps = 0
    """Taken so far, in all examples."""

    def __init__(self) -> None:
        super().__init__()
        type(self).steps -= 1  # what is there at first is none
        self.now = 1_000_000.0
        self.engine = Engine(retention=20_000.0)
        self.kept: Snapshot = {}
        """What a store that was given all changes has."""
        self.epochs: dict[str, int] = {}
        self.online: set[str] = set()
        self.away: dict[str, float] = dict.fromkeys(EXPORTERS, self.now)
        """When each exporter was last seen to go."""
        self.doing: dict[str, Observed] = {name: Observed(epoch=0) for name in EXPORTERS}
        self.gone: set[str] = set()
        """Leases that were deleted for their age."""

    def store(self, changes: Sequence[Change]) -> None:
        """What a subclass does to a real store."""

    def reload(self) -> list[Any]:
        """What a real store would give back."""
        return list(self.kept.values())

    # ---- what happens

    @initialize()
    def furnish(self) -> None:
        for name in CLIENTS:
            self.engine.put(Client(name=name, labels={"name": name}), self.now)
        for name, labels in EXPORTERS.items():
            self.engine.put(Exporter(name=name, labels=labels), self.now)
        for policy in POLICIES:
            self.engine.put(policy, self.now)
        for name in EXPORTERS:
            self.connect(name)
        self.settle()

    @rule(
        client=st.sampled_from(CLIENTS),
        wants=st.one_of(WANTS.map(lambda want: [want]), st.lists(WANTS, min_size=2, max_size=3, unique=True)),
        duration=st.sampled_from((600.0, 60.0, 400.0, 3600.0, 8000.0)),
        begin=st.sampled_from((None, None, None, 0.0, 500.0, 5000.0)),
        wait=st.sampled_from((None, None, None, 0.0, 700.0)),
        priority=st.sampled_from((None, None, None, 0, 5)),
        tied=st.booleans(),
        allow_disabled=st.sampled_from((False, False, False, True)),
    )
    def request(
        self,
        client: str,
        wants: list[Want],
        duration: float,
        begin: float | None,
        wait: float | None,
        priority: int | None,
        tied: bool,
        allow_disabled: bool,
    ) -> None:
        begin = None if begin is None else self.now + begin
        before = copy.deepcopy(self.engine.leases)
        try:
            lease = self.engine.request(
                client,
                wants,
                duration,
                self.now,
                begin=begin,
                wait=wait,
                priority=priority,
                tied=tied,
                allow_disabled=allow_disabled and client == "ada",
            )
        except JmpError:
            assert self.engine.leases == before
        else:
            assert wait != 0 or begin is not None or lease.state is not State.QUEUED
        self.settle()

    def some(self, data: st.DataObject, *states: State) -> Lease | None:
        found = sorted(
            (lease for lease in self.engine.leases.values() if lease.state in states), key=lambda lease: lease.number
        )
        return data.draw(st.sampled_from(found)) if found else None

    @precondition(lambda self: self.engine.leases)
    @rule(data=st.data(), by=st.sampled_from((None, *CLIENTS)), what=st.sampled_from(("release", "extend", "transfer")))
    def ask(self, data: st.DataObject, by: str | None, what: str) -> None:
        if (lease := self.some(data, *State)) is None:
            return
        try:
            if what == "release":
                self.engine.release(lease.id, by, "asked", self.now)
            elif what == "extend":
                self.engine.extend(lease.id, 300.0, by, self.now)
            else:
                self.engine.transfer(lease.id, data.draw(st.sampled_from(CLIENTS)), by, self.now)
        except JmpError:
            assert self.engine.leases[lease.id] == lease
        self.settle()

    @rule(data=st.data(), present=st.booleans())
    def hold(self, data: st.DataObject, present: bool) -> None:
        if lease := self.some(data, State.QUEUED, *ACTIVE):
            self.engine.holder(lease.id, present, self.now)
        self.settle()

    @rule(seconds=st.sampled_from((0.0, 1.0, 59.0, 60.0, 600.0, 901.0, 4000.0)))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(name=st.sampled_from(sorted(EXPORTERS)))
    def connect(self, name: str) -> None:
        self.online.add(name)
        self.engine.online(name, self.now)
        self.say(name)

    @rule(name=st.sampled_from(sorted(EXPORTERS)))
    def disconnect(self, name: str) -> None:
        self.online.discard(name)
        self.away[name] = self.now
        self.engine.offline(name, self.now)
        self.settle()

    @rule(name=st.sampled_from(sorted(EXPORTERS)), times=st.integers(1, 3))
    def work(self, name: str, times: int) -> None:
        """An exporter takes the next steps of what is wanted of it, whether it can say so or not."""
        for _ in range(times):
            self.step(name)
        self.say(name)

    @rule()
    def all_work(self) -> None:
        for name in EXPORTERS:
            self.connect(name)
            self.work(name, 3)

    @rule(name=st.sampled_from(sorted(EXPORTERS)))
    def fail(self, name: str) -> None:
        """What it had is over, for reasons of its own: a restart, a hook that failed."""
        self.doing[name] = replace(self.doing[name], phase=Phase.IDLE, reason="it failed")
        self.say(name)

    @rule(name=st.sampled_from(sorted(EXPORTERS)), data=st.data())
    def say_late(self, name: str, data: st.DataObject) -> None:
        """What was true once arrives again."""
        if name in self.online and (lease := self.some(data, State.ENDED)):
            for held in lease.devices:
                if held.exporter == name and self.doing[name].phase is Phase.IDLE:
                    self.engine.observed(name, lease.id, held.epoch, Phase.IDLE, "", self.now)
                    self.engine.observed(name, lease.id, held.epoch, Phase.IDLE, "", self.now)
        self.settle()

    @rule(name=st.sampled_from(sorted(EXPORTERS)), why=st.sampled_from((None, None, "the fan is loud")))
    def maintain(self, name: str, why: str | None) -> None:
        self.engine.put(replace(self.engine.exporters[name], disabled=why), self.now)
        self.settle()

    @rule(name=st.sampled_from(CLIENTS), why=st.sampled_from((None, None, None, None, "left us")))
    def disable(self, name: str, why: str | None) -> None:
        self.engine.put(replace(self.engine.clients[name], disabled=why), self.now)
        self.settle()

    @rule(longest=st.sampled_from((None, 4000.0, 500.0)), lease=st.sampled_from((True, True, True, True, False)))
    def decree(self, longest: float | None, lease: bool) -> None:
        self.engine.put(replace(self.engine.policies["all"], longest=longest, lease=lease), self.now)
        self.settle()

    @rule(name=st.sampled_from(sorted(EXPORTERS)))
    def replace_exporter(self, name: str) -> None:
        """Its record is deleted and made again; the exporter itself knows better which epochs there were."""
        self.engine.drop("exporter", name, self.now)
        self.settle()
        self.engine.put(Exporter(name=name, labels=EXPORTERS[name]), self.now)
        self.online.discard(name)
        self.away[name] = self.now
        self.epochs.pop(name)
        self.doing[name] = replace(self.doing[name], phase=Phase.IDLE, epoch=self.doing[name].epoch)
        self.settle()

    @rule()
    def restart(self) -> None:
        """The controller begins anew with what was kept."""
        again = Engine(retention=20_000.0)
        again.load(self.reload(), self.now)
        assert again.take_changes() == []
        positions = [
            {id: place for id, (place, _) in engine.standing(self.now).items()} for engine in (self.engine, again)
        ]
        assert positions[0] == positions[1]
        self.engine = again
        self.online.clear()
        self.away = dict.fromkeys(EXPORTERS, self.now)
        self.settle()

    # ---- exporters and time

    def step(self, name: str) -> None:
        doing = self.doing[name]
        if name not in self.online:  # it ends a lease by its own clock, and begins none
            if doing.phase in (Phase.READY, Phase.ENDING):
                self.doing[name] = replace(doing, phase=Phase.ENDING if doing.phase is Phase.READY else Phase.IDLE)
            return
        lease = next(
            (
                lease
                for lease in self.engine.leases.values()
                for held in lease.devices
                if lease.state in ACTIVE and held.exporter == name and held.phase is not Phase.IDLE
            ),
            None,
        )
        epoch = self.engine.exporters[name].epoch
        if doing.phase is not Phase.IDLE and (lease is None or doing.lease != lease.id):
            phase = Phase.IDLE if doing.phase is Phase.ENDING else Phase.ENDING
            self.doing[name] = Observed(
                epoch=epoch if phase is Phase.IDLE else doing.epoch, lease=doing.lease, phase=phase
            )
        elif lease is None:
            self.doing[name] = replace(doing, epoch=epoch, phase=Phase.IDLE)
        elif doing.lease != lease.id:
            self.doing[name] = Observed(epoch=epoch, lease=lease.id, phase=Phase.PREPARING)
        elif doing.phase is Phase.PREPARING:
            self.doing[name] = replace(doing, epoch=epoch, phase=Phase.READY)

    def say(self, name: str) -> None:
        if name in self.online:
            doing = self.doing[name]
            self.engine.observed(name, doing.lease, doing.epoch, doing.phase, doing.reason, self.now)
            self.engine.observed(name, doing.lease, doing.epoch, doing.phase, doing.reason, self.now)
        self.settle()

    def pass_time(self, seconds: float) -> None:
        """As the service does: a tick at each deadline."""
        end = self.now + seconds
        while (deadline := self.engine.deadline()) is not None and deadline <= end:
            assert deadline > self.now or deadline <= self.now
            self.now = max(self.now, deadline)
            self.engine.tick(self.now)
            assert (later := self.engine.deadline()) is None or later > self.now
            self.settle()
        self.now = end
        self.engine.tick(self.now)
        self.settle()

    # ---- what always holds

    def snapshot(self) -> Snapshot:
        tables = ("client", self.engine.clients), ("exporter", self.engine.exporters), ("policy", self.engine.policies)
        kept: Snapshot = {(kind, name): record for kind, table in tables for name, record in table.items()}
        return kept | {("lease", id): lease for id, lease in self.engine.leases.items()}

    def settle(self) -> None:
        """Take what has changed: the moves were legal, and it is exactly the difference."""
        changes = self.engine.take_changes()
        for change in changes:
            key = change.kind, change.name
            assert self.kept.get(key) == change.old
            assert change.old != change.new
            if change.new is None:
                del self.kept[key]
            else:
                self.kept[key] = change.new
            if isinstance(change.old, Lease) and isinstance(change.new, Lease):
                assert reachable(change.old.state, change.new.state)
        assert len({(change.kind, change.name) for change in changes}) == len(changes)
        assert self.kept == self.snapshot()
        self.store(changes)
        for name, exporter in self.engine.exporters.items():
            assert exporter.epoch >= self.epochs.get(name, 0)
            self.epochs[name] = exporter.epoch

    @invariant()
    def counted(self) -> None:
        type(self).steps += 1

    @invariant()
    def nothing_has_two_holders(self) -> None:
        holding = [
            held.exporter for lease in self.engine.leases.values() if lease.state in ACTIVE for held in lease.devices
        ]
        assert len(holding) == len(set(holding))

    @invariant()
    def all_or_none(self) -> None:
        for lease in self.engine.leases.values():
            if lease.granted is None:
                assert not lease.devices
            else:
                assert len({held.exporter for held in lease.devices}) == len(lease.wants) == len(lease.devices)

    @invariant()
    def every_hold_ends(self) -> None:
        deadline = self.engine.deadline() or math.inf
        for lease in self.engine.leases.values():
            if lease.state in ACTIVE:
                assert deadline <= (lease.ends if lease.ends is not None else (lease.granted or math.inf) + 900)
            elif lease.state is State.ENDING:
                left = {held.exporter for held in lease.devices if held.phase is not Phase.IDLE}
                over = max([lease.ends or 0.0, *(self.away[name] for name in left)]) + 60
                assert left & self.online or self.now < over or deadline <= self.now

    @invariant()
    def the_first_who_can_has_it(self) -> None:
        """No exporter is free for somebody who could take it, unless it is kept for another one ahead."""
        queue = sorted(
            (lease for lease in self.engine.leases.values() if lease.state is State.QUEUED),
            key=lambda lease: (-lease.priority, lease.number),
        )
        for lease in queue:
            if len(lease.wants) > 1 or (lease.begin or 0) > self.now:
                return  # it keeps some for itself
            if lease.tied and lease.id in self.engine._vanished:
                continue
            reasons = self.engine.why(lease.client, lease.wants, self.now, allow_disabled=lease.allow_disabled)
            free = [reason.exporter for reason in reasons if reason.code == "available"]
            limits = [self.engine.access(lease.client, name).longest for name in free]
            assert not [limit for limit in limits if limit is None or limit >= lease.duration]

    # ---- no starvation

    def teardown(self) -> None:
        """Nobody asks for anything more, exporters answer, nothing is in maintenance: each that can be granted is, in order."""
        if not self.kept:
            return
        for name in EXPORTERS:
            self.maintain(name, None)
            self.connect(name)
        self.decree(None, True)
        waiting = [lease for lease in self.engine.leases.values() if lease.state is State.QUEUED]
        for lease in waiting:
            self.engine.holder(lease.id, True, self.now)
        for _ in range(4 * len(self.engine.leases) + 8):
            for name in EXPORTERS:
                self.work(name, 3)
            self.nothing_has_two_holders()
            self.the_first_who_can_has_it()
            if (deadline := self.engine.deadline()) is not None:
                self.pass_time(max(deadline - self.now, 0.0))
        for lease in self.engine.leases.values():
            assert lease.state is State.ENDED, lease
        for lease in waiting:
            last = self.engine.leases.get(lease.id)
            assert last is None or last.granted is not None or last.give_up is not None, last


class StoredLaboratory(Laboratory):
    """The same, with each change kept in the embedded store, and each restart from what that has when it is opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.waiting: list[Sequence[Change]] = []
        self.stored: dict[tuple[str, str], Any] = {}

    def store(self, changes: Sequence[Change]) -> None:
        if changes:
            self.waiting.append(changes)

    def reload(self) -> list[Any]:
        found = trio.run(self.reopened)
        assert found == {key: replace(record, version=found[key].version) for key, record in self.kept.items()}
        return [replace(record, version=self.kept[key].version) for key, record in found.items()]

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return aclosing(SqliteStore.open(Path(self.folder.name)))

    async def reopened(self) -> Snapshot:
        """What the store has once all was committed and it was closed and opened again."""
        async with self.opened() as store:
            for changes in self.waiting:
                now = [replace(change, old=self.stored.get(change.key)) for change in changes]
                for change, record in zip(changes, await store.commit(now), strict=True):
                    self.stored[change.key] = record
        self.waiting.clear()
        async with self.opened() as store:
            return {(kind, name): record for kind, name, record in await store.load()}

    def teardown(self) -> None:
        with self.folder:
            super().teardown()
            if self.kept:
                self.reload()


def test_whatever_happens() -> None:
    Laboratory.steps = 0
    run_state_machine_as_test(Laboratory, settings=settings(MANY, max_examples=400))
    assert Laboratory.steps >= 10_000


def test_the_store_has_whatever_happened() -> None:
    StoredLaboratory.steps = 0
    run_state_machine_as_test(StoredLaboratory, settings=settings(MANY, max_examples=100))
    assert StoredLaboratory.steps >= 2_000


MANY = settings(stateful_step_count=50, deadline=None, derandomize=True)


def reachable(old: State, new: State) -> bool:
    """By legal moves: several may have been made since the last changes were taken."""
    return old is new or any(reachable(state, new) for state in LEGAL[old])
