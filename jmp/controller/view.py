"""What is durable of a lab, in memory: all that is told to anybody is read from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from jmp.controller.store import Change, Key, Record
from jmp.wire.records import Client, Exporter, Lease, Policy, Presence, Replica, State, Token


@dataclass
class View:
    """What is durable."""

    client: dict[str, Client] = field(default_factory=dict)
    exporter: dict[str, Exporter] = field(default_factory=dict)
    policy: dict[str, Policy] = field(default_factory=dict)
    token: dict[str, Token] = field(default_factory=dict)
    lease: dict[str, Lease] = field(default_factory=dict)
    active: dict[str, Lease] = field(default_factory=dict)
    """The leases that have not ended."""
    revoked: dict[str, Token] = field(default_factory=dict)
    presence: dict[str, Presence] = field(default_factory=dict)
    replica: dict[str, Replica] = field(default_factory=dict)
    holding: dict[str, str] = field(default_factory=dict)
    """Exporter → the lease that has it, from the grant until it is idle again."""

    def find(self, key: Key) -> Record | None:
        """A record, None if there is none."""
        found: Record | None = getattr(self, key[0]).get(key[1])
        return found

    def apply(self, change: Change) -> None:
        """One record is now ``change.new``, None if it is gone."""
        records = getattr(self, change.kind)
        if change.kind == "lease":
            for held in getattr(self.find(change.key), "devices", ()):
                if self.holding.get(held.exporter) == change.name:
                    del self.holding[held.exporter]
            if isinstance(change.new, Lease) and change.new.state not in (State.QUEUED, State.ENDED):
                self.holding |= {held.exporter: change.name for held in change.new.devices}
            self.active.pop(change.name, None)
            if isinstance(change.new, Lease) and change.new.state is not State.ENDED:
                self.active[change.name] = change.new
        elif isinstance(change.new, Token) and change.new.revoked is not None:
            self.revoked[change.name] = change.new
        elif change.kind == "token":
            self.revoked.pop(change.name, None)
        if change.new is None:
            records.pop(change.name, None)
        else:
            records[change.name] = change.new
