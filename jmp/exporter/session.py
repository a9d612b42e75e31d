"""A session: one user's time with the device. Its drivers are made for it, opened, and closed at its end.

It can be used over any number of links: each gets :meth:`Session.serve` as the handler of its streams. Besides the drivers it
answers for the target ``@session``, which is the session itself; ``docs/protocol.md`` lists its methods.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import trio

import jmp
from jmp.driver import export
from jmp.driver.plugins import driver_package
from jmp.driver.service import method_of
from jmp.driver.tree import Node, Tree, shielded
from jmp.environment import session_directory, session_environment
from jmp.exporter.config import ExporterConfig, Hook
from jmp.exporter.hooks import HookFailed, Print, run_hook
from jmp.groups import ungrouped
from jmp.link import Link, websocket
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.messages import Request
from jmp.rpc.serve import Method, serve

log = logging.getLogger("jmp.exporter")

TARGET: Final = "@session"


class Session:
    """One session; made by :func:`open_session`."""

    def __init__(self, config: ExporterConfig, directory: Path, who: str, environ: Mapping[str, str]) -> None:
        self.config = config
        self.who = who
        self.directory = directory
        self.tree = Tree(config.tree(), changed=self._changed)
        self._environ = environ
        self._news = trio.lowlevel.ParkingLot()

    @property
    def url(self) -> str:
        """Where programs on this machine reach the session."""
        return f"unix:{self.directory / 'session.sock'}"

    def environment(self) -> dict[str, str]:
        """The environment of programs on this machine that use the session: hooks, and the local user's shell."""
        own = session_environment(self.directory, self.url, JMP_EXPORTER=self.config.metadata.name, JMP_CLIENT=self.who)
        return {**own, **self._environ}

    # ---- serving

    def resolve(self, request: Request) -> Method:
        """What carries out a request; raises ``NotFound``, ``BadValue``, ``DeviceError``."""
        if request.target == TARGET:
            return method_of(self, request)
        return self.tree.method(request.target, request.method, request.args, request.kwargs)

    async def serve_link(self, link: Link, _: object = None) -> None:
        """Let a program on this machine use the session over ``link``, until the link ends."""
        async with multiplex(link, Role.LISTENER, serve=serve(self.resolve)) as connection:
            await connection.wait_over()

    # ---- the methods of @session

    @export
    async def begin(self, who: str = "", wait: float | None = 0.0) -> dict[str, Any]:
        """Join this session, which has begun already; the report."""
        return await self.report()

    @export
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

    @export
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

    @export
    async def reset(self, path: str = "") -> None:
        """Reset the driver at ``path`` and all below it."""
        await self.tree.reset(path)

    def _nodes(self) -> list[Node]:
        nodes = {id(node): node for node in map(self.tree.find, self.tree.paths())}
        return [node for node in nodes.values() if node.driver is not None]

    def _changed(self, node: Node) -> None:
        self._news.unpark_all()


@ungrouped
@asynccontextmanager
async def open_session(
    config: ExporterConfig,
    who: str,
    *,
    output: Print | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    packages: Collection[str] | None = None,
    before: bool = True,
) -> AsyncIterator[Session]:
    """One session of ``who`` with new drivers, from its hooks' beforeLease (left out if not ``before``) to their afterLease.

    Entered when every driver is open or degraded. ``output`` gets what hooks print (default: the log), ``environ`` is added to
    their environment. Drivers of other distributions than ``packages`` (None: any) are degraded and never opened. A failing
    beforeLease hook raises ``HookFailed`` unless it is configured to warn. Cancellation ends the block; then, as ever,
    afterLease runs while the drivers are still there, and they are closed.
    """
    show = output or _to_log
    with session_directory() as directory:
        session = Session(config, directory, who, environ)
        _bar(session.tree.root, packages)
        # What the session consists of ends in order, not all at once when its user is cancelled: hence the shield.
        async with shielded() as body, trio.open_nursery() as nursery:
            try:
                with body:
                    await session.tree.start(nursery)
                    await nursery.start(_listen, session)
                    if before:
                        await _hook("beforeLease", config.hooks.before_lease, session, show)
                    yield session
            finally:
                await _hook("afterLease", config.hooks.after_lease, session, show)
                nursery.cancel_scope.cancel()


def _bar(node: Node, packages: Collection[str] | None, barred: str = "") -> None:
    """Keep drivers of distributions that are not allowed from being opened; what such a driver brings along goes with it."""
    if packages is not None and node.type is not None:
        package = driver_package(node.type)
        barred = "" if package in packages else f"a policy does not allow drivers of {package or 'no package'}"
    if node.driver is not None:
        node.barred = barred
    for child in node.children.values():
        _bar(child, packages, barred)


async def _listen(session: Session, task_status: trio.TaskStatus[object]) -> None:
    """Answer programs on this machine; only this user gets to the socket, since its directory is private."""

    async def everybody(_: websocket.UpgradeRequest) -> None:
        return None

    path = session.url.removeprefix("unix:")
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await sock.bind(path)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    handler: Callable[[Link, object], Awaitable[None]] = session.serve_link
    await websocket.serve([trio.SocketListener(sock)], everybody, handler, task_status=task_status)


async def _hook(name: str, hook: Hook | None, session: Session, show: Print) -> None:
    if hook is None:
        return
    try:
        await run_hook(name, hook, {**session.environment(), "JMP_HOOK": name}, show)
    except HookFailed as error:
        log.warning("%s", error.message)
        if hook.on_failure == "exit" or (name == "beforeLease" and hook.on_failure == "endLease"):
            raise
        show(name, f"{error.message}\n".encode())


def _to_log(source: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        log.info("%s: %s", source, line)
