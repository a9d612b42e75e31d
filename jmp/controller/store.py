"""Where a lab's records are kept: an interface. What is decided elsewhere becomes durable here, or not at all.

``sqlite`` is the embedded store, for one controller; ``kubernetes`` is one that several share. A store knows names and versions,
never rules: those are the engine's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jmp.errors import Conflict, LabError
from jmp.wire.records import Client, Exporter, Lease, Policy, Presence, Replica, Token

__all__ = ["KINDS", "Change", "Conflict", "Full", "Key", "Record", "Rejected", "Stale", "Store", "Undone"]

Record = Client | Exporter | Policy | Token | Lease | Presence | Replica
Key = tuple[str, str]
"""Kind and name."""

KINDS: Final[dict[str, type[Record]]] = {
    "client": Client,
    "exporter": Exporter,
    "policy": Policy,
    "token": Token,
    "lease": Lease,
    "presence": Presence,
    "replica": Replica,
}
"""What is kept, and what it is read as. The last two only where several controllers share a store."""


@dataclass(frozen=True)
class Change:
    """One record is to be ``new`` where it was ``old``; None is for one that is not there."""

    kind: str
    name: str
    old: Record | None
    new: Record | None

    @property
    def key(self) -> Key:
        return self.kind, self.name


class Undone(LabError):
    """Changes were not made, or not all of them."""

    def __init__(self, message: str, now: Mapping[Key, Record | None], made: frozenset[Key] = frozenset()) -> None:
        super().__init__(message)
        self.now = now
        """All records of the commit as they are at present."""
        self.made = made
        """Those of them that were changed as they should be; what else there was to change was not."""


class Stale(Undone, Conflict):
    """Somebody else changed the same thing in the meantime."""


class Rejected(Undone):
    """The store does not take it: it lacks the right, or the record is none that it can keep. The same again fares no better."""


class Full(Rejected):
    """There is no room for it at present; the same again may be taken when there is."""


class Store(ABC):
    """Records by kind and name, each with the version that the store gave it.

    Every method raises :class:`~jmp.errors.LabError` if the store fails; from then on it always does, because what it holds
    is not known any more.
    """

    shared: bool = False
    """Others may use it at the same time, and change what is there."""
    commits: int = 0
    """Transactions so far; for the metrics, like :attr:`commit_seconds`, the time that they took."""
    commit_seconds: float = 0.0

    @abstractmethod
    async def load(self) -> list[tuple[str, str, Record]]:
        """Kind, name and record of all there is."""

    @abstractmethod
    async def watch(self, tell: Callable[[Change], None]) -> None:
        """Tell what others change after :meth:`load`, until cancelled; ``old`` is not to be relied on.

        What this one commits may be told, too, and late. The version tells: of two, the larger one is the later one.
        """

    async def look(self, key: Key) -> bool:
        """Whether there is such a record at this moment; one that a watch has not told yet it has told when this returns."""
        return False

    @abstractmethod
    async def commit(self, changes: Sequence[Change]) -> list[Record | None]:
        """Make ``changes`` (one for each record at most). They are durable when this returns the records as they are kept now.

        A shared store numbers new leases by itself, in the order in which they were made; their numbers never change.

        Raises :class:`Stale` if one of the records is not any more of the version that ``old`` has, and :class:`Rejected` if it
        can't be kept. Then nothing was changed; a store that keeps each record by itself may have made some of the changes, and
        tells which. A lease and the epochs of the exporters that it is given are changed together in any case, or not at all.
        Cancelled, they may or may not be made.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of it, after what is being committed."""
