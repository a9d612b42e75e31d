"""Instruments that speak SCPI: over TCP as they are, over anything else by VISA (extra `visa`)."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Service, Suggestion, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers._readings import Metered
from jmp_drivers._reason import reason

T = TypeVar("T")
_BLOCK = 64 * 1024 * 1024  # bytes of the largest answer that is read


class ScpiOptions(Driver):
    """How an instrument is reached, and the conversation with it."""

    host: str | None = field(default=None, metadata={"doc": "name or address of an instrument in the network"})
    port: int = field(default=5025, metadata={"doc": "its port for SCPI"})
    resource: str | None = field(
        default=None, metadata={"doc": "name of VISA of any other, as in `USB0::0x1AB1::0x0E11::DP8C1::INSTR`"}
    )
    library: str = field(
        default="@py", metadata={"doc": "with `resource`, the VISA library: `@py`, or the path of a vendor's"}
    )
    timeout: float = field(default=5.0, metadata={"doc": "seconds that an answer may take"})

    def __post_init__(self) -> None:
        if (self.host is None) == (self.resource is None):
            raise ConfigError("it needs either host or resource")
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")

    @property
    def _name(self) -> str:
        return f"instrument {f'{self.host}:{self.port}' if self.host is not None else self.resource}"

    async def open(self) -> None:
        self._turn = trio.Lock()
        self._line: _Tcp | _Visa = _Tcp(self) if self.host is not None else _Visa(self)
        await self._line.open()

    async def close(self) -> None:
        await self._line.close()

    async def _write(self, command: str) -> None:
        async with self._turn:
            await self._say(command)

    async def _query(self, command: str) -> bytes:
        """What it answers, without the end of the line."""
        async with self._turn:
            await self._say(command)
            answer: bytes = await self._guarded(self._line.receive, command)
            return answer

    async def _say(self, command: str) -> None:
        if not command.strip() or "\n" in command:
            raise BadValue("a command is one line")
        await self._guarded(self._line.send, command, command)

    async def _guarded(self, function: Callable[..., Any], command: str, *arguments: Any) -> Any:
        """The driver is lost if that fails: what comes later would be taken for another's answer.

        Who is cancelled therefore waits for it all the same, ``timeout`` seconds at most.
        """
        finished = False
        try:
            with trio.fail_after(self.timeout) as patience:
                patience.shield = True
                result = await function(*arguments)
            finished = True
            return result
        except trio.TooSlowError:
            raise DeviceError(f"{self._name}: no answer to {command!r} within {self.timeout:g} s") from None
        finally:
            if not finished:
                self.lost(f"{self._name}: {command!r} was not answered")


class _Tcp:
    def __init__(self, options: ScpiOptions) -> None:
        self._options = options
        self._buffer = bytearray()

    async def open(self) -> None:
        options = self._options
        try:
            with trio.fail_after(options.timeout):
                self._stream = await trio.open_tcp_stream(options.host or "", options.port)
        except trio.TooSlowError:
            raise DeviceError(f"{options._name}: no answer within {options.timeout:g} s") from None
        except OSError as error:
            raise DeviceError(f"{options._name}: {reason(error)}") from error

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def send(self, command: str) -> None:
        try:
            await self._stream.send_all(command.encode() + b"\n")
        except trio.BrokenResourceError as error:
            raise DeviceError(f"{self._options._name} is gone: {reason(error.__cause__)}") from error

    async def receive(self) -> bytes:
        while True:
            size = _complete(self._buffer)
            if size is not None:
                answer = bytes(self._buffer[:size])
                del self._buffer[:size]
                return answer.rstrip(b"\r\n") if not answer.startswith(b"#") else answer.removesuffix(b"\n")
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError as error:
                raise DeviceError(f"{self._options._name} is gone: {reason(error.__cause__)}") from error
            if not data:
                raise DeviceError(f"{self._options._name} is gone: it closed the connection")
            self._buffer += data
            if len(self._buffer) > _BLOCK:
                raise DeviceError(f"{self._options._name}: the answer is longer than {_BLOCK} bytes")


def _complete(data: bytearray) -> int | None:
    """The size of the answer at the beginning, with the end of its line; None if it is not all there.

    A block (IEEE 488.2) says its size, and may hold ends of lines.
    """
    if data[:1] == b"#" and data[1:2].isdigit() and data[1:2] != b"0":
        digits = int(data[1:2])
        if len(data) < 2 + digits:
            return None
        size = 2 + digits + int(data[2 : 2 + digits])
        return size + 1 if len(data) > size else None
    end = data.find(b"\n")
    return end + 1 if end >= 0 else None


class _Visa:
    """By pyvisa, whose calls block."""

    def __init__(self, options: ScpiOptions) -> None:
        self._options = options
        self._one = threading.Lock()

    async def open(self) -> None:
        try:
            import pyvisa  # only who needs it has it
        except ImportError as error:
            raise DeviceError("resource needs pyvisa: install jmp-drivers[visa] where the exporter runs") from error

        def connect() -> None:
            options = self._options
            try:
                self._manager = pyvisa.ResourceManager(options.library)
                instrument: Any = self._manager.open_resource(options.resource or "")
                if not hasattr(instrument, "write"):
                    instrument.close()
                    raise DeviceError(f"{options._name}: VISA knows none that takes messages by this name")
                self._instrument = instrument
                self._instrument.timeout = options.timeout * 1000
                self._instrument.read_termination = "\n"
                self._instrument.write_termination = "\n"
            except (pyvisa.Error, OSError, ValueError) as error:
                raise DeviceError(f"{options._name}: {' '.join(str(error).split())}") from error

        self._failures = (pyvisa.Error, OSError)
        await trio.to_thread.run_sync(connect)

    async def close(self) -> None:
        def leave() -> None:
            with self._one:
                self._instrument.close()

        await trio.to_thread.run_sync(leave)

    async def send(self, command: str) -> None:
        await self._blocking(lambda: self._instrument.write(command))

    async def receive(self) -> bytes:
        return bytes((await self._blocking(self._instrument.read_raw)).rstrip(b"\r\n"))

    async def _blocking(self, function: Callable[[], T]) -> T:
        def run() -> T:
            with self._one:
                return function()

        try:
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True)
        except self._failures as error:
            raise DeviceError(f"{self._options._name}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Measure:
    """Something that an instrument measures."""

    query: str
    scale: float = field(default=1.0, metadata={"doc": "what the number is multiplied with"})


class _Measuring(ScpiOptions, Metered):
    """An instrument that tells what it measures."""

    measures: dict[str, str | Measure] = field(
        default_factory=dict, metadata={"doc": "what it measures: name → query, as in `MEAS:VOLT?`"}
    )

    @export
    async def reading(self) -> dict[str, float]:
        """What it measures, by the names in its configuration."""
        if not self.measures:
            raise DeviceError(
                f"nothing is known that the {self._name} measures: name it in the configuration (measures)"
            )
        return {name: await self._measured(measure) for name, measure in self.measures.items()}

    async def _measured(self, given: str | Measure) -> float:
        measure = Measure(given) if isinstance(given, str) else given
        text = (await self._query(measure.query)).decode(errors="replace").strip()
        found = re.match(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE)
        if found is None:
            raise DeviceError(f"{self._name}: the answer to {measure.query!r} is no number but {text[:40]!r}")
        return round(float(found[0]) * measure.scale, 12)


class Scpi(_Measuring):
    """An instrument that speaks SCPI: a multimeter, an oscilloscope, a generator, a load.

    Over TCP it is spoken to directly; any other way is VISA's, and needs ``pyvisa`` (extra ``visa``).
    """

    interface: ClassVar[str | None] = "jmp.scpi/v1"
    services: ClassVar[tuple[str, ...]] = ("_scpi-raw._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        port = {} if service.port == 5025 else {"port": service.port}
        who = [service.properties.get(key, "") for key in ("manufacturer", "model", "serialnumber")]
        about = service.about(" ".join(filter(None, who)) or "instrument")
        yield Suggestion("instrument", {"host": service.address, **port}, about, service.at(5025))

    @export
    async def identify(self) -> str:
        """Who it is: maker, model, serial number, version."""
        return await self.query("*IDN?")

    @export
    async def write(self, command: str) -> None:
        """Send a command that has no answer."""
        await self._write(command)

    @export
    async def query(self, command: str) -> str:
        """Send a command, and wait for its answer."""
        return (await self._query(command)).decode(errors="replace")

    @export
    async def query_block(self, command: str) -> bytes:
        """Send a command whose answer is a block of bytes (IEEE 488.2), such as a screenshot or a waveform."""
        answer = await self._query(command)
        if not answer.startswith(b"#") or not answer[1:2].isdigit():
            raise DeviceError(f"{self._name}: the answer to {command!r} is no block")
        return answer[2 + int(answer[1:2]) :]

    @export
    async def errors(self) -> list[str]:
        """The errors that it has noted since it was asked last."""
        found: list[str] = []
        while len(found) < 100:
            text = await self.query("SYST:ERR?")
            if re.match(r"[+-]?0\b", text.strip()):
                break
            found.append(text.strip())
        return found


class ScpiPower(_Measuring, Power):
    """An output of a bench supply that speaks SCPI: on, off, and what it measures."""

    on_command: str = field(default="OUTP ON", metadata={"key": "on"})
    off_command: str = field(default="OUTP OFF", metadata={"key": "off"})
    state_query: str = field(default="OUTP?", metadata={"key": "state"})
    setup: list[str] = field(default_factory=list, metadata={"doc": "commands when a session begins, as in `VOLT 5`"})
    measures: dict[str, str | Measure] = field(
        default_factory=lambda: {"voltage": "MEAS:VOLT?", "current": "MEAS:CURR?"},
        metadata={"doc": "what it measures: name → query"},
    )

    async def open(self) -> None:
        await super().open()
        try:
            for command in self.setup:
                await self._write(command)
            await self.state()
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.close()
            raise

    @export
    async def on(self) -> None:
        await self._switch(self.on_command, "on")

    @export
    async def off(self) -> None:
        await self._switch(self.off_command, "off")

    @export
    async def state(self) -> PowerState:
        text = (await self._query(self.state_query)).decode(errors="replace").strip().upper()
        return "on" if text in ("1", "ON") else "off" if text in ("0", "OFF") else "unknown"

    async def _switch(self, command: str, wanted: PowerState) -> None:
        await self._write(command)
        if (state := await self.state()) != wanted:
            raise DeviceError(f"{self._name}: its output is {state} after {command!r}")
