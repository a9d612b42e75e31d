"""ISO-TP (ISO 15765-2): messages of up to 4 GiB in CAN frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import can
import isotp
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, check_seconds, export
from jmp_drivers._hex import Data, to_bytes
from jmp_drivers.can.bus import CanOptions

_SILENCE = (
    1.0  # seconds for which the other one may pause within a message (ISO 15765-2), if it has no more for an answer
)


class _Stack(isotp.CanStack):
    """One whose threads outlive a bus that fails: it is told, once, and reads and writes nothing any more."""

    def __init__(self, bus: can.BusABC, gone: Callable[[Exception], None], **options: Any) -> None:
        super().__init__(bus, **options)
        self._gone = gone
        self._over = threading.Event()
        self._send = self.txfn
        self.txfn = self._write

    def _rx_canbus(self, timeout: float) -> isotp.CanMessage | None:
        if self._over.is_set():
            self.events.stop_requested.wait(timeout)
            return None
        try:
            return super()._rx_canbus(timeout)
        except (can.CanError, OSError) as error:
            self._end(error)
            return None

    def _write(self, message: isotp.CanMessage) -> None:
        if not self._over.is_set():
            try:
                self._send(message)
            except (can.CanError, OSError) as error:
                self._end(error)

    def _end(self, error: Exception) -> None:
        if not self.events.stop_requested.is_set():
            self._over.set()
            self._gone(error)


class IsoTpOptions(CanOptions):
    """The configuration of whatever speaks ISO-TP with one other."""

    tx: int = field(metadata={"doc": "id of the frames that are sent, as in 0x7e0"})
    rx: int = field(metadata={"doc": "id of the frames of the other one, as in 0x7e8"})
    padding: int | None = field(default=None, metadata={"doc": "byte that fills frames up to 8 bytes, as in 0xcc"})
    timeout: float = field(default=2.0, metadata={"doc": "seconds that an answer may take"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("tx", self.tx), ("rx", self.rx)):
            if not 0 <= value <= 0x1FFFFFFF:
                raise ConfigError(f"{name} must be an id of CAN, 0 to 0x1fffffff, not {value:#x}")
        if self.tx == self.rx:
            raise ConfigError("tx and rx must differ")
        if self.padding is not None and not 0 <= self.padding <= 255:
            raise ConfigError(f"padding must be a byte, 0 to 255, not {self.padding}")

    def _open_stack(self) -> isotp.CanStack:
        """Blocks. Raises `DeviceError`. It has to be started. What goes wrong later is in ``_errors``; without its bus the driver
        is lost.
        """
        self._errors: list[Exception] = []
        self._bus = self._open_bus()
        wide = max(self.tx, self.rx) > 0x7FF
        mode = isotp.AddressingMode.Normal_29bits if wide else isotp.AddressingMode.Normal_11bits
        silence = round(1000 * max(self.timeout, _SILENCE))
        parameters = {
            "tx_padding": self.padding,
            "can_fd": self.fd,
            "tx_data_length": 64 if self.fd else 8,
            "rx_flowcontrol_timeout": silence,
            "rx_consecutive_frame_timeout": silence,
        }
        return _Stack(
            self._bus,
            self._bus_failed,
            address=isotp.Address(mode, txid=self.tx, rxid=self.rx),
            params={name: value for name, value in parameters.items() if value is not None} | {"blocking_send": True},
            error_handler=self._errors.append,
        )


class IsoTp(IsoTpOptions):
    """A conversation by ISO-TP on a CAN bus: messages longer than a frame, to and from one other."""

    interface: ClassVar[str | None] = "jmp.iso-tp/v1"

    async def open(self) -> None:
        self._stack = await trio.to_thread.run_sync(self._open_stack)
        self._stack.start()
        self._turn = threading.Lock()

    async def close(self) -> None:
        def leave() -> None:
            self._stack.stop()
            self._bus.shutdown()

        await trio.to_thread.run_sync(leave)

    @export
    def send(self, data: Data) -> None:
        """Send a message; returns when the other one has taken it."""
        with self._turn:
            self._send(data)

    @export
    def receive(self, seconds: float | None = None) -> bytes:
        """The next message of the other one's, which may have come before."""
        _check(seconds)
        with self._turn:
            return self._receive(seconds)

    @export
    def request(self, data: Data, seconds: float | None = None) -> bytes:
        """Send a message and wait for the answer. What came before is dropped."""
        _check(seconds)
        with self._turn:
            while self._stack.recv() is not None:
                pass
            self._send(data)
            return self._receive(seconds)

    def _send(self, content: Data) -> None:
        data = to_bytes(content)
        if not data:
            raise BadValue("a message has at least one byte")
        self._errors.clear()
        try:
            self._stack.send(data, send_timeout=self.timeout + len(data) / 1000)
        except (isotp.BlockingSendFailure, ValueError) as error:
            why = self._errors[-1] if self._errors else error
            raise DeviceError(f"{self._name}: {self.rx:#x} does not take the message: {why}") from error

    def _receive(self, seconds: float | None) -> bytes:
        wait = self.timeout if seconds is None else seconds
        data = self._stack.recv(block=True, timeout=wait)
        if data is None:
            raise DeviceError(f"{self._name}: {self.rx:#x} did not send a message within {wait:g} s")
        return bytes(data)


def _check(seconds: float | None) -> None:
    if seconds is not None:
        check_seconds("seconds", seconds)
