"""Sessions with a device that outlive their links: real sockets through a proxy that cuts them, and leases in memory."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from jmp.client.connect import TARGET, Device, Dial, device_of, open_session
from jmp.errors import Busy, JmpError, LabError, LinkLost, Refused
from jmp.exporter.lab import LabExporter
from jmp.link.memory import MemoryLink, memory_links
from jmp.link.resumable import Onward, lasting
from jmp.link.resume import LISTEN_SECONDS
from jmp.link.sessions import Sessions
from jmp.link.websocket import UpgradeRequest
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.router.serve import Router, attend
from jmp.rpc.call import Caller
from jmp.wire import records
from jmp.wire.records import State, Want
from tests.fakes.clocks import leaping
from tests.fakes.cutter import Cutter, cutter
from tests.fakes.exporters import Lamp, bench, exporting
from tests.fakes.memory_lab import WANT, MemoryLab, memory_lab


@pytest.fixture
def autojump_clock() -> MockClock:
    """Leaps when all have waited for 10 ms: until then they may wait for programs and sockets."""
    return leaping(0.01)


@contextmanager
def raised(kind: type[JmpError], match: str) -> Iterator[None]:
    """As pytest.raises, whatever nurseries the error has come through."""
    with pytest.RaisesGroup(pytest.RaisesExc(kind, match=match), allow_unwrapped=True, flatten_subgroups=True):
        yield


# ---- an exporter of one's own, over TCP


@pytest.fixture
async def cable(tmp_path: Path) -> AsyncIterator[tuple[Cutter, Dial]]:
    Lamp.journal.clear()
    async with exporting(tmp_path, bench(tmp_path), "127.0.0.1:0") as (url, _):
        with cutter(int(url.rpartition(":")[2])) as proxy:
            yield proxy, Dial(f"ws://127.0.0.1:{proxy.port}")


async def test_a_stream_goes_on_over_the_next_link(cable: tuple[Cutter, Dial]) -> None:
    proxy, dial = cable
    said: list[bool] = []

    def cut() -> None:
        while not proxy.cut():  # it may be between two links at this moment
            threading.Event().wait(0.01)

    async with (
        open_session(dial, told=lambda lost, _: said.append(lost is None)) as (_, device),
        device.lamp.echo() as stream,
    ):
        sent, got = bytes(range(256)) * 4096, b""
        for number in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, sent)
                nursery.start_soon(trio.to_thread.run_sync, cut)
                while len(got) < (number + 1) * len(sent):
                    got += await stream.receive_some()
        assert got == sent * 5
        await stream.send_all(b"and on")  # all may have been here before the last cut
        assert await stream.receive_some() == b"and on"
    assert proxy.connections > 5
    assert said[-1]
    assert Lamp.journal[0] == "open"  # one session
    assert Lamp.journal.count("open") == 1


async def test_a_call_under_way_is_not_done_twice(cable: tuple[Cutter, Dial]) -> None:
    proxy, dial = cable
    async with open_session(dial) as (_, device):
        for number in range(6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, proxy.cut)
                assert await device.lamp.count() == number + 1


async def test_a_client_that_does_not_come_back_leaves_the_device_to_the_next(
    cable: tuple[Cutter, Dial], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("jmp.exporter.serve.Sessions", lambda: Sessions(0.5))
    async with exporting(tmp_path, bench(tmp_path), "127.0.0.1:0") as (url, _):
        with cutter(int(url.rpartition(":")[2])) as proxy:
            dial = Dial(f"ws://127.0.0.1:{proxy.port}")
            with raised(
                LinkLost, r"during lamp\.wait: .*; it cannot be resumed: the other side does not know .*begun it"
            ):
                async with open_session(dial) as (_, device), trio.open_nursery() as nursery:
                    nursery.start_soon(device.lamp.wait)
                    await trio.sleep(1.5)  # its beginning is acknowledged
                    proxy.open = False
                    await trio.to_thread.run_sync(proxy.cut)
                    with raised(Busy, "in use"):
                        async with open_session(Dial(url)):
                            pass
                    async with open_session(Dial(url), wait=60) as (_, other):
                        assert not await other.lamp.state()
                    proxy.open = True


# ---- a leased one, in a lab in memory


class Road:
    """How one client gets to an exporter of the lab: with a session token each time, over links that can be cut."""

    def __init__(self, lab: MemoryLab, client: Any, exporter: LabExporter, lease: str) -> None:
        self.token = ""
        self.now: MemoryLink
        self._lab, self._client, self._exporter, self._lease = lab, client, exporter, lease

    async def dial(self) -> Onward:
        """As a client does: it asks the controller anew."""
        answer = await self._client.meet(self._lease, self._exporter.config.metadata.name)
        return await self.dial_with(answer["token"])

    async def dial_with(self, token: str) -> Onward:
        self.token = token
        self.now, far = memory_links()
        self._lab.nursery.start_soon(self._exporter.serve_link, far)
        return Onward(self.now, token)

    @asynccontextmanager
    async def travel(self, dial: Callable[[], Awaitable[Onward]] | None = None) -> AsyncIterator[Device]:
        """A device of the lease, over a link that lasts."""
        first = await self.dial()
        async with (
            lasting(first.link, dial or self.dial) as link,
            multiplex(link, Role.DIALLER, watch=True) as connection,
        ):
            caller = Caller(connection)
            report = await caller.call(TARGET, "begin", (), {"token": first.token})
            yield device_of(caller, report)


@pytest.fixture
async def road(tmp_path: Path) -> AsyncIterator[tuple[MemoryLab, Any, Road]]:
    """A lab, its admin, and alice's way to the device that she has leased."""
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(memory_lab(tmp_path))
        exporter = await stack.enter_async_context(lab.exporter("one"))
        alice = await stack.enter_async_context(lab.client("alice"))
        lease = await alice.acquire(WANT, 3600.0)
        await lab.wait(lease.id, State.READY)
        yield lab, alice, Road(lab, alice, exporter, lease.id)


