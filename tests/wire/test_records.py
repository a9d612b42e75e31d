"""Records: to plain values and back, also those of a neighbouring version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jmp.errors import ProtocolViolation
from jmp.wire import codec
from jmp.wire.records import Exporter, Held, Lease, Phase, Policy, State, Want, from_wire, to_wire

LEASE = Lease(
    id="l1",
    client="alice",
    wants=(Want(selector="board=rpi4"), Want(exporter="bench-2")),
    duration=3600.0,
    created=1.5,
    number=7,
    state=State.READY,
    devices=(Held(exporter="bench-1", epoch=3, phase=Phase.READY), Held(exporter="bench-2", epoch=9)),
    tags=("nightly",),
    context={"job": "17"},
    ends=4000.0,
)


def test_a_record_comes_back_as_it_was() -> None:
    value = to_wire(LEASE)
    assert from_wire(Lease, codec.decode(codec.encode(value))) == LEASE
    assert value["devices"][0] == {"exporter": "bench-1", "epoch": 3, "phase": "ready"}
    policy = Policy(name="p", packages=("jmp-drivers",))
    assert from_wire(Policy, to_wire(policy)) == policy
    assert from_wire(Policy, to_wire(replace(policy, packages=None))).packages is None


def test_unknown_keys_are_passed_over_and_missing_ones_have_their_default() -> None:
    assert from_wire(Exporter, {"name": "e", "from_the_future": 1}) == Exporter(name="e")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "this is no lease: id is missing"),
        ([], r"this is no lease: \[\] is no mapping"),
        (to_wire(LEASE) | {"duration": "1h"}, "this is no lease: '1h' where float is due"),
        (to_wire(LEASE) | {"number": True}, "this is no lease: True where int is due"),
        (to_wire(LEASE) | {"state": "lost"}, "this is no lease: 'lost' is not a valid State"),
        (to_wire(LEASE) | {"tags": "nightly"}, "this is no lease: 'nightly' where tuple"),
    ],
)
def test_what_is_no_record_is_refused(value: object, said: str) -> None:
    with pytest.raises(ProtocolViolation, match=said):
        from_wire(Lease, value)
