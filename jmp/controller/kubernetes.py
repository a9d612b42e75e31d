"""The store in a Kubernetes cluster: custom resources, which several controllers share.

Theory of operation. Every record is an object (an exporter's presence is a part of the exporter's), and what is there is kept in
memory, by a list and a watch of each kind. A change is a PUT of the object with its ``resourceVersion``, so it fails if somebody
else was faster: then the object is read again. If the record is still as it was (another part has changed), the PUT is repeated.

There are no transactions. What must be changed together is a lease and the exporters that it is given, and that goes in steps:

1. Each exporter is *locked*: its status names the lease, with the raised epoch, and the lease's ``attempt``. Only what no lease
   holds, nor a valid lock, is locked.
2. The lease's status names the exporters. Only this is the grant: one PUT, of a lease that is queued and at the same attempt.

Leases that follow one another in the queue are granted together: the exporters of all are locked at once, then step 2 is done for
one after the other, as far as the first one that fails.

If a step fails, or if whoever began it does not go on, the attempt is given up: first the lease's ``attempt`` is raised, from
when on nobody can take step 2 on the strength of the old locks, then these are removed. All that makes a lock invalid (its lease
has ended, is gone, or is at a later attempt) stays so for ever: an old view of it can do no harm. A lease that is not in one's
memory is asked for; it may just be new.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Final

import trio

from jmp.controller.kubernetes_api import Access, Api, Denied, Gone, Object, Unreachable, Unserved, connect
from jmp.controller.kubernetes_events import Events, Happening, happening
from jmp.controller.kubernetes_objects import (
    RESOURCES,
    Resource,
    key_of,
    object_name,
    read,
    read_presence,
    to_object,
    to_presence,
    to_status,
    version_of,
)
from jmp.controller.store import Change, Key, Record, Rejected, Stale, Store
from jmp.errors import LabError
from jmp.wire.records import Exporter, Lease, Presence, State

log = logging.getLogger("jmp.controller")

PATIENCE: Final = 3.0
"""Seconds that a grant may stay half done before somebody else gives it up."""
PAUSE: Final = 0.5
"""Seconds before a watch that was cut off is tried again,"""
DENIED_PAUSE: Final = 5.0
"""and one that was refused."""

LEASES: Final = RESOURCES["lease"]
EXPORTERS: Final = RESOURCES["exporter"]

Place = tuple[str, str]
"""Kind of the resource and name of the object."""


class _Lost(Exception):
    """Somebody else was faster."""

    def __init__(self, key: Key) -> None:
        super().__init__(f"{key[0]} {key[1]} was changed by somebody else in the meantime")


@dataclass(eq=False)
class _Attempt:
    """One at granting a lease."""

    lease: Change
    exporters: Sequence[Change]
    number: int
    still: Callable[[], bool]
    """Whether it has not been given up."""
    error: _Lost | Denied | None = None
    """Why it has failed already."""


class KubernetesStore(Store):
    """Made by :func:`open_store`."""

    shared = True

    def __init__(self, api: Api, *, remembered: bool = False) -> None:
        """``remembered``: to begin with, what the API server remembers will do, as what has happened since is told by a watch."""
        self.api = api
        self._remembered = remembered
        self.events = Events(api)
        self._objects: dict[Place, Object] = {}
        """As the server has sent them; never changed here."""
        self._records: dict[Key, Record] = {}
        """What they say. A record has the version at which it changed last."""
        self._listed: dict[str, str] = {}
        self._tell: Callable[[Change], None] = lambda change: None
        self._writing: dict[Place, int] = {}
        """What is being written here,"""
        self._late: dict[Place, list[tuple[str, Resource, Object]]] = {}
        """and what the watch says of it meanwhile: most often it is that."""
        self._doubts: dict[str, float] = {}
        """Exporters that are locked for a lease that is not granted yet, and since when."""
        self._doubted = trio.Event()

    # ---- the interface

    async def load(self) -> list[tuple[str, str, Record]]:
        """As in :class:`~jmp.controller.store.Store`."""
        async with trio.open_nursery() as nursery:
            for resource in RESOURCES.values():
                nursery.start_soon(self._list, resource, self._remembered)
        return [(kind, name, record) for (kind, name), record in self._records.items()]

    async def watch(self, tell: Callable[[Change], None]) -> None:
        """As in :class:`~jmp.controller.store.Store`."""
        self._tell = tell
        async with trio.open_nursery() as nursery:
            for resource in RESOURCES.values():
                nursery.start_soon(self._follow, resource)
            nursery.start_soon(self._mend)
            nursery.start_soon(self.events.run)

    async def look(self, key: Key) -> bool:
        """As in :class:`~jmp.controller.store.Store`."""
        return await self._look(RESOURCES[key[0]], key[1]) is not None

    async def commit(self, changes: Sequence[Change]) -> list[Record | None]:
        """As in :class:`~jmp.controller.store.Store`."""
        started = monotonic()
        made: dict[Key, Record | None] = {}
        grants = _grants(changes)
        together = {change.key for lease, exporters in grants for change in (lease, *exporters)}
        try:
            with self._undisturbed(changes):
                for change in changes:
                    if change.key not in together:
                        await self._make(change, made)
                await self._grant(grants, made)
        except (_Lost, Denied) as error:
            now = {change.key: self._records.get(change.key) for change in changes}
            raise (Stale if isinstance(error, _Lost) else Rejected)(str(error), now, frozenset(made)) from None
        finally:
            self.commits += 1
            self.commit_seconds += monotonic() - started
            for change in changes:
                if change.key in made:
                    self._tell_of(change, made[change.key])
        return [made[change.key] for change in changes]

    async def aclose(self) -> None:
        """As in :class:`~jmp.controller.store.Store`."""
        await trio.lowlevel.checkpoint()

    def _tell_of(self, change: Change, now: Record | None) -> None:
        kind = "exporter" if change.kind == "presence" else change.kind
        item = self._objects.get((kind, object_name(change.name)))
        if item is not None and (what := happening(change.old, now)) is not None:
            self.events.tell(item, what)

    # ---- what is there

    async def _list(self, resource: Resource, remembered: bool = False) -> None:
        path = resource.path(self.api.namespace)
        items, self._listed[resource.kind] = await self.api.list(path, remembered=remembered)
        there = set()
        for item in items:
            there.add((resource.kind, item["metadata"]["name"]))
            self._take(resource, item)
        for place, known in list(self._objects.items()):
            if place[0] == resource.kind and place not in there and version_of(known) <= int(self._listed[place[0]]):
                self._remove(place, int(self._listed[place[0]]))

    async def _follow(self, resource: Resource) -> None:
        path, denied = resource.path(self.api.namespace), ""
        while True:
            try:
                async with aclosing(self.api.watch(path, self._listed[resource.kind])) as events:  # type: ignore[type-var]
                    async for kind, item in events:
                        if denied:
                            log.info("what %s there are is known again", resource.plural)
                            denied = ""
                        if kind != "BOOKMARK":
                            self._hear(kind, resource, item)
                        self._listed[resource.kind] = item["metadata"]["resourceVersion"]
            except Gone:
                await self._list_again(resource)
            except Denied as error:
                if str(error) != denied:
                    denied = str(error)
                    log.error("%s: what others change is not heard of before that is mended", denied)
                await trio.sleep(PAUSE if isinstance(error, Unserved) else DENIED_PAUSE)
                await self._list_again(resource)  # the kind itself may have been away
            except Unreachable as error:
                log.debug("the watch of %s ended: %s", path, error)
                await trio.sleep(PAUSE)

    async def _list_again(self, resource: Resource) -> None:
        try:
            await self._list(resource)
        except Denied as error:
            log.debug("%s", error)  # watching fails in the same way, and tells
            await trio.sleep(PAUSE)

    def _hear(self, kind: str, resource: Resource, item: Object) -> None:
        place = resource.kind, item["metadata"]["name"]
        if place in self._writing:
            self._late.setdefault(place, []).append((kind, resource, item))
        elif kind == "DELETED":
            self._remove(place, version_of(item))
        else:
            self._take(resource, item)

    @contextmanager
    def _undisturbed(self, changes: Iterable[Change]) -> Iterator[None]:
        """What is written here is not told as if it were somebody else's."""
        kinds = {"presence": "exporter"}
        places = {(kinds.get(change.kind, change.kind), object_name(change.name)) for change in changes}
        for place in places:
            self._writing[place] = self._writing.get(place, 0) + 1
        try:
            yield
        finally:
            for place in places:
                self._writing[place] -= 1
                if not self._writing[place]:
                    del self._writing[place]
                    for kind, resource, item in self._late.pop(place, ()):
                        self._hear(kind, resource, item)

    def _take(self, resource: Resource, item: Object, *, own: Key | None = None) -> None:
        """An object is, or was, as ``item`` says. The changes are told, except of the record ``own``."""
        place = resource.kind, item["metadata"]["name"]
        known = self._objects.get(place)
        if known is not None and version_of(known) >= version_of(item):
            return
        try:
            records: dict[Key, Record | None] = {key_of(resource, item): read(resource, item)}
            if resource is EXPORTERS:
                records["presence", key_of(resource, item)[1]] = read_presence(item)
        except LabError as error:
            log.warning("%s", error)
            self.events.tell({"kind": resource.name, **item}, Happening(False, "Unreadable", str(error)))
            return
        if resource.fixed and known is not None and known["spec"] != item["spec"]:  # by a server that knows no CEL
            self.events.tell({"kind": resource.name, **item}, Happening(False, "Ignored", resource.fixed))
        self._objects[place] = item
        for key, record in records.items():
            self._set(key, record, told=key != own)
        if resource is EXPORTERS:
            self._doubt(key_of(resource, item)[1])

    def _remove(self, place: Place, version: int, *, own: Key | None = None) -> None:
        known = self._objects.get(place)
        if known is None or version_of(known) > version:
            return
        del self._objects[place]
        resource = RESOURCES[place[0]]
        kind, name = key_of(resource, known)
        for key in ((kind, name), *([("presence", name)] if resource is EXPORTERS else [])):
            self._set(key, None, told=key != own, version=version)

    def _set(self, key: Key, record: Record | None, *, told: bool, version: int = 0) -> None:
        old = self._records.get(key)
        if record is None:
            if old is None:
                return
            del self._records[key]
            old = replace(old, version=max(version, old.version))
        elif old is not None and replace(old, version=record.version) == record:
            return
        else:
            self._records[key] = record
        if told:
            self._tell(Change(*key, old, record))

    async def _look(self, resource: Resource, name: str) -> Object | None:
        """An object as it is on the server now."""
        answer = await self.api.request("GET", resource.path(self.api.namespace, object_name(name)))
        place = resource.kind, object_name(name)
        if answer.status == 404:
            if (known := self._objects.get(place)) is not None:
                self._remove(place, version_of(known))
            return None
        self._take(resource, answer.body)
        return answer.body

    # ---- one record

    async def _make(self, change: Change, made: dict[Key, Record | None]) -> None:
        if change.kind == "presence":
            made[change.key] = await self._update(EXPORTERS, change)
            return
        resource = RESOURCES[change.kind]
        if change.new is None:
            await self._delete(resource, change)
            made[change.key] = None
            return
        if change.old is None:
            change = await self._create(resource, change)
            made[change.key] = change.old  # whatever comes of the rest, and whoever is the first to go on with it
        made[change.key] = await self._update(resource, change)

    def _check(self, change: Change) -> None:
        known = self._records.get(change.key)
        if (known and known.version) != (change.old and change.old.version):
            raise _Lost(change.key)

    async def _create(self, resource: Resource, change: Change) -> Change:
        """Make an object, without its status; returns what there is to change then."""
        assert change.new is not None
        self._check(change)
        item = to_object(resource, change.name, change.new)
        answer = await self.api.request("POST", resource.path(self.api.namespace), item)
        if answer.status == 409:
            there = await self._look(resource, change.name)
            # A repeated POST finds what the first one made. Of these kinds nobody else makes one of the same name.
            if there is None or resource.kind not in ("lease", "token") or there["spec"] != item["spec"]:
                raise _Lost(change.key)
        elif answer.status >= 400:
            raise Denied(f"the Kubernetes API refuses to make {resource.plural}/{change.name}: {answer.message}")
        else:
            self._take(resource, answer.body, own=change.key)
        made = self._records.get(change.key)
        if made is None:
            raise _Lost(change.key)
        new = change.new
        if isinstance(new, Lease) and isinstance(made, Lease):
            new = replace(new, number=made.version)
        return replace(change, old=made, new=new)

    async def _update(
        self, resource: Resource, change: Change, still: Callable[[], bool] = lambda: True, **more: int
    ) -> Record | None:
        """Change an object, as long as ``still`` is true. ``more`` goes into its status."""
        place = resource.kind, object_name(change.name)
        self._check(change)
        kept = self._records.get(change.key)
        for part in ("", "status") if resource.status else ("",):
            while True:
                item = self._objects.get(place)
                if item is None or not still():
                    raise _Lost(change.key)
                body = _body(resource, change, item, part, more)
                if body is None:
                    break
                path = resource.path(self.api.namespace, place[1], part)
                answer = await self.api.request("PUT", path, body)
                if answer.status < 400:
                    self._take(resource, answer.body, own=change.key)
                    kept = self._as_written(change, answer.body)
                    change = replace(change, old=kept)
                    break
                await self._look(resource, change.name)
                item = self._objects.get(place)
                if item is not None and _body(resource, change, item, part, more) is None:
                    kept = self._records.get(change.key)  # a repeated PUT finds what the first one wrote
                    change = replace(change, old=kept)
                    break
                self._check(change)
        return kept

    def _as_written(self, change: Change, item: Object) -> Record | None:
        """What was kept, though somebody may have changed it already: that is told, and news then."""
        known = self._records.get(change.key)
        if change.new is None or (known is not None and known.version <= version_of(item)):
            return known
        return replace(change.new, version=version_of(item))

    async def _delete(self, resource: Resource, change: Change) -> None:
        place = resource.kind, object_name(change.name)
        while True:
            self._check(change)
            item = self._objects.get(place)
            if item is None:
                raise _Lost(change.key)
            metadata = item["metadata"]
            only = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": only}
            answer = await self.api.request("DELETE", resource.path(self.api.namespace, place[1]), options)
            if answer.status < 400 or answer.status == 404:
                self._remove(place, version_of(item), own=change.key)
                return
            await self._look(resource, change.name)

    # ---- a lease and its exporters

    async def _grant(self, grants: Sequence[tuple[Change, list[Change]]], made: dict[Key, Record | None]) -> None:
        """Grant some leases, the one at the head of the queue first. If one of them fails, those behind it are not granted."""
        attempts = [await self._begin(lease, exporters, made) for lease, exporters in sorted(grants, key=_turn)]
        async with trio.open_nursery() as nursery:
            for attempt in attempts:
                nursery.start_soon(self._lock_all, attempt, made)
        failed: _Lost | Denied | None = None
        for attempt in attempts:
            failed = failed or attempt.error
            if failed is None:
                try:
                    made[attempt.lease.key] = await self._update(LEASES, attempt.lease, attempt.still)
                    continue
                except (_Lost, Denied) as error:
                    failed = error
            with suppress(Denied):  # it is done later, then
                await self._give_up(attempt.lease.name, attempt.number, [change.name for change in attempt.exporters])
            for exporter in attempt.exporters:
                made.pop(exporter.key, None)
        if failed is not None:
            raise failed

    async def _begin(self, lease: Change, exporters: Sequence[Change], made: dict[Key, Record | None]) -> _Attempt:
        if lease.old is None:
            lease = await self._create(LEASES, lease)
            made[lease.key] = lease.old
        self._check(lease)
        number = self._attempt(lease.name)
        return _Attempt(lease, exporters, number, lambda: self._attempt(lease.name) == number)

    async def _lock_all(self, attempt: _Attempt, made: dict[Key, Record | None]) -> None:
        try:
            for exporter in attempt.exporters:
                await self._check_lock(exporter.name, attempt.lease.name)
                made[exporter.key] = await self._update(EXPORTERS, exporter, attempt=attempt.number)
        except (_Lost, Denied) as error:
            attempt.error = error

    def _is_queued(self, lease: str) -> bool:
        record = self._records.get(("lease", lease))
        return isinstance(record, Lease) and record.state is State.QUEUED

    async def _check_lock(self, name: str, lease: str) -> None:
        """An exporter may be locked for ``lease``: no other one has it, nor is about to have it.

        Nobody is refused because of what is remembered: it may be old, and whoever decides again must not go by the same again.
        """
        record = self._records.get(("exporter", name))
        if isinstance(record, Exporter) and record.lease and ("lease", record.lease) not in self._records:
            await self._look(LEASES, record.lease)
        if self._may_lock(name, lease):
            return
        await self._look(EXPORTERS, name)
        if (holder := self._lock(name)[0]) and holder != lease:
            await self._look(LEASES, holder)
        if not self._may_lock(name, lease):
            raise _Lost(("exporter", name))

    def _may_lock(self, name: str, lease: str) -> bool:
        record = self._records.get(("exporter", name))
        if not isinstance(record, Exporter) or record.lease in ("", lease):
            return True
        holder = self._records.get(("lease", record.lease))
        if not isinstance(holder, Lease) or holder.state is State.ENDED:
            return True
        if holder.state is State.QUEUED:
            return self._lock(name)[1] < self._attempt(holder.id)
        return not any(held.exporter == name and held.phase != "idle" for held in holder.devices)

    def _attempt(self, lease: str) -> int:
        item = self._objects.get(("lease", object_name(lease)), {})
        return int((item.get("status") or {}).get("attempt", 0))

    def _lock(self, exporter: str) -> tuple[str, int]:
        status = self._objects.get(("exporter", object_name(exporter)), {}).get("status") or {}
        return status.get("lease", ""), int(status.get("attempt", 0))

    async def _give_up(self, lease: str, attempt: int, exporters: Iterable[str]) -> None:
        """See that nothing comes of an attempt to grant a lease any more, if it has not been granted."""
        while True:
            item = self._objects.get(("lease", object_name(lease))) or await self._look(LEASES, lease)
            record = self._records.get(("lease", lease))
            if item is None or not isinstance(record, Lease) or record.state is not State.QUEUED:
                break
            if self._attempt(lease) > attempt:
                break
            status = {**(item.get("status") or {}), "attempt": attempt + 1}
            if await self._write_status(LEASES, lease, item, status):
                break
        for name in exporters:
            while self._lock(name) == (lease, attempt):
                record = self._records.get(("lease", lease))
                if isinstance(record, Lease) and any(held.exporter == name for held in record.devices):
                    break  # it was granted
                item = self._objects["exporter", object_name(name)]
                status = {key: value for key, value in item["status"].items() if key not in ("lease", "attempt")}
                await self._write_status(EXPORTERS, name, item, status)

    async def _write_status(self, resource: Resource, name: str, item: Object, status: Object) -> bool:
        path = resource.path(self.api.namespace, object_name(name), "status")
        answer = await self.api.request("PUT", path, {**item, "status": status})
        if answer.status >= 400:
            await self._look(resource, name)
            return False
        self._take(resource, answer.body)
        return True

    def _is_half_done(self, exporter: str) -> bool:
        return self._is_queued(self._lock(exporter)[0])

    def _doubt(self, exporter: str) -> None:
        if self._lock(exporter)[0]:
            self._doubts[exporter] = trio.current_time()
            self._doubted.set()

    async def _mend(self) -> None:
        """Give up what somebody has left half done."""
        for place in list(self._objects):
            if place[0] == "exporter":
                self._doubt(key_of(EXPORTERS, self._objects[place])[1])
        while True:
            self._doubted = trio.Event()
            with trio.move_on_at(min(self._doubts.values(), default=float("inf")) + PATIENCE):
                await self._doubted.wait()
            for name, since in list(self._doubts.items()):
                if since + PATIENCE <= trio.current_time():
                    del self._doubts[name]
                    lease, attempt = self._lock(name)
                    if self._is_half_done(name):
                        log.info("the grant of %s to lease %s was left half done, and is given up", name, lease)
                        try:
                            await self._give_up(lease, attempt, [name])
                        except Denied as error:
                            log.error("%s", error)
                            self._doubts[name] = trio.current_time()


