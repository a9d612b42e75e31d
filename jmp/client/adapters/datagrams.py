"""UDP port forward: each program that sends to a port on this machine gets a stream of a driver for its datagrams.

A program is told from others by its address. Its stream ends when nothing has come or gone on it for ``idle`` seconds; the next
datagram opens another one. As with UDP everywhere, what comes faster than it can be sent on is dropped: past :data:`QUEUE`
datagrams of one program, and those of new programs past :data:`PROGRAMS`. A stream that fails is told (a warning of the logger
``jmp.forward``) and ends nothing else.
"""

from __future__ import annotations

import logging
import math
import queue
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from jmp.client.adapters.forward import CLOSE_SECONDS, CutOff, Open, wait_for
from jmp.client.adapters.listen import Bound, listening
from jmp.client.network import MAX_DATAGRAM, Unpacker, pack
from jmp.driver.proxy import Blocking, ByteStream
from jmp.errors import JmpError

if TYPE_CHECKING:
    import trio

log = logging.getLogger("jmp.forward")

QUEUE: Final = 256
PROGRAMS: Final = 256


def _told(program: Any, error: JmpError) -> None:
    log.warning("the datagrams of %s:%s are not forwarded: %s", program[0], program[1], error.message)


# ---- Trio


class TaskForward:
    """A forward by tasks."""

    def __init__(self, open_stream: Open, listen: str, idle: float) -> None:
        self._open_stream = open_stream
        self._listen = listen
        self._idle = idle

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bound]:
        """Streams still open at the end of the block are cut off."""
        import trio

        with ExitStack() as stack:
            opening = listening(self._listen, socket.SOCK_DGRAM)
            sock, bound = await trio.to_thread.run_sync(stack.enter_context, opening)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, trio.socket.from_stdlib_socket(sock), nursery)
                yield bound
                nursery.cancel_scope.cancel()

    async def _receive(self, port: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        import trio

        programs: dict[Any, trio.MemorySendChannel[bytes]] = {}
        while True:
            try:
                datagram, program = await port.recvfrom(MAX_DATAGRAM)
            except OSError:
                continue  # what a program that is gone did not take
            if program not in programs:
                if len(programs) >= PROGRAMS:
                    continue
                programs[program], arriving = trio.open_memory_channel[bytes](QUEUE)
                nursery.start_soon(self._serve, port, program, arriving, programs)
            with suppress(trio.WouldBlock):
                programs[program].send_nowait(datagram)

    async def _serve(
        self,
        port: trio.socket.SocketType,
        program: Any,
        arriving: trio.MemoryReceiveChannel[bytes],
        programs: dict[Any, trio.MemorySendChannel[bytes]],
    ) -> None:
        import trio

        try:
            async with self._open_stream() as far:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._upward, arriving, far, scope)
                        unpacker = Unpacker()
                        failure: JmpError | None = None
                        try:
                            while data := await far.receive_some():
                                scope.deadline = trio.current_time() + self._idle
                                for datagram in unpacker.feed(data):
                                    with suppress(OSError):
                                        await port.sendto(datagram, program)
                            unpacker.end()
                        except JmpError as error:
                            failure = error
                        scope.cancel()
                if failure is not None:
                    raise failure
        except JmpError as error:
            _told(program, error)
        finally:
            programs.pop(program).close()

    async def _upward(
        self, arriving: trio.MemoryReceiveChannel[bytes], far: ByteStream, scope: trio.CancelScope
    ) -> None:
        import trio

        with suppress(JmpError):  # why, the other direction learns
            while True:
                scope.deadline = trio.current_time() + self._idle
                await far.send_all(pack(await arriving.receive()))


# ---- threads


