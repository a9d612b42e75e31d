"""Where a lab's records are kept: an interface. What is decided elsewhere becomes durable here, or not at all.

``sqlite`` is the embedded store. A store knows names and versions, never rules: those are the engine's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from jmp.errors import Conflict
from jmp.wire.records import Client, Exporter, Lease, Policy, Token

__all__ = ["KINDS", "Change", "Conflict", "Record", "Store"]

Record = Client | Exporter | Policy | Token | Lease

KINDS: Final[dict[str, type[Record]]] = {
    "client": Client,
    "exporter": Exporter,
    "policy": Policy,
    "token": Token,
    "lease": Lease,
}
"""What is kept, and what it is read as."""


@dataclass(frozen=True)
class Change:
    """One record is to be ``new`` where it was ``old``; None is for one that is not there."""

    kind: str
    name: str
    old: Record | None
    new: Record | None


class Store(ABC):
    """Records by kind and name. The store keeps a version of each by itself, so it notices if somebody else changed one.

    Every method raises :class:`~jmp.errors.LabError` if the store fails; from then on it always does, because what it holds
    is not known any more.
    """

    commits: int = 0
    """Transactions so far; for the metrics, like :attr:`commit_seconds`, the time that they took."""
    commit_seconds: float = 0.0

    @abstractmethod
    async def load(self) -> list[tuple[str, str, Record]]:
        """Kind, name and record of all there is. From here on the store takes changes of that."""

    @abstractmethod
    def watch(self) -> AsyncIterator[Change]:
        """What others change after :meth:`load`, without end; changes of these records are taken from then on."""

    @abstractmethod
    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all of ``changes`` (one for each record at most), or none. They are durable when this returns.

        Raises :class:`Conflict` if one of the records is not any more as this store knew it. Cancelled, they may or may not be
        made.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of it, after what is being committed."""
