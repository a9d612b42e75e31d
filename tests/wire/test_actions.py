"""Patterns of driver methods."""

from __future__ import annotations

import pytest

from jmp.errors import BadValue
from jmp.wire.actions import allowed, check


@pytest.mark.parametrize(
    ("pattern", "action", "matches"),
    [
        ("*", "power.on", True),
        ("*", "rack.power.on", True),
        ("power.on", "power.on", True),
        ("power.on", "power.off", False),
        ("power.on", "power.once", False),
        ("power.*", "power.on", True),
        ("power.*", "powerful.on", False),
        ("power.*", "rack.power.on", False),
        ("*.on", "rack.power.on", True),
        ("storage.w*", "storage.write", True),
        ("storage.w*", "storage.read", False),
        ("power", "power.on", True),
        ("rack", "rack.power.on", True),
        ("power", "powerful.on", False),
        ("pow*", "power.on", True),
        ("po?er.on", "power.on", False),
        ("power[.]on", "power.on", False),
        ("power[.]on", "power[.]on", True),
        ("po?er.o*", "po?er.on", True),
        ("**r.**n", "power.on", True),
        ("*" * 60 + "5R", "power.on", False),
        ("*o" * 30 + "!", "power.on" + "o" * 60, False),
        ("", "power.on", False),
        ("*", "odd\nname.on", True),
    ],
)
def test_patterns(pattern: str, action: str, matches: bool) -> None:
    assert allowed([pattern], [], action) is matches


@pytest.mark.parametrize("pattern", ["", "power on", "power,console", "power.on\n", "power:on"])
def test_what_no_method_can_match_is_no_pattern(pattern: str) -> None:
    with pytest.raises(BadValue, match="is no pattern of methods"):
        check(pattern)


def test_nothing_is_allowed_unless_a_pattern_says_so() -> None:
    assert not allowed([], [], "power.on")


def test_what_is_denied_is_denied_whatever_is_allowed() -> None:
    assert not allowed(["*", "storage.write"], ["storage.w*"], "storage.write")
    assert allowed(["*"], ["storage.w*"], "storage.read")


def test_any_pattern_will_do() -> None:
    assert allowed(["serial", "power.on"], ["video"], "power.on")
