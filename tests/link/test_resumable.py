"""Links that outlive the links they go over, and the sessions of a listener: on links in memory that are cut."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jmp.errors import LinkLost
from jmp.link import Link
from jmp.link.memory import memory_links
from jmp.link.resumable import Onward, lasting
from jmp.link.resume import ANSWER_SECONDS, LISTEN_SECONDS, RESUME_SECONDS, Resume, _pack, opening_of
from jmp.link.rfc6455 import Closed
from jmp.link.sessions import BEGIN_SECONDS, Sessions
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.mux.stream import MuxStream
from jmp.wire.frames import Kind, pack
from tests.fakes.cables import Cable, cable


class Far:
    """A listener's part: what it has got, and each end of a session that it saw."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.links: list[Link] = []
        self.ends: list[LinkLost] = []
        self.news = trio.lowlevel.ParkingLot()

    async def serve(self, link: Link) -> None:
        self.links.append(link)
        try:
            while True:
                self.got.append(await link.receive())
                self.news.unpark_all()
        except LinkLost as error:
            self.ends.append(error)
            self.news.unpark_all()

    async def until(self, count: int) -> None:
        while len(self.got) < count:
            await self.news.park()


async def keep_receiving(link: Link) -> None:
    while True:
        await link.receive()


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_cut_arrives_once_and_in_order(seed: int, autojump_clock: MockClock) -> None:
    rng = random.Random(seed)
    messages = [number.to_bytes(4, "big") * rng.randrange(1, 400) for number in range(3000)]
    ways: tuple[list[bytes], list[bytes]] = ([], [])
    complete = trio.Event()

    async def send(link: Link) -> None:
        for message in messages:
            if not link.send_nowait([message]):
                await link.send([message])
            if rng.random() < 0.3:
                await trio.sleep(0.001)

    async def receive(link: Link, arrived: list[bytes]) -> None:
        while True:  # as a reader does: it is the one who finds out of a break
            arrived.append(await link.receive())
            if all(len(way) == len(messages) for way in ways):
                complete.set()

    async def far(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, link)
            nursery.start_soon(receive, link, ways[1])

    with trio.fail_after(1000):
        async with cable(far) as (joined, link), trio.open_nursery() as nursery:
            nursery.start_soon(send, link)
            nursery.start_soon(receive, link, ways[0])
            while not complete.is_set():
                with trio.move_on_after(rng.random() * 0.05):
                    await complete.wait()
                if opened(joined):  # else the session has not begun
                    joined.cut()
            nursery.cancel_scope.cancel()
    assert joined.made > 4
    assert ways == (messages, messages)


def opened(joined: Cable) -> bool:
    return bool(joined.sessions._open)


async def test_what_is_said_meanwhile_arrives_after_it(autojump_clock: MockClock) -> None:
    far = Far()
    losses: list[tuple[str, float]] = []

    def told(lost: LinkLost | None, seconds: float) -> None:
        losses.append((lost.message if lost is not None else "", seconds))

    async with cable(far.serve, told) as (joined, link), trio.open_nursery() as nursery:
        nursery.start_soon(keep_receiving, link)
        await link.send([b"before"])
        await far.until(1)
        joined.plugged = False
        joined.cut()
        await trio.sleep(20)
        await link.send([b"meanwhile"])
        await trio.sleep(20)
        assert [lost for lost, _ in losses] == ["the connection was cut"]
        joined.plugged = True
        await far.until(2)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert far.got == [b"before", b"meanwhile"]
    assert len(losses) == 2
    assert losses[1][0] == ""
    assert 40 < losses[1][1] < 43
    assert joined.made == 2


async def test_past_the_resume_time_both_ends_end_and_say_why(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, link):
        await link.send([b"before"])
        await far.until(1)
        joined.plugged = False
        joined.cut()
        lost = trio.current_time()
        with pytest.raises(LinkLost, match=r"^the connection was cut; the session was not resumed within 45 s$"):
            await link.receive()
        assert trio.current_time() - lost == pytest.approx(RESUME_SECONDS, abs=0.1)
        with pytest.raises(LinkLost, match="not resumed"):
            link.send_nowait([b"x"])
        await trio.sleep(LISTEN_SECONDS - RESUME_SECONDS + 0.1)
        assert ["not resumed within 60 s" in end.message for end in far.ends] == [True]
        assert not opened(joined)


