"""What policies add up to."""

from __future__ import annotations

import pytest

from jmp.controller.policies import NONE, Access, access
from jmp.wire.records import Client, Exporter, Policy

ADA = Client(name="ada", labels={"team": "boot"})
BOARD = Exporter(name="board", labels={"kind": "rpi4"})


def rights(*policies: Policy) -> Access:
    return access(policies, ADA, BOARD)


def test_without_a_policy_nothing_is_allowed() -> None:
    assert rights() == NONE == Access(lease=False, see=False, manage=False, allow=())


def test_a_policy_as_it_comes_lets_lease_and_see_and_use_all() -> None:
    assert rights(Policy(name="p")) == Access(lease=True, see=True, allow=("*",))


@pytest.mark.parametrize(("clients", "exporters"), [("team=web", ""), ("", "kind=rpi5"), ("team=boot", "!kind")])
def test_a_policy_counts_only_if_client_and_exporter_match(clients: str, exporters: str) -> None:
    assert rights(Policy(name="p", clients=clients, exporters=exporters)) == NONE


def test_what_one_policy_allows_is_allowed() -> None:
    see, manage = Policy(name="a", lease=False), Policy(name="b", lease=False, see=False, manage=True)
    assert rights(see, manage, Policy(name="c", see=False)) == Access(lease=True, see=True, manage=True, allow=("*",))


def test_the_highest_priority_counts() -> None:
    assert rights(Policy(name="a", priority=3), Policy(name="b", priority=7)).priority == 7


def test_a_low_priority_is_low() -> None:
    assert rights(Policy(name="a", priority=-3)).priority == -3


@pytest.mark.parametrize(("limits", "longest"), [((60.0,), 60.0), ((60.0, 90.0), 90.0), ((60.0, None), None)])
def test_the_longest_duration_counts_and_no_limit_is_the_longest(
    limits: tuple[float | None, ...], longest: float | None
) -> None:
    assert rights(*(Policy(name=str(limit), longest=limit) for limit in limits)).longest == longest


def test_patterns_are_united_and_each_is_there_once() -> None:
    one, other = Policy(name="a", allow=("power.*", "serial")), Policy(name="b", allow=("serial", "video"))
    assert rights(one, other).allow == ("power.*", "serial", "video")


def test_what_is_denied_is_denied_even_by_a_policy_that_does_not_let_lease() -> None:
    assert rights(Policy(name="a"), Policy(name="b", lease=False, deny=("storage.*",))).deny == ("storage.*",)


def test_a_policy_that_does_not_let_lease_gives_no_durations_patterns_or_packages() -> None:
    narrow = Policy(name="a", longest=60.0, allow=("power.*",), packages=("jmp-drivers",))
    wide = Policy(name="b", lease=False, priority=9)
    assert rights(narrow, wide) == rights(narrow)


@pytest.mark.parametrize(
    ("packages", "united"),
    [((("a",), ("b", "a")), ("a", "b")), ((("a",), None), None), (((), ()), ())],
)
def test_packages_are_united_and_no_limit_wins(
    packages: tuple[tuple[str, ...] | None, ...], united: tuple[str, ...] | None
) -> None:
    assert rights(*(Policy(name=str(index), packages=item) for index, item in enumerate(packages))).packages == united