async def test_a_holder_goes_on_with_a_new_token(road: tuple[MemoryLab, Any, Road], autojump_clock: MockClock) -> None:
    _, _, way = road
    async with way.travel() as device, device.lamp.echo() as stream:
        for number in range(3):
            before = way.token
            way.now.cut()
            await stream.send_all(b"%d" % number)
            assert await stream.receive_some() == b"%d" % number
            assert way.token != before


async def test_while_the_controller_is_away_it_goes_on_when_that_is_back(
    road: tuple[MemoryLab, Any, Road], autojump_clock: MockClock
) -> None:
    lab, _, way = road
    async with way.travel() as device, device.lamp.echo() as stream:
        lab.kill_controller()
        way.now.cut()
        await stream.send_all(b"still there?")
        await trio.sleep(20)
        await lab.start_controller()
        async with lab.client("alice") as alice:
            way._client = alice
            assert await stream.receive_some() == b"still there?"


@pytest.mark.parametrize("how", ["handed over", "another's", "none"])
async def test_who_is_fenced_off_does_not_go_on(
    road: tuple[MemoryLab, Any, Road], how: str, autojump_clock: MockClock
) -> None:
    lab, alice, way = road

    stolen = ""
    if how == "another's":  # before the link is lost: the clock does not wait for the threads that open drivers
        async with lab.exporter("two"), lab.client("bob") as bob:
            lease = await bob.acquire([Want(exporter="two")], 6000.0)
            with trio.fail_after(6000):
                await lab.wait(lease.id, State.READY)
            stolen = (await bob.meet(lease.id, "two"))["token"]

    async def dial() -> Onward:
        """With what a thief, or a holder of the past, has."""
        if how == "handed over":
            async with lab.client("bob"):
                await alice.call("transfer", way._lease, "bob")
            return await way.dial_with(way.token)
        if how == "none":
            return Onward((await way.dial_with("")).link)
        return await way.dial_with(stolen)

    because = {
        "handed over": "does not know the session|was handed over",
        "another's": "this token is for exporter two, not for one",
        "none": "token",
    }[how]
    with raised(LinkLost, f"cannot be resumed: .*({because})"):
        async with way.travel(dial) as device, device.lamp.echo() as stream:
            way.now.cut()
            await stream.receive_some()


async def test_a_lease_that_ends_meanwhile_is_not_gone_on_with(
    road: tuple[MemoryLab, Any, Road], autojump_clock: MockClock
) -> None:
    _, alice, way = road

    async def dial() -> Onward:
        await alice.release(way._lease)
        return await way.dial()

    with raised(
        LinkLost, r"during lamp\.echo: the connection was cut; it cannot be resumed: lease \S+ has ended: released"
    ):
        async with way.travel(dial) as device, device.lamp.echo() as stream:
            way.now.cut()
            await stream.receive_some()


async def test_past_the_resume_time_a_call_is_told_what_became_of_it(
    road: tuple[MemoryLab, Any, Road], autojump_clock: MockClock
) -> None:
    _, _, way = road
    fates = {}

    async def wait(device: Device, name: str) -> None:
        with pytest.raises(LinkLost) as told:
            await device.lamp.wait()
        fates[name] = told.value.message

    async def nowhere() -> Onward:
        raise LabError("no router answers")

    async with way.travel(nowhere) as device, trio.open_nursery() as nursery:
        nursery.start_soon(wait, device, "begun")
        await trio.sleep(3)
        nursery.start_soon(wait, device, "sent")
        await trio.sleep(0.01)
        way.now.cut()
        await trio.sleep(1)
        nursery.start_soon(wait, device, "kept")
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(44, abs=0.5)
    lost = "the link was lost during lamp.wait: the connection was cut; the session was not resumed within 45 s; "
    assert fates == {
        "begun": f"{lost}it had reached the other side, which had begun it",
        "sent": f"{lost}whether it was executed is not known",
        "kept": f"{lost}it had not been sent, so it was not executed",
    }
    await trio.sleep(LISTEN_SECONDS)
    assert not way._exporter._sessions._open


