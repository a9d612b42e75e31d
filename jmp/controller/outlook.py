"""When exporters will be free, and who then gets which of several. Pure.

Theory of operation. Requests that wait for several exporters at once look at every release for the first moment at which they can
have them. Of each group that one of them may be given a member of, :class:`Outlook` keeps the members in the order in which
they become free, and puts a member in its new place when something happens to it: so whoever looks sees the first few, however
many there are.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

FREE = -math.inf
"""Free now,"""
SOON = -1.0
"""being cleaned up,"""
NEVER = math.inf
"""and nobody can tell; those in use stand in between, by the time of their end."""


class Outlook:
    """The members of groups in the order in which they become free; ``rank`` tells where one stands (see above)."""

    def __init__(self, rank: Callable[[str], float]) -> None:
        self._rank = rank
        self._orders: dict[frozenset[str], list[tuple[float, str]]] = {}
        self._groups: dict[str, list[list[tuple[float, str]]]] = {}
        self._ranks: dict[str, float] = {}

    def note(self, name: str) -> None:
        """Something has happened to an exporter."""
        orders = self._groups.get(name)
        if orders is None:
            return
        before, now = self._ranks[name], self._rank(name)
        if before == now:
            return
        self._ranks[name] = now
        for order in orders:
            del order[bisect_left(order, (before, name))]
            insort(order, (now, name))

    def forget(self) -> None:
        """Others are in the groups from now on."""
        self._orders.clear()
        self._groups.clear()
        self._ranks.clear()

    def first(self, group: frozenset[str]) -> Iterator[str]:
        """The members that will be free, the one that is so first at the head."""
        order = self._orders.get(group)
        if order is None:
            for name in group - self._ranks.keys():
                self._ranks[name] = self._rank(name)
            order = self._orders[group] = sorted((self._ranks[name], name) for name in group)
            for name in group:
                self._groups.setdefault(name, []).append(order)
        for rank, name in order:
            if rank == NEVER:
                return
            yield name


def assign(choices: Sequence[Sequence[str]]) -> list[str] | None:
    """A different one for each of ``choices``, those that come first preferred; None if there are not enough."""
    taken: dict[str, int] = {}

    def place(index: int, tried: set[str]) -> bool:
        for name in choices[index]:
            if name not in tried:
                tried.add(name)
                if name not in taken or place(taken[name], tried):
                    taken[name] = index
                    return True
        return False

    if not all(place(index, set()) for index in range(len(choices))):
        return None
    return [name for name, _ in sorted(taken.items(), key=lambda item: item[1])]


def earliest(first: Sequence[Sequence[tuple[float, str]]], floor: float) -> tuple[float, list[str]]:
    """The earliest time, not before ``floor``, at which each choice has an exporter of its own, and those; ``inf`` if never.

    A choice is when each of some exporters will be free, in the order of that; as many of them are enough as there are choices,
    since one is always left over.
    """

    def at(time: float) -> list[str] | None:
        return assign([[name for free, name in names if free <= time] for names in first])

    times = sorted({floor, *(time for names in first for time, _ in names if time > floor)})
    feasible = bisect_left(times, True, key=lambda time: at(time) is not None)
    if feasible == len(times):
        return math.inf, []
    chosen = at(times[feasible])
    assert chosen is not None
    return times[feasible], chosen


def soonest(available: dict[str, float], names: frozenset[str], count: int) -> list[tuple[float, str]]:
    """Those ``count`` of ``names`` that are free first."""
    return heapq.nsmallest(
        count, ((time, name) for name in names if (time := available.get(name, math.inf)) < math.inf)
    )
