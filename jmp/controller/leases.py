"""The lease engine: who gets which exporter, when, and for how long. Pure: events and the time go in, changed records come out.

Theory of operation. :class:`Engine` holds the lab's records and, beside them, what is not worth keeping: which exporters are
online and what they say they do, and which holders are there. Every method takes ``now`` (seconds since the epoch), decides
at once, and leaves what has changed in :meth:`Engine.take_changes`; that is its only output. Nobody is told to do anything:
what an exporter shall do follows from the records.

Scheduling is one pass over the queue, in its order (priority, then age): each request takes what it can of the exporters that
are free. One that wants several at once, or at a later time, and cannot have them yet, *reserves*: the exporters that it will
have, from when they will all be free, as far as that can be told. Those behind it may use a reserved exporter only if they
are sure to be gone by then. So nobody is delayed by somebody behind, and a large request is not starved by small ones.

An exporter is free when it is online, says that it is idle, and no lease holds it. An exporter's word about a lease that it
is over counts whenever it comes; a lease's time is kept here and, by its own clock, at the exporter.

Several controllers may share a lab's records: each has an engine, and tells it what the others have done
(:meth:`Engine.learn`) and who is connected to them (:meth:`Engine.seen`). Each goes through the whole queue and grants what its
own exporters are to have; what becomes due is done by whose it is (:attr:`Engine.is_mine`), and soon after by the others. That
only keeps them out of one another's way: two grants of one exporter are two changes of one record, of which one fails.
For the queue's order more is needed: whoever is given something, here or by another, is waited for (:meth:`Engine.settled`)
before anybody behind who might have had the same is given anything; but some who follow one another are granted at once, if all
that they get is connected here, and become durable one after the other (:attr:`Engine.unsettled`). One that does not give what
it is to is soon left nothing (:meth:`Engine.alive`).
"""

from __future__ import annotations

import heapq
import math
import secrets
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, repeat
from typing import Any, Final, Literal

from jmp.controller import policies
from jmp.controller.outlook import FREE, NEVER, SOON, Outlook, assign, earliest, soonest
from jmp.controller.policies import Access
from jmp.controller.store import Change
from jmp.driver.schema import did_you_mean
from jmp.errors import BadValue, JmpError, NotFound, Refused
from jmp.wire import selector
from jmp.wire.duration import text
from jmp.wire.records import Client, Exporter, Held, Lease, Observed, Phase, Policy, State, Want, changed

PREPARE_LIMIT: Final = 900.0
"""Seconds that exporters may take to get a lease ready: drivers and beforeLease hooks have shorter limits of their own."""
CLEANUP: Final = 60.0
"""Seconds that cleaning up after a lease is reckoned to take, in what is promised to others."""
OFFLINE_ENDING: Final = 60.0
"""Seconds after which a lease that ends is over for its holder though its exporter is away and cannot say so."""
HOLDER_GRACE: Final = 60.0
"""Seconds that the holder of a tied lease may be away."""
RETENTION: Final = 30 * 86400.0
"""Seconds that ended leases are kept,"""
HISTORY: Final = 20_000
"""and how many of them at most, and a hundredth more: all are in memory, at 2 KiB each. The audit log has the rest."""
DEFERENCE: Final = 2.0
"""Seconds that a controller leaves to another one to do what is that one's,"""
TOGETHER: Final = 8
"""Leases that are granted at once where others share the store: they become durable one after the other."""
LEFT: Final = 0.5
"""and to grant: a shorter time, as all wait for it who come next; two that grant the same do no harm."""

LEGAL: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.PREPARING, State.ENDED}),
    State.PREPARING: frozenset({State.READY, State.ENDING}),
    State.READY: frozenset({State.ENDING}),
    State.ENDING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}
ACTIVE: Final = frozenset({State.PREPARING, State.READY})

_LETTERS: Final = "abcdefghjkmnpqrstuvwxyz23456789"
_LENGTH: Final = 8
"""What the ids of leases are made of: nothing that is taken for something else."""

Kind = Literal["client", "exporter", "policy", "lease"]
_KIND: Final[dict[type, Kind]] = {Client: "client", Exporter: "exporter", Policy: "policy", Lease: "lease"}
_Place = tuple[int, int, str]
"""In the queue: minus priority, number, id."""


class Code(StrEnum):
    """Why an exporter cannot be had now."""

    AVAILABLE = "available"
    NOT_FOUND = "not-found"
    MISMATCH = "mismatch"
    NO_ACCESS = "no-access"
    DISABLED = "disabled"
    OFFLINE = "offline"
    IN_USE = "in-use"
    CLEANING = "cleaning"
    RESERVED = "reserved"


@dataclass(frozen=True)
class Reason:
    """What keeps one exporter from being leased now, if anything."""

    exporter: str
    code: Code
    text: str


@dataclass
class _Presence:
    """What is known of an exporter at the moment only."""

    online: bool = False
    since: float = 0.0
    observed: Observed | None = None
    owner: str = ""
    """Which other controller of this lab it is connected to, if any."""


@dataclass(frozen=True)
class _Bounds:
    """What a client may ask for with each of some exporters, and with one of them at least."""

    duration: float
    priority: int


@dataclass(frozen=True)
class _Reservation:
    start: float
    lease: str


