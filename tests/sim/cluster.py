"""The cluster that the controllers of a simulated lab share: its API server, and how each of them reaches it.

A request is under way both ways, and takes effect in between, whether whoever sent it still waits for it, lives, or has sent it
once more. What watches tell comes late, to each controller by a time of its own, and never out of order. The server restarts:
then connections break, and it knows neither kinds nor rights at first, nor what has happened before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpcore2
import trio

from jmp.controller.kubernetes import LEASES
from jmp.controller.kubernetes_api import Object
from jmp.controller.kubernetes_objects import RESOURCES, read, to_object, to_status
from jmp.controller.store import Key
from jmp.wire.records import Lease, Phase, State
from tests.fakes.apiserver import ApiServer, Pool, Response, bookmark, line
from tests.sim.world import CLUSTER, START, Process, World

NAMESPACE: Final = "lab"
NEWS: Final = 1.0
"""Seconds in which what a controller was told has made a difference to what it decides."""
REMEMBERED: Final = 40
"""Writes that are remembered for watches over a restart; often none are."""


class Cluster(ApiServer):
    """The API server of a world."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda: START + trio.current_time(), wrote=self._note)
        self.world = world
        self.lag = world.rng.choice((0.0, 0.0, 0.1, 0.5))
        """Seconds by which watches are late as a rule."""
        self.up = True
        self.life = 0
        """How often it has been started again."""
        self.ready = 0.0
        """When it knows kinds and rights."""
        self.traps: list[Callable[[SimulatedPool], Awaitable[None]]] = []
        """What happens to the next ones who have done half of a grant,"""
        self.snares: list[Callable[[SimulatedPool], Awaitable[None]]] = []
        """and to the next ones whose second half is under way, which takes as long as that."""
        self.writer: SimulatedPool | None = None
        """Who sent what is being answered."""
        self.pools: dict[str, SimulatedPool] = {}
        """Of each controller, the newest process's."""

    def format(self, records: dict[Key, Any]) -> None:
        """Begin with these."""
        for (kind, name), record in records.items():
            resource = RESOURCES[kind]
            item = to_object(resource, name, record)
            path = resource.path(NAMESPACE)
            self._create(path, item)
            if resource.status:
                place = f"{path}/{item['metadata']['name']}"
                self._put(place, self.objects[place], {"status": to_status(resource, record, item)}, "status")

    @property
    def records(self) -> dict[Key, Any]:
        """What is kept now."""
        found: dict[Key, Any] = {}
        for resource in RESOURCES.values():
            for place, item in self.objects.items():
                if place.rpartition("/")[0] == resource.path(NAMESPACE):
                    record: Any = read(resource, item)
                    found[resource.kind, getattr(record, "id", None) or record.name] = record
        return found

    async def restart(self, seconds: float) -> None:
        """Be away for a while, and know little afterwards."""
        rng = self.world.rng
        self.world.note(CLUSTER, "killed")
        self.up = False
        self.life += 1
        self.stir()
        await trio.sleep(seconds)
        self.start(rng.choice((0.0, 0.3, 2.0)))
        self.forget(rng.choice((0, 0, REMEMBERED)))

    def start(self, warming: float = 0.0) -> None:
        """Be there again."""
        self.world.note(CLUSTER, "starts")
        self.up = True
        self.ready = trio.current_time() + warming
        self.stir()

    def mend(self) -> None:
        """Be well, and known to be."""
        self.traps.clear()
        self.snares.clear()
        for pool in self.pools.values():
            pool.lag, pool.late_until, pool.drops = 0.0, 0.0, 0
        if not self.up:
            self.start()

    def starting(self) -> Response | None:
        """What it says to anybody before it is ready."""
        if trio.current_time() >= self.ready:
            return None
        if self.world.rng.random() < 0.5:
            return Response(404, body=b"404 page not found\n")
        return self._refusal(403, "Forbidden", "nobody may do anything yet")

    def _note(self, before: Object | None, now: Object) -> None:
        """Let what becomes of leases be part of the history, in the order of the writes; with what the writer can have known."""
        if now.get("kind") != LEASES.name:
            return
        old, new = (None if item is None else read(LEASES, item) for item in (before, now))
        if not isinstance(new, Lease):
            return
        if new.number > 0 >= getattr(old, "number", 0):
            self.world.note(CLUSTER, "queued", new.id, new.version)
        before_it, now_has = (_held(lease) for lease in (old, new))
        for name in before_it.keys() - now_has.keys():
            self.world.note(CLUSTER, "lets-go", new.id, name)
        for name, epoch in now_has.items():
            if before_it.get(name) != epoch:
                self.world.note(CLUSTER, "holds", new.id, name, epoch)
        if new.state is not getattr(old, "state", State.QUEUED):
            pool, decided = self.writer, (new.granted or 0.0) - START
            known = pool.knew(decided - NEWS) if pool is not None else 0
            self.world.note(CLUSTER, str(new.state), new.id, pool and pool.process.name, round(decided, 3), known)


def _locks(path: str, body: Object | None) -> bool:
    """Whether that is the first half of a grant."""
    status = (body or {}).get("status") or {}
    return "/exporters/" in path and "attempt" in status


