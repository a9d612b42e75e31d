"""A whole lab in one process: the real controller, exporters and clients, joined by links in memory.

Only the store is a fake: a dictionary that takes a checkpoint to commit. Everything that decides or talks is the real thing.
"""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from jmp.audit import Audit
from jmp.client.connect import TARGET, Device, device_of
from jmp.client.lab import Lab as ClientLab
from jmp.controller.keys import Keys
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.controller.serve import Door
from jmp.controller.store import Change, Store
from jmp.driver import Driver, Stream, export, exportstream
from jmp.errors import JmpError, LabError
from jmp.exporter import config as configuration
from jmp.exporter.hold import Visit
from jmp.exporter.lab import LabExporter, Memory
from jmp.link import Link
from jmp.link.memory import MemoryLink, memory_links
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller
from jmp.wire import records
from jmp.wire.records import State, Want
from jmp.wire.tokens import Identity
from tests.fakes.memory_store import MemoryStore

START = 1_800_000_000.0


class Lamp(Driver):
    """A lamp that remembers."""

    lit = False

    async def open(self) -> None:
        """Without a thread, for which a mocked clock would not wait."""

    async def close(self) -> None:
        """Likewise."""

    @export
    async def on(self) -> None:
        """Light it."""
        Lamp.lit = True

    @export
    async def wait(self) -> None:
        """Never return."""
        await trio.sleep_forever()

    @exportstream
    async def echo(self, stream: Stream) -> None:
        """Send back what comes."""
        async for data in stream:
            await stream.send_all(data)


