"""The lab: the lease engine, its durable records, and those who wait for news of them.

Theory of operation. Whoever wants something changed has :meth:`Lab.do` ask the engine, which decides at once and in memory; it
returns when that decision is on the disk, and only then does anybody get to know of it. One task commits: all that came up
during one commit goes into the next one, so a busy lab commits in groups. What nobody is waiting for (that a lease which nobody
watches is ready, or over) leaves with what comes up next. What is durable is in :class:`View`; all that is told to anybody
(answers, what an exporter shall do, what a waiting client sees) is read from there. If the store fails, the lab fails: what is
in memory then is not to be told.

A store that others share keeps each record by itself, and is far away. There many commits are under way at once, each of what
belongs together (a *flight*); what changes a record that is in the air waits until that has landed. A record that such a store
rejects is told to whoever asked for it; if nobody did, it is tried again after a while, and the rest of the lab goes on.

Others may share the store. What they change comes by its watch, or as the reason of a commit that failed. Whatever was decided
and is not durable yet is void then: the engine takes over the records as they are, what was asked for is asked for again, and
what follows by itself (from what the exporters say, from time) is decided anew. :mod:`jmp.controller.replicas` has what such
controllers tell one another besides.
"""

from __future__ import annotations

import heapq
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import trio

from jmp import logs
from jmp.audit import Audit
from jmp.controller.flights import Flight, Wish, groups, units
from jmp.controller.keys import Keys
from jmp.controller.leases import PREPARE_LIMIT, RETENTION, Engine
from jmp.controller.meeting import Attendance, RouterLink
from jmp.controller.news import News
from jmp.controller.replicas import Others
from jmp.controller.store import Change, Key, Record, Rejected, Stale, Store, Undone
from jmp.controller.view import View
from jmp.errors import JmpError, LabError, Refused
from jmp.rpc.later import Later
from jmp.wire.records import (
    Desired,
    Dial,
    Grant,
    Lease,
    Observed,
    Policy,
    Presence,
    Replica,
    State,
    Token,
    from_wire,
)

log = logging.getLogger("jmp.controller")

QUEUE_NEWS_SECONDS: Final = 1.0
"""Positions and expected starts are told at most this often: with a long queue each grant changes all of them,"""
QUEUE_NEWS_A_SECOND: Final = 100
"""and to not more than about so many in a second."""

CLOCK_STEP: Final = 5.0
"""Seconds by which this machine's clock has to be set for those to be told who count on from its time."""

LINGER: Final = 0.02
"""Seconds for which what nobody waits for is left to the next commit of what somebody does wait for."""

LOOK_SECONDS: Final = 2.0
"""How long somebody may wait to be told of what he names and nobody here has heard of."""

ABREAST: Final = 24
"""Commits under way at once, in a store that takes them one by one."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds before what a store has rejected is tried again: doubled from the first to the longest."""

TOKENS_AT_ONCE: Final = 20
"""How many records of tokens that have ended are removed together: they are kept for as long again as they were good, and
for :data:`~jmp.controller.leases.RETENTION` at most."""

DECIDED: Final = frozenset({"client", "exporter", "policy", "lease"})
"""The kinds of records that are the engine's."""

DEFAULT_POLICY: Final = Policy(name="default")
"""What a new lab begins with: every client may lease every exporter and see who holds it."""


T = TypeVar("T")