def _grants(path: str, body: Object | None) -> bool:
    """Whether that is the second half of a grant."""
    status = (body or {}).get("status") or {}
    return "/deviceleases/" in path and status.get("state") == State.PREPARING and "ready" not in status


def _held(lease: Any) -> dict[str, int]:
    """The exporters that a lease has, with their epochs."""
    if not isinstance(lease, Lease) or lease.state in (State.QUEUED, State.ENDED):
        return {}
    return {held.exporter: held.epoch for held in lease.devices if held.phase is not Phase.IDLE}


@dataclass(eq=False)
class SimulatedPool(Pool):
    """How one process reaches the cluster."""

    server: Cluster
    process: Process
    lag: float = 0.0
    """Seconds by which all that its watches tell is late."""
    late: str = ""
    """What the watch is of, one or all,"""
    late_until: float = 0.0
    """that tells nothing before this."""
    drops: int = 0
    """How many of the next answers get lost."""
    told: list[tuple[float, int]] = field(default_factory=list)
    """When it was told what had happened to leases, and up to which version."""

    def knew(self, at: float) -> int:
        """Up to which version that was known at a time."""
        return max((version for when, version in self.told if when <= at), default=0)

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, query: dict[str, str], body: Object | None, patience: float
    ) -> AsyncIterator[Response]:
        if not self.process.alive:
            await trio.sleep_forever()
        answered = trio.Event()
        answers: list[Response | Exception] = []
        self.process.world.outside(self._serve, method, path, query, body, answers, answered)
        with trio.move_on_after(patience) as scope:
            await answered.wait()
        if scope.cancelled_caught:
            raise httpcore2.ReadTimeout("timed out")
        if isinstance(answers[0], Exception):
            raise answers[0]
        yield answers[0]

    async def _serve(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None,
        answers: list[Response | Exception],
        answered: trio.Event,
    ) -> None:
        """What becomes of a request; nobody can stop it once it is sent."""
        world, server = self.process.world, self.server
        life = server.life
        if server.snares and method == "PUT" and _grants(path, body):
            await server.snares.pop()(self)
        await self._cross()
        if not server.up or server.life != life:
            answers.append(httpcore2.ConnectError("refused") if not server.up else httpcore2.ReadError("reset"))
        else:
            answers.append(server.starting() or self._answer(method, path, query, body))
            version = server.version
            await self._cross()
            if method == "GET" and path == LEASES.path(NAMESPACE) and "watch" not in query:
                self.told.append((trio.current_time(), version))
            if server.life != life or self.drops:
                self.drops = max(self.drops - 1, 0)
                answers[0] = httpcore2.RemoteProtocolError("Server disconnected without sending a response.")
        world.note(self.process.name, "asked", method, path.partition("/lab/")[2], getattr(answers[0], "status", 0))
        answered.set()

    async def _cross(self) -> None:
        """Be on the way from one to the other."""
        await trio.sleep(self.process.world.latency())
        await self.process.world.reach(self.process.name, CLUSTER)

    def _answer(self, method: str, path: str, query: dict[str, str], body: Object | None) -> Response:
        if "watch" not in query:
            self.server.writer = self
            if self.server.traps and _locks(path, body):
                self.process.world.outside(self.server.traps.pop(), self)
            return self.server.answer(method, path, query, body)
        version = int(query["resourceVersion"])
        if version < self.server.forgotten:
            expired = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            if self.process.world.rng.random() < 0.5:
                return self.server.say(410, expired)
            return Response(200, self.server.headers(), stream=_once(line("ERROR", expired)))
        return Response(200, self.server.headers(), stream=self._watch(path, version, float(query["timeoutSeconds"])))

    async def _watch(self, path: str, version: int, seconds: float) -> AsyncIterator[bytes]:
        """What happens, until the server has enough of it."""
        server, world, life = self.server, self.process.world, self.server.life
        over = trio.current_time() + seconds
        quiet = trio.current_time()
        while trio.current_time() < over:
            with trio.move_on_at(over):
                await self._come_late(path)
            if server.life != life:
                raise httpcore2.ReadError("reset")
            found = list(server.after(path, version))
            due = [one for one in found if one.at + self.lag <= trio.current_time()]
            if due:
                version, quiet = due[-1].version, trio.current_time()
                if path == LEASES.path(NAMESPACE):
                    self.told.append((quiet, version))
                yield b"".join(line(one.type, one.item) for one in due)
            elif found:
                await trio.sleep_until(found[0].at + self.lag)
            elif trio.current_time() >= quiet + world.rng.choice((30.0, 60.0)):
                quiet = trio.current_time()
                yield bookmark(version := max(version, server.version))
            else:
                with trio.move_on_at(min(over, quiet + 60.0)):
                    await server.changed[path].park()

    async def _come_late(self, path: str) -> None:
        while path.endswith(self.late) and trio.current_time() < self.late_until:  # noqa: ASYNC110  # it may be put off
            await trio.sleep_until(self.late_until)
        await self.process.world.reach(self.process.name, CLUSTER)


async def _once(chunk: bytes) -> AsyncIterator[bytes]:
    await trio.lowlevel.checkpoint()
    yield chunk
