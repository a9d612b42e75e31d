"""What every store has to do: the fake one, the embedded one, and the one in a cluster, on a fake API server and a real one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.controller.kubernetes import KubernetesStore, open_store
from jmp.controller.sqlite import SqliteStore
from jmp.controller.store import KINDS, Change, Record, Stale, Store
from jmp.wire.records import (
    Client,
    Exporter,
    Held,
    Lease,
    Observed,
    Phase,
    Policy,
    Presence,
    Replica,
    Role,
    State,
    Token,
    Want,
)
from tests.fakes.apiserver import ApiServer
from tests.fakes.memory_store import MemoryStore

Opener = Callable[[], AbstractAsyncContextManager[Store]]

BO = Client(name="bo", labels={"team": "x"}, created=5.0)
BOARD = Exporter(name="board", labels={"a": "b"}, own_labels={"a": "b"}, created=7.5, description="by the window")
QUEUED = Lease(
    id="l1", client="bo", wants=(Want(selector="a=b"), Want(exporter="board")), duration=60.5, created=1.25, number=1
)
RECORDS: list[Record] = [
    BO,
    Client(name="Bo@Lab_1", created=6.0, disabled="ill"),
    replace(BOARD, epoch=3, disabled="fan", used=9.0, lease="l0"),
    replace(
        QUEUED,
        context={"job": "7"},
        tags=("nightly", "x"),
        give_up=9.0,
        begin=2.5,
        priority=-3,
        tied=True,
        idle_limit=30.0,
        allow_disabled=True,
    ),
    replace(
        QUEUED,
        id="l2",
        devices=(Held(exporter="board", epoch=3, phase=Phase.IDLE), Held(exporter="fan", epoch=1)),
        state=State.ENDING,
        granted=3.0,
        ready=4.0,
        ends=64.5,
        reason="released by bo: “fertig”",
    ),
    Policy(
        name="default", packages=("jmp-drivers",), longest=60.0, created=1.0, deny=("power.*",), allow=(), lease=False
    ),
    Replica(name="one", beat=3, holds=("l1",)),
    Token(id="t1", subject="bo", role=Role.CLIENT, issued=1.0, expires=2.0, revoked=1.5),
]
KIND = {cls: kind for kind, cls in KINDS.items()}


@pytest.fixture(
    params=[
        "memory",
        "memory, shared",
        "sqlite",
        "kubernetes, in memory",
        pytest.param("kubernetes", marks=pytest.mark.real),
    ]
)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens the same store again and again."""
    if request.param == "sqlite":
        return lambda: aclosing(SqliteStore.open(tmp_path))
    if request.param == "kubernetes":
        access = request.getfixturevalue("cluster").namespace()
        return lambda: open_store(access)
    if request.param == "kubernetes, in memory":
        server = ApiServer(time.time)
        return lambda: aclosing(KubernetesStore(server.api()))
    first = MemoryStore()
    return lambda: aclosing(first.share() if "shared" in request.param else first)


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    with trio.fail_after(600):
        async with opener() as store:
            await store.load()
            yield store


def making(record: Record) -> Change:
    return Change(KIND[type(record)], getattr(record, "id", "") or getattr(record, "name", ""), None, record)


def version_of(record: Record | None) -> int:
    assert record is not None
    return record.version


def bare(record: Any) -> Any:
    """Without what the store gives it."""
    if isinstance(record, Lease):
        return replace(record, version=0, number=0)
    return None if record is None else replace(record, version=0)


async def contents(store: Store, opener: Opener) -> dict[str, Any]:
    """What another one finds, or, where there can be none, this one when it looks again."""
    async with opener() if store.shared else nullcontext(store) as other:
        return {f"{kind}/{name}": bare(record) for kind, name, record in await other.load()}


async def make(store: Store, *records: Record) -> list[Any]:
    return await store.commit([making(record) for record in records])


async def test_what_was_kept_is_there_again(store: Store, opener: Opener) -> None:
    kept = await make(store, *RECORDS)
    assert [bare(record) for record in kept] == [bare(record) for record in RECORDS]
    assert await contents(store, opener) == {f"{kind}/{name}": bare(record) for kind, name, record in named()}