# ---- over a router, without the controller


class Crossroads(Road):
    """The way over a router, to which the controller sends both ends; while that is away they go there again."""

    router: Router

    async def start(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Start a router, and let it take part in the lab."""
        self._kept = directory / "router.json"
        self.there: list[MemoryLink] = []
        self.restart()
        monkeypatch.setattr("jmp.link.websocket.connect", self.connect)
        who = await self._lab.identity("r", records.Role.ROUTER)
        self._lab.nursery.start_soon(partial(attend, self.router, partial(self._lab.dial, who), "wss://r", None))
        while not self.router.connected:
            await self.router.changed.park()

    def restart(self) -> None:
        """As after a kill: with what it has kept."""
        self.router = Router(keep=self._kept)
        for link in self.there:
            link.cut()

    async def connect(self, url: str, *, token: str, **_: object) -> MemoryLink:
        """Come to the router."""
        assert url == "wss://r"
        claims = await self.router.authenticate(UpgradeRequest("memory", token, {}))
        near, far = memory_links()
        self.there.append(near)
        self._lab.nursery.start_soon(self.router.serve_link, far, claims)
        return near

    async def dial(self) -> Onward:
        answer = await self._client.meet(self._lease, "one", "router")
        return await self.dial_with(answer["token"])

    async def dial_with(self, token: str) -> Onward:
        self.token = token
        self.now = await self.connect("wss://r", token=token)
        return Onward(self.now, token)

    async def back(self) -> Onward:
        """As a client that cannot reach the controller."""
        try:
            return await self.dial_with(self.token)
        except Refused as error:
            raise LabError(error.message) from error


@pytest.fixture
async def crossroads(
    road: tuple[MemoryLab, Any, Road], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MemoryLab, Crossroads]:
    monkeypatch.setattr("jmp.controller.keys.SESSION_SECONDS", 1.0)  # and half a minute, by which clocks may differ
    lab, alice, way = road
    over = Crossroads(lab, alice, way._exporter, way._lease)
    await over.start(tmp_path, monkeypatch)
    return lab, over


@pytest.mark.parametrize("age", [0.0, 60.0])
@pytest.mark.parametrize("what", ["the client's link", "the exporter's link", "nobody notices", "the router"])
async def test_without_the_controller_both_meet_where_they_had_met(
    crossroads: tuple[MemoryLab, Crossroads], what: str, age: float, autojump_clock: MockClock
) -> None:
    lab, way = crossroads
    async with way.travel(way.back) as device, device.lamp.echo() as stream:
        lab.kill_controller()
        await trio.sleep(age)
        for number in range(3):
            await stream.send_all(b"to be lost, perhaps")
            theirs = next(link for link in reversed(way.there) if link is not way.now)
            match what:
                case "the client's link":
                    way.now.cut()
                case "the exporter's link":
                    theirs.cut()
                case "nobody notices":
                    way.now.stall()
                    way.now._other.stall()
                case _:
                    way.restart()
            await stream.send_all(b"%d" % number)
            got = b""
            while not got.endswith(b"%d" % number):
                got += await stream.receive_some()
            assert got == b"to be lost, perhaps%d" % number


async def test_without_the_controller_the_hold_ends_at_its_time_and_nobody_goes_on(
    crossroads: tuple[MemoryLab, Crossroads], autojump_clock: MockClock
) -> None:
    lab, way = crossroads
    await way._client.release(way._lease)
    lease = await way._client.acquire(WANT, 60.0)
    await lab.wait(lease.id, State.READY)
    way._lease = lease.id
    hold = way._exporter.hold
    assert hold is not None

    async def back() -> Onward:
        await hold.over.wait()
        return await way.back()

    with raised(LinkLost, "the session was not resumed within 45 s"):
        async with way.travel(back) as device, device.lamp.echo() as stream:
            lab.kill_controller()
            await trio.sleep(40)
            way.now.cut()
            await stream.receive_some()
    assert hold.reason == "its time was over"


async def test_without_the_controller_an_old_token_begins_nothing(
    crossroads: tuple[MemoryLab, Crossroads], autojump_clock: MockClock
) -> None:
    lab, way = crossroads
    async with way.travel(way.back) as device, device.lamp.echo() as stream:
        lab.kill_controller()
        await trio.sleep(60)
        near, far = memory_links()
        lab.nursery.start_soon(way._exporter.serve_link, far)
        async with multiplex(near, Role.DIALLER) as connection:
            with pytest.raises(Refused, match="the token has expired"):
                await Caller(connection).call(TARGET, "begin", (), {"token": way.token})
        await stream.send_all(b"still there")
        assert await stream.receive_some() == b"still there"
