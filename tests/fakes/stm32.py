"""An STM32F103 behind a JTAG port, as OpenOCD meets it, or behind a probe that pyOCD reaches over the network.

It has a debug port, a memory access port, the Cortex-M3's debug registers, and its flash, which is written through its
registers: by OpenOCD itself, to which no working area is to be given, and by a program that pyOCD loads into its memory. It
executes that, but nothing in its flash. What it is taken from: ARM's "Debug Interface v5" and "ARMv7-M", ST's RM0008 and PM0075.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import trio

from tests.fakes.thumb import PC, execute

FLASH, FLASH_SIZE = 0x08000000, 0x10000
RAM, RAM_SIZE = 0x20000000, 0x5000
REGISTERS = 0x40022000  # of the flash
KEYS = [0x45670123, 0xCDEF89AB]
DHCSR, DCRSR, DCRDR, DEMCR, AIRCR, CPUID = 0xE000EDF0, 0xE000EDF4, 0xE000EDF8, 0xE000EDFC, 0xE000ED0C, 0xE000ED00
ROM_TABLE, PARTS = 0xE00FF000, {0xE000E000: 0x000, 0xE0001000: 0x002, 0xE0002000: 0x003}  # what it lists: ARM's numbers


def _identity(base: int, part: int, *, table: bool = False) -> dict[int, int]:
    """Registers by which a debugger knows a component: PIDR4, PIDR0 to 3, CIDR0 to 3."""
    maker = [4, part & 0xFF, 0xB0 | part >> 8, 0x0B, 0]  # ARM
    words = [maker[0], 0, 0, 0, *maker[1:], 0x0D, 0x10 if table else 0xE0, 0x05, 0xB1]
    return {base + 0xFD0 + 4 * number: word for number, word in enumerate(words)}


class Stm32:
    """What a debugger reads and writes in it, word by word and less."""

    def __init__(self, page: int = 0x400) -> None:
        self.flash = bytearray(b"\xff" * FLASH_SIZE)
        self.ram = bytearray(RAM_SIZE)
        self.running = True
        self.resets = 0
        self.worn_out = False
        """Its flash does not take what is written."""
        self._words = {CPUID: 0x411FC231, 0xE0042000: 0x20036410, 0x1FFFF7E0: FLASH_SIZE // 1024, 0xE0002000: 0x260}
        self._words[0x4002201C] = 0x03FFFFFC  # option bytes: nothing is protected
        self._words |= _identity(ROM_TABLE, 0x410, table=True)
        for number, (base, part) in enumerate(PARTS.items()):
            self._words |= _identity(base, part) | {ROM_TABLE + 4 * number: base - ROM_TABLE & 0xFFFFF000 | 3}
        self._size_of_page = page
        self._core = [0] * 128
        self._core[16] = 1 << 24  # it executes Thumb instructions
        self._keys: list[int] = []
        self._control = 0x80  # of the flash; locked
        self._page = 0
        self._was_reset = True

    def reset(self) -> None:
        self.resets += 1
        self._was_reset = True
        self._control = 0x80
        self._core[PC] = FLASH
        self.running = not (self._words.get(DEMCR, 0) & 1 and self._words.get(DHCSR, 0) & 1)

    def read(self, address: int, size: int) -> int:
        for start, memory in ((FLASH, self.flash), (RAM, self.ram)):
            if start <= address < start + len(memory):
                return int.from_bytes(memory[address - start : address - start + size], "little")
        whole = self._register(address & ~3)
        return whole >> 8 * (address & 3) & (1 << 8 * size) - 1

    def _register(self, address: int) -> int:
        match address:
            case 0xE000EDF0:
                was, self._was_reset = self._was_reset, False
                control = self._words.get(DHCSR, 0) & 0xF
                return control | 1 << 16 | (not self.running) << 17 | was << 25
            case 0x40022010:
                return self._control
            case 0x4002200C:  # its status: never busy, well done
                return 0x20
        return self._words.get(address, 0)

    def write(self, address: int, size: int, value: int) -> None:
        if RAM <= address < RAM + RAM_SIZE:
            self.ram[address - RAM : address - RAM + size] = value.to_bytes(size, "little")
        elif FLASH <= address < FLASH + FLASH_SIZE:
            if self._control & 0x81 == 1 and size == 2 and not self.worn_out:  # unlocked, programming, by half-words
                self.flash[address - FLASH : address - FLASH + 2] = value.to_bytes(2, "little")
        else:
            self._set(address & ~3, value)

    def _set(self, address: int, value: int) -> None:
        match address:
            case 0xE000EDF0 if value >> 16 == 0xA05F:
                self._words[DHCSR] = value & 0xF
                self.running = not value & 2
                if self.running and RAM <= self._core[PC] < RAM + RAM_SIZE:  # it is done, up to a breakpoint, at once
                    execute(self, self._core)
                    self.running = False
            case 0xE000EDF4:
                number = value & 0x7F
                if value & 1 << 16:
                    self._core[number] = self._words.get(DCRDR, 0)
                else:
                    self._words[DCRDR] = self._core[number]
            case 0xE000ED0C if value >> 16 == 0x05FA:
                if value & 5:
                    self.reset()
            case 0x40022004:
                self._keys = [*self._keys, value][-2:]
                if self._keys == KEYS:
                    self._control &= ~0x80
            case 0x40022014:
                self._page = value
            case 0x40022010 if not self._control & 0x80 or value & 0x80:
                self._control = value & ~0x40
                if value & 0x42 == 0x42:
                    size = self._size_of_page
                    at = (self._page - FLASH) // size * size
                    self.flash[at : at + size] = b"\xff" * size
                elif value & 0x44 == 0x44:
                    self.flash[:] = b"\xff" * FLASH_SIZE
            case 0xE0002000:  # breakpoints: on or off
                self._words[address] = 0x260 | value & 1
            case 0xE000EDFC | 0xE000EDF8:
                self._words[address] = value


class _Bypassed:
    """The second port of the chain, for boundary scans."""

    width, idcode = 5, 0x16410041

    def __init__(self) -> None:
        self.instruction = self.idle = 1
        self.shift = self.length = 0

    def capture(self) -> None:
        known = self.instruction == self.idle
        self.shift, self.length = (self.idcode, 32) if known else (0, 1)

    def update(self) -> None:
        pass


class _Debug(_Bypassed):
    """The debug port, and its only access port, to the memory's bus."""

    width, idcode = 4, 0x3BA00477

    def __init__(self, chip: Stm32) -> None:
        super().__init__()
        self.instruction = self.idle = 0xE
        self._chip = chip
        self._control = self._select = self._read = self._address = 0
        self._access = 0x23000042

    def capture(self) -> None:
        if self.instruction in (0xA, 0xB, 0x8):
            self.shift, self.length = self._read << 3 | 2, 35
        else:
            super().capture()

    def update(self) -> None:
        reading, register, value = self.shift & 1, (self.shift >> 1 & 3) * 4, self.shift >> 3
        if self.instruction == 0xA:
            self._debug_port(register, value, reading=bool(reading))
        elif self.instruction == 0xB:
            self._access_port(self._select & 0xF0 | register, value, reading=bool(reading))

    def read_debug_port(self, register: int) -> int:
        if register == 0:
            return 0x2BA01477  # that of the wires' other protocol
        self._debug_port(register, 0, reading=True)
        return self._read

    def write_debug_port(self, register: int, value: int) -> None:
        self._debug_port(register, value, reading=False)

    def read_access_port(self, register: int) -> int:
        self._access_port(register & 0xFF, 0, reading=True)
        return self._read

    def write_access_port(self, register: int, value: int) -> None:
        self._access_port(register & 0xFF, value, reading=False)

    def _debug_port(self, register: int, value: int, *, reading: bool) -> None:
        if reading:
            self._read = {4: self._control | (self._control & 0x50000000) << 1, 8: self._select, 12: self._read}.get(
                register, 0
            )
        elif register == 4:
            self._control = value & 0x50000F00
        elif register == 8:
            self._select = value

    def _access_port(self, register: int, value: int, *, reading: bool) -> None:
        if self._select >> 24:
            self._read = 0
            return
        size = 1 << (self._access & 3)
        match register:
            case 0x00 if reading:
                self._read = self._access
            case 0x00:
                self._access = value & ~0x20 | 0x40  # it does not pack
            case 0x04 if reading:
                self._read = self._address
            case 0x04:
                self._address = value
            case 0x0C:
                self._transfer(self._address, size, value, reading=reading)
                if self._access & 0x30:
                    self._address += size
            case 0x10 | 0x14 | 0x18 | 0x1C:
                self._transfer(self._address & ~0xF | register & 0xF, 4, value, reading=reading)
            case _:
                self._read = {0xFC: 0x14770011, 0xF8: 0xE00FF003}.get(register, 0)

    def _transfer(self, address: int, size: int, value: int, *, reading: bool) -> None:
        lane = 8 * (address & 3)
        if reading:
            self._read = self._chip.read(address, size) << lane & 0xFFFFFFFF
        else:
            self._chip.write(address, size, value >> lane & (1 << 8 * size) - 1)