def named() -> list[tuple[str, str, Record]]:
    return [(change.kind, change.name, record) for record in RECORDS if (change := making(record))]


async def test_a_presence_is_there_beside_its_exporter(store: Store, opener: Opener) -> None:
    if not store.shared:
        return  # one controller alone tells nobody
    there = Presence(name="board", replica="one", since=5.0, observed=Observed(epoch=3, lease="l1", phase=Phase.READY))
    await make(store, BOARD)
    [kept] = await make(store, replace(there, tree={"name": "x", "children": {"y": None}}))
    assert (await contents(store, opener))["presence/board"] == bare(kept)
    await store.commit([Change("presence", "board", kept, None)])
    assert await contents(store, opener) == {"exporter/board": BOARD}


async def test_versions_rise(store: Store) -> None:
    [first] = await make(store, BO)
    [second] = await store.commit([Change("client", "bo", first, replace(BO, disabled="ill"))])
    assert await store.commit([Change("client", "bo", second, None)]) == [None]
    [third] = await make(store, BO)
    assert 0 < version_of(first) < version_of(second) < version_of(third)


async def test_nothing_is_made_twice(store: Store) -> None:
    [bo] = await make(store, BO)
    with pytest.raises(Stale) as caught:
        await make(store, replace(BO, labels={}))
    assert caught.value.now == {("client", "bo"): bo}
    assert not caught.value.made


@pytest.mark.parametrize("new", [None, replace(BO, disabled="again")])
async def test_what_has_changed_meanwhile_is_told(store: Store, new: Client | None, opener: Opener) -> None:
    [old] = await make(store, BO)
    [now] = await store.commit([Change("client", "bo", old, replace(BO, disabled="ill"))])
    with pytest.raises(Stale) as caught:
        await store.commit([Change("client", "bo", old, new)])
    assert caught.value.now == {("client", "bo"): now}
    assert await contents(store, opener) == {"client/bo": bare(now)}


@pytest.mark.parametrize("new", [None, replace(BO, disabled="again")])
async def test_what_is_gone_stays_so(store: Store, new: Client | None, opener: Opener) -> None:
    [old] = await make(store, BO)
    await store.commit([Change("client", "bo", old, None)])
    with pytest.raises(Stale) as caught:
        await store.commit([Change("client", "bo", old, new)])
    assert caught.value.now == {("client", "bo"): None}
    assert await contents(store, opener) == {}


def granted(lease: Lease, *exporters: Exporter) -> list[Change]:
    held = tuple(Held(exporter=exporter.name, epoch=exporter.epoch + 1) for exporter in exporters)
    return [
        Change("lease", lease.id, lease, replace(lease, state=State.PREPARING, devices=held, granted=2.0)),
        *(
            Change("exporter", one.name, one, replace(one, epoch=one.epoch + 1, lease=lease.id, used=2.0))
            for one in exporters
        ),
    ]


async def test_a_lease_and_its_exporters_change_together(store: Store, opener: Opener) -> None:
    board, fan, first, second = await make(
        store, BOARD, Exporter(name="fan", created=1.0), QUEUED, replace(QUEUED, id="l2")
    )
    await store.commit(granted(first, board))
    with pytest.raises(Stale) as caught:
        await store.commit(granted(second, fan, board))  # of which one is somebody else's already
    assert not caught.value.made
    there = await contents(store, opener)
    assert (there["lease/l1"].state, there["lease/l2"].state) == (State.PREPARING, State.QUEUED)
    assert (there["exporter/board"].lease, there["exporter/board"].epoch) == ("l1", 1)
    assert there["exporter/fan"].lease == ""
    fan = {name: record for _, name, record in await store.load()}["fan"]
    assert isinstance(fan, Exporter)
    await store.commit(granted(second, fan))
    assert (await contents(store, opener))["lease/l2"].devices == (Held(exporter="fan", epoch=fan.epoch + 1),)


async def test_numbers_of_leases_rise_and_stay(store: Store) -> None:
    first, second = [(await make(store, replace(QUEUED, id=id, number=number)))[0] for number, id in enumerate("ab", 1)]
    [changed] = await store.commit([Change("lease", "a", first, replace(first, tags=("new",)))])
    assert isinstance(changed, Lease)
    assert 0 < first.number == changed.number < second.number