class Engine:
    """A lab's leases. All methods raise :mod:`jmp.errors` for what is refused, and have changed nothing then."""

    def __init__(
        self,
        *,
        prepare_limit: float = PREPARE_LIMIT,
        offline_ending: float = OFFLINE_ENDING,
        holder_grace: float = HOLDER_GRACE,
        retention: float = RETENTION,
        history: int = HISTORY,
    ) -> None:
        self.clients: dict[str, Client] = {}
        self.exporters: dict[str, Exporter] = {}
        self.policies: dict[str, Policy] = {}
        self.leases: dict[str, Lease] = {}
        self._tables: Final[dict[str, dict[str, Any]]] = {
            "client": self.clients,
            "exporter": self.exporters,
            "policy": self.policies,
            "lease": self.leases,
        }
        self._prepare_limit = prepare_limit
        self._offline_ending = offline_ending
        self._holder_grace = holder_grace
        self._retention = retention
        self._history = history
        self._changes: dict[tuple[str, str], Change] = {}
        self._presence: dict[str, _Presence] = {}
        self._absent: dict[str, float] = {}
        """Tied leases whose holder is away, and since when; a new request's holder is still to come."""
        self._vanished: set[str] = set()
        """Those of them whose holder was there before: nothing is granted to somebody who would not notice."""
        self._held: dict[str, str] = {}
        """Exporter → the lease that has it."""
        self._promised: dict[str, set[str]] = {}
        """Queued lease → the exporters that another controller is giving to it at this moment."""
        self._left: dict[str, str] = {}
        """Queued leases that can have an exporter that is connected elsewhere, and that: it is granted there."""
        self._left_since: dict[str, tuple[str, float]] = {}
        """To which controller they are left, and since when;"""
        self._overdue: set[str] = set()
        """and those controllers that have let one wait for so long that nothing is left to them: they may be dead."""
        self.unsettled: dict[str, frozenset[str]] = {}
        """Leases that were granted here and are not durable yet, and all the exporters that they could have been given."""
        self._asked: set[str] = set()
        """Queued leases that were asked for here."""
        self.is_mine: Callable[[str], bool] | None = None
        """Whether it is for this controller to see that a lease goes on as time passes; None if there are no others."""
        self._ended: dict[str, None] = {}
        """The leases that have ended, the oldest first."""
        self._free: set[str] = set()
        self._queue: list[_Place] = []
        self._lines: dict[frozenset[str], list[_Place]] | None = None
        """The queue by what is wanted, so that only those need be looked at who may have what is free; None: to be made."""
        self._due: list[tuple[float, str]] = []
        """A heap of when something may be due for a lease; entries may be out of date."""
        self._number = 0
        self._access: dict[tuple[str, str], Access] = {}
        self._matches: dict[tuple[str, Want], frozenset[str]] = {}
        self._bounds: dict[tuple[str, frozenset[str]], _Bounds] = {}
        self._groups: dict[frozenset[str], frozenset[str]] = {}
        self._outlook = Outlook(self._rank)
        self._options: dict[str, list[frozenset[str]]] = {}
        """For each request in the queue what each of its wants may be given, free or not."""

    # ---- records

    def load(self, records: Iterable[Client | Exporter | Policy | Lease], now: float) -> None:
        """Begin with what was kept. Holders of tied leases are taken to be away from ``now`` on, exporters to be offline."""
        for record in sorted(records, key=lambda record: getattr(record, "ended", None) or 0.0):
            if isinstance(record, Lease):
                self.leases[record.id] = record
                self._index(None, record)
                self._number = max(self._number, record.number)
                if record.tied and record.state is not State.ENDED:
                    self._absent[record.id] = now
                    self._vanished.add(record.id)
                self._note_due(record, now)
            else:
                self._tables[_KIND[type(record)]][record.name] = record
        for name in self.exporters:
            self._presence[name] = _Presence(since=now)
            self._refresh(name)

    def put(self, record: Client | Exporter | Policy, now: float) -> None:
        """Keep a client, an exporter or a policy, new or changed. A client that is disabled loses its leases."""
        kind = _KIND[type(record)]
        old = self._tables[kind].get(record.name)
        self._set(kind, record.name, record)
        self._follow(kind, record.name, old, record, now)
        self._schedule(now)

    def drop(self, kind: Kind, name: str, now: float) -> None:
        """Remove a client, an exporter or a policy; leases of a client or of an exporter that is gone end."""
        if name not in self._tables[kind]:
            raise NotFound(f"there is no {kind} {name!r}{did_you_mean(name, self._tables[kind])}")
        old = self._tables[kind][name]
        self._set(kind, name, None)
        self._follow(kind, name, old, None, now)
        self._schedule(now)

    def learn(self, kind: Kind, name: str, record: Client | Exporter | Policy | Lease | None, now: float) -> None:
        """A record is this: somebody else has changed it, or a change of it was not made. What was decided of it is void.

        :meth:`reconsider` then.
        """
        table = self._tables[kind]
        old = table.pop(name, None)
        if record is not None:
            table[name] = record
        self._changes.pop((kind, name), None)
        self.unsettled.pop(name if kind == "lease" else "", None)
        if kind == "lease":
            assert record is None or isinstance(record, Lease)
            self._index(old, record)
            if record is None or record.state is State.ENDED:
                self._absent.pop(name, None)
                self._vanished.discard(name)
            elif record.tied and old is None:
                self._absent[name] = now
            if record is not None:
                self._number = max(self._number, record.number)
                if _is_new(record) and name in self._asked:
                    self._admit(record, now)  # it was made here, and what else was to be done with it was not
                else:
                    self._note_due(record, now)
        else:
            self._follow(kind, name, old, record, now)

    def number(self, id: str, number: int) -> None:
        """A request's place in the order of all, which its store has given it."""
        lease = self.leases.get(id)
        self._number = max(self._number, number)
        if lease is not None and lease.number != number:
            self.leases[id] = changed(lease, number=number)
            self._index(lease, self.leases[id])

    def settled(self, id: str, now: float) -> None:
        """A lease is durable as it is: whoever is behind it may be given something now."""
        if self.unsettled.pop(id, None) is not None:
            self._schedule(now)

    def alive(self, controller: str, now: float) -> None:
        """Another controller gives a sign of life: it can be left something to grant."""
        if controller in self._overdue:
            self._overdue.discard(controller)
            self._schedule(now)

    def reconsider(self, now: float) -> None:
        """Decide again what follows from what the exporters have said, and who gets what is free."""
        for name, presence in list(self._presence.items()):
            if not presence.owner and (said := presence.observed) is not None:
                self._consider(name, said, now)
        self.tick(now)

    def _follow(self, kind: Kind, name: str, old: Any, new: Any, now: float) -> None:
        """What follows from a change of a client, an exporter or a policy."""
        if kind == "policy" or old is None or new is None or old.labels != new.labels:
            self._forget_matches()
        if kind == "exporter" and new is not None:
            self._presence.setdefault(name, _Presence(since=now))
            self._refresh(name)
        elif kind == "exporter":
            self._presence.pop(name, None)
            self._free.discard(name)
            why = f"exporter {name} was deleted"
            if (id := self._held.get(name)) is not None:
                self.end(id, why, now)
                self._device(self.leases[id], name, Phase.IDLE, now)
            for *_, id in list(self._queue):
                if any(want.exporter == name for want in self.leases[id].wants):
                    self.end(id, why, now)
        elif kind == "client" and (new is None or new.disabled is not None):
            why = "deleted" if new is None else f"disabled: {new.disabled}"
            self._end_those_of(name, f"client {name} was {why}", now)

    def take_changes(self) -> list[Change]:
        """What has changed since this was called last: one change for each record, from what it was to what it is."""
        changes, self._changes = self._changes, {}
        return [change for change in changes.values() if change.old != change.new]

    # ---- what clients and admins ask for

    def request(
        self,
        client: str,
        wants: Sequence[Want],
        duration: float,
        now: float,
        *,
        begin: float | None = None,
        wait: float | None = None,
        priority: int | None = None,
        tied: bool = False,
        idle_limit: float | None = None,
        allow_disabled: bool = False,
        tags: tuple[str, ...] = (),
        context: dict[str, str] | None = None,
    ) -> Lease:
        """Queue a request, or grant it at once. Refuses what could never be granted, as things are configured now.

        ``wait`` is how many seconds it may be queued (0: now or not at all), counted from ``begin`` if that is given.
        """
        if wait is not None and not 0 <= wait < math.inf:
            raise BadValue("a request waits for 0 seconds or more")
        if begin is not None and not math.isfinite(begin):
            raise BadValue("a lease begins at a certain time, or at once")
        if not all(tags):
            raise BadValue("a tag has one character at least")
        highest = self._check_request(client, wants, duration, priority, idle_limit, allow_disabled)
        self._number += 1
        lease = Lease(
            id=self._new_id(),
            client=client,
            wants=tuple(wants),
            duration=float(duration),
            created=now,
            number=self._number,
            priority=highest if priority is None else priority,
            begin=begin,
            give_up=None if wait is None else max(begin or now, now) + wait,
            tied=tied,
            idle_limit=idle_limit,
            allow_disabled=allow_disabled,
            tags=tags,
            context=dict(context or {}),
        )
        if tied:
            self._absent[lease.id] = now
        self._asked.add(lease.id)
        self._set("lease", lease.id, lease)
        self._note_due(lease, now)
        self.tick(now)
        return self.leases[lease.id]

    def _check_request(
        self,
        client: str,
        wants: Sequence[Want],
        duration: float,
        priority: int | None,
        idle_limit: float | None,
        allow_disabled: bool,
    ) -> int:
        """Raise what makes a request one that can never be granted; returns the highest priority that it may have."""
        self._check_client(client)
        for name, value in (("duration", duration), ("idle limit", idle_limit)):
            if value is not None and not 0 < value < math.inf:
                raise BadValue(f"a lease's {name} is more than 0 seconds")
        if not wants:
            raise BadValue("a lease is for one device at least: give a selector or an exporter's name")
        candidates = [self._candidates(client, want, duration, allow_disabled) for want in wants]
        if len(wants) > 1 and assign([sorted(names) for names in candidates]) is None:
            raise NotFound(f"there are not {len(wants)} different exporters for {_shown(wants)}")
        highest = self._highest(client, candidates)
        if priority is not None and priority > highest:
            raise Refused(f"priority {priority} is more than the policies let {client} ask for: {highest}")
        return highest

    def _admit(self, lease: Lease, now: float) -> None:
        """Queue a request that somebody has put into the store, or end it with what makes that impossible."""
        try:
            self._check_request(
                lease.client, lease.wants, lease.duration, lease.priority, lease.idle_limit, lease.allow_disabled
            )
        except JmpError as error:
            self._move(lease, State.ENDED, now, ended=now, ends=now, reason=error.message)
            return
        if lease.tied:
            self._absent[lease.id] = now
        lease = changed(lease, number=max(lease.version, 1))
        self._number = max(self._number, lease.number)
        self._set("lease", lease.id, lease)
        self._note_due(lease, now)

    def release(self, id: str, by: str | None, reason: str, now: float) -> None:
        """End a lease for somebody: its client, one who may manage all its exporters, or None for an admin."""
        self._check_right(self._lease(id), by, "release")
        self.end(id, reason, now)

    def end(self, id: str, reason: str, now: float) -> None:
        """End a lease. One that ends already goes on ending."""
        lease = self._lease(id)
        if lease.state is State.QUEUED:
            self._move(lease, State.ENDED, now, ended=now, ends=now, reason=reason)
        elif lease.state in ACTIVE:
            self._move(lease, State.ENDING, now, ends=now, reason=reason)
        self._schedule(now)

    def extend(self, id: str, seconds: float, by: str | None, now: float) -> None:
        """Give a lease more time, within what the policies allow and what was promised to requests that reserve."""
        lease = self._lease(id)
        self._check_right(lease, by, "extend")
        if lease.state not in ACTIVE and lease.state is not State.QUEUED:
            raise Refused(f"lease {id} has ended: {lease.reason}")
        if not 0 < seconds < math.inf:
            raise BadValue("a lease is extended by more than 0 seconds")
        duration = lease.duration + seconds
        for held in lease.devices:
            longest = self.access(lease.client, held.exporter).longest
            if by is not None and longest is not None and duration > longest:
                raise Refused(
                    f"{lease.client} may lease {held.exporter} for {text(longest)} at most, extensions included"
                )
        ends = None if lease.ends is None else lease.ends + seconds
        reserved = self._reservations(now)
        for held in lease.devices:
            promised = reserved.get(held.exporter)
            gone = (ends if ends is not None else now + self._prepare_limit + duration) + CLEANUP
            if promised is not None and promised.lease != id and gone > promised.start:
                raise Refused(f"{held.exporter} is promised to another request in {text(promised.start - now)}")
        if lease.state is State.QUEUED:
            for want in lease.wants:
                self._candidates(lease.client, want, duration, lease.allow_disabled)
        lease = changed(lease, duration=duration, ends=ends)
        self._set("lease", id, lease)
        self._note_due(lease, now)

    def keep(self, id: str, by: str | None) -> None:
        """Let a lease that is tied to its holder go on without one, until it ends for another reason."""
        lease = self._lease(id)
        self._check_right(lease, by, "keep")
        if lease.state not in ACTIVE and lease.state is not State.QUEUED:
            raise Refused(f"lease {id} has ended: {lease.reason}")
        self._absent.pop(id, None)
        self._vanished.discard(id)
        self._set("lease", id, changed(lease, tied=False))

    def transfer(self, id: str, to: str, by: str | None, now: float) -> None:
        """Hand a lease over. Its exporters' epochs rise: whoever used them until now is refused from this moment on."""
        lease = self._lease(id)
        self._check_right(lease, by, "transfer")
        if lease.state not in ACTIVE and lease.state is not State.QUEUED:
            raise Refused(f"lease {id} has ended: {lease.reason}")
        self._check_client(to)
        for held in lease.devices:
            access = self.access(to, held.exporter)
            if not access.lease:
                raise Refused(f"{to} may not lease {held.exporter}")
            if access.longest is not None and lease.duration > access.longest:
                raise Refused(f"{to} may lease {held.exporter} for {text(access.longest)} at most")
        priority = lease.priority
        if lease.state is State.QUEUED:
            candidates = [self._candidates(to, want, lease.duration, lease.allow_disabled) for want in lease.wants]
            priority = min(priority, self._highest(to, candidates))
        devices = tuple(changed(held, epoch=self._raise_epoch(held.exporter)) for held in lease.devices)
        if lease.tied:
            self._absent[id] = now
        lease = changed(lease, client=to, devices=devices, priority=priority)
        self._set("lease", id, lease)
        self._note_due(lease, now)
        self._schedule(now)

    # ---- what becomes known

    def clock_set(self, step: float, now: float) -> None:
        """The clock was set, to ``now``: what has begun takes neither more nor less time for it."""
        for lease in list(self.leases.values()):
            if lease.state in ACTIVE:
                times = {name: getattr(lease, name) for name in ("created", "granted", "ready", "ends")}
            elif lease.state is State.QUEUED:
                times = {"created": lease.created, "give_up": lease.give_up}
            else:
                continue
            self._set("lease", lease.id, changed(lease, **{k: v + step for k, v in times.items() if v is not None}))
            self._note_due(self.leases[lease.id], now)
        for id in self._absent:
            self._absent[id] += step
        for presence in self._presence.values():
            presence.since += step

    def online(self, exporter: str, now: float) -> None:
        """An exporter has connected; what it does is not known before it is :meth:`observed`."""
        self._presence[exporter] = _Presence(online=True, since=now)
        self._refresh(exporter)

    def offline(self, exporter: str, now: float) -> None:
        """An exporter's connection has ended. Its lease goes on: its holder may well be using it."""
        self._presence[exporter] = _Presence(since=now)
        self._refresh(exporter)
        if (lease := self.leases.get(self._held.get(exporter, ""))) is not None:
            self._note_due(lease, now)

    def observed(self, exporter: str, lease: str | None, epoch: int, phase: Phase, reason: str, now: float) -> None:
        """What an exporter says it is doing. Said twice, or late, it changes nothing."""
        if exporter not in self.exporters:
            return
        presence = self._presence.setdefault(exporter, _Presence(online=True, since=now))
        presence.observed = Observed(epoch=epoch, lease=lease, phase=phase, reason=reason)
        self._consider(exporter, presence.observed, now)
        self._schedule(now)

    def seen(self, exporter: str, observed: Observed | None, now: float, owner: str = "") -> None:
        """An exporter is connected to another controller, which deals with it and knows this; or to none, if that is None."""
        before = self._presence.get(exporter)
        online = observed is not None
        since = before.since if before is not None and before.online == online else now
        self._presence[exporter] = _Presence(online=online, since=since, observed=observed, owner=owner)
        self._refresh(exporter)
        if (held := self.leases.get(self._held.get(exporter, ""))) is not None:
            self._note_due(held, now)

    def _consider(self, exporter: str, said: Observed, now: float) -> None:
        """What follows from what an exporter says it is doing."""
        lease, epoch, phase, reason = said.lease, said.epoch, said.phase, said.reason
        if exporter not in self.exporters:
            return
        present = self.leases.get(self._held.get(exporter, ""))
        if epoch > self.exporters[exporter].epoch:
            # It has heard of a grant that this lab has forgotten (its store was restored from a copy): never again below that.
            self._set("exporter", exporter, changed(self.exporters[exporter], epoch=epoch))
            if present is not None and present.state in ACTIVE:
                self.end(present.id, f"{exporter} knows of a newer grant: was the lab's store restored?", now)
                present = self.leases[present.id]
        if present is not None:
            held = next(held for held in present.devices if held.exporter == exporter)
            if lease == present.id:
                self._heard(present, held, phase, reason, now)
            elif phase is Phase.IDLE and present.state is State.ENDING and epoch >= held.epoch:
                self._device(present, exporter, Phase.IDLE, now)  # it never began
        self._refresh(exporter)

    def holder(self, id: str, present: bool, now: float) -> None:
        """The holder of a lease is there, or is not."""
        lease = self.leases.get(id)
        if lease is None or not lease.tied or lease.state is State.ENDED:
            return
        if present:
            self._absent.pop(id, None)
            self._vanished.discard(id)
            self._schedule(now)
        elif id not in self._absent:
            self._absent[id] = now
            self._vanished.add(id)
            self._note_due(lease, now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._schedule(now)  # before any request gives up: one may begin at the very moment at which it would
        if self._due and self._due[0][0] <= now:
            while self._due and self._due[0][0] <= now:
                _, id = heapq.heappop(self._due)
                if (lease := self.leases.get(id)) is not None:
                    self._pass_time(lease, now)
            self._schedule(now)
        if len(self._ended) > self._history + self._history // 100:  # many at once: removing takes a store long
            while len(self._ended) > self._history and self._may_forget(oldest := next(iter(self._ended))):
                self._set("lease", oldest, None)

    @property
    def waiting(self) -> int:
        """How many leases are queued."""
        return len(self._queue)

    def deadline(self) -> float | None:
        """When :meth:`tick` may have something to do next."""
        return self._due[0][0] if self._due else None

    # ---- what can be told

    def access(self, client: str, exporter: str) -> Access:
        """What a client may do with an exporter."""
        key = client, exporter
        if key not in self._access:
            known = client in self.clients and exporter in self.exporters
            self._access[key] = (
                policies.access(self.policies.values(), self.clients[client], self.exporters[exporter])
                if known
                else policies.NONE
            )
        return self._access[key]

    def standing(self, now: float) -> dict[str, tuple[int, float | None]]:
        """For each queued lease its position among those who want the same, from 1, and when it will probably start.

        The latter is reckoned from the ends of those who run and the durations of those ahead; None if nobody can tell.
        """
        available = {name: self._available(name, now) for name in self.exporters}
        heaps: dict[tuple[frozenset[str], str | None], list[tuple[float, str]]] = {}
        groups: dict[frozenset[str], int] = {}
        meeting: list[list[int]] = []
        """For each group of exporters those, itself among them, that have one in common with it."""
        ahead: list[int] = []
        """For each group the requests so far that want one of it."""
        wanted: list[int] = []
        """For each group the requests so far that want just this one."""
        standing: dict[str, tuple[int, float | None]] = {}
        for *_, id in self._queue:
            lease = self.leases[id]
            options = self._options_of(lease)
            everything = self._everything(lease)
            if everything not in groups:
                place = groups[everything] = len(groups)
                near = [other for group, other in groups.items() if other == place or not group.isdisjoint(everything)]
                for other in near[:-1]:
                    meeting[other].append(place)
                meeting.append(near)
                wanted.append(0)
                ahead.append(sum(wanted[other] for other in near))
            place = groups[everything]
            wanted[place] += 1
            for other in meeting[place]:
                ahead[other] += 1
            position = ahead[place]
            start, chosen = self._foresee(lease, options, available, heaps, now)
            for name in chosen:
                available[name] = start + lease.duration + CLEANUP
            standing[id] = position, None if start == math.inf else start
        return standing

    def why(self, client: str, wants: Sequence[Want], now: float, *, allow_disabled: bool = False) -> list[Reason]:
        """For each exporter that the client may know of, and each name it asks for, what keeps it from being leased now."""
        reserved = self._reservations(now)
        reasons = [
            Reason(want.exporter, Code.NOT_FOUND, "there is no such exporter")
            for want in wants
            if want.exporter is not None and want.exporter not in self.exporters
        ]
        for name, exporter in sorted(self.exporters.items()):
            access = self.access(client, name)
            if access.lease or access.see or access.manage or any(want.exporter == name for want in wants):
                code, said = self._why(client, exporter, wants, allow_disabled, reserved, now)
                reasons.append(Reason(name, code, said))
        return reasons

    # ---- rights

    def _check_client(self, name: str) -> None:
        client = self.clients.get(name)
        if client is None:
            raise NotFound(f"there is no client {name!r}{did_you_mean(name, self.clients)}")
        if client.disabled is not None:
            raise Refused(f"client {name} is disabled: {client.disabled}")

    def _check_right(self, lease: Lease, by: str | None, action: str) -> None:
        if by is None or by == lease.client:
            return
        if not lease.devices or not all(self.access(by, held.exporter).manage for held in lease.devices):
            raise Refused(f"{by} may not {action} lease {lease.id}, which is {lease.client}'s")

    def _candidates(self, client: str, want: Want, duration: float, allow_disabled: bool) -> frozenset[str]:
        """What could be had for ``want``, busy or not; raises what makes that nothing."""
        if want.exporter is not None and want.exporter not in self.exporters:
            raise NotFound(f"there is no exporter {want.exporter!r}{did_you_mean(want.exporter, self.exporters)}")
        if (found := self._within(self._matching(client, want), client, duration)) and not allow_disabled:
            return found
        chosen = selector.parse(want.selector)
        named = self.exporters if want.exporter is None else {want.exporter: self.exporters[want.exporter]}
        fitting = [name for name, exporter in named.items() if chosen.matches(exporter.labels)]
        if not fitting:
            if not named:
                raise NotFound("this lab has no exporters yet")
            near = min(named.values(), key=lambda exporter: len(chosen.mismatch(exporter.labels)))
            raise NotFound(f"no exporter is {chosen}; {near.name} is {chosen.mismatch(near.labels)}")
        allowed = [name for name in fitting if self.access(client, name).lease]
        if not allowed:
            what = fitting[0] if len(fitting) == 1 else f"any of the {len(fitting)} exporters that match"
            raise Refused(f"no policy lets {client} lease {what}")
        if allow_disabled and not any(self.access(client, name).manage for name in allowed):
            raise Refused(f"only one who manages an exporter may lease it in maintenance, and {client} does not")
        if not found:
            longest = max(self.access(client, name).longest or 0.0 for name in allowed)
            raise Refused(f"{client} may lease this for {text(longest)} at most, not for {text(duration)}")
        return found

    def _highest(self, client: str, candidates: Sequence[frozenset[str]]) -> int:
        """The highest priority that may be asked for all of them at once."""
        return min(self._bounds_of(client, names).priority for names in candidates)

    def _within(self, names: frozenset[str], client: str, duration: float) -> frozenset[str]:
        """Those that may be leased for so long."""
        if duration <= self._bounds_of(client, names).duration:
            return names
        limits = {name: self.access(client, name).longest for name in names}
        return self._shared(name for name, limit in limits.items() if limit is None or limit >= duration)

    def _bounds_of(self, client: str, names: frozenset[str]) -> _Bounds:
        key = client, names
        if key not in self._bounds:
            found = [self.access(client, name) for name in names]
            self._bounds[key] = _Bounds(
                duration=min((access.longest for access in found if access.longest is not None), default=math.inf),
                priority=max((access.priority for access in found), default=0),
            )
        return self._bounds[key]

    # ---- scheduling

    def _matching(self, client: str, want: Want) -> frozenset[str]:
        """The exporters that a client may be given for ``want`` as things are configured now, free or not."""
        key = client, want
        if key not in self._matches:
            chosen = selector.parse(want.selector)
            names = self.exporters if want.exporter is None else {want.exporter} & self.exporters.keys()
            self._matches[key] = self._shared(
                name
                for name in names
                if chosen.matches(self.exporters[name].labels) and self.access(client, name).lease
            )
        return self._matches[key]

    def _shared(self, names: Iterable[str]) -> frozenset[str]:
        """One object for equal sets: what many requests are compared by is compared quickly."""
        group = frozenset(names)
        return self._groups.setdefault(group, group)

    def _options_of(self, lease: Lease) -> list[frozenset[str]]:
        """For each want of a queued request the exporters that it may be given, free or not."""
        if lease.id not in self._options:
            self._options[lease.id] = [
                self._within(self._matching(lease.client, want), lease.client, lease.duration) for want in lease.wants
            ]
        return self._options[lease.id]

    def _everything(self, lease: Lease) -> frozenset[str]:
        options = self._options_of(lease)
        return options[0] if len(options) == 1 else self._shared(name for names in options for name in names)

    def _waiting_for(self, names: set[str]) -> Iterator[tuple[_Place, frozenset[str]]]:
        """Those in the queue now, in its order, who may have one of ``names``; and all that each of them may have.

        One after the other is looked for, as what is free is soon given away.
        """
        if self._lines is None:
            self._lines = {}
            for place in self._queue:
                self._lines.setdefault(self._everything(self.leases[place[2]]), []).append(place)
        return heapq.merge(
            *(
                zip(line.copy(), repeat(group))
                for group, line in self._lines.items()
                if line and not group.isdisjoint(names)
            )
        )

    def _usable(self, lease: Lease, name: str) -> bool:
        """Whether maintenance does not keep this request from an exporter."""
        return self.exporters[name].disabled is None or (
            lease.allow_disabled and self.access(lease.client, name).manage
        )

    def _schedule(self, now: float) -> None:
        """Give what is free to those who wait for it."""
        self._left.clear()
        if not self._free or not self._queue:
            return
        reserved: dict[str, _Reservation] = {}
        free = set(self._free)  # a small one: the other has grown with the lab, and is slow to go through
        if self.is_mine is not None:
            free = {name for name in free if self._presence[name].owner not in self._overdue}
            free.difference_update(*self.unsettled.values())
        granted = 0
        in_vain: dict[frozenset[str], float] = {}
        """The shortest time for which one was asked for of these in vain: what is free becomes less, what is reserved more."""
        # Nobody gets what those would reserve who cannot have any of what is free.
        for (*_, id), group in self._waiting_for(free):
            if not free:
                return
            lease = self.leases[id]
            later = lease.begin is not None and lease.begin > now
            alone = len(lease.wants) == 1 and not later and not lease.allow_disabled
            if alone and lease.duration >= in_vain.get(group, math.inf):
                continue
            if id in self._vanished or (lease.give_up is not None and lease.give_up + self._deference(id) < now):
                continue
            options = self._options_of(lease)
            locked = self._locked_for(id)
            if locked is not None and not self._leave(lease, locked, now):
                free -= self._everything(lease)
                continue
            taken = None if later else self._take(lease, options, free, reserved, now)
            while taken is not None and self._leave(lease, min(taken), now):
                free = {name for name in free if self._presence[name].owner not in self._overdue}
                taken = self._take(lease, options, free, reserved, now)
            if id not in self._left:
                self._left_since.pop(id, None)
            if taken is not None and self.is_mine is None:
                self._grant(lease, taken, now)
                free.difference_update(taken)
            elif taken is not None:
                everything = self._everything(lease)
                rest = free & everything
                if id not in self._left:
                    self._grant(lease, taken, now)
                    self.unsettled[id] = everything
                    granted += 1
                    if granted < TOGETHER:  # the next ones are committed with it, in the queue's order
                        rest = {name for name in rest if name in taken or self._presence[name].owner}
                # Until it is known to have something, nobody behind it gets what it might have had.
                free -= rest
            elif later or len(options) > 1:
                self._reserve(lease, options, reserved, now)
            else:
                in_vain[group] = min(lease.duration, in_vain.get(group, math.inf))

    def _locked_for(self, id: str) -> str | None:
        """An exporter that another controller is giving to a lease at this moment."""
        for name in self._promised.get(id, ()):
            if name in self.exporters and self.exporters[name].lease == id:
                return name
        return None

    def _leave(self, lease: Lease, exporter: str, now: float) -> bool:
        """Leave an exporter that is connected elsewhere, or locked, to another one; whether that takes too long already."""
        owner = self._presence[exporter].owner
        if not owner and self.exporters[exporter].lease != lease.id:
            return False
        to, since = self._left_since.get(lease.id, (None, now))
        if to != owner:
            self._left_since[lease.id] = owner, now
            heapq.heappush(self._due, (now + LEFT, lease.id))
        elif since + LEFT <= now:
            if owner:
                self._overdue.add(owner)
            return True
        self._left[lease.id] = exporter
        return False

    def _take(
        self,
        lease: Lease,
        options: Sequence[frozenset[str]],
        free: set[str],
        reserved: dict[str, _Reservation],
        now: float,
    ) -> list[str] | None:
        gone = now + self._prepare_limit + lease.duration + CLEANUP
        choices = []
        for names in options:
            fitting = [
                (self.exporters[name].used, name)
                for name in free & names
                if (
                    self.exporters[name].disabled is None or self._usable(lease, name)
                )  # most are, and a call takes longer
                and (name not in reserved or gone <= reserved[name].start)
            ]
            if not fitting:
                return None
            if len(options) == 1:
                return [min(fitting)[1]]
            choices.append([name for _, name in sorted(fitting)])
        return assign(choices)

    def _reserve(
        self, lease: Lease, options: Sequence[frozenset[str]], reserved: dict[str, _Reservation], now: float
    ) -> None:
        """Promise to a request that cannot start yet what it will have, if it can be told when."""
        first = [
            [
                (self._available(name, now), name)
                for name in islice(
                    (name for name in self._outlook.first(names) if name not in reserved and self._usable(lease, name)),
                    len(options),
                )
            ]
            for names in options
        ]
        start, chosen = earliest(first, max(now, lease.begin or now))
        for name in chosen:
            reserved[name] = _Reservation(start, lease.id)

    def _reservations(self, now: float) -> dict[str, _Reservation]:
        reserved: dict[str, _Reservation] = {}
        for *_, id in self._queue:
            lease = self.leases[id]
            if len(lease.wants) > 1 or (lease.begin is not None and lease.begin > now):
                self._reserve(lease, self._options_of(lease), reserved, now)
        return reserved

    def _available(self, name: str, now: float) -> float:
        """When an exporter will be free, as far as that can be told: ``inf`` if it cannot."""
        rank = self._rank(name)
        return rank if rank == NEVER else now if rank == FREE else max(rank, now) + CLEANUP

    def _rank(self, name: str) -> float:
        """When an exporter's present use ends, or that there is none: what its place in the outlook is by."""
        if name in self._free:
            return FREE
        presence = self._presence.get(name)
        if presence is None or not presence.online:
            return NEVER
        lease = self.leases.get(self._held.get(name, ""))
        if lease is None or lease.state is State.ENDING:
            return SOON
        return lease.ends if lease.ends is not None else (lease.granted or 0.0) + lease.duration

    def _foresee(
        self,
        lease: Lease,
        options: Sequence[frozenset[str]],
        available: dict[str, float],
        heaps: dict[tuple[frozenset[str], str | None], list[tuple[float, str]]],
        now: float,
    ) -> tuple[float, list[str]]:
        floor = max(now, lease.begin or now)
        if len(options) > 1:
            usable = {name: available[name] for names in options for name in names if self._usable(lease, name)}
            return earliest([soonest(usable, names, len(options)) for names in options], floor)
        key = options[0], lease.client if lease.allow_disabled else None
        if key not in heaps:
            heaps[key] = [(available[name], name) for name in options[0] if self._usable(lease, name)]
            heapq.heapify(heaps[key])
        heap = heaps[key]
        while heap and heap[0][0] != available[heap[0][1]]:  # it was given to somebody of another group meanwhile
            heapq.heapreplace(heap, (available[heap[0][1]], heap[0][1]))
        if not heap or heap[0][0] == math.inf:
            return math.inf, []
        return max(heap[0][0], floor), [heap[0][1]]

    def _grant(self, lease: Lease, names: Sequence[str], now: float) -> None:
        devices = []
        for name in names:
            devices.append(Held(exporter=name, epoch=self._raise_epoch(name, used=now, lease=lease.id)))
        self._move(lease, State.PREPARING, now, devices=tuple(devices), granted=now)

    def _raise_epoch(self, name: str, **values: Any) -> int:
        exporter = self.exporters[name]
        self._set("exporter", name, changed(exporter, epoch=exporter.epoch + 1, **values))
        return exporter.epoch + 1

    # ---- how leases go on

    def _heard(self, lease: Lease, held: Held, phase: Phase, reason: str, now: float) -> None:
        """An exporter has said something about the lease that it has."""
        if phase in (Phase.ENDING, Phase.IDLE) and lease.state in ACTIVE:
            self.end(lease.id, reason or f"exporter {held.exporter} ended it", now)
            lease = self.leases[lease.id]
        if phase is Phase.IDLE or (phase is Phase.READY and held.phase is Phase.PREPARING):
            self._device(lease, held.exporter, phase, now)

    def _device(self, lease: Lease, exporter: str, phase: Phase, now: float) -> None:
        devices = tuple(changed(held, phase=phase) if held.exporter == exporter else held for held in lease.devices)
        if lease.state is State.PREPARING and all(held.phase is Phase.READY for held in devices):
            self._move(lease, State.READY, now, devices=devices, ready=now, ends=now + lease.duration)
        elif lease.state is State.ENDING and all(held.phase is Phase.IDLE for held in devices):
            self._move(lease, State.ENDED, now, devices=devices, ended=now)
        else:
            lease = changed(lease, devices=devices)
            self._set("lease", lease.id, lease)
            self._note_due(lease, now)  # those that are left may all be out of reach

    def _deference(self, id: str) -> float:
        """Seconds for which others may have to do first what is due."""
        if self.is_mine is None:
            return 0.0
        lease = self.leases.get(id)
        if id in self._left or self._is_behind(lease):
            mine = False
        elif lease is not None and lease.state is State.QUEUED and not _is_new(lease):
            mine = id in self._asked  # whoever waits for it knows best how long
        else:
            mine = self.is_mine(id)
        return 0.0 if mine else DEFERENCE

    def _is_behind(self, lease: Lease | None) -> bool:
        """Whether somebody is being given one of what it may have at this moment, so that it is not clear what will be left."""
        if lease is None or lease.state is not State.QUEUED or _is_new(lease) or not (self._left or self.unsettled):
            return False
        wanted = self._everything(lease)
        given = (self._everything(self.leases[id]) for id in self._left if id in self.leases)
        return any(not names.isdisjoint(wanted) for names in (*self.unsettled.values(), *given))

    def _may_forget(self, id: str) -> bool:
        """Whether it is for this controller to forget a lease that has ended."""
        return self.is_mine is None or self.is_mine(id)

    def _pass_time(self, lease: Lease, now: float) -> None:
        away = self._absent.get(lease.id)
        late = self._deference(lease.id)
        if _is_new(lease):
            if _admission(lease) + late <= now:
                self._admit(lease, now)
            else:
                self._note_due(lease, now)
            return
        if lease.state is State.ENDED:
            if lease.ended is not None and lease.ended + self._retention + late <= now:
                self._set("lease", lease.id, None)
                return
        elif lease.state is State.ENDING:
            if self._is_out_of_reach(lease) + late <= now:
                self._move(lease, State.ENDED, now, ended=now)
        elif away is not None and away + self._holder_grace + late <= now:
            self.end(lease.id, "its holder was gone", now)
        elif lease.state is State.QUEUED and lease.give_up is not None and lease.give_up + late <= now:
            waited = max(lease.give_up - lease.created, 0.0)
            self.end(lease.id, f"nothing was free {f'within {text(waited)}' if waited else 'at once'}", now)
        elif lease.state is State.PREPARING and (lease.granted or now) + self._prepare_limit + late <= now:
            self.end(lease.id, f"it was not ready within {text(self._prepare_limit)}", now)
        elif lease.state is State.READY and lease.ends is not None and lease.ends + late <= now:
            self.end(lease.id, "its time was over", now)
        if (kept := self.leases.get(lease.id)) is not None:
            self._note_due(kept, now)

    def _is_out_of_reach(self, lease: Lease) -> float:
        """When a lease that ends is to be taken for over though not all of its exporters have said so."""
        left = [held.exporter for held in lease.devices if held.phase is not Phase.IDLE]
        presences = [self._presence[name] for name in left if name in self._presence]
        if any(presence.online for presence in presences):
            return math.inf
        return max([lease.ends or 0.0, *(presence.since for presence in presences)]) + self._offline_ending

    def _note_due(self, lease: Lease, now: float) -> None:
        """Have :meth:`_pass_time` look at a lease when something may be due."""
        times = []
        if _is_new(lease):
            times.append(_admission(lease))
        elif lease.state is State.ENDED:
            times.append((lease.ended or now) + self._retention)
        elif lease.state is State.ENDING:
            times.append(self._is_out_of_reach(lease))
        else:
            if lease.id in self._absent:
                times.append(self._absent[lease.id] + self._holder_grace)
            if lease.state is State.QUEUED:
                times += [
                    time
                    for time in (lease.begin, lease.give_up)
                    if time is not None and (time > now or time == lease.give_up)
                ]
            elif lease.state is State.PREPARING:
                times.append((lease.granted or now) + self._prepare_limit)
            elif lease.ends is not None:
                times.append(lease.ends)
        if times and (time := min(times)) < math.inf:
            heapq.heappush(self._due, (time + self._deference(lease.id), lease.id))

    def _end_those_of(self, client: str, reason: str, now: float) -> None:
        for lease in [lease for lease in self.leases.values() if lease.client == client]:
            if lease.state is State.QUEUED or lease.state in ACTIVE:
                self.end(lease.id, reason, now)

    # ---- why

    def _why(
        self,
        client: str,
        exporter: Exporter,
        wants: Sequence[Want],
        allow_disabled: bool,
        reserved: dict[str, _Reservation],
        now: float,
    ) -> tuple[Code, str]:
        name = exporter.name
        fitting = [want for want in wants if want.exporter in (None, name)]
        if not any(selector.parse(want.selector).matches(exporter.labels) for want in fitting):
            other = f"it is not {' or '.join(str(want.exporter) for want in wants)}"
            return Code.MISMATCH, selector.parse(fitting[0].selector).mismatch(exporter.labels) if fitting else other
        access = self.access(client, name)
        if not access.lease:
            return Code.NO_ACCESS, f"no policy lets {client} lease it"
        if exporter.disabled is not None and not (allow_disabled and access.manage):
            return Code.DISABLED, f"it is in maintenance: {exporter.disabled}"
        presence = self._presence[name]
        lease = self.leases.get(self._held.get(name, ""))
        if lease is not None and lease.state in ACTIVE:
            until = "" if lease.ends is None else f" for {text(lease.ends - now)} more at most"
            who = lease.client if access.see or access.manage or lease.client == client else "somebody"
            return Code.IN_USE, f"{who} has it{until}"
        if not presence.online:
            return Code.OFFLINE, f"it has been offline for {text(now - presence.since)}"
        if name not in self._free:
            return Code.CLEANING, "it is being cleaned up after a lease"
        if name in reserved:
            return Code.RESERVED, f"a request ahead will have it in {text(reserved[name].start - now)}"
        return Code.AVAILABLE, "it is free"

    # ---- bookkeeping

    def _lease(self, id: str) -> Lease:
        if id not in self.leases:
            raise NotFound(f"there is no lease {id!r}{did_you_mean(id, self.leases)}")
        return self.leases[id]

    def _new_id(self) -> str:
        """Short enough to type, and not to be guessed from another one."""
        while True:
            number = secrets.randbelow(len(_LETTERS) ** _LENGTH)
            id = "".join(_LETTERS[number // len(_LETTERS) ** place % len(_LETTERS)] for place in range(_LENGTH))
            if id not in self.leases:
                return id

    def _move(self, lease: Lease, state: State, now: float, **values: Any) -> None:
        if state not in LEGAL[lease.state]:
            raise RuntimeError(f"lease {lease.id}: {lease.state} cannot become {state}")
        lease = changed(lease, state=state, **values)
        if state is State.ENDED:
            self._absent.pop(lease.id, None)
            self._vanished.discard(lease.id)
        self._set("lease", lease.id, lease)
        self._note_due(lease, now)

    def _set(self, kind: Kind, name: str, record: Any) -> None:
        table = self._tables[kind]
        old = table.get(name)
        if record is None:
            del table[name]
        else:
            table[name] = record
        earlier = self._changes.get((kind, name))
        self._changes[kind, name] = Change(kind, name, earlier.old if earlier is not None else old, record)
        if kind == "lease":
            self._index(old, record)

    def _index(self, old: Lease | None, new: Lease | None) -> None:
        """Keep the queue, and who holds what, in step with a lease."""
        if old is not None and old.state is State.QUEUED and not _is_new(old):
            place = _place(old)
            del self._queue[bisect_left(self._queue, place)]
            if self._lines is not None:
                line = self._lines[self._everything(old)]
                del line[bisect_left(line, place)]
            self._options.pop(old.id, None)
        if new is not None and new.state is State.QUEUED and not _is_new(new):
            insort(self._queue, _place(new))
            if self._lines is not None:
                insort(self._lines.setdefault(self._everything(new), []), _place(new))
        if new is not None and new.state is State.ENDED:
            self._ended.setdefault(new.id)
        elif old is not None:
            self._ended.pop(old.id, None)
        for held in old.devices if old is not None else ():
            if self._held.get(held.exporter) == (old.id if old else None):
                del self._held[held.exporter]
        if new is not None and new.state not in (State.QUEUED, State.ENDED):
            for held in new.devices:
                # One that is idle already is free for others, even if the lease's other devices are not yet.
                if held.phase is not Phase.IDLE:
                    self._held[held.exporter] = new.id
        for name in {held.exporter for lease in (old, new) if lease is not None for held in lease.devices}:
            self._refresh(name)
        if old is not None and (new is None or new.state is not State.QUEUED):
            self._asked.discard(old.id)
            self._left_since.pop(old.id, None)
            for name in self._promised.pop(old.id, ()):
                self._refresh(name)

    def _refresh(self, name: str) -> None:
        presence = self._presence.get(name)
        observed = presence.observed if presence is not None else None
        promised = self._note_promise(name)
        free = (
            presence is not None
            and presence.online
            and observed is not None
            and observed.phase is Phase.IDLE
            and name not in self._held
            and name in self.exporters
            and not promised
        )
        (self._free.add if free else self._free.discard)(name)
        self._outlook.note(name)

    def _note_promise(self, name: str) -> bool:
        """Whether another controller is giving it to a request in the queue; what becomes of that is heeded from then on."""
        exporter = self.exporters.get(name)
        lease = self.leases.get(exporter.lease) if exporter is not None else None
        if lease is None or lease.state is not State.QUEUED:
            return False
        self._promised.setdefault(lease.id, set()).add(name)
        return True

    def _forget_matches(self) -> None:
        for cache in (self._access, self._matches, self._bounds, self._groups, self._options):
            cache.clear()
        self._lines = None
        self._outlook.forget()


def _is_new(lease: Lease) -> bool:
    """Whether somebody has put it into the store, and no engine has looked at it yet."""
    return lease.state is State.QUEUED and lease.number <= 0


def _admission(lease: Lease) -> float:
    """When a new one is to be looked at: one that a controller made is that one's for a moment."""
    return lease.created + (DEFERENCE if lease.number else 0.0)


def _place(lease: Lease) -> _Place:
    return -lease.priority, lease.number, lease.id


def _shown(wants: Sequence[Want]) -> str:
    return " and ".join(want.exporter or want.selector or "any device" for want in wants)
