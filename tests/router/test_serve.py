"""A router with real links on either side: what it carries, and what an end says last."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import trio

from jmp.link.rfc6455 import Closed
from jmp.link.websocket import UpgradeRequest, WebSocketLink, connect
from jmp.router.serve import Router
from jmp.wire.tokens import SessionClaims
from tests.fakes.links import KINDS, certificate, serving


async def join(router: Router, link: WebSocketLink, request: UpgradeRequest) -> None:
    end = request.headers["x-end"]
    expires = time.time() + 60
    claims = SessionClaims("client", end, "exporter", "lease", 1, "session", (), (), "token", expires)  # type: ignore[arg-type]
    await router.serve_link(link, claims)


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_arrive_whole_in_order_and_before_the_good_bye(kind: str, tmp_path: Path) -> None:
    router = Router()
    sizes = random.Random(3)
    messages = [bytes([number % 251]) * sizes.choice((1, 100, 5000, 70_000)) for number in range(300)]

    async def handler(link: WebSocketLink, request: UpgradeRequest) -> None:
        await join(router, link, request)

    with trio.fail_after(60):
        async with serving(kind, tmp_path, handler) as url:
            pinned = certificate().fingerprint if kind == "wss" else None
            client = await connect(url, fingerprint=pinned, headers=[("X-End", "client")])
            exporter = await connect(url, fingerprint=pinned, headers=[("X-End", "exporter")])

            async def send() -> None:
                for begin in range(0, len(messages), 30):
                    await client.send_each(messages[begin : begin + 30])
                await client.aclose(3000, "done")

            got: list[bytes] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                with pytest.raises(Closed) as closed:  # noqa: PT012  # the end comes at its time
                    while True:
                        got.append(await exporter.receive())
            await exporter.aclose()
    assert got == messages
    assert (closed.value.close_code, closed.value.reason) == (3000, "done")
    assert (router.messages, router.bytes) == (300, sum(map(len, messages)))
