"""Routers at a lab's controller, and what can be seen of them; all in one process."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import wait_all_tasks_blocked

from jmp.link.memory import memory_links
from jmp.link.pages import serve_pages
from jmp.mux import protocol
from jmp.mux.connection import multiplex
from jmp.router.http import pages
from jmp.router.serve import Router, attend, drain
from jmp.wire.records import Role
from jmp.wire.tokens import SessionClaims
from tests.fakes.memory_lab import MemoryLab, memory_lab


@asynccontextmanager
async def routers(directory: Path, *names: str) -> AsyncIterator[tuple[MemoryLab, list[Router]]]:
    """A lab, and routers that share a token."""
    with trio.fail_after(60):
        async with memory_lab(directory) as lab, trio.open_nursery() as nursery:
            who = await lab.identity("pool", Role.ROUTER)
            found = [Router() for _ in names]
            for router, name in zip(found, names, strict=True):
                url = f"wss://{name}.example"
                nursery.start_soon(partial(attend, router, partial(lab.dial, who), url, None, name=name))
            for router in found:
                while not router.connected:
                    await router.changed.park()
            yield lab, found
            nursery.cancel_scope.cancel()


async def test_routers_that_share_a_token_have_names_of_their_own(tmp_path: Path) -> None:
    async with routers(tmp_path, "one", "two") as (lab, [_, two]):
        assert set(lab.lab.routers) == {"pool/one", "pool/two"}
        await drain(two, 1)
        await wait_all_tasks_blocked()
        assert lab.lab.routers["pool/two"].draining
        assert {lab.lab.router().url for _ in range(4)} == {"wss://one.example"}


async def test_a_router_that_comes_again_takes_its_own_place_only(tmp_path: Path) -> None:
    async with routers(tmp_path, "pool", "two") as (lab, [_, two]):
        assert set(lab.lab.routers) == {"pool", "pool/two"}
        before = dict(lab.lab.routers)
        again = Router()
        async with trio.open_nursery() as nursery:
            who = await lab.identity("pool", Role.ROUTER)
            nursery.start_soon(partial(attend, again, partial(lab.dial, who), "wss://new.example", None, name="pool"))
            while not again.connected:
                await again.changed.park()
            assert lab.lab.routers["pool"].url == "wss://new.example"
            assert lab.lab.routers["pool/two"] is before["pool/two"]
            assert two.connected
            nursery.cancel_scope.cancel()


async def test_what_a_router_shows(tmp_path: Path) -> None:
    async with routers(tmp_path, "one") as (lab, [router]), trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(serve_pages, [listener], pages(router))
        port = listener.socket.getsockname()[1]

        async def get(path: str) -> tuple[int, str]:
            def ask() -> tuple[int, str]:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    return answer.status, answer.read().decode()
                finally:
                    connection.close()

            return await trio.to_thread.run_sync(ask)

        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (200, "ok\n")
        _, text = await get("/metrics")
        values = {
            sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
        }
        assert values["jmp_router_load"] == 0
        assert values["jmp_router_capacity"] == 2000
        assert values["jmp_router_connected"] == 1
        assert values["jmp_router_messages_total"] == 0
        lab.kill_controller()
        while router.connected:
            await router.changed.park()
        assert await get("/readyz") == (503, "no controller is connected\n")
        await drain(router, 1)
        assert await get("/readyz") == (503, "this router is stopping\n")
        assert await get("/healthz") == (200, "ok\n")
        nursery.cancel_scope.cancel()


async def test_who_waits_in_vain_hears_why_before_it_gives_up_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    claims = SessionClaims("alice", "client", "one", "lease", 1, "session", ("*",), (), "id", 1e12)
    here, there = memory_links()
    with trio.fail_after(60):
        async with (
            trio.open_nursery() as nursery,
            multiplex(here, protocol.Role.DIALLER, watch=True) as connection,
        ):
            nursery.start_soon(Router().serve_link, there, claims)
            error = await connection.wait_over()
    assert "the exporter did not come within" in error.message
