"""The roles of a simulated lab: the real ones, each on a machine of the world. Only the disk and the device are made for this."""

from __future__ import annotations

import copy
import functools
import hashlib
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from jmp.audit import Audit
from jmp.controller.keys import Keys
from jmp.controller.kubernetes import KubernetesStore
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.controller.serve import Door
from jmp.controller.store import Change, Full, Record, Store
from jmp.driver import Driver, Stream, export, exportstream
from jmp.exporter import config as configuration
from jmp.exporter.config import ExporterConfig
from jmp.exporter.lab import LabExporter, Memory
from jmp.link import Link, websocket
from jmp.router.serve import Router, attend
from jmp.wire.records import Client, Desired, Exporter, Policy, Role, changed
from tests.fakes.apiserver import api_through
from tests.fakes.memory_store import MemoryStore
from tests.sim import disk
from tests.sim.cluster import Cluster, SimulatedPool
from tests.sim.world import PROCESS, START, Process, World, replaced

CONTROLLER: Final = "wss://controller"
YEARS: Final = 10 * 365 * 86400.0
R = TypeVar("R", bound=Record)

# ---- the controller


class Disk(MemoryStore):
    """The records on a controller's disk: what was committed survives its process, whether anybody was told or not."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.records, self._version = process.machine.disk["records"], process.machine.disk["version"]

    async def commit(self, changes: Sequence[Change]) -> list[Record | None]:
        """As in :class:`~jmp.controller.store.Store`; takes its time before and after the moment that counts."""
        await self.seek()
        if not self.process.alive:
            await trio.sleep_forever()
        if self.process.machine.disk.get("full"):
            raise Full("the disk is full", {change.key: self.records.get(change.key) for change in changes})
        kept = await super().commit(changes)
        await self.seek()
        return kept

    async def seek(self) -> None:
        """Wait for the disk."""
        world = self.process.world
        await trio.sleep(world.rng.random() * world.rng.choice((0.0, 0.002, 0.002, 0.3 if world.faults else 0.0)))


@functools.cache
def keys() -> Keys:
    """The lab's keys: the same for all histories, since making them takes longer than using them."""
    return Keys.open(Path(tempfile.mkdtemp(prefix="jmp-sim-")), ["controller"], clock=lambda: START)


@functools.cache
def identity(role: Role, name: str) -> tuple[str, Any]:
    """A token and the record of it, with the same id in all histories, whichever is the first to need it."""
    with replaced(
        secrets, "token_hex", lambda size=16: hashlib.sha256(f"{role}/{name}".encode()).hexdigest()[: 2 * size]
    ):
        return keys().identity(name, role, YEARS)


def records_of(clients: Sequence[str], exporters: Sequence[str], routers: Sequence[str]) -> dict[tuple[str, str], Any]:
    """What an admin has set up before the history begins."""
    records: dict[tuple[str, str], Any] = {("policy", "default"): changed(Policy(name="default"), version=1)}
    for role, names in ((Role.CLIENT, clients), (Role.EXPORTER, exporters), (Role.ROUTER, routers)):
        for name in names:
            _, record = identity(role, name)
            records["token", record.id] = changed(record, version=1)
            if role is Role.CLIENT:
                records["client", name] = changed(Client(name=name), version=1)
            elif role is Role.EXPORTER:
                labels = config_of(name).metadata.labels
                records["exporter", name] = changed(Exporter(name=name, labels=labels), version=1)
    return records


def format_disk(world: World, records: dict[tuple[str, str], Any]) -> None:
    """Have them on the controller's disk."""
    disk = world.machine("controller").disk
    disk["records"], disk["version"] = records, [1]


async def controller(process: Process) -> None:
    """``jmp controller serve``."""
    await _serve(process, Disk(process), process.clock)


async def embedded(process: Process) -> None:
    """The same, with the real store, on files."""
    store = disk.SqliteDisk(process).store
    try:
        await _serve(process, store, process.clock)
    finally:
        if process.alive:
            await store.aclose()


