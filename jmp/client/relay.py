"""Lets programs on this machine use a session that is held over one link to somewhere else.

Streams that programs open on a local socket are joined, one to one, with new streams on that link. Nothing of them is decoded.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from jmp.link import websocket
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import Role
from jmp.mux.stream import MuxStream, StreamReset
from jmp.wire.frames import Reset


@asynccontextmanager
async def relay(connection: Connection, url: str) -> AsyncIterator[None]:
    """Answer at ``url`` (``unix:PATH``, in a directory that only this user can enter) for as long as the block lasts."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.bind(url.removeprefix("unix:"))
        sock.listen(64)
    except BaseException:
        sock.close()
        raise

    async def handler(link: websocket.WebSocketLink, _: None) -> None:
        async with multiplex(link, Role.LISTENER, serve=partial(_join, connection)) as local:
            await local.wait_over()

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(websocket.serve, [trio.SocketListener(sock)], _everybody, handler))
        yield
        nursery.cancel_scope.cancel()


async def _everybody(_: websocket.UpgradeRequest) -> None:
    return None


async def _join(connection: Connection, near: MuxStream) -> None:
    """Join a local stream with a new one on the link; the end of either, orderly or not, is passed on."""
    far = connection.open_stream(soon=True)  # with what has come to be sent on
    try:
        async with trio.open_nursery() as nursery:
            # A side that breaks has to be noticed even while nobody reads from it or writes to it.
            near.scope = far.scope = nursery.cancel_scope
            nursery.start_soon(_copy, near, far)
            nursery.start_soon(_copy, far, near)
    finally:
        _pass_on_reset(near, far)
        _pass_on_reset(far, near)
        near.reset()  # these do nothing to a stream that has ended in order
        far.reset()


async def _copy(source: MuxStream, target: MuxStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()
    except trio.BrokenResourceError:
        if not (source.broken or target.broken):
            source.stop()  # the target reads no more; what it sends itself is the other copy's affair


def _pass_on_reset(broken: MuxStream, other: MuxStream) -> None:
    error = broken.error
    if isinstance(error, StreamReset):
        other.reset(error.code, error.detail)
    elif error is not None:
        other.reset(Reset.CANCELLED)
