"""The embedded store: one SQLite file, for one controller.

Theory of operation. SQLite writes in a thread of its own, one transaction at a time. Commits that come up meanwhile wait for the
lock; whoever gets it next takes all of them into one transaction. Nearly every one is a single statement, which fails as a whole
if any record is of another version than it should be; then, and where records are removed, each commit has a savepoint of its
own, so that a conflict of one rolls back that one alone. With ``synchronous=FULL`` a transaction has reached the disk when it is
over: only then does anybody hear of it. A full disk fails the transaction that it meets, which is rolled back whole; any other
failure stops the store for good.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import trio

from jmp.controller.store import KINDS, Change, Conflict, Full, Key, Record, Stale, Store
from jmp.controller.worker import Worker
from jmp.errors import Busy, JmpError, LabError
from jmp.private import sync_directory
from jmp.wire.records import changed, from_wire, to_wire

FILE: Final = "lab.db"
LOCK: Final = "lab.lock"

SCHEMA: Final = (
    """
    CREATE TABLE record (
        kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    CREATE TABLE last (version INTEGER NOT NULL);
    INSERT INTO last VALUES (0);
    """,
)
"""The steps from an empty file to the present schema, only ever added to. A file's ``user_version`` is how many it has seen.

SQLite 3.34 has to understand them, and all else here: that is what RHEL 9 gives to its Python.
"""

_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
"""What SQLite says of a full disk. Whatever it was writing has no effect then."""

_MAX_ROWS: Final = 6000
"""Records written by one statement, which may have 32 766 parameters."""
RESERVE: Final = 1000
"""Versions that the file says are given out before they are, so that not every commit has to count there."""

T = TypeVar("T")
_dumps: Final = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(eq=False)
class _Commit:
    """One call of :meth:`SqliteStore.commit`."""

    changes: Sequence[Change]
    done: bool = False
    failed: Stale | Full | None = None
    version: int = 0


class SqliteStore(Store):
    """Made by :meth:`open`."""

    def __init__(self, file: Path, database: sqlite3.Connection, lock: int) -> None:
        self._file = file
        self._database = database
        self._lock_file = lock
        self._waiting: list[_Commit] = []
        self._writing = trio.Lock()
        self._worker = Worker("jmp store")
        self._failure: LabError | None = None
        (self._reserved,) = database.execute("SELECT version FROM last").fetchone()
        self._next = self._reserved + 1
        """The version that the next commit gives."""

    @classmethod
    def open(cls, directory: Path, *, schema: Sequence[str] = SCHEMA) -> SqliteStore:
        """The store in ``directory``, made if it is missing. Blocks; checks the file, and brings an older one up to date.

        Raises :class:`~jmp.errors.Busy` if another process uses it, and :class:`~jmp.errors.LabError` if it cannot be used.
        """
        file = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _lock(directory)
            try:
                os.close(
                    os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                )  # SQLite's other files get its mode
                file.chmod(0o600)
                with _translated(file):
                    return cls(file, _open(file, schema), lock)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise LabError(f"the lab's records cannot be kept in {directory}: {error.strerror or error}") from error

    async def load(self) -> list[tuple[str, str, Record]]:
        """As in :class:`~jmp.controller.store.Store`."""
        async with self._turn():
            rows = await self._in_thread(self._rows)
        return [(kind, name, self._read(kind, name, version, value)) for kind, name, version, value in rows]

    async def commit(self, changes: Sequence[Change]) -> list[Record | None]:
        """As in :class:`~jmp.controller.store.Store`; in no case is a part of ``changes`` made."""
        commit = _Commit(changes)
        self._waiting.append(commit)
        try:
            async with self._turn():
                if not commit.done:
                    await self._write_waiting()
        finally:
            if commit in self._waiting:
                self._waiting.remove(commit)
        if commit.failed is not None:
            raise commit.failed
        return [None if change.new is None else changed(change.new, version=commit.version) for change in changes]

    async def watch(self, tell: Callable[[Change], None]) -> None:
        """As in :class:`~jmp.controller.store.Store`; there are no others."""
        await trio.sleep_forever()

    async def aclose(self) -> None:
        """As in :class:`~jmp.controller.store.Store`."""
        with trio.CancelScope(shield=True):
            async with self._turn():
                if self._lock_file >= 0:
                    await self._worker.run(self._database.close)
                    await self._worker.close()
                    os.close(self._lock_file)
                    self._lock_file = -1
                    self._failure = self._failure or LabError("the store is closed")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One's turn to write; without a checkpoint if nobody else writes."""
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            yield
        finally:
            self._writing.release()

    async def _write_waiting(self) -> None:
        group, self._waiting = self._waiting, []
        started = monotonic()
        for commit in group:
            commit.version = self._next
            self._next += 1
        statement = _statement(
            group
        )  # here: what the thread does in Python keeps this one waiting, and is kept waiting by it
        await self._in_thread(lambda: self._write(group, statement))
        self.commits += 1
        self.commit_seconds += monotonic() - started
        for commit in group:
            commit.done = True

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Run it to its end, whoever is cancelled. Whoever calls it holds the lock. Anything that goes wrong is for good."""
        if self._failure is not None:
            raise self._failure
        try:
            with _translated(self._file):
                result = await self._worker.run(function)
        except LabError as error:
            self._failure = error
            raise
        except BaseException as error:
            # Whoever waited for the same transaction must not take it for done.
            self._failure = LabError(f"the lab's records in {self._file} cannot be used: {error}")
            raise
        return result

    # ---- in the thread

    def _rows(self) -> list[tuple[str, str, int, str]]:
        return self._database.execute("SELECT kind, name, version, value FROM record ORDER BY kind, name").fetchall()

    def _write(self, group: Sequence[_Commit], statement: tuple[str, Sequence[object]] | None) -> None:
        database = self._database
        try:
            if self._next > self._reserved:
                reserved = self._next + RESERVE
                database.execute("UPDATE last SET version = ?", (reserved,))
                self._reserved = reserved
            if statement is None or not self._write_at_once(*statement):
                self._write_one_by_one(group)
        except BaseException as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", None) not in _NO_ROOM:
                raise
            said = f"there is no room for the lab's records in {self._file.parent}: nothing was changed"
            for commit in group:
                commit.failed = Full(said, self._at_present(commit))

    def _write_at_once(self, statement: str, values: Sequence[object]) -> bool:
        """Make all commits by one statement; False: one of them conflicts, and nothing was changed."""
        try:
            self._database.execute(statement, values)
        except sqlite3.IntegrityError:
            return False
        return True

    def _write_one_by_one(self, group: Sequence[_Commit]) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        for commit in group:
            database.execute("SAVEPOINT one")
            try:
                self._apply(commit)
            except Conflict as conflict:
                database.execute("ROLLBACK TO one")
                commit.failed = Stale(conflict.message, self._at_present(commit))
            database.execute("RELEASE one")
        database.execute("COMMIT")

    def _apply(self, commit: _Commit) -> None:
        """Raises ``Conflict``, and has made some of the changes then."""
        database, version = self._database, commit.version
        for change in commit.changes:
            kind, name, old = change.kind, change.name, change.old
            value = None if change.new is None else _dumps(to_wire(change.new))
            if old is None:
                made = database.execute(
                    "INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (kind, name, version, value)
                )
            elif value is None:
                made = database.execute(
                    "DELETE FROM record WHERE kind = ? AND name = ? AND version = ?", (kind, name, old.version)
                )
            else:
                made = database.execute(
                    "UPDATE record SET version = ?, value = ? WHERE kind = ? AND name = ? AND version = ?",
                    (version, value, kind, name, old.version),
                )
            if made.rowcount != 1:
                raise Conflict(f"{kind} {name} was changed by somebody else in the meantime")

    def _at_present(self, commit: _Commit) -> dict[Key, Record | None]:
        return {change.key: self._now(*change.key) for change in commit.changes}

    def _now(self, kind: str, name: str) -> Record | None:
        row = self._database.execute(
            "SELECT version, value FROM record WHERE kind = ? AND name = ?", (kind, name)
        ).fetchone()
        return None if row is None else self._read(kind, name, *row)

    def _read(self, kind: str, name: str, version: int, value: str) -> Record:
        try:
            return replace(from_wire(KINDS[kind], json.loads(value)), version=version)
        except (KeyError, ValueError, JmpError) as error:
            raise LabError(f"{self._file}: {kind} {name} cannot be read ({error}): restore a backup") from error


def _statement(group: Sequence[_Commit]) -> tuple[str, Sequence[object]] | None:
    """What makes all commits at once, in a third of the time of several statements; None if one cannot."""
    values: list[object] = []
    keys: set[Key] = set()
    for commit in group:
        for change in commit.changes:
            if change.new is None:
                return None
            keys.add(change.key)
            old = None if change.old is None else change.old.version
            values += (change.kind, change.name, old, commit.version, _dumps(to_wire(change.new)))
    count = len(values) // 5
    if not count or count != len(keys) or count > _MAX_ROWS:
        return None
    # One that is not as it should be gets no value, which the table does not allow.
    return (
        f"WITH new (kind, name, old, version, value) AS (VALUES {', '.join(['(?, ?, ?, ?, ?)'] * count)})"
        " REPLACE INTO record SELECT new.kind, new.name, new.version,"
        " CASE WHEN record.version IS new.old THEN new.value END"
        " FROM new LEFT JOIN record ON record.kind = new.kind AND record.name = new.name",
        values,
    )


# ---- files


def backup(directory: Path, copy: Path) -> None:
    """Copy the records of the lab in ``directory`` as they are at one moment, whether a controller uses them or not. Blocks.

    ``copy`` is replaced, whole or not at all, and readable by its owner only. Raises :class:`~jmp.errors.LabError`.
    """
    file = directory / FILE
    if not file.is_file():
        raise LabError(f"there is no lab in {directory}: {FILE} is missing")
    with _translated(file), closing(_connect(file)) as database:
        _copy(database, copy)


def is_used(directory: Path) -> bool:
    """Whether a controller uses the records in ``directory`` now."""
    try:
        os.close(_lock(directory))
    except Busy:
        return True
    except OSError:
        pass  # nobody can, then
    return False


def _lock(directory: Path) -> int:
    """Keep every other process out, until the descriptor is closed. Raises ``Busy``."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode("ascii", "replace").strip()
        os.close(lock)
        raise Busy(f"another controller (process {holder or 'unknown'}) uses {directory}") from None
    os.ftruncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    return lock


def _open(file: Path, schema: Sequence[str]) -> sqlite3.Connection:
    database = _connect(file)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        faults = [row[0] for row in database.execute("PRAGMA integrity_check(1)")]
        if faults != ["ok"]:
            raise LabError(f"{file} is damaged ({faults[0].splitlines()[-1]}): restore a backup")
        _migrate(file, database, schema)
    except BaseException:
        database.close()
        raise
    return database


def _connect(file: Path) -> sqlite3.Connection:
    # Every use of it is in turn, though not in one and the same thread.
    return sqlite3.connect(file, timeout=10.0, isolation_level=None, check_same_thread=False)


def _migrate(file: Path, database: sqlite3.Connection, schema: Sequence[str]) -> None:
    (present,) = database.execute("PRAGMA user_version").fetchone()
    if present > len(schema):
        raise LabError(
            f"{file} is from a later version of jmp (its schema is {present}, this one knows up to {len(schema)}):"
            f" use that version, or restore a backup"
        )
    if 0 < present < len(schema):
        _copy(database, file.with_name(f"{FILE}.before-{len(schema)}"))
    for number in range(present, len(schema)):
        # One transaction, so that the file is always at one of the steps. executescript() commits what is open before it.
        try:
            database.executescript(f"BEGIN IMMEDIATE; {schema[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def _copy(database: sqlite3.Connection, copy: Path) -> None:
    new = copy.with_name(f".{copy.name}.{os.getpid()}")
    try:
        new.unlink(missing_ok=True)  # of a process of the same number that was killed
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with closing(sqlite3.connect(new, isolation_level=None)) as target:
                database.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")  # one file, without companions
            with new.open("rb") as written:
                os.fsync(written.fileno())
            new.replace(copy)
        finally:
            new.unlink(missing_ok=True)
        sync_directory(copy.parent)
    except OSError as error:
        raise LabError(f"{copy} cannot be written: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise LabError(f"{copy} cannot be written: {error}") from error


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LabError(f"the lab's records in {file} cannot be used: {error}") from error
