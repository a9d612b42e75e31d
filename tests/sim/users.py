"""Those who use a simulated lab: what they ask for, what they are told, and what they do with the devices."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import trio

from jmp.cli.leased import Tenancy, WayBack
from jmp.client.config import ClientConfig, Metadata
from jmp.client.connect import TARGET, Device, Dial, device_of, dial_trio, open_session
from jmp.client.lab import Lab, find_way, open_lab_trio
from jmp.errors import JmpError
from jmp.link import Link
from jmp.link.resumable import lasting
from jmp.mux import protocol
from jmp.mux.connection import multiplex
from jmp.rpc.call import Caller
from jmp.wire.records import Lease, Role, State, Want
from tests.sim.roles import CONTROLLER, identity
from tests.sim.world import Process, World

FAILURES: Final = (JmpError, trio.BrokenResourceError, trio.TooSlowError)
PATIENCE: Final = 60.0
"""Seconds after which a user gives up whatever they are at."""


def config_of(name: str) -> ClientConfig:
    """A client's configuration."""
    token, _ = identity(Role.CLIENT, name)
    return ClientConfig(metadata=Metadata(name=name), endpoint=CONTROLLER, token=token)


class User:
    """One client, who comes back for as long as the history goes on."""

    def __init__(
        self, process: Process, until: float, others: list[str], exporters: list[str], *, several: bool = False
    ) -> None:
        """``several``: there are several controllers, so that one of them may know less than another that was asked before."""
        self.process = process
        self.world: World = process.world
        self.rng = self.world.rng
        self.config = config_of(process.name)
        self.until = until
        self.others = others
        self.exporters = exporters
        self.several = several
        self.visit = 0
        """Of which connection to the lab this is, where it matters."""
        self.dials: list[tuple[str, Dial]] = process.machine.disk.setdefault("dials", [])
        """Ways to devices that once were good, with the lease that they were for."""

    async def run(self) -> None:
        """Live."""
        while trio.current_time() < self.until:
            try:
                with trio.fail_after(PATIENCE):
                    await self.rng.choice(
                        (self.as_shell, self.as_script, self.as_script, self.as_heir, self.as_ghost)
                    )()
            except* FAILURES as errors:
                self.process.note("gives-up", *sorted({repr(error) for error in _leaves(errors)}))
            await trio.sleep(self.rng.choice((0.1, 1.0, 3.0, 8.0)))

    @asynccontextmanager
    async def open_lab(self) -> AsyncIterator[Lab]:
        """A connection to the lab, for the length of a block."""
        self.visit += self.several
        async with open_lab_trio(self.config) as lab:
            yield lab

    # ---- what they come for

    async def as_shell(self) -> None:
        """As ``jmp shell``: a lease that is tied to its holder."""
        async with self.open_lab() as lab:
            lease = await self.acquire(lab, tied=True)
            try:
                async with self.watching(lab, lease.id):
                    await self.granted(lab, lease.id)
                    await self.use(lab, lease.id)
            finally:
                with trio.move_on_after(5, shield=True):
                    await self.release(lab, lease.id)

    async def as_script(self) -> None:
        """As a CI job of several commands."""
        async with self.open_lab() as lab:
            lease = await self.acquire(lab)
            await self.granted(lab, lease.id)
        async with self.open_lab() as lab:
            await self.use(lab, lease.id)
            fate = self.rng.random()
            if fate < 0.3:
                await self.extend(lab, lease.id)
                await self.use(lab, lease.id)
            elif fate < 0.6:
                await self.transfer(lab, lease.id)
            if fate < 0.8:
                await self.release(lab, lease.id)

    async def as_heir(self) -> None:
        """Use what one has, from oneself or others."""
        async with self.open_lab() as lab:
            found = [item for item in await lab.call("leases") if item["state"] in ("preparing", "ready")]
            for item in found:
                self.saw(item["id"], item["version"], item["state"])
                await self.use(lab, item["id"])
            for item in found[1:]:
                await self.release(lab, item["id"])

    async def as_ghost(self) -> None:
        """Come with a token that was good once."""
        if not self.dials:
            return
        lease, dial = self.rng.choice(self.dials)
        link = await dial_trio(dial)
        with trio.fail_after(20):
            async with self.session(dial, link) as (device, epoch):
                await self.call(device, lease, epoch)

    # ---- what they ask the controller

    async def acquire(self, lab: Lab, *, tied: bool = False) -> Lease:
        """Ask for one device or two."""
        wants = [Want(selector="board=bench")]
        if self.rng.random() < 0.3:
            wants = [Want(exporter=self.rng.choice(self.exporters))]
        elif len(self.exporters) > 1 and self.rng.random() < 0.2:
            wants = wants * 2
        duration = self.rng.choice((3.0, 10.0, 20.0))
        more: dict[str, Any] = {}
        if self.rng.random() < 0.2:
            more["idle_limit"] = 2.0
        if self.several and self.rng.random() < 0.5:
            more["priority"] = -1
        wait = self.rng.choice((5.0, 30.0, 30.0) if self.several else (5.0, 30.0))
        lease = await lab.acquire(wants, duration, wait=wait, tied=tied, **more)
        self.process.note("acquired", lease.id, duration)
        self.saw(lease.id, lease.version, lease.state)
        return lease

    async def granted(self, lab: Lab, lease: str) -> None:
        """Wait for what was asked for."""
        granted = await lab.wait_granted(lease, lambda standing: self.saw_lease(standing.lease))
        self.saw_lease(granted)

    async def extend(self, lab: Lab, lease: str) -> None:
        """Have it for longer."""
        answer = await lab.call("extend", lease, 5.0)
        self.process.note("extended", lease, answer["duration"])

    async def transfer(self, lab: Lab, lease: str) -> None:
        """Let somebody else have it."""
        to = self.rng.choice(self.others)
        answer = await lab.call("transfer", lease, to)
        self.process.note("transferred", lease, to, max([held["epoch"] for held in answer["devices"]], default=0))

    async def release(self, lab: Lab, lease: str) -> None:
        """Let it go."""
        answer = await lab.release(lease)
        self.process.note("released", lease)
        self.saw_lease(answer)

    @asynccontextmanager
    async def watching(self, lab: Lab, lease: str) -> AsyncIterator[None]:
        """Be there, as the holder of a tied lease is."""

        async def watch() -> None:
            async with aclosing(lab.watch(lease)) as standings:
                async for standing in standings:
                    self.saw_lease(standing.lease)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()

    def saw_lease(self, lease: Lease) -> None:
        """They were shown a lease."""
        self.saw(lease.id, lease.version, lease.state)

    def saw(self, lease: str, version: int, state: State | str) -> None:
        """They were shown a lease of this version."""
        self.process.note("saw", lease, version, str(state), self.visit)

    # ---- what they do with a device

    async def use(self, lab: Lab, lease: str) -> None:
        """Use the first device of a lease, or all at once."""
        shown = await lab.call("lease", lease)
        async with trio.open_nursery() as nursery:
            for held in shown["devices"]:
                nursery.start_soon(self.use_one, lab, lease, held["exporter"])

    async def use_one(self, lab: Lab, lease: str, exporter: str) -> None:
        """Some calls and a stream."""

        async def attempt(dial: Dial) -> tuple[Dial, Link]:
            return dial, await dial_trio(dial)

        dial, link = await find_way(lab, self.config, lease, exporter, attempt)
        self.dials.append((lease, dial))
        how = self.session(dial, link) if self.rng.random() < 0.5 else self.meeting_again(dial, link, lease, exporter)
        async with how as (device, epoch):
            for _ in range(self.rng.randrange(1, 4)):
                await self.call(device, lease, epoch)
            if self.rng.random() < 0.5:
                await self.talk(device, lease, epoch)

    @asynccontextmanager
    async def session(self, dial: Dial, link: Link) -> AsyncIterator[tuple[Device, int]]:
        """The device at the other end of a link, and the epoch that one comes with."""
        assert dial.passphrase is not None
        async with open_session(dial, link=link) as (_, device):
            yield device, _claims(dial.passphrase)["epoch"]

    @asynccontextmanager
    async def meeting_again(
        self, dial: Dial, link: Link, lease: str, exporter: str
    ) -> AsyncIterator[tuple[Device, int]]:
        """The same, as ``jmp shell`` has it: by the controller to wherever that sends both, or back to where they had met."""
        assert dial.passphrase is not None
        back = WayBack(Tenancy(self.config, lease, lambda standing: None), exporter, dial)
        async with (
            lasting(link, back, back.told) as lasts,
            multiplex(lasts, protocol.Role.DIALLER, watch=True) as connection,
        ):
            caller = Caller(connection)
            report = await caller.call(TARGET, "begin", (), dial.introduction(None))
            yield device_of(caller, report), _claims(dial.passphrase)["epoch"]

    async def call(self, device: Device, lease: str, epoch: int) -> None:
        """One call."""
        name = self.new_name("call")
        self.process.note("asks", name, lease, epoch)
        try:
            answer = await device.bench.use(name, lease, epoch)
        except JmpError as error:
            self.process.note("refused" if error.code == "refused" else "failed", name, error.code)
            raise
        self.process.note("answered", name, answer)

    async def talk(self, device: Device, lease: str, epoch: int) -> None:
        """One byte stream, both ways."""
        name = self.new_name("pipe")
        async with device.bench.pipe(name, lease, epoch) as stream:

            async def listen() -> None:
                async for data in stream:
                    self.process.note("heard", name, bytes(data))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                for _ in range(self.rng.randrange(1, 6)):
                    data = self.rng.randbytes(self.rng.choice((1, 5, 20)))
                    self.process.note("sent", name, data)
                    await stream.send_all(data)
                    await trio.sleep(self.rng.choice((0.0, 0.3)))
                await stream.send_eof()
        self.process.note("hung-up", name)

    def new_name(self, kind: str) -> str:
        """A name that nothing had before."""
        disk = self.process.machine.disk
        disk["names"] = disk.get("names", 0) + 1
        return f"{kind}-{self.process.name}-{disk['names']}"


def _claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
