"""The store in a cluster, on a real API server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from jmp.controller.kubernetes import KubernetesStore, open_store
from jmp.controller.kubernetes_api import Access, Answer, Api, ServerClock, connect
from jmp.controller.kubernetes_objects import RESOURCES
from jmp.controller.store import Change, Record, Stale
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
from tests.fakes.kube import Cluster

pytestmark = pytest.mark.real

BO = Client(name="bo", labels={"team": "x"}, created=5.0)
RECORDS: list[tuple[str, str, Record]] = [
    ("client", "bo", BO),
    ("client", "Bo@Lab_1", Client(name="Bo@Lab_1", created=6.0, disabled="ill")),
    (
        "exporter",
        "board",
        Exporter(
            name="board",
            labels={"a": "b", "c": "d"},
            own_labels={"c": "d"},
            epoch=3,
            disabled="fan",
            created=7.5,
            used=9.0,
        ),
    ),
    (
        "lease",
        "l1",
        Lease(
            id="l1",
            client="bo",
            wants=(Want(selector="a=b"), Want(exporter="board")),
            duration=60.5,
            created=1.25,
            number=1,
            context={"job": "7"},
            tags=("nightly",),
            give_up=9.0,
            devices=(Held(exporter="board", epoch=3, phase=Phase.READY),),
            state=State.READY,
        ),
    ),
    ("policy", "default", Policy(name="default", packages=("jmp-drivers",), longest=60.0, created=1.0)),
    ("replica", "one", Replica(name="one", beat=3, holds=("l1",))),
    ("token", "t1", Token(id="t1", subject="bo", role=Role.CLIENT, issued=1.0, expires=2.0)),
]
PRESENCE = Presence(
    name="board",
    replica="one",
    since=5.0,
    peer="10.0.0.1",
    observed=Observed(epoch=3, lease="l1", phase=Phase.READY),
    tree={"name": "x", "children": {"y": None}},
)


@pytest.fixture
def access(cluster: Cluster) -> Access:
    return cluster.namespace()


class Watched:
    """A store, and what it has told."""

    def __init__(self, store: KubernetesStore) -> None:
        self.store = store
        self.told: list[Change] = []
        self.came = trio.Event()

    def tell(self, change: Change) -> None:
        self.told.append(change)
        self.came.set()
        self.came = trio.Event()

    async def hears(self, kind: str, name: str, record: Record | None) -> None:
        """Wait until it is told that a record is this. One's own changes may be told, too."""
        while (await self.until(kind, name)).new != record:
            pass

    async def until(self, kind: str, name: str) -> Change:
        """The next change of a record that is told."""
        while True:
            for number, change in enumerate(self.told):
                if change.key == (kind, name):
                    del self.told[: number + 1]
                    return change
            await self.came.wait()


@asynccontextmanager
async def opened(access: Access) -> AsyncIterator[Watched]:
    async with open_store(access) as store:
        watched = Watched(store)
        await store.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch, watched.tell)
            yield watched
            nursery.cancel_scope.cancel()


def bare(record: Record | None) -> Record | None:
    """Without what the store adds."""
    if isinstance(record, Lease):
        return replace(record, version=0, number=0)
    return None if record is None else replace(record, version=0)


async def contents(access: Access) -> list[tuple[str, str, Record | None]]:
    async with open_store(access) as store:
        return sorted((kind, name, bare(record)) for kind, name, record in await store.load())


async def test_records_come_back(access: Access) -> None:
    async with opened(access) as one:
        kept = await one.store.commit([Change(kind, name, None, record) for kind, name, record in RECORDS])
        assert [bare(record) for record in kept] == [bare(record) for _, _, record in RECORDS]
        await one.store.commit([Change("presence", "board", None, PRESENCE)])
    expected = [(kind, name, bare(record)) for kind, name, record in RECORDS]
    assert await contents(access) == sorted([*expected, ("presence", "board", PRESENCE)], key=lambda item: item[:2])


async def test_others_hear_of_it(access: Access) -> None:
    async with opened(access) as one, opened(access) as two:
        [made] = await one.store.commit([Change("client", "bo", None, BO)])
        await two.hears("client", "bo", made)
        [changed] = await two.store.commit([Change("client", "bo", made, replace(BO, disabled="ill"))])
        await one.hears("client", "bo", changed)
        await one.store.commit([Change("client", "bo", changed, None)])
        await two.hears("client", "bo", None)


