"""The audit log as whoever reads it finds it."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from jmp.audit import Audit

TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJibyJ9.c2lnbmF0dXJl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def note(audit: Audit, action: str = "release", **more: Any) -> None:
    audit.record(actor="bo", role="client", peer="10.0.0.7:41", action=action, object="lease/l1", result="ok", **more)


def test_a_line_for_each(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    audit = Audit(path, clock=lambda: 1_800_000_000.12345)
    note(audit, context={"job": "7"}, to=None)
    note(audit, "extend", seconds=0.0)
    audit.close()
    general = {"time": 1_800_000_000.123, "actor": "bo", "role": "client", "peer": "10.0.0.7:41"}
    assert lines(path) == [
        {**general, "action": "release", "object": "lease/l1", "result": "ok", "context": {"job": "7"}},
        {**general, "action": "extend", "object": "lease/l1", "result": "ok", "seconds": 0.0},
    ]
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    for action in ("first", "second"):
        audit = Audit(tmp_path / "audit", clock=lambda: 1.0)
        note(audit, action)
        audit.close()
    assert [line["action"] for line in lines(tmp_path / "audit")] == ["first", "second"]


@pytest.mark.parametrize("create", [True, False])
def test_rotation_needs_no_signal(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "audit"
    audit = Audit(path)
    note(audit, "first")
    path.rename(tmp_path / "audit.1")
    if create:
        path.touch()
    note(audit, "second")
    path.unlink()
    note(audit, "third")
    audit.close()
    assert [line["action"] for line in lines(tmp_path / "audit.1")] == ["first"]
    assert [line["action"] for line in lines(path)] == ["third"]


def test_a_file_that_is_full_makes_place(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit", limit=300)
    for number in range(9):
        note(audit, str(number))
    audit.close()
    kept = [line["action"] for path in ("audit.1", "audit") for line in lines(tmp_path / path)]
    assert kept == [str(number) for number in range(9)][-len(kept) :]
    assert len(lines(tmp_path / "audit.1")) == 3


def test_what_somebody_sent_stays_on_one_line(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit")
    note(audit, context={"job": 'a\n{"actor": "admin"}', "odd": "\ud800", "other": "kärnten"}, values={"x": {1, 2}})
    audit.close()
    [line] = lines(tmp_path / "audit")
    assert line["actor"] == "bo"
    assert line["context"]["other"] == "kärnten"


def test_never_a_token(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit")
    note(audit, f"used {TOKEN} here", values={"token": "abc", "deep": [{"x": f"Bearer {TOKEN}"}]})
    audit.close()
    assert "eyJ" not in (tmp_path / "audit").read_text()
    [line] = lines(tmp_path / "audit")
    assert line["action"] == "used ... here"
    assert line["values"] == {"token": "...", "deep": [{"x": "Bearer ..."}]}


def test_failure_is_logged_once_and_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "audit"
    path.mkdir()
    audit = Audit(path)
    note(audit)
    note(audit)
    path.rmdir()
    note(audit, "again")
    note(audit, "more")
    audit.close()
    assert [record.message for record in caplog.records] == [
        f"the audit log {path} cannot be written: Is a directory",
        f"the audit log {path} can be written again; what happened meanwhile is missing",
    ]
    assert [line["action"] for line in lines(path)] == ["again", "more"]


def test_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit(Path("/dev/full"))
    note(audit)
    audit.close()
    assert [record.message for record in caplog.records] == [
        "the audit log /dev/full cannot be written: No space left on device"
    ]


def test_pipe_that_nobody_reads_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "audit")
    audit = Audit(tmp_path / "audit")
    note(audit)
    audit.close()
    assert "cannot be written: No such device or address" in caplog.text


def test_without_a_file(tmp_path: Path) -> None:
    audit = Audit(None)
    note(audit)
    audit.close()
    assert list(tmp_path.iterdir()) == []


def test_standard_output_is_somebody_elses_to_keep(capfd: pytest.CaptureFixture[str]) -> None:
    audit = Audit(Path("-"))
    note(audit, token=TOKEN)
    [line] = capfd.readouterr().out.splitlines()
    assert json.loads(line)["action"] == "release"
    assert TOKEN not in line
