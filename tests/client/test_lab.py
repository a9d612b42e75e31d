"""The client's side of a shared lab, at a listener that stands for its controller."""

from __future__ import annotations

import pytest
import trio

from jmp.client.config import ClientConfig, Metadata
from jmp.client.lab import open_lab_trio
from jmp.errors import LabError
from jmp.link import Link, websocket
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role


async def test_what_goes_wrong_with_a_lab_is_raised_as_it_is() -> None:
    """And not in a group: whoever looks for another link tries again after some errors, and not after others."""

    async def handler(link: Link, _: object) -> None:
        async with multiplex(link, Role.LISTENER) as connection:
            await connection.wait_over()

    async def anybody(_: object) -> None:
        return None

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            await nursery.start(websocket.serve, listeners, anybody, handler)
            config = ClientConfig(metadata=Metadata(name="alice"), endpoint=f"ws://127.0.0.1:{port}", token="t")
            with pytest.raises(LabError, match="is offline"):
                async with open_lab_trio(config):
                    raise LabError("exporter one is offline at present")
            nursery.cancel_scope.cancel()
