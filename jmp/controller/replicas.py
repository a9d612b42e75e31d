"""Several controllers of one lab, and what they tell one another by way of the store that they share.

Theory of operation. There is no leader: what must not happen twice is kept apart by the versions of the records. Beyond these,
each controller tells the others what it alone can know:

- :class:`~jmp.wire.records.Presence`, one for each exporter that is connected to it: others see that the exporter is there, may
  have it among those that are free, and find the way to it. That it is in use they see from the lease that has it. Whoever
  an exporter connected to last overwrites what the one before has said; that one notices, and lets go.
- :class:`~jmp.wire.records.Replica`, one for itself, written every few seconds: a sign of life, and who holds leases, which
  routers there are, and which exporters of the others shall go to one of these.

A controller that has given no sign for a while is taken for dead: what it said counts no longer, and is removed. Should it live
after all (it was stopped, or cut off), then it says all of that again; and it can have changed nothing, as the versions have.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from zlib import crc32

import trio

from jmp.controller.meeting import Attendance, RouterLink
from jmp.controller.store import Change, Key, Record, Rejected
from jmp.errors import LabError
from jmp.wire.records import Dial, Endpoint, Phase, Presence, Replica, Routing

if TYPE_CHECKING:
    from jmp.controller.lab import Lab

BEAT: Final = 5.0
"""Seconds between two signs of life."""
LOST: Final = 16.0
"""Seconds without one, after which a controller is taken for dead: three may be lost."""
DIAL_SECONDS: Final = 30.0
"""How long an exporter may be sent to a router: whoever waits for it there waits no longer."""
LEAVE: Final = 2.0
"""Seconds that saying goodbye may take."""
_GATHER: Final = 0.02
"""Seconds in which news for the others is gathered, so that much of it makes few writes."""


class Others:
    """What this controller knows of the others, and they of it. Where the store is not shared there are none."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.routers: dict[tuple[str, str], RouterLink] = {}
        """Those that are connected to others, by controller and name."""
        self._lab = lab
        self._alive: dict[str, float] = {}
        """The others, and when their last sign of life came."""
        self._holds: dict[str, set[str]] = {}
        """Lease → the others that its holder is connected to."""
        self._untold: set[str] = set()
        """Exporters that are connected here and do something else than is said of them, as one knows from their leases."""
        self._told = 0.0
        """When that was told last."""
        self._dials: list[tuple[float, Dial]] = []
        self._news = trio.Event()
        self._came = trio.Event()

    # ---- life

    def begin(self) -> None:
        """Start from what the others have said; nothing of an earlier life of this one counts."""
        lab = self._lab
        lab.engine.is_mine = self.is_mine
        for replica in list(lab.view.replica.values()):
            self.heard(("replica", replica.name), None)
        for name in list(lab.view.presence):
            self.heard(("presence", name), None)

    async def run(self) -> None:
        """Give signs of life, and watch for those of the others."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            while True:
                await self._bury()

    async def leave(self) -> None:
        """Let the others know at once that this one is going. Should that fail, they notice by themselves."""
        known = self._lab.view.replica.get(self.name)
        if known is None:
            return
        with trio.move_on_after(LEAVE) as patience:
            patience.shield = True
            with suppress(LabError):
                await self._lab.store.commit([Change("replica", self.name, known, None)])

    async def _beat(self) -> None:
        lab = self._lab
        while True:
            self._news = trio.Event()
            with suppress(Rejected):  # it is told where that is found out
                await lab.do(self._speak)
            self._tell_rest()
            with trio.move_on_after(BEAT):
                await self._news.wait()
                await trio.sleep(_GATHER)

    def _speak(self) -> None:
        lab = self._lab
        now = trio.current_time()
        self._dials = [(at, dial) for at, dial in self._dials if at + DIAL_SECONDS > now]
        known = lab.view.replica.get(self.name)
        tied = (id for id in lab.held if (lease := lab.view.lease.get(id)) is not None and lease.tied)
        routers = [
            Routing(name=name, url=link.url, fingerprint=link.fingerprint, load=link.load, draining=link.draining)
            for name, link in lab.routers.items()
        ]
        new = Replica(
            name=self.name,
            beat=1 if known is None else known.beat + 1,
            holds=tuple(tied),
            routers=tuple(routers),
            dials=tuple(dial for _, dial in self._dials),
        )
        lab.put(Change("replica", self.name, known, new))

    def _tell_rest(self) -> None:
        """Say, now and then, what exporters do that one knows from their leases. Nobody needs to wait for that."""
        lab, now = self._lab, trio.current_time()
        if self._told + BEAT > now:
            return
        self._told = now
        for name in self._untold:
            if (here := lab.attending.get(name)) is not None and not here.replica and name in lab.view.exporter:
                lab.put(Change("presence", name, lab.view.presence.get(name), self._presence(name, here)))
        self._untold.clear()
        lab.changed()

    async def _bury(self) -> None:
        """Wait until the next one may be dead, and see."""
        self._came = trio.Event()
        with trio.move_on_at(min(self._alive.values(), default=float("inf")) + LOST):
            await self._came.wait()
        now = trio.current_time()
        for name in [name for name, seen in self._alive.items() if seen + LOST <= now]:
            del self._alive[name]
            self._forget(name)
            self._lab.put(Change("replica", name, self._lab.view.replica.get(name), None))
            self._lab.changed()

    # ---- telling

    def say(self) -> None:
        """What this one alone knows has changed: let the others know at once."""
        self._news.set()

    def dial(self, dial: Dial) -> None:
        """Have an exporter go to a router that is connected to another controller."""
        self._dials.append((trio.current_time(), dial))
        self.say()

    def tell(self, name: str) -> None:
        """Let the others know whether an exporter is connected here, and what it does.

        What it does they know from the lease that has it: that is told with the next sign of life, for people to see.
        """
        lab = self._lab
        if not lab.store.shared:
            return
        there = lab.coming(("presence", name))
        assert there is None or isinstance(there, Presence)
        here = lab.attending.get(name)
        if here is not None and not here.replica and name in lab.view.exporter:
            new = self._presence(name, here)
            self._untold.discard(name)
            if there is None or self._is_news(there, new):
                lab.put(Change("presence", name, there, new))
            elif not there.observed.phase is new.observed.phase is Phase.IDLE:
                self._untold.add(name)
        elif there is not None and (there.replica == self.name or there.replica not in self._alive):
            lab.put(Change("presence", name, there, None))

    def _is_news(self, there: Presence, new: Presence) -> bool:
        """Whether the others would take the exporter for something else than it is."""
        if replace(new, version=there.version, observed=there.observed) != there:
            return True
        busy, said = new.observed.phase is not Phase.IDLE, there.observed.phase is not Phase.IDLE
        return busy is not said and (said or self._lab.view.holding.get(new.name) != new.observed.lease)

    def ended(self, name: str) -> None:
        """Another lease has an exporter now, or none: what it does may not follow from that any more."""
        if name in self._untold:
            self.tell(name)

    def tell_all(self) -> None:
        """Say all of that again, as some of it did not get through."""
        for name in {*self._lab.attending, *self._lab.view.presence}:
            self.tell(name)

    def outdo(self, name: str, attendance: Attendance) -> None:
        """An exporter has just connected here: that is later than all connections that anybody knows of."""
        there = self._lab.view.presence.get(name)
        if there is not None:
            attendance.since = max(attendance.since, there.since + 0.001)

    def _presence(self, name: str, here: Attendance) -> Presence:
        return Presence(
            name=name,
            replica=self.name,
            since=here.since,
            peer=here.peer,
            observed=replace(here.observed, attached=min(here.observed.attached, 1)),
            software=here.version,
            endpoints=tuple(Endpoint(url=item["url"], fingerprint=item["fingerprint"]) for item in here.endpoints),
            tree=here.tree,
        )

    # ---- hearing

    def heard(self, key: Key, old: Record | None) -> None:
        """Another controller has written one of its records; the lab has the new one."""
        kind, name = key
        if kind == "presence":
            self._see(name)
        elif name != self.name:
            new = self._lab.view.replica.get(name)
            if new is None:
                self._alive.pop(name, None)
                self._forget(name)
            else:
                self._hear(new, old if isinstance(old, Replica) else None)
        self._came.set()

    def _hear(self, new: Replica, old: Replica | None) -> None:
        lab = self._lab
        back = new.name not in self._alive
        self._alive[new.name] = trio.current_time()
        lab.engine.alive(new.name, lab.clock())
        if back:
            for name, presence in list(lab.view.presence.items()):
                if presence.replica == new.name:
                    self._see(name)
        self._set_holds(new.name, new.holds)
        gone = {key for key in self.routers if key[0] == new.name}
        for router in new.routers:
            gone.discard((new.name, router.name))
            link = self.routers.setdefault((new.name, router.name), RouterLink(router.url, router.fingerprint, ""))
            link.url, link.fingerprint = router.url, router.fingerprint
            link.load, link.draining = router.load, router.draining
        for key in gone:
            del self.routers[key]
        for dial in new.dials:
            here = lab.attending.get(dial.exporter)
            lease = lab.view.lease.get(dial.lease)
            known = old is not None and dial in old.dials
            if not known and here is not None and not here.replica and lease is not None:
                where = {"url": dial.url, "fingerprint": dial.fingerprint}
                lab.dial(here, where, lab.claims(lease, dial.exporter, dial.epoch, dial.session))

    def _forget(self, replica: str) -> None:
        """Nothing that one has said counts any more."""
        self._set_holds(replica, ())
        for key in [key for key in self.routers if key[0] == replica]:
            del self.routers[key]
        for name, presence in list(self._lab.view.presence.items()):
            if presence.replica == replica:
                self._see(name)

    def _set_holds(self, replica: str, holds: tuple[str, ...]) -> None:
        before = {id for id, replicas in self._holds.items() if replica in replicas}
        for id in before.difference(holds):
            self._holds[id].discard(replica)
            if not self._holds[id]:
                del self._holds[id]
            self._lab.holder(id)
        for id in set(holds) - before:
            self._holds.setdefault(id, set()).add(replica)
            self._lab.holder(id)

    def _see(self, name: str) -> None:
        """Where an exporter is connected may have changed."""
        lab = self._lab
        there = lab.view.presence.get(name)
        here = lab.attending.get(name)
        if there is None or there.replica == self.name or there.replica not in self._alive:
            if here is not None and here.replica:
                del lab.attending[name]
                lab.engine.seen(name, None, lab.clock())
            self.tell(name)
        elif here is not None and not here.replica and here.since > there.since:
            self.tell(name)
        else:
            if here is not None and not here.replica:
                lab.let_go(here)
            lab.attending[name] = Attendance(
                peer=there.peer,
                version=there.software,
                endpoints=[{"url": item.url, "fingerprint": item.fingerprint} for item in there.endpoints],
                tree=there.tree,
                observed=there.observed,
                since=there.since,
                replica=there.replica,
            )
            lab.engine.seen(name, there.observed, lab.clock(), there.replica)
        lab.news.tell(("exporter", name))

    # ---- what is known

    def holds(self, id: str) -> bool:
        """Whether the holder of a lease is connected to another controller."""
        return id in self._holds

    def is_mine(self, id: str) -> bool:
        """Whether of those that live it is for this one to see that a lease goes on: all of them agree on one, mostly."""
        return all(_weight(self.name, id) >= _weight(other, id) for other in self._alive)


def _weight(replica: str, id: str) -> tuple[int, str]:
    return crc32(f"{replica}/{id}".encode()), replica
