"""The embedded store, on real files; and killed at moments of its own choosing."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from jmp.controller.sqlite import FILE, LOCK, RESERVE, SCHEMA, SqliteStore, backup
from jmp.controller.store import Change, Conflict, Full, Record, Stale
from jmp.errors import Busy, LabError
from jmp.wire.records import Client, Exporter, Held, Lease, Policy, Role, Token, Want
from tests.fakes.disk import fill, small_disk

BO = Client(name="bo", labels={"team": "kärnten"})
RECORDS: list[tuple[str, str, Record]] = [
    ("client", "bo", BO),
    ("exporter", "board", Exporter(name="board", labels={"a": "b"}, epoch=3, disabled="fan is loud")),
    (
        "lease",
        "l1",
        Lease(
            id="l1",
            client="bo",
            wants=(Want(selector="a=b"), Want(exporter="board")),
            duration=60.0,
            created=1.0,
            number=1,
            context={"job": "7"},
            devices=(Held(exporter="board", epoch=3),),
        ),
    ),
    ("policy", "default", Policy(name="default", packages=("jmp-drivers",))),
    ("token", "t1", Token(id="t1", subject="bo", role=Role.CLIENT, issued=1.0, expires=2.0)),
]


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(directory)
    try:
        with trio.fail_after(60):
            yield store
    finally:
        await store.aclose()


async def load(store: SqliteStore) -> list[tuple[str, str, Record]]:
    """What is there, without versions."""
    return [(kind, name, replace(record, version=0)) for kind, name, record in await store.load()]


async def contents(directory: Path) -> list[tuple[str, str, Record]]:
    async with opened(directory) as store:
        return await load(store)


def made(name: str, labels: dict[str, str] | None = None) -> Change:
    return Change("client", name, None, Client(name=name, labels=labels or {}))


async def test_records_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "lab") as store:
        assert await store.load() == []
        await store.commit([Change(kind, name, None, record) for kind, name, record in RECORDS])
    assert await contents(tmp_path / "lab") == RECORDS


async def test_later_versions_are_larger(tmp_path: Path) -> None:
    changed = replace(BO, disabled="gone")
    async with opened(tmp_path) as store:
        [first] = await store.commit([Change("client", "bo", None, BO)])
        [second] = await store.commit([Change("client", "bo", first, changed)])
        assert await store.load() == [("client", "bo", second)]
        assert await store.commit([Change("client", "bo", second, None)]) == [None]
        assert await store.load() == []
        [third] = await store.commit([Change("client", "bo", None, BO)])
        assert await store.load() == [("client", "bo", third)]
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.version < second.version < third.version
    assert replace(second, version=0) == changed


async def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "lab") as store:
        await store.commit([made("bo")])
        assert stat.S_IMODE((tmp_path / "lab").stat().st_mode) == 0o700
        files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "lab").iterdir()}
        assert files == dict.fromkeys([FILE, f"{FILE}-wal", f"{FILE}-shm", LOCK], 0o600)


# ---- compare and swap


async def test_all_or_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([made("ann")])
        with pytest.raises(Stale, match=r"^client ann was changed by somebody else in the meantime$") as caught:
            await store.commit([made("bo"), made("ann"), made("cy")])
        ann = Client(name="ann", version=1)
        assert caught.value.now == {("client", "bo"): None, ("client", "ann"): ann, ("client", "cy"): None}
        assert not caught.value.made
        assert [name for _, name, _ in await store.load()] == ["ann"]
        await store.commit([made("bo")])
    assert [name for _, name, _ in await contents(tmp_path)] == ["ann", "bo"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET version = version + 1",
        "DELETE FROM record",
        "INSERT INTO record VALUES ('client', 'new', 9, '{\"name\": \"new\"}')",
    ],
)
async def test_somebody_else_changed_it(tmp_path: Path, statement: str) -> None:
    async with opened(tmp_path) as store:
        [bo] = await store.commit([Change("client", "bo", None, BO)])
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute(statement)
        change = made("new") if "new" in statement else Change("client", "bo", bo, replace(BO, disabled="x"))
        with pytest.raises(Conflict, match=f"client {change.name} was changed"):
            await store.commit([change])


async def test_of_many_at_once_only_those_fail_that_conflict(tmp_path: Path) -> None:
    outcomes: list[tuple[str, Record | None]] = []

    async def commit(name: str, *changes: Change) -> None:
        try:
            await store.commit(changes)
        except Stale as stale:
            outcomes.append((name, stale.now["client", "bo"]))

    async with opened(tmp_path) as store:
        [bo, ann] = await store.commit([Change("client", "bo", None, BO), made("ann")])
        gone = replace(BO, version=7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit, "first", made("x"))
            nursery.start_soon(commit, "second", made("c"), Change("client", "bo", gone, BO))
            nursery.start_soon(commit, "third", made("d"))
            nursery.start_soon(commit, "fourth", made("e"), Change("client", "ann", ann, None))
    assert outcomes == [("second", bo)]
    assert [name for _, name, _ in await contents(tmp_path)] == ["bo", "d", "e", "x"]


async def test_versions_go_on_rising_when_it_is_opened_again(tmp_path: Path) -> None:
    versions: list[int] = []
    for _ in range(3):
        async with opened(tmp_path) as store:
            for _ in range(RESERVE // 400):
                [record] = await store.commit([Change("client", "bo", None, BO)])
                assert record is not None
                versions.append(record.version)
                await store.commit([Change("client", "bo", record, None)])  # nothing is left that tells
    assert versions == sorted(set(versions))


async def test_more_than_one_statement_can_hold(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([made(f"c{number}") for number in range(7000)])
        assert len(await store.load()) == 7000


@pytest.mark.parametrize("new", [None, replace(BO, disabled="x")])
async def test_what_is_not_there_is_not_changed(tmp_path: Path, new: Client | None) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(Conflict):
            await store.commit([Change("client", "bo", BO, new)])


async def test_of_two_at_once_the_second_conflicts(tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def change(store: SqliteStore, reason: str) -> None:
        try:
            await store.commit([Change("client", "bo", bo, replace(BO, disabled=reason)), made(reason)])
            outcomes.append(reason)
        except Conflict:
            outcomes.append("conflict")

    async with opened(tmp_path) as store:
        [bo] = await store.commit([Change("client", "bo", None, BO)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, store, "a")
            nursery.start_soon(change, store, "b")
        names = [name for _, name, _ in await store.load()]
    (winner,) = set(outcomes) - {"conflict"}
    assert sorted(outcomes) == [winner, "conflict"]
    assert names == sorted(["bo", winner])


async def test_commits_at_once_go_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(store.commit, [made(f"c{number:02}")])
        assert store.commits < 20
        assert store.commit_seconds > 0
    assert [name for _, name, _ in await contents(tmp_path)] == [f"c{number:02}" for number in range(100)]


async def test_cancelled_it_is_made_or_not(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(store.commit, [made(f"c{number}")])
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await store.commit([made("after")])
        there = {name for _, name, _ in await store.load()}
        assert "after" in there
        for number in range(20):  # and the store knows which of them are
            if f"c{number}" in there:
                with pytest.raises(Conflict):
                    await store.commit([made(f"c{number}")])
            else:
                await store.commit([made(f"c{number}")])


# ---- one process


def test_second_process_is_refused(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from jmp.controller.sqlite import SqliteStore
        store = SqliteStore.open(Path({str(tmp_path)!r}))
        print("open", flush=True)
        input()
    """
    with running(script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(Busy) as caught:
            SqliteStore.open(tmp_path)
        assert caught.value.message == f"another controller (process {process.pid}) uses {tmp_path}"
        process.kill()
        process.wait()
        trio.run(SqliteStore.open(tmp_path).aclose)


@contextmanager
def running(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, and the end of it and of all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# Forks a committer for each line of its input, and says when that is dead: no start of a Python for each.
KILLED = """
    import os, sys, trio
    from pathlib import Path
    from dataclasses import replace
    from jmp.controller.sqlite import SqliteStore
    from jmp.controller.store import Change
    from jmp.wire.records import Client

    async def commit_on(store, there, name):
        old = there.get(name)
        while True:
            new = replace(old or Client(name=name), created=1.0 if old is None else old.created + 1)
            beside = Client(name=f"{name}-{new.created:g}")
            old, _ = await store.commit([Change("client", name, old, new), Change("client", beside.name, None, beside)])
            os.write(1, f"{name} {new.created:g}\\n".encode())

    async def main():
        store = SqliteStore.open(Path(sys.argv[1]))
        there = {name: record for _, name, record in await store.load()}
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(commit_on, store, there, name)

    for _ in sys.stdin:
        if not (child := os.fork()):
            trio.run(main)
        os.write(1, f"{child}\\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\\n")
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What was acknowledged is there, and of no commit there is a part only."""
    chance = random.Random(7)
    acknowledged: dict[str, float] = {}
    with running(KILLED, str(tmp_path)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(50):
            process.stdin.write("go\n")
            process.stdin.flush()
            child, left = 0, chance.randrange(80)
            while (line := process.stdout.readline().split()) != ["dead"]:
                if len(line) == 1:
                    child = int(line[0])
                else:
                    acknowledged[line[0]] = float(line[1])
                left -= 1
                if left <= 0 and child:
                    with suppress(ProcessLookupError):  # it is dead already, and more lines of it are being read
                        os.kill(child, signal.SIGKILL)
            there = {name: record for _, name, record in trio.run(contents, tmp_path)}
            for name in acknowledged:
                counter = there[name]
                assert isinstance(counter, Client)
                assert counter.created >= acknowledged[name]
                assert {f"{name}-{number + 1}" for number in range(int(counter.created))} == {
                    other for other in there if other.startswith(f"{name}-")
                }
        process.stdin.close()
        assert process.wait() == 0
    assert sum(acknowledged.values()) > 50


# ---- files of other times, damaged files, full disks


async def test_file_of_a_later_version(tmp_path: Path) -> None:
    await contents(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(LabError) as caught:
        SqliteStore.open(tmp_path)
    assert caught.value.message == (
        f"{tmp_path / FILE} is from a later version of jmp (its schema is 9, this one knows up to {len(SCHEMA)}):"
        " use that version, or restore a backup"
    )


async def test_older_file_is_copied_and_brought_up_to_date(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([made("bo")])
    newer = (*SCHEMA, "ALTER TABLE last ADD COLUMN more; UPDATE last SET more = 1")
    store = SqliteStore.open(tmp_path, schema=newer)
    assert [name for _, name, _ in await store.load()] == ["bo"]
    await store.commit([made("cy")])
    await store.aclose()
    copy = tmp_path / f"{FILE}.before-{len(newer)}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    copy.replace(tmp_path / FILE)
    assert [name for _, name, _ in await contents(tmp_path)] == ["bo"]


async def test_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    await contents(tmp_path)
    with pytest.raises(
        LabError, match=f"^the lab's records in {tmp_path / FILE} cannot be used: no such table: nowhere$"
    ):
        SqliteStore.open(tmp_path, schema=(*SCHEMA, "UPDATE last SET version = 77; DROP TABLE nowhere"))
    async with opened(tmp_path) as store:
        await store.commit([made("bo")])
        [(_, _, record)] = await store.load()
        assert record.version == 1


async def test_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("this is something else, and long enough to be looked at as a database's header" * 9)
    with pytest.raises(
        LabError, match=f"^the lab's records in {tmp_path / FILE} cannot be used: file is not a database$"
    ):
        SqliteStore.open(tmp_path)


async def test_damaged_database(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([made(f"c{number:04}") for number in range(2000)])
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(20 * 4096)
        file.write(bytes(range(256)) * 16)
    with pytest.raises(LabError, match=r"^[^\n]*(is damaged|cannot be used)[^\n]*$"):
        SqliteStore.open(tmp_path)


@pytest.mark.parametrize(("kind", "value"), [("client", "{}"), ("client", "no JSON"), ("unicorn", "{}")])
async def test_record_that_cannot_be_read(tmp_path: Path, kind: str, value: str) -> None:
    await contents(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("INSERT INTO record VALUES (?, 'x', 1, ?)", (kind, value))
    async with opened(tmp_path) as store:
        with pytest.raises(LabError, match=f"{FILE}: {kind} x cannot be read .*: restore a backup$"):
            await store.load()


async def test_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=r"^the lab's records cannot be kept in .*/file/lab: Not a directory$"):
        SqliteStore.open(tmp_path / "file" / "lab")


async def test_first_failure_is_for_good(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([made("bo")])
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("ALTER TABLE record RENAME TO gone")
            for name in ("cy", "dan"):
                with pytest.raises(LabError, match=r"cannot be used: no such table: record$"):
                    await store.commit([made(name)])
            other.execute("ALTER TABLE gone RENAME TO record")
        with pytest.raises(LabError, match="no such table"):
            await store.load()
    assert [name for _, name, _ in await contents(tmp_path)] == ["bo"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Nothing that this process writes gets larger: the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def commit_for_ever(store: SqliteStore, acknowledged: list[str]) -> None:
    while True:
        name = f"c{len(acknowledged):04}"
        await store.commit([made(name)])
        acknowledged.append(name)


async def test_full_disk(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    async with opened(tmp_path) as store:
        with files_up_to(256 << 10), pytest.raises(LabError, match=r"cannot be used: (disk I/O error|.* is full)$"):
            await commit_for_ever(store, acknowledged)
        with pytest.raises(LabError, match="cannot be used"):
            await store.commit([made("later")])
    assert acknowledged
    assert [name for _, name, _ in await contents(tmp_path)] == acknowledged


async def test_full_disk_until_there_is_room(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    place = tmp_path / "disk"
    with small_disk(place, "1m"):
        async with opened(place) as store:
            await store.commit([made("first")])
            filler = fill(place)
            with pytest.raises(
                Full, match=rf"^there is no room for the lab's records in {place}: nothing was changed$"
            ):
                await commit_for_ever(store, acknowledged)
            with pytest.raises(Full):
                await store.commit([made("later", {"much": "x" * 100_000})])
            filler.unlink()
            await store.commit([made("later")])
        assert [name for _, name, _ in await contents(place)] == [*acknowledged, "first", "later"]


async def test_nobody_is_told_of_what_failed_for_another(tmp_path: Path) -> None:
    outcomes: dict[str, str] = {}

    async def commit(store: SqliteStore, record: Client) -> None:
        try:
            await store.commit([Change("client", record.name, None, record)])
            outcomes[record.name] = "made"
        except (LabError, UnicodeError) as error:
            outcomes[record.name] = type(error).__name__

    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        nursery.start_soon(commit, store, Client(name="bo"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(commit, store, Client(name="cy"))
        nursery.start_soon(commit, store, Client(name="odd", labels={"x": "\ud800"}))
    there = {name for _, name, _ in await contents(tmp_path)}
    assert there == {name for name, outcome in outcomes.items() if outcome == "made"}
    assert outcomes["odd"] != "made"


async def test_nobody_else_changes_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with trio.move_on_after(0.05) as patience:
            await store.watch(lambda change: pytest.fail(f"{change} came"))
    assert patience.cancelled_caught


async def test_closed_store(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path)
    await store.aclose()
    await store.aclose()
    with pytest.raises(LabError, match=r"^the store is closed$"):
        await store.commit([made("bo")])


# ---- backup


async def test_backup_while_it_is_in_use(tmp_path: Path) -> None:
    async with opened(tmp_path / "lab") as store:
        await store.commit([made("bo")])
        (tmp_path / "copy").write_text("an older one")
        await trio.to_thread.run_sync(backup, tmp_path / "lab", tmp_path / "copy")
        await store.commit([made("cy")])
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "lab"]
    (tmp_path / "restored").mkdir()
    (tmp_path / "copy").replace(tmp_path / "restored" / FILE)
    assert [name for _, name, _ in await contents(tmp_path / "restored")] == ["bo"]


def test_backup_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"^there is no lab in .*: lab.db is missing$"):
        backup(tmp_path, tmp_path / "copy")


async def test_backup_to_a_full_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([made(f"c{number:04}") for number in range(2000)])
    with files_up_to(64 << 10), pytest.raises(LabError, match=rf"^{tmp_path / 'copy'} cannot be written: "):
        backup(tmp_path, tmp_path / "copy")
    assert [file.name for file in tmp_path.iterdir() if "copy" in file.name] == []


async def test_backup_to_nowhere(tmp_path: Path) -> None:
    await contents(tmp_path)
    with pytest.raises(LabError, match=r"/no/copy cannot be written: No such file or directory$"):
        backup(tmp_path, tmp_path / "no" / "copy")
