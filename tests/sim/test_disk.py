"""What is left of a transaction that is broken off: all of it or nothing, as the real store finds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from jmp.controller.sqlite import FILE, SqliteStore
from jmp.controller.store import Change
from jmp.wire.records import Client
from tests.sim.disk import LOG, Files, format_files, records_in, torn


def files_in(directory: Path) -> Files:
    return {name: (directory / name).read_bytes() for name in (FILE, LOG)}


def change(number: int) -> Sequence[Change]:
    return [Change("client", f"bo{number}", None, Client(name=f"bo{number}", disabled="x" * 3000))]


@pytest.mark.parametrize(("checkpoint", "there"), [(1000, {False, True}), (1, {True})])
async def test_a_transaction_is_there_whole_or_not_at_all(tmp_path: Path, checkpoint: int, there: set[bool]) -> None:
    """If it was on its way from the log to the database already, it is there."""
    for name, content in format_files({("client", "bo"): Client(name="bo")}).items():
        (tmp_path / name).write_bytes(content)
    store = SqliteStore.open(tmp_path)
    store._database.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
    found = set()
    for number in range(3):
        before = files_in(tmp_path) if number else None
        await store.commit(change(number))
        if before is not None:
            now = files_in(tmp_path)
            sizes = {len(records_in(torn(before, now, Random(seed)))) for seed in range(8)}
            assert sizes <= {number + 1, number + 2}
            found |= {size == number + 2 for size in sizes}
    assert found == there
    await store.aclose()