def _grants(changes: Sequence[Change]) -> list[tuple[Change, list[Change]]]:
    """The leases that get exporters, or these at a higher epoch, and the exporters."""
    raised = {
        change.name: change
        for change in changes
        if isinstance(change.new, Exporter) and isinstance(change.old, Exporter) and change.new.epoch > change.old.epoch
    }
    grants = []
    for change in changes:
        if isinstance(change.new, Lease):
            found = [
                raised[held.exporter]
                for held in change.new.devices
                if held.exporter in raised and _epoch(raised[held.exporter]) == held.epoch
            ]
            if found:
                grants.append((change, found))
    return grants


def _turn(grant: tuple[Change, list[Change]]) -> tuple[int, int]:
    """A lease's place in the order of all."""
    lease = grant[0].new
    assert isinstance(lease, Lease)
    return -lease.priority, lease.number


def _epoch(change: Change) -> int:
    return getattr(change.new, "epoch", 0)


def _body(resource: Resource, change: Change, item: Object, part: str, more: dict[str, Any]) -> Object | None:
    """What to PUT; None if nothing is to be changed."""
    if isinstance(change.new or change.old, Presence):
        if not part:
            return None
        status = {**(item.get("status") or {}), "presence": to_presence(change.new)}  # type: ignore[arg-type]
        status = {key: value for key, value in status.items() if value is not None}
    elif part:
        status = {**to_status(resource, change.new, item), **more}
    else:
        body = to_object(resource, change.name, change.new, item)
        same = body["spec"] == (item.get("spec") or {}) and all(
            (body["metadata"].get(key) or {}) == (item["metadata"].get(key) or {}) for key in ("labels", "annotations")
        )
        return None if same else body
    return None if status == (item.get("status") or {}) else {**item, "status": status}


@asynccontextmanager
async def open_store(access: Access) -> AsyncIterator[KubernetesStore]:
    """The store in the namespace of ``access``, for the length of a block."""
    async with connect(access) as api:
        yield KubernetesStore(api)
