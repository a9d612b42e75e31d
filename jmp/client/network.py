"""The clients of ``jmp.network/v1`` and ``jmp.datagram/v1``: a driver's port as a port on this machine."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from jmp.driver.proxy import ByteStream, DriverClient, verb

if TYPE_CHECKING:
    from jmp.client.adapters.forward import Forward


class NetworkClient(DriverClient):
    """A port of the device. ``connect()`` is one connection to it, as a byte stream."""

    @verb
    def forward(self, listen: str = "127.0.0.1:0") -> Forward:
        """Listen on this machine, and connect whoever comes to the device's port.

        ``listen`` is ``HOST:PORT`` (port 0: one that is free), ``PORT`` on 127.0.0.1, or ``unix:PATH``. In Python, ``with
        dut.ssh.forward() as bound:`` (``async with`` under Trio) gives ``bound.host``, ``bound.port``, ``bound.path`` and all of
        it by ``str(bound)``. Any number of connections is served at once; one that fails is closed, and a warning of the
        logger ``jmp.forward`` says why. At the end those still open are cut off.
        """
        from jmp.client.adapters.forward import Forward, TaskForward, ThreadForward

        def open_stream() -> AbstractAsyncContextManager[ByteStream]:
            return self._backend.open(self._node.path, "connect", (), {})

        return Forward(
            self._backend, self._node.path, ThreadForward(open_stream, listen), TaskForward(open_stream, listen)
        )