class ThreadForward:
    """A forward by threads: one that receives, two for each program."""

    def __init__(self, open_stream: Open, listen: str, idle: float) -> None:
        self.open_stream = open_stream
        self.idle = idle
        self._listen = listen
        self._programs: dict[Any, _Program] = {}
        self._state = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[Bound]:
        """Streams still open at the end of the block are cut off."""
        with listening(self._listen, socket.SOCK_DGRAM) as (sock, bound), ExitStack() as stack:
            woken, wake = socket.socketpair()
            stack.enter_context(woken)
            stack.callback(self._cut_all)
            receiver = threading.Thread(target=self._receive, args=(sock, woken), name="jmp-forward", daemon=True)
            receiver.start()
            stack.callback(receiver.join)
            stack.enter_context(wake)  # its end ends the receiver
            yield bound

    def _receive(self, port: socket.socket, woken: socket.socket) -> None:
        while True:
            try:
                wait_for(port, select.POLLIN, woken)
                datagram, address = port.recvfrom(MAX_DATAGRAM)
            except CutOff:
                return
            except OSError:
                continue  # what a program that is gone did not take
            with self._state:
                program = self._programs.get(address)
                if program is None:
                    if len(self._programs) >= PROGRAMS:
                        continue
                    program = _Program(self, port, address)
                    try:
                        program.start()
                    except RuntimeError as error:  # no more threads
                        log.warning("the datagrams of %s:%s are not forwarded: %s", *address[:2], error)
                        continue
                    self._programs[address] = program
                with suppress(queue.Full):
                    program.arriving.put_nowait(datagram)

    def over(self, address: Any) -> None:
        with self._state:
            del self._programs[address]

    def _cut_all(self) -> None:
        with self._state:
            programs = list(self._programs.values())
        for program in programs:
            program.cut()
        deadline = time.monotonic() + CLOSE_SECONDS
        for program in programs:
            program.join(max(0, deadline - time.monotonic()))


class _Program(threading.Thread):
    """The datagrams of one program: this thread sends them to the driver, a second one brings what comes back."""

    def __init__(self, forward: ThreadForward, port: socket.socket, address: Any) -> None:
        super().__init__(name="jmp-forward-up", daemon=True)
        self.arriving: queue.Queue[bytes | None] = queue.Queue(QUEUE)
        """None: it is over."""
        self._forward = forward
        self._port = port
        self._address = address
        self._last = math.inf
        self._far: Any = None
        self._cut = False
        self._state = threading.Lock()

    def run(self) -> None:
        try:
            with Blocking(self._forward.open_stream()) as far:
                with self._state:
                    self._far = far
                    if self._cut:
                        return
                self._last = time.monotonic()
                downward = threading.Thread(target=self._downward, args=(far,), name="jmp-forward-down", daemon=True)
                downward.start()
                try:
                    self._upward(far)
                finally:
                    self.cut()
                    downward.join()
        except JmpError as error:
            if not self._cut:
                _told(self._address, error)
        finally:
            self._forward.over(self._address)

    def cut(self) -> None:
        """End it at once; any thread may call this."""
        with self._state:
            self._cut = True
            if self._far is not None:
                self._far.reset()
        with suppress(queue.Full):  # then it is not waited for
            self.arriving.put_nowait(None)

    def _upward(self, far: Any) -> None:
        while not self._cut and (left := self._last + self._forward.idle - time.monotonic()) > 0:
            try:
                datagram = self.arriving.get(timeout=left)
            except queue.Empty:
                continue  # unless something came the other way meanwhile, this is the end
            if datagram is None:
                return
            self._last = time.monotonic()
            with suppress(JmpError):  # why, the other direction learns, and ends this
                far.send_all(pack(datagram))

    def _downward(self, far: Any) -> None:
        unpacker = Unpacker()
        try:
            while data := far.receive_some():
                self._last = time.monotonic()
                for datagram in unpacker.feed(data):
                    with suppress(OSError):  # one that cannot be sent is lost
                        self._port.sendto(datagram, self._address)
            unpacker.end()
        except JmpError as error:
            if not self._cut:
                _told(self._address, error)
        finally:
            self.cut()
