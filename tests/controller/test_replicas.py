"""Several controllers that share a store: real ones, with real exporters and clients; the store and the links are in memory."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from jmp.controller.meeting import RouterLink
from jmp.controller.replicas import LOST
from jmp.controller.store import Change, Store
from jmp.errors import BadValue, JmpError, LabError
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller
from jmp.wire import records
from jmp.wire.records import Phase, State, Want
from tests.fakes.clocks import leaping
from tests.fakes.memory_lab import WANT, Lamp, MemoryLab, memory_labs
from tests.fakes.memory_store import MemoryStore


@pytest.fixture
def autojump_clock() -> MockClock:
    """Leaps when all have waited for 10 ms: until then they may wait for programs and sockets."""
    return leaping(0.01)


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[list[MemoryLab]]:
    """Three controllers of one lab, whose store is in memory: for tests in which time leaps."""
    store = MemoryStore()
    with trio.fail_after(1000):
        async with memory_labs(tmp_path, {name: store.share() for name in "abc"}) as made:
            yield made


@pytest.fixture(params=["memory", pytest.param("kubernetes", marks=pytest.mark.real)])
async def labs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[MemoryLab]]:
    """The same, also with their records in a cluster."""
    cluster = request.getfixturevalue("cluster") if request.param == "kubernetes" else None  # may have to be started
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(600))
        stores: dict[str, Store] = {}
        if cluster is None:
            store = MemoryStore()
            stores = {name: store.share() for name in "abc"}
        else:
            from jmp.controller.kubernetes import open_store

            access = cluster.namespace()
            stores = {name: await stack.enter_async_context(open_store(access)) for name in "abc"}
        yield await stack.enter_async_context(memory_labs(tmp_path, stores))


async def kept(lab: MemoryLab, kind: str, name: str) -> Any:
    """A record as it is in the store."""
    return {(kind, name): record for kind, name, record in await lab.store.load()}.get((kind, name))


async def until(lab: MemoryLab, topic: Any, true: Any) -> None:
    """Wait until something is so at one of the controllers."""
    with lab.lab.news.listen(topic, "clock") as listener:
        while not true():
            await listener.wait()


async def test_an_exporter_and_its_holder_at_different_controllers(labs: list[MemoryLab]) -> None:
    a, b, c = labs
    async with a.exporter("one") as exporter, b.client("alice") as alice, c.client("boss", records.Role.ADMIN) as boss:
        lease = await alice.acquire(WANT, 6000.0)
        ready = await b.wait(lease.id, State.READY)
        assert [held.epoch for held in ready.devices] == [1]
        await c.wait(lease.id, State.READY)
        [seen] = await boss.call("exporters")
        assert (seen["state"], seen["client"]) == ("leased", "alice")
        async with b.visit(alice, exporter, lease.id) as (_, device):
            Lamp.lit = False
            await device.lamp.on()
            assert Lamp.lit
        await alice.release(lease.id)
        ended = await c.wait(lease.id, State.ENDED)
        assert ended.reason == "released by alice"
        assert (await boss.call("exporter", "one"))["tree"]


async def test_a_queue_that_all_serve(labs: list[MemoryLab]) -> None:
    a, b, c = labs
    async with a.exporter("one"), b.exporter("two"), a.client("alice") as alice, c.client("bob") as bob:
        leases = [await (alice, bob)[number % 2].acquire(WANT, 6000.0) for number in range(8)]
        for number in range(0, 8, 2):
            for lease in leases[number : number + 2]:
                await c.wait(lease.id, State.READY)
            assert {c.lab.view.lease[lease.id].state for lease in leases[number + 2 :]} <= {State.QUEUED}
            for lease, who in zip(leases[number : number + 2], (alice, bob), strict=True):
                await who.release(lease.id)
        for lease in leases:
            await b.wait(lease.id, State.ENDED)
        grants = [(held.exporter, held.epoch) for lease in b.lab.view.lease.values() for held in lease.devices]
        assert len(set(grants)) == len(grants) == 8


async def test_several_devices_that_are_connected_to_different_controllers(labs: list[MemoryLab]) -> None:
    a, b, c = labs
    async with a.exporter("one"), b.exporter("two"), c.client("alice") as alice:
        lease = await alice.acquire([Want(exporter="two"), Want(exporter="one")], 6000.0)
        ready = await c.wait(lease.id, State.READY)
        assert [held.exporter for held in ready.devices] == ["two", "one"]


async def test_now_or_not_at_all_is_now_also_elsewhere(labs: list[MemoryLab]) -> None:
    a, b, _ = labs
    async with a.exporter("one"), b.client("alice") as alice:
        await b.attended("one")
        first = await alice.acquire(WANT, 6000.0, wait=0.0)
        await b.wait(first.id, State.READY)
        second = await alice.acquire(WANT, 6000.0, wait=0.0)
        assert (await b.wait(second.id, State.ENDED)).reason == "nothing was free at once"


async def test_both_extensions_count(labs: list[MemoryLab]) -> None:
    a, b, c = labs
    async with a.exporter("one"), a.client("alice") as alice, b.client("alice") as other:
        lease = await alice.acquire(WANT, 6000.0)
        await b.wait(lease.id, State.READY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.call, "extend", lease.id, 30.0)
            nursery.start_soon(other.call, "extend", lease.id, 7.0)
        now = await kept(c, "lease", lease.id)
        assert now.duration == 6037.0
        assert now.ends == now.ready + 6037.0


async def test_of_two_who_make_the_same_one_is_told(labs: list[MemoryLab]) -> None:
    outcomes: list[str] = []

    async def create(lab: MemoryLab) -> None:
        async with lab.client("boss", records.Role.ADMIN) as boss:
            try:
                await boss.call("create", "client", "alice", {})
                outcomes.append("made")
            except BadValue as error:
                outcomes.append(error.message)

    async with trio.open_nursery() as nursery:
        for lab in labs[:2]:
            nursery.start_soon(create, lab)
    assert sorted(outcomes) == ["made", "there is a client 'alice' already"]


async def test_versions_are_those_of_the_store(labs: list[MemoryLab]) -> None:
    a, b, _ = labs
    async with a.client("boss", records.Role.ADMIN) as boss, b.client("boss", records.Role.ADMIN) as other:
        made = await boss.call("create", "client", "alice", {})
        await until(b, ("client", "alice"), lambda: "alice" in b.lab.view.client)
        changed = await other.call("update", "client", "alice", {"labels": {"team": "x"}})
        assert 0 < made["version"] < changed["version"] == (await kept(a, "client", "alice")).version


async def test_an_exporter_that_changes_over_keeps_its_lease(
    memory: list[MemoryLab], autojump_clock: MockClock
) -> None:
    a, b, c = memory
    async with a.exporter("one", others=[b]) as exporter, c.client("alice") as alice:
        lease = await alice.acquire(WANT, 6000.0)
        await c.wait(lease.id, State.READY)
        async with c.visit(alice, exporter, lease.id) as (_, device):
            a.kill_controller()
            await until(c, ("exporter", "one"), lambda: c.lab.attending["one"].replica == "b")
            await device.lamp.on()  # the session has not noticed
            await trio.sleep(2 * LOST)
            assert c.lab.view.lease[lease.id].state is State.READY
            assert "a" not in c.lab.view.replica
        await alice.release(lease.id)
        assert (await c.wait(lease.id, State.ENDED)).reason == "released by alice"


async def test_what_a_dead_controller_knew_counts_no_more(memory: list[MemoryLab], autojump_clock: MockClock) -> None:
    a, b, _ = memory
    async with a.exporter("one"), b.client("alice") as alice:
        [seen] = await alice.call("exporters")
        assert seen["state"] == "free"
        a.kill_controller()
        await until(b, ("exporter", "one"), lambda: "one" not in b.lab.attending)
        [seen] = await alice.call("exporters")
        assert seen["state"] == "offline"
        await trio.sleep(5)
        assert await kept(b, "presence", "one") is None
        a.links.clear()


async def test_a_holder_is_there_wherever_it_is_connected(memory: list[MemoryLab], autojump_clock: MockClock) -> None:
    a, b, c = memory
    async with a.exporter("one"), b.client("alice") as alice:
        lease = await alice.acquire(WANT, 6000.0, tied=True)
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    async for _ in alice.watch(lease.id):
                        pass
                except JmpError:
                    pass

            nursery.start_soon(watch)
            await c.wait(lease.id, State.READY)
            await trio.sleep(200)
            assert c.lab.view.lease[lease.id].state is State.READY
            b.kill_controller()
            nursery.cancel_scope.cancel()
        ended = await c.wait(lease.id, State.ENDED)
        assert ended.reason == "its holder was gone"


async def test_a_router_that_is_connected_elsewhere(labs: list[MemoryLab]) -> None:
    a, b, c = labs
    async with a.exporter("one"), b.client("alice") as alice:
        lease = await alice.acquire(WANT, 6000.0)
        await b.wait(lease.id, State.READY)
        c.lab.routers["r"] = RouterLink("wss://router.example:1", "ab", "")
        c.lab.others.say()
        await until(b, ("replica", "c"), lambda: b.lab.others.routers)
        # Its exporter would tell of a router that cannot be reached; what it is told to do is what counts here.
        here = a.lab.attending["one"]
        with a.lab.news.listen(("exporter", "one")):
            answer = await alice.meet(lease.id, "one", "router")
            await until(a, ("replica", "b"), lambda: a.lab.view.replica["b"].dials)
        assert answer["endpoints"] == [{"url": "wss://router.example:1", "fingerprint": "ab"}]
        assert here is a.lab.attending["one"]
        [dial] = a.lab.view.replica["b"].dials
        assert (dial.exporter, dial.lease, dial.epoch) == ("one", lease.id, 1)


async def test_routers_that_share_a_token(labs: list[MemoryLab]) -> None:
    a, b, _ = labs
    urls = [f"wss://router.example:{number}" for number in range(3)]

    async def route(lab: MemoryLab, url: str) -> None:
        async with multiplex(await lab.dial(who), Role.DIALLER) as connection:
            async for _ in Caller(connection).items("@lab", "route", ({"url": url, "name": url[-1]},), {}):
                pass

    who = await a.identity("routers", records.Role.ROUTER)
    await until(b, "keys", lambda: who.id in b.lab.view.token)
    async with trio.open_nursery() as nursery:
        for lab, url in zip((a, a, b), urls, strict=True):
            nursery.start_soon(route, lab, url)
        for lab in (a, b):
            await until(lab, ("replica", "a" if lab is b else "b"), lambda lab=lab: len(known_routers(lab)) == 3)
            assert {lab.lab.router().url for _ in range(3)} == set(urls)
        nursery.cancel_scope.cancel()


def known_routers(lab: MemoryLab) -> list[RouterLink]:
    return [*lab.lab.routers.values(), *lab.lab.others.routers.values()]


async def test_what_a_store_rejects_is_told_to_whoever_asked(memory: list[MemoryLab]) -> None:
    a, b, _ = memory
    store = a.store
    assert isinstance(store, MemoryStore)
    store.rejects = lambda change: change.name == "odd"
    async with a.client("boss", records.Role.ADMIN) as boss:
        with pytest.raises(LabError, match=r"^client odd cannot be kept$"):
            await boss.call("create", "client", "odd", {})
        await boss.call("create", "client", "even", {})
        assert [client["name"] for client in await boss.call("list", "client")] == ["even"]
    assert "odd" not in b.lab.engine.clients


async def test_what_a_store_rejects_though_nobody_asked_for_it_is_tried_again(
    memory: list[MemoryLab], autojump_clock: MockClock
) -> None:
    a, _, _ = memory
    store = a.store
    assert isinstance(store, MemoryStore)
    async with a.exporter("one"), a.exporter("two"), a.client("alice") as alice:
        store.rejects = lambda change: change.key == ("exporter", "one")
        with pytest.raises(LabError, match=r"^exporter one cannot be kept$"):  # the store makes all of it or nothing
            await alice.acquire([Want(exporter="one")], 600.0)
        made = await alice.acquire([Want(exporter="two")], 600.0)
        await a.wait(made.id, State.READY)
        store.rejects = lambda change: isinstance(change.new, records.Lease) and change.new.state is State.ENDING
        store.tried.clear()
        a.lab.engine.end(made.id, "an admin's wish", a.clock())
        a.lab.changed()
        await trio.sleep(100)
        assert store.tried.count(("lease", made.id)) == 8  # at first, and after 1, 2, 4, 8, 16 and twice 30 s
        other = await alice.acquire([Want(exporter="one")], 600.0)
        await a.wait(other.id, State.READY)
        store.rejects = lambda change: False
        assert (await a.wait(made.id, State.ENDED)).reason == "an admin's wish"


async def test_those_behind_one_whose_grant_is_rejected_go_on(memory: list[MemoryLab]) -> None:
    a, _, _ = memory
    store = a.store
    assert isinstance(store, MemoryStore)
    async with a.exporter("one"), a.exporter("two"), a.client("alice") as alice:
        held = [await alice.acquire(WANT, 600.0) for _ in range(2)]
        for lease in held:
            await a.wait(lease.id, State.READY)
        first, second = [await alice.acquire(WANT, 600.0) for _ in range(2)]
        store.rejects = lambda change: change.name == first.id and getattr(change.new, "granted", None) is not None
        for lease in held:
            await alice.release(lease.id)
        await a.wait(second.id, State.READY)


async def test_an_exporter_with_nothing_new_to_say_does_not_wait_for_the_store(memory: list[MemoryLab]) -> None:
    a, _, _ = memory
    await a.add(records.Exporter(name="one"))
    who = await a.identity("one", records.Role.EXPORTER)

    async def away(changes: Sequence[Change]) -> list[Any]:
        await trio.sleep_forever()
        raise AssertionError

    with trio.fail_after(600), pytest.MonkeyPatch.context() as patch:
        patch.setattr(a.store, "commit", away)
        a.lab.engine.put(records.Client(name="alice"), a.clock())
        a.lab.changed()
        registration = {"labels": {}, "observed": records.to_wire(records.Observed(epoch=0))}
        async with (
            multiplex(await a.dial(who), Role.DIALLER) as connection,
            aclosing(Caller(connection).items("@lab", "attend", (registration,), {})) as items,
        ):
            assert "keys" in await anext(items)


async def test_a_lease_that_was_deleted_says_so(labs: list[MemoryLab]) -> None:
    a, b, c = labs
    async with a.exporter("one") as exporter, b.client("alice") as alice:
        lease = await alice.acquire(WANT, 6000.0)
        await b.wait(lease.id, State.READY)
        told: list[str] = []

        async def watch() -> None:
            async for standing in alice.watch(lease.id):
                told.append(f"{standing.lease.state} {standing.lease.reason}")

        async with trio.open_nursery() as nursery, b.visit(alice, exporter, lease.id):
            nursery.start_soon(watch)
            await until(c, ("lease", lease.id), lambda: lease.id in c.lab.view.lease)
            c.lab.put(Change("lease", lease.id, c.lab.view.lease[lease.id], None))  # as kubectl would
            c.lab.changed()
        assert told[-1] == "ended it was deleted"
        await until(
            a, ("exporter", "one"), lambda: a.lab.attending["one"].observed.reason == f"lease {lease.id} was deleted"
        )
        await a.attended("one")


async def test_a_controller_that_was_stopped_for_a_while_changes_nothing(labs: list[MemoryLab]) -> None:
    """What it decided before it knew of the others is void."""
    a, b, _ = labs
    async with b.exporter("one"), b.client("alice") as alice, a.client("boss", records.Role.ADMIN) as boss:
        first = await alice.acquire(WANT, 6000.0)
        await a.wait(first.id, State.READY)
        stale = a.lab.view.lease[first.id]
        await alice.release(first.id)
        ended = await b.wait(first.id, State.ENDED)
        a.lab.engine.learn("lease", first.id, stale, a.clock())
        a.lab.view.lease[first.id] = stale
        await boss.release(first.id)
        assert await kept(a, "lease", first.id) == ended


async def test_what_an_exporter_does_is_known_from_its_lease_and_told_with_the_next_sign_of_life(
    memory: list[MemoryLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = memory
    store = a.store
    assert isinstance(store, MemoryStore)
    monkeypatch.setattr("jmp.controller.replicas.BEAT", math.inf)
    monkeypatch.setattr("jmp.controller.replicas.LOST", math.inf)
    async with a.exporter("one"), b.client("alice") as alice:
        await b.attended("one")
        written = store.tried.count(("presence", "one"))
        for _ in range(2):
            lease = await alice.acquire(WANT, 6000.0)
            await b.wait(lease.id, State.READY)
            [seen] = await alice.call("exporters")
            assert seen["state"] == "leased"
            await alice.release(lease.id)
            await b.wait(lease.id, State.ENDED)
        assert store.tried.count(("presence", "one")) == written
        lease = await alice.acquire(WANT, 6000.0)
        await b.wait(lease.id, State.READY)
        monkeypatch.setattr("jmp.controller.replicas.BEAT", 0.1)
        a.lab.others.say()
        await until(b, ("presence", "one"), lambda: b.lab.view.presence["one"].observed.lease == lease.id)
        await alice.release(lease.id)
        await until(b, ("presence", "one"), lambda: b.lab.view.presence["one"].observed.phase is Phase.IDLE)


async def test_what_is_told_late_does_not_outlive_what_is_so_by_then(
    memory: list[MemoryLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = memory
    commit, begun, goes_on = a.store.commit, trio.Event(), trio.Event()

    async def commit_late(changes: Sequence[Change]) -> list[Any]:
        if any(isinstance(change.new, records.Presence) and change.new.observed.lease for change in changes):
            begun.set()
            await goes_on.wait()
        return await commit(changes)

    monkeypatch.setattr("jmp.controller.replicas.BEAT", math.inf)
    monkeypatch.setattr("jmp.controller.replicas.LOST", math.inf)
    async with a.exporter("one"), b.client("alice") as alice:
        await b.attended("one")
        lease = await alice.acquire(WANT, 6000.0)
        await b.wait(lease.id, State.READY)
        monkeypatch.setattr(a.store, "commit", commit_late)
        monkeypatch.setattr("jmp.controller.replicas.BEAT", 0.1)
        a.lab.others.say()
        await begun.wait()
        monkeypatch.setattr("jmp.controller.replicas.BEAT", math.inf)
        await alice.release(lease.id)
        await a.wait(lease.id, State.ENDED)
        goes_on.set()
        await until(b, ("presence", "one"), lambda: b.lab.view.presence["one"].observed.lease == lease.id)
        await until(b, ("presence", "one"), lambda: b.lab.view.presence["one"].observed.phase is Phase.IDLE)


async def test_one_that_goes_is_gone_at_once(labs: list[MemoryLab]) -> None:
    a, b, _ = labs
    async with a.exporter("one", others=[b]):
        await b.attended("one")
        await until(b, ("replica", "a"), lambda: "a" in b.lab.view.replica)
        a.kill_controller()
        await a.lab.others.leave()
        await until(
            b, ("exporter", "one"), lambda: (here := b.lab.attending.get("one")) is not None and not here.replica
        )
        assert "a" not in b.lab.view.replica
