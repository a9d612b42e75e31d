"""The disk with a lab's records is full for a while: new requests are refused, nothing acknowledged is lost, nothing restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jmp.errors import LabError
from tests.fakes.disk import fill, small_disk
from tests.fakes.lab import ServedLab, served_lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ServedLab]:
    with ExitStack() as stack:
        stack.enter_context(small_disk(tmp_path / "data", "8m"))
        lab = stack.enter_context(served_lab(tmp_path))
        lab.add_client("alice")
        lab.add_exporter("bench")
        yield lab


def acquire(lab: ServedLab) -> tuple[int, str, str]:
    """Exit code, the lease and what was said."""
    done = lab.run("alice", "lease", "acquire", "-l", "board=mock", "--for", "1h", "--detach", "-o", "name")
    return done.returncode, done.stdout.strip().rpartition("/")[2], done.stderr


def test_a_full_disk(lab: ServedLab, tmp_path: Path) -> None:
    first = (
        lab.ok("alice", "lease", "acquire", "-l", "board=mock", "--for", "1h", "-o", "name").strip().rpartition("/")[2]
    )
    filler = fill(tmp_path / "data")
    acknowledged = [first]
    for _ in range(300):  # SQLite's log may have some room in it
        code, lease, said = acquire(lab)
        if code:
            break
        acknowledged.append(lease)
    assert code == LabError.exit_code
    assert said == f"jmp: there is no room for the lab's records in {tmp_path / 'data'}: nothing was changed\n"
    assert lab.ok("alice", "shell", "--lease", first, "--", "j", "power", "state") == "off\n"
    assert first in lab.ok("alice", "lease", "list")
    filler.unlink()
    last = acquire(lab)
    for _ in range(5):
        if last[0] == 0:
            break
        last = acquire(lab)
    assert last[0] == 0
    lab.kill()
    lab.start()
    leases = json.loads(lab.ok("alice", "lease", "list", "-o", "json"))
    assert {lease["id"] for lease in leases} >= {*acknowledged, last[1]}
