"""``jmp shell`` in a lab: a lease, a link to each of its devices, and what their hooks print.

Theory of operation. :class:`Tenancy` keeps a connection to the controller for as long as the shell lasts: it acquires the lease,
follows how it stands, and comes back when the controller has been away; meanwhile the devices are used over links of their own.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from jmp.cli import output
from jmp.cli.labs import Narrator, record_of
from jmp.client.config import ClientConfig
from jmp.client.connect import TARGET, Device, Dial, device_of, dial_on, dial_trio
from jmp.client.lab import DIRECT_SECONDS, Lab, Standing, ended, ended_as, find_way, open_lab_trio, up_to_date_trio
from jmp.client.relay import relay
from jmp.errors import Cancelled, JmpError, LabError, LinkLost, Refused, Timeout
from jmp.link import Link, websocket
from jmp.link.resumable import Onward, lasting
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller
from jmp.rpc.reconnect import keep_connected
from jmp.wire.duration import text
from jmp.wire.records import Lease, State, Want

RELEASE_SECONDS: Final = 10.0
"""How long to try to tell the controller that the lease is over; then it ends because its holder is gone."""
ASK_SECONDS: Final = 4.0
"""How long a controller may take to answer to who looks for another link; then it is taken to be away."""
WARN_SECONDS: Final = (600.0, 120.0)
"""How long before a lease's end its holder is told."""


class Request(NamedTuple):
    """What to lease."""

    wants: Sequence[Want]
    duration: float
    options: dict[str, Any]


