"""Bugs, to be put into the product from outside for a while: whether the simulated lab would find them.

The first ones are what could be got wrong; the others were there, and are in the table of docs/reliability.md.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial, partialmethod
from typing import Any, Final

import trio

from jmp.controller import kubernetes, leases, sqlite
from jmp.controller.kubernetes import KubernetesStore
from jmp.controller.kubernetes_api import Api, ServerClock
from jmp.controller.sqlite import SqliteStore
from jmp.controller.store import Change, Record
from jmp.errors import Refused
from jmp.exporter import session
from jmp.exporter.hold import Hold
from jmp.exporter.lab import LabExporter
from jmp.exporter.term import Term
from jmp.link.resume import Resume
from jmp.router import serve as router
from jmp.wire.records import Grant, Lease, changed
from jmp.wire.tokens import SessionClaims, Verifier
from tests.sim import roles
from tests.sim.world import PROCESS, Process, replaced

# ---- what could be got wrong


def check_lease_only(self: Hold, claims: SessionClaims) -> None:
    """In place of :meth:`Hold.check`: any epoch will do."""
    if claims.lease != self.grant.lease or self.reason:
        raise Refused("this is not the present lease")


class HastyDisk(roles.Disk):
    """Says that it has committed what it is still to commit."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.queue: deque[list[tuple[Change, Record | None]]] = deque()
        self.next = self._version[0] + 1

    async def commit(self, changes: Sequence[Change]) -> list[Record | None]:
        """In place of :meth:`Disk.commit`."""
        kept = [None if change.new is None else changed(change.new, version=self.next) for change in changes]
        self.next += 1
        self.queue.append(list(zip(changes, kept, strict=True)))
        trio.lowlevel.spawn_system_task(self.really_commit)
        await trio.lowlevel.checkpoint()
        return kept

    async def really_commit(self) -> None:
        """Do it, when nobody waits for it any more."""
        await trio.sleep(2.0)
        done = self.queue.popleft()
        if self.process.alive:
            self._version[0] += 1
            for change, record in done:
                self.records.pop(change.key, None)
                if record is not None:
                    self.records[change.key] = record


async def twice(original: Callable[..., Any], name: str, *arguments: Any) -> None:
    """In place of ``session._hook``: afterLease runs once more."""
    await original(name, *arguments)
    if name == "afterLease":
        await original(name, *arguments)


def drop_one(self: Resume, original: Callable[..., Any], *, ack: bool = False) -> Any:
    """In place of :meth:`Resume.take`: the first message that has to go again on a link is taken for sent."""
    again = self._acknowledged + self._sent < self._reached
    if self._open and self._links > 1 and self.waiting and again and vars(self).get("dropped") != self._links:
        vars(self)["dropped"] = self._links
        self._sent += 1
    return original(self, ack=ack)


def unsynced(original: Callable[..., sqlite3.Connection], *arguments: Any) -> sqlite3.Connection:
    """In place of ``sqlite._open``: what is committed reaches the disk some time."""
    database = original(*arguments)
    database.execute("PRAGMA synchronous = NORMAL")
    return database


def commit_later(self: SqliteStore, original: Callable[..., None], group: Any, statement: Any) -> None:
    """In place of ``SqliteStore._write``: a transaction is open until there is enough in it."""
    database = self._database
    if not database.in_transaction:
        database.execute("BEGIN IMMEDIATE")
    if statement is None or not self._write_at_once(*statement):
        database.execute("COMMIT")
        original(self, group, statement)
    elif self.commits % 4 == 3:
        database.execute("COMMIT")


# ---- what could be got wrong where several controllers share a store


def put_whatever_is_there(api: Api, original: Any, method: str, path: str, body: Any = None, query: Any = None) -> Any:
    """In place of :meth:`Api.request`: what is written replaces whatever is there."""
    if method == "PUT":
        metadata = {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}
        body = {**body, "metadata": metadata}
    return original(api, method, path, body, query)


def take_whatever_comes(
    self: KubernetesStore, original: Callable[..., None], resource: Any, item: Any, **more: Any
) -> None:
    """In place of :meth:`KubernetesStore._take`: what the watch tells counts, also if it is older than what is known."""
    self._objects.pop((resource.kind, item["metadata"]["name"]), None)
    original(self, resource, item, **more)


async def remove_locks_only(
    self: KubernetesStore, original: Callable[..., Awaitable[bool]], resource: Any, *more: Any
) -> bool:
    """In place of :meth:`KubernetesStore._write_status`: an attempt that is given up stays good, only its locks are removed."""
    return resource is kubernetes.LEASES or await original(self, resource, *more)