async def test_a_new_link_takes_the_place_of_one_that_seems_alive(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, link), trio.open_nursery() as nursery:
        nursery.start_soon(keep_receiving, link)
        await link.send([b"one"])
        await far.until(1)
        joined.now.stall()  # as with a new address at this end: the other one hears nothing, and no end either
        await link.send([b"two"])
        link.abort("the network has changed")
        began = trio.current_time()
        await far.until(2)
        assert trio.current_time() - began < 1
        assert far.got == [b"one", b"two"]
        assert len(far.links) == 1
        nursery.cancel_scope.cancel()


async def test_a_link_without_an_answer_is_given_up_for_another(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, link), trio.open_nursery() as nursery:
        nursery.start_soon(keep_receiving, link)
        await link.send([b"one"])
        await far.until(1)
        serve = joined.serve

        async def silent(_: Link) -> None:
            joined.serve = serve  # type: ignore[method-assign]

        joined.serve = silent  # type: ignore[method-assign, assignment]
        joined.cut()
        began = trio.current_time()
        await link.send([b"two"])
        await far.until(2)
        assert trio.current_time() - began == pytest.approx(ANSWER_SECONDS, abs=0.5)
        assert joined.made == 3
        nursery.cancel_scope.cancel()


async def test_who_shows_no_good_token_does_not_go_on(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, link):
        await link.send([b"one"])
        await far.until(1)
        joined.token = "another's"
        joined.cut()
        with pytest.raises(LinkLost, match="cut; it cannot be resumed: this token is not a good one"):
            await link.receive()


async def test_a_listener_that_was_restarted_does_not_go_on(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, link):
        await link.send([b"one"])
        await far.until(1)
        joined.sessions = Sessions()
        joined.cut()
        with pytest.raises(LinkLost, match="does not know the session"):
            await link.receive()


@pytest.mark.parametrize(("code", "goes_on"), [(1000, False), (1001, False), (1008, False), (1012, True), (1014, True)])
async def test_an_ends_own_good_bye_is_the_end_and_a_routers_is_not(
    code: int, goes_on: bool, autojump_clock: MockClock
) -> None:
    far = Far()
    async with cable(far.serve) as (joined, link), trio.open_nursery() as nursery:
        await link.send([b"one"])
        await far.until(1)
        nursery.start_soon(joined.now._other.aclose, code, "so it is")
        if goes_on:
            nursery.start_soon(keep_receiving, link)
            await link.send([b"two"])
            await far.until(2)
            nursery.cancel_scope.cancel()
        else:
            with pytest.raises(Closed, match="so it is"):
                await link.receive()


async def test_the_end_of_a_session_is_told_over_its_last_link(autojump_clock: MockClock) -> None:
    over = trio.Event()

    async def serve(stream: MuxStream) -> None:
        await stream.send_all(b"hello")
        await over.wait()

    async def far(link: Link) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve) as connection:
            connection.farewell = (1001, "the lease is over")
            await over.wait()

    async with cable(far) as (joined, link), multiplex(link, Role.DIALLER) as connection:
        stream = connection.open_stream(b"go")
        assert await stream.receive_some() == b"hello"
        joined.cut()
        await trio.sleep(1)
        assert joined.made == 2
        over.set()
        assert (await connection.wait_over()).message.endswith("1001 the lease is over")
        await wait_all_tasks_blocked()
        assert not opened(joined)