class Jtag:
    """The port, as OpenOCD's remote_bitbang works it: a byte for the lines, R to read one."""

    NEXT: ClassVar[dict[str, tuple[str, str]]] = {  # state → the next ones, for TMS 0 and 1
        "reset": ("idle", "reset"),
        "idle": ("idle", "select-dr"),
        "select-dr": ("capture-dr", "select-ir"),
        "capture-dr": ("shift-dr", "exit1-dr"),
        "shift-dr": ("shift-dr", "exit1-dr"),
        "exit1-dr": ("pause-dr", "update-dr"),
        "pause-dr": ("pause-dr", "exit2-dr"),
        "exit2-dr": ("shift-dr", "update-dr"),
        "update-dr": ("idle", "select-dr"),
        "select-ir": ("capture-ir", "reset"),
        "capture-ir": ("shift-ir", "exit1-ir"),
        "shift-ir": ("shift-ir", "exit1-ir"),
        "exit1-ir": ("pause-ir", "update-ir"),
        "pause-ir": ("pause-ir", "exit2-ir"),
        "exit2-ir": ("shift-ir", "update-ir"),
        "update-ir": ("idle", "select-dr"),
    }

    def __init__(self) -> None:
        self.chip = Stm32()
        self._ports = [_Bypassed(), _Debug(self.chip)]
        """From the line in to the line out."""
        self._state, self._clock, self._held = "reset", False, False

    async def serve(self, stream: trio.SocketStream) -> None:
        async for data in stream:
            out = bytearray()
            for byte in data:
                if 0x30 <= byte <= 0x37:
                    self._lines(byte - 0x30)
                elif byte == 0x52:
                    out += b"1" if self._ports[-1].shift & 1 else b"0"
                elif byte in b"rs":  # the reset line, up and down: it starts, or halts, when that has ended
                    before, self._held = self._held, byte == 0x73
                    if before or self._held:
                        self.chip.reset()
            if out:
                await stream.send_all(out)

    def _lines(self, value: int) -> None:
        clock = bool(value & 4)
        if clock and not self._clock:
            self._act(value & 1)
            self._state = self.NEXT[self._state][value >> 1 & 1]
            for port in self._ports:
                if self._state == "reset":
                    port.instruction = port.idle
                elif self._state == "update-ir":
                    port.instruction = port.shift
                elif self._state == "update-dr":
                    port.update()
        self._clock = clock

    def _act(self, bit: int) -> None:
        for port in self._ports:
            if self._state == "capture-dr":
                port.capture()
            elif self._state == "capture-ir":
                port.shift, port.length = 1, port.width
            elif self._state in ("shift-dr", "shift-ir"):
                out = port.shift & 1
                port.shift = port.shift >> 1 | bit << port.length - 1
                bit = out


