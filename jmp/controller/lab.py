"""The lab: the lease engine, its durable records, and those who wait for news of them.

Theory of operation. Whoever wants something changed calls the engine, which decides at once and in memory, then
:meth:`Lab.settle`, which returns when that decision is on the disk; only then does anybody get to know of it. One task
commits: all that came up while the last commit was under way goes into the next one, so a busy lab commits in groups. What is
durable is in :class:`View`; all that is told to anybody (answers, what an exporter shall do, what a waiting client sees) is
read from there. If the store fails, the lab fails: what is in memory then is not to be told.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import trio

from jmp.controller.audit import Audit
from jmp.controller.keys import Keys
from jmp.controller.leases import PREPARE_LIMIT, Engine
from jmp.controller.news import News
from jmp.controller.store import Change, Store
from jmp.errors import LabError, Refused
from jmp.wire.records import Client, Desired, Exporter, Grant, Lease, Observed, Policy, State, Token

log = logging.getLogger("jmp.controller")

QUEUE_NEWS_SECONDS: Final = 1.0
"""Positions and expected starts are told at most this often: with a long queue each grant changes all of them."""

DEFAULT_POLICY: Final = Policy(name="default")
"""What a new lab begins with: every client may lease every exporter and see who holds it."""


@dataclass
class View:
    """What is durable."""

    client: dict[str, Client] = field(default_factory=dict)
    exporter: dict[str, Exporter] = field(default_factory=dict)
    policy: dict[str, Policy] = field(default_factory=dict)
    token: dict[str, Token] = field(default_factory=dict)
    lease: dict[str, Lease] = field(default_factory=dict)
    holding: dict[str, str] = field(default_factory=dict)
    """Exporter → the lease that has it, from the grant until it is idle again."""

    def apply(self, change: Change) -> None:
        """One record is now ``change.new``, None if it is gone."""
        records = getattr(self, change.kind, None)
        if records is None:
            return
        if change.kind == "lease":
            for held in getattr(change.old, "devices", ()):
                if self.holding.get(held.exporter) == change.name:
                    del self.holding[held.exporter]
            if isinstance(change.new, Lease) and change.new.state not in (State.QUEUED, State.ENDED):
                self.holding |= {held.exporter: change.name for held in change.new.devices}
        if change.new is None:
            records.pop(change.name, None)
        else:
            records[change.name] = change.new


@dataclass
class Attendance:
    """An exporter that is connected."""

    peer: str
    version: str
    endpoints: list[dict[str, Any]]
    tree: dict[str, Any]
    observed: Observed
    since: float
    dials: list[dict[str, Any]] = field(default_factory=list)
    """Routers that it shall go to, not told yet."""


@dataclass
class RouterLink:
    """A router that is connected."""

    url: str
    fingerprint: str | None
    peer: str
    load: int = 0
    chosen: int = 0
    """How often it was; among equals those take turns."""
    draining: bool = False


class Lab:
    """All of a lab that is not tied to one connection. :meth:`run` has to run for anything to happen."""

    def __init__(
        self, engine: Engine, store: Store, keys: Keys, audit: Audit, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.engine = engine
        self.keys = keys
        self.audit = audit
        self.clock = clock
        self.view = View()
        self.news = News()
        self.attending: dict[str, Attendance] = {}
        self.routers: dict[str, RouterLink] = {}
        self.grants = 0
        """Leases granted since the start; for the metrics."""
        self.store = store
        self._pending: list[Change] = []
        self._asked = 0
        self._durable = 0
        self._work = trio.lowlevel.ParkingLot()
        self._settled = trio.lowlevel.ParkingLot()
        self._queue_changed = trio.Event()
        self._standing: dict[str, tuple[int, float | None]] | None = None
        self._holders: dict[str, int] = {}

    # ---- life

    async def load(self) -> None:
        """Read the store. A new one gets the default policy."""
        records = await self.store.load()
        known: list[Any] = []
        for kind, name, record in records:
            self.view.apply(Change(kind, name, None, record))
            if kind in ("client", "exporter", "policy", "lease"):
                known.append(record)
        now = self.clock()
        self.engine.load(known, now)
        if not records:
            self.engine.put(replace(DEFAULT_POLICY, created=now), now)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit, and let time pass, until cancelled. Raises ``LabError`` if the store fails."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._tell_queue)
            task_status.started()

    async def _commit(self) -> None:
        while True:
            self._collect()
            while not self._pending:
                self._durable = self._asked
                self._settled.unpark_all()
                await self._work.park()
                self._collect()
            changes, self._pending = _merged(self._pending), []
            asked = self._asked
            await self.store.commit(changes)
            for change in changes:
                self._publish(change)
            self._durable = asked
            self._settled.unpark_all()

    def _collect(self) -> None:
        self._pending += self.engine.take_changes()

    def _publish(self, change: Change) -> None:
        self.view.apply(change)
        self.news.tell((change.kind, change.name))
        if isinstance(change.new, Lease):
            old = change.old.state if isinstance(change.old, Lease) else None
            if change.new.state is not old:
                self._log(change.new)
            self.grants += change.new.granted is not None and getattr(change.old, "granted", None) is None
            for held in {*change.new.devices, *getattr(change.old, "devices", ())}:
                self.news.tell(("exporter", held.exporter))
        if change.kind in ("lease", "exporter", "policy", "client"):
            self._standing = None
            self._queue_changed.set()

    def _log(self, lease: Lease) -> None:
        on = ",".join(held.exporter for held in lease.devices)
        context = "".join(f" {key}={value}" for key, value in sorted(lease.context.items()))
        log.info(
            "lease %s of %s is %s%s%s%s",
            lease.id,
            lease.client,
            lease.state,
            f" on {on}" if on else "",
            f": {lease.reason}" if lease.reason else "",
            context,
        )

    async def _tick(self) -> None:
        with self.news.listen("clock") as listener:
            while True:
                now = self.clock()
                self.engine.tick(now)
                self._asked += 1
                self._work.unpark_all()
                deadline = self.engine.deadline()
                with trio.move_on_after(max(deadline - now, 0.0) if deadline is not None else float("inf")):
                    await listener.wait()

    async def _tell_queue(self) -> None:
        while True:
            await self._queue_changed.wait()
            self._queue_changed = trio.Event()
            self.news.tell("queue")
            await trio.sleep(QUEUE_NEWS_SECONDS)

    # ---- changes

    def changed(self) -> None:
        """The engine was asked for something: have it committed."""
        self._asked += 1
        self._work.unpark_all()
        self.news.tell("clock")

    async def settle(self) -> None:
        """Wait until everything decided so far is durable."""
        self.changed()
        mine = self._asked
        while self._durable < mine:
            await self._settled.park()

    def put(self, change: Change) -> None:
        """Keep a record that the engine knows nothing of (a token); :meth:`settle` then."""
        self._pending.append(change)

    # ---- news: the topics are ("lease", id), ("exporter", name), "keys" and "queue"

    def keys_changed(self) -> None:
        """Keys were rotated, or a token revoked."""
        self.news.tell("keys")

    # ---- what others are told

    def standing(self, id: str) -> tuple[int, float | None]:
        """Position in the queue (from 1) and expected start of a lease that is queued."""
        if self._standing is None:
            self._standing = self.engine.standing(self.clock())
        return self._standing.get(id, (0, None))

    def desired(self, name: str) -> Desired:
        """What an exporter shall be doing."""
        exporter = self.view.exporter[name]
        lease = self.view.lease.get(self.view.holding.get(name, ""))
        if lease is None:
            return Desired(epoch=exporter.epoch)
        held = next(held for held in lease.devices if held.exporter == name)
        if lease.state not in (State.PREPARING, State.READY):
            return Desired(epoch=held.epoch, reason=lease.reason)
        access = self.engine.access(lease.client, name)
        ends = lease.ends if lease.state is State.READY else (lease.granted or 0.0) + PREPARE_LIMIT
        grant = Grant(
            lease=lease.id,
            client=lease.client,
            duration=lease.duration,
            remaining=max((ends or 0.0) - self.clock(), 0.0),
            allow=access.allow,
            deny=access.deny,
            packages=access.packages,
            idle_limit=lease.idle_limit,
            tags=lease.tags,
            context=lease.context,
        )
        return Desired(epoch=held.epoch, grant=grant)

    def key_news(self) -> dict[str, Any]:
        """What those need who verify tokens."""
        now = self.clock()
        revoked = [token.id for token in self.view.token.values() if token.revoked is not None and token.expires > now]
        return {"jwks": self.keys.jwks(), "revoked": revoked, "now": now}

    # ---- presence

    def attend(self, name: str, attendance: Attendance) -> None:
        """An exporter has connected. If it seems to be connected already, the newer connection counts."""
        self.attending[name] = attendance
        self.news.tell(("exporter", name))
        self.engine.online(name, self.clock())
        first, attendance.observed = attendance.observed, Observed(epoch=0)
        self.observe(name, attendance, first)

    def observe(self, name: str, attendance: Attendance, observed: Observed) -> None:
        """What an exporter says it is doing. Only its newest connection is heard."""
        if self.attending.get(name) is not attendance:
            raise Refused(f"{name} is connected anew elsewhere")
        before, attendance.observed = attendance.observed, observed
        now = self.clock()
        self.engine.observed(name, observed.lease, observed.epoch, observed.phase, observed.reason, now)
        if observed.lease is not None and bool(observed.attached) != bool(before.attached):
            self._hold(observed.lease, 1 if observed.attached else -1)
        self.changed()

    def leave(self, name: str, attendance: Attendance) -> None:
        """An exporter's connection has ended."""
        if self.attending.get(name) is not attendance:
            return
        del self.attending[name]
        if attendance.observed.lease is not None and attendance.observed.attached:
            self._hold(attendance.observed.lease, -1)
        self.engine.offline(name, self.clock())
        self.changed()

    def hold(self, id: str, present: bool) -> None:
        """Somebody began or ceased to watch over a lease of theirs."""
        self._hold(id, 1 if present else -1)
        self.changed()

    def _hold(self, id: str, change: int) -> None:
        before = self._holders.get(id, 0)
        after = self._holders[id] = max(before + change, 0)
        if not after:
            del self._holders[id]
        if bool(before) != bool(after):
            self.engine.holder(id, bool(after), self.clock())

    # ---- meeting

    def router(self) -> RouterLink:
        """The least loaded router; raises ``LabError`` if there is none."""
        routers = [router for router in self.routers.values() if not router.draining]
        if not routers:
            raise LabError("no router is connected to the controller, and the exporter cannot be reached directly")
        router = min(routers, key=lambda router: (router.load, router.chosen))
        router.chosen += 1
        return router

    def meet(self, lease: Lease, exporter: str, via: str) -> dict[str, Any]:
        """Let the holder of ``lease`` meet ``exporter``: a token, and where to. Via a router the exporter is sent there, too."""
        attendance = self.attending.get(exporter)
        if attendance is None:
            raise LabError(f"exporter {exporter} is offline at present")
        held = next(held for held in lease.devices if held.exporter == exporter)
        access = self.engine.access(lease.client, exporter)
        claims: dict[str, Any] = {
            "client": lease.client,
            "exporter": exporter,
            "lease": lease.id,
            "epoch": held.epoch,
            "session": secrets.token_hex(8),
            "allow": access.allow,
            "deny": access.deny,
        }
        answer: dict[str, Any] = {"token": self.keys.session(end="client", **claims), "exporter": exporter}
        if via == "direct":
            return {**answer, "endpoints": attendance.endpoints}
        router = self.router()
        router.load += 1
        where = {"url": router.url, "fingerprint": router.fingerprint}
        attendance.dials.append({**where, "token": self.keys.session(end="exporter", **claims)})
        self.news.tell(("exporter", exporter))
        return {**answer, "endpoints": [where]}


def _merged(changes: Iterable[Change]) -> list[Change]:
    """One change for each record: from what it was before the first to what it is after the last."""
    merged: dict[tuple[str, str], Change] = {}
    for change in changes:
        key = change.kind, change.name
        earlier = merged.get(key)
        merged[key] = change if earlier is None else replace(change, old=earlier.old)
    return [change for change in merged.values() if not (change.old is None and change.new is None)]
