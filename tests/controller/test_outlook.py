"""When exporters will be free: the orders that are kept are those that one would get by sorting anew."""

from __future__ import annotations

import math
import random

import pytest

from jmp.controller.outlook import FREE, NEVER, SOON, Outlook, assign, earliest, soonest


@pytest.mark.parametrize("seed", range(5))
def test_orders_are_as_if_made_anew(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"e{number}" for number in range(20)]
    ranks = dict.fromkeys(names, NEVER)
    outlook = Outlook(lambda name: ranks[name])
    groups = [frozenset(chance.sample(names, size)) for size in (1, 3, 10, 20)]
    for _ in range(300):
        name = chance.choice(names)
        ranks[name] = chance.choice([FREE, SOON, NEVER, 7.0, chance.uniform(0.0, 100.0)])
        outlook.note(name)
        if chance.random() < 0.05:
            outlook.forget()
        group = chance.choice(groups)
        assert list(outlook.first(group)) == sorted(
            (name for name in group if ranks[name] < NEVER), key=lambda name: (ranks[name], name)
        )


def test_those_that_come_first_are_preferred() -> None:
    assert assign([["a", "b"], ["a"]]) == ["b", "a"]
    assert assign([["a", "b"], ["b", "c"]]) == ["a", "b"]
    assert assign([["a"], ["a"]]) is None


def test_all_are_free_when_the_last_one_is() -> None:
    first = [[(3.0, "a"), (9.0, "b")], [(3.0, "a"), (5.0, "c")]]
    assert earliest(first, 0.0) == (5.0, ["a", "c"])
    assert earliest(first, 7.0) == (7.0, ["a", "c"])
    assert earliest([[(1.0, "a")], [(1.0, "a")]], 0.0) == (math.inf, [])


def test_the_soonest_of_a_group() -> None:
    available = {"a": 4.0, "b": 2.0, "c": math.inf, "d": 1.0}
    assert soonest(available, frozenset("abc"), 2) == [(2.0, "b"), (4.0, "a")]
    assert soonest(available, frozenset("bc"), 2) == [(2.0, "b")]
