"""A lab in a file, and out of it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jmp.controller import move
from jmp.controller.move import Moved
from jmp.controller.sqlite import SqliteStore
from jmp.controller.store import Change, Key, Record
from jmp.errors import Busy, ConfigError, Conflict
from jmp.wire.records import Client, Exporter, Held, Lease, Phase, Policy, Replica, Role, State, Token, Want
from tests.fakes.memory_store import MemoryStore

NOW = 1_800_000_000.25
LAB: dict[Key, Record] = {
    ("client", "Bo@ex"): Client(name="Bo@ex", labels={"team": "x"}, disabled="away", created=NOW),
    ("exporter", "one"): Exporter(name="one", own_labels={"rack": "a"}, created=NOW, epoch=4, used=NOW, lease="l2"),
    ("policy", "all"): Policy(name="all", longest=60.5, allow=("a.*", "b"), packages=("p",), created=NOW),
    ("token", "t1"): Token(id="t1", subject="Bo@ex", role=Role.CLIENT, issued=NOW, expires=NOW + 9, revoked=NOW + 1),
    ("lease", "l2"): Lease(
        id="l2",
        client="Bo@ex",
        wants=(Want(selector="board=ä"),),
        duration=60.0,
        created=NOW,
        number=2,
        state=State.READY,
        devices=(Held(exporter="one", epoch=4, phase=Phase.READY),),
        granted=NOW,
        ready=NOW,
        ends=NOW + 60,
        tags=("a",),
        context={"job": "1"},
    ),
    ("lease", "l1"): Lease(id="l1", client="Bo@ex", wants=(Want(),), duration=1.0, created=NOW, number=1, reason="x"),
}
KEYS = {"keys.json": b"{}", "ca-with-key.pem": b"---\n"}


def text(**more: dict[str, bytes]) -> str:
    return move.write(Moved(dict(LAB), **more), "0.1.0", "2026-11-26T10:00:00+00:00")


def test_a_file_says_all_of_it() -> None:
    assert move.read(text(keys=KEYS), "lab") == Moved(dict(LAB), KEYS)
    lines = [json.loads(line) for line in text().splitlines()]
    assert lines[0]["jmp"] == "lab"
    assert lines[-1] == {"end": 7}
    assert [line["record"]["id"] for line in lines if line.get("kind") == "lease"] == ["l1", "l2"], "as they were made"
    assert move.read(text(), "lab").counts() == "1 client, 1 exporter, 1 policy, 1 token, 2 leases"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "lab is not what jmp admin export writes"),
        ("{}\n{}\n", "lab is not what jmp admin export writes"),
        ("x\n", "lab is not what jmp admin export writes"),
        (text().replace('"format": 1', '"format": 2'), "from a later version of jmp (0.1.0)"),
        ("\n".join(text().splitlines()[:-1]), "lab is not complete: export again"),
        ("\n".join([*text().splitlines()[:3], *text().splitlines()[4:]]), "lab is not complete: export again"),
        (text().replace('"kind": "policy"', '"kind": "replica"'), "lab:4 is neither a record nor a key"),
        (
            text().replace('"epoch": 4, "used"', '"epoch": "x", "used"'),
            "lab:3: this is no exporter: 'x' where int is due",
        ),
    ],
)
def test_what_is_none_is_told(content: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        move.read(content, "lab")
    assert said in caught.value.message
    assert "\n" not in caught.value.message


async def test_it_comes_to_where_none_is(tmp_path: Path) -> None:
    moved = move.read(text(), "lab")
    store = SqliteStore.open(tmp_path)
    changes = await move.missing(moved, store)
    assert {change.key for change in changes} == LAB.keys()
    await move.keep(changes, store)
    assert move._bare(LAB["lease", "l2"]) == move._bare((await move.take(store))["lease", "l2"])
    assert await move.missing(moved, store) == [], "and a second time nothing is left to do"
    await store.aclose()


async def commit(store: MemoryStore, kind: str, name: str, record: Record) -> None:
    await store.commit([Change(kind, name, None, record)])


async def test_it_goes_on_where_it_was_interrupted() -> None:
    store = MemoryStore()
    await commit(store, "client", "Bo@ex", LAB["client", "Bo@ex"])
    missing = await move.missing(Moved(dict(LAB)), store)
    assert {change.key for change in missing} == LAB.keys() - {("client", "Bo@ex")}


@pytest.mark.parametrize("name", ["Bo@ex", "somebody"])
async def test_another_lab_is_left_alone(name: str) -> None:
    store = MemoryStore()
    await commit(store, "client", name, Client(name=name))
    with pytest.raises(Conflict, match=f"there is another lab already, with client {name}"):
        await move.missing(Moved(dict(LAB)), store)


async def test_controllers_that_run_are_noticed(autojump_clock: object) -> None:
    class Beating(MemoryStore):
        async def load(self) -> list[tuple[str, str, Record]]:
            known = self.records.get(("replica", "a"))
            await self.commit([Change("replica", "a", known, Replica(name="a", beat=1 if known is None else 2))])
            return await super().load()

    with pytest.raises(Busy, match=r"controllers run there \(a\)"):
        await move.missing(Moved(), Beating())
    store = MemoryStore()
    await commit(store, "replica", "a", Replica(name="a", beat=5))
    assert await move.missing(Moved(), store) == [], "one that was killed has left its record behind"


async def test_a_shared_store_keeps_the_order_of_those_who_wait() -> None:
    class Shared(MemoryStore):
        shared = True
        came: list[str]

        async def commit(self, changes: object) -> list[Record | None]:
            self.came.extend(change.name for change in changes)  # type: ignore[attr-defined]
            return await super().commit(changes)  # type: ignore[arg-type]

    waiting = {
        ("lease", f"q{number}"): Lease(id=f"q{number}", client="b", wants=(), duration=1.0, created=NOW, number=number)
        for number in (5, 3, 4)
    }
    store = Shared()
    store.came = []
    await move.keep(await move.missing(Moved({**waiting, **LAB}), store), store)
    assert store.came[-4:] == ["l1", "q3", "q4", "q5"]
    assert store.came[:2] == ["Bo@ex", "one"]


async def test_nothing_of_tokens_without_keys() -> None:
    assert move.without_tokens(Moved(dict(LAB))).records.keys() == LAB.keys() - {("token", "t1")}
