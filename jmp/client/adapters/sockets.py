"""A driver's byte stream as objects that libraries know: a socket of the system, and a serial port of pyserial."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from jmp.client.adapters.forward import Open, ThreadForward
from jmp.client.blocks import Block
from jmp.driver.proxy import Backend, Blocking
from jmp.errors import JmpError, UsageError
from jmp.rpc.blocking import BlockingCaller

if TYPE_CHECKING:
    from jmp.client.console import ConsoleClient

T = TypeVar("T")


class Held(Block[T]):
    """An object for the length of a ``with`` block. Raises ``UsageError`` for a client that is used with Trio."""

    def __init__(self, backend: Backend, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._backend = backend
        self._make = make

    def _by_threads(self) -> AbstractContextManager[T]:
        return self._make()

    def __enter__(self) -> T:
        if not isinstance(self._backend, BlockingCaller):
            raise UsageError("this object blocks, so it needs a blocking client; connect() gives a stream for Trio")
        return super().__enter__()


@contextmanager
def connected(open_stream: Open) -> Iterator[socket.socket]:
    """A socket of the system whose other end is a driver's stream; nobody else can connect.

    What the driver raises ends the socket, and the block with that error, unless it raises another one.
    """
    failures: list[JmpError] = []
    with tempfile.TemporaryDirectory(prefix="jmp-socket-") as folder:
        path = f"{folder}/port"
        forward = ThreadForward(open_stream, f"unix:{path}", told=lambda _, error: failures.append(error))
        try:
            with forward.running(), socket.socket(socket.AF_UNIX) as near:
                near.connect(path)
                yield near
        except (OSError, EOFError) as error:
            if failures:
                raise failures[0] from error
            raise
    if failures:
        raise failures[0]


@contextmanager
def serial_port(client: ConsoleClient, *, replay: bool, take_over: bool, options: dict[str, Any]) -> Iterator[Any]:
    """A console as pyserial's ``Serial``, open. What the driver can set of a line (baud rate, break, DTR, RTS) is set there."""
    import serial
    from serial.urlhandler import protocol_socket

    methods = client._node.methods
    base: Any = protocol_socket.Serial  # its stubs leave out what is overridden here

    class Port(base):  # type: ignore[misc]
        """Reading and writing are those of pyserial's socket ports."""

        def open(self) -> None:
            self._socket = near
            self.is_open = True
            self._reconfigure_port()

        def close(self) -> None:
            self.is_open = False

        def _reconfigure_port(self) -> None:
            if "baudrate" in methods and "baudrate" in options:
                Blocking(client.baudrate)(self._baudrate)

        def _update_break_state(self) -> None:
            if self._break_state:
                raise serial.SerialException(f"{self.port}: a break has a duration here: send_break(seconds)")

        def send_break(self, duration: float = 0.25) -> None:
            if "send_break" not in methods:
                raise serial.SerialException(f"{self.port} cannot send a break")
            parameters = {parameter.name for parameter in methods["send_break"].parameters}
            Blocking(client.send_break)(**({"duration": duration} if "duration" in parameters else {}))

        def _update_dtr_state(self) -> None:
            if "dtr" in methods:
                Blocking(client.dtr)(self._dtr_state)

        def _update_rts_state(self) -> None:
            if "rts" in methods:
                Blocking(client.rts)(self._rts_state)

    with connected(lambda: client.connect(replay=replay, take_over=take_over)) as near:
        port = Port(None, **options)
        port._port = client._node.path or "console"
        port.open()
        try:
            yield port
        finally:
            port.close()
