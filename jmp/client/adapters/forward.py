"""Port forward: each connection to a port on this machine becomes a byte stream of a driver.

Bytes and the end of either side's output are carried both ways, and a slow side slows the other down: one piece per direction
is held. What ends a connection otherwise is passed on as it is among sockets: the other side's connection is reset, so that
nobody takes half an answer for a whole one. Such an end, a refused connection for example, is told (as a warning of the logger
``jmp.forward``) and ends nothing else.

Everything is here twice, for Trio and for threads.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import TYPE_CHECKING, Any, Final, Protocol

from jmp.client.adapters.listen import Bound, listening
from jmp.client.blocks import EitherBlock
from jmp.driver.proxy import Backend, Blocking, ByteStream, entered, run
from jmp.errors import Cancelled, JmpError, LinkLost, UsageError
from jmp.groups import ungrouped
from jmp.rpc.blocking import BlockingCaller

if TYPE_CHECKING:
    import trio

log = logging.getLogger("jmp.forward")

CLOSE_SECONDS: Final = 5.0
"""How long a forward's end waits for the threads of its connections, which have been cut off by then."""
_PIECE: Final = 256 * 1024
"""Bytes read at once from a program: as many as leave in one message."""
_RETRY_SECONDS: Final = 0.1
"""Pause before accepting again when this process has no file descriptors left; as in Trio."""

Open = Callable[[], AbstractAsyncContextManager[ByteStream]]
"""Opens a byte stream of the driver."""

Told = Callable[[object, JmpError], None]
"""Called with a program's address and what ended its connection, unless that was one of the two sides."""


class Running(Protocol):
    """A forward, by tasks or by threads."""

    @property
    def running(self) -> Callable[[], Any]:
        """A context manager that gives what is :class:`~jmp.client.adapters.listen.Bound`."""


class Forward(EitherBlock[Bound, Bound]):
    """A port on this machine for as long as the block lasts: ``with`` for threads, ``async with`` for Trio.

    Entering gives where it listens, a :class:`~jmp.client.adapters.listen.Bound`, and raises
    :class:`~jmp.errors.UsageError` or ``LabError`` if it cannot listen there. What is still open at the end is cut off.
    """

    def __init__(self, backend: Backend, path: str, by_threads: Running, by_tasks: Running) -> None:
        self._backend = backend
        self._path = path
        self._sync = by_threads
        self._async = by_tasks

    def _by_threads(self) -> AbstractContextManager[Bound]:
        held: AbstractContextManager[Bound] = self._sync.running()
        return held

    def _by_tasks(self) -> AbstractAsyncContextManager[Bound]:
        held: AbstractAsyncContextManager[Bound] = self._async.running()
        return held

    def __enter__(self) -> Bound:
        if not isinstance(self._backend, BlockingCaller):
            raise UsageError("a forward of a device that is used with Trio is entered with `async with`")
        return super().__enter__()

    def describe(self, bound: Bound) -> str:
        """What the command line says on a terminal; blocks."""
        return f"listening on {bound} → {run(self._backend.call(self._path, 'address', (), {}))}"

    def wait(self) -> None:
        """Block until the session is over, and raise :class:`~jmp.errors.LinkLost` then."""
        try:
            for _ in Blocking(self._backend.items("@session", "states", (), {})):
                pass
        except (Cancelled, LinkLost) as error:
            raise LinkLost(f"the session is over, and so is the forward of {self._path}") from error


def _told(peer: object, error: JmpError) -> None:
    source = f"the connection from {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a connection"
    log.warning("%s was closed: %s", source, error.message)