class Lab:
    """All of a lab that is not tied to one connection. :meth:`run` has to run for anything to happen.

    ``name`` is what this controller is called among those that share its store.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        keys: Keys,
        audit: Audit,
        *,
        clock: Callable[[], float] = time.time,
        name: str = "controller",
    ) -> None:
        self.engine = engine
        self.keys = keys
        self.audit = audit
        self._wall_clock = clock
        self.view = View()
        self.news = News()
        self.attending: dict[str, Attendance] = {}
        self.routers: dict[str, RouterLink] = {}
        self.clock_set = 0.0
        """The clock at the beginning of Trio's: changes when the clock is set."""
        self.key_changes = 0
        """How often :meth:`key_news` have become others."""
        self.grants = 0
        """Leases granted since the start; for the metrics."""
        self.store = store
        self.others = Others(self, name)
        self._aside: list[Change] = []
        self._pending: dict[Key, Change] = {}
        """Decided, and not being committed yet."""
        self._commit_at = math.inf
        """When that is committed at the latest, in a store of one's own."""
        self._flying: dict[Key, Flight] = {}
        self._flights = 0
        self._barred: dict[Key, tuple[float, float]] = {}
        """What the store has rejected: when it is tried again, and the pause before that."""
        self._foreign: list[Change] = []
        """What others have changed, not taken in yet."""
        self._void: set[Key] = set()
        """What could not be committed, or not as it was decided."""
        self._wishes: list[Wish[Any]] = []
        """Those who wait for something that is not in the air yet, and those whose flight came back."""
        self._work = trio.lowlevel.ParkingLot()
        self._queue_changed = trio.Event()
        self._standing: dict[str, tuple[int, float | None]] | None = None
        self._holders: dict[str, int] = {}
        self._forgotten: list[tuple[float, str]] = []
        """A heap of when the records of tokens are removed."""
        self._next_tick = math.inf
        """When time is let pass again."""

    # ---- life

    async def load(self) -> None:
        """Read the store. A new one gets the default policy."""
        records = await self.store.load()
        known: list[Any] = []
        for kind, name, record in records:
            self.view.apply(Change(kind, name, None, record))
            if kind in DECIDED:
                known.append(record)
            elif isinstance(record, Token):
                self._note_token(record)
        now = self._wall_clock()
        self.clock_set = now - trio.current_time()
        self.engine.load(known, now)
        if not records:
            self.engine.put(replace(DEFAULT_POLICY, created=now), now)
        if self.store.shared:
            self.others.begin()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit, and let time pass, until cancelled. Raises ``LabError`` if the store fails."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._tell_queue)
            nursery.start_soon(self._forget_tokens)
            if self.store.shared:
                nursery.start_soon(self._watch)
                nursery.start_soon(self.others.run)
            task_status.started()

    async def _commit(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._collect()
                self._catch_up()
                flights = self._take_off()
                if self.store.shared:
                    for flight in flights:
                        nursery.start_soon(self._fly, flight)
                elif flights:
                    await self._fly(*flights)  # what comes up meanwhile is the next one
                    continue
                with trio.move_on_at(min(self._next_try(), self._commit_at)):
                    await self._work.park()

    def _next_try(self) -> float:
        """When something that was rejected may be tried again."""
        if not self._barred:
            return math.inf
        now = trio.current_time()
        self._barred = {key: bar for key, bar in self._barred.items() if key in self._pending or bar[0] > now - bar[1]}
        return min((at for key, (at, _) in self._barred.items() if key in self._pending and at > now), default=math.inf)

    def _take_off(self) -> list[Flight]:
        """Make flights of what can be committed now."""
        flights: list[Flight] = []
        now = trio.current_time()
        if not self.store.shared and not self._barred and now < self._commit_at:
            return flights
        self._commit_at = math.inf
        changes = {}
        for key, change in list(self._pending.items()):
            old = self.view.find(key)
            if old is None and change.new is None and key not in self._flying:
                del self._pending[key]  # it was made and removed again
                for wish in self._wishes:
                    wish.keys.discard(key)
            else:
                changes[key] = Change(*key, old, change.new)
        shared = self.store.shared
        together = (
            groups(changes, self._wishes, self.engine.unsettled) if shared else [list(changes)] if changes else []
        )
        for group in together:
            if self._flights >= (ABREAST if shared else 1):
                break
            asked = any(wish.about in group for wish in self._wishes)
            if any(key in self._flying or (not asked and self._barred.get(key, (0.0,))[0] > now) for key in group):
                continue
            mine = [changes[key] for key in group]
            for unit in units(mine, self.engine.unsettled) if shared else [mine]:
                flight = Flight({change.key: change for change in unit})
                for wish in self._wishes:
                    if not wish.keys.isdisjoint(flight.changes):
                        wish.board(flight)
                for key in flight.changes:
                    del self._pending[key]
                    self._flying[key] = flight
                self._flights += 1
                flights.append(flight)
        waiting, self._wishes = self._wishes, []
        for wish in waiting:
            self._see_off(wish)
        return flights

    def _see_off(self, wish: Wish[Any]) -> None:
        if wish.keys:
            self._wishes.append(wish)
        else:
            wish.resolve_if_over()

    async def _fly(self, flight: Flight) -> None:
        """Commit some changes, and tell what came of it."""
        undone: Undone | None = None
        try:
            kept = await self.store.commit(list(flight.changes.values()))
        except Undone as error:
            undone = error
        for key in flight.changes:
            del self._flying[key]
        self._flights -= 1
        if undone is None:
            for change, record in zip(flight.changes.values(), kept, strict=True):
                self._barred.pop(change.key, None)
                self._publish(Change(change.kind, change.name, change.old, record), own=True)
                if isinstance(record, Lease):
                    if change.old is None:
                        self.engine.number(record.id, record.number)
                    self.engine.settled(record.id, self.clock())
        else:
            self._undo(flight, undone)
        for wish in flight.aboard:
            wish.legs -= 1
            if undone is not None and wish.about in flight.changes and wish.about not in undone.made:
                if isinstance(undone, Rejected):
                    wish.later.fail(undone)
                else:
                    wish.keys.add(wish.about)  # it is asked again, as that is void now
                    self._wishes.append(wish)
            else:
                wish.resolve_if_over()
        self._work.unpark_all()

    def _undo(self, flight: Flight, undone: Undone) -> None:
        """Some changes were not made."""
        again = isinstance(undone, Rejected) and not any(wish.about in flight.changes for wish in flight.aboard)
        if isinstance(undone, Stale):
            log.debug("decided again: %s", undone)
        else:
            log.error("%s", undone)
        for key, change in flight.changes.items():
            record = undone.now[key]
            if key in undone.made:
                self._publish(Change(*key, None, record), own=True)
                if again:
                    continue
            elif again:
                pause = min(2 * self._barred.get(key, (0.0, FIRST_PAUSE / 2))[1], LONGEST_PAUSE)
                self._barred[key] = trio.current_time() + pause, pause
                self._pending.setdefault(key, change)
                self.engine.settled(key[1], self.clock())  # those behind need not wait for what the store does not take
                continue
            else:
                self._foreign.append(Change(*key, None, record))
            self._void.add(key)

    def _catch_up(self) -> None:
        """Take in what others have changed; what was decided without knowing of it is decided again."""
        foreign, self._foreign = self._foreign, []
        self._foreign += [change for change in foreign if change.key in self._flying]
        foreign = [change for change in foreign if change.key not in self._flying and self._is_news(change)]
        void, self._void = self._void, set()
        if not foreign and not void:
            return
        for change in foreign:
            self._publish(change)
        over = bool(void) or any(change.key in self._pending for change in foreign)
        void.update(change.key for change in foreign)
        if over:
            void |= self._pending.keys()
            self._pending = {}
        now = self.clock()
        for kind, name in void:
            if kind in DECIDED:
                self.engine.learn(kind, name, self._known((kind, name)), now)  # type: ignore[arg-type]
        if over:
            self._wishes = [wish for wish in self._wishes if self._ask(wish)]
            if self.store.shared:
                self.others.tell_all()
        self.engine.reconsider(now)
        self._collect()
        self.news.tell("clock")

    def _known(self, key: Key) -> Record | None:
        """A record as it will be when what is in the air has landed."""
        flight = self._flying.get(key)
        return self.view.find(key) if flight is None else flight.changes[key].new

    def coming(self, key: Key) -> Record | None:
        """A record as it will be when all that was decided of it is kept."""
        for change in reversed(self._aside):
            if change.key == key:
                return change.new
        return self._pending[key].new if key in self._pending else self._known(key)

    def _is_news(self, change: Change) -> bool:
        known = self.view.find(change.key)
        if change.new is None:
            return known is not None and (change.old is None or change.old.version >= known.version)
        return known is None or change.new.version > known.version

    async def _watch(self) -> None:
        def hear(change: Change) -> None:
            self._foreign.append(change)
            self._work.unpark_all()

        await self.store.watch(hear)

    def _collect(self) -> list[Change]:
        """Have what was decided committed next; returns what is new of it."""
        new = self.engine.take_changes() + self._aside
        self._aside = []
        for change in new:
            self._pending[change.key] = change
            self._commit_by(trio.current_time() + LINGER if self._may_linger(change) else -math.inf)
        return new

    def _commit_by(self, at: float) -> None:
        if not self.store.shared:  # there what is pending is gone through at once
            self._commit_at = min(self._commit_at, at)

    def _may_linger(self, change: Change) -> bool:
        """Whether nobody is waiting for this: nobody watches the lease, and its exporters are told nothing."""
        new = change.new
        if change.kind != "lease" or self.news.has_listener(change.key):
            return False
        if not isinstance(new, Lease) or new.state is State.ENDED:
            return True
        return new.state is State.READY and len(new.devices) == 1

    def _ask(self, wish: Wish[Any]) -> bool:
        """Whether what is wished for was granted, and is to be committed."""
        self._collect()
        wish.answer.clear()
        try:
            wish.answer.append(wish.ask())
        except JmpError as error:
            wish.later.fail(error)
            return False
        new = self._collect()
        if new:
            wish.about = new[0].key
            wish.keys = {change.key for change in new}
        else:
            wish.about = None
            wish.keys = self._pending.keys() - self._barred.keys()
            for flight in {id(flight): flight for flight in self._flying.values()}.values():
                wish.board(flight)
        if wish.keys and not wish.patient:
            self._commit_by(-math.inf)
        return True

    def _publish(self, change: Change, *, own: bool = False) -> None:
        old = self.view.find(change.key)
        self.view.apply(change)
        self.news.tell(change.key)
        if isinstance(change.new, Lease):
            if own and change.new.state is not getattr(old, "state", None):
                self._log(change.new)
            self.grants += own and change.new.granted is not None and getattr(old, "granted", None) is None
        elif change.kind == "token":
            if isinstance(change.new, Token) and self._note_token(change.new):
                self.news.tell("tokens")
            if not own:
                self.keys_changed()
        elif not own and isinstance(old or change.new, Presence | Replica):
            self.others.heard(change.key, old)
        if change.kind == "lease":
            turned = _course(old) != _course(change.new)  # type: ignore[arg-type]
            for held in {*getattr(change.new, "devices", ()), *getattr(old, "devices", ())}:
                if turned:
                    self.news.tell(("exporter", held.exporter))
                self.others.ended(held.exporter)
        if change.kind in DECIDED:
            self._standing = None
            self._queue_changed.set()

    def _log(self, lease: Lease) -> None:
        on = ",".join(held.exporter for held in lease.devices)
        with logs.about(logs.subject_of(lease.id, lease.client, on, lease.tags, lease.context)):
            log.info(
                "lease %s of %s is %s%s%s",
                lease.id,
                lease.client,
                lease.state,
                f" on {on}" if on else "",
                f": {lease.reason}" if lease.reason else "",
            )

    async def _tick(self) -> None:
        with self.news.listen("clock") as listener:
            while True:
                now = self.clock()
                self.engine.tick(now)
                self._work.unpark_all()
                self._next_tick = self._deadline
                with trio.move_on_after(max(self._next_tick - now, 0.0)):
                    await listener.wait()

    async def _forget_tokens(self) -> None:
        """Remove the records of tokens that ended long ago, some at a time."""
        with self.news.listen("tokens") as listener:
            while True:
                over = self._forgettable_tokens()
                if over:
                    try:
                        await self.do(partial(self._drop_tokens, over))
                    except Rejected:  # the log tells
                        for id in over:
                            heapq.heappush(self._forgotten, (self.clock() + LONGEST_PAUSE, id))
                    continue
                first = self._forgotten[0][0] if self._forgotten else math.inf
                with trio.move_on_after(max(first - self.clock(), 0.0)):
                    await listener.wait()

    def _forgettable_tokens(self) -> list[str]:
        now = self.clock()
        found: list[str] = []
        while self._forgotten and self._forgotten[0][0] <= now and len(found) < TOKENS_AT_ONCE:
            _, id = heapq.heappop(self._forgotten)
            if id not in self.view.token:
                continue
            if self.others.is_mine(id):
                found.append(id)
            else:
                heapq.heappush(self._forgotten, (now + LONGEST_PAUSE, id))  # whose it is may be gone by then
        return found

    def _note_token(self, token: Token) -> bool:
        """Have a token's record removed in time; whether no other one is sooner."""
        heapq.heappush(self._forgotten, (_forgotten(token), token.id))
        return self._forgotten[0][1] == token.id

    def _drop_tokens(self, ids: Iterable[str]) -> None:
        for id in ids:
            if (token := self.view.token.get(id)) is not None:
                self.put(Change("token", id, token, None))

    @property
    def _deadline(self) -> float:
        """When the engine may have something to do because time passes."""
        deadline = self.engine.deadline()
        return math.inf if deadline is None else deadline

    async def _tell_queue(self) -> None:
        while True:
            await self._queue_changed.wait()
            self._queue_changed = trio.Event()
            self.news.tell("queue")
            await trio.sleep(max(QUEUE_NEWS_SECONDS, self.engine.waiting / QUEUE_NEWS_A_SECOND))

    # ---- changes

    def ask(self, ask: Callable[[], T], *, patient: bool = False) -> Later[T]:
        """Ask the engine for something; its answer is known when that is durable, and what it refuses at once.

        ``ask`` is asked again if others have changed the same things in the meantime, and what came of the first time is void.
        Somebody ``patient`` has it when it is durable anyhow (:data:`LINGER`).
        """
        self.clock()  # it may have been set
        wish = Wish(ask, patient=patient)
        if self._ask(wish):
            if wish.keys or wish.legs:
                self._wishes.append(wish)
            self.changed()
            wish.resolve_if_over()
        return wish.later

    async def do(self, ask: Callable[[], T]) -> T:
        """:meth:`ask`, and wait for the answer. Cancelled, it may or may not be done."""
        return await self.ask(ask).wait()

    def changed(self) -> None:
        """Something has become known that the engine may have drawn conclusions from: have them committed."""
        self._work.unpark_all()
        if self._deadline < self._next_tick:
            self.news.tell("clock")

    def hurry(self, key: Key) -> None:
        """Somebody waits for news of a record from now on: what was decided of it is committed without delay."""
        if key in self._pending:
            self._commit_by(-math.inf)
            self._work.unpark_all()

    async def look(self, key: Key) -> None:
        """Learn of a record that another controller may have made a moment ago, if there is such a one."""
        with self.news.listen(key) as news, trio.move_on_after(LOOK_SECONDS):
            if await self.store.look(key):
                while self.view.find(key) is None:
                    await news.wait()

    async def settle(self) -> None:
        """Wait until everything decided so far is durable."""
        await self.do(lambda: None)

    def put(self, change: Change) -> None:
        """Keep a record that the engine knows nothing of (a token), in what :meth:`do` asks."""
        self._aside.append(change)

    # ---- news: the topics are the keys of records, ("observed", exporter), "keys" and "queue"

    def keys_changed(self) -> None:
        """Keys were rotated, or a token revoked."""
        self.key_changes += 1
        self.news.tell("keys")

    def clock(self) -> float:
        """Seconds since the epoch, by this machine's clock; by that of the store, where several controllers share one.

        When that has been set, those who verify tokens are told the time anew: they took it from here, and count on by
        themselves. What runs goes on for as long as it would have, unless there are several controllers, who had to agree on it.
        """
        now = self._wall_clock()
        clock_set = now - trio.current_time()
        if abs(step := clock_set - self.clock_set) > CLOCK_STEP:
            self.clock_set = clock_set
            log.warning(
                "%s clock was set by %+.0f s", "the API server's" if self.store.shared else "this machine's", step
            )
            if not self.store.shared:
                self.engine.clock_set(step, now)
            self.keys_changed()
            self.changed()
            self.news.tell("clock")
        return now

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
            gone = bool(exporter.lease) and exporter.lease not in self.view.lease
            return Desired(epoch=exporter.epoch, reason=f"lease {exporter.lease} was deleted" if gone else "")
        held = next(held for held in lease.devices if held.exporter == name)
        if lease.state not in (State.PREPARING, State.READY):
            return Desired(epoch=held.epoch, reason=lease.reason)
        access = self.engine.access(lease.client, name)
        now = self.clock()
        # If that was set just now, the engine knows of it, and what is durable does not say so yet.
        times = self.engine.leases.get(lease.id, lease)
        ready = lease.state is State.READY
        alone = len(lease.devices) == 1
        ends = times.ends if ready else (times.granted or 0.0) + PREPARE_LIMIT
        grant = Grant(
            lease=lease.id,
            client=lease.client,
            duration=lease.duration,
            remaining=max((ends or 0.0) - now, 0.0),
            alone=alone,
            running=max(now - (times.ready or now), 0.0) if ready and not alone else None,
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
        revoked = [token.id for token in self.view.revoked.values() if token.expires > now]
        return {"jwks": self.keys.jwks(), "revoked": revoked, "now": now}

    # ---- presence

    def attend(self, name: str, attendance: Attendance) -> None:
        """An exporter has connected. If it seems to be connected already, the newer connection counts."""
        self.others.outdo(name, attendance)
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
        self.others.tell(name)
        self.news.tell(("observed", name))
        self.changed()

    def leave(self, name: str, attendance: Attendance) -> None:
        """An exporter's connection has ended."""
        if self.attending.get(name) is not attendance:
            return
        del self.attending[name]
        self.let_go(attendance)
        self.engine.offline(name, self.clock())
        self.others.tell(name)
        self.changed()

    def let_go(self, attendance: Attendance) -> None:
        """An exporter is not connected here any more, and so does not speak for a holder."""
        if attendance.observed.lease is not None and attendance.observed.attached:
            self._hold(attendance.observed.lease, -1)

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
            if (lease := self.view.lease.get(id)) is not None and lease.tied:
                self.others.say()  # of the others it matters to nobody
            self.holder(id)

    def holder(self, id: str) -> None:
        """Let the engine know whether the holder of a lease is connected, here or elsewhere."""
        self.engine.holder(id, id in self._holders or self.others.holds(id), self.clock())

    @property
    def held(self) -> Iterable[str]:
        """The leases whose holders are connected here."""
        return self._holders

    # ---- meeting

    def router(self) -> RouterLink:
        """The least loaded router; raises ``LabError`` if there is none."""
        known = [*self.routers.values(), *self.others.routers.values()]
        routers = [router for router in known if not router.draining]
        if not routers:
            raise LabError("no router is connected to the controller, and the exporter cannot be reached directly")
        router = min(routers, key=lambda router: (router.load, router.chosen))
        router.chosen += 1
        return router

    def meet(self, lease: Lease, exporter: str, via: str) -> dict[str, Any]:
        """Let the holder of ``lease`` meet ``exporter``: a token, and where to. Via a router the exporter is sent there, too."""
        self.clock()  # it may have been set
        attendance = self.attending.get(exporter)
        if attendance is None:
            raise LabError(f"exporter {exporter} is offline at present")
        held = next(held for held in lease.devices if held.exporter == exporter)
        claims = self.claims(lease, exporter, held.epoch, secrets.token_hex(8))
        answer: dict[str, Any] = {"token": self.keys.session(end="client", **claims), "exporter": exporter}
        if via == "direct":
            return {**answer, "endpoints": attendance.endpoints}
        router = self.router()
        router.load += 1
        where = {"url": router.url, "fingerprint": router.fingerprint}
        if attendance.replica:
            dial = {"exporter": exporter, "lease": lease.id, "epoch": held.epoch, "session": claims["session"], **where}
            self.others.dial(from_wire(Dial, dial))
        else:
            self.dial(attendance, where, claims)
        return {**answer, "endpoints": [where]}

    def dial(self, attendance: Attendance, where: dict[str, Any], claims: dict[str, Any]) -> None:
        """Send an exporter that is connected here to a router."""
        attendance.dials.append({**where, "token": self.keys.session(end="exporter", **claims)})
        self.news.tell(("exporter", claims["exporter"]))

    def claims(self, lease: Lease, exporter: str, epoch: int, session: str) -> dict[str, Any]:
        """What the tokens of one session say."""
        access = self.engine.access(lease.client, exporter)
        return {
            "client": lease.client,
            "exporter": exporter,
            "lease": lease.id,
            "epoch": epoch,
            "session": session,
            "allow": access.allow,
            "deny": access.deny,
        }


def _course(lease: Lease | None) -> object:
    """What the exporters of a lease are told of it."""
    if lease is None:
        return None
    epochs = tuple((held.exporter, held.epoch) for held in lease.devices)
    runs = lease.state is State.READY and len(epochs) > 1
    return lease.state in (State.PREPARING, State.READY), runs, lease.client, lease.duration, epochs


def _forgotten(token: Token) -> float:
    return token.expires + min(token.expires - token.issued, RETENTION)
