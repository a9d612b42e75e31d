"""What is committed together, and who waits for it: the pure part of how a :class:`~jmp.controller.lab.Lab` commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any, Generic, TypeVar

from jmp.controller.store import Change, Key
from jmp.rpc.later import Later
from jmp.wire.records import Lease

T = TypeVar("T")


@dataclass(eq=False)
class Wish(Generic[T]):
    """Something that somebody has asked for, and waits for."""

    ask: Callable[[], T]
    patient: bool = False
    """Nothing is committed any sooner for it."""
    about: Key | None = None
    """The record that was changed first; the rest follows from that. None: it changes nothing, and waits for all there is."""
    keys: set[Key] = field(default_factory=set)
    """What it waits for that is not in the air yet."""
    legs: int = 0
    """The flights that it waits for."""
    answer: list[T] = field(default_factory=list)
    later: Later[T] = field(default_factory=Later)

    def board(self, flight: Flight) -> None:
        self.keys.difference_update(flight.changes)
        self.legs += 1
        flight.aboard.append(self)

    def resolve_if_over(self) -> None:
        """Answer, unless there is something that it waits for."""
        if not self.keys and not self.legs:
            self.later.resolve(self.answer[0])


@dataclass(eq=False)
class Flight:
    """Changes that are being committed."""

    changes: dict[Key, Change]
    aboard: list[Wish[Any]] = field(default_factory=list)
    """Who waits for it; more than once, if asked more than once."""


def units(changes: Sequence[Change], unsettled: Mapping[str, frozenset[str]]) -> list[list[Change]]:
    """Changes that belong together: leases with the exporters that are given to them, and with those who come after them.

    ``unsettled`` has all the exporters that the leases could have been given which are granted now.
    """
    found = {change.key: change for change in changes}
    ties = (
        (change.key, ("exporter", held.exporter))
        for change in changes
        for lease in (change.old, change.new)
        if isinstance(lease, Lease)
        for held in lease.devices
    )
    granted = [change.key for change in changes if change.kind == "lease" and change.name in unsettled]
    behind = (
        (one, other) for one, other in combinations(granted, 2) if not unsettled[one[1]].isdisjoint(unsettled[other[1]])
    )
    return [[found[key] for key in group] for group in _tied(found, chain(ties, behind))]


def groups(
    changes: Mapping[Key, Change], wishes: Iterable[Wish[Any]], unsettled: Mapping[str, frozenset[str]]
) -> list[list[Key]]:
    """Changes that are committed at the same time: those that belong together, and those that somebody has asked for at once."""
    ties = [(unit[0].key, change.key) for unit in units(list(changes.values()), unsettled) for change in unit[1:]]
    ties += [(wish.about, key) for wish in wishes if wish.about is not None for key in wish.keys]
    return _tied(changes, ties)


def _tied(keys: Iterable[Key], ties: Iterable[tuple[Key, Key]]) -> list[list[Key]]:
    """The keys in groups, such that no two groups are tied; what else the ties name is passed over."""
    groups = {key: [key] for key in keys}
    for one, other in ties:
        mine, theirs = groups.get(one), groups.get(other)
        if mine is not None and theirs is not None and mine is not theirs:
            mine += theirs
            for key in theirs:
                groups[key] = mine
    return list({id(group): group for group in groups.values()}.values())