def _reset(sock: socket.socket | trio.socket.SocketType) -> None:
    """Let closing ``sock`` tell its peer that the connection broke (TCP only)."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _at_once(sock: socket.socket | trio.socket.SocketType) -> None:
    with suppress(OSError):  # a Unix socket has no such delay
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# ---- Trio


class TaskForward:
    """A forward by tasks."""

    def __init__(self, open_stream: Open, listen: str, *, told: Told | None = None) -> None:
        self._open_stream = open_stream
        self._listen = listen
        self._told = told or _told

    @ungrouped
    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bound]:
        """Connections still open at the end of the block are cut off."""
        import trio

        with ExitStack() as stack:
            sock, bound = await trio.to_thread.run_sync(stack.enter_context, listening(self._listen))
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._connection, [listener])
                yield bound
                nursery.cancel_scope.cancel()

    async def _connection(self, near: trio.SocketStream) -> None:
        import trio

        async with near:
            whole = False
            peer: object = None
            try:
                with suppress(OSError):  # it may be gone already
                    peer = near.socket.getpeername()
                async with self._open_stream() as far:
                    await _join(near, far)
                whole = True
            except JmpError as error:
                self._told(peer, error)
            except trio.BrokenResourceError as error:
                log.debug("a program broke off its connection to %s: %s", self._listen, error)
            finally:
                if not whole:
                    _reset(near.socket)


async def _join(near: trio.SocketStream, far: ByteStream) -> None:
    """Carry bytes both ways until both sides have ended; raises what ended it otherwise."""
    import trio

    failure: BaseException | None = None

    async def upward() -> None:
        nonlocal failure
        try:
            while data := await near.receive_some(_PIECE):
                await far.send_all(data)
            await far.send_eof()
        except JmpError:
            pass  # the driver takes no more; why, the other direction learns, which may still have much to bring
        except trio.BrokenResourceError as error:
            failure = error
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upward)
        try:
            while data := await far.receive_some():
                await near.send_all(data)
            await near.send_eof()
        except (JmpError, trio.BrokenResourceError) as error:
            failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


# ---- threads


class ThreadForward:
    """A forward by threads: one that accepts, two for each connection."""

    def __init__(self, open_stream: Open, listen: str, *, told: Told | None = None) -> None:
        self._open_stream = open_stream
        self._listen = listen
        self._told = told or _told
        self._connections: set[_Connection] = set()
        self._state = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[Bound]:
        """Connections still open at the end of the block are cut off."""
        with listening(self._listen) as (sock, bound), ExitStack() as stack:
            woken, wake = socket.socketpair()
            stack.enter_context(woken)
            stack.callback(self._cut_all)
            acceptor = threading.Thread(target=self._accept, args=(sock, woken), name="jmp-forward", daemon=True)
            acceptor.start()
            stack.callback(acceptor.join)
            stack.enter_context(wake)  # its end ends the acceptor, and whoever waits for a program
            yield bound

    def _accept(self, listener: socket.socket, woken: socket.socket) -> None:
        while True:
            try:
                wait_for(listener, select.POLLIN, woken)
                near, peer = listener.accept()
            except CutOff:
                return
            except (BlockingIOError, ConnectionError):
                continue  # it has been given up already
            except OSError as error:
                log.warning("cannot accept a connection at %s: %s", self._listen, os.strerror(error.errno or 0))
                with suppress(CutOff):
                    wait_for(woken, 0, woken, _RETRY_SECONDS)
                continue
            connection = _Connection(self, near, peer, woken)
            with self._state:
                self._connections.add(connection)
            try:
                connection.start()
            except RuntimeError as error:  # no more threads
                near.close()
                self._over(connection)
                log.warning("a connection to %s was closed: %s", self._listen, error)

    def _cut_all(self) -> None:
        with self._state:
            connections = list(self._connections)
        for connection in connections:
            connection.cut()
        deadline = time.monotonic() + CLOSE_SECONDS
        for connection in connections:
            connection.join(max(0, deadline - time.monotonic()))

    def _over(self, connection: _Connection) -> None:
        with self._state:
            self._connections.discard(connection)


class CutOff(Exception):
    """This side ends it."""


def wait_for(sock: socket.socket, event: int, woken: socket.socket, seconds: float | None = None) -> None:
    """Wait until ``sock`` is ready; raises `CutOff` once there is something to read from ``woken``."""
    ready = select.poll()
    ready.register(sock, event)
    ready.register(woken, select.POLLIN)
    if any(number == woken.fileno() for number, _ in ready.poll(None if seconds is None else seconds * 1000)):
        raise CutOff


class _Connection(threading.Thread):
    """One connection: this thread brings what the driver sends, a second one takes what the program sends."""

    def __init__(self, forward: ThreadForward, near: socket.socket, peer: object, woken: socket.socket) -> None:
        super().__init__(name="jmp-forward-down", daemon=True)
        self._forward = forward
        self._near = near
        self._peer = peer
        self._woken = woken
        self._far: Any = None
        self._cut = self._has_told = False
        self._state = threading.Lock()

    def run(self) -> None:
        whole = False
        try:
            self._near.setblocking(True)
            _at_once(self._near)
            with entered(self._forward._open_stream()) as far:
                self._join(far)
            whole = True
        except JmpError as error:
            self._tell(error)
        except OSError as error:
            log.debug("a program broke off its connection to %s: %s", self._forward._listen, error)
        except CutOff:
            pass
        finally:
            if not whole:
                _reset(self._near)
            self._near.close()
            self._forward._over(self)

    def cut(self) -> None:
        """Reset the driver's stream: who waits for it on this side is woken. Any thread may call this."""
        with self._state:
            self._cut = True
            if self._far is not None:
                self._far.reset()
            with suppress(OSError):
                self._near.shutdown(socket.SHUT_RD)

    def _join(self, far: Any) -> None:
        """Carry bytes both ways until both sides have ended; raises what ended it otherwise."""
        with self._state:
            self._far = far
            if self._cut:
                raise CutOff
        upward = threading.Thread(target=self._upward, args=(far,), name="jmp-forward-up", daemon=True)
        upward.start()
        try:
            while data := run(far.receive_some()):
                self._send(data)
            self._near.shutdown(socket.SHUT_WR)
            upward.join()
            if self._cut:
                raise CutOff
        except BaseException as error:
            if isinstance(error, JmpError):
                self._tell(error)  # before the program can notice anything
            far.reset()
            with suppress(OSError):
                self._near.shutdown(socket.SHUT_RD)  # wakes the other thread; at a Unix socket it tells the program
            upward.join()
            raise

    def _tell(self, error: JmpError) -> None:
        """Say why the connection ends, once."""
        if not self._cut and not self._has_told:
            self._has_told = True
            self._forward._told(self._peer, error)

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._near.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                wait_for(self._near, select.POLLOUT, self._woken)

    def _upward(self, far: Any) -> None:
        try:
            while data := self._near.recv(_PIECE):  # until the program has ended, or this side reads no more
                run(far.send_all(data))
            run(far.send_eof())
        except JmpError:
            pass  # the driver takes no more; why, the other direction learns, which may still have much to bring
        except OSError:
            self.cut()
