"""A lease as its holder's shell has it."""

from __future__ import annotations

import socket
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from jmp.cli.leased import Place, Tenancy, WayBack, check_held
from jmp.client.config import ClientConfig, Metadata
from jmp.client.connect import Dial, device_of
from jmp.errors import Cancelled, JmpError, LabError, LinkLost, Refused, Timeout
from jmp.link import Link, websocket
from jmp.link.memory import memory_links
from jmp.link.resumable import Redial
from jmp.link.websocket import UpgradeRequest, WebSocketLink
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller
from jmp.rpc.messages import Kind, Request
from jmp.rpc.serve import Method, serve
from jmp.wire.records import Lease, State
from tests.fakes.links import serving


async def test_its_end_is_told_in_time_to_extend_it(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ClientConfig(metadata=Metadata(name="x"), endpoint="wss://lab", token="x")
    tenancy = Tenancy(config, "abc", lambda standing: None, wall_clock=trio.current_time)
    lease = Lease(id="abc", client="alice", wants=(), duration=3600.0, created=0.0, number=1, state=State.READY)
    told: list[tuple[int, str]] = []

    async def watch() -> None:
        for at in (0, 2999, 3001, 3479, 3481, 3600, 4799, 4801, 5279, 5281):
            await trio.sleep_until(begun + at)
            if said := capsys.readouterr().err:
                told.append((at, said))
            if at == 3481:  # extended by half an hour
                tenancy.lease = replace(lease, ends=begun + 5400.0)
                tenancy._changed.unpark_all()

    begun = trio.current_time()
    tenancy.lease = replace(lease, ends=begun + 3600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tenancy.warn)
        await watch()
        nursery.cancel_scope.cancel()
    for_more = "for more time: jmp lease extend abc 30m\n"
    assert told == [
        (3001, f"jmp: lease abc ends in 10m; {for_more}"),
        (3481, f"jmp: lease abc ends in 2m; {for_more}"),
        (4801, f"jmp: lease abc ends in 10m; {for_more}"),
        (5281, f"jmp: lease abc ends in 2m; {for_more}"),
    ]


async def test_an_exporter_that_is_not_back_yet_is_asked_for_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def resolve(request: Request) -> Method:
        asked.append(request.method)
        if len(asked) > 4:
            raise Refused("lease abc is over")
        raise LabError("exporter one is offline at present")

    async def handler(link: WebSocketLink, _: UpgradeRequest) -> None:
        async with multiplex(link, Role.LISTENER, serve=serve(resolve)) as connection:
            await connection.wait_over()

    with trio.fail_after(60):
        async with serving("unix", tmp_path, handler) as url:
            config = ClientConfig(metadata=Metadata(name="x"), endpoint=url, token="x")
            tenancy = Tenancy(config, "abc", lambda standing: None)
            tenancy.id = "abc"
            again = Redial(WayBack(tenancy, "one", Dial("ws://127.0.0.1:1", way="router")))
            with pytest.raises(Refused, match="lease abc is over"):
                await again(LinkLost("the connection broke"))
    assert asked == ["meet"] * 5


async def test_a_place_is_reached_again_while_the_controller_is_away() -> None:
    """Where the session was last, and where the exporter has been sent since, in turn; and a token that is too old is no end:
    there may be another soon."""
    shown: list[str | None] = []

    async def anybody(request: websocket.UpgradeRequest) -> None:
        shown.append(request.token)
        if request.token == "old":
            raise Refused("the token has expired")

    async def handler(link: Link, _: object) -> None:
        with suppress(LinkLost):
            await link.receive()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            await nursery.start(websocket.serve, listeners, anybody, handler)
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))  # and does not listen
                endpoint = f"ws://127.0.0.1:{nobody.getsockname()[1]}"
                config = ClientConfig(metadata=Metadata(name="x"), endpoint=endpoint, token="x")
                tenancy = Tenancy(config, "abc", lambda standing: None)
                back = WayBack(tenancy, "one", Dial(url, "first", leased=True, way="router"))

                async def go() -> str | None:
                    onward = await back()
                    await onward.link.aclose()
                    return onward.token

                assert [await go(), await go()] == ["first", "first"]
                await (await back._go(Dial(url, "second", leased=True, way="router"))).link.aclose()
                assert [await go(), await go(), await go()] == ["first", "second", "first"]
                back.told(None, 1.0)
                assert [await go(), await go()] == ["first", "first"]
                shown.clear()
                with pytest.raises(LabError, match="cannot reach"):
                    await WayBack(tenancy, "one", Dial(url, "old", leased=True))()
            nursery.cancel_scope.cancel()
    assert shown == ["old"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (Cancelled("lease abc has ended: its time was over"), Timeout),
        (Cancelled("lease abc has ended: alice released it"), LabError),
        (LabError("something else"), None),
        (None, None),
    ],
)
async def test_a_command_that_failed_as_its_lease_ended_is_told_of_that_by_the_exporter(
    error: JmpError | None, raised: type[JmpError] | None
) -> None:
    def resolve(request: Request) -> Method:
        if error is not None:
            raise error
        return Method(Kind.CALL, report)

    async def report() -> dict[str, object]:
        return {}

    with trio.fail_after(60):
        near, far = memory_links()
        async with (
            multiplex(near, Role.DIALLER) as connection,
            multiplex(far, Role.LISTENER, serve=serve(resolve)),
        ):
            place = Place("one", device_of(Caller(connection), {"tree": {"children": {}}}), "unix:/none")
            with pytest.raises(raised, match="lease abc has ended: ") if raised else nullcontext():
                await check_held([place])
