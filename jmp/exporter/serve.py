"""Offers an exporter's device on listening sockets, to one user at a time.

Whoever connects asks for a session (``@session.begin``) and holds the device until its link ends, however it ends; then the
next one in line gets it, with new drivers. Others can be connected meanwhile, but use nothing. Over a network a link that breaks
is not the end of it: its client may come back with another one (:mod:`jmp.link.sessions`).
"""

from __future__ import annotations

import errno
import hmac
import logging
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from jmp.driver import export
from jmp.driver.service import method_of
from jmp.errors import Busy, LabError, ProtocolViolation, Refused
from jmp.exporter.config import ExporterConfig
from jmp.exporter.hooks import HookFailed
from jmp.exporter.session import TARGET, Session, open_session
from jmp.link import Link, websocket
from jmp.link.sessions import Sessions
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.messages import Request
from jmp.rpc.serve import Method, serve

log = logging.getLogger("jmp.exporter")

STOPPING: Final = (1001, "the exporter is stopping")


class Exporter:
    """One device and the line of those who want it."""

    def __init__(self, config: ExporterConfig) -> None:
        self.config = config
        self._slot = trio.Lock()
        self._holder = ""
        self._first_over = trio.Event()
        self._stopped = trio.Event()
        self._failure: HookFailed | None = None
        self._sessions = Sessions()

    async def wait_first_over(self) -> None:
        """Wait until a first session has ended."""
        await self._first_over.wait()

    async def wait_stopped(self) -> HookFailed:
        """Wait until a hook has failed that ends the exporter then."""
        await self._stopped.wait()
        assert self._failure is not None
        return self._failure

    async def serve_link(self, link: websocket.WebSocketLink, _: object = None) -> None:
        """Serve one client until its link ends, and then end its session."""
        if link.peer.startswith("unix:"):  # the kernel tells when a local peer is gone, and then it is
            await self._serve_client(link)
        else:
            await self._sessions.serve(link, self._serve_client, _no_more_than_the_key)

    async def _serve_client(self, link: Link) -> None:
        async with trio.open_nursery() as nursery:
            visit = _Visit(self, nursery)
            watch = not link.peer.startswith("unix:")
            async with multiplex(link, Role.LISTENER, serve=serve(visit.resolve), watch=watch) as connection:
                connection.farewell = STOPPING
                error = await connection.wait_over()
                level = logging.WARNING if isinstance(error, ProtocolViolation) else logging.DEBUG
                log.log(level, "%s: %s", link.peer, error.message)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def hold(self, who: str, wait: float | None) -> AsyncIterator[Session]:
        """The device for ``who``, once it is free: within ``wait`` seconds (None: whenever), or ``Busy`` is raised."""
        try:
            if wait == 0:
                self._slot.acquire_nowait()
            else:
                with trio.fail_after(float("inf") if wait is None else wait):
                    await self._slot.acquire()
        except (trio.WouldBlock, trio.TooSlowError):
            line = f", {waiting} waiting" if (waiting := self._slot.statistics().tasks_waiting) else ""
            raise Busy(f"{self.config.metadata.name} is in use by {self._holder}{line}") from None
        self._holder = f"{who} since {datetime.now().astimezone():%Y-%m-%d %H:%M}"
        log.info("session of %s begins", who)
        try:
            async with open_session(self.config, who) as session:
                yield session
        except* HookFailed as errors:
            self._fail(errors)
            raise
        finally:
            log.info("session of %s is over", who)
            self._slot.release()
            self._first_over.set()

    def _fail(self, errors: BaseExceptionGroup[HookFailed]) -> None:
        fatal: object = errors.subgroup(lambda error: isinstance(error, HookFailed) and error.hook.on_failure == "exit")
        while isinstance(fatal, BaseExceptionGroup):
            fatal = fatal.exceptions[0]
        if isinstance(fatal, HookFailed):
            self._failure = fatal
            self._stopped.set()


def _no_more_than_the_key(token: str | None) -> None:
    """Who knows the passphrase was let in; and who knows the key of a session has begun it."""