class Probe:
    """A probe at the chip, as pyOCD speaks to one over the network: a request and an answer a line, in JSON."""

    PROPERTIES: ClassVar[dict[str, Any]] = {
        "vendor_name": "Lab",
        "product_name": "Probe",
        "supported_wire_protocols": ["SWD", "DEFAULT"],
        "wire_protocol": "SWD",
        "capabilities": [],
    }

    def __init__(self) -> None:
        self.chip = Stm32(page=0x800)
        self._port = _Debug(self.chip)

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        async for data in stream:
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                answer: dict[str, Any] = {"id": asked["id"], "status": 0}
                try:
                    answer["result"] = self._do(asked["request"], *asked.get("arguments", []))
                except KeyError as error:
                    answer |= {"status": 1, "error": f"unknown: {error}"}
                await stream.send_all(json.dumps(answer).encode() + b"\n")

    def _do(self, request: str, *arguments: Any) -> Any:
        done: dict[str, Callable[..., Any]] = {
            "readprop": self.PROPERTIES.__getitem__,
            "read_dp": self._port.read_debug_port,
            "write_dp": self._port.write_debug_port,
            "read_ap": self._port.read_access_port,
            "write_ap": self._port.write_access_port,
            "read_ap_multiple": lambda address, count: [self._port.read_access_port(address) for _ in range(count)],
            "write_ap_multiple": self._write_several,
            "reset": self.chip.reset,
            "assert_reset": lambda held: None if held else self.chip.reset(),
            "is_reset_asserted": lambda: False,
            "get_memory_interface_for_ap": lambda *_: None,
        }
        done |= dict.fromkeys(
            ("hello", "open", "close", "lock", "unlock", "connect", "disconnect", "flush", "set_clock", "swj_sequence"),
            lambda *_: None,
        )
        return done[request](*arguments)

    def _write_several(self, register: int, values: list[int]) -> None:
        for value in values:
            self._port.write_access_port(register, value)
