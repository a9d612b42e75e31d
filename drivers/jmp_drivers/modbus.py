"""Modbus: registers and coils of a device, over TCP or a serial line, by pymodbus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pymodbus import ModbusException
from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.pdu import ModbusPDU

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, export
from jmp.driver.schema import did_you_mean
from jmp_drivers._readings import Metered

T = TypeVar("T")
Kind = Literal["holding", "input", "coil", "discrete"]
Form = Literal["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64"]

_FORMS = {
    "u16": ModbusTcpClient.DATATYPE.UINT16,
    "i16": ModbusTcpClient.DATATYPE.INT16,
    "u32": ModbusTcpClient.DATATYPE.UINT32,
    "i32": ModbusTcpClient.DATATYPE.INT32,
    "u64": ModbusTcpClient.DATATYPE.UINT64,
    "i64": ModbusTcpClient.DATATYPE.INT64,
    "f32": ModbusTcpClient.DATATYPE.FLOAT32,
    "f64": ModbusTcpClient.DATATYPE.FLOAT64,
}
_REFUSALS = {
    1: "it has no such function",
    2: "it has no such address",
    3: "it does not take this value",
    4: "it failed",
    6: "it is busy",
    10: "the gateway has no way to it",
    11: "it does not answer the gateway",
}


@dataclass(frozen=True)
class Register:
    """A number in the device."""

    address: int
    kind: Kind = "holding"
    form: Form = field(
        default="u16", metadata={"key": "type", "doc": "how it is coded, in as many registers as it takes"}
    )
    order: Literal["big", "little"] = field(default="big", metadata={"doc": "order of its registers"})
    scale: float = field(default=1.0, metadata={"doc": "what the number is multiplied with when it is read"})

    def __post_init__(self) -> None:
        if not 0 <= self.address <= 0xFFFF:
            raise ConfigError(f"address must be 0 to 65535, not {self.address}")
        if self.scale == 0:
            raise ConfigError("scale must not be 0")


class Modbus(Metered, Driver):
    """A device that speaks Modbus, over TCP or a serial line (RTU): its registers and coils, by address or by name."""

    interface: ClassVar[str | None] = "jmp.modbus/v1"

    host: str | None = field(default=None, metadata={"doc": "name or address of a device in the network"})
    port: int = 502
    serial: str | None = field(
        default=None, metadata={"doc": "serial port of a device on a line, such as /dev/ttyUSB0"}
    )
    baudrate: int = 19200
    parity: Literal["none", "even", "odd"] = "none"
    stopbits: Literal[1, 2] = 1
    unit: int = field(default=1, metadata={"doc": "the device's number on the line, or behind a gateway"})
    registers: dict[str, Register] = field(default_factory=dict, metadata={"doc": "numbers in the device, by name"})
    timeout: float = field(default=3.0, metadata={"doc": "seconds that an answer may take"})

    def __post_init__(self) -> None:
        if (self.host is None) == (self.serial is None):
            raise ConfigError("it needs either host or serial")
        if not 0 <= self.unit <= 255:
            raise ConfigError(f"unit must be 0 to 255, not {self.unit}")

    @property
    def _name(self) -> str:
        return (
            f"Modbus device {f'{self.host}:{self.port}' if self.host is not None else self.serial} (unit {self.unit})"
        )

    def open(self) -> None:
        self._turn = threading.Lock()
        if self.host is not None:
            self._client: ModbusTcpClient | ModbusSerialClient = ModbusTcpClient(
                self.host, port=self.port, timeout=self.timeout, retries=1
            )
        else:
            self._client = ModbusSerialClient(
                self.serial or "",
                baudrate=self.baudrate,
                parity=self.parity[0].upper(),
                stopbits=self.stopbits,
                timeout=self.timeout,
                retries=1,
            )
        if not self._client.connect():
            self._client.close()  # type: ignore[no-untyped-call]
            raise DeviceError(f"{self._name}: it cannot be connected to")

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]

    @export
    def read(self, address: int, count: int = 1, kind: Kind = "holding") -> list[int]:
        """Registers from an address on; of coils and discrete inputs, 0 and 1."""
        if not 1 <= count <= 2000:
            raise BadValue(f"count must be 1 to 2000, not {count}")
        if kind in ("holding", "input"):
            return self._registers(kind, address, count)
        ask = self._client.read_coils if kind == "coil" else self._client.read_discrete_inputs
        answer = self._do(lambda: ask(address, count=count, device_id=self.unit))
        return [int(bit) for bit in answer.bits[:count]]

    @export
    def write(self, address: int, values: list[int], kind: Literal["holding", "coil"] = "holding") -> None:
        """Write registers, or coils, from an address on."""
        if kind == "coil":
            self._do(lambda: self._client.write_coils(address, [bool(value) for value in values], device_id=self.unit))
        elif all(0 <= value <= 0xFFFF for value in values):
            self._do(lambda: self._client.write_registers(address, values, device_id=self.unit))
        else:
            raise BadValue("a register holds 0 to 65535")

    @export
    def get(self, name: str) -> float:
        """A number by its name."""
        register = self._named(name)
        if register.kind in ("coil", "discrete"):
            return float(self.read(register.address, 1, register.kind)[0])
        form = _FORMS[register.form]
        words = self._registers(register.kind, register.address, form.value[1])
        value = self._client.convert_from_registers(words, form, register.order)
        return round(float(value) * register.scale, 9)  # type: ignore[arg-type]

    @export
    def set(self, name: str, value: float) -> None:
        """Set a number by its name."""
        register = self._named(name)
        if register.kind in ("input", "discrete"):
            raise BadValue(f"{name!r} can only be read")
        if register.kind == "coil":
            self.write(register.address, [int(value)], "coil")
            return
        number = value / register.scale
        try:
            coded = number if register.form[0] == "f" else round(number)
            words = self._client.convert_to_registers(coded, _FORMS[register.form], register.order)
        except Exception as error:  # struct.error, under several names
            raise BadValue(f"{name!r} cannot hold {value:g}: it is {register.form}") from error
        self._do(lambda: self._client.write_registers(register.address, words, device_id=self.unit))

    @export
    async def reading(self) -> dict[str, float]:
        """All numbers that have names."""
        if not self.registers:
            raise DeviceError(f"nothing is known that {self._name} measures: name it in the configuration (registers)")
        return {name: await self.invoke("get", name) for name in self.registers}

    # ---- within

    def _registers(self, kind: str, address: int, count: int) -> list[int]:
        ask = self._client.read_holding_registers if kind == "holding" else self._client.read_input_registers
        return list(self._do(lambda: ask(address, count=count, device_id=self.unit)).registers)

    def _named(self, name: str) -> Register:
        if name not in self.registers:
            raise BadValue(f"there is no register {name!r}{did_you_mean(name, self.registers)}")
        return self.registers[name]

    def _do(self, ask: Callable[[], Any]) -> Any:
        try:
            with self._turn:
                answer: ModbusPDU = ask()
        except (ValueError, TypeError) as error:
            raise BadValue(f"{self._name}: {error}") from error
        except (ModbusException, OSError) as error:
            reason = (
                f"{self._name}: no answer within {self.timeout:g} s"
                if "No response" in str(error)
                else f"{self._name} is gone"
            )
            self.lost(reason)
            raise DeviceError(reason) from error
        if answer.isError():
            code = getattr(answer, "exception_code", 0)
            raise DeviceError(f"{self._name}: {_REFUSALS.get(code, f'it refuses, with code {code}')}")
        return answer
