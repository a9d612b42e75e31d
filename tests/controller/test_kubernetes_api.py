"""What a Kubernetes API server says while it starts: here it is a program of the test that says just that."""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from email.utils import formatdate
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from jmp.controller.kubernetes_api import Access, Api, Denied, ServerClock, Unreachable, Unserved, connect

OF_NO_KIND = "404 Not Found", "text/plain; charset=utf-8", "404 page not found\n"
"""What one that has just started says of objects whose kind it has not read yet: also of those that are there."""
NO_OBJECT = "404 Not Found", "application/json", json.dumps({"kind": "Status", "reason": "NotFound", "message": "none"})
NO_RIGHT = "403 Forbidden", "application/json", json.dumps({"kind": "Status", "message": "l1 is forbidden"})
CLOSES = "", "", ""
"""It ends the connection: perhaps it has just been killed."""
OBJECT = "200 OK", "application/json", json.dumps({"kind": "DeviceLease", "metadata": {"name": "l1"}})

PATH = "/apis/jmp.dev/v1alpha1/namespaces/lab/deviceleases"


@asynccontextmanager
async def answering(*answers: tuple[str, str, str]) -> AsyncIterator[tuple[Api, list[str]]]:
    """An API that gives one answer after the other, and what was asked."""
    left = list(answers)
    asked: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        async for data in stream:
            head += data
            if head.endswith(b"\r\n\r\n"):
                asked.append(head.split()[1].decode())
                head = b""
                status, type, body = answer = left.pop(0)
                if answer == CLOSES:
                    return
                said = f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
                await stream.send_all(said.encode())

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            access = Access(f"http://127.0.0.1:{port}", "lab", ssl.create_default_context())
            async with connect(access) as api:
                yield api, asked
            nursery.cancel_scope.cancel()


async def test_a_kind_that_is_not_known_yet_is_waited_for() -> None:
    async with answering(OF_NO_KIND, OF_NO_KIND, OBJECT) as (api, asked):
        answer = await api.request("GET", f"{PATH}/l1")
        assert (answer.status, answer.body["metadata"]["name"]) == (200, "l1")
    assert asked == [f"{PATH}/l1"] * 3


async def test_one_who_gives_up_while_tls_begins_leaves_no_connection_behind() -> None:
    """Such a socket would be told of by a test that runs later."""
    greeted, over = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        assert await stream.receive_some()
        greeted.set()
        while await stream.receive_some():
            pass
        over.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            access = Access(f"https://127.0.0.1:{port}", "lab", ssl.create_default_context())
            async with connect(access) as api, trio.open_nursery() as asking:
                asking.start_soon(api.request, "GET", f"{PATH}/l1")
                await greeted.wait()
                asking.cancel_scope.cancel()
            await over.wait()
            nursery.cancel_scope.cancel()


async def test_rights_that_are_not_known_yet_are_waited_for() -> None:
    async with answering(CLOSES, NO_RIGHT, NO_RIGHT, OBJECT, CLOSES, NO_RIGHT) as (api, asked):
        assert (await api.request("GET", f"{PATH}/l1")).status == 200
        assert len(asked) == 4
        for message in "disconnected", "forbidden":
            with pytest.raises(Unreachable, match=message):
                async with aclosing(api.watch(PATH, "1")) as events:  # type: ignore[type-var]
                    await anext(events)


async def test_a_server_that_was_there_all_the_time_knows_all_rights() -> None:
    async with answering(OBJECT, NO_RIGHT, NO_RIGHT) as (api, _):
        assert (await api.request("GET", f"{PATH}/l1")).status == 200
        with pytest.raises(Denied, match=r"refuses to GET .*/l1: l1 is forbidden$"):
            await api.request("GET", f"{PATH}/l1")
        with pytest.raises(Denied, match="refuses to watch"):
            async with aclosing(api.watch(PATH, "1")) as events:  # type: ignore[type-var]
                await anext(events)


async def test_that_there_is_no_such_object_is_an_answer() -> None:
    async with answering(NO_OBJECT) as (api, _):
        assert (await api.request("GET", f"{PATH}/l1")).status == 404


async def test_whoever_lists_or_watches_what_is_not_served_is_told() -> None:
    async with answering(OF_NO_KIND, OF_NO_KIND) as (api, _):
        with pytest.raises(Unserved, match=r"^the cluster has no deviceleases\.jmp\.dev: apply the manifests first$"):
            await api.list(PATH)
        with pytest.raises(Unserved, match=r"refuses to watch .*/deviceleases: 404 page not found$"):
            async with aclosing(api.watch(PATH, "1")) as events:  # type: ignore[type-var]
                await anext(events)


async def test_a_list_may_be_what_the_server_remembers_and_comes_in_pages() -> None:
    def page(name: str, more: str) -> tuple[str, str, str]:
        items = [{"metadata": {"name": name}}]
        return (
            "200 OK",
            "application/json",
            json.dumps({"items": items, "metadata": {"continue": more, "resourceVersion": "7"}}),
        )

    pages = page("l1", "there"), page("l2", "")
    async with answering(*pages, *pages) as (api, asked):
        for remembered in True, False:
            items, version = await api.list(PATH, remembered=remembered)
            assert ([item["metadata"]["name"] for item in items], version) == (["l1", "l2"], "7")
    first, second, third, fourth = [text.removeprefix(f"{PATH}?").split("&") for text in asked]
    assert ("resourceVersion=0" in first, "resourceVersion=0" in third) == (True, False)
    assert second == fourth == ["limit=500", "continue=there"], "where a page begins says of which version it is"


async def test_the_time_is_the_servers(autojump_clock: MockClock) -> None:
    """From answers that tell whole seconds, on ways that take up to a third of one, whatever the machine's clock says."""
    server, rng = 1_800_000_000.25, random.Random(1)
    clock = ServerClock(lambda: 5000.0)
    off = []
    for _ in range(200):
        await trio.sleep(rng.random() * 3)
        asked = trio.current_time()
        await trio.sleep(rng.random() / 3)
        date = formatdate(int(server + trio.current_time()), usegmt=True)
        await trio.sleep(rng.random() / 3)
        clock.hear(date.encode(), asked, trio.current_time())
        off.append(abs(clock() - trio.current_time() - server))
    assert (off[0] < 0.9, off[-1] < 0.2) == (True, True), off
    clock.hear(b"yesterday", 0.0, 0.0)
    assert clock() == pytest.approx(server + trio.current_time(), abs=0.2)


async def test_who_is_told_no_time_goes_by_the_machines() -> None:
    async with answering(OBJECT) as (api, _):
        assert (await api.request("GET", f"{PATH}/l1")).status == 200
        assert api.clock() == pytest.approx(time.time(), abs=5)