class Tenancy:
    """One lease as its holder has it. ``wish`` is a request, or the id of a lease that there is."""

    def __init__(
        self,
        config: ClientConfig,
        wish: Request | str,
        told: Callable[[Standing], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.id = wish if isinstance(wish, str) else None
        self.lease: Lease | None = None
        self.lab: Lab | None = None
        self._wish = wish
        self._told = told
        self._wall_clock = wall_clock
        self._reached = False
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Keep the connection, and follow the lease, until cancelled. Raises what the controller refuses."""

        async def dial() -> Link:
            config = self.config = await up_to_date_trio(self.config)
            return await websocket.connect(config.endpoint, token=config.token, ca=config.tls.ca)

        await keep_connected(dial, self._follow, told=self._say, forever=False)

    async def wait_granted(self) -> Lease:
        """Wait until the lease has its devices. Raises ``Timeout`` if it ends before."""
        while True:
            if self.lease is not None:
                if self.lease.state in (State.PREPARING, State.READY) and self.lab is not None:
                    return self.lease
                if self.lease.state in (State.ENDING, State.ENDED):
                    raise Timeout(f"lease {self.lease.id} was not granted: {self.lease.reason}")
            await self._changed.park()

    async def wait_ended(self) -> Lease:
        """Wait until the lease is over."""
        while self.lease is None or self.lease.state not in (State.ENDING, State.ENDED):
            await self._changed.park()
        return self.lease

    async def warn(self) -> None:
        """Tell the holder some time before the lease ends, so that it can still be extended; until cancelled."""
        while True:
            left = math.inf if self.lease is None or self.lease.ends is None else self.lease.ends - self._wall_clock()
            early = next((seconds for seconds in WARN_SECONDS if seconds < left - 1), math.inf)
            with trio.move_on_after(left - early if left < math.inf and early < math.inf else math.inf) as patience:
                await self._changed.park()
            if patience.cancelled_caught:
                output.note(
                    f"jmp: lease {self.id} ends in {text(early)}; for more time: jmp lease extend {self.id} 30m"
                )

    async def meet(self, exporter: str) -> tuple[Dial, Link]:
        """A link to a device of the lease. Raises ``LabError`` and what :meth:`Lab.meet` does."""
        assert self.lab is not None
        assert self.id is not None

        async def attempt(dial: Dial) -> tuple[Dial, Link]:
            return dial, await dial_trio(dial)

        found: tuple[Dial, Link] = await find_way(self.lab, self.config, self.id, exporter, attempt)
        return found

    async def release(self) -> None:
        """End the lease, as far as the controller can be told within some seconds."""
        if self.id is None:
            return
        with trio.move_on_after(RELEASE_SECONDS, shield=True), suppress(JmpError):
            while self.lab is None:
                await self._changed.park()
            await self.lab.release(self.id)

    async def _follow(self, caller: Caller) -> None:
        self._reached = True
        lab = Lab(caller)
        try:
            if self.id is None:
                assert isinstance(self._wish, Request)
                lease = await lab.acquire(self._wish.wants, self._wish.duration, tied=True, **self._wish.options)
                self.id = lease.id
            async with aclosing(lab.watch(self.id)) as watching:
                async for standing in watching:
                    self.lab = lab
                    self.lease = standing.lease
                    self._told(standing)
                    self._changed.unpark_all()
            await trio.sleep_forever()  # it has ended: nothing more will come
        finally:
            self.lab = None

    def _say(self, problem: JmpError | None) -> None:
        if problem is None:
            return
        if not self._reached:
            raise problem
        output.note(f"jmp: the controller is away ({problem}); the session goes on")


class WayBack:
    """How the session with one device finds its next link: the ``following`` of a link that lasts, and its ``told``.

    The controller sends both ends to a place where they meet. Where it is away, each goes back by itself to where they had met
    before: for as long as the exporter holds the device for this lease it lets in who was there.
    """

    def __init__(self, tenancy: Tenancy, exporter: str, dial: Dial) -> None:
        self._tenancy = tenancy
        self._exporter = exporter
        self._now = self._sure = self._sent = dial
        """The latest; where the session was last; and where the controller has sent the exporter since."""
        self._status = output.LinkStatus()

    async def __call__(self) -> Onward:
        """The next link. Raises as :meth:`Tenancy.meet`."""
        tenancy = self._tenancy
        assert tenancy.id is not None
        try:
            # The way to the controller may have broken with the other, and nobody knows yet: it is asked over a new one.
            with trio.fail_after(ASK_SECONDS) as asking:
                async with open_lab_trio(tenancy.config) as lab:
                    asking.deadline = math.inf
                    found: Onward = await find_way(
                        lab, tenancy.config, tenancy.id, self._exporter, self._go, first=self._now.way
                    )
                    return found
        except trio.TooSlowError:
            away: JmpError = LabError(f"the controller did not answer within {ASK_SECONDS:g} s")
        except LabError as error:
            away = error
        for dial in sorted({self._sure, self._sent}, key=self._now.__eq__):  # where nobody came is tried last
            with suppress(LabError, Timeout, Refused):  # the controller says what is so once it is back
                onward = await dial_on(replace(dial, seconds=DIRECT_SECONDS))
                self._now = dial
                return onward
        raise away

    async def _go(self, dial: Dial) -> Onward:
        onward = await dial_on(dial)
        self._now = self._sent = dial
        return onward

    def told(self, lost: LinkLost | None, seconds: float) -> None:
        """Tell the user, and know where the session goes on."""
        if lost is None:
            self._sure = self._sent = self._now
        self._status(lost, seconds)


class Place(NamedTuple):
    """One device of the lease, reachable for programs on this machine."""

    exporter: str
    device: Device
    url: str


@asynccontextmanager
async def open_tenancy(
    config: ClientConfig, wish: Request | str, directory: Path
) -> AsyncIterator[tuple[Tenancy, list[Place]]]:
    """A lease and its devices for the length of a block; what was acquired here is released at its end.

    ``directory`` gets the sockets. Whatever hooks print appears on standard error, also what afterLease prints, for which the end
    of the block waits. If the lease ends before its time, the block is cancelled, and ``LabError`` or ``Timeout`` raised.
    """
    narrator = Narrator()

    def told(standing: Standing) -> None:
        narrator.tell(record_of(standing))
        if standing.lease.state is not State.QUEUED:
            narrator.close()  # what hooks print comes next

    tenancy = Tenancy(config, wish, told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tenancy.run)
        own = isinstance(wish, Request)
        try:
            lease = await tenancy.wait_granted()
            early: list[Lease] = []
            async with AsyncExitStack() as stack:
                places = []
                for number, held in enumerate(lease.devices):
                    url = f"unix:{directory / 'session'}{number or ''}.sock"
                    places.append(await stack.enter_async_context(_open_place(tenancy, held.exporter, url, own)))
                async with trio.open_nursery() as inside:
                    inside.start_soon(_until_ended, tenancy, early, inside.cancel_scope)
                    inside.start_soon(tenancy.warn)
                    yield tenancy, places
                    inside.cancel_scope.cancel()
                if own:
                    await tenancy.release()
            if early:
                raise ended(early[0])
        finally:
            narrator.close()
            if own and tenancy.lease is not None and tenancy.lease.state not in (State.ENDING, State.ENDED):
                await tenancy.release()
            nursery.cancel_scope.cancel()


async def _until_ended(tenancy: Tenancy, early: list[Lease], scope: trio.CancelScope) -> None:
    early.append(await tenancy.wait_ended())
    scope.cancel()


async def check_held(places: Sequence[Place]) -> None:
    """Raise what ended the lease if an exporter has ended it: it need not hear from the controller to do so."""
    for place in places:
        with trio.move_on_after(ASK_SECONDS):
            try:
                await place.device._backend.call(TARGET, "begin", (), {})
            except Cancelled as over:
                raise ended_as(over.message) from None
            except JmpError:  # the link is gone: nothing is known
                pass


@asynccontextmanager
async def _open_place(tenancy: Tenancy, exporter: str, url: str, own: bool) -> AsyncIterator[Place]:
    dial, first = await tenancy.meet(exporter)
    back = WayBack(tenancy, exporter, dial)
    async with (
        lasting(first, back, back.told) as link,
        multiplex(link, Role.DIALLER, watch=True) as connection,
    ):
        caller = Caller(connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_output, caller)
            report = await caller.call(TARGET, "begin", (), dial.introduction(None))
            async with relay(connection, url):
                yield Place(exporter, device_of(caller, report), url)
            if not own:
                nursery.cancel_scope.cancel()
            # Else the nursery waits for the last of the hooks' output, that of afterLease.


async def _show_output(caller: Caller) -> None:
    with suppress(JmpError):  # that the link is gone shows elsewhere
        async with aclosing(caller.items(TARGET, "output", (), {})) as items:
            async for source, data in items:
                sys.stderr.write(
                    "".join(f"[{source}] {line}" for line in data.decode(errors="replace").splitlines(True))
                )
                sys.stderr.flush()