async def replica(process: Process, *, cluster: Cluster) -> None:
    """``jmp controller serve --store kubernetes``, one of several."""
    pool = cluster.pools[process.name] = SimulatedPool(cluster, process, cluster.lag)
    api = api_through(pool, process.clock)
    try:
        await api.request("GET", "/api/v1/namespaces/lab/secrets/keys")  # as it begins: from then on it knows the time
        await _serve(process, KubernetesStore(api, remembered=True), api.clock)
    finally:
        if process.stopping and isinstance(process.about, Lab):
            await process.about.others.leave()


async def _serve(process: Process, store: Store, clock: Callable[[], float]) -> None:
    own = copy.copy(keys())
    own._clock = clock
    lab = Lab(Engine(), store, own, Audit(None), clock=clock, name=process.name)
    await lab.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(lab.run)
        door = Door(lab)
        await nursery.start(process.world.listen, CONTROLLER, door.authenticate, door.serve_link)
        process.about = lab


# ---- a router


async def router(process: Process) -> None:
    """``jmp router serve``."""
    role = process.about = Router()
    url = f"wss://{process.name}"
    token, _ = identity(Role.ROUTER, process.name)

    async def dial() -> Link:
        return await websocket.connect(CONTROLLER, token=token)

    async with trio.open_nursery() as nursery:
        await nursery.start(process.world.listen, url, role.authenticate, role.serve_link)
        await attend(role, dial, url, None)


# ---- an exporter and its device


class Bench(Driver):
    """A device that notes what happens to it."""

    async def open(self) -> None:
        """Nothing to do, and no thread to do it in."""

    async def close(self) -> None:
        """Likewise."""

    @export
    async def use(self, call: str, lease: str, epoch: int) -> str:
        """Do something that takes a moment."""
        process = PROCESS.get()
        process.note("call", call, lease, epoch)
        try:
            await trio.sleep(process.world.rng.choice((0.0, 0.01, 1.0)))
        finally:
            process.note("call-over", call, lease, epoch)
        return call

    @exportstream
    async def pipe(self, stream: Stream, name: str, lease: str, epoch: int) -> None:
        """Keep what comes, and send it back."""
        process = PROCESS.get()
        process.note("call", name, lease, epoch)
        try:
            async for data in stream:
                process.note("got", name, bytes(data))
                await stream.send_all(data)
        finally:
            process.note("call-over", name, lease, epoch)


@functools.cache
def config_of(name: str) -> ExporterConfig:
    """The configuration of an exporter; the scripts of its hooks are never run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.yaml")
        file.write_text(
            f"{{apiVersion: jmp/v1, kind: Exporter, metadata: {{name: {name}, labels: {{board: bench}}}},"
            " export: {bench: {type: bench}},"
            " hooks: {beforeLease: {script: before, onFailure: endLease}, afterLease: {script: after}}}"
        )
        return configuration.load(file, {"bench": Bench})


class Flash(Memory):
    """What an exporter keeps: on its machine's disk."""

    @classmethod
    def of(cls, process: Process) -> Flash:
        memory = cls(Path(process.name), **process.machine.disk.get("memory", {}))
        memory.process = process
        return memory

    process: Process

    def save(self, *, synced: bool = True) -> None:
        """As :meth:`Memory.save`."""
        if self.process.alive:
            kept = {key: value for key, value in vars(self).items() if key not in ("file", "process")}
            self.process.machine.disk["memory"] = kept


class NotedExporter(LabExporter):
    """One that notes when it is told that a lease's time runs."""

    def _wish(self, desired: Desired) -> None:
        grant = desired.grant
        if grant is not None and grant.running is not None:
            PROCESS.get().note("runs", grant.lease, round(grant.running, 3))
        super()._wish(desired)


async def exporter(process: Process, *, direct: bool = True) -> None:
    """``jmp exporter serve`` in a lab; ``direct``: clients reach it without a router, too."""
    url = f"wss://{process.name}"
    token, _ = identity(Role.EXPORTER, process.name)

    async def dial() -> Link:
        return await websocket.connect(CONTROLLER, token=token)

    role = NotedExporter(
        config_of(process.name),
        Flash.of(process),
        dial,
        [{"url": url, "fingerprint": None}] if direct else [],
        endpoint=CONTROLLER,
        wall_clock=process.clock,
    )
    process.about = role
    async with trio.open_nursery() as nursery:
        await nursery.start(process.world.listen, url, role.authenticate, role.serve_link)
        try:
            await role.run()
        finally:
            nursery.cancel_scope.cancel()