async def test_of_two_at_once_the_second_is_told(access: Access) -> None:
    async with opened(access) as one, opened(access) as two:
        [made] = await one.store.commit([Change("client", "bo", None, BO)])
        await two.until("client", "bo")
        outcomes: list[str] = []

        async def change(store: KubernetesStore, reason: str) -> None:
            try:
                await store.commit([Change("client", "bo", made, replace(BO, disabled=reason))])
                outcomes.append(reason)
            except Stale as stale:
                there = stale.now["client", "bo"]
                assert isinstance(there, Client)
                outcomes.append(f"not, for {there.disabled}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, one.store, "a")
            nursery.start_soon(change, two.store, "b")
        assert sorted(outcomes) in (["a", "not, for a"], ["b", "not, for b"])


async def test_presence_does_not_disturb(access: Access) -> None:
    board = Exporter(name="board", created=1.0)
    async with opened(access) as one, opened(access) as two:
        [made] = await one.store.commit([Change("exporter", "board", None, board)])
        await two.until("exporter", "board")
        [there] = await two.store.commit([Change("presence", "board", None, PRESENCE)])
        # Its object is of another version now, the record is not.
        [raised] = await one.store.commit([Change("exporter", "board", made, replace(board, epoch=1))])
        assert bare(raised) == replace(board, epoch=1)
        await one.hears("presence", "board", there)
        await two.store.commit([Change("presence", "board", there, None)])
        await one.hears("presence", "board", None)


def lease(id: str, **values: object) -> Lease:
    return Lease(id=id, client="bo", wants=(Want(),), duration=60.0, created=1.0, number=0, **values)  # type: ignore[arg-type]


def grant(made: Record | None, exporter: Record | None) -> list[Change]:
    assert isinstance(made, Lease)
    assert isinstance(exporter, Exporter)
    epoch = exporter.epoch + 1
    devices = (Held(exporter=exporter.name, epoch=epoch),)
    return [
        Change("lease", made.id, made, replace(made, state=State.PREPARING, devices=devices, granted=2.0)),
        Change("exporter", exporter.name, exporter, replace(exporter, epoch=epoch, lease=made.id, used=2.0)),
    ]


async def test_one_exporter_is_granted_once(access: Access) -> None:
    async with opened(access) as one, opened(access) as two:
        board, first, second = await one.store.commit(
            [
                Change("exporter", "board", None, Exporter(name="board", created=1.0)),
                Change("lease", "l1", None, lease("l1")),
                Change("lease", "l2", None, lease("l2")),
            ]
        )
        await two.until("exporter", "board")
        while len([key for key in two.store._records if key[0] == "lease"]) < 2:
            await two.came.wait()
        outcomes: list[str] = []

        async def give(store: KubernetesStore, made: Record | None) -> None:
            try:
                await store.commit(grant(made, board))
                outcomes.append("granted")
            except Stale:
                outcomes.append("stale")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give, one.store, first)
            nursery.start_soon(give, two.store, second)
        assert sorted(outcomes) == ["granted", "stale"]
    there = {name: record for _, name, record in await contents(access)}
    states = sorted(str(there[id].state) for id in ("l1", "l2"))  # type: ignore[union-attr]
    assert states == ["preparing", "queued"]


class Slow(Api):
    """Takes its time before it writes to one path."""

    def __init__(self, api: Api, path: str) -> None:
        super().__init__(api._pool, api._access)
        self._path = path
        self.reached = trio.Event()
        self.go_on = trio.Event()

    async def request(self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Answer:
        if method == "PUT" and path.endswith(self._path):
            self.reached.set()
            await self.go_on.wait()
        return await super().request(method, path, body, query)


async def test_a_grant_that_is_left_half_done_is_given_up(access: Access) -> None:
    async with opened(access) as one, trio.open_nursery() as nursery:
        board, made = await one.store.commit(
            [
                Change("exporter", "board", None, Exporter(name="board", created=1.0)),
                Change("lease", "l1", None, lease("l1")),
            ]
        )
        slow = Slow(one.store.api, "deviceleases/l1/status")
        one.store.api = slow

        async def give() -> None:
            with pytest.raises(Stale):
                await one.store.commit(grant(made, board))

        nursery.start_soon(give)
        await slow.reached.wait()
        async with opened(access) as two:
            change = await two.until("exporter", "board")
            assert isinstance(change.new, Exporter)
            assert (change.new.lease, change.new.epoch) == ("", 1)
            slow.go_on.set()  # whoever had begun it cannot end it now


async def test_those_behind_one_that_cannot_be_granted_are_not(access: Access) -> None:
    async with opened(access) as one, opened(access) as two, trio.open_nursery() as nursery:
        names = "123"
        made = await one.store.commit(
            [
                *(Change("exporter", f"b{name}", None, Exporter(name=f"b{name}", created=1.0)) for name in names),
                *(Change("lease", f"l{name}", None, lease(f"l{name}")) for name in names),
            ]
        )
        boards, leases = made[:3], made[3:]
        slow = Slow(one.store.api, "deviceleases/l1/status")
        one.store.api = slow
        stale: list[Stale] = []

        async def give() -> None:
            together = zip(reversed(leases), reversed(boards), strict=True)  # the order is that of their numbers
            with pytest.raises(Stale) as caught:
                await one.store.commit([change for pair in together for change in grant(*pair)])
            stale.append(caught.value)

        nursery.start_soon(give)
        await slow.reached.wait()
        second = leases[1]
        assert isinstance(second, Lease)
        while (("lease", "l2")) not in two.store._records or len(locked(two.store)) < 3:
            await two.came.wait()
        ended = replace(second, state=State.ENDED, ended=2.0)
        await two.store.commit([Change("lease", "l2", two.store._records["lease", "l2"], ended)])
        slow.go_on.set()
    assert {name for kind, name in stale[0].made if kind == "lease"} == {"l1"}
    there = {name: record for _, name, record in await contents(access)}
    assert [str(there[f"l{name}"].state) for name in names] == ["preparing", "ended", "queued"]  # type: ignore[union-attr]
    assert [there[f"b{name}"].lease for name in names] == ["l1", "", ""]  # type: ignore[union-attr]


def locked(store: KubernetesStore) -> list[Exporter]:
    return [record for record in store._records.values() if isinstance(record, Exporter) and record.lease]


async def test_its_time_is_the_servers(access: Access) -> None:
    async with connect(access) as api:
        api.clock = ServerClock(lambda: 0.0)
        for resource in RESOURCES.values():
            await api.list(resource.path(api.namespace))
        assert api.clock() == pytest.approx(time.time(), abs=1.5)