async def test_a_stall_of_a_link_is_noticed_below_the_session(autojump_clock: MockClock) -> None:
    """A peer that is silent is taken for a link that is dead: streams go on over another."""

    async def serve(stream: MuxStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async def far(link: Link) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve, watch=True) as connection:
            await connection.wait_over()

    async with cable(far) as (joined, link), multiplex(link, Role.DIALLER, watch=True) as connection:
        stream = connection.open_stream(b"one")
        assert await stream.receive_some() == b"one"
        joined.now.stall()
        joined.now._other.stall()
        began = trio.current_time()
        await stream.send_all(b"two")
        assert await stream.receive_some() == b"two"
        assert 10 < trio.current_time() - began < 17
        assert joined.made == 2
        await trio.sleep(100)
        assert joined.made == 2


async def test_a_message_wakes_no_other_task(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (_, link):
        for number in range(3):
            await link.send([b"%d" % number])
        await far.until(3)
        await trio.sleep(0.1)
        whole = far.links[0]
        assert whole._busy  # type: ignore[attr-defined]  # its time to acknowledge has begun
        woken = whole._work  # type: ignore[attr-defined]
        for number in range(100):
            await link.send([b"%d" % number])
        await far.until(103)
        assert whole._work is woken  # type: ignore[attr-defined]
        assert not woken.is_set()
        await trio.sleep(3)
        assert not whole._busy  # type: ignore[attr-defined]
        assert link.arrived(1) is None  # nobody has read the acknowledgement yet
        with trio.move_on_after(1):
            await link.receive()
        assert link.arrived(1) is True


# ---- who speaks to a listener otherwise


async def test_a_dialler_that_knows_nothing_of_it_is_served(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, _):
        near, end = memory_links()
        joined._nursery.start_soon(joined.serve, end)
        await near.send([pack(Kind.HELLO, 0, {"version": [1, 0]})])
        await near.send([b"more"])
        await far.until(2)
        near.cut()
        while not far.ends:
            await far.news.park()
        assert far.ends[0].message == "the connection was cut"


async def test_a_listener_that_knows_nothing_of_it_serves(autojump_clock: MockClock) -> None:
    """As an exporter of before does: then the session is its first link."""

    async def echo(stream: MuxStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async def listen(link: Link) -> None:
        async with multiplex(link, Role.LISTENER, serve=echo, watch=True) as connection:
            await connection.wait_over()

    async def dial() -> Onward:
        raise AssertionError("there is nothing to go on with")

    near, far = memory_links()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, far)
        async with lasting(near, dial) as link, multiplex(link, Role.DIALLER, watch=True) as connection:
            stream = connection.open_stream(b"first")
            for number in range(1000):
                await stream.send_all(b"%04d" % number)
            await stream.send_eof()
            got = b"".join([data async for data in stream])
            assert got == b"first" + b"".join(b"%04d" % number for number in range(1000))
            stream = connection.open_stream()
            near.cut()
            with pytest.raises(trio.BrokenResourceError, match="the connection was cut"):
                await stream.receive_some()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (_pack({}), "1002 RESUME names no key"),
        (_pack({"key": b"k" * 32, "received": 0}), "1008 the other side does not know"),
        (None, "1002 nothing was said within 15 s"),
    ],
)
async def test_who_speaks_wrongly_is_told(said: bytes | None, told: str, autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, _):
        near, end = memory_links()
        joined._nursery.start_soon(joined.serve, end)
        if said is not None:
            await near.send([said])
        with trio.fail_after(BEGIN_SECONDS + 1), pytest.raises(LinkLost, match=told):
            await keep_receiving(near)
        assert far.got == []


async def test_a_key_is_good_for_one_session(autojump_clock: MockClock) -> None:
    far = Far()
    async with cable(far.serve) as (joined, _):
        ends = []
        for _ in range(2):
            core = Resume(b"k" * 32)
            core.attach()
            core.put([b"hello"])
            near, end = memory_links()
            joined._nursery.start_soon(joined.serve, end)
            message = b"".join(core.take())
            assert opening_of(message) is not None
            await near.send([message])
            ends.append(near)
        await far.until(1)
        with pytest.raises(LinkLost, match="1002 a session has begun that there is already"):
            await ends[1].receive()
        assert far.got == [b"hello"]