def in_any_order(lease: Lease) -> tuple[int, int, str]:
    """In place of ``leases._place``: it does not matter who came first."""
    return -lease.priority, 0, lease.id


# ---- what was got wrong


def forget_what_is_over(self: LabExporter, hold: Hold) -> None:
    """In place of :meth:`LabExporter._settled`: the last lease is kept in memory only."""
    self._finished = hold.grant.lease
    self._remember(self._memory.epoch, None)
    self._hold_changed()


def trust_the_remaining_time(self: Term, original: Callable[..., None], grant: Grant, now: float) -> None:
    """In place of :meth:`Term.renew`: the end is when the controller says, however late it does."""
    original(self, grant, now)
    if self._is_ready:
        self._began = now + grant.remaining - grant.duration


def count_alone(self: Term, original: Callable[..., None], now: float) -> None:
    """In place of :meth:`Term.ready`: each device's time begins when it is ready, whatever else its lease has."""
    self._grant = changed(self._grant, alone=True)
    original(self, now)


async def turn_the_early_away(self: LabExporter, claims: SessionClaims) -> Hold:
    """In place of :meth:`LabExporter.expect`: whoever is faster than the controller's word is refused."""
    return self.hold_for(claims)


def by_own_clock(keys: dict[str, Any]) -> Verifier:
    """In place of the router's ``verifier_of``: by the clock of its own machine."""
    return Verifier(keys["jwks"], frozenset(keys["revoked"]), clock=PROCESS.get().clock)


async def go_by_memory(self: KubernetesStore, name: str, lease: str) -> None:
    """In place of :meth:`KubernetesStore._check_lock`: what is remembered decides, and nothing new is learned."""
    if not self._may_lock(name, lease):
        raise kubernetes._Lost(("exporter", name))


def by_machine(self: ServerClock, date: bytes, asked: float, answered: float) -> None:
    """In place of :meth:`ServerClock.hear`: each controller goes by the clock of its own machine."""
    self._ahead = PROCESS.get().clock() - trio.current_time()


Place = tuple[Any, str, Any]
RESEND_DROPPED: Final[Place] = (Resume, "take", partialmethod(drop_one, Resume.take))
"""For tests/sim/test_resume.py, whose histories are of nothing else: in those of a whole lab few links break in mid-message."""
IN_A_CLUSTER: Final[dict[str, tuple[Place, ...]]] = {
    "write-unchecked": ((Api, "request", partialmethod(put_whatever_is_there, Api.request)),),
    "stale-watch-trusted": ((KubernetesStore, "_take", partialmethod(take_whatever_comes, KubernetesStore._take)),),
    "fence-not-renewed": (
        (KubernetesStore, "_write_status", partialmethod(remove_locks_only, KubernetesStore._write_status)),
    ),
    "out-of-turn": ((leases, "_place", in_any_order),),
    "by-own-clock": ((ServerClock, "hear", by_machine),),
    "busy-for-ever": ((KubernetesStore, "_check_lock", go_by_memory),),
}
"""Those to be found in labs in a cluster."""
ON_FILES: Final[dict[str, tuple[Place, ...]]] = {
    "sqlite-unsynced": ((sqlite, "_open", partial(unsynced, sqlite._open)),),
    "sqlite-uncommitted": ((SqliteStore, "_write", partialmethod(commit_later, SqliteStore._write)),),
}
"""Those to be found in labs with the embedded store."""
BUGS: Final[dict[str, tuple[Place, ...]]] = {
    "epoch-unchecked": ((Hold, "check", check_lease_only),),
    "answer-before-commit": ((roles, "Disk", HastyDisk),),
    "cleanup-twice": ((session, "_hook", partial(twice, session._hook)),),
    "lease-begins-again": ((LabExporter, "_settled", forget_what_is_over),),
    "hold-too-long": ((Term, "renew", partialmethod(trust_the_remaining_time, Term.renew)),),
    "ends-with-the-first": ((Term, "ready", partialmethod(count_alone, Term.ready)),),
    "early-holder-refused": ((LabExporter, "expect", turn_the_early_away),),
    "router-by-own-clock": ((router, "verifier_of", by_own_clock),),
    **IN_A_CLUSTER,
    **ON_FILES,
}


def planted(name: str) -> AbstractContextManager[object]:
    """The product has this bug for the length of a block."""
    stack = ExitStack()
    for place, what, value in BUGS[name]:
        stack.enter_context(replaced(place, what, value))
    return stack