class _Visit:
    """One link of one client, with a session or without."""

    def __init__(self, exporter: Exporter, nursery: trio.Nursery) -> None:
        self._exporter = exporter
        self._nursery = nursery
        self._session: Session | None = None

    def resolve(self, request: Request) -> Method:
        if request.target == TARGET and request.method == "begin":
            return method_of(self, request)
        if self._session is None:
            raise Refused("no session was begun on this link: call @session.begin first")
        return self._session.resolve(request)

    @export
    async def begin(self, who: str = "unknown", wait: float | None = 0.0) -> dict[str, Any]:
        """Get the device, and its report. Raises ``Busy`` if it is not free within ``wait`` seconds (None: no limit)."""
        if self._session is None:
            await self._nursery.start(self._hold, who, wait)
        assert self._session is not None
        return await self._session.report()

    async def _hold(self, who: str, wait: float | None, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self._exporter.hold(who, wait) as self._session:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._session = None


# ---- listening


async def listen(address: str) -> list[trio.SocketListener]:
    """Listen at ``unix:PATH`` (only this user may connect) or ``HOST:PORT`` (port 0: one that is free).

    The process may then have as many connections as the system lets it: by default it would be 1 024.

    Raises :class:`~jmp.errors.LabError` if that cannot be had.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        if address.startswith("unix:"):
            return [await _listen_unix(address.removeprefix("unix:"))]
        host, _, port = address.rpartition(":")
        return list(await trio.open_tcp_listeners(int(port), host=host.strip("[]") or None))
    except OSError as error:
        why = "the address is in use: stop what listens there, or choose another with --listen"
        reason = why if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise LabError(f"cannot listen at {address}: {reason}") from error


async def _listen_unix(path: str) -> trio.SocketListener:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_stale(path):
            os.unlink(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = os.umask(0o177)
        try:
            await sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


def _is_stale(path: str) -> bool:
    """Whether a socket file was left by a process that is gone."""
    if not Path(path).is_socket():
        return False  # the system refuses to connect to other files, too
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def address_of(listener: trio.SocketListener) -> str:
    """Where a listener listens: ``unix:PATH`` or ``HOST:PORT``."""
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def passphrase_check(passphrase: str | None) -> Callable[[websocket.UpgradeRequest], Awaitable[str]]:
    """Lets in who knows the passphrase; everybody if it is None (for Unix sockets, whose file says who may connect)."""

    async def authenticate(request: websocket.UpgradeRequest) -> str:
        if passphrase is not None:
            given = request.token or ""
            if not hmac.compare_digest(given.encode(), passphrase.encode()):
                raise Refused(
                    "the passphrase is wrong"
                    if given
                    else "a passphrase is needed: --passphrase-file or JMP_PASSPHRASE"
                )
        return request.peer

    return authenticate


async def serve_exporter(
    config: ExporterConfig,
    local: Sequence[trio.SocketListener],
    remote: Sequence[trio.SocketListener],
    *,
    passphrase: str | None = None,
    tls: ssl.SSLContext | None = None,
    once: bool = False,
    task_status: trio.TaskStatus[Exporter] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Offer the device of ``config`` until cancelled; with ``once``, until the first session is over.

    ``local`` listeners let everybody in who can reach them, ``remote`` ones who knows ``passphrase``, over ``tls``. On
    cancellation the running session is ended in order: its client is told, hooks run, drivers close. Raises ``HookFailed``
    when a hook has failed that is configured to end the exporter then (``onFailure: exit``).
    """
    exporter = Exporter(config)
    async with trio.open_nursery() as nursery:
        for listeners, secret, context in ((local, None, None), (remote, passphrase, tls)):
            if listeners:
                await nursery.start(
                    partial(websocket.serve, listeners, passphrase_check(secret), exporter.serve_link, tls=context)
                )
        task_status.started(exporter)
        notify("READY=1")
        if once:
            nursery.start_soon(_cancel_after, exporter.wait_first_over, nursery.cancel_scope)
        raise await exporter.wait_stopped()


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


def notify(state: str) -> None:
    """Tell the service manager, if one asked to be told (the sd_notify protocol)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.sendall(state.encode())