class MemoryLab:
    """A lab; made by :func:`memory_lab`."""

    def __init__(
        self, directory: Path, nursery: trio.Nursery, store: Store | None = None, name: str = "controller"
    ) -> None:
        self.directory = directory
        self.nursery = nursery
        self.store = store or MemoryStore()
        self.name = name
        self.offset = START
        self.links: list[MemoryLink] = []
        self.ends: dict[str, MemoryLink] = {}
        """The controller's end of the newest link of each."""
        self.lab: Lab
        self.door: Door | None = None
        self._scope = trio.CancelScope()

    def audit_of(self, exporter: str) -> Path:
        """Where an exporter writes what was done to its device."""
        return self.directory / f"{exporter}.audit.jsonl"

    def clock(self) -> float:
        """The wall clock of everybody here."""
        return self.offset + trio.current_time()

    async def start_controller(self) -> None:
        """Start the controller, on what the last one has left."""
        keys = Keys.open(self.directory / "keys", ["localhost"], clock=self.clock)
        audit = Audit(self.directory / "audit.jsonl")
        self.lab = Lab(Engine(), self.store, keys, audit, clock=self.clock, name=self.name)
        await self.lab.load()
        await self.nursery.start(self._run)
        self.door = Door(self.lab)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._scope:
            await self.lab.run(task_status=task_status)

    def kill_controller(self) -> None:
        """End the controller as a kill would: nobody is told."""
        self.door = None
        self._scope.cancel()
        for link in self.links:
            link.cut()
        self.links.clear()

    async def dial(self, who: Identity) -> Link:
        """A link to the controller as ``who``."""
        if self.door is None:
            raise LabError("connection refused")
        near, far = memory_links()
        self.links.append(near)
        self.ends[who.name] = far
        self.nursery.start_soon(self._serve, self.door, far, who)
        return near

    async def _serve(self, door: Door, link: Link, who: Identity) -> None:
        with trio.CancelScope() as scope:
            self._door_scopes = scope
            await door.serve_link(link, who)

    async def identity(self, name: str, role: records.Role) -> Identity:
        """Somebody with a token that the controller knows."""
        _, token = self.lab.keys.identity(name, role, 86400.0)
        self.lab.put(Change("token", token.id, None, token))
        await self.lab.settle()
        return Identity(name, role, token.id, token.expires)

    async def add(self, record: Any) -> None:
        """Keep a client, an exporter or a policy."""
        self.lab.engine.put(record, self.clock())
        await self.lab.settle()

    @asynccontextmanager
    async def client(self, name: str, role: records.Role = records.Role.CLIENT) -> AsyncIterator[ClientLab]:
        """A client's connection to the controller; the client is made if it is new."""
        if role is records.Role.CLIENT and name not in self.lab.view.client:
            await self.add(records.Client(name=name))
        async with multiplex(await self.dial(await self.identity(name, role)), Role.DIALLER) as connection:
            yield ClientLab(Caller(connection))

    @asynccontextmanager
    async def exporter(
        self, name: str, more: str = "", *, others: Sequence[MemoryLab] = ()
    ) -> AsyncIterator[LabExporter]:
        """An exporter with a lamp; ``more`` is added to its configuration. It goes to ``others`` if this one is dead."""
        if name not in self.lab.view.exporter:
            await self.add(records.Exporter(name=name))
        who = await self.identity(name, records.Role.EXPORTER)
        path = self.directory / f"{name}.yaml"
        path.write_text(
            textwrap.dedent(f"""\
                apiVersion: jmp/v1
                kind: Exporter
                metadata: {{name: {name}, labels: {{board: lamp, name: {name}}}}}
                export:
                  lamp: {{type: lamp}}
                """)
            + textwrap.dedent(more)
        )
        loaded = configuration.load(path, {"lamp": Lamp})
        memory = Memory.load(self.directory / f"{name}.json")

        async def dial() -> Link:
            for lab in (self, *others):
                if lab.door is not None:
                    return await lab.dial(who)
            raise LabError("connection refused")

        exporter = LabExporter(loaded, memory, dial, audit=Audit(self.audit_of(name)), wall_clock=self.clock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exporter.run)
            await self.attended(name)
            yield exporter
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def visit(
        self, lab: ClientLab, exporter: LabExporter, lease: str
    ) -> AsyncIterator[tuple[Connection, Device]]:
        """A holder's link to an exporter, joined to the lease."""
        answer = await lab.meet(lease, exporter.config.metadata.name)
        async with self.visit_with(exporter, answer["token"]) as found:
            yield found

    @asynccontextmanager
    async def visit_with(self, exporter: LabExporter, token: str) -> AsyncIterator[tuple[Connection, Device]]:
        """The same with a token that one has."""
        near, far = memory_links()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Visit(exporter).serve_link, far)
            async with multiplex(near, Role.DIALLER) as connection:
                caller = Caller(connection)
                report = await caller.call(TARGET, "begin", (), {"token": token})
                yield connection, device_of(caller, report)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def listen(self, lab: ClientLab, exporter: LabExporter, lease: str) -> AsyncIterator[AsyncIterator[Any]]:
        """What a lease's hooks print, also before it is ready."""
        token = (await lab.meet(lease, exporter.config.metadata.name))["token"]
        near, far = memory_links()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Visit(exporter).serve_link, far)
            async with multiplex(near, Role.DIALLER) as connection:
                caller = Caller(connection)
                nursery.start_soon(_begin, caller, token)
                async with aclosing(caller.items(TARGET, "output", (), {})) as items:
                    yield items
            nursery.cancel_scope.cancel()

    async def wait(self, id: str, *states: State) -> records.Lease:
        """Wait until a lease has come to one of ``states``."""
        with self.lab.news.listen(("lease", id)) as listener:
            while (lease := self.lab.view.lease.get(id)) is None or lease.state not in states:
                await listener.wait()
        return lease

    async def attended(self, name: str) -> None:
        """Wait until an exporter is free."""
        with self.lab.news.listen(("observed", name), ("exporter", name)) as listener:
            while name not in self.lab.engine._free:
                await listener.wait()


async def _begin(caller: Caller, token: str) -> None:
    with suppress(JmpError):
        await caller.call(TARGET, "begin", (), {"token": token})


WANT = [Want(selector="board=lamp")]


@asynccontextmanager
async def memory_lab(directory: Path) -> AsyncIterator[MemoryLab]:
    """A lab with its controller, for the length of a block."""
    async with trio.open_nursery() as nursery:
        lab = MemoryLab(directory, nursery)
        await lab.start_controller()
        yield lab
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def memory_labs(directory: Path, stores: Mapping[str, Store]) -> AsyncIterator[list[MemoryLab]]:
    """A lab with several controllers, by name, which share what is in their stores, and keys."""
    async with trio.open_nursery() as nursery:
        labs = [MemoryLab(directory, nursery, store, name) for name, store in stores.items()]
        for lab in labs:
            await lab.start_controller()
        yield labs
        nursery.cancel_scope.cancel()
