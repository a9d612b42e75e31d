"""Records of a lab as text and as data."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from jmp.cli import labs
from jmp.cli.admin import changed
from jmp.cli.labs import CLIENT, EXPORTER, LEASE, POLICY, TOKEN, Kind
from jmp.cli.lease import not_ready, wants_of
from jmp.errors import BadValue, Cancelled, JmpError, LabError, NotFound, Timeout, UsageError
from jmp.wire.records import Client, Exporter, Held, Lease, Policy, Role, State, Token, Want, to_wire

NOW = datetime(2026, 11, 24, 10, 0).timestamp()  # in the zone of whoever looks
LEASED = Lease(
    id="k3j4",
    client="alice",
    wants=(Want(selector="board=rpi4"), Want(exporter="psu")),
    duration=3600.0,
    created=NOW - 60,
    number=7,
    tags=("ci", "nightly"),
    context={"job": "5"},
)
READY = replace(
    LEASED,
    state=State.READY,
    devices=(Held(exporter="rpi-1", epoch=4), Held(exporter="psu", epoch=2)),
    granted=NOW - 30,
    ready=NOW - 18,
    ends=NOW + 2520,
)


def record(value: Any, **more: Any) -> dict[str, Any]:
    return {**to_wire(value), **more}


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "now"), (-0.4, "now"), (720, "in 12m"), (-11100, "3h 5m ago"), (86400, "in 1d")]
)
def test_a_time_for_people(seconds: float, said: str) -> None:
    assert labs.relative(NOW + seconds, NOW) == said


def test_a_clock_has_a_date_only_if_that_is_not_today() -> None:
    assert labs.clock(NOW + 3600, NOW) == "11:00"
    assert labs.clock(NOW + 86400, NOW) == "2026-11-25 10:00"


@pytest.mark.parametrize(
    ("lease", "said"),
    [
        (record(LEASED, position=3, expected=NOW + 720), "number 3, expected to start in 12m (10:12)"),
        (record(LEASED, position=1, expected=NOW), "number 1, may start at any moment"),
        (record(LEASED, position=1, expected=None), "number 1, and nobody can tell when it starts"),
        (record(replace(LEASED, begin=NOW + 60), position=1, expected=NOW + 60), "begins in 1m (10:01)"),
        (record(replace(LEASED, begin=NOW + 60), position=2, expected=None), "begins in 1m (10:01)"),
        (
            record(replace(LEASED, begin=NOW + 60), position=2, expected=NOW + 120),
            "number 2, expected to start in 2m (10:02)",
        ),
        (record(replace(READY, state=State.PREPARING, ends=None)), "getting ready"),
        (record(READY), "42m left"),
        (record(replace(READY, ends=NOW - 5)), "0s left"),
        (record(replace(READY, state=State.ENDING, reason="released by alice")), "cleaning up: released by alice"),
        (
            record(replace(READY, state=State.ENDED, ended=NOW - 60, reason="its time was over")),
            "1m ago: its time was over",
        ),
    ],
)
def test_how_a_lease_stands(lease: dict[str, Any], said: str) -> None:
    assert labs.standing_text(lease, NOW) == said


@pytest.mark.parametrize(
    ("kind", "value", "cells"),
    [
        (LEASE, record(READY), ["k3j4", "ready", "alice", "rpi-1, psu", "42m left", "1h", "0", "ci,nightly", "job=5"]),
        (
            EXPORTER,
            record(
                Exporter(name="rpi-1", labels={"rack": "a", "board": "rpi4"}, description="A Pi", used=NOW - 60),
                state="leased",
                client="alice",
                until=NOW + 60,
                version="0.1.0",
            ),
            ["rpi-1", "leased", "alice, 1m left", "board=rpi4,rack=a", "A Pi", "0.1.0", "1m ago"],
        ),
        (
            EXPORTER,
            record(Exporter(name="rpi-1", disabled="new SD card"), state="leased", until=NOW + 60, version=""),
            ["rpi-1", "leased", "1m left, then disabled: new SD card", "", "", "", "never"],
        ),
        (
            EXPORTER,
            record(Exporter(name="rpi-2", disabled="new SD card"), state="disabled", version=""),
            ["rpi-2", "disabled", "new SD card", "", "", "", "never"],
        ),
        (
            CLIENT,
            record(Client(name="alice", created=NOW - 60, service_accounts=("tests/runner", "tests/other"))),
            ["alice", "enabled", "", "", "1m ago", "tests/runner, tests/other"],
        ),
        (CLIENT, record(Client(name="bob", disabled="left")), ["bob", "disabled", "left", "", "", ""]),
        (POLICY, record(Policy(name="all")), ["all", "all", "all", "lease, see", "any", "0", "*", "", "all"]),
        (
            POLICY,
            record(
                Policy(
                    name="ci",
                    clients="team=ci",
                    exporters="board",
                    see=False,
                    manage=True,
                    priority=5,
                    longest=7200.0,
                    allow=("power.*",),
                    deny=("storage.*", "net.*"),
                    packages=(),
                )
            ),
            ["ci", "team=ci", "board", "lease, manage", "2h", "5", "power.*", "storage.*, net.*", ""],
        ),
        (
            TOKEN,
            record(Token(id="t1", subject="alice", role=Role.CLIENT, issued=NOW - 60, expires=NOW + 60)),
            ["t1", "client/alice", "good", "in 1m", "1m ago"],
        ),
        (
            TOKEN,
            record(Token(id="t2", subject="r", role=Role.ROUTER, issued=NOW - 120, expires=NOW - 60)),
            ["t2", "router/r", "expired", "1m ago", "2m ago"],
        ),
        (
            TOKEN,
            record(Token(id="t3", subject="a", role=Role.ADMIN, issued=NOW - 120, expires=NOW + 9, revoked=NOW - 60)),
            ["t3", "admin/a", "revoked", "1m ago", "2m ago"],
        ),
    ],
)
def test_rows(kind: Kind, value: dict[str, Any], cells: list[str]) -> None:
    assert kind.row(value, NOW) == cells
    assert len(cells) == len([*kind.columns, *kind.wide])


def test_a_queued_lease_shows_what_it_waits_for() -> None:
    assert labs.devices_text(record(LEASED)) == "board=rpi4, psu"
    assert labs.want_text(to_wire(Want())) == "any"
    assert labs.want_text(to_wire(Want(selector="a=b", exporter="rpi-1"))) == "rpi-1 a=b"


def test_data_has_iso_times_and_nothing_internal() -> None:
    shown = labs.as_data(record(replace(READY, created=0.0, ready=1795600000.0), expected=None))
    assert shown["ready"] == "2026-11-25T09:46:40Z"
    assert shown["created"] is None
    assert shown["ends"].endswith("Z")
    assert shown["duration"] == 3600.0
    assert shown["state"] == "ready"
    assert not {"number", "version"} & shown.keys()
    assert labs.as_data({"version": "0.1.0"}) == {"version": "0.1.0"}


def test_details_leave_out_what_there_is_not() -> None:
    shown = dict(labs.details(record(READY), NOW))
    assert shown == {
        "id": "k3j4",
        "client": "alice",
        "wants": "board=rpi4, psu",
        "duration": "1h",
        "created": "09:59 (1m ago)",
        "tags": "ci, nightly",
        "context": "job=5",
        "state": "ready",
        "devices": "rpi-1 (preparing), psu (preparing)",
        "granted": "09:59 (30s ago)",
        "ready": "09:59 (18s ago)",
        "ends": "10:42 (in 42m)",
    }
    assert dict(labs.details({"tied": True, "see": False}, NOW)) == {"tied": "yes"}


@pytest.mark.parametrize("word", ["policy", "policies", "Policies"])
def test_kinds_by_singular_and_plural(word: str) -> None:
    assert labs.kind_of(word) is POLICY


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"a lab has no 'lease5' \(did you mean 'leases'\?\)"):
        labs.kind_of("lease5")


def test_pairs() -> None:
    assert labs.pairs(["a=b", "c=d=e", "f="], "--label") == {"a": "b", "c": "d=e", "f": ""}
    with pytest.raises(UsageError, match="--label takes NAME=VALUE, not 'x'"):
        labs.pairs(["x"], "--label")


def test_labels_are_set_and_removed() -> None:
    assert changed({"a": "1", "b": "2"}, ["a=3", "b-", "c-d=e-"]) == {"a": "3", "c-d": "e-"}
    with pytest.raises(NotFound, match="no label 'x'"):
        changed({}, ["x-"])
    with pytest.raises(UsageError, match="NAME=VALUE"):
        changed({}, ["x"])


def test_wants() -> None:
    assert wants_of(None, None) == []
    assert wants_of(["a=b"], ["rpi-1"]) == [Want(selector="a=b", exporter="rpi-1")]
    assert wants_of(["a=b", "c"], ["rpi-1"]) == [Want(selector="a=b"), Want(selector="c"), Want(exporter="rpi-1")]
    with pytest.raises(BadValue, match="selector 'a==='"):
        wants_of(["a==="], None)


@pytest.mark.parametrize(
    ("lease", "error", "said"),
    [
        (
            replace(LEASED, give_up=NOW, ended=NOW, reason="nothing was free"),
            Timeout,
            "was not granted: nothing was free",
        ),
        (replace(LEASED, give_up=NOW, ended=NOW - 1, reason="released by bob"), Cancelled, "in the queue: released by"),
        (replace(LEASED, ended=NOW, reason="released by bob"), Cancelled, "in the queue: released by bob"),
        (replace(READY, ended=NOW, reason="hook failed"), LabError, "of rpi-1, psu was never ready: hook failed"),
    ],
)
def test_why_a_lease_was_never_ready(lease: Lease, error: type[JmpError], said: str) -> None:
    assert type(not_ready(record(lease))) is error
    assert said in not_ready(record(lease)).message


def test_a_token_is_no_argument_of_the_command_that_joins() -> None:
    command = labs.join_command("client", "alice", "wss://lab:8443", "ab" * 32, "TOKEN")
    assert (
        command
        == f"JMP_TOKEN=TOKEN jmp config client create alice --endpoint wss://lab:8443 --ca-fingerprint {'ab' * 32}"
    )
    assert "--ca" not in labs.join_command("client", "alice", "wss://lab", None, "TOKEN")


@pytest.mark.parametrize("module", ["lease", "config", "admin", "resources"])
def test_what_takes_long_to_load_is_not_loaded(module: str) -> None:
    heavy = "{'trio', 'rich', 'yaml', 'ssl', 'cryptography', 'jwt', 'prompt_toolkit'}"
    code = f"import sys, jmp.cli.{module}; sys.exit(str({heavy} & sys.modules.keys() or '') or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
