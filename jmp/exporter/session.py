"""A session: one user's time with the device. Its drivers are made for it, opened, and closed at its end.

It can be used over any number of links: each gets :meth:`Session.serve` as the handler of its streams. Besides the drivers it
answers for the target ``@session``, which is the session itself; ``docs/protocol.md`` lists its methods.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

import jmp
from jmp.driver.schema import bind, did_you_mean, parameters_of
from jmp.driver.tree import Node, Tree
from jmp.environment import session_directory, session_environment
from jmp.errors import JmpError, NotFound
from jmp.exporter.config import ExporterConfig, Hook
from jmp.exporter.hooks import Print, run_hook
from jmp.link import Link, websocket
from jmp.mux.protocol import Role
from jmp.mux.stream import multiplex
from jmp.rpc.messages import Kind, Request
from jmp.rpc.serve import Method, serve

log = logging.getLogger("jmp.exporter")

TARGET: Final = "@session"


class Session:
    """One session; made by :func:`open_session`."""

    def __init__(self, config: ExporterConfig, directory: Path, who: str) -> None:
        self.config = config
        self.who = who
        self.directory = directory
        self.tree = Tree(config.tree(), changed=self._changed)
        self._news = trio.lowlevel.ParkingLot()
        self._methods: dict[str, tuple[Kind, Callable[..., Any]]] = {
            "begin": (Kind.CALL, self.begin),
            "report": (Kind.CALL, self.report),
            "states": (Kind.ITEMS, self.states),
            "reset": (Kind.CALL, self.reset),
        }

    @property
    def url(self) -> str:
        """Where programs on this machine reach the session."""
        return f"unix:{self.directory / 'session.sock'}"

    def environment(self) -> dict[str, str]:
        """The environment of programs on this machine that use the session: hooks, and the local user's shell."""
        return session_environment(
            self.directory, self.url, JMP_EXPORTER=self.config.metadata.name, JMP_CLIENT=self.who
        )

    # ---- serving

    def resolve(self, request: Request) -> Method:
        """What carries out a request; raises ``NotFound``, ``BadValue``, ``DeviceError``."""
        if request.target == TARGET:
            return own_method(self._methods, request)
        return self.tree.method(request.target, request.method, request.args, request.kwargs)

    async def serve_link(self, link: Link, _: object = None) -> None:
        """Let a program on this machine use the session over ``link``, until the link ends."""
        async with multiplex(link, Role.LISTENER, serve=serve(self.resolve)) as connection:
            await connection.wait_over()

    # ---- the methods of @session

    async def begin(self, who: str = "", wait: float | None = 0.0) -> dict[str, Any]:
        """Join this session, which has begun already; the report."""
        return await self.report()

    async def report(self) -> dict[str, Any]:
        """What there is: see ``docs/protocol.md``."""
        return {
            "name": self.config.metadata.name,
            "labels": self.config.metadata.labels,
            "description": self.config.description or "",
            "motd": self.config.motd or "",
            "version": jmp.__version__,
            "tree": self.tree.report(),
        }

    async def states(self) -> AsyncGenerator[dict[str, tuple[str, str]], None]:
        """State and reason of every driver, by its path: now, and again whenever one has changed."""
        known: dict[str, tuple[str, str]] | None = None
        while True:
            now = {node.path: (node.state.value, node.reason) for node in self._nodes()}
            if now != known:
                known = now
                yield now
            else:
                await self._news.park()

    async def reset(self, path: str = "") -> None:
        """Reset the driver at ``path`` and all below it."""
        await self.tree.reset(path)

    def _nodes(self) -> list[Node]:
        nodes = {id(node): node for node in map(self.tree.find, self.tree.paths())}
        return [node for node in nodes.values() if node.driver is not None]

    def _changed(self, node: Node) -> None:
        self._news.unpark_all()


def own_method(methods: dict[str, tuple[Kind, Callable[..., Any]]], request: Request) -> Method:
    """A method of an object of the exporter's own, its arguments checked and bound."""
    if request.method not in methods:
        raise NotFound(f"{request.target} has no method {request.method!r}{did_you_mean(request.method, methods)}")
    kind, function = methods[request.method]
    args, kwargs = bind(parameters_of(function), request.args, request.kwargs)
    return Method(kind, partial(function, *args, **kwargs))


@asynccontextmanager
async def open_session(config: ExporterConfig, who: str, *, output: Print | None = None) -> AsyncIterator[Session]:
    """One session of ``who`` with new drivers, from its hooks' beforeLease to their afterLease.

    Entered when every driver is open or degraded. ``output`` gets what hooks print (default: the log). A failing
    beforeLease hook raises ``LabError`` unless it is configured to warn. Cancellation ends the block; then, as ever, afterLease
    runs while the drivers are still there, and they are closed.
    """
    show = output or _to_log
    with session_directory() as directory:
        session = Session(config, directory, who)
        async with trio.open_nursery() as outside:
            body = trio.CancelScope()
            outside.start_soon(_pass_on, body)
            # What the session consists of ends in order, not all at once when the user is cancelled: hence the shield.
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    try:
                        with body:
                            await session.tree.start(nursery)
                            await nursery.start(_listen, session)
                            await _hook("beforeLease", config.hooks.before_lease, session, show)
                            yield session
                    finally:
                        await _hook("afterLease", config.hooks.after_lease, session, show)
                        nursery.cancel_scope.cancel()
            outside.cancel_scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()


async def _pass_on(scope: trio.CancelScope) -> None:
    """Cancel ``scope``, which is shielded from it, when this task is cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        scope.cancel()


async def _listen(session: Session, task_status: trio.TaskStatus[object]) -> None:
    """Answer programs on this machine; only this user gets to the socket, since its directory is private."""

    async def everybody(_: websocket.UpgradeRequest) -> None:
        return None

    path = session.url.removeprefix("unix:")
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(path)
    sock.listen(64)
    handler: Callable[[Link, object], Awaitable[None]] = session.serve_link
    await websocket.serve([trio.SocketListener(sock)], everybody, handler, task_status=task_status)


async def _hook(name: str, hook: Hook | None, session: Session, show: Print) -> None:
    if hook is None:
        return
    try:
        await run_hook(name, hook, {**session.environment(), "JMP_HOOK": name}, show)
    except JmpError as error:
        log.warning("%s", error.message)
        if name == "beforeLease" and hook.on_failure != "warn":
            raise
        show(name, f"{error.message}\n".encode())


def _to_log(source: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        log.info("%s: %s", source, line)
