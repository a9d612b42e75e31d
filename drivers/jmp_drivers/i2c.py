"""I2C buses of the exporter's machine, by the programs of i2c-tools."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from typing import ClassVar, Literal

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Machine, Suggestion, export
from jmp_drivers._command import run_command
from jmp_drivers._hex import Data, to_bytes


class I2c(Driver):
    """An I2C bus: devices are found, their registers read and written, by i2c-tools (Debian's package of that name)."""

    interface: ClassVar[str | None] = "jmp.i2c/v1"

    bus: int = field(metadata={"doc": "number of the bus: 1 is /dev/i2c-1"})
    addresses: list[int] = field(
        default_factory=list, metadata={"doc": "the only addresses that clients may use; all, unless given"}
    )
    force: bool = field(default=False, metadata={"doc": "use a device that a driver of the kernel's has, too"})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that a program may take"})

    def __post_init__(self) -> None:
        if self.bus < 0:
            raise ConfigError(f"bus must be 0 or more, not {self.bus}")
        for address in self.addresses:
            if not 0x03 <= address <= 0x77:
                raise ConfigError(f"addresses: {address:#04x} is none of a device: they are 0x03 to 0x77")

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/class/i2c-dev/i2c-*"):
            device = f"/dev/{place.rpartition('/')[2]}"
            if machine.exists(device):
                adapter = machine.text(f"{place}/name") or "I2C bus"
                note = "a bus of the machine's own may have its memory and sensors on it: set addresses"
                yield Suggestion("i2c", {"bus": int(device.rpartition("-")[2])}, adapter, device, note=note)

    async def open(self) -> None:
        if not Machine().exists(f"/dev/i2c-{self.bus}"):
            there = ", ".join(Machine().glob("/dev/i2c-*"))
            raise DeviceError(
                f"there is no I2C bus {self.bus}; {f'present: {there}' if there else 'is its module loaded?'}"
            )
        await self._run("i2cdetect", "-F", str(self.bus))

    @export
    async def scan(self) -> list[int]:
        """The addresses at which a device answers. To ask may confuse some devices."""
        text = await self._run("i2cdetect", "-y", str(self.bus))
        found = []
        for row in re.findall(r"^([0-9a-f]0): (.*)$", text, re.MULTILINE):
            # Cells are three characters wide; those of the first row begin at address 0.
            cells = [row[1][start : start + 3].strip() for start in range(0, 48, 3)]
            found += [int(row[0], 16) + column for column, cell in enumerate(cells) if cell not in ("", "--")]
        return [address for address in found if not self.addresses or address in self.addresses]

    @export
    async def read(self, address: int, register: int | None = None, size: Literal["byte", "word"] = "byte") -> int:
        """Read a register, or from the device as it is: a byte, or a word (16 bit, little-endian)."""
        arguments = [self._address(address)]
        if register is not None:
            arguments += [_byte("register", register), {"byte": "b", "word": "w"}[size]]
        elif size == "word":
            raise BadValue("a word is read from a register")
        return int(await self._run("i2cget", *self._flags(), str(self.bus), *arguments), 16)

    @export
    async def write(
        self, address: int, register: int, value: int | None = None, size: Literal["byte", "word"] = "byte"
    ) -> None:
        """Write a byte, or a word, to a register; without a value, just send the register's number."""
        arguments = [self._address(address), _byte("register", register)]
        if value is not None:
            limit = 0xFF if size == "byte" else 0xFFFF
            if not 0 <= value <= limit:
                raise BadValue(f"value must be 0 to {limit:#x}, not {value:#x}")
            arguments += [f"{value:#x}", {"byte": "b", "word": "w"}[size]]
        await self._run("i2cset", *self._flags(), str(self.bus), *arguments)

    @export
    async def transfer(self, address: int, data: Data = b"", count: int = 0) -> bytes:
        """Send bytes to a device, then read so many without letting the bus go in between."""
        sent = to_bytes(data)
        if not 0 <= count <= 8192 or len(sent) > 8192 or not (count or sent):
            raise BadValue("there must be something to send or to read, 8192 bytes at most each")
        place = self._address(address)
        arguments = [f"w{len(sent)}@{place}", *(f"{byte:#04x}" for byte in sent)] if sent else []
        if count:
            arguments.append(f"r{count}" if sent else f"r{count}@{place}")
        text = await self._run("i2ctransfer", *self._flags(), str(self.bus), *arguments)
        return bytes(int(word, 16) for word in text.split())

    def _flags(self) -> list[str]:
        return ["-y", *(["-f"] if self.force else [])]

    def _address(self, address: int) -> str:
        if not 0x03 <= address <= 0x77:
            raise BadValue(f"address must be 0x03 to 0x77, not {address:#x}")
        if self.addresses and address not in self.addresses:
            known = ", ".join(f"{each:#04x}" for each in self.addresses)
            raise BadValue(f"address {address:#04x} is not among those of the configuration: {known}")
        return f"{address:#04x}"

    async def _run(self, program: str, *arguments: str) -> str:
        ran = await run_command(program, [program, *arguments], self.timeout)
        if ran.status != 0:
            said = " ".join(ran.errors.split())
            if "Read failed" in said or "Write failed" in said or "No such device or address" in said:
                said = "no device answers at this address, or not so"
            elif "busy" in said:
                said = "a driver of the kernel's has this device (force: true uses it all the same)"
            raise DeviceError(f"I2C bus {self.bus}: {said or f'{program} failed with exit status {ran.status}'}")
        return ran.output


def _byte(what: str, value: int) -> str:
    if not 0 <= value <= 0xFF:
        raise BadValue(f"{what} must be 0 to 0xff, not {value:#x}")
    return f"{value:#04x}"
